"""A program that runs kernels on arrays from its input: for builds that Python cannot load.

    program < calls > outputs      calls: for each argument of each call, its bytes, or nothing for outputs and scratch

Arrays are allocated at their exact sizes, so that AddressSanitizer sees the first number beyond one.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from support.native_cases import Case

MAIN = """
#include <stdio.h>
#include <stdlib.h>

struct Argument { int is_given, is_output; size_t bytes; };
struct Call { int (*function)(void* const*); int count; Argument arguments[12]; };
DECLARATIONS
extern "C" int es_set_threads(int);
static const Call calls[] = {
CALLS
};

int main(int count, char** words) {
    if (es_set_threads(count > 1 ? atoi(words[1]) : 1)) return 2;
    for (const Call& call : calls) {
        void* buffers[12];
        for (int i = 0; i < call.count; ++i) {
            const Argument& argument = call.arguments[i];
            if (posix_memalign(&buffers[i], 64, argument.bytes)) return 3;
            if (argument.is_given && fread(buffers[i], 1, argument.bytes, stdin) != argument.bytes) return 4;
        }
        if (call.function(buffers)) return 5;
        for (int i = 0; i < call.count; ++i) {
            if (call.arguments[i].is_output) fwrite(buffers[i], 1, call.arguments[i].bytes, stdout);
            free(buffers[i]);
        }
    }
    return es_set_threads(1) ? 6 : 0;
}
"""


def write_main(cases: Sequence[Case]) -> str:
    """Return the program's source."""
    names = sorted({case.unit.symbol for case in cases})
    declarations = "\n".join(f'extern "C" int {name}(void* const*);' for name in names)
    calls = []
    for case in cases:
        arguments = [
            f"{{{int(one.role != 'output')}, {int(one.role == 'output')}, {one.size * np.dtype(one.dtype).itemsize}}}"
            for one in case.unit.arguments
        ]
        arguments += [f"{{0, 0, {case.unit.scratch_bytes}}}"] if case.unit.scratch_bytes else []
        calls.append(f"    {{{case.unit.symbol}, {len(arguments)}, {{{', '.join(arguments)}}}}},")
    return MAIN.replace("DECLARATIONS", declarations).replace("CALLS", "\n".join(calls))


def run(
    program: Path, cases: Sequence[Case], threads: int, before: Sequence[str] = ()
) -> tuple[list[list[np.ndarray]], str]:
    """Return the outputs of all calls, and what the program said. `before` is a command that runs programs."""
    given = b"".join(
        np.ascontiguousarray(value, argument.dtype).tobytes()
        for case in cases
        for value, argument in zip(
            case.given, (one for one in case.unit.arguments if one.role != "output"), strict=True
        )
    )
    done = subprocess.run([*before, str(program), str(threads)], input=given, capture_output=True, check=False)
    said = done.stderr.decode(errors="replace")
    assert done.returncode == 0, said[:4000] or done.returncode
    outputs, at = [], 0
    for case in cases:
        one = []
        for expected, dtype in zip(case.expected, _dtypes(case, is_output=True), strict=True):
            one.append(np.frombuffer(done.stdout, dtype, expected.size, at).astype(np.float32))
            at += expected.size * np.dtype(dtype).itemsize
        outputs.append(one)
    assert at == len(done.stdout)
    return outputs, said


def _dtypes(case: Case, is_output: bool) -> list[str]:
    """Return numpy's names of the types of a case's outputs, or of all else that it is called with."""
    return [one.dtype for one in case.unit.arguments if (one.role == "output") == is_output]

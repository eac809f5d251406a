"""The texts around a compiled model: its straight line of calls in C++, its header, an example in C, and a loader.

    NAME.cpp        one function that makes all calls, in order, on positions that are known; the parameters as they are
    NAME.h          how a program in C or C++ calls it
    example.c       a program that does, in full
    load_NAME.py    the same from Python, by ctypes and numpy; Python would take NAME.so for a module called NAME

The library needs the C library alone. What it says of itself is JSON in a section of its own, so that it can be read on
a machine that cannot run it.
"""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Mapping, Sequence
from typing import Any

from edgesmith.exporters.targets._tvm_plan import ALIGNMENT, Call, Listing, Plan, Value

SECTION = ".edgesmith"
"""Of the library, with what it says of itself."""

WEIGHTS = "weights.bin"
"""Of the parameters, beside the C++ while it is compiled."""

C_TYPES = {
    "float32": "float",
    "float64": "double",
    "int64": "int64_t",
    "int32": "int32_t",
    "int16": "int16_t",
    "int8": "int8_t",
    "uint8": "uint8_t",
    "bool": "uint8_t",
}


def identifier(name: str) -> str:
    """Return a name that C takes: letters, digits and underscores, a letter first, no keyword."""
    found = re.sub(r"\W", "_", name, flags=re.ASCII)
    return f"m_{found}" if not found[:1].isalpha() or found in _KEYWORDS or keyword.iskeyword(found) else found


_KEYWORDS = frozenset(
    [
        *("auto", "break", "case", "char", "const", "continue", "default", "do", "double", "else", "enum", "extern"),
        *("float", "for", "goto", "if", "inline", "int", "long", "register", "restrict", "return", "short", "signed"),
        *("sizeof", "static", "struct", "switch", "typedef", "union", "unsigned", "void", "volatile", "while", "bool"),
        *("true", "false", "class", "new", "delete", "this", "template", "memory", "main"),
    ]
)


def line_of_calls(name: str, listing: Listing, plan: Plan, description: Mapping[str, Any], weights: str) -> str:
    """Return the C++ of a model: every call, in order, and what the library says of itself.

    Args:
        weights: the file of its parameters.
    """
    prefix = identifier(name)
    said = json.dumps(description, ensure_ascii=True, separators=(",", ":"), sort_keys=True)
    declared = "\n".join(_declarations(listing.calls))
    calls = "\n".join(
        f"{_call(number, call, listing, plan)}\n  ENDED({number + 1});" for number, call in enumerate(listing.calls)
    )
    places = "\n".join(_staged(number, value, plan) for number, value in enumerate(listing.inputs))
    results = "\n".join(_result(number, value, listing, plan) for number, value in enumerate(listing.outputs))
    return f"""\
{_opening(name, said, weights)}
extern "C" {{
{declared}
int es_set_threads(int);
void es_parallel_for(int, void (*)(void *, int), void *);
}}

static int64_t now() {{
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}}

// The bytes of one input where compiled code can read them, which wants them aligned.
static const char *aligned(const void *given, char *place, size_t size) {{
  if (((uintptr_t)given & {ALIGNMENT - 1}) == 0) return (const char *)given;
  memcpy(place, given, size);
  return place;
}}

SHOWN size_t {prefix}_memory_bytes(void) {{ return {max(plan.memory, ALIGNMENT)}; }}

SHOWN int {prefix}_set_threads(int threads) {{ return es_set_threads(threads); }}

// The model. Where `times` is not null it gets nanoseconds: when the first call began, and when each one ended.
static int run(const void *const *inputs, void *const *outputs, void *memory, int64_t *times) {{
  if (!inputs || !outputs || !memory || ((uintptr_t)memory & {ALIGNMENT - 1})) return -1;
  char *const m = (char *)memory;
  const char *const w = {prefix}_weights;
  (void)m, (void)w;
{places}
  ENDED(0);
{calls}
{results}
  return 0;
}}

{_entries(prefix)}"""


def _opening(name: str, description: str, weights: str) -> str:
    """Return the headers, the parameters, and what the library says of itself."""
    prefix = identifier(name)
    return f"""\
// {name}: every call in order, at positions that were planned ahead. Written by edgesmith.
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#define SHOWN extern "C" __attribute__((visibility("default")))
#define ENDED(number) if (times) times[number] = now()

__asm__(".pushsection .rodata\\n.balign {ALIGNMENT}\\n.hidden {prefix}_weights\\n.globl {prefix}_weights\\n"
        "{prefix}_weights:\\n.incbin \\"{weights}\\"\\n.byte 0\\n.popsection\\n");
extern "C" const char {prefix}_weights[] __attribute__((visibility("hidden")));

SHOWN const char {prefix}_description[] __attribute__((section("{SECTION}"), used)) =
{_literal(description)};
"""


def _entries(prefix: str) -> str:
    """Return the functions by which programs call a model, and the table for those that do not know its name."""
    return f"""\
SHOWN int {prefix}_run(const void *const *inputs, void *const *outputs, void *memory) {{
  return run(inputs, outputs, memory, NULL);
}}

// The same for programs that do not know the name: the description, how much memory, the call, the number of threads,
// and the call that says how long each of its parts took.
SHOWN const void *const edgesmith_entry[] = {{{prefix}_description, (const void *){prefix}_memory_bytes,
                                             (const void *){prefix}_run, (const void *){prefix}_set_threads,
                                             (const void *)run}};
"""


def _declarations(calls: Sequence[Call]) -> list[str]:
    """Return a line for each function that is called, once."""
    lines = {}
    for call in calls:
        count = len(call.reads) + len(call.writes) + len(call.scratch)
        pointers = ["const void *"] * count + ["int"] * (call.tasks > 1)
        taken = "void *const *" if call.is_kernel else ", ".join(pointers)
        lines[call.symbol] = f"int {call.symbol}({taken});"
    return list(lines.values())


def _staged(number: int, value: Value, plan: Plan) -> str:
    position = plan.positions[value.name]
    return f"  const char *const i{number} = aligned(inputs[{number}], m + {position}, {value.bytes}); (void)i{number};"


def _call(number: int, call: Call, listing: Listing, plan: Plan) -> str:
    """Return the lines of one call."""
    given = [_at(name, listing, plan) for name in (*call.reads, *call.writes)]
    given += [f"m + {position}" for position in plan.scratch.get(number, ())]
    if call.tasks > 1:
        taken = ", ".join([*(f"a[{i}]" for i in range(len(given))), "task"])
        body = f"[](void *c, int task) {{ void *const *const a = (void **)c; {call.symbol}({taken}); }}"
        pointers = ", ".join(f"(void *)({one})" for one in given)
        return f"  {{ void *a[] = {{{pointers}}}; es_parallel_for({call.tasks}, {body}, a); }}"
    if not call.is_kernel:
        return f"  if (int code = {call.symbol}({', '.join(given)})) return code;"
    pointers = ", ".join(f"(void *)({one})" for one in given)
    return f"  {{ void *const a[] = {{{pointers}}}; if (int code = {call.symbol}(a)) return code; }}"


def _at(name: str, listing: Listing, plan: Plan) -> str:
    """Return a value's position in C++."""
    root = listing.root(name)
    if root in plan.weights:
        return f"w + {plan.weights[root]}"
    numbers = {value.name: i for i, value in enumerate(listing.inputs)}
    return f"i{numbers[root]}" if root in numbers else f"m + {plan.positions[root]}"


def _result(number: int, value: Value, listing: Listing, plan: Plan) -> str:
    return f"  memcpy(outputs[{number}], {_at(value.name, listing, plan)}, {value.bytes});"


def _literal(text: str) -> str:
    """Return text as string literals of C, in pieces that compilers take, ending with a zero."""
    pieces = [text[i : i + 1000] for i in range(0, len(text), 1000)]
    return "\n".join(json.dumps(piece, ensure_ascii=True) for piece in pieces)


def header(name: str, inputs: Sequence[tuple[str, Value]], outputs: Sequence[tuple[str, Value]]) -> str:
    """Return the header of a model's library.

    Args:
        inputs, outputs: by what the artifact calls them.
    """
    prefix = identifier(name)
    guard = f"EDGESMITH_{prefix.upper()}_H"
    taken = [f"const {C_TYPES[v.dtype]} *{_argument('in', n)} /* {_shape(v)} */" for n, v in inputs]
    taken += [f"{C_TYPES[v.dtype]} *{_argument('out', n)} /* {_shape(v)} */" for n, v in outputs]
    read, written = (
        ", ".join(_argument(kind, n) for n, _ in found) for kind, found in (("in", inputs), ("out", outputs))
    )
    arguments = ",\n    ".join([*taken, "void *memory"])
    return f"""\
/* {name}, compiled by edgesmith. The library needs the C library alone, allocates nothing, and keeps no state:
   several threads may run it at once, each with working memory of its own. */
#ifndef {guard}
#define {guard}
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {{
#endif

/* Bytes of working memory that one call at a time needs; it must be aligned to {ALIGNMENT} bytes. */
size_t {prefix}_memory_bytes(void);

/* What the library is, in JSON. */
extern const char {prefix}_description[];

/* Sets how many threads share a call, the caller's included: 1 to 64, and one until this is called. All sessions of
   the library share them, and two that run at once have one thread each. Returns 0, or -1 where there are fewer. */
int {prefix}_set_threads(int threads);

/* Runs the model on arrays in C order. Returns 0, or a number where memory is missing or not aligned. */
int {prefix}_run(const void *const *inputs, void *const *outputs, void *memory);

/* The same, each array by its name. */
static inline int {prefix}(
    {arguments}) {{
  const void *const inputs[] = {{{read}}};
  void *const outputs[] = {{{written}}};
  return {prefix}_run(inputs, outputs, memory);
}}

#ifdef __cplusplus
}}
#endif
#endif
"""


def _argument(kind: str, name: str) -> str:
    return f"{kind}_{identifier(name).removeprefix('m_')}"


def _shape(value: Value) -> str:
    return "x".join(map(str, value.shape)) or "one number"


def example(name: str, inputs: Sequence[tuple[str, Value]], outputs: Sequence[tuple[str, Value]]) -> str:
    """Return a program in C that runs a model once, on zeros."""
    prefix = identifier(name)
    arrays = "\n".join(
        f"static {C_TYPES[v.dtype]} {_argument(kind, n)}[{max(1, v.bytes // _width(v))}];"
        for kind, found in (("in", inputs), ("out", outputs))
        for n, v in found
    )
    given = ", ".join([*(_argument("in", n) for n, _ in inputs), *(_argument("out", n) for n, _ in outputs)])
    first, value = outputs[0]
    shown = _argument("out", first)
    count = max(1, value.bytes // _width(value))
    return f"""\
/* Runs {name} once, on zeros, and shows the first numbers that come out.

     cc -O2 example.c ./{name}.so -Wl,-rpath,'$ORIGIN' -o example && ./example */
#include <stdio.h>
#include <stdlib.h>

#include "{name}.h"

/* Fill these with what the model reads; {name}.h has the shapes. */
{arrays}

int main(void) {{
  size_t bytes = {prefix}_memory_bytes();
  void *memory = aligned_alloc({ALIGNMENT}, (bytes + {ALIGNMENT - 1}) / {ALIGNMENT} * {ALIGNMENT}); /* once */
  if (!memory) return 1;

  int code = {prefix}({given}, memory); /* as often as you like */
  if (code) {{
    fprintf(stderr, "{name} failed with %d\\n", code);
    return 1;
  }}
  for (int i = 0; i < {min(count, 5)}; ++i) printf("{first}[%d] = %.9g\\n", i, (double){shown}[i]);

  free(memory);
  return 0;
}}
"""


def _width(value: Value) -> int:
    return Value("", (1,), value.dtype).bytes


def loader(name: str) -> str:
    """Return a Python module that loads a model's library."""
    prefix = identifier(name)
    return f'''\
"""Run {name} from Python; needs numpy and the library beside this file.

    from load_{prefix} import Model

    model = Model()
    outputs = model(*inputs)
"""

import ctypes
import json
from pathlib import Path

import numpy as np


class Model:
    """One session: the library, and working memory of its own. Threads need one each."""

    def __init__(self, path=Path(__file__).with_name("{name}.so")):
        library = ctypes.CDLL(str(path))
        text = ctypes.c_char.in_dll(library, "{prefix}_description")
        self.description = json.loads(ctypes.string_at(ctypes.addressof(text)).decode())
        self._run = library.{prefix}_run
        count = library.{prefix}_memory_bytes
        count.restype = ctypes.c_size_t
        block = np.empty(count() + {ALIGNMENT}, np.uint8)
        self._memory = block[-block.ctypes.data % {ALIGNMENT} :]

    def __call__(self, *inputs):
        """Return the outputs, in the order that the description has them."""
        wanted = self.description["inputs"]
        if len(inputs) != len(wanted):
            raise ValueError(f"{name} takes {{len(wanted)}} inputs, got {{len(inputs)}}")
        given = [np.ascontiguousarray(x, one["dtype"]).reshape(one["shape"]) for x, one in zip(inputs, wanted)]
        made = [np.empty(one["shape"], one["dtype"]) for one in self.description["outputs"]]
        read = (ctypes.c_void_p * len(given))(*[x.ctypes.data for x in given])
        written = (ctypes.c_void_p * len(made))(*[y.ctypes.data for y in made])
        code = self._run(read, written, ctypes.c_void_p(self._memory.ctypes.data))
        if code:
            raise RuntimeError(f"{name} failed with {{code}}")
        return made
'''

"""The command line. Each command parses, calls one function of the layers below, and shows what came back.

Progress goes to stderr, results to stdout. Errors are one sentence and an exit code (errors.py). Whatever imports
torch or a backend is imported inside the command that uses it, so that `--help` answers at once.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Never

import typer

from edgesmith._version import __version__
from edgesmith.cli.bench import Interrupted, bench, build_on, compare, profile
from edgesmith.cli.devices import devices, estimate
from edgesmith.cli.doctor import doctor
from edgesmith.cli.export import explain, export, verify
from edgesmith.cli.files import inspect, lint
from edgesmith.cli.help import RootHelp
from edgesmith.cli.listings import models, operators, targets
from edgesmith.cli.options import PrecisionHelp
from edgesmith.cli.peers import peers
from edgesmith.cli.report import history, report
from edgesmith.cli.signals import resend_lost_interrupts
from edgesmith.cli.tables import print_line
from edgesmith.cli.use import use
from edgesmith.ending import code_of_interrupt, ignore_interrupts, own_temporary_folder
from edgesmith.errors import (
    INTERRUPTED,
    INTERRUPTION,
    BackendMissing,
    BadInput,
    EdgesmithError,
    EdgesmithWarning,
    OutputError,
)
from edgesmith.readers.limits import OUT_OF_MEMORY, is_out_of_memory
from edgesmith.show import in_json
from edgesmith.writing import FULL

# The base of everything that parsing raises, from click or from typer's own copy of it.
_USAGE_ERROR: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

EXPORT_PACKAGES = {"torch": "export", "onnxscript": "export", "onnxsim": "export", "onnxruntime": "run"}
"""Modules that the core does without, by the extra that brings them."""

REFUSED = {errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ELOOP}
"""Answers of the system to a path that somebody gave, wherever it is first asked."""

LONGEST_NAME = 80
"""Characters of a path that an error repeats; one that is too long for the system is not shown whole."""

MAKE, LOOK, MEASURE, SHOW = "Make a file", "Look into files and targets", "Measure", "Show what was measured"

COMMANDS: dict[Callable[..., None], tuple[str, str]] = {
    export: (MAKE, "export --model casvit_xs --target coreml --image-input --labels labels.txt"),
    use: (MAKE, "use artifacts/casvit_xs-onnx-fp32 --lang python"),
    verify: (MAKE, "verify artifacts/casvit_xs-onnx-fp32"),
    explain: (MAKE, "explain --model casvit_xs"),
    build_on: (MAKE, "build-on ssh://orin artifacts/casvit_xs-tensorrt-fp16-jetson-orin-nano"),
    models: (LOOK, "models"),
    targets: (LOOK, "targets"),
    devices: (LOOK, "devices"),
    doctor: (LOOK, "doctor"),
    operators: (LOOK, "operators softmax"),
    lint: (LOOK, "lint artifacts/casvit_xs-coreml-fp16 --strict"),
    inspect: (LOOK, "inspect artifacts/casvit_xs-tensorrt-fp16-rtx3080"),
    bench: (MEASURE, "bench artifacts/casvit_xs-onnx-fp32 --seconds 20"),
    compare: (MEASURE, "compare artifacts/base artifacts/head --threshold 5%"),
    peers: (MEASURE, "peers casvit_xs"),
    estimate: (MEASURE, "estimate artifacts/casvit_xs-coreml-fp16 --device iphone13"),
    profile: (SHOW, "profile measurements/20260101T000000Z.json"),
    report: (SHOW, "report artifacts --out report.html"),
}
"""The commands in the order of `--help`, each with its group there and an example."""

app = typer.Typer(
    name="edgesmith",
    cls=RootHelp,
    help="From a PyTorch definition to verified files for phones and edge boards.",
    epilog="Exit codes: 0 done, 2 bad input, 3 verification failed, 4 backend missing, 5 output not writable,"
    " 6 model or operator unsupported, 7 device failed; of compare 8 slower, 9 inconclusive, 10 not comparable;"
    " 130 interrupted, 143 ended, 1 a bug. --debug, anywhere, shows the traceback.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command, (_group, _example) in COMMANDS.items():
    app.command(
        cls=PrecisionHelp if _command is export else None,
        rich_help_panel=_group,
        epilog=f"Example: edgesmith {_example}",
    )(_command)
app.add_typer(
    history, name="history", rich_help_panel=SHOW, epilog="Example: edgesmith history add measurements/today.json"
)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        print(f"edgesmith {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


def main() -> Never:
    """Run the command line and exit with its code."""
    resend_lost_interrupts()
    remove_temporary_files = own_temporary_folder()
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    try:
        code = run([argument for argument in arguments if argument != "--debug"], debug)
    except KeyboardInterrupt:  # while an error was told
        code = INTERRUPTED
    if code == INTERRUPTED:
        # An interrupt inside an extension module's import leaves a mark that makes Python's own exit a death by SIGINT.
        ignore_interrupts()
        remove_temporary_files()
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code_of_interrupt())
    sys.exit(code)


def run(arguments: list[str], debug: bool = False) -> int:
    """Run one command. Returns the exit code; errors become a sentence on stderr, and JSON on stdout with --json."""
    try:
        with _shown_warnings():
            result = app(args=arguments, prog_name="edgesmith", standalone_mode=False)
        sys.stdout.flush()  # what is still to be written may find no room
        if result == INTERRUPTED:  # what typer makes of a KeyboardInterrupt
            raise KeyboardInterrupt
        return result if isinstance(result, int) else 0
    except EdgesmithError as error:
        if debug:
            raise
        return _fail(str(error), error.exit_code, arguments)
    except _USAGE_ERROR as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "edgesmith"
        said = error.format_message().rstrip(".")
        return _fail(f"{said}. See: {command} --help", BadInput.exit_code, arguments)
    except Interrupted:
        return INTERRUPTED
    except (KeyboardInterrupt, typer.Abort):
        return _fail(INTERRUPTION, INTERRUPTED, arguments)
    except BrokenPipeError:  # `edgesmith models | head`
        sys.stderr.close()
        return 0
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name in EXPORT_PACKAGES:
            extra = EXPORT_PACKAGES[error.name]
            needs = f'this needs {error.name}, which is not installed: pip install "edgesmith[{extra}]"'
            return _fail(needs, BackendMissing.exit_code, arguments)
        if is_out_of_memory(error):  # whoever has set the limit says so
            return OUT_OF_MEMORY
        if isinstance(error, OSError) and error.errno in FULL:
            return _fail(f"cannot write all of it: {error.strerror}; make room", OutputError.exit_code, arguments)
        if isinstance(error, OSError) and error.filename and error.errno in REFUSED:
            given = str(error.filename)
            name = given if len(given) <= LONGEST_NAME else f"{given[:LONGEST_NAME]}..."
            return _fail(f"cannot use {name}: {error.strerror}; give another path", BadInput.exit_code, arguments)
        if debug:
            raise
        sentence = f"a bug in edgesmith: {type(error).__name__}: {error}. Please report it with the output of --debug"
        return _fail(sentence, EdgesmithError.exit_code, arguments)


@contextlib.contextmanager
def _shown_warnings() -> Iterator[None]:
    """Show edgesmith's own warnings as a sentence each, without the line of code that Python adds."""
    show_others = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, EdgesmithWarning):
            print_line(f"edgesmith: WARNING: {message}", to_stderr=True)
        else:
            show_others(message, category, *where, **more)

    with warnings.catch_warnings():
        warnings.simplefilter("always", EdgesmithWarning)
        warnings.showwarning = show
        yield


def _fail(sentence: str, code: int, arguments: list[str]) -> int:
    with contextlib.suppress(OSError):  # the code says it too, where what it is said on has no room
        print_line(f"edgesmith: {sentence}", to_stderr=True)
        if "--json" in arguments:
            print(in_json(json.dumps({"error": sentence, "exit_code": code}, ensure_ascii=False)), flush=True)
    return code

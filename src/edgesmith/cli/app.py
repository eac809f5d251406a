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
from collections.abc import Iterator
from typing import Annotated, Any, Never

import typer

from edgesmith._version import __version__
from edgesmith.cli.help import Root
from edgesmith.cli.signals import Interrupted, resend_lost_interrupts
from edgesmith.cli.streams import open_closed_streams
from edgesmith.cli.tables import print_line
from edgesmith.ending import done, interruption, leave, own_temporary_folder
from edgesmith.errors import (
    INTERRUPTED,
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

REFUSED = {errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ELOOP, errno.EIO, errno.ESTALE, errno.EMFILE}
"""Answers of the system to a path that somebody gave, wherever it is first asked."""

GONE = {errno.ENOENT, errno.ENOTDIR}
"""Errors about what somebody else removed while it was read or written."""

LONGEST_NAME = 80
"""Characters of a path that an error repeats; one that is too long for the system is not shown whole."""

app = typer.Typer(
    name="edgesmith",
    cls=Root,
    help="From a PyTorch definition to verified files for phones and edge boards.",
    epilog="Exit codes: 0 done, 2 bad input, 3 verification failed, 4 backend missing, 5 output not writable,"
    " 6 model or operator unsupported, 7 device failed; of compare 8 slower, 9 inconclusive, 10 not comparable;"
    " 130 interrupted, 143 ended, 1 a bug. --debug, anywhere, shows the traceback.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
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
    open_closed_streams()
    resend_lost_interrupts()
    own_temporary_folder()
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    try:
        code = run([argument for argument in arguments if argument != "--debug"], debug)
        if code != INTERRUPTED:
            done()
    except KeyboardInterrupt:  # while an error was told
        code = INTERRUPTED
    if code == INTERRUPTED:
        leave()
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
        stop = "" if said.endswith("?") else "."
        return _fail(f"{said}{stop} See: {command} --help", BadInput.exit_code, arguments)
    except Interrupted:
        return INTERRUPTED
    except (KeyboardInterrupt, typer.Abort):
        return _fail(interruption(), INTERRUPTED, arguments)
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
        if isinstance(error, OSError) and (sentence := _refused_by_system(error)):
            return _fail(sentence, BadInput.exit_code, arguments)
        if debug:
            raise
        sentence = f"a bug in edgesmith: {type(error).__name__}: {error}. Please report it with the output of --debug"
        return _fail(sentence, EdgesmithError.exit_code, arguments)


def _refused_by_system(error: OSError) -> str:
    """Return the sentence for a path that the system does not let anybody use; empty where the error is another."""
    if not error.filename:
        return ""
    given = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else str(error.filename)
    name = given if len(given) <= LONGEST_NAME else f"{given[:LONGEST_NAME]}..."
    if error.errno in REFUSED:
        return f"cannot use {name}: {error.strerror}; give another path"
    if error.errno in GONE:
        return f"{name} is no longer there: it was removed while it was used; run the command again"
    return ""


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

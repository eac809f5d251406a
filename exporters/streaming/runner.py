"""Runs a streaming model: frames in one by one, a prediction for each of them out, states carried along.

    python3 stream.py                                     raw float32 frames from standard input, a line for each
    python3 stream.py --frames FRAMES.npy --out OUT.npy   [frames, features] to [frames, classes]
    python3 stream.py ../lmuformer-engine                 what a kit's build.py has written, in TensorRT

    from stream import Stream                             in your own program
    stream = Stream(".")
    for frame in microphone:                              # [features]
        prediction = stream.step(frame)                   # None for the first `stream.delay` frames
    last = stream.finish()                                # the predictions of the last ones
    stream.reset()                                        # and the next sequence may begin

One file: Python 3.8 and numpy, with ONNX Runtime for a `.onnx`, and TensorRT or TensorRT-RTX for an `.engine`. The
folder is an artifact's, or one that build.py has written: manifest.json says which file it is, and which states there
are. Exit code 0; or 2, and one sentence on stderr.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from edgesmith.board.common import Cuda, Refusal, bind, first_line, new_log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    Runtime = Callable[[Mapping[str, Any]], Mapping[str, Any]]

FILE = "stream.py"
"""The name of this file, once it is written."""

ENGINE = ".engine"

MODULES = ("tensorrt", "tensorrt_rtx")
"""Modules that open engines; each opens its own alone."""


class Stream:
    """A sequence under way. Not to be shared between threads.

    Args:
        folder: an artifact's, or one that build.py has written.
        file: in place of the one that manifest.json names.

    Attributes:
        delay: steps until the first frame's prediction comes out.
        shape: of a frame, with the batch.
        outputs: names of a prediction's parts.

    Raises:
        Refusal: there is no such model, it is no step of a sequence, or nothing here runs it.
    """

    def __init__(self, folder: str | Path = ".", file: str | Path | None = None) -> None:
        manifest = read_manifest(Path(folder))
        streaming = manifest["streaming"]
        self.delay: int = streaming["delay"]
        self.shape = tuple(streaming["frame"]["shape"])
        self.outputs: list[str] = [one["name"] for one in streaming["outputs"]]
        self._frame: str = streaming["frame"]["name"]
        self._is_frame: str | None = streaming["is_frame"]
        self._next: dict[str, str] = {one["name"]: one["next"] for one in streaming["states"]}
        self._first = {one["name"]: (one["shape"], one["initial"]) for one in streaming["states"]}
        path = Path(folder) / manifest["file"] if file is None else Path(file)
        if not path.is_file():
            raise Refusal(f"{path} is missing; copy the folder again, or name the file with --model")
        self._run = open_engine(path) if path.suffix == ENGINE else open_onnx(path)
        self.reset()

    def reset(self) -> None:
        """Forget the sequence so far: the next frame is the first one."""
        import numpy

        self._states = {name: numpy.full(shape, first, "float32") for name, (shape, first) in self._first.items()}
        self._frames = 0
        self._is_finished = False

    def step(self, frame: Any) -> Any:
        """Return the prediction of the frame `delay` steps ago, or None where there was none yet.

        Args:
            frame: the next one, [features] or with the batch.

        Returns:
            An array [batch, ...]; a list of them where the model has several outputs.
        """
        import numpy

        given = numpy.asarray(frame, "float32")
        count = int(numpy.prod(self.shape))
        if given.size != count or given.shape[-1:] != self.shape[-1:]:
            raise Refusal(f"a frame must have shape {list(self.shape)}, got {list(given.shape)}")
        if self._is_finished:
            raise Refusal("the sequence is finished; call reset() before the first frame of the next one")
        self._frames += 1
        prediction = self._advance(given.reshape(self.shape), 1.0)
        return prediction if self._frames > self.delay else None

    def finish(self) -> list[Any]:
        """Return the predictions of the last frames, `delay` of them or all there were; ends the sequence."""
        import numpy

        if self._is_finished:
            return []
        self._is_finished = True
        late = [self._advance(numpy.zeros(self.shape, "float32"), 0.0) for _ in range(self.delay)]
        return late[self.delay - min(self._frames, self.delay) :]

    def run(self, frames: Any) -> list[Any]:
        """Return the predictions of all frames of a sequence, from a reset to the end."""
        self.reset()
        found = [self.step(frame) for frame in frames]
        return [one for one in found if one is not None] + self.finish()

    def _advance(self, frame: Any, is_frame: float) -> Any:
        """Run one step, and keep the states that it hands on."""
        import numpy

        flag = {} if self._is_frame is None else {self._is_frame: numpy.full((1,), is_frame, "float32")}
        values = self._run(dict(self._states, **{self._frame: frame}, **flag))
        self._states = {name: values[after] for name, after in self._next.items()}
        predictions = [values[name] for name in self.outputs]
        return predictions[0] if len(predictions) == 1 else predictions


def read_manifest(folder: Path) -> dict[str, Any]:
    """manifest.json. Raises Refusal where it is missing, cannot be read, or is of no step that hands its states on."""
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        streaming, name = manifest.get("streaming"), str(manifest["file"])
    except FileNotFoundError:
        raise Refusal(f"there is no manifest.json in {folder}; name an artifact's folder") from None
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise Refusal(f"manifest.json in {folder} cannot be read ({error}); copy the folder again") from None
    if not streaming:
        raise Refusal(f"{name} takes whole sequences; export it with --streaming")
    if streaming["kept_by"] != "caller":
        raise Refusal(f"{name} keeps its states itself, which only its own runtime knows how to run; see USE.md")
    if Path(name).name != name:
        raise Refusal("manifest.json names no file of its folder; copy the folder again")
    return manifest


def open_onnx(path: Path) -> Runtime:
    """A step in ONNX Runtime: values by input's name to values by output's name."""
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError:
        raise Refusal(f"{path.name} needs ONNX Runtime: pip install onnxruntime") from None
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1  # fastest for steps as small as these
    # A memory that hears nothing decays into denormal numbers, over which some processors take their time.
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own are of many kinds
        raise Refusal(f"ONNX Runtime does not open {path.name}: {first_line(str(error))}") from None
    names = [one.name for one in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, dict(inputs))))  # noqa: B905  # Python 3.8 has no strict


def open_engine(path: Path) -> Runtime:
    """A step in TensorRT: values by input's name to values by output's name."""
    content, said = path.read_bytes(), ""
    for name in MODULES:
        try:
            trt = importlib.import_module(name)
        except ImportError:
            continue
        log = new_log(trt)
        runtime = trt.Runtime(log)
        runtime.engine_host_code_allowed = True  # version compatible ones carry code; it is our own
        engine = runtime.deserialize_cuda_engine(content)
        if engine is not None:
            return bound(trt, runtime, engine)
        said = first_line("\n".join(text for _, text in log.lines)) if log.lines else "it does not say why"
    if said:
        raise Refusal(f"TensorRT does not open {path.name}: {said}; build it on this machine: python3 build.py")
    raise Refusal(f"{path.name} needs the Python module tensorrt; on a Jetson: sudo apt-get install python3-libnvinfer")


def bound(trt: Any, runtime: Any, engine: Any) -> Runtime:
    """An engine as a function of its inputs."""
    arrays, call = bind(trt, Cuda(), engine)

    def run(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        for name, value in inputs.items():
            arrays[name][...] = value
        call()
        return {name: array.astype("float32") for name, array in arrays.items() if name not in inputs}

    run.owner = runtime  # type: ignore[attr-defined]  # engines need it as long as they live
    return run


def frames_of(stream: Any, size: int) -> Iterator[Any]:
    """Raw float32 frames of a binary stream, as they come."""
    import numpy

    while True:
        content = stream.read(4 * size)
        if len(content) < 4 * size:
            return
        yield numpy.frombuffer(content, "float32")


class Parser(argparse.ArgumentParser):
    """One whose mistakes are sentences like all others here."""

    def error(self, message: str) -> NoReturn:
        raise Refusal(f"{message}; see: python3 stream.py --help")


def show(prediction: Any) -> None:
    """Print a prediction: a line of numbers for each output."""
    if prediction is not None:
        for one in prediction if isinstance(prediction, list) else [prediction]:
            print(" ".join(format(value, ".9g") for value in one.reshape(-1).tolist()), flush=True)


def stream_frames(options: argparse.Namespace) -> None:
    """Run what was typed."""
    import numpy

    stream = Stream(options.folder, options.model)
    if options.frames is None:
        for frame in frames_of(sys.stdin.buffer, int(numpy.prod(stream.shape))):
            show(stream.step(frame.reshape(stream.shape)))
        for prediction in stream.finish():
            show(prediction)
        return
    try:
        frames = numpy.load(str(options.frames), allow_pickle=False)
    except (OSError, ValueError) as error:
        raise Refusal(f"--frames {options.frames} cannot be read as an array: {first_line(str(error))}") from None
    predictions = stream.run(frames.reshape((-1, *stream.shape)))
    if options.out is None:
        for prediction in predictions:
            show(prediction)
    elif len(stream.outputs) == 1:
        numpy.save(str(options.out), numpy.concatenate(predictions))
    else:
        raise Refusal(f"--out takes one output, and this model has {len(stream.outputs)}; leave it out, or use Stream")


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out what was typed. Returns the exit code."""
    parser = Parser(description="Runs a streaming model, frame by frame.")
    here = Path(__file__).resolve().parent
    parser.add_argument("folder", nargs="?", type=Path, default=here, help="of manifest.json; default: this file's")
    parser.add_argument("--model", type=Path, metavar="FILE", help="in place of the file that manifest.json names")
    parser.add_argument("--frames", type=Path, metavar="FILE.npy", help="in place of raw float32 on standard input")
    parser.add_argument("--out", type=Path, metavar="FILE.npy", help="for predictions; default: a line for each")
    try:
        stream_frames(parser.parse_args(sys.argv[1:] if arguments is None else arguments))
    except Refusal as refusal:
        print(f"stream.py: {' '.join(str(refusal).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Driving a step program, whatever runs it: frames in one by one, a prediction for each of them out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from edgesmith.errors import BackendMissing, BadInput
from edgesmith.exporters.streaming.description import StreamingDescription

CALLER: Literal["caller"] = "caller"
RUNTIME: Literal["runtime"] = "runtime"
"""Who hands the states from step to step: inputs and outputs, or the runtime, which keeps them."""

Call = Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]]
"""One step: the values of all inputs, in order, to the values of all outputs."""


@dataclass(frozen=True)
class Step:
    """A step program, opened in a runtime.

    Attributes:
        call: runs one step.
        forget: gives the states that the runtime itself keeps their first values again.
        close: lets go of the runtime.
    """

    call: Call
    forget: Callable[[], None] = lambda: None
    close: Callable[[], None] = lambda: None


Prediction = np.ndarray | tuple[np.ndarray, ...]
"""What a step predicts: an array, or one for each of several outputs."""


class Stepper:
    """Drives a step program: holds its states, and knows when predictions begin and end.

    Args:
        streaming: the manifest's `streaming`: `delay`, `frame`, `states` and who keeps them.
        step: the program.
    """

    def __init__(self, streaming: StreamingDescription, step: Step) -> None:
        self.delay = int(streaming["delay"])
        self._shape = tuple(streaming["frame"]["shape"])
        given = streaming["states"] if streaming["kept_by"] == CALLER else []
        self._initial = [np.full(state["shape"], state["initial"], np.float32) for state in given]
        self._step = step
        self.reset()

    def reset(self) -> None:
        """Forget the sequence so far: the next frame is the first one."""
        self._states: list[np.ndarray] = list(self._initial)
        self._step.forget()
        self._frames = 0
        self._is_finished = False

    def step(self, frame: np.ndarray) -> Prediction | None:
        """The prediction for the frame `delay` steps ago; None where there was none yet.

        Args:
            frame: the next frame, [features], [batch, features] or [batch, 1, features].

        Returns:
            An array [batch, ...], the sequence model's without its time axis; a tuple where the model has several.

        Raises:
            BadInput: another shape, or the sequence is finished.
        """
        if self._is_finished:
            raise BadInput("the sequence is finished; call reset() before the first frame of the next one")
        given = np.asarray(frame, dtype=np.float32)
        if given.size != np.prod(self._shape) or given.shape[-1:] != self._shape[-1:]:
            raise BadInput(
                f"a frame must have shape {list(self._shape)} or {list(self._shape[-1:])}, got {list(given.shape)}"
            )
        return self._advance(given.reshape(self._shape), is_frame=True)

    def finish(self) -> list[Prediction]:
        """The predictions for the last frames, `delay` of them or as many as there were frames; ends the sequence."""
        if self._is_finished:
            return []
        missing = self.delay - min(self._frames, self.delay)
        steps = [self._advance(np.zeros(self._shape, np.float32), is_frame=False) for _ in range(self.delay)]
        self._is_finished = True
        return [prediction for prediction in steps[missing:] if prediction is not None]

    def run(self, sequence: np.ndarray) -> list[Prediction]:
        """The predictions for every frame of a sequence [batch, frames, features], from a reset to the last one."""
        self.reset()
        steps = [self.step(sequence[:, t]) for t in range(sequence.shape[1])]
        return [prediction for prediction in steps if prediction is not None] + self.finish()

    def _advance(self, frame: np.ndarray, is_frame: bool) -> Prediction | None:
        flag = [np.full((1,), float(is_frame), np.float32)] if self.delay else []
        values = self._step.call([frame, *flag, *self._states])
        count = len(values) - len(self._states)
        self._states = list(values[count:])
        self._frames += is_frame
        predictions = tuple(values[:count])
        if is_frame and self._frames <= self.delay:
            return None
        return predictions[0] if count == 1 else predictions


def open_onnx_step(file: Path | bytes, threads: int = 1) -> Step:
    """One step of an ONNX file, or of what such a file holds, in ONNX Runtime on the CPU."""
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendMissing("StreamingSession needs onnxruntime: pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    # A memory that hears nothing decays into denormal numbers, over which some processors take their time.
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    model = file if isinstance(file, bytes) else str(file)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def call(values: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        outputs: Sequence[np.ndarray] = session.run(None, dict(zip(names, values, strict=True)))
        return outputs

    return Step(call)

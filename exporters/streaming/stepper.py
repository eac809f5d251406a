"""Driving a step program, whatever runs it: frames in one by one, a prediction for each of them out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgesmith.errors import BackendMissing, BadInput
from edgesmith.exporters.streaming import description
from edgesmith.exporters.streaming.description import StreamingDescription
from edgesmith.exporters.streaming.step import Step

Prediction = np.ndarray | tuple[np.ndarray, ...]
"""The prediction of a step: an array, or one for each of several outputs."""


class Stepper:
    """Drives a step program: holds its states, and knows when predictions begin and end.

    Args:
        streaming: what the manifest says of the program.
        step: the program.
    """

    def __init__(self, streaming: StreamingDescription, step: Step) -> None:
        self.delay = streaming["delay"]
        self._streaming = streaming
        self._shape = tuple(streaming["frame"]["shape"])
        self._initial = description.initial_states(streaming)
        self._step = step
        self.reset()

    def reset(self) -> None:
        """Forget the sequence so far: the next frame is the first one."""
        self._states: list[np.ndarray] = list(self._initial)
        self._step.forget()
        self._frames = 0
        self._is_finished = False

    def step(self, frame: np.ndarray) -> Prediction | None:
        """Return the prediction for the frame `delay` steps ago; None where there was none yet.

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
        """Return the predictions for the last frames, `delay` of them or all there were; ends the sequence."""
        if self._is_finished:
            return []
        missing = self.delay - min(self._frames, self.delay)
        steps = [self._advance(np.zeros(self._shape, np.float32), is_frame=False) for _ in range(self.delay)]
        self._is_finished = True
        return [prediction for prediction in steps[missing:] if prediction is not None]

    def run(self, sequence: np.ndarray) -> list[Prediction]:
        """Return the predictions for every frame of a sequence [batch, frames, features], from a reset to the end."""
        self.reset()
        steps = [self.step(sequence[:, t]) for t in range(sequence.shape[1])]
        return [prediction for prediction in steps if prediction is not None] + self.finish()

    def _advance(self, frame: np.ndarray, is_frame: bool) -> Prediction | None:
        values = self._step.call(description.inputs_of_call(self._streaming, frame, self._states, is_frame))
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
        raise BackendMissing('StreamingSession needs onnxruntime: pip install "edgesmith[run]"') from error
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

"""Running a step program: frames in one by one, a prediction for each of them out. For an ONNX artifact that needs
numpy and ONNX Runtime only.

    session = StreamingSession("artifacts/lmuformer-onnx-fp32-streaming")
    for frame in microphone:                  # [features]
        prediction = session.step(frame)      # None for the first `delay` frames
    last = session.finish()                   # the predictions of the last `delay` frames
    session.reset()                           # and the next sequence may begin

A prediction depends on all frames before its own, and on the `delay` frames after it that convolutions look ahead to.
The size of the states and the time of a step do not depend on how many frames came before.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgesmith.errors import BackendMissing, BadInput
from edgesmith.exporters import artifact as artifacts
from edgesmith.exporters import targets
from edgesmith.exporters.streaming import description
from edgesmith.exporters.streaming.description import CALLER, RUNTIME, StreamingDescription
from edgesmith.exporters.streaming.step import Step
from edgesmith.exporters.targets import NotHere

__all__ = ["CALLER", "RUNTIME", "Prediction", "Step", "Stepper", "StreamingSession"]

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


class StreamingSession(Stepper):
    """A streaming artifact, ready to run. Not to be shared between threads: it holds one sequence's states.

    ONNX artifacts run in ONNX Runtime. Those of other targets run in what verifies them here, which is an interpreter:
    good for looking at numbers, and slow.

    Args:
        path: the artifact's folder, or the file in it.
        threads: of ONNX Runtime; one is fastest for a step as small as these.

    Raises:
        BadInput: no artifact, or not a streaming one.
        BackendMissing: what runs it is not installed, or does not run here.
    """

    def __init__(self, path: str | Path, threads: int = 1) -> None:
        self.artifact = artifacts.read(path)
        streaming = description.read(self.artifact.manifest)
        if streaming is None:
            raise BadInput(f"{self.artifact.path} is no streaming artifact; export it with --streaming")
        backend = targets.get(self.artifact.target)
        try:
            step = backend.open_step(self.artifact.file, threads)
        except ImportError as error:
            line = targets.install_line(backend)
            raise BackendMissing(f"{self.artifact.path} needs {error.name}, which is not installed: {line}") from error
        if isinstance(step, NotHere):
            raise BackendMissing(f"{self.artifact.path} does not run here: {step.reason}")
        super().__init__(streaming, step)

    def close(self) -> None:
        """Let go of the runtime."""
        self._step.close()

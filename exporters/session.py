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

from edgesmith.errors import BackendMissing, BadInput
from edgesmith.exporters import artifact as artifacts
from edgesmith.exporters import targets
from edgesmith.exporters.streaming.stepper import Stepper
from edgesmith.exporters.targets.target import NotHere


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
        streaming = self.artifact.manifest.get("streaming")
        if streaming is None:
            raise BadInput(f"{self.artifact.path} is no streaming artifact; export it with --streaming")
        target = targets.get(self.artifact.target)
        if not target.runs_alone:
            target.require_for(self.artifact.file.suffix)
        step = target.open(self.artifact.file).open_step(threads)
        if isinstance(step, NotHere):
            raise BackendMissing(f"{self.artifact.path} does not run here: {step.reason}")
        super().__init__(streaming, step)

    def close(self) -> None:
        """Let go of the runtime."""
        self._step.close()

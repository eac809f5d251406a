"""Words from a microphone, as they are spoken: 16-bit samples at 16 kHz in, a line for each prediction out.

    edgesmith export --model lmuformer --target onnx --streaming
    arecord -q -t raw -f S16_LE -r 16000 -c 1 | python examples/microphone.py artifacts/lmuformer-onnx-fp32-streaming

`arecord` is ALSA's; `sox -d -t raw -r 16000 -e signed -b 16 -c 1 -` does the same on a Mac.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import BinaryIO

import numpy as np

from edgesmith import StreamingSession
from edgesmith.models.front_end import SHIFT, FrontEnd


def listen(artifact: Path, sound: BinaryIO) -> int:
    """Print the best class and its score for each frame of 10 ms. Returns how many predictions there were."""
    session, ears, count = StreamingSession(artifact), FrontEnd(), 0
    while samples := sound.read(2 * SHIFT):
        for frame in ears.push(np.frombuffer(samples[: len(samples) // 2 * 2], "<i2") / 32768):
            scores = session.step(frame)
            if scores is not None:  # none for the first frames, which the model looks ahead to
                best = int(np.argmax(scores))
                print(f"{count / 100:6.2f} s  class {best:2d}  {np.ravel(scores)[best]:.3f}", flush=True)
                count += 1
    return count


if __name__ == "__main__":
    listen(Path(sys.argv[1]), sys.stdin.buffer)

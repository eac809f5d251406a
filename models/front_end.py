"""The front end of the LMUFormers for speech: sound to log mel frames. One file for a board: Python 3.8 and numpy.

    python3 front_end.py SOUND.wav FRAMES.npy             [samples] at 16 kHz, 16 bits, to [frames, 128]

    from front_end import FrontEnd                        in your own program
    front_end = FrontEnd()
    for samples in microphone:                            # of any length, float32 in -1..1
        for frame in front_end.push(samples):             # [128], one each 10 ms
            prediction = stream.step(frame)

    frame t  x   samples 160 t to 160 t + 400, less their mean                              25 ms
             y   x_i - 0.97 x_(i-1), with x_(-1) = x_0                                      pre-emphasis
             p   |DFT_512(hann y)|^2
             e   sum_k w_bk p_k, w_b a triangle between 130 points that are even in mels     20 Hz to 8 kHz
             z   (log max(e, 2^-23) + 6.845978) / (2 * 5.5654526)                            the corpus' own

It is Kaldi's filter bank as torchaudio's `compliance.kaldi.fbank` has it, with what LMUFormer's authors set: a Hann
window, 128 bands, no dither, no energy. They take the mean off the whole sound before. That changes nothing, as each
frame loses its own. mel(f) = 1127 log(1 + f / 700).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # Python 3.8 cannot subscript what the annotations name
    from collections.abc import Sequence

RATE, LENGTH, SHIFT, SIZE, BANDS = 16000, 400, 160, 512, 128
"""Samples a second, in a frame, from frame to frame and in the transform; frequencies of a frame."""

LOWEST_HZ, EMPHASIS = 20.0, 0.97
MEAN, DEVIATION = -6.845978, 5.5654526
"""Of Speech Commands' frames, by the authors; they divide by twice the deviation."""

FLOOR = 2.0**-23
"""What a band without any energy has: float32's epsilon, as in torchaudio."""


def mel(hertz: Any) -> Any:
    """Return frequencies in mels."""
    import numpy

    return 1127.0 * numpy.log(1.0 + numpy.asarray(hertz) / 700.0)


def mel_bands() -> Any:
    """Return the weight of each of the transform's frequencies in each band, [BANDS, SIZE / 2 + 1]."""
    import numpy

    ends = numpy.linspace(mel(LOWEST_HZ), mel(RATE / 2), BANDS + 2)
    left, centre, right = (ends[i : i + BANDS, None] for i in range(3))
    at = mel(numpy.arange(SIZE // 2 + 1) * RATE / SIZE)[None]
    weights = numpy.minimum((at - left) / (centre - left), (right - at) / (right - centre)).clip(0)
    weights[:, -1] = 0  # Kaldi leaves the highest frequency out
    return weights


class FrontEnd:
    """A sound under way: samples in, frames out as soon as they are whole."""

    def __init__(self) -> None:
        import numpy

        self._window = 0.5 - 0.5 * numpy.cos(2 * numpy.pi * numpy.arange(LENGTH) / (LENGTH - 1))
        self._bands = mel_bands()
        self.reset()

    def reset(self) -> None:
        """Forget the sound so far."""
        import numpy

        self._rest = numpy.zeros(0)

    def push(self, samples: Any) -> Any:
        """Return the frames that samples complete, [frames, BANDS] in float32.

        Args:
            samples: the next ones, in -1..1 at 16 kHz; of any number.
        """
        import numpy

        self._rest = numpy.concatenate([self._rest, numpy.asarray(samples, "float64")])
        count = max(0, (len(self._rest) - LENGTH) // SHIFT + 1)
        frames = numpy.stack([self._rest[SHIFT * t : SHIFT * t + LENGTH] for t in range(count)] or [numpy.zeros(0)])
        self._rest = self._rest[SHIFT * count :]
        return self._frames(frames) if count else numpy.zeros((0, BANDS), "float32")

    def _frames(self, x: Any) -> Any:
        """Return the frames of windows of samples, [frames, LENGTH]."""
        import numpy

        x = x - x.mean(axis=1, keepdims=True)
        y = x - EMPHASIS * numpy.concatenate([x[:, :1], x[:, :-1]], axis=1)
        power = numpy.abs(numpy.fft.rfft(self._window * y, SIZE)) ** 2  # [frames, SIZE / 2 + 1]
        logs = numpy.log(numpy.maximum(power @ self._bands.T, FLOOR))
        return ((logs - MEAN) / (2 * DEVIATION)).astype("float32")


def read_sound(path: str) -> Any:
    """Return the samples of a WAV file, in -1..1. Ends the program where it is another kind of sound."""
    import wave

    import numpy

    try:
        with wave.open(path, "rb") as sound:
            kind = (sound.getframerate(), sound.getsampwidth(), sound.getnchannels())
            content = sound.readframes(sound.getnframes())
    except (OSError, EOFError, wave.Error) as error:
        raise SystemExit(f"front_end.py: {path} cannot be read as WAV: {error}") from None
    if kind != (RATE, 2, 1):
        raise SystemExit(
            f"front_end.py: wanted {RATE} samples a second of 16 bits in one channel, got {kind[0]} of {8 * kind[1]}"
            f" bits in {kind[2]}; for instance: sox {path} -r {RATE} -b 16 -c 1 mono.wav"
        )
    return numpy.frombuffer(content, "<i2") / 32768.0


def main(arguments: Sequence[str]) -> None:
    """Carry out what was typed."""
    import numpy

    if len(arguments) != 2:
        raise SystemExit("usage: python3 front_end.py SOUND.wav FRAMES.npy")
    numpy.save(arguments[1], FrontEnd().push(read_sound(arguments[0])))


if __name__ == "__main__":
    main(sys.argv[1:])

"""Samples for `voice-activity`: speech that we synthesize, and the silence around it.

The voice is a train of glottal pulses through resonators at the formants of vowels (a cascade, as in Klatt's
synthesizer), with a wandering pitch and the rhythm of syllables; the silence is faint noise. The model takes windows of
512 samples at 16 kHz, each with the last 64 samples of the window before it in front, and a state from call to call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np

from nearmesh.devmesh.samples.sample import Array, Sample, SequenceSample, WrongAnswer, output

MODEL = "voice-activity"

RATE_HZ = 16_000
WINDOW = 512
CONTEXT = 64

# Above this the model means speech.
SPEECH = 0.5

# Windows of silence, speech and silence of the sequence: about a second, so that a far site answers all in a few.
SILENT_BEFORE, SPOKEN, SILENT_AFTER = 8, 16, 10
# The model stays convinced for some windows after the last word.
_FADING = 3

# First three formants in Hz of a, e, i, o, u (Peterson and Barney, 1952, men), rounded.
VOWELS = ((730, 1090, 2440), (530, 1840, 2480), (270, 2290, 3010), (570, 840, 2410), (300, 870, 2240))
_BANDWIDTHS_HZ = (80, 100, 140)
_SYLLABLE_S = 0.16
_PITCH_HZ = 150.0
_SEED = 1
# In the speech, the offset in samples where a single window convinces the model without any state.
_CLEAREST = 3840


def voice_activity_sample() -> Sample:
    """Two windows as one call that starts from nothing: the first is spoken, the second silent."""
    voice, quiet = speech(), noise(CONTEXT + WINDOW)
    windows = np.stack([voice[_CLEAREST : _CLEAREST + CONTEXT + WINDOW], quiet])
    inputs = {"input": windows, "state": np.zeros((2, 2, 128), np.float32), "sr": np.array(RATE_HZ, np.int64)}
    return Sample(model=MODEL, name="a spoken and a silent window", inputs=inputs, check=_check_pair)


def _check_pair(outputs: Mapping[str, Array]) -> str:
    spoken, silent = output(outputs, "output", (2, 1))[:, 0].tolist()
    if not spoken > SPEECH > silent:
        raise WrongAnswer(f"expected speech, then silence; the probabilities of speech are {spoken:.2f}, {silent:.2f}")
    return f"speech {spoken:.0%}, then silence {silent:.0%}"


def voice_activity_sequence() -> SequenceSample:
    """About a second of sound, window by window: silence, speech, silence. The node keeps the state."""
    sound = recording()
    padded = np.concatenate([np.zeros(CONTEXT, np.float32), sound])
    starts = range(0, len(sound), WINDOW)
    sr = np.array(RATE_HZ, np.int64)
    calls = tuple({"input": padded[None, start : start + CONTEXT + WINDOW], "sr": sr} for start in starts)
    return SequenceSample(model=MODEL, name="a second of speech in silence", calls=calls, check=check_sequence)


def check_sequence(answers: Sequence[Mapping[str, Array]]) -> str:
    """Takes the outputs of every call of `voice_activity_sequence`, in order. Raises WrongAnswer."""
    total = SILENT_BEFORE + SPOKEN + SILENT_AFTER
    if len(answers) != total:
        raise WrongAnswer(f"expected {total} answers, got {len(answers)}")
    heard = np.array([output(answer, "output", (1, 1))[0, 0] for answer in answers])
    before, rest = heard[:SILENT_BEFORE], heard[SILENT_BEFORE:]
    means = [float(part.mean()) for part in (before, rest[:SPOKEN], rest[SPOKEN + _FADING :])]
    words = f"silence {means[0]:.0%}, speech {means[1]:.0%}, silence {means[2]:.0%}"
    if not means[0] < SPEECH < means[1] or not means[2] < SPEECH:
        raise WrongAnswer(f"expected silence, speech, silence; the mean probabilities of speech are {words}")
    return words


def recording() -> Array:
    """The sequence's sound as float32: whole windows of silence, speech and silence."""
    voice = speech()[: SPOKEN * WINDOW]
    return np.concatenate([noise(SILENT_BEFORE * WINDOW), voice, noise(SILENT_AFTER * WINDOW)])


def noise(samples: int) -> Array:
    """The faint noise of a silent room."""
    return (0.002 * np.random.default_rng(_SEED).standard_normal(samples)).astype(np.float32)


@cache
def speech(seconds: float = 0.6) -> Array:
    """A voice that speaks vowels, float32, its peak at 0.3."""
    random = np.random.default_rng(_SEED)
    time_s = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    sound = _glottis(time_s, random)
    syllable = time_s / _SYLLABLE_S
    vowels = np.array(VOWELS, float)[random.integers(len(VOWELS), size=int(syllable[-1]) + 2)]
    for formant, bandwidth_hz in enumerate(_BANDWIDTHS_HZ):
        middles = np.arange(len(vowels)) + 0.5
        sound = _resonate(sound, np.interp(syllable, middles, vowels[:, formant]), bandwidth_hz)
    sound = _resonate(sound, np.full(len(sound), 3500.0), 250)
    sound *= 0.25 + 0.75 * np.sin(np.pi * (syllable % 1))
    spoken: Array = (0.3 * sound / np.abs(sound).max()).astype(np.float32)
    # The cache hands the same array to everybody.
    spoken.flags.writeable = False
    return spoken


def _glottis(time_s: Array, random: np.random.Generator) -> Array:
    """The change of air flow through vocal cords that open for 60 % of each period, and some breath."""
    pitch_hz = _PITCH_HZ * (1 + 0.12 * np.sin(2 * np.pi * 0.7 * time_s) + 0.05 * np.sin(2 * np.pi * 2.1 * time_s))
    phase = np.cumsum(pitch_hz / RATE_HZ) % 1
    flow = np.where(phase < 0.6, np.sin(np.pi * phase / 0.6) ** 2, 0.0)
    return np.diff(flow, prepend=0.0) + 0.003 * random.standard_normal(len(time_s))


def _resonate(sound: Array, centre_hz: Array, bandwidth_hz: float) -> Array:
    """A second-order resonator with a moving centre and gain 1 at 0 Hz."""
    radius = np.exp(-np.pi * bandwidth_hz / RATE_HZ)
    near = 2 * radius * np.cos(2 * np.pi * centre_hz / RATE_HZ)
    far = -radius * radius
    gained = (1 - near - far) * sound
    found = np.empty(len(sound))
    last = before_last = 0.0
    for index, (value, weight) in enumerate(zip(gained.tolist(), near.tolist(), strict=True)):
        last, before_last = value + weight * last + far * before_last, last
        found[index] = last
    return found

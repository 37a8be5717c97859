"""The voice-activity package: its warm-up, synthesized speech, and a minute of recorded speech where it is at hand."""

import csv
import os
import wave
from pathlib import Path

import numpy as np
import pytest
from nearmesh_agent.serving.batch import BatchLayout

from nearmesh.devmesh.samples import WrongAnswer, voice_activity_sample, voice_activity_sequence
from nearmesh.devmesh.samples.voice import CONTEXT, RATE_HZ, WINDOW

RECORDED = os.environ.get("NEARMESH_TEST_DATA")


def answer_all(run, calls):
    """Carries the state from call to call, as a node does for a sequence."""
    state = np.zeros((2, 1, 128), np.float32)
    answers = []
    for call in calls:
        answers.append(run({**call, "state": state}))
        state = answers[-1]["stateN"]
    return answers


def test_warmup(warmup_matches):
    warmup_matches()


def test_one_call_tells_speech_from_silence(run):
    sample = voice_activity_sample()
    sample.check(run(sample.inputs))


def test_a_sequence_tells_speech_from_silence(run):
    sequence = voice_activity_sequence()
    sequence.check(answer_all(run, sequence.calls))


def test_a_sequence_in_the_wrong_order_is_noticed(run):
    sequence = voice_activity_sequence()
    with pytest.raises(WrongAnswer, match="expected silence, speech, silence"):
        sequence.check(answer_all(run, sequence.calls)[::-1][8:] + answer_all(run, sequence.calls)[:8])


def test_sequences_that_share_calls_are_answered_as_by_themselves(run, package):
    """Sixteen sequences, each at another place of its sound, in the calls that a node makes of them."""
    layout, count = BatchLayout(package), package.batching.max_batch
    calls = voice_activity_sequence().calls
    sequences = [[*calls[first:], *calls[:first]] for first in range(count)]
    expected = [answer_all(run, sequence) for sequence in sequences]
    states = [np.zeros((2, 1, 128), np.float32)] * count
    for number in range(len(calls)):
        requests = [{**sequence[number], "state": state} for sequence, state in zip(sequences, states, strict=True)]
        assert len({layout.kind(request) for request in requests}) == 1
        answers = layout.split(run(layout.join(requests)), requests, [layout.rows(request) for request in requests])
        states = [answer["stateN"] for answer in answers]
        for answer, alone in zip(answers, expected, strict=True):
            for name in ("output", "stateN"):
                np.testing.assert_allclose(answer[name], alone[number][name], rtol=1e-3, atol=1e-5)


def test_sequences_of_another_rate_share_no_call(package):
    layout, window = BatchLayout(package), np.zeros((1, WINDOW + CONTEXT), np.float32)
    state = np.zeros((2, 1, 128), np.float32)
    rates = (RATE_HZ, RATE_HZ, 8000)
    kinds = [layout.kind({"input": window, "state": state, "sr": np.array(rate, np.int64)}) for rate in rates]
    assert kinds[0] == kinds[1] != kinds[2]


@pytest.mark.skipif(RECORDED is None, reason="set NEARMESH_TEST_DATA to the development data's folder")
def test_a_minute_of_recorded_speech(run):
    data = Path(str(RECORDED)) / "onnx_silero_vad"
    with wave.open(str(data / "speech_16khz.wav")) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768
    with (data / "expected_speech_probability.csv").open() as table:
        expected = [float(row["speech_probability"]) for row in csv.DictReader(table)]
    padded = np.concatenate([np.zeros(CONTEXT, np.float32), samples])
    windows = [padded[None, n * WINDOW : (n + 1) * WINDOW + CONTEXT] for n in range(len(expected))]
    answers = answer_all(run, [{"input": window, "sr": np.array(RATE_HZ, np.int64)} for window in windows])
    heard = [float(answer["output"][0, 0]) for answer in answers]
    assert len(heard) == 1875
    np.testing.assert_allclose(heard, expected, atol=1e-4)


def test_publishing_finds_the_variant_good_enough(measured):
    assert measured.passed and measured.metric >= 0.95, measured.why

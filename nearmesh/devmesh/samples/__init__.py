"""Real inputs with known answers for the models of this checkout, for demonstration, fault tests and benchmarks."""

from nearmesh.devmesh.samples.file_type import builtin_file_sample, file_type_samples
from nearmesh.devmesh.samples.sample import CHECKOUT, Sample, SequenceSample, WrongAnswer
from nearmesh.devmesh.samples.text import text_detector_sample, text_recognizer_samples
from nearmesh.devmesh.samples.voice import voice_activity_sample, voice_activity_sequence

__all__ = [
    "CHECKOUT",
    "Sample",
    "SequenceSample",
    "WrongAnswer",
    "builtin_file_sample",
    "file_type_samples",
    "text_detector_sample",
    "text_recognizer_samples",
    "voice_activity_sample",
    "voice_activity_sequence",
]

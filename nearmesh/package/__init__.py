"""Model packages: what `model.toml` says, checked. A package is a folder with that file and the files it names."""

from nearmesh.package.checks import MAX_INSTANCES
from nearmesh.package.judging import Evaluation, Gate, OnlineCheck
from nearmesh.package.package import PLACEHOLDER, Package
from nearmesh.package.reading import MANIFEST_FILE, UNREADABLE_ARCHIVE, checked, load, parse, read_labels, unreadable
from nearmesh.package.retrieval import Retrieve
from nearmesh.package.serving import Batching, Idle, RoutePolicy, Sequence, State, Warmup
from nearmesh.package.source import Source
from nearmesh.package.steps import Step
from nearmesh.package.tensor_spec import DType, TensorSpec
from nearmesh.package.training import Training, TrainingGate
from nearmesh.package.variants import Asset, ExternalData, Quantize, Variant

__all__ = [
    "MANIFEST_FILE",
    "MAX_INSTANCES",
    "PLACEHOLDER",
    "UNREADABLE_ARCHIVE",
    "Asset",
    "Batching",
    "DType",
    "Evaluation",
    "ExternalData",
    "Gate",
    "Idle",
    "OnlineCheck",
    "Package",
    "Quantize",
    "Retrieve",
    "RoutePolicy",
    "Sequence",
    "Source",
    "State",
    "Step",
    "TensorSpec",
    "Training",
    "TrainingGate",
    "Variant",
    "Warmup",
    "checked",
    "load",
    "parse",
    "read_labels",
    "unreadable",
]

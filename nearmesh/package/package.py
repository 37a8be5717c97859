"""`Package`: all of a model.toml."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from nearmesh.config import refuse
from nearmesh.package import checks
from nearmesh.package.judging import Evaluation, Gate, OnlineCheck
from nearmesh.package.serving import Batching, Idle, RoutePolicy, Sequence, Warmup
from nearmesh.package.source import Source
from nearmesh.package.steps import Step
from nearmesh.package.tensor_spec import TensorSpec
from nearmesh.package.training import Training
from nearmesh.package.variants import Asset, Quantize, Variant
from nearmesh.toml_lines import At

# With this begins what an author still has to fill in.
PLACEHOLDER = "FILL IN"


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """`model.toml`."""

    # By which clients ask for it: 1 to 63 of a-z, 0-9 and '-'.
    name: str
    # The author's choice; other files need another version.
    version: str
    description: str
    # An SPDX expression.
    licence: str
    # Whom to credit.
    credit: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    # Best first; a package whose steps are all functions has none.
    variants: tuple[Variant, ...] = ()
    # At least one, before it may be published.
    warmup: tuple[Warmup, ...] = ()
    batching: Batching = field(default_factory=Batching)
    sequence: Sequence | None = None
    route: RoutePolicy = field(default_factory=RoutePolicy)
    idle: Idle = field(default_factory=Idle)
    # Pre- and post-processing around graphs, in one request; empty: the variants are the model.
    steps: tuple[Step, ...] = ()
    # One request may get several answers (over ModelStreamInfer): the last step's function yields them.
    decoupled: bool = False
    # Engine calls at a time on one node; 0: as many as suit the machine.
    instances: int = 0
    # Requests that may wait on one node; 0: the node's own limit.
    queue: int = 0
    # What the version takes in memory when loaded, if the node's own estimate would be wrong; 0: estimated.
    memory_bytes: int = 0
    # Labels of the outputs' last axis, one a line, for people; a file of the folder.
    labels: str | None = None
    # What the functions of a pipeline read.
    assets: tuple[Asset, ...] = ()
    # Variants that are made from others, best first.
    quantize: tuple[Quantize, ...] = ()
    # What variants are tried on, and how good they have to be.
    evaluation: Evaluation | None = None
    gate: Gate = field(default_factory=Gate)
    # How a rollout holds a new version against the standing one; without it, only errors and times count.
    online_check: OnlineCheck | None = None
    # How federated rounds train it; without it, they do not, but by an app of one's own.
    training: Training | None = None

    def __post_init__(self) -> None:
        refuse(checks.problems(self))

    @property
    def unfilled(self) -> tuple[str, ...]:
        """Keys whose values the author has not filled in yet: such a package is not published."""
        return tuple(key for key in ("description", "licence", "credit") if getattr(self, key).startswith(PLACEHOLDER))

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files beside model.toml and the weights that every node needs."""
        code = dict.fromkeys(step.file for step in self.steps if step.file)
        return tuple(w.file for w in self.warmup) + ((self.labels,) if self.labels else ()) + tuple(code)

    @property
    def workshop_files(self) -> tuple[str, ...]:
        """Names of the files that making and judging variants takes: they stay with the author and reach no node."""
        found = [made.calibration for made in self.quantize if made.calibration]
        if self.evaluation:
            found += [file for file in (self.evaluation.file, self.evaluation.code) if file]
        return tuple(name for name in dict.fromkeys(found) if name not in self.files)

    @property
    def kept_files(self) -> tuple[str, ...]:
        """Names of the workshop's files that are published all the same: what rounds make new versions with.

        They are in the artifact, so that a version can be made from the published one alone, but no node pulls them.
        """
        if self.training is None:
            return ()
        found = (self.training.recipe, *self.workshop_files)
        return tuple(name for name in dict.fromkeys(found) if name not in self.files)

    @property
    def trained(self) -> Variant | None:
        """The variant that rounds train."""
        if self.training is None:
            return None
        step, name = self.training.step, self.training.variant
        return next(v for v in self.given(step) if v.name == name) if name else self.reference(step)

    @property
    def made_variants(self) -> tuple[Variant, ...]:
        """What the [[quantize]] sections make, as variants: best first, and before those that are given."""
        return tuple(made.made for made in self.quantize)

    def given(self, step: str = "") -> tuple[Variant, ...]:
        """The [[variants]], of a pipeline those of one step."""
        return tuple(variant for variant in self.variants if variant.step == step)

    def made_of(self, made: Quantize) -> str:
        """The name of the variant that another one is made from."""
        return made.of or self.given(made.step)[-1].name

    def reference(self, step: str = "") -> Variant:
        """The one that others of the step are measured against: the last that is given, which most are made from."""
        return self.given(step)[-1]

    @property
    def sources(self) -> dict[str, Source]:
        """By the name among the published files, where the files of the given variants and the assets come from."""
        found = {name: source for variant in self.variants for name, source in variant.sources.items()}
        return found | {asset.name: asset.source for asset in self.assets}

    def named_files(self) -> Iterator[tuple[At, str]]:
        """Every file that model.toml names, or that is named after what it says, with the keys that do."""
        for i, warmup in enumerate(self.warmup):
            yield ("warmup", i, "file"), warmup.file
        if self.labels is not None:
            yield ("labels",), self.labels
        for i, step in enumerate(self.steps):
            if step.file is not None:
                yield ("steps", i, "python"), step.file
        for i, variant in enumerate(self.variants):
            yield ("variants", i, "name"), variant.file
            for j, data in enumerate(variant.external):
                yield ("variants", i, "external", j, "name"), data.name
        for i, asset in enumerate(self.assets):
            yield ("assets", i, "name"), asset.name
        for i, made in enumerate(self.quantize):
            yield ("quantize", i, "variant"), made.made.file
            if made.calibration is not None:
                yield ("quantize", i, "calibration"), made.calibration
        if self.evaluation is not None:
            yield ("evaluation", "file"), self.evaluation.file
            if self.evaluation.code is not None:
                yield ("evaluation", "metric"), self.evaluation.code
        if self.training is not None:
            yield ("training", "recipe"), self.training.recipe

"""`report.json`: what was measured of a version's variants before it was published, and which of them may serve.

It travels as a file of the artifact. The control plane takes no version whose report fails one of its variants, and a
node takes no made variant that the report does not pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from nearmesh.document import Document
from nearmesh.errors import PackageError
from nearmesh.package import Package

REPORT_FILE = "report.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where it was measured."""

    processor: str
    cores: int
    # Of its instructions, those that decide how fast 8 and 16 bits are.
    features: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One variant, as it was measured."""

    name: str
    # Of a pipeline: the step whose graph it is; all others were the reference's.
    step: str = ""
    # Of its file.
    digest: str
    size_bytes: int
    # The variant that it was made from, and how; empty for one that was given.
    of: str = ""
    kind: str = ""
    # None where it could not be told, as with outputs that are no numbers.
    metric: float | None = None
    # Share of the cases in which it says what the reference says; None for the reference itself.
    agreement: float | None = None
    # A call of one row, and rows in full calls, as many at a time as suit the machine.
    ms_p50: float = 0.0
    rows_per_second: float = 0.0
    # Of one that was made: by output, by how much warm-ups' answers were further off than the package's tolerance.
    warmup_difference: dict[str, float] = field(default_factory=dict)
    # Whether it may be published; if not, why.
    passed: bool = False
    why: str = ""

    @property
    def label(self) -> str:
        """For people: with its step, where there are steps."""
        return f"{self.step}:{self.name}" if self.step else self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Report(Document):
    """Of one version."""

    FILE: ClassVar[str] = REPORT_FILE

    model: str
    version: str
    # What the metric is, and of how many cases.
    metric: str
    cases: int
    # What a variant may lose, and how often it must agree.
    largest_loss: float
    smallest_agreement: float
    machine: Machine
    # By the name of a library, its version.
    libraries: dict[str, str]
    # References first.
    variants: tuple[Measured, ...]

    def of(self, name: str, step: str = "") -> Measured | None:
        """What is said of a variant."""
        return next((v for v in self.variants if (v.name, v.step) == (name, step)), None)

    @property
    def failed(self) -> tuple[Measured, ...]:
        return tuple(variant for variant in self.variants if not variant.passed)


def check_published(package: Package, digests: Mapping[str, str], report: Report | None) -> None:
    """Whether every variant among the published files (name: digest) may be. Raises PackageError that says why not.

    One that was given needs no report; one that was made needs to have passed, with just these bytes.
    """
    said = {variant.label: variant for variant in report.variants} if report else {}
    if report and (report.model, report.version) != (package.name, package.version):
        raise PackageError(
            f"{REPORT_FILE} is of {report.model}@{report.version}, model.toml of {package.name}@{package.version}"
        )
    made = {variant.file for variant in package.made_variants}
    for variant in (*package.made_variants, *package.variants):
        if variant.file not in digests:
            continue
        found = said.get(f"{variant.step}:{variant.name}" if variant.step else variant.name)
        if found is None:
            if variant.file in made:
                raise PackageError(
                    f"variant {variant.name!r} was made and nothing says how good it is: {REPORT_FILE} lacks it"
                )
            continue
        if not found.passed:
            raise PackageError(f"variant {found.label!r} did not pass its gate: {found.why}")
        if found.digest != digests[variant.file]:
            raise PackageError(
                f"{REPORT_FILE} speaks of {found.label!r} with {found.digest}, published is {digests[variant.file]}"
            )

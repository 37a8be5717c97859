"""Every variant of a package on its evaluation set: how good, how near to the reference, how large, how fast here.

A pipeline's variants are tried one at a time, with the reference's in all other steps.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import nearmesh
from nearmesh.errors import InvalidInput, PackageError
from nearmesh.oci import digest_file
from nearmesh.package import Evaluation, Package, Variant
from nearmesh.packaging import metrics
from nearmesh.packaging.agent_run import Ran, by_agent
from nearmesh.packaging.gate import Figures, reasons_against
from nearmesh.packaging.layout import lay_out, published_files
from nearmesh.packaging.machine import this_machine
from nearmesh.packaging.quantize import Made, versions
from nearmesh.packaging.sets import read_set, set_file
from nearmesh.report import Measured, Report

# Runs the package in a folder, with one variant for each step, on the cases of a file.
Run = Callable[[Path, Mapping[str, str], Path], Ran]
# Told what is being tried.
OnVariant = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A package whose variants are all at hand."""

    package: Package
    folder: Path
    cache: Path
    # Its variants that are made, as far as they were.
    made: Sequence[Made] = ()

    @property
    def evaluation(self) -> Evaluation:
        """Raises PackageError where there is none."""
        if self.package.evaluation is None:
            raise PackageError(
                f"{self.folder / 'model.toml'} has no [evaluation]: nothing says how good a variant of "
                f"{self.package.name!r} is; name a file of cases and a metric"
            )
        return self.package.evaluation

    def files(self) -> dict[str, Path]:
        """As a node would have them."""
        made = {found.variant.file: found.path for found in self.made if found.path is not None}
        return published_files(self.package, self.folder, self.cache) | made

    def variants(self) -> list[Variant]:
        """Those that can be tried: of each step the reference, then all others in the package's order."""
        here = [found.variant for found in self.made if found.path is not None]
        found: list[Variant] = []
        for step in dict.fromkeys(variant.step for variant in self.package.variants):
            reference = self.package.reference(step)
            found += [reference, *(v for v in (*here, *self.package.given(step)) if v.step == step and v != reference)]
        return found


def evaluate(
    subject: Subject,
    *,
    only: Collection[str] = (),
    run: Run = by_agent,
    on_variant: OnVariant = lambda label: None,
) -> Report:
    """Tries all variants, or the references and those named by `only`. Raises PackageError, InvalidInput."""
    variants = subject.variants()
    names = {variant.name for variant in variants}
    if unknown := sorted(set(only) - names):
        raise InvalidInput(f"no variant {unknown[0]!r} can be tried here; there are {', '.join(sorted(names))}")
    cases = set_file(subject.evaluation.file, subject.folder, subject.cache)
    with tempfile.TemporaryDirectory(prefix="nearmesh-") as scratch:
        files = subject.files()
        lay_out(files, Path(scratch))
        bench = _Bench(subject, Path(scratch), cases, files, run)
        measured = []
        for variant in variants:
            if not only or variant.name in only or variant == subject.package.reference(variant.step):
                on_variant(f"{variant.step}:{variant.name}" if variant.step else variant.name)
                measured.append(bench.measure(variant))
    gate = subject.package.gate
    return Report(
        model=subject.package.name,
        version=subject.package.version,
        metric=subject.evaluation.metric,
        cases=bench.cases,
        largest_loss=gate.largest_loss,
        smallest_agreement=gate.smallest_agreement,
        machine=this_machine(),
        libraries=versions() | {"nearmesh": nearmesh.__version__},
        variants=tuple(measured),
    )


class _Bench:
    """Where one package's variants are tried."""

    def __init__(self, subject: Subject, scratch: Path, cases: Path, files: Mapping[str, Path], run: Run) -> None:
        self._subject, self._scratch, self._cases, self._files, self._run = subject, scratch, cases, files, run
        package, evaluation = subject.package, subject.evaluation
        inputs, self._expected = read_set(cases)
        self.cases = min(map(len, inputs.values()))
        self._output = evaluation.output or package.outputs[0].name
        self._metric = metrics.metric_of(evaluation, self._output, subject.folder)
        self._how = metrics.how_to_agree(package, self._output)
        self._references = {v.step: package.reference(v.step).name for v in package.variants}
        # The kinds and origins of those that were made.
        self._made = {(found.variant.step, found.variant.name): found for found in subject.made}
        self._reference = run(scratch, self._references, cases)
        self._figures = self._judge(self._reference)

    def measure(self, variant: Variant) -> Measured:
        """Everything about one; a reference is measured once, with all steps' references together."""
        is_reference = self._references[variant.step] == variant.name
        try:
            ran = self._reference if is_reference else self._ran(variant)
            figures = self._figures if is_reference else self._judge(ran)
        except PackageError as error:
            if is_reference:
                raise
            return self._said(variant, Ran(outputs={}), None, (error.message,))
        return self._said(variant, ran, figures, self._against(variant, ran, figures), is_reference=is_reference)

    def _ran(self, variant: Variant) -> Ran:
        return self._run(self._scratch, {**self._references, variant.step: variant.name}, self._cases)

    def _judge(self, ran: Ran) -> Figures:
        reference = self._reference
        broken = sum(metrics.broken(found, reference.outputs[name]) for name, found in ran.outputs.items())
        judged = reference.outputs[self._output]
        return Figures(
            metric=self._metric(ran.outputs, self._expected),
            agreement=metrics.agreement(self._how, ran.outputs[self._output], judged),
            broken=broken,
        )

    def _against(self, variant: Variant, ran: Ran, figures: Figures) -> tuple[str, ...]:
        name = self._subject.evaluation.metric.rpartition(":")[2]
        of = " and ".join(dict.fromkeys(self._references.values()))
        found = reasons_against(self._subject.package.gate, figures, self._figures, of=of, metric=name)
        if ran.warmup_failed:
            found = (*found, ran.warmup_failed)
        if (variant.step, variant.name) not in self._made:
            # What was given has to keep its own promise: only what is made from it may be off.
            found += tuple(
                f"its warm-up's output {output!r} is {further:.3g} further off than the tolerance"
                for output, further in ran.warmup_difference.items()
            )
        return found

    def _said(
        self,
        variant: Variant,
        ran: Ran,
        figures: Figures | None,
        against: Iterable[str],
        *,
        is_reference: bool = False,
    ) -> Measured:
        path, origin = self._files[variant.file], self._made.get((variant.step, variant.name))
        why = "; ".join(against)
        return Measured(
            name=variant.name,
            step=variant.step,
            digest=digest_file(path),
            size_bytes=sum(self._files[name].stat().st_size for name in (variant.file, *_beside(variant))),
            of=origin.of if origin else "",
            kind=origin.kind if origin else "",
            metric=figures.metric if figures and math.isfinite(figures.metric) else None,
            agreement=None if is_reference or figures is None else figures.agreement,
            ms_p50=round(ran.ms_p50, 4),
            rows_per_second=round(ran.rows_per_second, 2),
            warmup_difference=ran.warmup_difference if origin else {},
            passed=not why,
            why=why,
        )


def _beside(variant: Variant) -> list[str]:
    return [data.name for data in variant.external]


def kept_report(subject: Subject, measure: Callable[[], Report]) -> tuple[Report, Path]:
    """What was measured of just these files, on this machine, by these libraries; measured now if it was not yet.

    So publishing the same files again gives the same artifact.
    """
    path = report_path(subject)
    try:
        return Report.from_bytes(path.read_bytes()), path
    except (FileNotFoundError, PackageError):
        # A damaged one is as good as none.
        return keep_report(path, measure()), path


def report_path(subject: Subject) -> Path:
    """Where the report on these files is kept."""
    return subject.cache / "reports" / f"{_key(subject)}.json"


def keep_report(path: Path, report: Report) -> Report:
    """Writes it, all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(report.to_bytes())
    Path(file.name).replace(path)
    return report


def _key(subject: Subject) -> str:
    evaluation = subject.evaluation
    files = subject.files() | {"cases": set_file(evaluation.file, subject.folder, subject.cache)}
    if evaluation.code:
        files |= {"metric": subject.folder / evaluation.code}
    said = {
        "files": {name: digest_file(path) for name, path in files.items()},
        "machine": asdict(this_machine()),
        "libraries": versions() | {"nearmesh": nearmesh.__version__},
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

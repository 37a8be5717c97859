"""What was measured of a version's variants, on a screen."""

from __future__ import annotations

from typing import Any

from nearmesh.cli.output import NOTHING, Number, ms, percent, print_table, size

Record = dict[str, Any]


def print_report(report: Record, *, title: str = "") -> None:
    """A line for each variant, and where it was measured."""
    metric = report["metric"].rpartition(":")[2]
    machine = report["machine"]
    columns = (
        *("variant", "made by", Number(metric), Number("agrees"), Number("size")),
        *(Number("p50, ms"), Number("rows per s"), "may be published"),
    )
    rows = [_row(variant) for variant in report["variants"]]
    where = f"{machine['cores']} cores of {machine['processor']}, onnxruntime {report['libraries']['onnxruntime']}"
    print_table(columns, rows, title=f"{title or 'Variants'}: {report['cases']} cases on {where}")


def _row(variant: Record) -> tuple[str, ...]:
    name = f"{variant['step']}:{variant['name']}" if variant.get("step") else variant["name"]
    metric, agreement = variant.get("metric"), variant.get("agreement")
    return (
        name,
        f"{variant['kind']} of {variant['of']}" if variant.get("kind") else NOTHING,
        f"{metric:.4f}" if metric is not None else NOTHING,
        percent(agreement, digits=2) if agreement is not None else NOTHING,
        size(variant["size_bytes"]),
        _short(variant["ms_p50"]) if variant["ms_p50"] else NOTHING,
        f"{variant['rows_per_second']:.0f}" if variant["rows_per_second"] else NOTHING,
        "yes" if variant["passed"] else f"no: {variant['why']}",
    )


def _short(value_ms: float) -> str:
    """Of calls of microseconds, something is to be seen."""
    return f"{value_ms:.3f}" if value_ms < 1 else ms(value_ms)

"""The page of variants: of several rounds each one's best times, against its own reference."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.variants import best, page
from tests.unit.test_report import MADE, REFERENCE, REPORT


def slower(factor: float):
    variants = [
        replace(v, ms_p50=v.ms_p50 * factor, rows_per_second=v.rows_per_second / factor) for v in REPORT.variants
    ]
    return replace(REPORT, variants=tuple(variants))


def test_the_best_of_all_rounds_counts():
    assert best([slower(2.0), REPORT, slower(3.0)]) == REPORT
    mixed = replace(slower(2.0), variants=(replace(REFERENCE, ms_p50=9.0), MADE))
    assert [v.ms_p50 for v in best([mixed, slower(2.0)]).variants] == [4.0, 1.0]


def test_a_line_for_each_variant():
    lines = [line for line in page([REPORT], 3).splitlines() if line.startswith("| m ")]
    assert lines == [
        "| m | fp32 | accuracy | 0.9900 |  | 0.00 MB | 2 ms | 900 |",
        "| m | int8 | accuracy | 0.9850 | 99.00 % | 0.00 MB | 1 ms (2.0 times as fast) | 1,800 (2.0 times) |",
    ]
    assert "best of 3 rounds" in page([REPORT], 3) and "2 cores of a processor (avx2)" in page([REPORT], 3)

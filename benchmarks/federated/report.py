"""What the pages of federated runs have in common: the bars, and how tables and pages are put together."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.table import Table, markdown

Results = Mapping[str, Any]
StudyResults = Mapping[str, Any]
# What had to be reached, what was found, and whether that does.
Bar = tuple[str, str, bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Of one kind of results; pure, from the JSON alone."""

    title: str
    # The results' own file, beside the page.
    file: str
    # How the figures come to be.
    about: str
    bars_of: Callable[[StudyResults], Sequence[Bar]]
    tables_of: Callable[[StudyResults], Sequence[Table]]
    section_of: Callable[[StudyResults], str]

    def tables(self, results: Results) -> list[Table]:
        """Those of each study, and the bars."""
        return [*(table for study in results["studies"] for table in self.tables_of(study)), self.bars(results)]

    def bars(self, results: Results) -> Table:
        """What had to be reached, and whether it was."""
        rows = [
            (study["name"], bar, found, "held" if reached else "NOT HELD")
            for study in results["studies"]
            for bar, found, reached in self.bars_of(study)
        ]
        return Table(title="The bars", columns=("study", "bar", "found", ""), rows=tuple(rows))

    def held(self, results: Results) -> bool:
        """Whether every bar was reached."""
        return all(reached for study in results["studies"] for _, _, reached in self.bars_of(study))

    def page(self, results: Results) -> str:
        """The whole Markdown page."""
        sections = [
            f"# {self.title}",
            f"Written by `{results['taken']['command']}`; a new run replaces it. All figures are in `{self.file}` "
            "beside this page.",
            self.about,
            "## The bars",
            markdown(self.bars(results)),
            *(self.section_of(study) for study in results["studies"]),
            "## Taken on",
            _taken(results),
        ]
        return "\n\n".join(sections) + "\n"


def alone_table(study: StudyResults, federated: str, sites: Iterable[Sequence[Mapping[str, Any]]]) -> Table:
    """Each site's own model against the `federated` one: of each site what was found, once or more; means count."""
    columns = ("site", "own model at home", "own model at the other sites", federated)
    figures = ("own", "elsewhere", "federated_elsewhere")
    rows = [
        (found[0]["site"], *(f"{statistics.mean(one[figure] for one in found):.3f}" for figure in figures))
        for found in sites
    ]
    return Table(title=f"{study['title']}: each site alone", columns=columns, rows=tuple(rows))


def _taken(results: Results) -> str:
    """When, of what, and on what machine."""
    when, machine = results["taken"], results["machine"]
    changes = ", with uncommitted changes" if when["uncommitted_changes"] else ""
    return (
        f"- {when['at']}, commit `{when['commit'][:12]}`{changes}, {when['duration_s']:.0f} s in all\n"
        f"- {machine['cpu']}, {machine['cores']} cores, {machine['kernel']}; Python {machine['python']}, NumPy "
        f"{machine['libraries']['numpy']}"
    )

"""Figures in rows and columns, ready to be shown."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Columns and rows of text: words in the first column, numbers in the others."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def markdown(table: Table) -> str:
    """The table in Markdown, without its title; numbers are set right."""
    ruler = ("---", *("---:" for _ in table.columns[1:]))
    return "\n".join("| " + " | ".join(row) + " |" for row in (table.columns, ruler, *table.rows))

"""Markdown for the report and the page of results."""

from __future__ import annotations

import pandas as pd


def table(texts: pd.DataFrame) -> list[str]:
    """Lines of a table, with the names of the columns as its header."""
    rows = [list(texts.columns), *texts.to_numpy().tolist()]
    # A | would end the cell. Names of classes may hold it, and line breaks.
    cells = [[" ".join(text.splitlines()).replace("|", r"\|") for text in row] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return [lines[0], "|" + "---|" * len(texts.columns), *lines[1:]]


def section(title: str, *paragraphs: str | list[str], level: int = 3) -> list[str]:
    """Lines of a section: its heading, and what it says; an empty line after each of them."""
    lines = [f"{'#' * level} {title}", ""]
    for paragraph in paragraphs:
        lines += [*([paragraph] if isinstance(paragraph, str) else paragraph), ""]
    return lines

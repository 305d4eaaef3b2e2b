"""Tables of runs in the paper's layouts, and the report made of them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from comining.reports.cells import CELL_COUNTS, STATUSES, cell_text, summarise
from comining.reports.lower_bounds import recall_lines
from comining.reports.markdown import section, table
from comining.reports.plots import draw_report
from comining.reports.published import LAYOUTS, Layout
from comining.reports.records import find_results, read_results, runs_frame


class ResultTable:
    """Our numbers in a layout, from runs of one kind: same data, network and recipe.

    Args:
        runs: rows of :func:`~comining.reports.records.runs_frame`. Runs that are not in the layout
            get rows and columns of their own.
        folders: directories where the runs were found, for a note.
    """

    def __init__(
        self, name: str, layout: Layout, kind: str, runs: pd.DataFrame, folders: Sequence[Path]
    ):
        self.name, self.layout, self.kind, self.folders = name, layout, kind, folders
        values = runs.assign(
            row=runs[layout.row], setting=runs["variant"], lower_bound=runs["ap_is_lower_bound"]
        )
        self.runs = values
        if layout.by_method:
            values = values.assign(column=values["method"], value=values["AP"])
        else:
            columns = list(layout.numbers.columns)
            same = ["row", "status", "setting", "lower_bound"]
            values = values.melt(same, columns, "column", "value")
            values["lower_bound"] &= values["column"].str.startswith("AP")
        self.rows = list(dict.fromkeys([*layout.labels, *values["row"]]))
        self.columns = list(dict.fromkeys([*layout.numbers.columns, *values["column"]]))
        places = pd.MultiIndex.from_product([self.rows, self.columns], names=["row", "column"])
        cells = summarise(values, ["row", "column"]).reindex(places)
        self.cells = cells.fillna(dict.fromkeys(CELL_COUNTS, 0)).astype(
            dict.fromkeys(CELL_COUNTS, "int64")
        )
        self.cells["published"] = layout.numbers.T.unstack().reindex(places).astype(object)

    @property
    def title(self) -> str:
        """The title of the layout, and the split that the numbers are of."""
        return f"{self.layout.title}, validation split"

    def missing(self) -> list[str]:
        """Cells of the paper's table for which there is no run."""
        absent = self.cells[(self.cells["runs"] == 0) & self.cells["published"].notna()]
        labels = self.layout.labels
        if not self.layout.by_method:  # a run has all metrics
            return [labels[row] for row in absent.index.unique("row")]
        return [f"{labels[row]} {column}" for row, column in absent.index]

    def best_cells(self) -> set[Any]:
        """The best cells of each row if the columns are methods, else of each column.

        Means that are printed alike are equally good. Lower bounds are not compared.
        """
        means = self.cells["mean"].mask(self.cells["lower_bounds"] > 0).dropna()
        groups = means.groupby(level="row" if self.layout.by_method else "column")
        best: set[Any] = set()
        for _, group in groups:
            if len(group) > 1:
                printed = group.map("{:.1f}".format)
                best.update(group.index[printed == f"{group.max():.1f}"])
        return best

    def texts(self) -> tuple[pd.DataFrame, pd.DataFrame, set[Any]]:
        """Our cells and the paper's, a row and a column each, and the (row, column) of the best.

        The paper's table has only its own columns, and "-" where it has no number.
        """
        ours = self.cells.apply(cell_text, axis="columns").unstack().loc[self.rows, self.columns]
        papers = self.cells["published"].fillna("-").unstack().loc[self.rows]
        return ours, papers[list(self.layout.numbers.columns)], self.best_cells()

    def notes(self) -> list[str]:
        """The notes below the table."""
        notes = []
        if len(self.layout.numbers):
            notes.append("paper: published numbers, COCO val2017 at paper scale.")
        if missing := self.missing():
            notes.append(f"Missing: {', '.join(missing)}.")
        if (self.cells["settings"] > 1).any():
            command = shlex.join(["python", "-m", "comining.select", *map(str, self.folders)])
            notes.append(f"mixed: `{command}` lists the runs by their options.")
        return notes

    def markdown(self) -> list[str]:
        """Lines of the table: our numbers and, next to each column of the paper, the paper's."""
        ours, papers, best = self.texts()
        labels = [self.layout.labels.get(row, row) for row in self.rows]
        columns = {("", "label"): pd.Series(labels, self.rows)}
        for column in self.columns:
            columns[column, "ours"] = pd.Series(
                [f"**{t}**" if (row, column) in best else t for row, t in ours[column].items()],
                self.rows,
            )
            if column in papers:
                columns["*paper*", column] = papers[column].map("*{}*".format).replace("*-*", "-")
        lines = pd.DataFrame(columns, index=self.rows).droplevel(1, axis="columns")
        notes = [note.replace("paper:", "*paper*:", 1) for note in self.notes()]
        by = {"row": "row", "method": "method"} if self.layout.by_method else {"row": "row"}
        labelled = self.runs.assign(row=self.runs["row"].replace(self.layout.labels))
        recalls = recall_lines(labelled, by, ("val",))
        parts = [part for part in (notes, recalls) if part]
        return section(self.title, self.kind, table(lines), *parts)

    def csv_frame(self) -> pd.DataFrame:
        """A row per cell, in numbers."""
        return self.cells.reset_index().assign(table=self.name, kind=self.kind)


def groups_of_one_kind(runs: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Groups of runs that may share a table, each with a readable name.

    They share data, network, optimizer, schedule and trainer. If the names are equal but some of
    these options are not, a hash distinguishes the recipes. A run that occurs twice, for example
    interrupted in one directory and finished in another, counts once.
    """
    best_first = runs["status"].map(STATUSES.index).sort_values(kind="stable").index
    runs = runs.loc[best_first].drop_duplicates(["variant", "seed"]).sort_index()
    for kind, of_kind in runs.groupby("kind"):
        for recipe, group in of_kind.groupby("recipe"):
            yield (str(kind) if len(group) == len(of_kind) else f"{kind}, recipe {recipe}"), group


def result_tables(runs: pd.DataFrame, folders: Sequence[Path]) -> list[ResultTable]:
    """All tables in which the runs fill at least one cell.

    Args:
        runs: of :func:`~comining.reports.records.runs_frame`.
        folders: directories where they were found.
    """
    found = []
    for name, of_table in runs.groupby("table"):
        for kind, group in groups_of_one_kind(of_table):
            # Runs that belong to no table: a row per sparsity, and per threshold if it varies.
            named = group["score_threshold"].notna() & (group["score_threshold"].nunique() > 1)
            row = group["sparsity"].mask(named, group["sparsity"] + ", τ = " + group["threshold"])
            layout = LAYOUTS.get(str(name)) or Layout("AP", "plain_row", True, {}, pd.DataFrame())
            group = group.assign(plain_row=row)
            found.append(ResultTable(str(name), layout, kind, group, folders))
    return found


def report_text(
    runs: pd.DataFrame, folders: Sequence[Path], without_result: Sequence[Path] = ()
) -> str:
    """The whole report as Markdown.

    Args:
        runs: of :func:`~comining.reports.records.runs_frame`.
        folders: directories where they were found.
        without_result: directories of runs that have not ended.
    """
    counts = runs["status"].value_counts()
    lines = [", ".join(f"{counts.get(status, 0)} runs {status}" for status in STATUSES), ""]
    for result_table in result_tables(runs, folders):
        lines += result_table.markdown()
    others = runs[runs["status"] != "finished"]
    reasons = ("* " + others["status"] + ": " + others["file"] + ": " + others["error"]).tolist()
    if reasons:
        lines += section("Runs without numbers", reasons)
    if without_result:
        waiting = [f"* {folder}" for folder in without_result]
        lines += section("Runs without a result (still running, or killed)", waiting)
    return "\n".join(lines).rstrip() + "\n"


def write_report(folders: Sequence[Path], output: Path) -> pd.DataFrame:
    """Print the report; write ``report.md``, ``report.csv`` and plots.

    Args:
        folders: directories of runs or sweeps.
        output: the folder to write to.

    Returns:
        The runs, see :func:`~comining.reports.records.runs_frame`.

    Raises:
        DataError: a folder does not exist, or a file is not a result; names it.
        OSError: the output cannot be written.
    """
    files, without_result = find_results(folders)
    runs = runs_frame(read_results(files))
    text = report_text(runs, folders, without_result)
    # Names of folders need not be UTF-8.
    text = text.encode("utf-8", "replace").decode("utf-8")
    print(text)
    output.mkdir(parents=True, exist_ok=True)
    (output / "report.md").write_text(text, encoding="utf-8")
    cells = [result_table.csv_frame() for result_table in result_tables(runs, folders)]
    head = ["table", "kind", "row", "column"]
    csv = pd.concat(cells) if cells else pd.DataFrame(columns=[*head, "mean"])
    csv.set_index(head).to_csv(output / "report.csv")
    plots = draw_report(output, dict(groups_of_one_kind(runs)))
    for path in [output / "report.md", output / "report.csv", *plots]:
        print(f"written: {path}")
    return runs

"""Tables and plots out of what runs left on disk.

``python -m comining.report DIR...`` reads the ``result.json`` files below the directories and
nothing else, prints Markdown, and writes ``report.md``, ``report.csv`` and plots. It may run while
a sweep is going on. This module imports nothing of the training code.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comining.published import LAYOUTS, SETS, Layout, Result, score_threshold


@dataclass
class Cell:
    """What the runs of one cell (its seeds) came to."""

    values: list[float] = field(default_factory=list)
    diverged: int = 0
    failed: int = 0
    without: int = 0  # finished, but nothing of the kind is annotated

    @property
    def runs(self) -> int:
        """How many there are, however they ended."""
        return len(self.values) + self.diverged + self.failed + self.without

    @property
    def mean(self) -> float | None:
        """Over the finished seeds; None if there is none, or one of them diverged."""
        return statistics.mean(self.values) if self.values and not self.diverged else None

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over seeds; None for fewer than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def text(self) -> str:
        """For a table: mean and spread, NaN for diverged, what else there is to say."""
        if self.diverged:
            return "NaN" if not self.values else f"NaN ({self.diverged} of {self.runs})"
        if self.mean is None:
            return "failed" if self.failed else "-" if self.without else "missing"
        spread = "" if self.spread is None else f" ± {self.spread:.1f}"
        return f"{self.mean:.1f}{spread}" + (f" ({self.failed} failed)" if self.failed else "")


@dataclass
class Table:
    """A table of ours in a layout, with runs of one kind only: same data, network and length."""

    layout: Layout
    kind: str
    results: list[Result]
    cells: dict[tuple[str, str], Cell] = field(init=False)

    def __post_init__(self) -> None:
        self.cells = defaultdict(Cell)
        for result in self.results:
            row = self.layout.row_of(result)
            if row not in self.layout.rows:
                continue
            columns = self.layout.columns
            if self.layout.column_of is not None:
                columns = tuple(c for c in columns if c == self.layout.column_of(result))
            for column in columns:
                cell = self.cells[row, column]
                metric = "AP" if self.layout.column_of else column
                if result["status"] == "diverged":
                    cell.diverged += 1
                elif result["status"] == "failed":
                    cell.failed += 1
                elif result["metrics"][metric] is None:
                    cell.without += 1
                else:
                    cell.values.append(result["metrics"][metric])

    def missing(self) -> list[str]:
        """Cells of the paper's table for which there is no run."""
        if self.layout.column_of is None:
            first = self.layout.columns[0]
            return [self.layout.rows[r] for r in self.layout.rows if not self._runs(r, first)]
        return [
            f"{self.layout.rows[row]} {column}"
            for row in self.layout.rows
            for column in self.layout.columns
            if not self._runs(row, column)
        ]

    def _runs(self, row: str, column: str) -> int:
        return self.cells[row, column].runs if (row, column) in self.cells else 0

    def _best(self) -> set[tuple[str, str]]:
        """The best cell of each row, where columns compete; else of each column."""
        rows, columns = list(self.layout.rows), self.layout.columns
        groups = (
            [[(row, column) for column in columns] for row in rows]
            if self.layout.column_of
            else [[(row, column) for row in rows] for column in columns]
        )
        best = set()
        for group in groups:
            means = {key: self.cells[key].mean for key in group if key in self.cells}
            known = {key: mean for key, mean in means.items() if mean is not None}
            if len(known) > 1:
                best.add(max(known, key=lambda key: known[key]))
        return best

    def markdown(self) -> str:
        """Ours and, beside each column, the paper's."""
        best = self._best()
        heads = [name for column in self.layout.columns for name in (column, "*paper*")]
        lines = [f"### {self.layout.title}", "", self.kind, ""]
        lines.append("| | " + " | ".join(heads) + " |")
        lines.append("|---" * (len(heads) + 1) + "|")
        for row, label in self.layout.rows.items():
            texts = []
            for position, column in enumerate(self.layout.columns):
                text = self.cells[row, column].text() if (row, column) in self.cells else "missing"
                published = self.layout.published[row][position]
                texts.append(f"**{text}**" if (row, column) in best else text)
                texts.append("-" if published is None else f"*{published}*")
            lines.append(f"| {label} | " + " | ".join(texts) + " |")
        lines += ["", "*paper*: published numbers, COCO val2017 at paper scale."]
        if missing := self.missing():
            lines.append(f"Missing: {', '.join(missing)}.")
        return "\n".join(lines)

    def csv_rows(self, table: str) -> Iterable[list[Any]]:
        """One row a cell."""
        for row in self.layout.rows:
            for position, column in enumerate(self.layout.columns):
                cell = self.cells[row, column] if (row, column) in self.cells else Cell()
                published = self.layout.published[row][position]
                yield [
                    table, self.kind, row, column, cell.mean, cell.spread, len(cell.values),
                    cell.diverged, cell.failed, published,
                ]  # fmt: skip


CSV_HEAD = [
    "table", "kind", "row", "column", "mean", "spread", "seeds", "diverged", "failed", "published",
]  # fmt: skip


def read_results(folders: Sequence[Path]) -> list[Result]:
    """Every ``result.json`` below the folders, in the order of their paths.

    Raises:
        ValueError: naming a file that is no result of ours.
    """
    results = []
    for file in sorted({file for folder in folders for file in folder.rglob("result.json")}):
        try:
            result = json.loads(file.read_text(encoding="utf-8"))
            result["path"] = str(file)
            assert {"status", "method", "sparsity", "detector", "seed"} <= result.keys()
        except (OSError, ValueError, AssertionError, TypeError, AttributeError) as error:
            raise ValueError(f"{file}: not a result of comining ({error})") from error
        results.append(result)
    return results


def _kind(result: Result) -> str:
    """What must be alike for runs to be seeds of one cell."""
    return (
        f"{result['detector']}, {result['backbone']}, data {result['dataset']}, "
        f"{result['max_steps']} steps"
    )


def _plain_layout(results: list[Result]) -> Layout:
    """For runs that belong to no table: AP, sparsity by method."""
    rows = {str(r["sparsity"]): str(r["sparsity"]) for r in results}
    columns = tuple(dict.fromkeys(str(r["method"]) for r in results))
    nothing: dict[str, tuple[float | str | None, ...]] = {
        row: (None,) * len(columns) for row in rows
    }
    return Layout(
        "AP", rows, lambda r: str(r["sparsity"]), columns, lambda r: str(r["method"]), nothing
    )


def tables(results: list[Result]) -> list[tuple[str, Table]]:
    """All tables that the results fill at least a cell of."""
    groups: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for result in results:
        name = result.get("table") or "runs"
        kind = _kind(result)
        if name == "runs" and "score_threshold" in result.get("method_options", {}):
            kind += f", score threshold {score_threshold(result)}"
        groups[name, kind].append(result)
    return [
        (name, Table(LAYOUTS.get(name) or _plain_layout(some), kind, some))
        for (name, kind), some in sorted(groups.items())
    ]


def summary(results: list[Result]) -> str:
    """The whole report as Markdown."""
    count = {
        status: sum(r["status"] == status for r in results)
        for status in ("finished", "diverged", "failed")
    }
    parts = [", ".join(f"{number} runs {status}" for status, number in count.items())]
    parts += [table.markdown() for _, table in tables(results)]
    bad = [r for r in results if r["status"] in ("diverged", "failed")]
    if bad:
        lines = [f"* {r['status']}: {r['path']}: {r['error']}" for r in bad]
        parts.append("\n".join(["### Runs without numbers", "", *lines]))
    return "\n\n".join(parts) + "\n"


# -- plots -------------------------------------------------------------------------------


def plot(results: list[Result], output: Path) -> list[Path]:
    """AP against the score threshold, and AP by sparsity for every method, where there is a choice.

    Returns:
        The pictures that were written; none without matplotlib (``pip install comining[report]``).
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        print("no plots: matplotlib is not installed", file=sys.stderr)
        return []
    written = []
    finished = [r for r in results if r["status"] == "finished" and r["metrics"]["AP"] is not None]

    by_threshold: dict[float, list[Result]] = defaultdict(list)
    for result in finished:
        if result.get("table") == "table3":
            by_threshold[float(score_threshold(result))].append(result)
    if len(by_threshold) > 1:
        figure = Figure(figsize=(6, 4), layout="constrained")
        axis = figure.subplots()
        thresholds = sorted(by_threshold)
        for values, name, style, where in (
            (_ap, "AP", "o-", axis),
            (_mined, "pseudo-labels per image", "s--", axis.twinx()),
        ):
            cells = [Cell([values(r) for r in by_threshold[t]]) for t in thresholds]
            where.errorbar(
                thresholds,
                [statistics.mean(cell.values) for cell in cells],
                [cell.spread or 0 for cell in cells],
                fmt=style,
                capsize=3,
                color="#0072B2" if name == "AP" else "#D55E00",
            )
            where.set_ylabel(name)
        axis.set_xlabel("score threshold τ")
        written.append(output / "ap_by_threshold.png")
        figure.savefig(written[-1], dpi=120)

    order = [*SETS, "miss50", "keep1", "file"]
    for detector in sorted({r["detector"] for r in finished}):
        curves: dict[str, dict[int, Cell]] = defaultdict(lambda: defaultdict(Cell))
        for result in finished:
            if result["detector"] == detector and result.get("table") not in ("table3", "table4"):
                place = order.index(result["sparsity"])
                curves[result["method"]][place].values.append(_ap(result))
        places = sorted({place for curve in curves.values() for place in curve})
        if len(places) < 2:
            continue
        figure = Figure(figsize=(6, 4), layout="constrained")
        axis = figure.subplots()
        for number, (method, curve) in enumerate(curves.items()):
            axis.errorbar(
                sorted(curve),
                [statistics.mean(curve[place].values) for place in sorted(curve)],
                [curve[place].spread or 0 for place in sorted(curve)],
                fmt="os^Dv<>px"[number % 9] + "-",
                capsize=3,
                label=method,
            )
        axis.set_xticks(places, [order[place] for place in places])
        axis.set_ylabel("AP")
        axis.legend()
        written.append(output / f"ap_by_sparsity_{detector}.png")
        figure.savefig(written[-1], dpi=120)
    return written


def _ap(result: Result) -> float:
    return float(result["metrics"]["AP"])


def _mined(result: Result) -> float:
    return float(result["mining"]["pseudo_labels_per_image"])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns how many of the runs failed."""
    parser = argparse.ArgumentParser(prog="python -m comining.report", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="run or sweep directories")
    parser.add_argument("--output", type=Path, help="where to write; default: the first folder")
    given = parser.parse_args(arguments)
    for folder in given.folders:
        if not folder.is_dir():
            parser.error(f"{folder}: no such directory")
    try:
        results = read_results(given.folders)
    except ValueError as error:
        parser.error(str(error))
    output: Path = given.output or given.folders[0]
    output.mkdir(parents=True, exist_ok=True)
    text = summary(results)
    print(text)
    (output / "report.md").write_text(text, encoding="utf-8")
    with (output / "report.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(CSV_HEAD)
        for name, table in tables(results):
            writer.writerows(table.csv_rows(name))
    for path in [output / "report.md", output / "report.csv", *plot(results, output)]:
        print(f"written: {path}")
    return sum(result["status"] == "failed" for result in results)


if __name__ == "__main__":
    main()

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

from comining.reports.published import LAYOUTS, SETS, Layout, Result, score_threshold
from comining.runs.result import find_results


@dataclass
class Cell:
    """What the runs of one cell (its seeds) came to."""

    values: list[float] = field(default_factory=list)
    diverged: int = 0
    failed: int = 0
    without: int = 0  # finished, but nothing of the kind is annotated
    variants: set[str] = field(default_factory=set)  # hashes of all options but the seed

    @property
    def runs(self) -> int:
        """How many there are, however they ended."""
        return len(self.values) + self.diverged + self.failed + self.without

    @property
    def mean(self) -> float | None:
        """Over the finished seeds; None if there is none, one diverged, or they are no seeds."""
        settled = self.values and not self.diverged and len(self.variants) < 2
        return statistics.mean(self.values) if settled else None

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over seeds; None for fewer than two."""
        return None if self.mean is None or len(self.values) < 2 else statistics.stdev(self.values)

    def add(self, result: Result, metric: str) -> None:
        """Count a run in."""
        if result["status"] != "failed":  # which may not know its options
            self.variants.add(result.get("variant", ""))
        if result["status"] == "diverged":
            self.diverged += 1
        elif result["status"] == "failed":
            self.failed += 1
        elif result["metrics"][metric] is None:
            self.without += 1
        else:
            self.values.append(result["metrics"][metric])

    def text(self) -> str:
        """For a table: mean and spread, NaN for diverged, what else there is to say."""
        if len(self.variants) > 1:  # never an average of different settings
            return f"mixed: {len(self.variants)} settings"
        if self.diverged:
            return "NaN" if not self.values else f"NaN ({self.diverged} of {self.runs})"
        if self.mean is None:
            return "failed" if self.failed else "-" if self.without else "missing"
        spread = "" if self.spread is None else f" ± {self.spread:.1f}"
        return f"{self.mean:.1f}{spread}" + (f" ({self.failed} failed)" if self.failed else "")


@dataclass
class Table:
    """A table of ours in a layout, with runs of one kind only: same data, network and recipe.

    Runs that the paper's table has no place for get rows and columns of their own.
    """

    layout: Layout
    kind: str
    results: list[Result]
    rows: dict[str, str] = field(init=False)
    columns: list[str] = field(init=False)
    cells: dict[tuple[str, str], Cell] = field(init=False)

    def __post_init__(self) -> None:
        self.rows = dict(self.layout.rows)
        self.columns = list(self.layout.columns)
        self.cells = defaultdict(Cell)
        for result in self.results:
            row = self.layout.row_of(result)
            self.rows.setdefault(row, row)
            if self.layout.column_of is None:
                for metric in self.columns:
                    self.cells[row, metric].add(result, metric)
                continue
            column = self.layout.column_of(result)
            if column not in self.columns:
                self.columns.append(column)
            self.cells[row, column].add(result, "AP")

    def published(self, row: str, column: str) -> float | str | None:
        """The paper's number."""
        if row not in self.layout.published or column not in self.layout.columns:
            return None
        return self.layout.published[row][self.layout.columns.index(column)]

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
        groups = (
            [[(row, column) for column in self.columns] for row in self.rows]
            if self.layout.column_of
            else [[(row, column) for row in self.rows] for column in self.columns]
        )
        best = set()
        for group in groups:
            means = {key: self.cells[key].mean for key in group if key in self.cells}
            known = {key: mean for key, mean in means.items() if mean is not None}
            if len(known) > 1:
                best.add(max(known, key=lambda key: known[key]))
        return best

    def markdown(self) -> str:
        """Ours and, beside each column of the paper, the paper's."""
        best = self._best()
        heads, lines = [], [f"### {self.layout.title}", "", self.kind, ""]
        for column in self.columns:
            heads += [column, "*paper*"] if self._is_published(column) else [column]
        lines.append("| | " + " | ".join(heads) + " |")
        lines.append("|---" * (len(heads) + 1) + "|")
        for row, label in self.rows.items():
            texts = []
            for column in self.columns:
                text = self.cells[row, column].text() if (row, column) in self.cells else "missing"
                texts.append(f"**{text}**" if (row, column) in best else text)
                if self._is_published(column):
                    published = self.published(row, column)
                    texts.append("-" if published is None else f"*{published}*")
            lines.append(f"| {label} | " + " | ".join(texts) + " |")
        if self.layout.published:
            lines += ["", "*paper*: published numbers, COCO val2017 at paper scale."]
        if missing := self.missing():
            lines.append(f"Missing: {', '.join(missing)}.")
        return "\n".join(lines)

    def _is_published(self, column: str) -> bool:
        return bool(self.layout.published) and column in self.layout.columns

    def csv_rows(self, table: str) -> Iterable[list[Any]]:
        """One row a cell."""
        for row in self.rows:
            for column in self.columns:
                cell = self.cells[row, column] if (row, column) in self.cells else Cell()
                yield [
                    table, self.kind, row, column, cell.mean, cell.spread, len(cell.values),
                    cell.diverged, cell.failed, self.published(row, column),
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
    for file in sorted({file for folder in folders for file in find_results(folder)}):
        try:
            result = json.loads(file.read_text(encoding="utf-8"))
            result["path"] = str(file)
            assert {"status", "method", "sparsity", "detector", "seed"} <= result.keys()
        except (OSError, ValueError, AssertionError, TypeError, AttributeError) as error:
            raise ValueError(f"{file}: not a result of comining ({error})") from error
        results.append(result)
    return results


def _kind(result: Result) -> str:
    """In words what runs of one table share."""
    return (
        f"{result['detector']}, {result['backbone']}, data {result['dataset']}, "
        f"{result['max_steps']} steps"
    )


def by_kind(results: list[Result]) -> dict[str, list[Result]]:
    """Results that may stand in one table, under a name in words.

    They share data, network, optimizer, schedule and trainer. Where the words are the same but some
    of these options are not, a hash tells the recipes apart. The same run found twice counts once.
    """
    groups: dict[tuple[str, str], dict[tuple[Any, ...], Result]] = defaultdict(dict)
    for result in results:
        key = (result.get("variant", result["path"]), result["seed"])
        groups[_kind(result), result.get("recipe", "")][key] = result
    words = [kind for kind, _ in groups]
    return {
        kind if words.count(kind) == 1 else f"{kind}, recipe {recipe}": list(group.values())
        for (kind, recipe), group in sorted(groups.items())
    }


def _plain_layout(results: list[Result]) -> Layout:
    """For runs that belong to no table: AP, sparsity (and threshold, if it varies) by method."""
    several = len({score_threshold(r) for r in results if "score_threshold" in _options(r)}) > 1

    def row_of(result: Result) -> str:
        tau = score_threshold(result)
        return (
            f"{result['sparsity']}, τ = {tau}"
            if several and tau != "None"
            else (str(result["sparsity"]))
        )

    columns = tuple(dict.fromkeys(str(r["method"]) for r in results))
    rows = {row: row for row in dict.fromkeys(map(row_of, results))}
    return Layout("AP", rows, row_of, columns, lambda r: str(r["method"]), {})


def _options(result: Result) -> dict[str, Any]:
    options: dict[str, Any] = result.get("method_options") or {}
    return options


def tables(results: list[Result]) -> list[tuple[str, Table]]:
    """All tables that the results fill at least a cell of."""
    found = []
    for name in sorted({r.get("table") or "runs" for r in results}):
        some = [r for r in results if (r.get("table") or "runs") == name]
        for kind, group in by_kind(some).items():
            found.append((name, Table(LAYOUTS.get(name) or _plain_layout(group), kind, group)))
    return found


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
        The pictures that were written; none without matplotlib (``pip install -e ".[report]"``).
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        print("no plots: matplotlib is not installed", file=sys.stderr)
        return []
    written: list[Path] = []

    def save(figure: Any, name: str) -> None:
        number = sum(path.name.startswith(name) for path in written)
        written.append(output / f"{name}{f'_{number + 1}' if number else ''}.png")
        figure.savefig(written[-1], dpi=120)

    finished = [r for r in results if r["status"] == "finished" and r["metrics"]["AP"] is not None]
    for kind, group in by_kind(finished).items():
        for (method, sparsity), some in _split(group, "method", "sparsity").items():
            by_threshold: dict[float, list[Result]] = defaultdict(list)
            for result in some:
                if "score_threshold" in _options(result) and _mined(result) is not None:
                    by_threshold[float(score_threshold(result))].append(result)
            if len(by_threshold) < 2:
                continue
            figure = Figure(figsize=(6, 4), layout="constrained")
            axis = figure.subplots()
            for values, name, colour, style, where in (
                (_ap, "AP", "#0072B2", "o-", axis),
                (_mined, "pseudo-labels per image", "#D55E00", "s--", axis.twinx()),
            ):
                cells = {t: Cell([values(r) or 0.0 for r in by_threshold[t]]) for t in by_threshold}
                _curve(where, cells, style, color=colour)
                where.set_ylabel(name, color=colour)
            axis.set_xlabel("score threshold τ")
            axis.set_title(f"{method}, {sparsity}; {kind}", fontsize=8)
            save(figure, "ap_by_threshold")

        order = [*SETS, "miss50", "keep1", "file"]
        order += sorted({r["sparsity"] for r in group} - set(order))
        curves: dict[str, dict[float, Cell]] = defaultdict(lambda: defaultdict(Cell))
        for result in group:
            if result.get("table") not in ("table3", "table4"):
                curves[result["method"]][order.index(result["sparsity"])].add(result, "AP")
        places = sorted({place for curve in curves.values() for place in curve})
        if len(places) < 2:
            continue
        figure = Figure(figsize=(6, 4), layout="constrained")
        axis = figure.subplots()
        for number, (method, curve) in enumerate(curves.items()):
            _curve(axis, curve, "os^Dv<>px"[number % 9] + "-", label=method)
        axis.set_xticks(places, [order[int(place)] for place in places])
        axis.set_ylabel("AP")
        axis.set_title(kind, fontsize=8)
        axis.legend()
        save(figure, "ap_by_sparsity")
    return written


def _split(results: list[Result], *keys: str) -> dict[tuple[str, ...], list[Result]]:
    groups: dict[tuple[str, ...], list[Result]] = defaultdict(list)
    for result in results:
        groups[tuple(str(result[key]) for key in keys)].append(result)
    return groups


def _curve(axis: Any, cells: dict[float, Cell], style: str, **options: Any) -> None:
    """Means with their spread; a cell of several settings has no mean and is left out."""
    known = {place: cells[place] for place in sorted(cells) if cells[place].mean is not None}
    axis.errorbar(
        list(known),
        [cell.mean for cell in known.values()],
        [cell.spread or 0.0 for cell in known.values()],
        fmt=style,
        capsize=3,
        **options,
    )


def _ap(result: Result) -> float:
    return float(result["metrics"]["AP"])


def _mined(result: Result) -> float | None:
    found: float | None = result["mining"]["pseudo_labels_per_image"]
    return found


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

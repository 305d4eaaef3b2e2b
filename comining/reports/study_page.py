"""The page of results, RESULTS.md."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pandas as pd

from comining.errors import DataError
from comining.reports.cells import (
    LOWER_BOUND,
    cell_text,
    gap_closed_text,
    number,
    paired_text,
    summarise,
)
from comining.reports.lower_bounds import recall_lines
from comining.reports.markdown import section, table
from comining.reports.plots import draw_study
from comining.reports.published import LAYOUTS
from comining.reports.records import MINING, WRONG_KINDS, Results, runs_frame, validations_frame
from comining.reports.study_files import COLLECTED, first_run, read_study
from comining.reports.study_selection import (
    DEFAULT_VIEW,
    MAIN_SPARSITY,
    at_chosen_threshold,
    chosen_threshold,
    in_study_order,
    test_ap_by_seed,
    threshold_sweep,
    with_changed_options,
)

USUAL_SEEDS = 3
# Many wrong pseudo-labels: at least this many per image, and a smaller share of right ones.
MANY, RIGHT_SHARE = 1, 0.1
# Columns of tables in which a row is a run.
RUN = ["detector", "annotations", "method", "τ", "changed", "seed"]
AP_AND_MINING = ["val AP", "test AP", "pseudo-labels per image", "precision", "recall"]


def write_page(folder: Path, page: Path) -> None:
    """Write the page of all studies in a folder, and their plots into its ``plots``.

    Args:
        folder: a folder per study, and ``NOTES.md``, which the page begins with.

    Raises:
        DataError: there are no results, or a file is no result; names it.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such directory")
    studies = {sub.name: read_study(sub) for sub in sorted(folder.iterdir()) if sub.is_dir()}
    if not any(results for results, _ in studies.values()):
        raise DataError(f"{folder}: no results")
    introduction = (
        f"Written by `python -m comining.study write {folder.name} {page.name}` from the files in "
        f"`{folder.name}/`. AP is that of the test split, which was not used for model selection; "
        "± is the sample standard deviation over seeds."
    )
    notes = folder / "NOTES.md"
    written = [notes.read_text(encoding="utf-8").rstrip()] if notes.exists() else []
    lines = section("Results", introduction, *written, level=1)
    for name, (results, repeats) in studies.items():
        if results:
            study = Study(name, results, repeats)
            lines += study.page(f"{folder.name}/plots")
            study.draw(folder / "plots")
    lines += published_lines()
    page.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


class Study:
    """The runs of one data set, and what the page says about them.

    Args:
        results: records of runs by file.
        repeats: records of repeated runs, by file.
    """

    def __init__(self, name: str, results: Results, repeats: Results):
        self.name, self.validations = name, validations_frame(results)
        self.repeats = runs_frame(repeats)
        runs = runs_frame(results)
        ended = runs["status"].isin(COLLECTED)
        self.not_ended = runs.loc[~ended, "status"].value_counts()
        self.runs = with_changed_options(in_study_order(runs[ended])).assign(setting="")
        self.usual = self.runs[self.runs["changed"] == ""]
        self.changed = self.runs[self.runs["changed"] != ""]
        # At the chosen threshold, in the order of the page: what the tables of methods compare.
        order = ["detector", "sparsity", "method", "view", "seed"]
        self.compared = at_chosen_threshold(self.usual).sort_values(order)
        self.default = self.compared[self.compared["view"] == DEFAULT_VIEW]
        detectors, sparsities = (self.runs[name].cat.categories for name in order[:2])
        pairs = itertools.product(detectors, sparsities)
        sweeps = {pair: threshold_sweep(self.usual, *pair) for pair in pairs}
        self.sweeps = {k: v for k, v in sweeps.items() if v["score_threshold"].nunique() > 1}

    def page(self, plots: str) -> list[str]:
        """The study's part of the page.

        Args:
            plots: the folder of its plots, as the page names it.
        """
        lines = section(self.name, self.summary(), level=2)
        for detector, runs in self.default.groupby("detector", observed=True):
            lines += section(f"{detector}, test AP", method_table(runs))
        if not self.default.empty:
            lines += [f"![test AP by method]({plots}/{self.name}-ap.svg)", ""]
        for (detector, sparsity), sweep in self.sweeps.items():
            texts = run_texts(sweep)[["τ", *AP_AND_MINING]]
            lines += section(
                f"Score thresholds, {detector}, `{sparsity}`",
                "Co-mining, by seed (0, 1, 2). "
                f"τ = {chosen_threshold(self.usual, detector, sparsity):g} has the best validation "
                "AP, and is that of every method that has a threshold:",
                table(texts.groupby("τ", sort=False).agg(", ".join).reset_index()),
                "Precision / recall of what was mined up to a step, since the validation before "
                "it, seed 0:",
                mining_table(self.mining_of_seed_0(sweep)),
                "![precision and recall over training]"
                f"({plots}/{self.name}-{detector}-{sparsity}-mining.svg)",
            )
        if len(views := view_table(self.compared)) > 3:  # more than one view
            lines += section(f"Second views of co-mining, `{MAIN_SPARSITY}`", views)
        if not self.changed.empty:
            changed = self.changed.sort_values(["sparsity", "changed"], kind="stable")
            texts = run_texts(changed)[RUN + AP_AND_MINING]
            lines += section("With options changed", table(texts))
        by = {"detector": "detector", "sparsity": "annotations", "method": "method"}
        by |= {"threshold": "τ"}
        if recalls := recall_lines(self.runs, by, ("val", "test")):
            lines += section("Recall where AP is a lower bound", recalls)
        lines += wrong_labels_section(pd.concat([self.usual, self.changed]))
        if not self.repeats.empty:
            first = self.runs.set_index("file").loc[[*map(first_run, self.repeats["file"])]]
            texts = run_texts(first)[["annotations", "method", "seed", "test AP"]]
            texts["again"] = run_texts(self.repeats.assign(changed=""))["test AP"].to_numpy()
            words = "The same options and seed, and another outcome:"
            lines += section("The same run a second time", words, table(texts))
        return lines

    def summary(self) -> str:
        """The number of runs, their duration and hardware."""
        hours = sum(runs["wall_time_s"].sum() for runs in (self.runs, self.repeats)) / 3600
        sentences = []
        for first in self.usual.head(1).itertuples():
            usual = "" if self.changed.empty else " (where no other length is said)"
            pasting = f" with `{first.pasting!s}`" if first.pasting else ""
            sentences.append(
                f"{len(self.runs) + len(self.repeats)} runs of {first.max_steps} steps{usual}"
                f"{pasting}, {hours:.1f} hours in all on {first.hardware} (the machine did other "
                f"work, too); {first.versions}."
            )
        if not self.not_ended.empty:
            counts = [f"{count} {status}" for status, count in self.not_ended.items()]
            sentences.append(f"Not in the tables: {', '.join(counts)}.")
        return " ".join(sentences)

    def mining_of_seed_0(self, sweep: pd.DataFrame) -> pd.DataFrame:
        """The validations of a threshold sweep's runs of seed 0, with their threshold."""
        runs = sweep.loc[sweep["seed"] == 0, ["file", "score_threshold"]]
        return runs.merge(self.validations, on="file")

    def draw(self, folder: Path) -> None:
        """Draw its plots."""
        names = self.default["sparsity"].astype(str) + ", " + self.default["detector"].astype(str)
        sweeps = {pair: self.mining_of_seed_0(sweep) for pair, sweep in self.sweeps.items()}
        draw_study(folder, self.name, self.default.assign(group=names), sweeps)


def method_table(runs: pd.DataFrame) -> list[str]:
    """Test AP of each method of a detector, and its differences from others, seed by seed."""
    by = ["sparsity", "method"]
    cells: dict[Any, pd.Series[float]] = {
        name: test_ap_by_seed(cell) for name, cell in runs.groupby(by, observed=True)
    }
    none = test_ap_by_seed(runs.iloc[:0])
    full = cells.get(("full", "original"), none)
    summary = summarise(
        runs.assign(value=runs["test_AP"], lower_bound=runs["test_ap_is_lower_bound"]), by
    )
    rows = []
    for (sparsity, method), seeds in cells.items():
        original, comining = (cells.get((sparsity, n), none) for n in ("original", "comining"))
        is_other, has_other = method != "original", method != "comining" and len(comining)
        rows.append({
            "annotations": sparsity,
            "method": f"`{method}`",
            "test AP": cell_text(summary.loc[(sparsity, method)], USUAL_SEEDS),
            "minus `original`, per seed": paired_text(seeds, original) if is_other else "",
            "`comining` minus this, per seed": paired_text(comining, seeds) if has_other else "",
            "gap to `full` closed": gap_closed_text(seeds, original, full) if is_other else "",
        })  # fmt: skip
    return table(pd.DataFrame(rows))


def view_table(runs: pd.DataFrame) -> list[str]:
    """Second views of co-mining on the main sparse set (the paper's Table 4)."""
    choices = ["retinanet", MAIN_SPARSITY, "comining"]
    matches = (runs[["detector", "sparsity", "method"]] == choices).all(axis="columns")
    runs = runs[matches].assign(value=runs["test_AP"], lower_bound=runs["test_ap_is_lower_bound"])
    cells: dict[Any, pd.Series[float]] = {
        view: test_ap_by_seed(cell) for view, cell in runs.groupby("view")
    }
    default = cells.get(DEFAULT_VIEW, test_ap_by_seed(runs.iloc[:0]))
    rows = [
        [f"`{view}`", cell_text(cell, USUAL_SEEDS),
         "" if view == DEFAULT_VIEW else paired_text(cells[view], default)]
        for view, cell in summarise(runs, ["view"]).iterrows()
    ]  # fmt: skip
    head = ["second view", "test AP", f"minus `{DEFAULT_VIEW}`, per seed"]
    return table(pd.DataFrame(rows, columns=pd.Index(head)))


def mining_table(validations: pd.DataFrame) -> list[str]:
    """Precision / recall of what was mined before each validation, by threshold."""
    pairs = validations["precision"].map(number) + " / " + validations["recall"].map(number)
    cells = validations.assign(pair=pairs, τ=validations["score_threshold"].map("{:g}".format))
    cells = cells.sort_values("score_threshold").pivot(index="τ", columns="step", values="pair")
    return table(cells.fillna("- / -").rename(columns="step {}".format).reset_index())


def wrong_labels_section(runs: pd.DataFrame) -> list[str]:
    """Runs whose pseudo-labels are many and wrong: how they differ, and what was mined."""
    counts = runs["pseudo_labels_per_image"]
    wrong = runs[(counts >= MANY) & (runs["precision"] < RIGHT_SHARE)]
    if wrong.empty:
        return []
    texts = run_texts(wrong).assign(**{"pseudo-labels per image": counts.map("{:.1f}".format)})
    kinds = [name.replace("_", " ") for name in WRONG_KINDS]
    columns = [*RUN, "pseudo-labels per image", "most are of class", "precision", *kinds]
    words = (
        f"{MANY} or more pseudo-labels per image over the last quarter of training, of which less "
        f"than {RIGHT_SHARE:.0%} are right:"
    )
    return section("Runs with many wrong pseudo-labels", words, table(texts[columns]))


def run_texts(runs: pd.DataFrame) -> pd.DataFrame:
    """Texts about single runs for tables: a row per run, a column per heading."""
    unfinished = runs["status"].where(runs["status"] != "finished")
    share = runs["most_mined_share"].map(lambda value: number(value, ".0%"))
    ap, test_ap = (
        runs[mark].map({True: LOWER_BOUND, False: ""}).mask(runs[name].isna(), "")
        + runs[name].map(lambda value: number(value, ".1f"))
        for name, mark in (("AP", "ap_is_lower_bound"), ("test_AP", "test_ap_is_lower_bound"))
    )
    return pd.DataFrame({
        "detector": runs["detector"],
        "annotations": runs["sparsity"],
        "method": "`" + runs["method"].astype(str) + "`",
        "τ": runs["threshold"],
        "changed": ("`" + runs["changed"] + "`").mask(runs["changed"] == "", ""),
        "seed": runs["seed"].astype(str),
        "val AP": unfinished.fillna(ap),
        "test AP": unfinished.fillna(test_ap),
        "pseudo-labels per image": runs["pseudo_labels_per_image"].map(number),
        "most are of class": runs["most_mined_class"] + ": " + share,
        **{name.replace("_", " "): runs[name].map(number) for name in MINING[1:]},
    })  # fmt: skip


def published_lines() -> list[str]:
    """The paper's AP on COCO, as a separate section."""
    words = "Another data set, network and length: for the direction only."
    lines = section("The paper's AP on COCO val2017", words, level=2)
    for layout in (LAYOUTS["table1"], LAYOUTS["table5"]):
        numbers = layout.numbers.rename(layout.labels).rename_axis("annotations").reset_index()
        lines += [f"{layout.title}:", "", *table(numbers), ""]
    return lines

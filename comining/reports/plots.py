"""Plots of results; none if matplotlib is not installed."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from comining.reports.cells import summarise
from comining.reports.records import SPARSITIES, in_usual_order

MATPLOTLIB_IS_INSTALLED = importlib.util.find_spec("matplotlib") is not None
if MATPLOTLIB_IS_INSTALLED:
    import matplotlib
    from matplotlib.figure import Figure

# Okabe and Ito (2008), for colour-blind people; every line has a marker of its own besides.
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#999999")
MARKERS = "os^Dv<>pX"
BLUE, ORANGE = COLOURS[4], COLOURS[5]


def draw_report(folder: Path, kinds: Mapping[str, pd.DataFrame]) -> list[Path]:
    """Draw AP by score threshold and AP by sparsity, if there are several.

    Args:
        kinds: name of a kind of runs -> its runs.

    Returns:
        The files: ``ap_by_threshold.png``, ``ap_by_sparsity.png`` and, for further kinds, the same
        with ``_2`` and so on.
    """
    figures: dict[str, Any] = {}
    if not _can_draw():
        return []
    for kind, runs in kinds.items():
        finished = runs[(runs["status"] == "finished") & runs["AP"].notna()]
        mined = finished[finished["pseudo_labels_per_image"].notna()]
        for (method, sparsity), group in mined.groupby(["method", "sparsity"]):
            if group["score_threshold"].nunique() > 1:
                figure = _threshold_figure(group, f"{method}, {sparsity}; {kind}")
                figures[_free_name("ap_by_threshold", figures)] = figure
        compared = finished[~finished["table"].isin(["table3", "table4"])]
        if compared["sparsity"].nunique() > 1:
            figures[_free_name("ap_by_sparsity", figures)] = _sparsity_figure(compared, kind)
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=120)
    return [folder / name for name in figures]


def draw_study(
    folder: Path, name: str, cells: pd.DataFrame, sweeps: Mapping[tuple[str, str], pd.DataFrame]
) -> list[Path]:
    """Draw the plots of one data set. The same results give the same files, byte by byte.

    Args:
        cells: a row per run, in the order of the rows to draw: ``group``, ``method``, ``test_AP``.
        sweeps: detector and sparsity -> a row per threshold and validation: ``score_threshold``,
            ``step``, ``precision``, ``recall``.

    Returns:
        The files, ``NAME-ap.svg`` and ``NAME-DETECTOR-SPARSITY-mining.svg``.
    """
    if not _can_draw():
        return []
    folder.mkdir(parents=True, exist_ok=True)
    figures = {}
    with matplotlib.rc_context({"svg.hashsalt": name, "font.size": 9}):
        if not cells.empty:
            figures[folder / f"{name}-ap.svg"] = _method_figure(cells)
        for (detector, sparsity), validations in sweeps.items():
            title = f"{name}, {detector}, {sparsity}: what co-mining mines, by threshold"
            file = folder / f"{name}-{detector}-{sparsity}-mining.svg"
            figures[file] = _mining_figure(validations, title)
        for file, figure in figures.items():
            figure.savefig(file, metadata={"Date": None})
    return list(figures)


def _can_draw() -> bool:
    if not MATPLOTLIB_IS_INSTALLED:
        print('no plots: matplotlib is missing, pip install -e ".[report]"', file=sys.stderr)
    return MATPLOTLIB_IS_INSTALLED


def _free_name(stem: str, taken: Mapping[str, Any]) -> str:
    number = sum(name.startswith(stem) for name in taken)
    return f"{stem}_{number + 1}.png" if number else f"{stem}.png"


def _threshold_figure(runs: pd.DataFrame, title: str) -> Any:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    for column, label, colour, style, where in (
        ("AP", "AP, validation split", BLUE, "o-", axis),
        ("pseudo_labels_per_image", "pseudo-labels per image", ORANGE, "s--", axis.twinx()),
    ):
        means = summarise(
            runs.assign(value=runs[column], setting=runs["variant"]), ["score_threshold"]
        )
        _plot_means(where, means, style, color=colour)
        where.set_ylabel(label, color=colour)
    axis.set_xlabel("score threshold τ")
    axis.set_title(title, fontsize=8)
    return figure


def _sparsity_figure(runs: pd.DataFrame, title: str) -> Any:
    sparsities = in_usual_order(runs["sparsity"], SPARSITIES).cat.remove_unused_categories().cat
    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    runs = runs.assign(value=runs["AP"], setting=runs["variant"], place=sparsities.codes)
    for number, (method, curve) in enumerate(runs.groupby("method", sort=False)):
        means = summarise(curve, ["place"])
        _plot_means(axis, means, f"{MARKERS[number % len(MARKERS)]}-", label=method)
    axis.set_xticks(range(len(sparsities.categories)), sparsities.categories)
    axis.set_ylabel("AP, validation split")
    axis.set_title(title, fontsize=8)
    axis.legend()
    return figure


def _plot_means(axis: Any, cells: pd.DataFrame, style: str, **options: Any) -> None:
    """Means with their spread; a cell of several settings has no mean and is left out."""
    known = cells[cells["mean"].notna()]
    spread = known["spread"].fillna(0.0)
    axis.errorbar(known.index, known["mean"], spread, fmt=style, capsize=3, **options)


def _method_figure(cells: pd.DataFrame) -> Any:
    """Each method in a row: every seed, and their mean."""
    height = cells.groupby(["group", "method"], observed=True).ngroups
    figure = Figure(figsize=(7, 1 + 0.28 * height))
    axis = figure.subplots()
    labels: list[str] = []
    for group, of_group in cells.groupby("group", sort=False):
        for method, runs in of_group.groupby("method", observed=True):
            row, values = -len(labels), runs["test_AP"]
            labels.append(f"{group}: {method}")
            marker, colour = ("D", ORANGE) if method == "comining" else ("o", BLUE)
            axis.plot(values, [row] * len(values), marker, color=colour, alpha=0.6)
            axis.plot([values.mean(skipna=False)], [row], "|", color=colour, markersize=16)
        axis.axhline(0.5 - len(labels), color="#cccccc", linewidth=0.8)
    axis.set_yticks([-row for row in range(len(labels))], labels)
    axis.set_ylim(0.5 - len(labels), 0.5)
    axis.set_xlabel("test AP: every seed, and their mean")
    figure.set_layout_engine("constrained")
    return figure


def _mining_figure(validations: pd.DataFrame, title: str) -> Any:
    """Precision and recall over the steps of training, a line per threshold."""
    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, name in zip(axes, ("precision", "recall")):
        for number, (tau, curve) in enumerate(validations.groupby("score_threshold")):
            known = curve[curve[name].notna()]
            axis.plot(
                known["step"],
                known[name],
                MARKERS[number % len(MARKERS)] + "-",
                color=COLOURS[number % len(COLOURS)],
                label=f"τ = {tau:g}",
            )
        axis.set_xlabel("step")
        axis.set_ylabel(name)
        axis.set_ylim(-0.03, 1.03)
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside right center")
    figure.suptitle(title)
    return figure

"""The plots of the page of results."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Okabe and Ito (2008), for colour-blind people; every line has a marker of its own besides.
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#999999")
MARKERS = "os^Dv<>pX"


def draw(
    folder: Path,
    name: str,
    cells: Mapping[str, Mapping[str, Sequence[float]]],
    sweeps: Mapping[str, Mapping[float, Mapping[str, Any]]],
) -> list[Path]:
    """Draw the plots of one data set.

    Args:
        cells: a group of methods that are compared -> method -> test AP of every seed.
        sweeps: sparsity -> threshold -> result of a run, whose ``history`` is drawn.

    Returns:
        The files, ``NAME-ap.svg`` and ``NAME-SPARSITY-mining.svg``; none without matplotlib.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        print('no plots: pip install -e ".[report]"', file=sys.stderr)
        return []
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    # The same results make the same file, byte by byte.
    with matplotlib.rc_context({"svg.hashsalt": name, "font.size": 9}):
        groups = {group: methods for group, methods in cells.items() if methods}
        figure = Figure(figsize=(7, 1 + 0.28 * sum(map(len, groups.values()))))
        _points(figure.subplots(), groups)
        written.append(_save(figure, folder / f"{name}-ap.svg"))
        for sparsity, sweep in sweeps.items():
            figure = Figure(figsize=(8, 3), layout="constrained")
            axes = figure.subplots(1, 2)
            for axis, key in zip(axes, ("precision", "recall")):
                _curves(axis, sweep, key)
            figure.legend(*axes[1].get_legend_handles_labels(), loc="outside right center")
            figure.suptitle(f"{name}, {sparsity}: what co-mining mines, by threshold")
            written.append(_save(figure, folder / f"{name}-{sparsity}-mining.svg"))
    return written


def _points(axis: Any, groups: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """A row a method: every seed, and their mean."""
    labels: list[str] = []
    for group, methods in groups.items():
        for method, values in methods.items():
            row = -len(labels)
            labels.append(f"{group}: {method}")
            ours = method == "comining"
            colour = COLOURS[5] if ours else COLOURS[4]
            axis.plot(values, [row] * len(values), "D" if ours else "o", color=colour, alpha=0.6)
            axis.plot([statistics.mean(values)], [row], "|", color=colour, markersize=16)
        axis.axhline(0.5 - len(labels), color="#cccccc", linewidth=0.8)
    axis.set_yticks([-row for row in range(len(labels))], labels)
    axis.set_ylim(0.5 - len(labels), 0.5)
    axis.set_xlabel("test AP: every seed, and their mean")
    axis.figure.set_layout_engine("constrained")


def _curves(axis: Any, sweep: Mapping[float, Mapping[str, Any]], key: str) -> None:
    """A line a threshold, over the steps of training."""
    for number, (tau, result) in enumerate(sweep.items()):
        rows = [row for row in result["history"] if row[key] is not None]
        axis.plot(
            [row["step"] for row in rows],
            [row[key] for row in rows],
            MARKERS[number % len(MARKERS)] + "-",
            color=COLOURS[number % len(COLOURS)],
            label=f"τ = {tau:g}",
        )
    axis.set_xlabel("step")
    axis.set_ylabel(key)
    axis.set_ylim(-0.03, 1.03)


def _save(figure: Any, file: Path) -> Path:
    figure.savefig(file, metadata={"Date": None})
    return file

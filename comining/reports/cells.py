"""Statistics over the runs of a table's cell, and their text form."""

from __future__ import annotations

import math

import pandas as pd

# From best to worst.
STATUSES = ("finished", "diverged", "failed", "interrupted")
LOWER_BOUND = "≥ "  # in front of such a number
CELL_COUNTS = ("runs", "seeds", *STATUSES, "settings", "lower_bounds")


def summarise(runs: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Mean and sample standard deviation of ``value`` over the finished runs of each cell.

    Args:
        runs: with ``status``, ``value`` and ``setting``, which is equal for runs that differ only
            in the seed. The optional column ``lower_bound`` marks values that are lower bounds.
        by: the columns that name a cell.

    Returns:
        A row per cell: ``mean`` and ``spread``, NaN where a run diverged or settings are mixed
        (``spread`` also for a single seed), and :data:`CELL_COUNTS`, where ``seeds`` counts the
        values.
    """
    settled = runs["status"].isin(["finished", "diverged"])
    flags = {status: runs["status"] == status for status in STATUSES}
    # A run that did not finish may have no options recorded.
    columns = runs.assign(**flags, setting=runs["setting"].where(settled))
    columns["lower_bound"] = runs["value"].notna() & runs.get("lower_bound", False)
    cells = columns.groupby(by, observed=True).agg(
        mean=("value", "mean"),
        spread=("value", "std"),
        runs=("status", "size"),
        seeds=("value", "count"),
        **{status: (status, "sum") for status in STATUSES},
        settings=("setting", "nunique"),
        lower_bounds=("lower_bound", "sum"),
    )
    without_mean = (cells["diverged"] > 0) | (cells["settings"] > 1)
    cells[["mean", "spread"]] = cells[["mean", "spread"]].mask(without_mean)
    return cells


def cell_text(cell: pd.Series, usual_seeds: int | None = None) -> str:
    """A cell of :func:`summarise` for a table.

    Args:
        usual_seeds: the number of seeds is written if it differs from this; None: never.
    """
    counts = {name: int(cell[name]) for name in CELL_COUNTS}
    if counts["settings"] > 1:  # never an average of different settings
        return f"mixed: {counts['settings']} settings"
    if counts["diverged"]:
        return f"NaN ({counts['diverged']} of {counts['runs']})" if counts["seeds"] else "NaN"
    if not counts["seeds"]:
        reasons = [status for status in ("failed", "interrupted") if counts[status]]
        return ", ".join(reasons) or ("-" if counts["finished"] else "missing")
    notes = [f"{counts[status]} {status}" for status in ("failed", "interrupted") if counts[status]]
    if usual_seeds is not None and counts["seeds"] != usual_seeds:
        notes.insert(0, "1 seed" if counts["seeds"] == 1 else f"{counts['seeds']} seeds")
    spread = f" ± {cell['spread']:.1f}" if counts["seeds"] > 1 else ""
    mark = LOWER_BOUND if counts["lower_bounds"] else ""
    return f"{mark}{cell['mean']:.1f}{spread}" + (f" ({', '.join(notes)})" if notes else "")


def number(value: float, form: str = ".2f", absent: str = "-") -> str:
    """A formatted number, or ``absent`` for NaN."""
    return absent if math.isnan(value) else format(value, form)


def paired_text(cell: pd.Series[float], other: pd.Series[float]) -> str:
    """Mean difference of two cells over the seeds that both have, and the difference of each seed.

    Args:
        cell, other: a value per seed (the index); NaN for a run that diverged.
    """
    seeds = cell.index.intersection(other.index).sort_values()
    if seeds.empty:
        return "-"
    differences = cell[seeds] - other[seeds]
    each = ", ".join(number(difference, "+.1f", "NaN") for difference in differences)
    return f"{number(differences.mean(skipna=False), '+.1f', 'NaN')} ({each})"


def gap_closed_text(
    cell: pd.Series[float], original: pd.Series[float], full: pd.Series[float]
) -> str:
    """The share of the gap between ``original`` and ``full`` that a method closes.

    Its gain is the mean over the seeds that it shares with ``original``.

    Args:
        cell, original, full: a value per seed (the index); NaN for a run that diverged.
    """
    seeds = cell.index.intersection(original.index)
    if seeds.empty or full.empty:
        return "-"
    gain = (cell[seeds] - original[seeds]).mean(skipna=False)
    gap = full.mean(skipna=False) - original.mean(skipna=False)
    return number(gain / gap, ".0%", "NaN") if gap > 0 else "-"

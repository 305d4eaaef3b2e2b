"""Which settings to choose: runs ranked by a number of the validation split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from comining.errors import DataError
from comining.reports.cells import LOWER_BOUND, number
from comining.reports.markdown import section, table
from comining.reports.paper_tables import groups_of_one_kind
from comining.reports.records import COCO_METRICS, find_results, read_results, runs_frame
from comining.reports.study_selection import with_changed_options

# Rank correlation says little about fewer settings.
LEAST_COMPARED = 3


def ranked(runs: pd.DataFrame, by: str) -> pd.DataFrame:
    """A row per setting, best first.

    Only seeds that all settings have are compared, where there are any; a run that diverged counts
    as 0, since it detects nothing.

    Args:
        runs: of one kind and sparsity, rows of :func:`~comining.reports.records.runs_frame`.
        by: a number of the validation split.

    Returns:
        ``method``, ``threshold``, ``changed`` (how the options differ from the usual), ``seeds``,
        ``value``, ``lowest``, ``highest``, and ``test_AP``, NaN without a test split.
    """
    ended = runs[runs["status"].isin(["finished", "diverged"])]
    diverged = ended["status"] == "diverged"
    ended = ended.assign(
        value=ended[by].mask(diverged, 0.0), test_AP=ended["test_AP"].mask(diverged, 0.0)
    )
    of_settings = [set(seeds) for _, seeds in ended.groupby("variant")["seed"]]
    common = set.intersection(*of_settings) if of_settings else set()
    compared = ended[ended["seed"].isin(common)] if common else ended
    compared = with_changed_options(compared)
    rows = compared.groupby("variant", sort=False).agg(
        method=("method", "first"),
        threshold=("threshold", "first"),
        changed=("changed", "first"),
        seeds=("seed", "nunique"),
        value=("value", "mean"),
        lowest=("value", "min"),
        highest=("value", "max"),
        test_AP=("test_AP", "mean"),
    )
    return rows.sort_values("value", ascending=False, kind="stable").reset_index(drop=True)


def agreement(rows: pd.DataFrame) -> float | None:
    """Spearman's rank correlation of the ranking with test AP; None for too few settings."""
    both = rows[["value", "test_AP"]].dropna().rank()
    if len(both) < LEAST_COMPARED or (both.nunique() < 2).any():
        return None
    return float(both["value"].corr(both["test_AP"]))


def ranking_text(runs: pd.DataFrame, by: str) -> str:
    """All rankings as Markdown: one for each kind of runs and sparsity."""
    lines: list[str] = []
    for title, of_kind in _comparable(runs):
        rows = ranked(of_kind, by)
        if rows["value"].notna().any():
            lines += section(title, *_paragraphs(rows, of_kind, by))
    if not lines:
        raise DataError(
            f"none of the {len(runs)} runs has finished with {by} on a validation split"
        )
    return "\n".join(lines).rstrip()


def _comparable(runs: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    for kind, of_kind in groups_of_one_kind(runs):
        for sparsity, group in of_kind.groupby("sparsity"):
            yield f"{kind}, sparsity {sparsity}", group


def _paragraphs(rows: pd.DataFrame, runs: pd.DataFrame, by: str) -> Iterator[str | list[str]]:
    partial = bool(runs["ap_is_lower_bound"].any())
    mark = LOWER_BOUND if partial and by.startswith("AP") else ""
    spread = rows["lowest"].map("{:.1f}".format) + " to " + rows["highest"].map("{:.1f}".format)
    texts = pd.DataFrame(
        {
            "method": rows["method"],
            "threshold": rows["threshold"],
            "other options": rows["changed"].replace("", "-"),
            "seeds": rows["seeds"].astype(str),
            f"validation {by}": [number(value, ".1f") for value in rows["value"]],
            "of its seeds": spread.where(rows["seeds"] > 1, "-"),
            "test AP": [number(value, ".1f") for value in rows["test_AP"]],
        }
    )
    if rows["test_AP"].isna().all():
        texts = texts.drop(columns="test AP")
    if mark:
        texts[f"validation {by}"] = mark + texts[f"validation {by}"]
    yield table(texts)
    first = rows.iloc[0]
    close = rows.iloc[1:][rows["highest"].iloc[1:] >= first["lowest"]]
    if first["seeds"] == 1:
        yield "One seed each: settings whose numbers are close may change places with another seed."
    elif len(close):
        names = ", ".join(dict.fromkeys(close["method"]))
        yield f"The seeds of the first overlap with those of {len(close)} more ({names})."
    if mark:
        yield (
            f"{by} is too low, because a detection of an object that is not annotated counts as "
            "wrong. It is too low for all of them, so that their order can be used all the same."
        )
    known = agreement(rows)
    if known is not None and not runs["test_ap_is_lower_bound"].any():
        yield f"Rank correlation with test AP (Spearman): {known:.2f}."


def rank_folders(folders: Sequence[Path], by: str) -> str:
    """:func:`ranking_text` of all runs below some folders.

    Raises:
        DataError: a folder does not exist, a file is no result, or no run has the number.
    """
    if by not in COCO_METRICS:
        raise DataError(f"--by {by}: must be one of {', '.join(COCO_METRICS)}")
    files, _ = find_results(folders)
    if not files:
        raise DataError(f"{', '.join(map(str, folders))}: no result.json in it or below it")
    return ranking_text(runs_frame(read_results(files)), by)

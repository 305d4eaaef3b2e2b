"""Model selection: settings ranked by a metric of the validation split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from comining.errors import DataError
from comining.evaluation.recall_among import MULTIPLES
from comining.reports.cells import LOWER_BOUND, number
from comining.reports.markdown import section, table
from comining.reports.paper_tables import groups_of_one_kind
from comining.reports.records import COCO_METRICS, find_results, read_results, runs_frame
from comining.reports.study_selection import with_changed_options

# Rank correlation means little for fewer settings.
LEAST_COMPARED = 3
# Their mean is used if the annotated share of the objects is unknown.
USUAL_MULTIPLES = (2.0, 4.0, 8.0, 16.0)
RECALL = "recall"


def ranked(runs: pd.DataFrame, by: str) -> pd.DataFrame:
    """A row per setting, best first.

    If all settings share seeds, only these are compared; a run that diverged counts as 0, since it
    detects nothing.

    Args:
        runs: of one kind and sparsity, rows of :func:`~comining.reports.records.runs_frame`.
        by: a number of the validation split.

    Returns:
        ``method``, ``threshold``, ``changed`` (how the options differ from the usual), ``seeds``,
        ``value``, ``lowest``, ``highest``, and ``test_AP``, NaN without a test split.
    """
    ended = runs[runs["status"].isin(["finished", "diverged"])]
    diverged = ended["status"] == "diverged"
    tested = diverged & bool(ended["test_AP"].notna().any())  # else there is no test split
    ended = ended.assign(
        value=ended[by].mask(diverged, 0.0), test_AP=ended["test_AP"].mask(tested, 0.0)
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


def criterion(by: str | None, annotated: float | None, runs: pd.DataFrame) -> tuple[str, pd.Series]:
    """The metric that runs are ranked by: its name, and its values.

    Args:
        by: one of COCO's numbers; None for AP, or, where objects may be missing in the validation
            annotations, the recall of the annotated ones among as many detections as there are
            objects.
        annotated: the annotated share of the objects of the validation split; None if unknown.
    """
    if by is not None:
        return by, runs[by]
    if annotated is None and not runs["ap_is_lower_bound"].any():
        return "AP", runs["AP"]
    if annotated is None:
        columns = [f"recall_among_{multiple:g}" for multiple in USUAL_MULTIPLES]
        return RECALL, runs[columns].mean(axis="columns")
    enough = [m for m in MULTIPLES if m >= 1 / annotated - 1e-9] or [MULTIPLES[-1]]
    return RECALL, runs[f"recall_among_{enough[0]:g}"]


def ranking_text(runs: pd.DataFrame, by: str | None = None, annotated: float | None = None) -> str:
    """All rankings as Markdown: one for each kind of runs and sparsity.

    Args:
        by, annotated: see :func:`criterion`.
    """
    lines: list[str] = []
    for title, of_kind in _comparable(runs):
        name, values = criterion(by, annotated, of_kind)
        rows = ranked(of_kind.assign(criterion=values), "criterion")
        if rows["value"].notna().any():
            lines += section(title, *_paragraphs(rows, of_kind, name, annotated))
    if not lines:
        what = by or "AP, or the recall that --annotated needs,"
        raise DataError(
            f"none of the {len(runs)} runs has finished with {what} on a validation split"
        )
    return "\n".join(lines).rstrip()


def _comparable(runs: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    for kind, of_kind in groups_of_one_kind(runs):
        for sparsity, group in of_kind.groupby("sparsity"):
            yield f"{kind}, sparsity {sparsity}", group


def _paragraphs(
    rows: pd.DataFrame, runs: pd.DataFrame, by: str, annotated: float | None
) -> Iterator[str | list[str]]:
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
            "wrong. Where few objects are annotated, the order is not to be trusted either."
        )
    if by == RECALL:
        share = "" if annotated is None else f", of which {100 * annotated:.3g}% are annotated"
        if annotated is not None and annotated * MULTIPLES[-1] < 1:
            share += f" (at most {MULTIPLES[-1]:g} for each annotated object, the most on record)"
        unsure = (
            " (the mean for 2, 4, 8 and 16 detections for each annotated object; --annotated SHARE "
            "says how many there are)"
            if annotated is None
            else ""
        )
        yield (
            "Recall: how many of the annotated objects are found among as many detections of each "
            f"class as there are objects{share}{unsure}. Missing annotations do not lower it, "
            "wrong detections do."
        )
    known = agreement(rows)
    if known is not None and not runs["test_ap_is_lower_bound"].any():
        yield f"Rank correlation with test AP (Spearman): {known:.2f}."


def rank_folders(folders: Sequence[Path], by: str | None, annotated: float | None) -> str:
    """:func:`ranking_text` of all runs below some folders.

    Raises:
        DataError: a folder does not exist, a file is not a result, or no run has the number.
    """
    if by is not None and by not in COCO_METRICS:
        raise DataError(f"--by {by}: must be one of {', '.join(COCO_METRICS)}")
    if by is not None and annotated is not None:
        raise DataError("--by and --annotated exclude each other")
    if annotated is not None and not 0 < annotated <= 1:
        raise DataError(f"--annotated {annotated:g}: must be above 0 and at most 1")
    files, _ = find_results(folders)
    if not files:
        raise DataError(f"{', '.join(map(str, folders))}: no result.json in it or below it")
    return ranking_text(runs_frame(read_results(files)), by, annotated)

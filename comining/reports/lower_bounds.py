"""Notes to tables whose AP is a lower bound: the recall of the annotated objects."""

from __future__ import annotations

import pandas as pd

from comining.reports.cells import LOWER_BOUND
from comining.reports.markdown import table
from comining.reports.records import RECALLS

NOTE = (
    f"{LOWER_BOUND.strip()}: a lower bound, because objects may be missing in the annotations, and "
    "a detection of one counts as wrong. The recall of what is annotated is right:"
)
# Split: the column that marks its AP, and the prefix of the names of its metrics.
SPLITS = {"val": ("ap_is_lower_bound", ""), "test": ("test_ap_is_lower_bound", "test_")}


def recall_lines(runs: pd.DataFrame, by: dict[str, str], splits: tuple[str, ...]) -> list[str]:
    """A note and a table of mean AR1, AR10 and AR100 of runs whose AP is a lower bound.

    Args:
        runs: rows of :func:`~comining.reports.records.runs_frame`.
        by: the columns that name a row of the table, and their headings.
        splits: of :data:`SPLITS`.

    Returns:
        Lines; none where no AP is a lower bound.
    """
    parts = []
    for split in splits:
        mark, prefix = SPLITS[split]
        numbers = [f"{prefix}{name}" for name in RECALLS]
        marked = runs[runs[mark] & runs[numbers].notna().all(axis="columns")]
        means = marked.groupby(list(by), observed=True, sort=False)[numbers].mean()
        part = means.map("{:.1f}".format).set_axis(list(RECALLS), axis="columns")
        parts.append(part.reset_index().rename(columns=by).assign(split=split))
    rows = pd.concat(parts)
    if rows.empty:
        return []
    return [NOTE, "", *table(rows[[*by.values(), "split", *RECALLS]].astype(str))]

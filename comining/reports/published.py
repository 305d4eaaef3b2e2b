"""The tables of the paper (Wang et al., AAAI 2021, COCO val2017): layout and numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Result = dict[str, Any]  # the content of a result.json
SIZES = ("AP", "AP50", "AP75", "APs", "APm", "APl")


@dataclass(frozen=True)
class Layout:
    """A table of the paper: what its rows and columns are, and what it says.

    A column is either a value of ``column_of`` (the table shows AP) or one of the metrics.
    """

    title: str
    rows: dict[str, str]  # key -> label, in the paper's order
    row_of: Callable[[Result], str]
    columns: tuple[str, ...]
    column_of: Callable[[Result], str] | None
    published: dict[str, tuple[float | str | None, ...]]  # row key -> a number a column


def score_threshold(result: Result) -> str:
    """The tau of a run's method, as its option says it."""
    return str(result["method_options"].get("score_threshold"))


def _view(result: Result) -> str:
    return "baseline" if result["method"] == "original" else str(result["view"])


SETS = {"full": "Full", "easy": "Easy", "hard": "Hard", "extreme": "Extreme"}
_FOUR = ("original", "augmented", "joint", "comining")


def _by_set(title: str, published: dict[str, tuple[float | str | None, ...]]) -> Layout:
    return Layout(
        title, SETS, lambda r: str(r["sparsity"]), _FOUR, lambda r: str(r["method"]), published
    )


def _by_metric(
    title: str,
    rows: dict[str, str],
    row_of: Callable[[Result], str],
    columns: tuple[str, ...],
    published: dict[str, tuple[float | str | None, ...]],
) -> Layout:
    return Layout(title, rows, row_of, columns, None, published)


LAYOUTS = {
    "table1": _by_set(
        "Table 1: RetinaNet, AP",
        {
            "full": (36.0, 35.4, 36.4, 36.8),
            "easy": (33.4, 32.9, 33.8, 35.4),
            "hard": (30.4, 30.8, 30.6, 31.8),
            "extreme": (20.9, 21.4, 21.2, 23.0),
        },
    ),
    "table2": _by_metric(
        "Table 2: modules, hard set",
        {
            "original": "neither",
            "self_mining": "co-generation",
            "joint": "Siamese network",
            "comining": "both",
        },
        lambda r: str(r["method"]),
        SIZES[:3],
        {
            "original": (30.4, 49.4, 32.0),
            "self_mining": (30.9, 49.3, 32.6),
            "joint": (30.6, 49.3, 32.5),
            "comining": (31.8, 50.3, 33.7),
        },
    ),
    "table3": _by_metric(
        "Table 3: score thresholds, hard set",
        {key: key for key in ("0.4", "0.5", "0.6", "0.7", "0.8")},
        score_threshold,
        SIZES[:1],
        {"0.4": ("NaN",), "0.5": (30.6,), "0.6": (31.8,), "0.7": (30.7,), "0.8": (30.7,)},
    ),
    "table4": _by_metric(
        "Table 4: second views, hard set",
        {"baseline": "baseline", "none": "w/o aug", "blur": "blur", "color": "color"},
        _view,
        SIZES,
        {
            "baseline": (30.4, 49.4, 32.0, 15.8, 32.6, 41.2),
            "none": (30.6, 48.4, 32.4, 15.5, 32.4, 41.7),
            "blur": (31.2, 49.4, 33.2, 15.7, 33.4, 42.4),
            "color": (31.8, 50.3, 33.7, 16.2, 34.0, 43.3),
        },
    ),
    "table5": _by_set(
        "Table 5: FCOS, AP",
        {
            "full": (38.4, 37.8, 39.1, 39.3),
            "easy": (36.3, 35.7, 36.8, 37.6),
            "hard": (33.2, 33.5, 33.5, 34.4),
            "extreme": (22.1, 22.3, 22.8, 23.1),
        },
    ),
    "table6": _by_metric(
        "Table 6: the rivals, COCO-50miss",
        {
            "original": "baseline",
            "pseudo_label": "Pseudo label",
            "part_aware": "Part-aware",
            "soft_sampling": "Soft Sampling",
            "background_recalibration": "BRL",
            "comining": "Co-mining",
        },
        lambda r: str(r["method"]),
        SIZES,
        {
            "original": (23.7, 40.6, 33.5, None, None, None),
            "pseudo_label": (27.5, 46.3, 34.5, 15.1, 33.2, 41.7),
            "part_aware": (28.4, 46.9, 35.1, 15.3, 33.6, 42.0),
            "soft_sampling": (None,) * 6,
            "background_recalibration": (32.7, 50.8, 35.3, None, None, None),
            "comining": (33.9, 53.0, 36.1, 18.7, 36.8, 45.7),
        },
    ),
}

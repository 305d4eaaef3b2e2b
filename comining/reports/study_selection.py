"""Which runs of a study are compared with each other."""

from __future__ import annotations

import json
from collections import Counter

import pandas as pd

from comining.errors import DataError
from comining.reports.records import DETECTORS, METHODS, SPARSITIES, in_usual_order

DEFAULT_VIEW = "color"
# Groups whose options may repeat those of other groups.
REPEATING = ("detector.", "backbone.", "schedule.")
# Sparse sets with runs of a single threshold use the threshold of this one, and detectors without
# any that of this one.
MAIN_SPARSITY, MAIN_DETECTOR = "hard", "retinanet"
# Methods whose threshold is `tau`; others have one of their own, or none.
WITH_TAU = ("comining", "self_mining", "mean_teacher", "pseudo_label")


def in_study_order(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs with detector, sparsity and method as ordered categories; unknown ones come last."""
    known = {"detector": DETECTORS, "sparsity": SPARSITIES, "method": METHODS}
    return runs.assign(**{name: in_usual_order(runs[name], known[name]) for name in known})


def with_changed_options(runs: pd.DataFrame) -> pd.DataFrame:
    """Add ``changed``: how a run's length or options differ from the usual ones; "" if they do not.

    The usual options of the method are those of most runs of a detector and method, the usual
    length, backbone and recipe those of most runs of a detector; in a tie, the first. Options of
    the recipe that one of the records does not know are not compared.
    """
    methods = runs.groupby(["detector", "method"], observed=True)
    detectors = runs.groupby("detector", observed=True)
    usual = methods["options"].transform(_most_common)
    changed = [*map(_changed_options, runs["options"], usual)]
    lengths = "max_steps=" + runs["max_steps"].astype(str)
    of_detector = lengths.groupby(runs["detector"], observed=True)
    lengths = lengths.mask(lengths == of_detector.transform(_most_common), "")
    is_usual = runs["backbone"] == detectors["backbone"].transform(_most_common)
    backbones = ("backbone=" + runs["backbone"]).mask(is_usual, "")
    usual = detectors["recipe_options"].transform(_most_common)
    recipes = map(_changed_recipe, runs["recipe_options"], usual)
    return runs.assign(changed=[*map(_joined, lengths, changed, backbones, recipes)])


def _most_common(texts: pd.Series[str]) -> str:
    known = [one for one in texts if one != "{}"]
    return str(Counter(known).most_common(1)[0][0]) if known else "{}"


def _joined(*parts: str) -> str:
    return ", ".join(filter(None, parts))


def _changed_options(options: str, usual: str) -> str:
    expected = json.loads(usual)
    return ", ".join(
        f"{name}={_as_option(value)}"
        for name, value in json.loads(options).items()
        if name not in expected or expected[name] != value
    )


def _as_option(value: object) -> str:
    return str(value) if isinstance(value, str) else json.dumps(value)


def _changed_recipe(options: str, usual: str) -> str:
    known, expected = json.loads(options), json.loads(usual)
    changed = {k: v for k, v in known.items() if k in expected and expected[k] != v}
    shown: dict[str, object] = {}
    # Many options of the detector and the schedule repeat others: data.min_size, head.anchor_scale.
    for name, value in sorted(changed.items(), key=lambda one: one[0].startswith(REPEATING)):
        _, _, last = name.rpartition(".")
        repeats = name.startswith(REPEATING) and any(
            other.rpartition(".")[2] == last and given == value for other, given in shown.items()
        )
        if not repeats:
            shown[name] = value
    return ", ".join(f"{name}={_as_option(value)}" for name, value in shown.items())


def threshold_sweep(runs: pd.DataFrame, detector: str, sparsity: str) -> pd.DataFrame:
    """Co-mining's runs of a detector on a sparse set, by threshold and seed.

    Only thresholds that were run with seed 0, which all thresholds have in common.
    """
    choices = [detector, sparsity, "comining", DEFAULT_VIEW]
    matches = (runs[["detector", "sparsity", "method", "view"]] == choices).all(axis="columns")
    sweep = runs[matches & runs["score_threshold"].notna()]
    common = sweep.loc[sweep["seed"] == 0, "score_threshold"]
    return sweep[sweep["score_threshold"].isin(common)].sort_values(["score_threshold", "seed"])


def chosen_threshold(runs: pd.DataFrame, detector: str, sparsity: str) -> float | None:
    """The threshold with the best validation AP of co-mining on a sparse set, for a detector.

    The thresholds with the most seeds are compared by their mean; if that is only one, all are
    compared by seed 0. If fewer than two were tried, it is that of :data:`MAIN_SPARSITY`, if there
    is one; if none was in either, that of :data:`MAIN_DETECTOR`. A run that diverged detects
    nothing: its AP counts as 0.
    """
    sweep = threshold_sweep(runs, detector, sparsity)
    of_main = threshold_sweep(runs, detector, MAIN_SPARSITY)
    if sweep["score_threshold"].nunique() < 2 and not of_main.empty:
        sweep = of_main
    if sweep.empty:
        if detector == MAIN_DETECTOR:
            return None
        return chosen_threshold(runs, MAIN_DETECTOR, sparsity)
    sweep = sweep.assign(AP=sweep["AP"].fillna(0.0))
    seeds = sweep.groupby("score_threshold")["seed"].count()
    most_run = seeds.index[seeds == seeds.max()]
    if len(most_run) == 1:
        compared = sweep[sweep["seed"] == 0]
    else:
        compared = sweep[sweep["score_threshold"].isin(most_run)]
    means = compared.groupby("score_threshold")["AP"].mean()
    return float(means.index[int(means.argmax())])


def at_chosen_threshold(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs of methods with ``tau`` at the chosen threshold, and all runs of other methods.

    Raises:
        DataError: two of them have the same choices and seed; names their files.
    """
    pairs = [*zip(runs["detector"].astype(str), runs["sparsity"].astype(str), strict=True)]
    chosen = {pair: chosen_threshold(runs, *pair) for pair in set(pairs)}
    thresholds = runs["score_threshold"]
    of_set = [chosen[pair] for pair in pairs]
    is_chosen = thresholds == pd.Series(of_set, runs.index, dtype="float64")
    kept = runs[thresholds.isna() | is_chosen | ~runs["method"].isin(WITH_TAU)]
    same = kept[kept.duplicated(["detector", "sparsity", "method", "view", "seed"], keep=False)]
    if not same.empty:
        files = same.sort_values(["detector", "sparsity", "method", "view", "seed"])["file"]
        raise DataError(
            f"{files.iloc[0]} and {files.iloc[1]}: the same run; name the second one "
            "FIRST-repeat1.json, or remove one"
        )
    return kept


def test_ap_by_seed(cell: pd.DataFrame) -> pd.Series[float]:
    """Test AP of each seed of a cell; NaN for a run that diverged, none without a test split."""
    known = cell[cell["test_AP"].notna() | (cell["status"] == "diverged")]
    return known.set_index("seed")["test_AP"]

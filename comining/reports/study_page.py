"""The page of results."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from comining.errors import DataError
from comining.reports.published import LAYOUTS
from comining.reports.study_plots import draw
from comining.reports.study_results import (
    MAIN,
    SPARSITIES,
    Result,
    by_seed,
    cells_of,
    chosen_tau,
    read,
    read_repeats,
    set_probes_apart,
    sweep_of,
    tau_of,
)


def spread(values: Sequence[float]) -> str:
    """Mean and sample standard deviation, with the number of seeds where it is not three."""
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.1f} (1 seed)"
    seeds = "" if len(values) == 3 else f" ({len(values)} seeds)"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}{seeds}"


def paired(cell: Mapping[int, float], other: Mapping[int, float]) -> str:
    """The difference of the seeds that both have."""
    both = sorted(cell.keys() & other.keys())
    if not both:
        return "-"
    differences = [cell[seed] - other[seed] for seed in both]
    each = ", ".join(f"{difference:+.1f}" for difference in differences)
    return f"{statistics.mean(differences):+.1f} ({each})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Markdown."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def study(
    name: str,
    results: Sequence[Result],
    probes: Sequence[tuple[Result, str]],
    repeats: Sequence[tuple[Result, Result]],
    plots: Path,
) -> list[str]:
    """The part of the page for one data set.

    Args:
        probes: runs with an unusual option, which are in no cell.
        plots: its plots' folder, as the page names it.
    """
    lines = [f"## {name}", ""]
    extra = [*(probe for probe, _ in probes), *(second for _, second in repeats)]
    everything = [*results, *extra]
    hours = sum(one["wall_time_s"] for one in everything) / 3600
    first = results[0]
    unusual = " (where no other length is said)" if probes else ""
    packages = ", ".join(f"{k} {v}" for k, v in first["versions"].items())
    lines += [
        f"{len(everything)} runs of {first['max_steps']} steps{unusual}, {hours:.1f} hours in all "
        f"on {first['hardware']} (the machine did other work, too); {packages}.",
        "",
    ]
    for detector in ("retinanet", "fcos"):
        cells = cells_of(results, detector)
        rows = []
        full = cells.get(("full", "original"), {})
        for (sparsity, method), cell in cells.items():
            original = cells.get((sparsity, "original"), {})
            ours = cells.get((sparsity, "comining"), {})
            rows.append(
                [
                    sparsity, f"`{method}`", spread(list(cell.values())),
                    paired(cell, original) if method != "original" else "",
                    paired(ours, cell) if method != "comining" and ours else "",
                    closed(cell, original, full) if method != "original" else "",
                ]
            )  # fmt: skip
        if rows:
            head = ("annotations", "method", "test AP", "minus `original`, per seed",
                    "`comining` minus it, per seed", "gap to `full` closed")  # fmt: skip
            lines += [f"### {detector}, test AP", "", *table(head, rows), ""]
    lines += [f"![test AP by method]({plots}/{name}-ap.svg)", ""]
    for sparsity in SPARSITIES:
        if len(sweep_of(results, sparsity)) < 2:
            continue
        lines += [
            f"### Score thresholds, `{sparsity}`",
            "",
            f"RetinaNet, co-mining, by seed (0, 1, 2). τ = {chosen_tau(results, sparsity):g} has "
            "the best validation AP, and is that of every method that has a threshold:",
            "",
            *thresholds(results, sparsity),
            "",
            *over_time(results, sparsity),
            "",
            f"![precision and recall over training]({plots}/{name}-{sparsity}-mining.svg)",
            "",
        ]
    lines += views(results)
    if probes:
        lines += ["### With options changed", "", *one_by_one(probes), ""]
    lines += runaways([*((one, "") for one in results), *probes])
    if repeats:
        lines += [
            "### The same run a second time",
            "",
            "The same options and seed, and another outcome:",
            "",
            *again(repeats),
            "",
        ]
    return lines


def views(results: Sequence[Result]) -> list[str]:
    """Second views of co-mining (the paper's Table 4), where others than the default were run."""
    rows = []
    for view in sorted({one["view"] for one in results}):
        cell = by_seed(results, "retinanet", MAIN, "comining", view)
        default = by_seed(results, "retinanet", MAIN, "comining")
        if cell:
            difference = "" if view == "color" else paired(cell, default)
            rows.append([f"`{view}`", spread(list(cell.values())), difference])
    if len(rows) < 2:
        return []
    head = ("second view", "test AP", "minus `color`, per seed")
    return [f"### Second views of co-mining, `{MAIN}`", "", *table(head, rows), ""]


def one_by_one(probes: Sequence[tuple[Result, str]]) -> list[str]:
    """Every probe, and what differs from the runs of the other tables."""
    rows = []
    for one, changed in sorted(probes, key=lambda probe: (probe[0]["sparsity"], probe[1])):
        tau = "-" if tau_of(one) is None else f"{tau_of(one):g}"
        rows.append(
            [one["detector"], one["sparsity"], f"`{one['method']}`", tau, f"`{changed}`",
             str(one["seed"]), _ap(one, "metrics"), _ap(one, "test"), *_mined(one)]
        )  # fmt: skip
    head = ("detector", "annotations", "method", "τ", "changed", "seed", "val AP", "test AP")
    return table((*head, *MINED), rows)


def runaways(runs: Sequence[tuple[Result, str]]) -> list[str]:
    """Runs whose pseudo-labels are many and wrong, with what differs in them and what was mined."""
    rows = []
    for one, changed in runs:
        count, precision = (one["mining"][key] for key in ("pseudo_labels_per_image", "precision"))
        if precision is None or precision >= RUNAWAY_PRECISION or count < RUNAWAY_COUNT:
            continue
        classes = {
            name: of_class["pseudo_labels_per_image"]
            for name, of_class in one["mining_classes"].items()
        }
        most = max(classes, key=lambda name: classes[name])
        wrong = (one["mining"][kind] for kind in WRONG)
        rows.append(
            [one["detector"], one["sparsity"], f"`{one['method']}`", f"{tau_of(one):g}",
             f"`{changed}`" if changed else "", str(one["seed"]), f"{count:.1f}",
             f"{most}: {classes[most] / count:.0%}", f"{precision:.2f}",
             *(f"{share:.2f}" for share in wrong)]
        )  # fmt: skip
    if not rows:
        return []
    head = ("detector", "annotations", "method", "τ", "changed", "seed",
            "pseudo-labels per image", "most are of class", "precision")  # fmt: skip
    kinds = [kind.replace("_", " ") for kind in WRONG]
    words = (
        f"{RUNAWAY_COUNT} or more pseudo-labels an image over the last quarter of training, of "
        f"which less than {RUNAWAY_PRECISION:.0%} are right:"
    )
    return ["### Runs in which mining ran away", "", words, "", *table((*head, *kinds), rows), ""]


def again(repeats: Sequence[tuple[Result, Result]]) -> list[str]:
    """Test AP of runs that were made more than once."""
    rows = [
        [one["sparsity"], f"`{one['method']}`", str(one["seed"]),
         f"{one['test']['AP']:.1f}", f"{other['test']['AP']:.1f}"]
        for one, other in repeats
    ]  # fmt: skip
    return table(("annotations", "method", "seed", "test AP", "again"), rows)


def closed(
    cell: Mapping[int, float], original: Mapping[int, float], full: Mapping[int, float]
) -> str:
    """The share of the gap between `original` here and on `full` that a method closes.

    Its gain is the mean over the seeds that it shares with `original`.
    """
    both = cell.keys() & original.keys()
    if not (both and full):
        return "-"
    gain = statistics.mean(cell[seed] - original[seed] for seed in both)
    gap = statistics.mean(full.values()) - statistics.mean(original.values())
    return f"{gain / gap:.0%}" if gap > 0 else "-"


def thresholds(results: Sequence[Result], sparsity: str) -> list[str]:
    """AP and mining over the last quarter for every threshold and seed (the paper's Table 3)."""
    rows = []
    for tau, runs in sweep_of(results, sparsity).items():
        columns = [[_ap(one, "metrics"), _ap(one, "test"), *_mined(one)] for one in runs.values()]
        rows.append([f"{tau:g}", *(", ".join(values) for values in zip(*columns, strict=True))])
    return table(("τ", "val AP", "test AP", *MINED), rows)


def _ap(result: Result, split: str) -> str:
    return f"{result[split]['AP']:.1f}" if result["status"] == "finished" else "diverged"


RUNAWAY_COUNT, RUNAWAY_PRECISION = 1, 0.1
WRONG = ("duplicate", "wrong_class", "poor_localisation", "background")
MINED = ("pseudo-labels per image", "precision", "recall")


def _mined(result: Result) -> list[str]:
    """The columns :data:`MINED`, over the last quarter of training."""
    keys = ("pseudo_labels_per_image", "precision", "recall")
    values = [result["mining"][key] for key in keys]
    return ["-" if value is None else f"{value:.2f}" for value in values]


def seed_0(sweep: Mapping[float, Mapping[int, Result]]) -> dict[float, Result]:
    """Of a threshold sweep, the runs of seed 0."""
    return {tau: runs[0] for tau, runs in sweep.items()}


def over_time(results: Sequence[Result], sparsity: str) -> list[str]:
    """Precision / recall of what was mined between two validations, by threshold (seed 0)."""
    sweep = seed_0(sweep_of(results, sparsity))
    steps = sorted({row["step"] for one in sweep.values() for row in one["history"]})
    rows = []
    for tau, one in sweep.items():
        at = {row["step"]: row for row in one["history"]}
        cells = []
        for step in steps:
            row = at.get(step)
            pair = [None, None] if row is None else [row["precision"], row["recall"]]
            cells.append(" / ".join("-" if share is None else f"{share:.2f}" for share in pair))
        rows.append([f"{tau:g}", *cells])
    words = (
        "Precision / recall of what was mined up to a step, since the validation before it, seed 0:"
    )
    return [words, "", *table(("τ", *(f"step {step}" for step in steps)), rows)]


def published() -> list[str]:
    """The paper's AP on COCO, apart from ours."""
    lines = ["## The paper's AP on COCO val2017", ""]
    lines += ["Another data set, network and length: for the direction only.", ""]
    for name in ("table1", "table5"):
        layout = LAYOUTS[name]
        rows = [
            [layout.rows[row], *("-" if value is None else str(value) for value in values)]
            for row, values in layout.published.items()
        ]
        lines += [f"{layout.title}:", "", *table(("annotations", *layout.columns), rows), ""]
    return lines


def write(folder: Path, page: Path) -> None:
    """Write the page.

    Raises:
        DataError: there are no results.
    """
    studies = {sub.name: read(sub) for sub in sorted(folder.iterdir()) if sub.is_dir()}
    studies = {name: results for name, results in studies.items() if results}
    if not studies:
        raise DataError(f"{folder}: no results")
    notes = folder / "NOTES.md"
    lines = ["# Results", ""]
    lines += [
        f"Written by `python -m comining.study write {folder.name} {page.name}` from the files in "
        f"`{folder.name}/`. AP is that of the test split, which no choice was made by; ± is the "
        "sample standard deviation over seeds.",
        "",
    ]
    if notes.exists():
        lines += [notes.read_text(encoding="utf-8").rstrip(), ""]
    plots = folder / "plots"
    for name, everything in studies.items():
        repeats = read_repeats(folder / name)
        results, probes = set_probes_apart(everything)
        lines += study(name, results, probes, repeats, Path(folder.name) / plots.name)
        sweeps = {sparsity: seed_0(sweep_of(results, sparsity)) for sparsity in SPARSITIES}
        cells = {
            f"{sparsity}, {detector}": {
                method: list(cell.values())
                for (where, method), cell in cells_of(results, detector).items()
                if where == sparsity
            }
            for detector in ("retinanet", "fcos")
            for sparsity in SPARSITIES
        }
        draw(plots, name, cells, {k: sweep for k, sweep in sweeps.items() if len(sweep) > 1})
    lines += published()
    page.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")

"""The evidence: ``RESULTS.md`` out of committed ``result.json`` files.

``python -m comining.study collect RUN ... --to results/bccd`` copies results of finished runs,
without the paths of the machine; ``python -m comining.study write results RESULTS.md`` writes the
page and, into ``results/plots``, its plots (they need ``pip install -e ".[report]"``). Every figure
comes from these files; a cell that has not been run is shown as a dash.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from comining.errors import DataError
from comining.published import LAYOUTS
from comining.run_directory import write_json
from comining.study_plots import draw

Result = Mapping[str, Any]

METHODS = (
    "original", "augmented", "joint", "self_mining", "comining", "pseudo_label", "soft_sampling",
    "background_recalibration", "part_aware",
)  # fmt: skip
SPARSITIES = ("full", "easy", "hard", "extreme", "miss50")
REPEAT = "-repeat"
# Where nothing was tried on a sparse set of its own, its threshold is that of this one.
MAIN = "hard"


def collect(runs: Sequence[Path], folder: Path) -> int:
    """Copy the results of finished and diverged runs; how many there were.

    A run that was made a second time with another outcome is kept beside the first one.

    Raises:
        DataError: a result cannot be read.
    """
    count = 0
    for file in sorted(file for run in runs for file in run.glob("**/result.json")):
        try:
            result = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{file}: not a result ({error})") from error
        if result["status"] not in ("finished", "diverged"):
            continue
        for split in result.get("data", {}).values():
            split["annotations"] = Path(split["annotations"]).name  # the fingerprint identifies it
        name = "-".join(
            [result["detector"], result["sparsity"], result["method"], result["view"],
             result["variant"], f"seed{result['seed']}"]
        )  # fmt: skip
        write_json(_place(folder, name, result), result)
        count += 1
    return count


def _place(folder: Path, name: str, result: Result) -> Path:
    """Where a result belongs: with others of its cell and seed it is a repeat."""
    place, number = folder / f"{name}.json", 0
    while place.exists() and _read(place)["metrics"] != result["metrics"]:
        number += 1
        place = folder / f"{name}{REPEAT}{number}.json"
    return place


def _read(file: Path) -> Result:
    found: Result = json.loads(file.read_text(encoding="utf-8"))
    return found


def read(folder: Path) -> list[Result]:
    """The results of one study, without repeats."""
    files = (file for file in sorted(folder.glob("*.json")) if REPEAT not in file.name)
    return [_read(file) for file in files]


def read_repeats(folder: Path) -> list[tuple[Result, Result]]:
    """Runs that were made more than once: the first, and one of the others."""
    return [
        (_read(folder / f"{file.name.split(REPEAT)[0]}.json"), _read(file))
        for file in sorted(folder.glob(f"*{REPEAT}*.json"))
    ]


def tau_of(result: Result) -> float | None:
    """The score threshold of a run; None for methods that have none."""
    value = result["method_options"].get("score_threshold")
    return None if value is None else float(value)


def chosen_tau(results: Sequence[Result], sparsity: str) -> float | None:
    """The threshold with the best validation AP of co-mining (RetinaNet, seed 0) on a sparse set.

    Where fewer than two were tried there, it is that of :data:`MAIN`.
    """
    sweep = sweep_of(results, sparsity)
    if len(sweep) < 2 and sparsity != MAIN:
        return chosen_tau(results, MAIN)
    return max(sweep, key=lambda tau: sweep[tau]["metrics"]["AP"]) if sweep else None


def sweep_of(results: Sequence[Result], sparsity: str) -> dict[float, Result]:
    """The threshold sweep on a sparse set: tau to the run of seed 0."""
    found = {}
    for one in results:
        cell = (one["detector"], one["sparsity"], one["method"], one["view"], one["seed"])
        tau = tau_of(one)
        wanted = cell == ("retinanet", sparsity, "comining", "color", 0)
        if wanted and tau is not None and one["status"] == "finished":
            found[tau] = one
    return dict(sorted(found.items()))


def by_seed(
    results: Sequence[Result], detector: str, sparsity: str, method: str, view: str = "color"
) -> dict[int, float]:
    """Test AP of each seed of a cell, at the chosen threshold; NaN where it diverged."""
    cell = {}
    tau = chosen_tau(results, sparsity)
    for one in results:
        if (one["detector"], one["sparsity"], one["method"]) != (detector, sparsity, method):
            continue
        if one["view"] != view or tau_of(one) not in (None, tau):
            continue
        finished = one["status"] == "finished"
        cell[int(one["seed"])] = one["test"]["AP"] if finished else float("nan")
    return cell


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


Cells = dict[tuple[str, str], dict[int, float]]  # sparsity, method -> seed -> test AP


def cells_of(results: Sequence[Result], detector: str) -> Cells:
    """All cells of a detector that have been run."""
    cells = {
        (sparsity, method): by_seed(results, detector, sparsity, method)
        for sparsity in SPARSITIES
        for method in METHODS
    }
    return {key: cell for key, cell in cells.items() if cell}


def study(
    name: str, results: Sequence[Result], repeats: Sequence[tuple[Result, Result]], plots: Path
) -> list[str]:
    """The part of the page for one data set.

    Args:
        plots: its plots' folder, as the page names it.
    """
    lines = [f"## {name}", ""]
    everything = [*results, *(second for _, second in repeats)]
    hours = sum(one["wall_time_s"] for one in everything) / 3600
    first = results[0]
    packages = ", ".join(f"{k} {v}" for k, v in first["versions"].items())
    lines += [
        f"{len(everything)} runs of {first['max_steps']} steps, {hours:.1f} hours in all on "
        f"{first['hardware']} (the machine did other work, too); {packages}.",
        "",
    ]
    for detector in ("retinanet", "fcos"):
        cells = cells_of(results, detector)
        rows = []
        full = cells.get(("full", "original"), {})
        for (sparsity, method), cell in cells.items():
            original = cells.get((sparsity, "original"), {})
            joint = cells.get((sparsity, "joint"), {})
            rows.append(
                [
                    sparsity, f"`{method}`", spread(list(cell.values())),
                    paired(cell, original) if method != "original" else "",
                    paired(cell, joint) if method == "comining" else "",
                    closed(cell, original, full) if method != "original" else "",
                ]
            )  # fmt: skip
        if rows:
            head = ("annotations", "method", "test AP", "minus `original`, per seed",
                    "minus `joint`, per seed", "gap to `full` closed")  # fmt: skip
            lines += [f"### {detector}, test AP", "", *table(head, rows), ""]
    lines += [f"![test AP by method]({plots}/{name}-ap.svg)", ""]
    for sparsity in SPARSITIES:
        if len(sweep_of(results, sparsity)) < 2:
            continue
        lines += [
            f"### Score thresholds, `{sparsity}`",
            "",
            f"RetinaNet, co-mining, seed 0. τ = {chosen_tau(results, sparsity):g} has the best "
            "validation AP, and is that of every method that has a threshold:",
            "",
            *thresholds(results, sparsity),
            "",
            *over_time(results, sparsity),
            "",
            f"![precision and recall over training]({plots}/{name}-{sparsity}-mining.svg)",
            "",
        ]
    lines += views(results)
    if repeats:
        lines += [
            "### The same run a second time",
            "",
            "On another machine of the same kind, by a later version of the code, with the same "
            "seed: what rounding alone does in the end.",
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
    """The share of the gap between `original` here and on `full` that a method closes."""
    if not (cell and original and full):
        return "-"
    mean: Callable[[Mapping[int, float]], float] = lambda one: statistics.mean(one.values())  # noqa: E731
    gap = mean(full) - mean(original)
    return f"{(mean(cell) - mean(original)) / gap:.0%}" if gap > 0 else "-"


def thresholds(results: Sequence[Result], sparsity: str) -> list[str]:
    """AP and mining over the last quarter for every threshold (the paper's Table 3)."""
    rows = []
    for tau, one in sweep_of(results, sparsity).items():
        mining = one["mining"]
        shares = [mining[key] for key in ("precision", "recall")]
        rows.append(
            [f"{tau:g}", f"{one['metrics']['AP']:.1f}", f"{one['test']['AP']:.1f}",
             f"{mining['pseudo_labels_per_image']:.2f}",
             *("-" if share is None else f"{share:.2f}" for share in shares)]
        )  # fmt: skip
    head = ("τ", "val AP", "test AP", "pseudo-labels per image", "precision", "recall")
    return table(head, rows)


def over_time(results: Sequence[Result], sparsity: str) -> list[str]:
    """Precision / recall of what was mined between two validations, for every threshold."""
    sweep = sweep_of(results, sparsity)
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
    words = "Precision / recall of what was mined up to a step, since the validation before it:"
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
    for name, results in studies.items():
        repeats = read_repeats(folder / name)
        lines += study(name, results, repeats, Path(folder.name) / plots.name)
        sweeps = {sparsity: sweep_of(results, sparsity) for sparsity in SPARSITIES}
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


def main(given: Sequence[str] | None = None) -> None:
    """The two commands."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    copying = commands.add_parser("collect", help="copy results of runs")
    copying.add_argument("runs", nargs="+", type=Path)
    copying.add_argument("--to", required=True, type=Path)
    writing = commands.add_parser("write", help="write the page")
    writing.add_argument("folder", type=Path)
    writing.add_argument("page", type=Path)
    chosen = parser.parse_args(given)
    if chosen.command == "collect":
        print(f"{collect(chosen.runs, chosen.to)} results in {chosen.to}")
    else:
        write(chosen.folder, chosen.page)
        print(f"written: {chosen.page}")


if __name__ == "__main__":
    main()

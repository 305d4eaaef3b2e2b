"""What a training step of each method costs beside one of ``original``.

python -m benchmarks.methods [--device cuda] [--detector fcos] [--methods annotation_rate,comining]

All methods train the same weights on the same images by a learning rate of zero. A step is what a
run does for one: views, forward, losses, backward, optimizer, and what the method does after it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import cast

from benchmarks import measure
from benchmarks.setting import Setting, part
from benchmarks.step import add_layout, add_setting, with_defaults
from comining.data.annotations import Categories
from comining.data.datamodule import DetectionData
from comining.methods.method import Method, RunInfo

BASE = "original"
METHODS = (
    "comining", "mean_teacher", "soft_sampling", "background_recalibration", "costudent",
    "calibrated_teacher", "annotation_rate", "comining_rate",
)  # fmt: skip
# With an estimate it would need data, and it shall mine.
OPTIONS = {"comining_rate": ("method.rate=0.25", "method.mine_from=0")}


def arguments(given: list[str] | None) -> argparse.Namespace:
    """Options; what is not given depends on the device."""
    options = measure.parser("A training step of each method.")
    add_setting(options)
    add_layout(options)
    options.add_argument("--methods", default=",".join(METHODS), help="files of conf/method")
    return with_defaults(options.parse_args(given))


class Step:
    """A training step of a method."""

    def __init__(self, setting: Setting, name: str):
        self.setting = setting
        self.method: Method = part(f"method={name}", "tau=0.6", *OPTIONS.get(name, ()))
        run = RunInfo(Path(), setting.device, max_steps=10**9, images_per_step=1)
        self.method.to(setting.device)
        self.method.prepare(setting.detector, _data(setting.classes), run)

    def __call__(self) -> None:
        setting, method = self.setting, self.method
        step = 10**6
        originals = setting.views["original"]
        views = {"original": originals}
        if "augmented" in {*method.views, *method.mined_views}:
            views["augmented"] = setting.view(originals, setting.positions, 0)
        views |= {n: list(v) for n, v in method.own_views(originals, setting.batch).items()}
        with setting.autocast():
            loss = method(setting.detector, views, setting.batch, step).total
        setting.update(setting.detector, loss)
        method.after_step(setting.detector, step + 1)


def _data(classes: int) -> DetectionData:
    """Of the data a method asks for no more than the classes here."""
    nothing_erased = part("sparsity=full", key="sparsity")
    data: DetectionData = part(key="data", sparsity=nothing_erased, seed=0)
    names = tuple(f"class {number}" for number in range(classes))
    data.use_categories(Categories(tuple(range(classes)), names), "the benchmark")
    return data


def main(given: list[str] | None = None) -> None:
    """Compare the methods."""
    chosen = arguments(given)
    setting = Setting(chosen)
    print(measure.machine(setting.device))
    print(
        f"{chosen.detector}, {chosen.backbone}, {chosen.height}x{chosen.width}, "
        f"K={chosen.classes}, {chosen.batch} images, {chosen.precision}"
    )
    names = [name for name in cast(str, chosen.methods).split(",") if name]
    steps = {name: Step(setting, name) for name in dict.fromkeys([BASE, *names])}
    taken = measure.interleave(
        steps,
        setting.device,
        rounds=chosen.rounds,
        seconds=chosen.seconds,
        clock=chosen.clock,
        warmup=1,
    )
    measure.report_times(taken, {})
    ratios = {f"{name}_over_{BASE}": measure.ratio(taken[name], taken[BASE]) for name in names}
    measure.report_ratios(ratios, chosen.json)


if __name__ == "__main__":
    main()

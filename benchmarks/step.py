"""One training step: with mining, without, by stock torchvision, and by the naive way of mining.

python -m benchmarks.step [--device cuda] [--precision bf16] [--detector fcos] [--json FILE]

All variants train the same weights on the same images of the same size; nothing is resized in any
of them, images lie on the device, and the learning rate is zero, so that every round does the same
work. The variants are

* ``comining``: our step with ``method=comining``;
* ``joint``: the same without mining;
* ``torchvision``: ``model(images, targets)`` of the stock model on both views;
* ``naive``: the stock model in evaluation mode for the pseudo-labels, a loop that drops what is
  annotated, then a forward for each view and one backward.

Mining alone is compared with the stock ``postprocess_detections`` and that loop, for one-stage
detectors.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import measure
from benchmarks.setting import Setting, Stock, as_stock, coco_like, drop_loop, noise
from comining.detectors.dense import DenseDetector
from comining.methods.comining import CoMining
from comining.ops import rank_in_group
from comining.structures import Boxes, DensePredictions

DETECTORS = ("retinanet", "fcos", "faster_rcnn")
# What an H200 needs for the arithmetic of a pair of views at R50, 800 x 1344, K = 80, at the 790
# TFLOP/s that its tensor cores were measured to do in bf16: 2.84 and 2.42 TFLOP.
FLOOR_MS = {"retinanet": 3.6, "fcos": 3.1}
SCHEDULE_STEPS, SCHEDULE_BATCH = 90_000, 16


def arguments(given: list[str] | None) -> argparse.Namespace:
    """Options; what is not given depends on the device."""
    options = measure.parser("One training step, with and without mining.")
    add_setting(options)
    add_layout(options)
    options.add_argument("--mined-images", type=int, default=32, help="in mining alone")
    return with_defaults(options.parse_args(given))


def add_setting(options: argparse.ArgumentParser) -> None:
    """Options of the network and of the images."""
    options.add_argument("--detector", default="retinanet", choices=DETECTORS)
    options.add_argument("--backbone", help="a file of conf/backbone")
    options.add_argument("--precision", choices=("fp32", "bf16"))
    options.add_argument("--batch", type=int, help="pairs of views")
    options.add_argument("--height", type=int)
    options.add_argument("--width", type=int)
    options.add_argument("--classes", type=int, default=80)
    options.add_argument("--candidates", type=int, default=8, help="an image and view")
    options.add_argument("--compile", action="store_true", help="detector.compile=true")


def add_layout(options: argparse.ArgumentParser) -> None:
    """The memory layout, for benchmarks that do not compare the two."""
    options.add_argument("--channels-last", action="store_true", help="detector.channels_last=true")


def with_defaults(chosen: argparse.Namespace) -> argparse.Namespace:
    """Fill in what was not given."""
    cuda = chosen.device.startswith("cuda")
    defaults: dict[str, Any] = {
        "backbone": "resnet50" if cuda else "resnet18",
        "precision": "bf16" if cuda else "fp32",
        "batch": 16 if cuda else 2,
        "height": 800 if cuda else 320,
        "width": 1344 if cuda else 320,
        "seconds": 120.0 if cuda else 300.0,
    }
    if chosen.quick:
        defaults |= {"backbone": "slim", "batch": 2, "height": 64, "width": 96, "seconds": 1.0}
        chosen.classes, chosen.mined_images, chosen.rounds = 3, 4, 2
    for name, value in defaults.items():
        if getattr(chosen, name) is None:
            setattr(chosen, name, value)
    return chosen


# -- the comparisons ---------------------------------------------------------------------


def compare_steps(
    setting: Setting, chosen: argparse.Namespace
) -> tuple[dict[str, measure.Ratio], dict[str, list[float]]]:
    """Ratios of the co-mining step to the other three, and the times."""
    steps: dict[str, Callable[[], None]] = {
        "comining": functools.partial(setting.ours, setting.methods["comining"]),
        "joint": functools.partial(setting.ours, setting.methods["joint"]),
        "torchvision": setting.torchvision,
        "naive": setting.naive,
    }
    peaks = {}
    for name, step in list(steps.items()):
        try:
            step()  # momentum is there from the first step on, and belongs to no peak
            peaks[name] = measure.peak_memory(step, setting.device)
        except torch.OutOfMemoryError:
            print(f"  {name}: out of memory")
            setting.stock.zero_grad(set_to_none=True)
            del steps[name]
    taken = measure.interleave(
        steps,
        setting.device,
        rounds=chosen.rounds,
        seconds=chosen.seconds,
        clock=chosen.clock,
        warmup=0,
    )
    measure.report_times(taken, peaks)
    ratios = {
        f"mining_over_{other}": measure.ratio(taken["comining"], taken[other])
        for other in ("joint", "torchvision", "naive")
        if other in taken
    }
    if "torchvision" in peaks:
        share = peaks["comining"] / peaks["torchvision"]
        print(f"  peak memory of comining / torchvision: {share:.2f}")
    return ratios, taken


@torch.no_grad()
def compare_mining(
    setting: Setting, detector: DenseDetector, chosen: argparse.Namespace
) -> dict[str, measure.Ratio]:
    """Mining alone on the outputs of the network for a number of images."""
    count = chosen.mined_images
    method: CoMining = setting.methods["comining"]
    objects = coco_like(setting.size, setting.classes, count).to(setting.device)
    predictions = confident_of(objects, outputs(setting, detector, count), detector)
    # Every other one of an image is erased.
    truth = objects[rank_in_group(objects.image) % 2 == 0]
    stock_truth = as_stock(truth)
    levels = predictions.anchors_per_level
    heads = {
        "cls_logits": list(torch.split(predictions.logits, levels, dim=1)),
        "bbox_regression": list(torch.split(predictions.deltas, levels, dim=1)),
    }
    for output, name in detector.auxiliary_outputs.items():
        auxiliary = predictions.auxiliary[name].unsqueeze(-1)
        heads[output] = list(torch.split(auxiliary, levels, dim=1))
    anchors = [list(torch.split(predictions.anchors, levels))] * count

    def theirs() -> list[Stock]:
        found = setting.stock.postprocess_detections(heads, anchors, predictions.image_sizes)
        return [
            drop_loop(one, annotated, method.miner.overlap_threshold)
            for one, annotated in zip(found, stock_truth, strict=True)
        ]

    def ours() -> Boxes:
        return method.miner(detector, predictions, truth)[0]

    pseudo_labels, expected = ours(), theirs()
    number = len(pseudo_labels) / count
    confident = len(detector.candidates(predictions, setting.tau)) / count
    print(f"Mining alone, {count} images, {confident:.0f} scores above {setting.tau} in each:")
    if not predictions.auxiliary:
        same = all(
            torch.equal(one.labels, other["labels"]) and torch.equal(one.boxes, other["boxes"])
            for one, other in zip(pseudo_labels.split(), expected, strict=True)
        )
        if not same:
            raise RuntimeError("mining does not find the boxes that torchvision finds")
        print(f"  {number:.1f} pseudo-labels each, the same as torchvision finds")
    else:
        # torchvision's FCOS applies its threshold to sqrt(class x centerness).
        print(f"  {number:.1f} pseudo-labels each")
    variants: dict[str, Callable[[], object]] = {"cogeneration": ours, "postprocess, loop": theirs}
    peaks = {name: measure.peak_memory(run, setting.device) for name, run in variants.items()}
    taken = measure.interleave(
        variants,
        setting.device,
        rounds=chosen.rounds,
        seconds=chosen.seconds / 5,
        clock=chosen.clock,
    )
    measure.report_times(taken, peaks)
    one, other = taken.values()
    return {"cogeneration_over_torchvision": measure.ratio(one, other)}


def outputs(setting: Setting, detector: DenseDetector, count: int) -> DensePredictions:
    """What the network says of ``count`` images, one after the other."""
    images = noise(count, setting.size, setting.device)
    parts = [detector.predict([image]) for image in images]
    return dataclasses.replace(
        parts[0],
        logits=torch.cat([part.logits for part in parts]),
        deltas=torch.cat([part.deltas for part in parts]),
        image_sizes=[setting.size] * count,
        auxiliary={
            name: torch.cat([part.auxiliary[name] for part in parts])
            for name in detector.auxiliary_outputs.values()
        },
    )


def confident_of(
    objects: Boxes, predictions: DensePredictions, detector: DenseDetector
) -> DensePredictions:
    """A trained network's say: all anchors that match an object claim it, and no others do.

    None of the boxes overhangs its image: torchvision cuts them at the border before NMS,
    Algorithm 1 does not.
    """
    generator = torch.Generator().manual_seed(0)
    logits = predictions.logits.clamp(max=0)
    assignment = detector.assign(predictions, objects)
    image, anchor = assignment.positive.nonzero(as_tuple=True)
    sure = (torch.randn(len(image), generator=generator) * 0.7 + 1).to(logits.device)
    logits[image, anchor, assignment.labels[image, anchor]] = sure
    limit = logits.new_tensor(predictions.image_sizes[0][::-1])
    for rows, deltas in zip(logits, predictions.deltas):
        boxes = detector.decode_boxes(deltas, predictions.anchors)
        inside = (boxes[:, :2] >= 0).all(dim=1) & (boxes[:, 2:] <= limit).all(dim=1)
        rows.masked_fill_(~inside.unsqueeze(-1), -9.0)
    return dataclasses.replace(predictions, logits=logits)


def main(given: list[str] | None = None) -> None:
    """Run both comparisons."""
    chosen = arguments(given)
    setting = Setting(chosen)
    print(measure.machine(setting.device))
    print(
        f"{chosen.detector}, {chosen.backbone}, {chosen.height}x{chosen.width}, "
        f"K={chosen.classes}, {chosen.batch} pairs of views, {chosen.precision}, "
        f"compile={chosen.compile}, channels_last={chosen.channels_last}, "
        f"{setting.pseudo_labels():.1f} pseudo-labels an image and view"
    )
    ratios, taken = compare_steps(setting, chosen)
    second = measure.interleave(
        {"view": lambda: setting.view(setting.views["original"], setting.positions, 0)},
        setting.device,
        rounds=5,
        seconds=10,
        clock=chosen.clock,
    )["view"]
    step = min(taken["comining"])
    print(f"  the second views: {min(second) * 1e3:.1f} ms a step, in none of these times")
    if setting.device.type == "cuda":
        rate = chosen.batch / (step + min(second))
        print(f"  {rate:.1f} pairs of views a second, second views included")
        if (chosen.backbone, *setting.size, chosen.classes) == ("resnet50", 800, 1344, 80):
            if chosen.detector in FLOOR_MS:
                floor = 1000 / FLOOR_MS[chosen.detector]
                print(f"  {rate / floor:.0%} of the arithmetic floor of an H200, {floor:.0f}/s")
            hours = SCHEDULE_STEPS * SCHEDULE_BATCH / rate / 3600
            print(f"  {hours:.1f} hours for {SCHEDULE_STEPS} steps of {SCHEDULE_BATCH} pairs")
    if isinstance(setting.detector, DenseDetector):
        ratios |= compare_mining(setting, setting.detector, chosen)
    measure.report_ratios(ratios, chosen.json)


if __name__ == "__main__":
    main()

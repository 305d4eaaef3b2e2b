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

Mining alone is compared with the stock ``postprocess_detections`` and that loop.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.ops import FrozenBatchNorm2d, box_iou

from benchmarks import measure
from comining.checkpoint import build_detector
from comining.config import CONFIG_FOLDER, instantiate
from comining.data.views import SecondView
from comining.detectors.base import DenseDetector
from comining.methods.base import Method
from comining.methods.comining import CoMining
from comining.structures import Batch, DensePredictions, Detections, Targets

# What an H200 needs for the arithmetic of a pair of views at R50, 800 x 1344, K = 80, at the 790
# TFLOP/s that its tensor cores were measured to do in bf16: 2.84 and 2.42 TFLOP.
FLOOR_MS = {"retinanet": 3.6, "fcos": 3.1}
SCHEDULE_STEPS, SCHEDULE_BATCH = 90_000, 16

Stock = dict[str, Tensor]  # torchvision's form of targets and of detections


def arguments(given: list[str] | None) -> argparse.Namespace:
    """Options; what is not given depends on the device."""
    options = measure.parser("One training step, with and without mining.")
    options.add_argument("--detector", default="retinanet", choices=("retinanet", "fcos"))
    options.add_argument("--backbone", help="a file of conf/backbone")
    options.add_argument("--precision", choices=("fp32", "bf16"))
    options.add_argument("--batch", type=int, help="pairs of views")
    options.add_argument("--height", type=int)
    options.add_argument("--width", type=int)
    options.add_argument("--classes", type=int, default=80)
    options.add_argument("--mined-images", type=int, default=32, help="in mining alone")
    options.add_argument("--candidates", type=int, default=8, help="an image and view")
    options.add_argument("--compile", action="store_true", help="detector.compile=true")
    options.add_argument("--channels-last", action="store_true", help="detector.channels_last=true")
    chosen = options.parse_args(given)
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


class Setting:
    """Detector, methods, stock model and data of a comparison."""

    def __init__(self, chosen: argparse.Namespace):
        torch.manual_seed(0)
        self.device = torch.device(chosen.device)
        self.bf16 = chosen.precision == "bf16"
        self.size = (chosen.height, chosen.width)
        self.classes = chosen.classes
        overrides = [
            f"detector={chosen.detector}",
            f"backbone={chosen.backbone}",
            f"detector.compile={chosen.compile}",
            f"detector.channels_last={chosen.channels_last}",
            "tau=0.6",
            f"data.min_size={min(self.size)}",
            f"data.max_size={max(self.size)}",
        ]
        self.detector = build_detector(configuration(*overrides), self.classes, pretrained=False)
        self.detector.to(self.device).train()
        images = noise(2 * chosen.batch, self.size, self.device)
        with torch.compiler.set_stance("force_eager"):  # nothing of the preparation is compiled
            settle_norms(self.detector, images[:2])
        self.methods: dict[str, Any] = {
            name: part(f"method={name}", *overrides) for name in ("joint", "comining")
        }
        self.tau = self.methods["comining"].score_threshold
        with torch.compiler.set_stance("force_eager"):
            make_confident(self.detector, images, self.tau, chosen.candidates)
        self.stock = stock_copy(self.detector, self.tau)

        count = chosen.batch
        self.positions = list(range(count))
        self.view: SecondView = part("view=color", key="view")
        truth = [to(coco_like(self.size, self.classes, n), self.device) for n in range(count)]
        self.views = {"original": images[:count], "augmented": images[count:]}
        nothing = [Targets(t.boxes[:0], t.labels[:0]) for t in truth]
        none = [Detections(t.boxes[:0], t.labels[:0], t.boxes[:0, 0]) for t in truth]
        self.batch = Batch(images[:count], truth, nothing, none, self.positions, self.positions)
        self.stock_images = {
            name: [image / 255 for image in group] for name, group in self.views.items()
        }
        self.stock_targets = [as_stock(one) for one in truth]
        self.optimizers = {
            model: torch.optim.SGD(
                [p for p in model.parameters() if p.requires_grad],
                lr=0.0,
                momentum=0.9,
                weight_decay=1e-4,
            )
            for model in (self.detector, self.stock)
        }

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """As the trainer does it for ``precision=bf16-mixed``."""
        if self.bf16:
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def update(self, model: nn.Module, loss: Tensor) -> None:
        """Backward and optimizer."""
        loss.backward()
        self.optimizers[model].step()
        self.optimizers[model].zero_grad(set_to_none=True)

    def ours(self, method: Method) -> None:
        """A step of the application."""
        with self.autocast():
            loss = method(self.detector, self.views, self.batch, step=10**9).total
        self.update(self.detector, loss)

    def torchvision(self) -> None:
        """A step of the stock model on both views."""
        images = [image for group in self.stock_images.values() for image in group]
        with self.autocast():
            losses = self.stock(images, [*self.stock_targets] * 2)
        self.update(self.stock, sum(losses.values()))

    def naive(self) -> None:
        """Evaluate for pseudo-labels, then train on each view by itself."""
        images = [image for group in self.stock_images.values() for image in group]
        with self.autocast():
            self.stock.eval()
            with torch.no_grad():
                found = self.stock(images)
            self.stock.train()
            count = len(self.stock_targets)
            views = list(self.stock_images.values())
            losses = []
            # Each view is trained by what the other one found.
            for group, mined in ((views[0], found[count:]), (views[1], found[:count])):
                kept = [
                    drop_loop(one, target, self.methods["comining"].overlap_threshold)
                    for one, target in zip(mined, self.stock_targets, strict=True)
                ]
                merged = [
                    {key: torch.cat([target[key], one[key]]) for key in ("boxes", "labels")}
                    for target, one in zip(self.stock_targets, kept, strict=True)
                ]
                losses += self.stock(group, merged).values()
        self.update(self.stock, torch.stack(losses).sum())

    def pseudo_labels(self) -> float:
        """How many an image and view there are."""
        with self.autocast():
            result = self.methods["comining"](self.detector, self.views, self.batch, step=10**9)
        counts = [len(one) for view in result.mined.values() for one in view]
        return sum(counts) / len(counts)


# -- the parts of a setting --------------------------------------------------------------


def configuration(*overrides: str) -> dict[str, Any]:
    """Detector and backbone of the application's own configuration."""
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        cfg = compose("train", overrides=list(overrides))
    return {k: OmegaConf.to_container(cfg[k], resolve=True) for k in ("backbone", "detector")}


def part(*overrides: str, key: str = "method") -> Any:
    """Another object of the configuration."""
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        cfg = compose("train", overrides=list(overrides))
    return instantiate(cfg[key], key)


def noise(count: int, size: tuple[int, int], device: torch.device) -> list[Tensor]:
    """Pictures of nothing [3, H, W] uint8: the arithmetic does not look at them."""
    generator = torch.Generator().manual_seed(0)
    rough = torch.rand(count, 3, 12, 12, generator=generator)
    smooth = nn.functional.interpolate(rough, size, mode="bilinear")
    grain = torch.rand(count, 3, *size, generator=generator) * 0.2
    return list(((smooth * 0.8 + grain) * 255).to(torch.uint8).to(device))


def coco_like(size: tuple[int, int], classes: int, seed: int) -> Targets:
    """About as many boxes, and as large, as the hard set leaves of an image of COCO."""
    generator = torch.Generator().manual_seed(seed)
    count = 1 + int(torch.poisson(torch.tensor(2.7), generator=generator))
    height, width = size
    scale = torch.tensor([width, height], dtype=torch.float32)
    # Sides of boxes in COCO spread evenly over the logarithm, from 3 % of the image to most of it.
    side = scale * 0.03 ** torch.rand(count, 2, generator=generator) * 0.9
    corner = torch.rand(count, 2, generator=generator) * (scale - side)
    labels = torch.randint(classes, (count,), generator=generator)
    return Targets(torch.cat([corner, corner + side], dim=1), labels)


def to(targets: Targets, device: torch.device) -> Targets:
    """The same on a device."""
    return Targets(targets.boxes.to(device), targets.labels.to(device))


@torch.no_grad()
def settle_norms(detector: DenseDetector, images: list[Tensor]) -> None:
    """Give frozen batch norms the statistics of these images, as pretrained ones have.

    Without, the activations of an untrained ResNet grow from block to block.
    """

    def settle(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        features = inputs[0].float()
        module.running_mean.copy_(features.mean(dim=(0, 2, 3)))  # type: ignore[operator]
        module.running_var.copy_(features.var(dim=(0, 2, 3)))  # type: ignore[operator]

    hooks = [
        module.register_forward_pre_hook(settle)
        for module in detector.modules()
        if isinstance(module, FrozenBatchNorm2d)
    ]
    detector.predict(images)
    for hook in hooks:
        hook.remove()


@torch.no_grad()
def make_confident(
    detector: DenseDetector, images: list[Tensor], threshold: float, candidates: int
) -> None:
    """Change the last layer so that ``candidates`` class scores of an image pass the threshold.

    The others keep the prior of 1 %, as in a network on its way.
    """
    layer = detector.net.head.classification_head.cls_logits
    prior, level = layer.bias[0].item(), torch.tensor(threshold).logit().item()
    layer.bias.zero_()
    best = [
        detector.predict([image]).logits.flatten().topk(candidates).values[-1] for image in images
    ]
    scale = (level - prior) / torch.stack(best).median()
    layer.weight.mul_(scale)
    layer.bias.fill_(prior)
    if not isinstance(detector.net, RetinaNet):
        # Distances of an untrained FCOS are zero: give its boxes an extent, in strides.
        detector.net.head.regression_head.bbox_reg.bias.fill_(2.0)


def stock_copy(detector: DenseDetector, threshold: float) -> Any:
    """torchvision's own model with the same weights, nothing of ours left in it."""
    net = copy.deepcopy(detector.net).to(memory_format=torch.contiguous_format)
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, FrozenBatchNorm2d):
                stock = FrozenBatchNorm2d(len(child.weight), child.eps).to(child.weight.device)
                stock.load_state_dict(child.state_dict())
                setattr(module, name, stock)
    if isinstance(net, FCOS):
        for module in net.head.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False  # as FCOSHead builds it
    net.score_thresh = threshold
    net.transform._skip_resize = True
    return net


def as_stock(one: Targets | Detections) -> Stock:
    """torchvision's form of boxes."""
    return {"boxes": one.boxes, "labels": one.labels}


def drop_loop(found: Stock, annotated: Stock, overlap_threshold: float) -> Stock:
    """Step 3 for one image, the plain way."""
    overlap = box_iou(found["boxes"], annotated["boxes"])
    same = found["labels"][:, None] == annotated["labels"]
    keep = ~((overlap > overlap_threshold) & same).any(dim=1)
    return {key: value[keep] for key, value in found.items()}


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
def compare_mining(setting: Setting, chosen: argparse.Namespace) -> dict[str, measure.Ratio]:
    """Mining alone on the outputs of the network for a number of images."""
    count = chosen.mined_images
    method: CoMining = setting.methods["comining"]
    objects = [
        to(coco_like(setting.size, setting.classes, n), setting.device) for n in range(count)
    ]
    predictions = confident_of(objects, outputs(setting, count), setting.detector)
    truth = [Targets(one.boxes[::2], one.labels[::2]) for one in objects]  # every other is erased
    stock_truth = [as_stock(one) for one in truth]
    levels = predictions.anchors_per_level
    heads = {
        "cls_logits": list(predictions.logits.split(levels, dim=1)),
        "bbox_regression": list(predictions.deltas.split(levels, dim=1)),
    }
    if predictions.centerness is not None:
        heads["bbox_ctrness"] = list(predictions.centerness.unsqueeze(-1).split(levels, dim=1))
    anchors = [list(predictions.anchors.split(levels))] * count

    def theirs() -> list[Stock]:
        found = setting.stock.postprocess_detections(heads, anchors, predictions.image_sizes)
        return [
            drop_loop(one, annotated, method.overlap_threshold)
            for one, annotated in zip(found, stock_truth, strict=True)
        ]

    def ours() -> list[Detections]:
        return method.cogenerate(setting.detector, predictions, truth)[0]

    found, expected = ours(), theirs()
    number = sum(map(len, found)) / count
    passed = len(setting.detector.decode(predictions, setting.tau)) / count
    print(f"Mining alone, {count} images, {passed:.0f} scores above {setting.tau} in each:")
    if predictions.centerness is None:
        same = all(
            torch.equal(one.labels, other["labels"]) and torch.equal(one.boxes, other["boxes"])
            for one, other in zip(found, expected, strict=True)
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


def outputs(setting: Setting, count: int) -> DensePredictions:
    """What the network says of ``count`` images, one after the other."""
    images = noise(count, setting.size, setting.device)
    parts = [setting.detector.predict([image]) for image in images]
    centerness = [part.centerness for part in parts if part.centerness is not None]
    return dataclasses.replace(
        parts[0],
        logits=torch.cat([part.logits for part in parts]),
        deltas=torch.cat([part.deltas for part in parts]),
        image_sizes=[setting.size] * count,
        centerness=torch.cat(centerness) if centerness else None,
    )


def confident_of(
    objects: list[Targets], predictions: DensePredictions, detector: DenseDetector
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
        floor = 1000 / FLOOR_MS[chosen.detector]
        print(f"  {rate:.1f} pairs of views a second, second views included")
        if (chosen.backbone, *setting.size, chosen.classes) == ("resnet50", 800, 1344, 80):
            hours = SCHEDULE_STEPS * SCHEDULE_BATCH / rate / 3600
            print(f"  {rate / floor:.0%} of the arithmetic floor of an H200, {floor:.0f} a second")
            print(f"  {hours:.1f} hours for {SCHEDULE_STEPS} steps of {SCHEDULE_BATCH} pairs")
    ratios |= compare_mining(setting, chosen)
    measure.report_ratios(ratios, chosen.json)


if __name__ == "__main__":
    main()

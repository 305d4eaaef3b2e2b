"""What the benchmark of a step compares: a detector of ours and the stock one, on the same data."""

from __future__ import annotations

import argparse
import contextlib
import copy
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.ops import FrozenBatchNorm2d, box_iou

from comining.config import CONFIG_FOLDER, instantiate
from comining.data.views import SecondView
from comining.detectors.dense import DenseDetector
from comining.detectors.faster_rcnn import FasterRCNNDetector
from comining.detectors.torchvision_detector import TorchvisionDetector
from comining.methods.method import Method
from comining.runs.checkpoint import build_detector
from comining.structures import Batch, Boxes, Images, Knowledge

Stock = dict[str, Tensor]  # torchvision's form of targets and of detections


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
        detector = build_detector(configuration(*overrides), self.classes, pretrained=False)
        if not isinstance(detector, DenseDetector | FasterRCNNDetector):
            raise TypeError(f"there are no steps of detector={chosen.detector}")
        self.detector = detector
        self.detector.to(self.device).train()
        images = noise(2 * chosen.batch, self.size, self.device)
        with torch.compiler.set_stance("force_eager"):  # nothing of the preparation is compiled
            settle_norms(self.detector, images[:2])
        self.methods: dict[str, Any] = {
            name: part(f"method={name}", *overrides) for name in ("joint", "comining")
        }
        self.tau = self.methods["comining"].score_threshold
        with torch.compiler.set_stance("force_eager"):
            if isinstance(detector, DenseDetector):
                make_confident(detector, images, self.tau, chosen.candidates)
            else:
                make_roi_head_confident(detector, images, self.tau, chosen.candidates)
        self.stock = stock_copy(self.detector, self.tau)

        count = chosen.batch
        self.positions = list(range(count))
        self.view: SecondView = part("view=color", key="view")
        truth = coco_like(self.size, self.classes, count).to(self.device)
        self.views = {"original": images[:count], "augmented": images[count:]}
        self.batch = Batch(
            images=Images.of(images[:count]),
            annotated=truth,
            erased=Boxes.empty(count, self.device),
            held_back=Boxes.empty(count, self.device),
            knowledge=Knowledge.nothing(count, self.classes, self.device),
            judged=torch.ones(count, self.classes, dtype=torch.bool, device=self.device),
            pseudo_labels=Boxes.empty(count, self.device, scores=True),
            image_ids=self.positions,
            positions=self.positions,
        )
        self.stock_images = {
            name: [image / 255 for image in group] for name, group in self.views.items()
        }
        # Of a two-stage detector the label 0 is background.
        self.first_label = int(isinstance(self.stock, FasterRCNN))
        self.stock_targets = as_stock(truth, self.first_label)
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
        torch.autograd.backward(loss)
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
                    drop_loop(one, target, self.methods["comining"].miner.overlap_threshold)
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
        views: list[Boxes] = list(result.pseudo_labels.values())
        return sum(map(len, views)) / sum(view.num_images for view in views)


# -- the parts of a setting --------------------------------------------------------------


def configuration(*overrides: str) -> dict[str, Any]:
    """Detector and backbone of the application's own configuration."""
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        cfg = compose("train", overrides=list(overrides))
    return {k: OmegaConf.to_container(cfg[k], resolve=True) for k in ("backbone", "detector")}


def part(*overrides: str, key: str = "method", **given: Any) -> Any:
    """Another object of the configuration."""
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        cfg = compose("train", overrides=list(overrides))
    return instantiate(cfg[key], key, **given)


def noise(count: int, size: tuple[int, int], device: torch.device) -> list[Tensor]:
    """Pictures of nothing [3, H, W] uint8: the arithmetic does not look at them."""
    generator = torch.Generator().manual_seed(0)
    rough = torch.rand(count, 3, 12, 12, generator=generator)
    smooth = nn.functional.interpolate(rough, size, mode="bilinear")
    grain = torch.rand(count, 3, *size, generator=generator) * 0.2
    return list(((smooth * 0.8 + grain) * 255).to(torch.uint8).to(device))


def coco_like(size: tuple[int, int], classes: int, images: int) -> Boxes:
    """About as many boxes, and as large, as the hard set leaves of an image of COCO."""
    height, width = size
    scale = torch.tensor([width, height], dtype=torch.float32)
    corners, labels = [], []
    for seed in range(images):
        generator = torch.Generator().manual_seed(seed)
        count = 1 + int(torch.poisson(torch.tensor(2.7), generator=generator))
        # Sides of boxes in COCO spread evenly over the logarithm, from 3 % of the image to most
        # of it.
        side = scale * 0.03 ** torch.rand(count, 2, generator=generator) * 0.9
        corner = torch.rand(count, 2, generator=generator) * (scale - side)
        corners.append(torch.cat([corner, corner + side], dim=1))
        labels.append(torch.randint(classes, (count,), generator=generator))
    return Boxes.of_images(corners, labels)


@torch.no_grad()
def settle_norms(detector: TorchvisionDetector, images: list[Tensor]) -> None:
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


@torch.no_grad()
def make_roi_head_confident(
    detector: FasterRCNNDetector, images: list[Tensor], threshold: float, candidates: int
) -> None:
    """Change the RoI head so that ``candidates`` proposals of an image have a class that passes.

    Logits are spread so far that the best class of a proposal leaves nothing to the others, and
    background competes with it.
    """
    layer = detector.net.roi_heads.box_predictor.cls_score
    layer.bias.zero_()
    logits, most = [], detector.candidate_proposals
    for image in images:
        predictions = detector.predict([image])
        proposals = [boxes[:most] for boxes in predictions.proposals]
        logits.append(detector.classify(predictions, proposals)[0][:, 1:])
    scale = 20 / torch.cat(logits).std()
    layer.weight.mul_(scale)
    layer.weight[0] = 0
    best = [(scale * one).amax(dim=1).topk(candidates).values[-1] for one in logits]
    layer.bias[0] = torch.stack(best).median() - torch.tensor(threshold).logit()


def stock_copy(detector: TorchvisionDetector, threshold: float) -> Any:
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
    (net.roi_heads if isinstance(net, FasterRCNN) else net).score_thresh = threshold
    net.transform._skip_resize = True
    return net


def as_stock(boxes: Boxes, first_label: int = 0) -> list[Stock]:
    """torchvision's form of the boxes of a batch.

    Args:
        first_label: of class 0.
    """
    return [{"boxes": one.boxes, "labels": one.labels + first_label} for one in boxes.split()]


def drop_loop(found: Stock, annotated: Stock, overlap_threshold: float) -> Stock:
    """Step 3 for one image, the plain way."""
    overlap = box_iou(found["boxes"], annotated["boxes"])
    same = found["labels"][:, None] == annotated["labels"]
    keep = ~((overlap > overlap_threshold) & same).any(dim=1)
    return {key: value[keep] for key, value in found.items()}

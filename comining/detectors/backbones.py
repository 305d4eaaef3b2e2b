"""ResNet feature pyramids of torchvision, and a slim one for small images and small machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torchvision.models import get_model_weights
from torchvision.models.detection.backbone_utils import BackboneWithFPN, resnet_fpn_backbone
from torchvision.models.resnet import BasicBlock
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from comining.detectors.weight_download import load_download
from comining.option_types import PositiveInt


class FrozenBatchNorm(FrozenBatchNorm2d):  # type: ignore[misc]  # torchvision ships no types
    """torchvision's, but a bf16 input gives a bf16 output; the state dict is the same.

    torchvision multiplies by float32 statistics, so that under autocast every activation would be
    float32, twice the memory and traffic. Features that need no gradient are changed in place, as
    by an in-place ReLU.
    """

    def forward(self, features: Tensor) -> Tensor:
        if features.dtype != torch.float32:
            # The statistics stay float32, and the result is rounded once.
            return F.batch_norm(
                features, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        # The numbers of torchvision in one pass; batch_norm would keep its input for the backward.
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        shift, scale = shift.view(1, -1, 1, 1), scale.view(1, -1, 1, 1)
        if features.requires_grad or torch.compiler.is_compiling():
            return torch.addcmul(shift, features, scale)
        # After frozen layers, and at inference, the result overwrites the input: the first map of a
        # network is its largest, and allocating it again takes longer than computing it.
        return torch.addcmul(shift, features, scale, out=features)


ResNetName = Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
Norm = Literal["frozen_batch", "batch"]
NORMS: dict[str, type[nn.Module]] = {"frozen_batch": FrozenBatchNorm, "batch": nn.BatchNorm2d}


@dataclass
class Backbone:
    """A feature pyramid, the strides of its levels, px, and the statistics of its training images.

    Attributes:
        image_mean, image_std: of the three channels on a scale of 0 to 1. Images are normalised
            with them; torchvision's values for ImageNet, unless a backbone's weights need others.
    """

    net: BackboneWithFPN
    strides: Sequence[int]
    image_mean: Sequence[float] = (0.485, 0.456, 0.406)
    image_std: Sequence[float] = (0.229, 0.224, 0.225)


def check_norm_groups(norm_groups: int | None, backbone: Backbone) -> None:
    """Refuse a head's GroupNorm that torch would refuse only at the first image.

    Raises:
        ValueError: the groups do not divide the channels.
    """
    channels = backbone.net.out_channels
    if norm_groups is not None and channels % norm_groups:
        raise ValueError(
            f"detector.norm_groups={norm_groups} does not divide the {channels} channels of the "
            "backbone"
        )


def resnet_fpn(
    name: ResNetName,
    *,
    weights: str | None,
    norm: Norm,
    trainable_layers: Annotated[int, Field(ge=0, le=5)],
    extra_levels_from: Literal["p5", "c5", "pool"],
) -> Backbone:
    """ResNet-FPN with levels P3 to P7, as RetinaNet and FCOS use it, or P2 to P6.

    Args:
        weights: a weight set of torchvision (``IMAGENET1K_V1``), downloaded once, or None.
        norm: ``frozen_batch`` keeps the statistics of the weights and learns no scale; ``batch``
            is for training from scratch.
        trainable_layers: 3 freezes the stem and layer1, 5 trains all.
        extra_levels_from: P6 and P7 are computed from ``c5`` in the authors' code and from ``p5``
            in torchvision's builders, whose weights need ``p5``. ``pool`` is the pyramid of Faster
            R-CNN, P2 to P5 and P6 pooled from P5.

    Raises:
        ConfigError: the weights are neither cached nor reachable, or their file is damaged.
        ValueError: there is no such weight set.
    """
    try:
        weight_set = None if weights is None else get_model_weights(name)[weights]
    except KeyError:
        known = ", ".join(get_model_weights(name).__members__)
        raise ValueError(f"backbone.weights={weights}: {name} has {known}, or null") from None
    channels = 512 if name in ("resnet18", "resnet34") else 2048
    pooled = extra_levels_from == "pool"
    top: nn.Module = (
        LastLevelMaxPool()
        if pooled
        else LastLevelP6P7(256 if extra_levels_from == "p5" else channels, 256)
    )
    net = resnet_fpn_backbone(
        backbone_name=name,
        weights=None,
        norm_layer=NORMS[norm],
        trainable_layers=trainable_layers,
        returned_layers=[1, 2, 3, 4] if pooled else [2, 3, 4],
        extra_blocks=top,
    )
    if weight_set is not None:

        def load(state: Mapping[str, Tensor]) -> None:
            body = {key: value for key, value in state.items() if not key.startswith("fc.")}
            net.body.load_state_dict(body)

        load_download(
            load,
            weight_set,
            f"backbone.weights={weights}",
            otherwise=", or train from scratch with backbone.weights=null backbone.norm=batch "
            "backbone.trainable_layers=5",
        )
    return Backbone(net, strides=(4, 8, 16, 32, 64) if pooled else (8, 16, 32, 64, 128))


class SlimResNet(nn.Module):
    """One basic block per stage, with GroupNorm instead of batch statistics: trains from scratch.

    Batch statistics would mix the two views of a batch; GroupNorm treats every image separately.
    """

    def __init__(self, widths: Sequence[int], norm_groups: int):
        super().__init__()
        norm = partial(nn.GroupNorm, norm_groups)
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, stride=2, padding=1, bias=False),
            norm(widths[0]),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        before = [widths[0], *widths[:-1]]
        for stage, (inputs, outputs) in enumerate(zip(before, widths, strict=True), start=1):
            stride = 1 if stage == 1 else 2
            shortcut = None
            if stride != 1 or inputs != outputs:
                shortcut = nn.Sequential(
                    nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), norm(outputs)
                )
            block = BasicBlock(inputs, outputs, stride, shortcut, norm_layer=norm)
            setattr(self, f"layer{stage}", block)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] to the last stage's features; the pyramid takes the others by name."""
        for layer in self.children():
            images = layer(images)
        return images


def slim_fpn(
    *,
    widths: Sequence[PositiveInt],
    out_channels: PositiveInt,
    norm_groups: PositiveInt,
    first_level: Annotated[int, Field(ge=2)],
) -> Backbone:
    """A pyramid over :class:`SlimResNet`, with one pooled level on top.

    Args:
        widths: channels of layer1 (stride 4), layer2 (stride 8) and so on.
        first_level: 2 begins the pyramid at stride 4, 3 at stride 8.
    """
    stages = range(first_level - 1, len(widths) + 1)
    if not stages:
        raise ValueError(
            f"backbone.first_level={first_level} needs backbone.widths of {first_level - 1} stages "
            f"or more, got {list(widths)}"
        )
    if any(width % norm_groups for width in widths):
        raise ValueError(
            f"backbone.norm_groups={norm_groups} does not divide backbone.widths={list(widths)}"
        )
    net = BackboneWithFPN(
        SlimResNet(widths, norm_groups),
        return_layers={f"layer{stage}": str(level) for level, stage in enumerate(stages)},
        in_channels_list=[widths[stage - 1] for stage in stages],
        out_channels=out_channels,
        extra_blocks=LastLevelMaxPool(),
    )
    strides = [2 ** (stage + 1) for stage in stages]
    return Backbone(net, strides=(*strides, strides[-1] * 2))

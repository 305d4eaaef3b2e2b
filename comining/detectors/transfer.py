"""Filling a network with the weights of another one that was trained on other classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

# The layer of torchvision's RetinaNet and FCOS that has a row for each class: [A * K, C, 3, 3],
# anchor after anchor.
CLASS_LAYER = "head.classification_head.cls_logits"
# How many batches a norm has seen; frozen ones do not count.
COUNTER = "num_batches_tracked"


def difference(net: nn.Module, source: nn.Module) -> str | None:
    """Why the weights ("they") of ``source`` do not fit ``net`` ("it"); None if they do.

    The number of classes may differ.

    Args:
        net, source: torchvision's RetinaNet or FCOS.
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
    """The shape of every weight; that of the class layer for one class."""
    found = {}
    for name, value in net.state_dict().items():
        shape = list(value.shape)
        if name.startswith(f"{CLASS_LAYER}."):
            shape[0] //= num_classes(net)
        if not name.endswith(COUNTER):
            found[name] = shape
    return found


def num_classes(net: Any) -> int:
    """K of torchvision's RetinaNet or FCOS."""
    return int(net.head.classification_head.num_classes)


@torch.no_grad()
def take_over(net: nn.Module, source: nn.Module, classes: Mapping[int, int]) -> None:
    """Fill ``net`` with the weights of ``source``, and leave its other classes as they are.

    Norms of another eps than those of ``source`` get another variance instead, so that the two
    compute the same. (The eps is in no state dict, and torchvision's COCO weights of RetinaNet
    were trained with 0.)

    Args:
        net: without :func:`difference` to ``source``.
        classes: label of ``net`` to label of ``source``.
    """
    given = source.state_dict()
    own, other = list(classes.keys()), list(classes.values())
    for name, value in net.state_dict().items():
        if name.startswith(f"{CLASS_LAYER}."):
            rows(value, num_classes(net))[:, own] = rows(given[name], num_classes(source))[:, other]
        elif name in given:
            value.copy_(given[name])
    norm: Any
    for name, norm in net.named_modules():
        if isinstance(norm, FrozenBatchNorm2d | nn.BatchNorm2d):
            before: Any = source.get_submodule(name)
            norm.running_var += before.eps - norm.eps


def rows(value: Tensor, count: int) -> Tensor:
    """A weight or bias [A * K, ...] of the class layer as [A, K, ...]; a view."""
    return value.view(-1, count, *value.shape[1:])

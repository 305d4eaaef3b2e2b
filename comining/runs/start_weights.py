"""Initial weights of a new run: those of another network (``weights=``)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hydra.core.hydra_config import HydraConfig
from torch import nn
from torchvision.models import WeightsEnum
from torchvision.models.detection import (
    FCOS,
    FasterRCNN,
    FasterRCNN_ResNet50_FPN_Weights,
    FCOS_ResNet50_FPN_Weights,
    RetinaNet,
    RetinaNet_ResNet50_FPN_Weights,
    fasterrcnn_resnet50_fpn,
    fcos_resnet50_fpn,
    retinanet_resnet50_fpn,
)

from comining.config import CONFIG_FOLDER
from comining.detectors.detector import Detector
from comining.detectors.transfer import CLASS_LAYERS, difference, take_over
from comining.detectors.weight_download import load_download
from comining.errors import CheckpointError, ConfigError, shortened
from comining.runs.checkpoint import build_detector, load_detector, read_checkpoint
from comining.runs.result import plain

COCO = "coco"
COCO_ANCHOR_SCALE = 4.0
# torchvision's networks with a ResNet-50: their builders, their weights, and the eps of the frozen
# batch norm that the weights were trained with (torchvision's builders set it, too).
COCO_NETWORKS: dict[type, tuple[Callable[..., nn.Module], WeightsEnum, float]] = {
    RetinaNet: (retinanet_resnet50_fpn, RetinaNet_ResNet50_FPN_Weights.COCO_V1, 0.0),
    FCOS: (fcos_resnet50_fpn, FCOS_ResNet50_FPN_Weights.COCO_V1, 1e-5),
    FasterRCNN: (fasterrcnn_resnet50_fpn, FasterRCNN_ResNet50_FPN_Weights.COCO_V1, 0.0),
}
COCO_OPTIONS = "backbone=resnet50 backbone.extra_levels_from=p5 head.norm_groups=null"
COCO_OPTIONS_TWO_STAGE = (
    "backbone=resnet50 backbone.extra_levels_from=pool detector.representation_size=1024"
)
NO_CLASS = ("__background__", "N/A")  # among torchvision's names of COCO's classes

# Options of a backbone that do not change the shapes of its weights.
SHAPELESS = ("weights", "norm", "trainable_layers")
# Options of a detector that do.
DETECTOR_SHAPE = ("_target_", "norm_groups", "representation_size")


class Started(NamedTuple):
    """What was loaded: for ``result.json``, and as lines to print."""

    facts: dict[str, Any]
    lines: list[str]


@dataclass(frozen=True)
class StartWeights:
    """A trained network, which fills the run's once the classes of the run are known.

    Attributes:
        origin: the value of ``weights=``.
        class_names: of each label; None where the network has no class of that label.
        net: one of torchvision's networks, see :data:`CLASS_LAYERS`.
    """

    origin: str
    class_names: Sequence[str | None]
    net: Any

    def load_into(self, detector: Detector, class_names: Sequence[str]) -> Started:
        """Fill a new detector; rows of the class head are kept where names match.

        Args:
            class_names: of the detector's labels.
        """
        kept = matching(class_names, self.class_names)
        take_over(detector.net, self.net, kept)
        names = [class_names[label] for label in kept]
        said = f"weights={self.origin}: {len(kept)} of {len(class_names)} classes kept by name"
        if names:
            said += f": {shortened(names)}"
        if len(kept) < len(class_names):
            said += f"; {'the other' if kept else 'all'} classes start untrained"
        lines = [said]
        there, here = (_anchors(net).sizes[0][0] for net in (self.net, detector.net))
        if abs(there / here - 1) > 0.05:
            lines.append(
                f"its smallest anchors are {there:.0f} px, here {here:.0f} px: object "
                "sizes must be learned again (head.anchor_scale)"
            )
        facts = {"from": self.origin, "classes_kept": len(kept), "classes": len(class_names)}
        return Started(facts, lines)


def start_weights(config: dict[str, Any], progress: bool) -> StartWeights | None:
    """The network that ``weights=`` names, checked against the configured one; None for null.

    Args:
        config: of the run, resolved.
        progress: whether a download may show a progress bar.

    Raises:
        CheckpointError: the file is not a checkpoint.
        ConfigError: the weights are those of another network, or torchvision's file cannot be
            downloaded or loaded.
    """
    origin = config["weights"]
    if origin is None:
        return None
    detector = build_detector(config, 1, pretrained=False)
    if type(detector.net) not in CLASS_LAYERS:
        raise ConfigError(
            f"weights={origin}: the classification layer of {type(detector).__name__} is not known"
        )
    if origin == COCO:
        return _coco(detector, progress)
    with _naming_the_option():
        trained, description = load_detector(origin)
    if type(trained.net) not in CLASS_LAYERS:
        raise ConfigError(
            f"weights={origin}: the classification layer of {type(trained).__name__} is not known"
        )
    problem = difference(detector.net, trained.net)
    if problem is not None:
        raise ConfigError(
            f"weights={origin} do not fit this network: "
            + _with_advice(problem, description["config"], config)
        )
    return StartWeights(origin, description["category_names"], trained.net)


def trained_anchor_scale(origin: str | None) -> float | None:
    """``head.anchor_scale`` of the network that ``weights=`` names.

    None if there is no such network, or if it has no anchors.

    Raises:
        CheckpointError: the file is not a checkpoint.
    """
    if origin is None:
        return None
    if origin == COCO:
        return COCO_ANCHOR_SCALE
    with _naming_the_option():
        content = read_checkpoint(origin)
    scale = content["comining"]["config"]["detector"].get("anchor_scale")
    return scale if isinstance(scale, int | float) else None


@contextlib.contextmanager
def _naming_the_option() -> Iterator[None]:
    """Errors of a checkpoint, which begin with its path, also say which option names it."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(
            f"weights={error}; weights= takes {COCO}, or a checkpoint of this program"
        ) from error
    except ConfigError as error:
        raise ConfigError(f"weights={error}") from error


def recorded_start(checkpoint: Path | None) -> dict[str, Any] | None:
    """The record in a checkpoint of the weights that its run started from."""
    if checkpoint is None:
        return None
    facts = read_checkpoint(checkpoint)["comining"].get("initial_weights")
    return plain(facts) if isinstance(facts, dict) else None


def matching(class_names: Sequence[str], others: Sequence[str | None]) -> dict[int, int]:
    """A map from labels of classes to labels of others with the same name, ignoring case."""
    exact: dict[str, int] = {}
    folded: dict[str, int] = {}
    for label, name in enumerate(others):
        if name is not None:
            exact.setdefault(name, label)
            folded.setdefault(name.casefold(), label)
    found = [exact.get(name, folded.get(name.casefold())) for name in class_names]
    return {label: other for label, other in enumerate(found) if other is not None}


def _anchors(net: Any) -> Any:
    return net.rpn.anchor_generator if isinstance(net, FasterRCNN) else net.anchor_generator


def _coco(detector: Detector, progress: bool) -> StartWeights:
    kind = type(detector.net)
    if kind not in COCO_NETWORKS:
        raise ConfigError(
            f"weights={COCO} is for detector=retinanet, detector=fcos and detector=faster_rcnn"
        )
    build, weights, eps = COCO_NETWORKS[kind]
    two_stage = kind is FasterRCNN
    net = build(weights=None, weights_backbone=None)
    problem = difference(detector.net, net)
    if problem is not None:
        raise ConfigError(
            f"weights={COCO} do not fit this network: {problem}. torchvision's {kind.__name__} "
            f"needs {COCO_OPTIONS_TWO_STAGE if two_stage else COCO_OPTIONS}"
        )
    names = [None if name in NO_CLASS else name for name in weights.meta["categories"]]
    # torchvision's one-stage networks have a row for background, which is never trained.
    names = names[1:] if two_stage else names
    load_download(net.load_state_dict, weights, f"weights={COCO}", progress=progress)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = eps
    return StartWeights(COCO, names, net)


def _fitting_choices(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """``GROUP=CHOICE`` for groups in which one other choice, and only one, is the trained one."""
    found = []
    for group in ("detector", "backbone"):
        if _shape(group, there[group]) == _shape(group, here[group]):
            continue
        fitting = [
            file.stem
            for file in sorted((CONFIG_FOLDER / group).glob("*.yaml"))
            if _is_choice(file, group, there[group])
        ]
        chosen = HydraConfig.get().runtime.choices.get(group)
        if len(fitting) == 1 and fitting != [chosen]:
            found.append(f"{group}={fitting[0]}")
    return found


def _is_choice(file: Path, group: str, options: Mapping[str, Any]) -> bool:
    """Whether a file of the configuration has these options, references aside."""
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    wanted, given = _shape(group, content.get(group, content)), _shape(group, options)
    return wanted.keys() == given.keys() and all(
        value == given[name] or (isinstance(value, str) and value.startswith("${"))
        for name, value in wanted.items()
    )


def _shape(group: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options by which a choice is recognised; a detector's others follow the backbone."""
    if group == "detector":
        return {"_target_": options["_target_"]}
    return {name: value for name, value in options.items() if name not in SHAPELESS}


def _with_advice(problem: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """A difference, what to add to the command line, and what else is known of the weights."""
    choices = _fitting_choices(there, here)
    chosen = {choice.partition("=")[0] for choice in choices}
    options = [
        option
        for group in ("backbone", "detector")
        if group not in chosen
        for option in _differing_options(group, there[group], here[group])
    ]
    if "backbone" in chosen:  # which sets the others, too
        options = []
    if any("._target_=" in option for option in options):  # no choice has it
        return f"{problem}; they are of a network with {', '.join(options)}"
    advice = [*choices, *options]
    return f"add {' '.join(advice)}; {problem}" if advice else problem


def _differing_options(group: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Options that shape the network and differ, with their values in the trained one."""
    names = list(there) if group == "backbone" else DETECTOR_SHAPE
    return [
        f"{group}.{name}={_written(there[name])}"
        for name in names
        if name in there and name not in SHAPELESS and there[name] != here.get(name)
    ]


def _written(value: Any) -> str:
    """A value as it is written on a command line."""
    return "null" if value is None else str(value).replace(" ", "")

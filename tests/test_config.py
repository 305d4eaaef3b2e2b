"""Every configuration composes, binds to its constructor, and bad options are named."""

import copy
import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from lightning import Trainer
from omegaconf import DictConfig, OmegaConf, open_dict
from pydantic import Field

from comining.config import CONFIG_FOLDER, GROUPS, instantiate, locate, resolve
from comining.errors import ConfigError
from comining.option_types import (
    Fraction,
    Nested,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    describe,
    misfit,
    suits,
)
from comining.program_options import REASONS, TRAINER, check_evaluation, check_training
from comining.runs.checkpoint import build_detector
from tests.helpers import composed

ROOT = CONFIG_FOLDER.parent
FOLDERS = sorted(path.name for path in CONFIG_FOLDER.iterdir() if path.is_dir())
# What a group's objects are given beside their options.
GIVEN = {
    "data": {"sparsity", "seed"},
    "detector": {"backbone", "num_classes"},
    "optimizer": {"params"},
    "pictures": {"folder", "tracker"},
    "checkpoint": {"folder"},
    "trainer": set(),
}
NEEDED = {
    "coco": ["data.root=/nowhere"],
    "bccd": ["data.root=/nowhere"],
    "highway": ["data.root=/nowhere"],
    "own": ["data.root=/nowhere"],
    "file": ["sparsity.path=/nowhere.json"],
    **{
        name: ["data.root=/nowhere"]
        for name in ("auto", "coco_folder", "cvat", "labelme", "voc", "yolo")
    },
    "custom": [f"data.{s}_{k}=x" for s in ("train", "val") for k in ("annotations", "images")],
}


def choices(group: str) -> list[str]:
    names = sorted(path.stem for path in (CONFIG_FOLDER / group).glob("*.yaml"))
    return [name for name in names if name != "base"]


def nodes(value: Any, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(value, dict):
        if "_target_" in value:
            yield name, value
        for key, part in value.items():
            yield from nodes(part, f"{name}.{key}")


@pytest.mark.parametrize(
    ("group", "name"), [(group, name) for group in FOLDERS for name in choices(group)]
)
def test_every_file_composes_and_binds(group: str, name: str) -> None:
    cfg = composed(f"{group}={name}", *NEEDED.get(name, []))
    found = list(nodes(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True), "cfg"))
    assert len(found) >= 9
    for where, node in found:
        options = {key: value for key, value in node.items() if not key.startswith("_")}
        given = dict.fromkeys(GIVEN.get(where.rpartition(".")[2], ()))
        inspect.signature(locate(node["_target_"], where)).bind(**options, **given)


def test_there_is_no_science_in_python_defaults() -> None:
    """The yaml is the only source of a number."""
    cfg = composed()
    for where, node in nodes(OmegaConf.to_container(cfg, resolve=True), "cfg"):
        if node["_target_"].startswith("comining."):
            parameters = inspect.signature(locate(node["_target_"], where)).parameters
            assert all(p.default is p.empty for p in parameters.values()), where


def test_the_default_is_comining_on_the_embedded_set() -> None:
    cfg = composed()
    assert cfg.data.root == "data/shapes"
    assert cfg.method.views == ["original", "augmented"]
    assert cfg.method.exchange


COCO = ("experiment=coco", "data.root=/nowhere")


def test_the_papers_setting() -> None:
    """FIELD and paper, line by line."""
    cfg = composed(*COCO)
    assert (cfg.backbone.name, cfg.backbone.norm) == ("resnet50", "frozen_batch")
    assert cfg.backbone.trainable_layers == 3
    assert cfg.backbone.extra_levels_from == "c5"
    optimizer = OmegaConf.to_container(cfg.optimizer)
    assert optimizer == {
        "_target_": "torch.optim.SGD",
        "_partial_": True,
        "lr": 0.01,
        "momentum": 0.9,
        "weight_decay": 1e-4,
    }
    assert (cfg.schedule.warmup_steps, cfg.schedule.warmup_start) == (1000, 0.001)
    assert (cfg.schedule.milestones, cfg.schedule.gamma) == ([60000, 80000], 0.1)
    assert (cfg.trainer.max_steps, cfg.trainer.precision) == (90000, "32-true")
    assert cfg.trainer.gradient_clip_val is None
    assert (cfg.data.batch_size, cfg.data.min_size, cfg.data.max_size) == (16, 800, 1333)
    assert cfg.data.flip == 0.5
    detector = cfg.detector
    assert (detector.foreground_iou, detector.background_iou) == (0.5, 0.4)
    assert (detector.focal_alpha, detector.focal_gamma) == (0.25, 2)
    assert (detector.smooth_l1_beta, detector.anchor_scale) == (0.1, 4)
    assert detector.norm_groups is None
    assert not detector.whole_anchors
    assert (detector.score_threshold, detector.max_detections) == (0.05, 100)
    assert (detector.candidates_per_level, detector.min_size, detector.max_size) == (
        1000,
        800,
        1333,
    )
    method = cfg.method
    assert (method.nms_threshold, method.overlap_threshold, method.start_step) == (0.5, 0.4, 0)
    assert method.class_aware
    assert method.max_per_image == 100
    view = cfg.view
    assert (view.brightness, view.contrast, view.saturation, view.hue, view.p) == (
        *[0.8] * 3,
        0.2,
        0.8,
    )
    fcos = composed(*COCO, "detector=fcos").detector
    assert (fcos.nms_threshold, fcos.center_sampling_radius, fcos.level_range) == (0.6, 1.5, 8)
    assert fcos.norm_groups is None  # torchvision's own 32


@pytest.mark.parametrize(
    ("detector", "sparsity", "tau"),
    [
        ("retinanet", "full", 0.6),
        ("retinanet", "easy", 0.6),
        ("retinanet", "hard", 0.6),
        ("retinanet", "miss50", 0.6),
        ("retinanet", "extreme", 0.5),
        ("fcos", "easy", 0.5),
        ("fcos", "extreme", 0.5),
        ("faster_rcnn", "extreme", 0.9),  # ours
    ],
)
def test_the_authors_score_thresholds(detector: str, sparsity: str, tau: float) -> None:
    cfg = composed(*COCO, f"detector={detector}", f"sparsity={sparsity}")
    assert cfg.method.score_threshold == tau
    assert cfg.method.nms_threshold == {"fcos": 0.6}.get(detector, 0.5)


def test_two_stages_need_surer_detections() -> None:
    two_stage = "detector=faster_rcnn"
    assert composed(two_stage).method.score_threshold == 0.9
    assert composed(two_stage, "tau=0.8").method.score_threshold == 0.8
    chosen = (two_stage, "method=sparsedet")
    starts = [composed(*chosen, *experiment).method.start for experiment in ([], COCO)]
    assert starts == [0.5, pytest.approx(1 / 9)]


def test_thresholds_can_be_set_by_hand() -> None:
    cfg = composed(*COCO, "method.score_threshold=0.7")
    assert cfg.method.score_threshold == 0.7


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["trainer.max_steps=abc"], "trainer.max_steps='abc' must be a whole number of at least 1"),
        (["data.batch_size=0"], "data.batch_size=0 must be a whole number of at least 1"),
        (["data.batch_size=1.5"], "data.batch_size=1.5 must be a whole number of at least 1"),
        (["data.batch_size=true"], "data.batch_size=true must be a whole number of at least 1"),
        (["data.missing_val=maybe"], "data.missing_val='maybe' must be one of error, train"),
        (["method.views=original"], "method.views='original' must be a list of texts, each one of"),
        (
            ["method.views=[original, blur]"],
            r"views\[1\]='blur' must be one of original, aug",
        ),
        (["view.p=1.5"], "view.p=1.5 must be a number from 0 to 1"),
        (["view.p=nan"], "view.p=nan must be a number from 0 to 1"),
        (["view.brightness=inf"], "view.brightness=inf must be a number of at least 0"),
        (["schedule.rise=1"], "schedule.rise=1 must be a number above 0 and below 1"),
        (["sparsity.fraction=2"], "sparsity.fraction=2 must be a number from 0 to 1 or null"),
        (
            ["detector.norm_groups=x"],
            "norm_groups='x' must be a whole .* at least 1 or null",
        ),
        (["method=pseudo_label", "method.use=both"], "'both' must be one of positives, ignore"),
        (
            ["method=part_aware", "method.hierarchy={person: x}"],
            "method.hierarchy.person='x' must be a list of texts",
        ),
        (["+method.tau=0.5"], "unknown option method.tau; valid options: .*score_threshold"),
        (["+data.prepare.colour=1"], "unknown option data.prepare.colour"),
        (["~method.score_threshold"], "method.score_threshold is missing"),
        (["data=coco"], "option data.root is missing"),
        (["method._target_=os.system"], "method._target_='os.system' is not one of"),
        (["method._target_=comining.runs.files.os.system"], "is not defined in a module whose"),
        (["method._target_=comining.nowhere"], "comining.nowhere.* cannot be imported"),
        (["data.max_size=50"], "data.max_size=50 is smaller than data.min_size=96"),
        (["data.flip=2"], "data.flip=2 must be a number from 0 to 1"),
        (["data.prepare=5"], "data.prepare=5 must be a group that builds SetWriter or null"),
        (["optimizer.lr=-1"], r"optimizer \(lr=-1, .*\): Invalid learning rate: -1"),
        (["optimizer.lr=null"], r"optimizer\.lr=null must be a number"),
        (["+optimizer.betas=[2, 3]"], r"Invalid beta parameter"),
        (["tau=${nowhere}"], "Interpolation key 'nowhere' not found"),
        (["tau=${tau}"], "tau: Recursive interpolation detected"),
        (["trainer.max_steps=-1"], "trainer.max_steps=-1 must be a whole number of at least 1"),
        (["schedule=multistep"], "schedule.milestones=.* reach beyond trainer.max_steps=1800"),
    ],
)
def test_bad_options_are_named(overrides: list[str], words: str) -> None:
    cfg = composed(*overrides)
    with pytest.raises(ConfigError, match=words):
        build_all(cfg)


def build_all(cfg: DictConfig) -> None:
    check_training(resolve(cfg))
    for name in ("trainer", "method", "schedule", "optimizer", "view", "sparsity"):
        instantiate(cfg[name], name)
    instantiate(cfg.data, "data", sparsity=None, seed=0)
    build_detector(resolve(cfg), num_classes=3, pretrained=False)


class Base:
    """Of what a group of options builds."""


class Derived(Base):
    pass


DERIVED = Nested("tests.Derived", Derived)
HUGE = 10**400


@pytest.mark.parametrize(
    ("hint", "good", "bad"),
    [
        (int, [0, -5, 10**30], [True, 1.0, "1", None, [1], float("nan")]),
        (float, [0, 1, -0.5], [True, "0.5", None, float("nan"), float("inf"), HUGE]),
        (bool, [True, False], ["no", "off", "false", 0, 1, None]),
        (str, ["", "no"], [5, None, True, ["x"]]),
        (None, [None], [0, "", "null", False]),
        (int | None, [None, 3], ["x", 1.5, False]),
        (NonNegativeInt, [0, 3], [-1, 0.0]),
        (PositiveInt, [1], [0, -1, True, "1"]),
        (NonNegativeFloat, [0, 2.5], [-1e-9, float("nan"), float("inf")]),
        (PositiveFloat, [1e-9, 1], [0, 0.0, float("inf")]),
        (Fraction, [0, 1, 0.5], [-0.1, 1.1, float("nan"), True, "0.5"]),
        (Fraction | None, [None, 1], [2]),
        (Literal["a", "b"], ["a"], ["c", None, 1, ["a"], {"a": 1}]),
        (list[int], [[], [1, 2]], [["x"], "12", {1: 2}, None, 5]),
        (Sequence[Literal["a", "b"]], [["a"], ("b",)], ["a", ["c"], {"a": 1}]),
        (Sequence[PositiveInt], [[1]], [[1, 0]]),
        (tuple[float, float], [[0.9, 0.99], (1, 2)], [[0.9], [1, 2, 3], "ab", None]),
        (tuple[int, ...], [[], [1, 2, 3]], [[1, "x"]]),
        (
            Mapping[str, Sequence[str]],
            [{}, {"a": ["b"]}],
            [{"a": "b"}, {1: ["b"]}, ["a"], {"a": [1]}],
        ),
        (dict[str, int] | str, [{"a": 1}, "a"], [{"a": "b"}, 5]),
        (Any, [None, 5, "x", {"a": [1]}], [DERIVED, [DERIVED], {"a": [DERIVED]}]),
        (Base, [DERIVED], [None, 5, "x", {}, Nested("x", None), Nested("x", str)]),
        (Base | None, [DERIVED, None], [Nested("x", str), "x"]),
        (Sequence[Base], [[DERIVED], []], [DERIVED, [DERIVED, 5]]),
        (Mapping[str, Any], [{}, {"a": 5}], [DERIVED, {"a": DERIVED}, [], None]),
        (str, [], [DERIVED]),
        (Path, [], ["x", None]),
        (float | Path, [1.5], ["x", None]),
        (Callable[[str], None] | None, [None], ["x", DERIVED]),
    ],
)
def test_checked_types(hint: Any, good: list[Any], bad: list[Any]) -> None:
    assert [value for value in good if not suits(value, hint)] == []
    assert [value for value in bad if suits(value, hint)] == []
    assert all(misfit(value, hint, "x") is None for value in good)
    assert all(str(misfit(value, hint, "x")).startswith("x") for value in bad)


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int, "a whole number"),
        (float | None, "a number or null"),
        (bool, "true or false"),
        (PositiveFloat, "a number above 0"),
        (Annotated[int, Field(le=3)], "a whole number of at most 3"),
        (Annotated[float, Field(gt=0, lt=1)], "a number above 0 and below 1"),
        (Annotated[float, Field(ge=0, le=0.5)], "a number from 0 to 0.5"),
        (Literal["x"], "x"),
        (Literal["x", "y"] | None, "one of x, y or null"),
        (Sequence[PositiveInt], "a list of whole numbers of at least 1"),
        (tuple[PositiveInt, PositiveInt], "a list of 2 whole numbers of at least 1"),
        (tuple[int, str], "a list of 2 values (a whole number, a text)"),
        (Mapping[str, Sequence[str]], "a group of lists of texts"),
        (Mapping[str, Any], "a group of options"),
        (int | str | list[int], "a whole number or a text or a list of whole numbers"),
        (float | torch.Tensor, "a number"),
        (Callable[[], None], "left out"),
    ],
)
def test_what_is_allowed_is_told_in_plain_english(hint: Any, words: str) -> None:
    assert describe(hint) == words


@pytest.mark.parametrize(
    ("hint", "value", "words"),
    [
        (Sequence[int], [1, "x"], "x[1]='x' must be a whole number"),
        (Mapping[str, Sequence[str]] | None, {"a": ["b", 3]}, "x.a[1]=3 must be a text"),
        (tuple[PositiveInt, PositiveInt], [3, 0], "x[1]=0 must be a whole number of at least 1"),
        (list[int] | list[str], [None], "x=[None] must be a list of whole numbers or a list of "),
        (int, "a" * 1000, "x='" + "a" * 79 + "..." + "a" * 16 + "' must be a whole number"),
        (int, True, "x=true must be a whole number"),
        (int, DERIVED, "x._target_='tests.Derived' cannot be used here: x must be a whole number"),
    ],
)
def test_the_place_of_a_wrong_value_is_told(hint: Any, value: Any, words: str) -> None:
    told = misfit(value, hint, "x")
    assert told is not None
    assert told.startswith(words)


def test_every_option_of_ours_has_words() -> None:
    """No Python syntax gets through to a message."""
    for group in GROUPS:
        for name in choices(group) if group in ("method", "detector", "view") else ():
            target = locate(composed(f"{group}={name}")[group]._target_, group)
            for hint in get_type_hints(target.__init__, include_extras=True).values():
                assert not re.search(r"Annotated|Literal|typing|\||\[", describe(hint)), hint


def test_a_partial_is_given_the_rest_later() -> None:
    cfg = composed()
    optimizer = instantiate(cfg.optimizer, "optimizer")
    built = optimizer([torch.nn.Parameter(torch.zeros(1))])
    assert isinstance(built, torch.optim.AdamW)
    assert built.defaults["lr"] == 0.004


# -- nothing foreign is built ------------------------------------------------------------

FOREIGN = [
    "os.system",
    "builtins.eval",
    "torch.load",
    "torch.hub.load",
    "torch.utils.data.DataLoader",
    "torch.optim.adam.torch.load",
    "torch.optim.Optimizer.load_state_dict",
    "torch.optim.adamw.__builtins__",
    "lightning.pytorch.LightningModule.load_from_checkpoint",
    "lightning.pytorch.cli.LightningCLI",
    "lightning.pytorch.loggers.CSVLogger",
    "lightning.pytorch.Trainer.__base__",
    "lightning.pytorch.Trainer.__init__.__class__",
    "comining.training.training_module.DetectionModule.load_from_checkpoint",
    "comining.runs.files.write_json",
    "comining.runs.files.os.system",
    "comining.config.hydra.utils.instantiate",
    "comining.config.functools.partial",
    "comining.config.CONFIG_FOLDER.rmdir",
    "comining.config.instantiate",
    "comining.data.sparsity.main",
    "comining.data.datamodule.L.LightningDataModule.load_from_checkpoint",
    "comining.detectors.backbones.get_model_weights",
    "comining.tracking.metrics_csv.os.replace",
]


@pytest.mark.parametrize("target", [*FOREIGN, 5, None, "", "comining.", ["os.system"]])
def test_foreign_targets_are_refused(target: Any) -> None:
    with pytest.raises(ConfigError, match=r"^x\._target_="):
        locate(target, "x")


def test_the_list_of_foreign_targets_is_of_real_ones() -> None:
    """That they are refused is no mere spelling mistake: nearly all would be found."""
    for target in FOREIGN:
        if "__builtins__" not in target:  # a dict
            assert callable(get_object(target)), target


@pytest.mark.parametrize(
    "hidden",
    [
        "{node}",
        "{{a: {node}}}",
        "{{a: {{b: [1, {node}]}}}}",
        "[{node}]",
        "[[{node}]]",
        "{{_target_: comining.data.shapes.DrawShapes, objects: [{node}]}}",
        "{{_target_: comining.data.shapes.DrawShapes, _partial_: true, seed: {node}}}",
    ],
)
@pytest.mark.parametrize("partial", ["", ", _partial_: true"])
def test_a_foreign_target_is_found_wherever_it_hides(
    tmp_path: Path, hidden: str, partial: str
) -> None:
    node = f"{{_target_: os.mkdir, path: {tmp_path / 'made'}{partial}}}"
    cfg = composed()
    with open_dict(cfg):
        cfg.data.prepare = OmegaConf.create(f"x: {hidden.format(node=node)}").x
    with pytest.raises(ConfigError, match=r"data\.prepare.*\._target_='os\.mkdir' is not one of"):
        instantiate(cfg.data, "data", sparsity=None, seed=0)
    assert not (tmp_path / "made").exists()


GROUP_OF_ANOTHER = [
    ("backbone", "comining.tracking.tensorboard_events.TensorBoardEvents"),
    ("backbone", "comining.detectors.retinanet.RetinaNetDetector"),
    ("checkpoint", "comining.training.callbacks.pictures.Pictures"),
    ("data", "comining.data.shapes.DrawShapes"),
    ("data", "lightning.pytorch.Trainer"),
    ("detector", "comining.detectors.backbones.resnet_fpn"),
    ("detector", "torch.optim.SGD"),
    ("fit", "comining.data.shapes.DrawShapes"),
    ("logger", "comining.data.shapes.DrawShapes"),
    ("logger", "comining.detectors.backbones.slim_fpn"),
    ("method", "comining.methods.method.Supervision"),
    ("method", "comining.data.views.NoChange"),
    ("optimizer", "torch.optim.lr_scheduler.StepLR"),
    ("optimizer", "comining.training.schedule.OneCycle"),
    ("parameter_groups", "comining.data.views.NoChange"),
    ("pictures", "comining.training.callbacks.saving.StepCheckpoint"),
    ("schedule", "comining.data.views.NoChange"),
    ("sparsity", "comining.data.views.NoChange"),
    ("trainer", "comining.data.shapes.DrawShapes"),
    ("view", "comining.data.sparsity.FromFile"),
]


@pytest.mark.parametrize(("group", "target"), GROUP_OF_ANOTHER)
def test_a_group_builds_only_what_belongs_into_it(group: str, target: str) -> None:
    cfg = composed()
    OmegaConf.update(cfg, f"{group}._target_", target)
    locate(target, group)  # may be built, but elsewhere
    words = rf"{group}\._target_='{re.escape(target)}' cannot be used here: the group {group} takes"
    with pytest.raises(ConfigError, match=words):
        instantiate(cfg[group], group)


def test_every_group_of_the_folder_is_restricted() -> None:
    built = {where.removeprefix("cfg.") for where, _ in nodes(resolve(composed()), "cfg")}
    assert built - {"data.prepare"} == set(GROUPS)
    assert {group for group, _ in GROUP_OF_ANOTHER} == set(GROUPS)
    with pytest.raises(ConfigError, match="extra: no group of options"):
        instantiate(composed().view, "extra")


@pytest.mark.parametrize(
    "target", ["comining.data.views.NoChange", "comining.training.schedule.OneCycle"]
)
@pytest.mark.parametrize("option", ["data.prepare", "data.hint", "optimizer.lr", "method.views"])
def test_a_group_inside_is_held_to_its_option(option: str, target: str) -> None:
    """Nothing is built of what may be built elsewhere."""
    cfg = composed()
    with open_dict(cfg):
        OmegaConf.update(cfg, option, None)
        OmegaConf.update(cfg, option, {"_target_": target}, force_add=True)
    group = option.partition(".")[0]
    with pytest.raises(ConfigError, match=rf"{option}\._target_='{target}' cannot be used here"):
        instantiate(cfg[group], group)


@pytest.mark.parametrize(
    ("group", "target"),
    [
        ("detector", "comining.detectors.dense.DenseDetector"),
        ("view", "comining.data.views.SecondView"),
        ("sparsity", "comining.data.sparsity.Sparsity"),
    ],
)
def test_base_classes_are_not_built(group: str, target: str) -> None:
    cfg = composed()
    cfg[group]._target_ = target
    with pytest.raises(ConfigError, match="is a base class, which cannot be built itself"):
        instantiate(cfg[group], group)


def test_only_the_optimizer_is_partial() -> None:
    cfg = composed()
    with open_dict(cfg):
        cfg.view._partial_ = True
        cfg.optimizer._partial_ = False
    with pytest.raises(ConfigError, match=r"view\._partial_=true must be false"):
        instantiate(cfg.view, "view")
    for words, value in (("false", False), ("'yes'", "yes"), ("1", 1)):
        cfg.optimizer._partial_ = value
        with pytest.raises(ConfigError, match=rf"optimizer\._partial_={words} must be true"):
            instantiate(cfg.optimizer, "optimizer")
    with open_dict(cfg):
        del cfg.optimizer["_partial_"]
    with pytest.raises(ConfigError, match=r"optimizer\._partial_=null must be true"):
        instantiate(cfg.optimizer, "optimizer")


def test_hydras_other_keywords_are_unknown() -> None:
    for key, value in (("_args_", ["x"]), ("_recursive_", False)):
        for group in ("trainer", "optimizer"):
            node = OmegaConf.merge(composed()[group], {"_target_": composed()[group]._target_})
            with open_dict(node):
                node[key] = value
            with pytest.raises(ConfigError, match=f"unknown option {group}.{key}"):
                instantiate(node, group)


# -- options of the programs -------------------------------------------------------------


@functools.cache
def resolved() -> dict[str, Any]:
    return resolve(composed())


def with_option(group: str | None, name: str, value: Any) -> dict[str, Any]:
    config = copy.deepcopy(resolved())
    (config if group is None else config[group])[name] = value
    return config


@pytest.mark.parametrize("name", ["allow_changes", "skip_finished", "own_gpu", "overwrite"])
def test_texts_are_no_truth_values(name: str) -> None:
    """YAML 1.2 reads no and off as texts, and texts are true."""
    for value, told in (("no", "'no'"), ("off", "'off'"), ("yes", "'yes'"), (0, "0")):
        with pytest.raises(ConfigError, match=rf"^{name}={told} must be true or false$"):
            check_training(with_option(None, name, value))
    check_training(with_option(None, name, False))


def test_no_is_a_text_on_the_command_line() -> None:
    assert composed("allow_changes=no").allow_changes == "no"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("seed", "abc", "seed='abc' must be a whole number from 0 to 4294967295"),
        ("seed", -1, "seed=-1 must be"),
        ("seed", 2**32, "seed=4294967296 must be"),
        ("seed", True, "seed=true must be"),
        ("seed", 1.0, "seed=1.0 must be"),
        ("tau", 1.5, "tau=1.5 must be a number from 0 to 1"),
        ("tau", float("nan"), "tau=nan must be a number from 0 to 1"),
        ("resume", 5, "resume=5 must be a text or null"),
        ("ckpt", ["x"], r"ckpt=\['x'\] must be a text or null"),
        ("table", 1, "table=1 must be a text or null"),
        ("foo", 1, "unknown option foo; valid options: seed, "),
        ("published_tau", {"fcos": {"full": 2}}, r"published_tau\.fcos\.full=2 must be a number"),
        ("method", None, "method=null must be a group of options"),
    ],
)
def test_options_of_the_program_are_checked(name: str, value: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=f"^{words}"):
        check_training(with_option(None, name, value))


def test_missing_options_of_the_program_are_named() -> None:
    config = copy.deepcopy(resolved())
    del config["method"]
    with pytest.raises(ConfigError, match=r"^option method is missing$"):
        check_training(config)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("split", "train", "split='train' must be one of val, test"),
        ("checkpoint", 5, "checkpoint=5 must be a text"),
        ("images", True, "images=true must be a text or null"),
        ("score_threshold", 2, "score_threshold=2 must be a number from 0 to 1"),
        ("coco_results", "no", "coco_results='no' must be true or false"),
        ("data_override", "x", "data_override='x' must be a group of options"),
        ("seed", 0, "unknown option seed; valid options: checkpoint, "),
    ],
)
def test_options_of_the_evaluation_are_checked(name: str, value: Any, words: str) -> None:
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        config = resolve(compose("evaluate", overrides=["checkpoint=x"]))
    check_evaluation(config)
    with pytest.raises(ConfigError, match=f"^{words}"):
        check_evaluation({**config, name: value})
    del config["trainer"]
    with pytest.raises(ConfigError, match=r"^option trainer is missing$"):
        check_evaluation(config)


def test_limit_train_batches_is_refused() -> None:
    """Lightning would repeat the same batches without a word."""
    words = r"^trainer\.limit_train_batches=10 cannot be used: .*set trainer\.max_steps instead$"
    with pytest.raises(ConfigError, match=words):
        check_training(with_option("trainer", "limit_train_batches", 10))


def test_every_option_of_the_trainer_is_taken_or_refused() -> None:
    known = set(inspect.signature(Trainer.__init__).parameters) - {"self"}
    assert known <= TRAINER.keys() | REASONS.keys()
    for name in known - TRAINER.keys():
        words = rf"^trainer\.{name}=1 cannot be used: \w+ .*"
        with pytest.raises(ConfigError, match=words):
            check_training(with_option("trainer", name, 1))
    with pytest.raises(
        ConfigError, match=r"^unknown option trainer\.foo; valid options: max_steps"
    ):
        check_training(with_option("trainer", "foo", 1))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("check_val_every_n_epoch", 1),
        ("val_check_interval", 0.5),
        ("val_check_interval", 0),
        ("max_steps", 0),
        ("max_steps", -1),
        ("log_every_n_steps", 0),
        ("log_every_n_steps", None),
        ("precision", "64-true"),
        ("precision", "16-true"),
        ("precision", "bf16-true"),
        ("strategy", "ddp_spawn"),
        ("gradient_clip_val", -1),
        ("num_nodes", 0),
        ("enable_progress_bar", "no"),
        ("gradient_clip_algorithm", "best"),
        ("accumulate_grad_batches", 0),
        ("accumulate_grad_batches", {5: 2}),
    ],
)
def test_values_that_the_trainer_cannot_work_with_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^trainer\.{name}=.* must be "):
        check_training(with_option("trainer", name, value))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("precision", "bf16-mixed"),
        ("precision", None),
        ("val_check_interval", None),
        ("gradient_clip_val", 35),
        ("strategy", "ddp"),
        ("devices", 2),
        ("devices", [1]),
        ("devices", "auto"),
        ("accumulate_grad_batches", 4),
        ("deterministic", True),
        ("detect_anomaly", True),
        ("profiler", "simple"),
    ],
)
def test_what_the_trainer_can_do_is_taken(name: str, value: Any) -> None:
    check_training(with_option("trainer", name, value))


def test_what_an_option_says_is_not_resolved_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """An escaped reference is text; Hydra's own instantiate would read the environment."""
    monkeypatch.setenv("SECRET", "secret")
    node = OmegaConf.create(
        {"_target_": "comining.data.sparsity.FromFile", "path": "\\${oc.env:SECRET}"}
    )
    assert instantiate(node, "sparsity").path == "${oc.env:SECRET}"


def test_the_code_loads_no_pickles() -> None:
    """The words by which data turn into code, in the order of how often they are met."""
    words = re.compile(
        r"weights_only\s*=\s*False|\bpickle\b|\bdill\b|\bcloudpickle\b|\bjoblib\.load\b|\bmarshal\b"
        r"|\bshelve\b|allow_pickle\s*=\s*True|yaml\.(load|full_load|unsafe_load)"
        r"|torch\.hub\b(?!\.get_dir\(\))"
        r"|\beval\(|\bexec\(|\bos\.system\b|shell\s*=\s*True|load_from_checkpoint"
    )
    files = [*(ROOT / "comining").rglob("*.py"), ROOT / "train.py", ROOT / "evaluate.py"]
    assert len(files) > 30
    for file in files:
        code = file.read_text(encoding="utf-8")
        found = [
            line
            for line in code.splitlines()
            # network.eval() is torch's
            if words.search(line.replace(".eval(", ".EVAL(")) and not line.strip().startswith("#")
        ]
        assert not found, (file, found)
        calls = re.findall(r"torch\.load\(([^)]*)\)", code)
        assert all("weights_only=True" in call for call in calls), file

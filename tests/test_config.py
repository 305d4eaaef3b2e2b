"""Every configuration composes, binds to its constructor, and bad options are named."""

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf, open_dict

from comining.config import CONFIG_FOLDER, fits, instantiate, locate
from comining.errors import ConfigError
from tests.helpers import composed

ROOT = CONFIG_FOLDER.parent
GROUPS = sorted(path.name for path in CONFIG_FOLDER.iterdir() if path.is_dir())
# What a group's objects are given beside their options.
GIVEN = {
    "data": {"sparsity", "seed"},
    "detector": {"backbone", "num_classes"},
    "optimizer": {"params"},
    "trainer": set(),
}
NEEDED = {
    "coco": ["data.root=/nowhere"],
    "bccd": ["data.root=/nowhere"],
    "file": ["sparsity.path=/nowhere.json"],
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
    ("group", "name"), [(group, name) for group in GROUPS for name in choices(group)]
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
    ],
)
def test_the_authors_score_thresholds(detector: str, sparsity: str, tau: float) -> None:
    cfg = composed(*COCO, f"detector={detector}", f"sparsity={sparsity}")
    assert cfg.method.score_threshold == tau
    assert cfg.method.nms_threshold == {"retinanet": 0.5, "fcos": 0.6}[detector]


def test_thresholds_can_be_set_by_hand() -> None:
    cfg = composed(*COCO, "method.score_threshold=0.7")
    assert cfg.method.score_threshold == 0.7


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["trainer.max_steps=abc"], "trainer.max_steps='abc' must be int"),
        (["data.batch_size=1.5"], "data.batch_size=1.5 must be int"),
        (["data.batch_size=true"], "data.batch_size=True must be int"),
        (["data.missing_val=maybe"], "data.missing_val='maybe' must be"),
        (["method.views=original"], "method.views='original' must be"),
        (["+method.tau=0.5"], "unknown option method.tau; known here: .*score_threshold"),
        (["+data.prepare.colour=1"], "unknown option data.prepare.colour"),
        (["~method.score_threshold"], "method.score_threshold is missing"),
        (["data=coco"], "option data.root is missing"),
        (["method._target_=os.system"], "method._target_='os.system' is not one of"),
        (["method._target_=comining.runs.directory.os.system"], "is defined outside of what may"),
        (["method._target_=comining.nowhere"], "comining.nowhere.* cannot be imported"),
        (["data.max_size=50"], "data.max_size=50 is smaller than data.min_size=96"),
        (["data.flip=2"], "data.flip"),
        (["data.missing_val=maybe"], r"must be Literal\['error', 'train'\]"),
        (["data.prepare=5"], r"data\.prepare=5 must be Callable\[\[str\], None\] \| None"),
        (["optimizer.lr=-1"], r"optimizer \(lr=-1, .*\): Invalid learning rate: -1"),
        (["optimizer.lr=null"], r"optimizer\.lr=None must be"),
        (["+optimizer.betas=[2, 3]"], r"Invalid beta parameter"),
        (["tau=${nowhere}"], "Interpolation key 'nowhere' not found"),
        (["tau=${tau}"], r"method\.score_threshold: Recursive interpolation detected"),
        (["trainer.max_steps=-1"], "trainer.max_steps must be positive, got -1"),
        (["schedule=multistep"], "schedule.milestones=.* reach beyond trainer.max_steps=1800"),
    ],
)
def test_bad_options_are_named(overrides: list[str], words: str) -> None:
    cfg = composed(*overrides)
    with pytest.raises(ConfigError, match=words):
        build_all(cfg)


def build_all(cfg: DictConfig) -> None:
    for name in ("trainer", "method", "schedule", "optimizer"):
        instantiate(cfg[name], name)
    instantiate(cfg.data, "data", sparsity=None, seed=0)


def test_checked_types() -> None:
    assert fits(1, float)
    assert not fits(True, float)
    assert not fits(1.0, int)
    assert fits(None, int | None)
    assert not fits("x", int | None)
    assert fits([1, 2], list[int])
    assert not fits(["x"], list[int])
    assert not fits("x", Path)
    assert not fits(None, Path)
    assert not fits(None, float | Path)
    assert fits({"a": ["b"]}, Mapping[str, Sequence[str]])
    assert not fits({"a": "b"}, Mapping[str, Sequence[str]])
    assert not fits({1: ["b"]}, Mapping[str, Sequence[str]])
    assert fits([0.9, 0.99], tuple[float, float])
    assert not fits([0.9], tuple[float, float])
    assert fits([1, 2, 3], tuple[int, ...])
    assert not fits([1, "x"], tuple[int, ...])


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
    "comining.runs.directory.replace_file",
    "comining.runs.directory.os.system",
    "comining.config.hydra.utils.instantiate",
    "comining.config.functools.partial",
    "comining.config.CONFIG_FOLDER.rmdir",
    "comining.config.instantiate",
    "comining.data.sparsity.main",
    "comining.data.datamodule.L.LightningDataModule.load_from_checkpoint",
    "comining.detectors.backbones.get_model_weights",
    "comining.tracking.loggers.os.replace",
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


def test_hydras_other_keywords_are_unknown() -> None:
    for key, value in (("_args_", ["x"]), ("_recursive_", False)):
        for node in ({"_target_": "lightning.pytorch.Trainer"}, {"_target_": "torch.optim.SGD"}):
            with pytest.raises(ConfigError, match=f"unknown option x.{key}"):
                instantiate(OmegaConf.create({**node, key: value}), "x")
    partial = OmegaConf.create({"_target_": "torch.optim.SGD", "_partial_": "yes"})
    with pytest.raises(ConfigError, match=r"x\._partial_='yes' must be bool"):
        instantiate(partial, "x")


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
        r"|\bshelve\b|allow_pickle\s*=\s*True|yaml\.(load|full_load|unsafe_load)|torch\.hub\b"
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

"""Every configuration composes, binds to its constructor, and bad options are named."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf, open_dict

from comining.config import CONFIG_FOLDER, fits, instantiate, locate
from comining.errors import ConfigError
from tests.helpers import composed

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
        (["method._target_=comining.run_directory.os.system"], "is defined outside of what may"),
        (["method._target_=comining.nowhere"], "comining.nowhere.* cannot be imported"),
        (["data.max_size=50"], "data.max_size=50 is smaller than data.min_size=96"),
        (["data.flip=2"], "data.flip"),
        (["trainer.max_steps=-1"], "trainer.max_steps must be positive, got -1"),
        (["schedule=multistep"], "schedule.milestones=.* reach beyond trainer.max_steps=1800"),
    ],
)
def test_bad_options_are_named(overrides: list[str], words: str) -> None:
    cfg = composed(*overrides)
    with pytest.raises(ConfigError, match=words):
        build_all(cfg)


def build_all(cfg: DictConfig) -> None:
    for name in ("trainer", "method", "schedule"):
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


def test_a_partial_is_given_the_rest_later() -> None:
    cfg = composed()
    optimizer = instantiate(cfg.optimizer, "optimizer")
    built = optimizer([torch.nn.Parameter(torch.zeros(1))])
    assert isinstance(built, torch.optim.AdamW)
    assert built.defaults["lr"] == 0.004


def test_nothing_foreign_is_built_from_a_nested_node() -> None:
    cfg: DictConfig = composed()
    with open_dict(cfg):
        cfg.data.prepare = {"_target_": "subprocess.call", "args": ["true"]}
    with pytest.raises(ConfigError, match=r"data\.prepare\._target_='subprocess\.call'"):
        instantiate(cfg.data, "data", sparsity=None, seed=0)

"""Small stand-ins that tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from comining.checkpoint import build_detector
from comining.config import instantiate
from comining.detectors.base import DenseDetector
from comining.methods.base import Method

CONF = Path(__file__).resolve().parents[1] / "conf"


def composed(*overrides: str, name: str = "train") -> DictConfig:
    """The configuration that a command line gives, with Hydra's own part in place."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(name, overrides=list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    return cfg


def method(name: str, **options: Any) -> Method:
    cfg = composed(f"method={name}")
    with open_dict(cfg):
        cfg.method.update(options)
    built: Method = instantiate(cfg.method, "method")
    return built


def comining(**options: Any) -> Any:
    return method("comining", **options)


def detector(name: str, num_classes: int, *overrides: str) -> DenseDetector:
    cfg = composed(f"detector={name}", *overrides)
    config: Any = {
        key: OmegaConf.to_container(cfg[key], resolve=True) for key in ("backbone", "detector")
    }
    return build_detector(config, num_classes, pretrained=False)

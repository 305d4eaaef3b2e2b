"""Small stand-ins that tests share."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from PIL import Image

from comining.config import CONFIG_FOLDER, instantiate
from comining.detectors.dense import DenseDetector
from comining.methods.method import Method
from comining.runs.checkpoint import build_detector
from comining.structures import Batch, Boxes, DensePredictions, Images, Knowledge

DATA = Path(
    os.environ.get("COMINING_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")
)


def real_data(name: str) -> Path:
    """The folder of a real data set; the test is skipped where it is absent."""
    if not (DATA / name).is_dir():
        pytest.skip(
            f"{DATA / name} is absent: set COMINING_TEST_DATA to a folder that holds {name}"
        )
    return DATA / name


def composed(*overrides: str, name: str = "train", run: Path | None = None) -> DictConfig:
    """The configuration that a command line gives, with Hydra's own part in place."""
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        cfg = compose(name, overrides=list(overrides), return_hydra_config=True)
    with open_dict(cfg):
        cfg.hydra.runtime.output_dir = str(run or "unused")
        cfg.hydra.mode = RunMode.RUN
        HydraConfig.instance().set_config(cfg)
        del cfg["hydra"]
    return cfg


def composed_with_hydra(*overrides: str) -> DictConfig:
    """The same, with Hydra's own part, for looking at it."""
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return compose("train", overrides=list(overrides), return_hydra_config=True)


def method(name: str, **options: Any) -> Any:
    """A method as its yaml builds it, with some options replaced."""
    cfg = composed(f"method={name}")
    with open_dict(cfg):
        cfg.method.update(options)
    built: Method = instantiate(cfg.method, "method")
    return built


def detector(name: str, num_classes: int, *overrides: str) -> DenseDetector:
    """A detector as its yaml builds it."""
    torch.manual_seed(0)
    cfg = composed(f"detector={name}", *overrides)
    config: Any = {
        key: OmegaConf.to_container(cfg[key], resolve=True) for key in ("backbone", "detector")
    }
    return build_detector(config, num_classes, pretrained=False)


Rows = Sequence[Sequence[float]]


def boxes(*rows_of_images: Rows, scores: bool = False) -> Boxes:
    """Boxes of a batch, from rows (x1, y1, x2, y2, label) or (..., label, score) of every image.

    Args:
        scores: that the boxes have scores, where there is no row to tell.
    """
    widths = {len(row) for rows in rows_of_images for row in rows} or {6 if scores else 5}
    (width,) = widths  # all rows with a score or none
    tables = [torch.tensor(rows, dtype=torch.float32).reshape(-1, width) for rows in rows_of_images]
    return Boxes.of_images(
        [table[:, :4] for table in tables],
        [table[:, 4].long() for table in tables],
        [table[:, 5] for table in tables] if width == 6 else None,
    )


def batch_of(
    annotated: Boxes, erased: Boxes | None = None, pseudo_labels: Boxes | None = None
) -> Batch:
    """A batch for methods, which look at the boxes only; its images are single pixels."""
    count = annotated.num_images
    return Batch(
        images=Images.of([torch.zeros(3, 1, 1, dtype=torch.uint8)] * count),
        annotated=annotated,
        erased=Boxes.empty(count) if erased is None else erased,
        held_back=Boxes.empty(count),
        knowledge=Knowledge.nothing(count, 3),
        judged=torch.ones(count, 3, dtype=torch.bool),
        pseudo_labels=Boxes.empty(count, scores=True) if pseudo_labels is None else pseudo_labels,
        image_ids=list(range(1, count + 1)),
        positions=list(range(count)),
    )


def assert_equal(one: Boxes, other: Boxes) -> None:
    """The same boxes to the last bit, in the same order and images."""
    assert one.num_images == other.num_images
    assert one.counts == other.counts
    assert torch.equal(one.image, other.image)
    assert torch.equal(one.labels, other.labels)
    assert torch.equal(one.boxes, other.boxes)
    assert (one.scores is None) == (other.scores is None)
    if one.scores is not None:
        assert torch.equal(one.scores, other.known_scores)


def images(count: int, height: int = 64, width: int = 96) -> list[torch.Tensor]:
    """Noise of one size."""
    generator = torch.Generator().manual_seed(0)
    shape = (count, 3, height, width)
    return list(torch.randint(256, shape, dtype=torch.uint8, generator=generator))


def random_predictions(
    built: DenseDetector, count: int, height: int = 64, width: int = 96, seed: int = 0
) -> DensePredictions:
    """What a detector could have said: logits of both signs, boxes of all sizes."""
    with torch.no_grad():
        predictions = built.predict(images(count, height, width))
    generator = torch.Generator().manual_seed(seed)
    predictions.logits = torch.randn(predictions.logits.shape, generator=generator) * 2 - 1
    predictions.deltas = torch.randn(predictions.deltas.shape, generator=generator) * 0.3
    for name, shape in {name: m.shape for name, m in predictions.auxiliary.items()}.items():
        predictions.deltas = predictions.deltas.abs() * 5  # distances of FCOS
        predictions.auxiliary[name] = torch.randn(shape, generator=generator)
    return predictions


def write_coco(
    root: Path,
    records: list[list[tuple[float, float, float, float, int]]],
    *,
    width: int = 64,
    height: int = 48,
    split: str = "train",
) -> Path:
    """A COCO set of noise: for every image its (x, y, w, h, category id); categories 1, 2, 3."""
    folder = root / split
    folder.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": k, "name": f"class {k}"} for k in (1, 2, 3)],
    }
    rng = np.random.default_rng(0)
    for number, boxes in enumerate(records, start=1):
        name = f"{number:03d}.png"
        noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / name)
        content["images"].append(
            {"id": number, "file_name": name, "width": width, "height": height}
        )
        for x, y, w, h, category in boxes:
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": number,
                    "category_id": category,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                }
            )
    file = root / f"{split}.json"
    file.write_text(json.dumps(content))
    return file


def edit_json(file: Path, change: Any) -> Path:
    """Apply a function to the content of a JSON file."""
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return file

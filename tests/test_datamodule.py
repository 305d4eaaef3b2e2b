"""What the data module reads for a stage, and what its loaders deliver."""

import os
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import open_dict

from comining.config import CONFIG_FOLDER, instantiate
from comining.data.datamodule import DetectionData
from comining.errors import DataError
from comining.evaluation.coco_evaluator import CocoEvaluator
from tests.helpers import boxes, composed, write_coco

BOX = (1, 2, 10, 12, 1)


def coco_data(root: Path, **options: Any) -> DetectionData:
    """A data module over the splits of a folder, with whatever of it is there."""
    cfg = composed("data=custom", "sparsity=full")
    with open_dict(cfg):
        cfg.data.root = str(root)
        for split in ("train", "val", "test"):
            cfg.data[f"{split}_annotations"] = f"{split}.json"
            cfg.data[f"{split}_images"] = split
        cfg.data.update({"num_workers": 0, "min_size": 48, **options})
        sparsity = instantiate(cfg.sparsity, "sparsity")
    built: DetectionData = instantiate(cfg.data, "data", sparsity=sparsity, seed=0)
    return built


def attach(data: DetectionData, rank: int, world_size: int, **options: int) -> None:
    stub: Any = SimpleNamespace(global_rank=rank, world_size=world_size, **options)
    data.trainer = stub


# -- what a stage needs ------------------------------------------------------------------


def test_testing_needs_the_test_split_only(tmp_path: Path) -> None:
    write_coco(tmp_path, [[BOX], [BOX]], split="test")
    data = coco_data(tmp_path)
    data.setup("test")
    assert list(data.evaluated) == ["test"]
    assert data.categories.names == ("class 1", "class 2", "class 3")
    assert [batch.image_ids for batch in data.test_dataloader()] == [[1, 2]]
    assert set(data.summary()) == {"test"}
    with pytest.raises(DataError, match=r"missing for val: .*val\.json"):
        data.setup("validate")


def test_validating_needs_the_validation_split_only(tmp_path: Path) -> None:
    write_coco(tmp_path, [[BOX]], split="val")
    data = coco_data(tmp_path)
    data.setup("validate")
    assert list(data.evaluated) == ["val"]
    with pytest.raises(DataError, match=r"missing for test: .*test\.json"):
        data.setup("test")


def test_categories_are_compared_between_all_that_was_read(tmp_path: Path) -> None:
    write_coco(tmp_path, [[BOX]], split="test")
    file = write_coco(tmp_path, [[BOX]], split="val")
    file.write_text(file.read_text().replace("class 2", "another"))
    data = coco_data(tmp_path)
    data.setup("test")
    with pytest.raises(DataError, match=r"categories of .*val\.json and .*test\.json differ"):
        data.setup("validate")


# -- shares of processes -----------------------------------------------------------------


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize(("images", "ranks"), [(5, 2), (2, 2), (2, 5), (1, 3)])
def test_every_process_evaluates_an_image_and_every_image_counts_once(
    tmp_path: Path, split: str, images: int, ranks: int
) -> None:
    """Also where there are fewer images than processes."""
    write_coco(tmp_path, [[BOX]] * images, split=split)
    data = coco_data(tmp_path)
    data.setup({"val": "validate", "test": "test"}[split])
    evaluator = CocoEvaluator(data.evaluated[split])
    shares = []
    for rank in range(ranks):
        attach(data, rank, ranks)
        loader = data.val_dataloader() if split == "val" else data.test_dataloader()
        batches = list(loader)
        shares.append([image_id for batch in batches for image_id in batch.image_ids])
        for batch in batches:
            found = boxes(*[[(1, 2, 11, 14, 0, 0.9)]] * len(batch.image_ids))
            evaluator.update(batch.image_ids, found)
    plain = [list(range(1, images + 1))[rank::ranks] for rank in range(ranks)]
    for rank, (share, expected) in enumerate(zip(shares, plain, strict=True)):
        assert share == (expected or [rank % images + 1])
    assert len(evaluator.results()) == images
    assert evaluator.compute()["AP"] == pytest.approx(100)
    assert evaluator.compute()["AR1"] == pytest.approx(100)


# -- batches across processes ------------------------------------------------------------


def tensors(part: Any) -> int:
    """How many tensors an object holds: so many file descriptors it takes between processes."""
    if isinstance(part, torch.Tensor):
        return 1
    if is_dataclass(part):
        return sum(tensors(getattr(part, field.name)) for field in fields(part))
    if isinstance(part, list | tuple):
        return sum(map(tensors, part))
    return 0


@pytest.mark.parametrize("size", [2, 24])
def test_a_batch_holds_the_same_few_tensors_however_large(tmp_path: Path, size: int) -> None:
    write_coco(tmp_path, [[BOX, (20, 20, 30, 20, 3)]] * 4)
    write_coco(tmp_path, [[BOX]] * size, split="val")
    write_coco(tmp_path, [[BOX]], split="test")
    data = coco_data(tmp_path, batch_size=size, val_batch_size=size)
    data.setup("fit")
    attach(data, 0, 1, global_step=0, max_steps=1, accumulate_grad_batches=1)
    (batch,) = data.train_dataloader()
    assert len(batch.images) == size
    # pixels, rate, what is judged, three columns for each of four kinds of boxes, and four with
    # scores
    assert tensors(batch) == 1 + 1 + 1 + 4 * 3 + 4
    (batch,) = data.val_dataloader()
    assert len(batch.images) == size
    assert tensors(batch) == 1


LARGE_BATCHES = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
from pathlib import Path
from tests.test_datamodule import attach, coco_data
data = coco_data(Path("set"), batch_size=128, num_workers=2)
data.setup("fit")
attach(data, 0, 1, global_step=0, max_steps=8, accumulate_grad_batches=1)
batches = list(data.train_dataloader())  # all are held, as no training loop would
print(len(batches), {len(batch.images) for batch in batches})
"""


def test_large_batches_need_few_file_descriptors(tmp_path: Path) -> None:
    """With tensors for every image, one batch would take a thousand of them."""
    for split in ("train", "val", "test"):
        write_coco(tmp_path / "set", [[BOX]] * 8, split=split)
    done = subprocess.run(
        [sys.executable, "-c", LARGE_BATCHES],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(CONFIG_FOLDER.parent)},
        capture_output=True,
        text=True,
        timeout=180,  # where descriptors run out, a loader may hang
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[-2] == "8 {128}"

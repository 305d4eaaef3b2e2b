"""A method with state and a detector of another kind: one file and one yaml each, nothing else.

(A logger of one's own is in test_loggers.py, a method in ten lines in test_readme.py.)
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.ddp import ROOT, TINY
from tests.test_resume import same

FILES = {
    "comining/methods/shy.py": '''
import torch
from comining.detectors.detector import Background
from comining.methods.method import Method


class Shy(Method):
    """Counts its steps, and trusts the background less as they go by."""

    def __init__(self, views, *, factor: float):
        super().__init__(views)
        self.factor = factor
        self.register_buffer("steps", torch.zeros(()))

    def background(self, regions, batch):
        weight = self.factor ** self.steps
        return Background(torch.where(regions.positive, 1.0, weight))

    def after_step(self, detector, step):
        self.steps += 1
''',
    "conf/method/shy.yaml": '''
_target_: comining.methods.shy.Shy
views: [original]
factor: 0.5
''',
    "comining/detectors/grid.py": '''
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

from comining.detectors.backbones import Backbone
from comining.detectors.detector import Background, Detector, Regions
from comining.detectors.losses import normalizer
from comining.ops import iou_in_image, suppress
from comining.structures import Boxes, Predictions

CELLS = 4


@dataclass
class GridPredictions(Predictions):
    logits: torch.Tensor  # [B, C, K]
    image_sizes: list

    @property
    def num_classes(self):
        return self.logits.shape[-1]

    @property
    def scores_per_image(self):
        return self.logits[0].numel()

    def detach(self):
        return replace(self, logits=self.logits.detach())

    def split(self, size):
        return [
            GridPredictions(part, self.image_sizes[n * size : (n + 1) * size])
            for n, part in enumerate(self.logits.split(size))
        ]

    def cells(self):
        """[B, C, 4]: no two images need to have the same ones."""
        corner = torch.cartesian_prod(torch.arange(CELLS), torch.arange(CELLS)).flip(1) / CELLS
        unit = torch.cat([corner, corner + 1 / CELLS], dim=1)
        sizes = torch.tensor([(w, h, w, h) for h, w in self.image_sizes])
        return (unit * sizes[:, None]).to(self.logits)


class GridRegions(Regions):
    def __init__(self, predictions, targets, labels):
        self.predictions, self.targets, self.labels = predictions, targets, labels
        self.logits, self.anchors = predictions.logits, predictions.cells()

    def overlap(self, boxes):
        return best(self.predictions, boxes)[0]

    def assign(self, boxes):
        return labels_of(self.predictions, boxes)


def best(predictions, boxes):
    cells = predictions.cells()
    count, num = cells.shape[:2]
    image = torch.arange(count).repeat_interleave(num)
    flat = Boxes(cells.flatten(0, 1), torch.zeros_like(image), image, count)
    iou, labels = iou_in_image(flat, boxes)
    value, index = iou.max(dim=1)
    return value.view(count, num), labels.gather(1, index[:, None]).view(count, num)


def labels_of(predictions, boxes):
    iou, labels = best(predictions, boxes)
    return torch.where(iou > 0.2, labels, predictions.num_classes)


class GridDetector(Detector):
    """A class for every cell of a grid: no pyramid, no anchors, no boxes to learn."""

    def __init__(
        self, backbone: Backbone, num_classes: int, *, channels: int, nms_threshold: float,
        focal_alpha: float, focal_gamma: float,
    ):
        super().__init__()
        self.nms_threshold = nms_threshold
        self.net = nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1), nn.ReLU(), nn.AdaptiveMaxPool2d(CELLS),
            nn.Conv2d(channels, num_classes, 1),
        )

    def predict(self, images):
        sizes = [tuple(image.shape[-2:]) for image in images]
        maps = torch.cat([self.net(image[None].float() / 255) for image in images])
        return GridPredictions(maps.flatten(2).transpose(1, 2), sizes)

    def candidates(self, predictions, threshold):
        scores = predictions.logits.sigmoid()
        image, cell, label = (scores > threshold).nonzero(as_tuple=True)
        boxes = predictions.cells()[image, cell]
        return Boxes(boxes, label, image, len(predictions), scores[image, cell, label])

    def losses(self, predictions, targets, background=None, knowledge=None):
        labels = labels_of(predictions, targets)
        said = Background()
        if background is not None:
            said = background(GridRegions(predictions, targets, labels))
        wanted = F.one_hot(labels, predictions.num_classes + 1)[..., :-1].float()
        loss = F.binary_cross_entropy_with_logits(predictions.logits, wanted, reduction="none")
        if said.weights is not None:
            weights = said.weights
            loss = loss * (weights if weights.dim() == 3 else weights[..., None])
        positives = normalizer((labels < predictions.num_classes).sum().float(), smallest=1.0)
        terms = {name: term / positives for name, term in said.terms.items()}
        return {"classification": loss.sum() / positives, **terms}

    @torch.no_grad()
    def detect(self, images):
        predictions = self.predict(images)
        boxes = self.candidates(predictions, 0.0)
        return suppress(boxes, predictions.num_classes, self.nms_threshold, 100)
''',
    "conf/detector/grid.yaml": '''
_target_: comining.detectors.grid.GridDetector
channels: 8
# Methods refer to these.
nms_threshold: 0.5
focal_alpha: 0.25
focal_gamma: 2.0
''',
}  # fmt: skip


@pytest.fixture(scope="module")
def project(module_path: Path) -> Path:
    for name in ("comining", "conf"):
        shutil.copytree(
            ROOT / name, module_path / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("train.py", "evaluate.py"):
        shutil.copy(ROOT / name, module_path)
    for name, text in FILES.items():
        (module_path / name).write_text(text.lstrip())
    return module_path


def call(project: Path, program: str, *options: str) -> None:
    done = subprocess.run(
        [sys.executable, program, *options], cwd=project, capture_output=True, text=True,
        timeout=300, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_method_with_state_and_a_detector_of_another_kind(project: Path) -> None:
    data = f"data.root={project / 'shapes'}"
    options = [*TINY, data, "method=shy", "detector=grid", "checkpoint.every_n_steps=1"]
    call(project, "train.py", *options, "hydra.run.dir=whole")
    state = torch.load(project / "whole" / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["state_dict"]["method.steps"] == 6

    shutil.copytree(project / "whole", project / "again")
    (project / "again" / "result.json").unlink()
    checkpoints = project / "again" / "checkpoints"
    shutil.copy(checkpoints / "step_000004.ckpt", checkpoints / "last.ckpt")
    call(project, "train.py", "resume=again")
    same(project / "whole", project / "again")

    call(project, "evaluate.py", "checkpoint=whole/checkpoints/last.ckpt", "hydra.run.dir=ev",
         "trainer.accelerator=cpu")  # fmt: skip
    result = json.loads((project / "whole" / "result.json").read_text())
    evaluated = json.loads((project / "ev" / "evaluation.json").read_text())
    assert evaluated["metrics"] == result["metrics"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", ["comining", "mean_teacher", "soft_sampling", "background_recalibration"]
)
def test_methods_know_nothing_of_the_kind_of_a_detector(project: Path, method: str) -> None:
    data = f"data.root={project / 'shapes'}"
    options = [*TINY, data, f"method={method}", "detector=grid", "tau=0.3"]
    call(project, "train.py", *options, f"hydra.run.dir={method}")
    result = json.loads((project / method / "result.json").read_text())
    assert (result["detector"], result["status"]) == ("grid", "finished")

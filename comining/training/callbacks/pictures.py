"""Pictures of mined boxes and of detections, on disk and for the logger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import lightning as L
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from comining.data.datamodule import DetectionData
from comining.data.dataset import collate
from comining.data.sampler import SampleKey
from comining.evaluation.mining_metric import KINDS, judge
from comining.option_types import Fraction, NonNegativeInt, PositiveInt
from comining.runs.files import write_json
from comining.structures import Batch, Boxes
from comining.tracking.drawing import (
    ANNOTATED,
    DETECTED,
    ERASED,
    IGNORED,
    MINED,
    MINED_BY,
    PASTED,
    Layer,
    Style,
    captioned,
    crop,
    panel,
    sheet,
)
from comining.tracking.tracker import LabelledImage, Tracker
from comining.training.training_module import DetectionModule

# The longer side of a picture in a sheet, px: for small and for larger pictures.
PANEL = (260, 400)


class Pictures(L.Callback):
    """Overview images (sheets) of the same few images, drawn repeatedly during training.

    ``mined_NNNNNN.png``: both views side by side with annotated, erased and mined boxes (the
    paper's Figure 3); ``mined_over_time.png``: the original views at successive steps;
    ``detections_NNNNNN.png``: detections on validation images (Figure 4); at the end
    ``wrong.png`` and ``wrong.json``: mined boxes that are wrong, by kind, with counts (Figure 5).

    For a method that mines nothing, only the detections are drawn.

    Args:
        folder: the output folder.
        every_n_steps: interval in optimizer steps; also drawn at the end. 0 draws nothing.
        images: how many training images and validation images.
        judged_images: how many training images the sheet of wrong boxes is made from.
        score_threshold: detections below it are not drawn.
        tracker: gets the pictures, and the boxes in them.
    """

    def __init__(
        self,
        folder: str,
        *,
        every_n_steps: NonNegativeInt,
        images: PositiveInt,
        judged_images: PositiveInt,
        score_threshold: Fraction,
        tracker: Tracker,
    ):
        self.folder = Path(folder)
        self.every_n_steps = every_n_steps
        self.images = images
        self.judged_images = judged_images
        self.score_threshold = score_threshold
        self.tracker = tracker
        self.drawn_step = -1
        self.written: list[Path] = []  # sheets, in the order of their first appearance

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # in the middle of a step
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0:
            self._draw(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.every_n_steps and trainer.is_global_zero:
            self._draw(trainer, pl_module)
            self._draw_wrong(trainer, pl_module)

    @torch.no_grad()
    def _draw(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        step = trainer.global_step
        if not trainer.is_global_zero or step == self.drawn_step:
            return
        if not isinstance(module, DetectionModule):
            raise TypeError(f"{type(module).__name__} mines nothing")
        self.drawn_step = step
        data = _data(trainer)
        self._draw_mined(trainer, module, data, step)
        training = module.training
        module.eval()
        self._draw_detections(trainer, module, data, step)
        module.train(training)

    def _draw_mined(
        self, trainer: L.Trainer, module: DetectionModule, data: DetectionData, step: int
    ) -> None:
        batch = _batch(data, _spread_where_erased(data, self.images), module.device)
        views, mined = mine(module, batch, step)
        if not mined:
            return
        sides: dict[str, list[Image.Image]] = {}
        for view, images in views.items():
            seen, boxes = module.method.seen_in(view, batch, mined[view])
            seen_annotated, seen_pasted = seen.own_and_pasted()
            sides[view] = [
                panel(image, _layers(MINED, *of_image), _scale(image))
                for image, *of_image in zip(
                    images, seen_annotated.split(), seen_pasted.split(), seen.erased.split(),
                    seen.knowledge.ignored.split(), boxes.split(), strict=True,
                )
            ]  # fmt: skip
        panels = [
            captioned(side, f"{view} view, image {image_id}")
            for image_id, *both in zip(batch.image_ids, *sides.values(), strict=True)
            for view, side in zip(sides, both, strict=True)
        ]
        styles = _styles(batch)
        title = f"Step {step}: boxes mined in each view (they supervise the other view)"
        if len(views) == 1:
            title = f"Step {step}: mined boxes"
        page = sheet(panels, 2 * len(views), styles, title)
        self._save(page, f"mined_{step:06d}.png")
        self.tracker.picture("pictures/mined", page, step)
        self._draw_over_time(next(iter(sides.values())), batch.image_ids, step, styles)
        logged = []
        annotated, pasted = batch.own_and_pasted()
        drawn = [(ANNOTATED, annotated), (ERASED, batch.erased)]
        drawn += [(PASTED, pasted)] if PASTED in styles else []
        drawn += [(IGNORED, batch.knowledge.ignored)] if IGNORED in styles else []
        drawn += [(MINED_BY[view], boxes) for view, boxes in mined.items()]
        for n, image in enumerate(batch.images):
            of_image = [(style, boxes.of_image(n)) for style, boxes in drawn]
            layers = [Layer(style, boxes.boxes) for style, boxes in of_image]
            labels = [boxes.labels for _, boxes in of_image]
            logged.append(LabelledImage(image, layers, labels))
        self.tracker.boxes("pictures/mined", logged, step, data.categories.names)

    def _draw_over_time(
        self,
        panels: Sequence[Image.Image],
        image_ids: Sequence[int],
        step: int,
        styles: Sequence[Style],
    ) -> None:
        """One row per image, one column per step; earlier columns are read back from disk."""
        folder = self.folder / "steps"
        folder.mkdir(parents=True, exist_ok=True)
        for image_id, picture in zip(image_ids, panels, strict=True):
            picture.save(folder / f"{image_id}_{step:06d}.png")
        steps = sorted({int(file.stem.split("_")[1]) for file in folder.glob("*.png")})
        steps = [drawn for drawn in steps if drawn <= step]
        most = 6
        if len(steps) > most:
            steps = [steps[round(n)] for n in np.linspace(0, len(steps) - 1, most)]
        rows = []
        for image_id in image_ids:
            for drawn in steps:
                file = folder / f"{image_id}_{drawn:06d}.png"
                if file.exists():
                    with Image.open(file) as earlier:
                        rows.append(captioned(earlier.copy(), f"step {drawn}, image {image_id}"))
        title = "Boxes mined by the first view in the same images during training"
        page = sheet(rows, len(steps), styles, title)
        self._save(page, "mined_over_time.png")

    def _draw_detections(
        self, trainer: L.Trainer, module: DetectionModule, data: DetectionData, step: int
    ) -> None:
        images = data.val_set
        if images is None:
            raise RuntimeError("the data have not been set up")
        annotations = images.annotations
        panels, logged = [], []
        chosen = np.linspace(0, len(images) - 1, min(self.images, len(images))).astype(int)
        for index in chosen.tolist():
            image_id, image = images[index]
            detections = module.deployed.detect([image.to(module.device)])
            detections = detections[detections.known_scores >= self.score_threshold]
            of_image = annotations.image == index
            rows = np.flatnonzero(of_image & ~annotations.crowd)
            regions = np.flatnonzero(of_image & annotations.crowd)
            boxes, ignored = (
                torch.from_numpy(annotations.boxes[of_kind]).float() for of_kind in (rows, regions)
            )
            captions = [
                f"{data.categories.names[label]} {score:.2f}"
                for label, score in zip(
                    detections.labels.tolist(), detections.known_scores.tolist(), strict=True
                )
            ]
            layers = [Layer(ANNOTATED, boxes), Layer(DETECTED, detections.boxes, captions)]
            labels = [torch.from_numpy(annotations.labels[rows]), detections.labels]
            if len(regions):
                layers.insert(0, Layer(IGNORED, ignored))
                labels.insert(0, torch.from_numpy(annotations.labels[regions]))
            panels.append(captioned(panel(image, layers, _scale(image)), f"image {image_id}"))
            logged.append(LabelledImage(image, layers, labels))
        styles = [ANNOTATED, DETECTED]
        if annotations.crowd[np.isin(annotations.image, chosen)].any():
            styles.insert(0, IGNORED)
        title = f"Step {step}: detections over {self.score_threshold:g} on validation images"
        page = sheet(panels, min(4, len(panels)), styles, title)
        self._save(page, f"detections_{step:06d}.png")
        self.tracker.picture("pictures/detections", page, step)
        self.tracker.boxes("pictures/detections", logged, step, data.categories.names)

    @torch.no_grad()
    def _draw_wrong(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not isinstance(module, DetectionModule):
            raise TypeError(f"{type(module).__name__} mines nothing")
        data, step = _data(trainer), trainer.global_step
        if data.train_set is None:
            raise RuntimeError("the data have not been set up")
        wrong = WrongPseudoLabels(data.categories.names)
        chosen = np.linspace(
            0, len(data.train_set) - 1, min(self.judged_images, len(data.train_set))
        ).astype(int)
        size = max(1, data.batch_size // trainer.world_size)
        for start in range(0, len(chosen), size):
            batch = _batch(data, chosen[start : start + size].tolist(), module.device)
            views, mined = mine(module, batch, step)
            for view, boxes in mined.items():
                seen, in_view = module.method.seen_in(view, batch, boxes)
                wrong.add(view, views[view], seen, in_view)
        if not wrong.judged:
            return
        page = wrong.sheet(f"Step {step}, {len(chosen)} training images")
        self._save(page, "wrong.png")
        self.tracker.picture("pictures/wrong", page, step)
        write_json(
            self.folder / "wrong.json",
            {"step": step, "images": len(chosen), "mined": wrong.total, **wrong.counts},
        )
        self.written.append(self.folder / "wrong.json")

    def _save(self, page: Image.Image, name: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        page.save(self.folder / name)
        if self.folder / name not in self.written:
            self.written.append(self.folder / name)


class WrongPseudoLabels:
    """Collects mined boxes that can be judged and draws those that are wrong, kind by kind.

    Args:
        class_names: of the K classes.
        examples: boxes of a kind that are drawn; all are counted.
    """

    def __init__(self, class_names: Sequence[str], examples: int = 6):
        self.class_names = class_names
        self.examples = examples
        self.counts = dict.fromkeys(KINDS, 0)
        self.panels: dict[str, list[Image.Image]] = {kind: [] for kind in KINDS[1:]}
        self.judged = False
        self.ignored = False  # whether there are regions to ignore in the images
        self.pasted = False  # whether an image had pasted objects

    @property
    def total(self) -> int:
        """Boxes that were added: the sum of all counts."""
        return sum(self.counts.values())

    def add(self, view: str, images: Sequence[Tensor], batch: Batch, mined: Boxes) -> None:
        """Judge the boxes mined in one view of the images of a batch."""
        if not batch.judged.any():
            return
        self.judged = True
        self.ignored |= len(batch.knowledge.ignored) > 0
        self.pasted |= any(batch.pasted)
        mined = mined[batch.judged[mined.image, mined.labels]]
        kinds = iter(judge(mined, batch.erased, batch.annotated).tolist())
        annotated_of, pasted_of = batch.own_and_pasted()
        rows = zip(
            images, batch.image_ids, annotated_of.split(), pasted_of.split(), batch.erased.split(),
            batch.knowledge.ignored.split(), mined.split(), strict=True,
        )  # fmt: skip
        for image, image_id, annotated, pasted, erased, ignored, of_image in rows:
            for n in range(len(of_image)):
                kind = KINDS[next(kinds)]
                self.counts[kind] += 1
                if kind == "right" or len(self.panels[kind]) >= self.examples:
                    continue
                box = of_image[torch.tensor([n], device=of_image.image.device)]
                words = f"{self.class_names[int(box.labels)]} {box.known_scores.item():.2f}"
                layers = _layers(MINED, annotated, pasted, erased, ignored, box)
                around = crop(image, box.boxes[0], layers)
                small = panel(*around, 180 / max(around[0].shape[-2:]))
                self.panels[kind].append(captioned(small, f"{words}\n{view}, image {image_id}"))

    def sheet(self, title: str) -> Image.Image:
        """The sheet: one row per kind, with its count."""
        blank = Image.new("RGB", (180, 180), (235, 235, 235))
        panels = []
        for kind, drawn in self.panels.items():
            of = self.counts[kind] / max(1, self.total)
            label = blank.copy()
            panels.append(captioned(label, "\n", lines=[
                kind.replace("_", " "), f"{self.counts[kind]} of {self.total}", f"{of:.0%}"
            ]))  # fmt: skip
            filled = drawn + [captioned(blank, "\n")] * (self.examples - len(drawn))
            panels += filled
        right = self.counts["right"]
        words = f"{title}: {right} of {self.total} mined boxes are right; these are not"
        ignored, pasted = [IGNORED] if self.ignored else [], [PASTED] if self.pasted else []
        styles = [*ignored, ANNOTATED, *pasted, ERASED, MINED]
        return sheet(panels, self.examples + 1, styles, words)


@torch.no_grad()
def mine(
    module: DetectionModule, batch: Batch, step: int
) -> tuple[dict[str, Sequence[Tensor]], Mapping[str, Boxes]]:
    """Mine in a batch with the current network, as in a training step.

    The network is in training mode; statistics that this would update are restored.

    Returns:
        the images of every mined view, and the pseudo-labels that were found in each.
    """
    method = module.method
    views = module.views(batch, [*method.views, *method.mined_views])
    training, statistics = module.training, {n: b.clone() for n, b in module.named_buffers()}
    module.train()
    predictions = module.detector.predict([image for view in method.views for image in views[view]])
    supervision = method.supervise_unknown(module.detector, predictions, views, batch, step)
    for name, buffer in module.named_buffers():
        buffer.copy_(statistics[name])
    module.train(training)
    return {view: views[view] for view in method.mined_views}, supervision.pseudo_labels


def _data(trainer: L.Trainer) -> DetectionData:
    data = trainer.datamodule  # type: ignore[attr-defined]  # set by a connector
    if not isinstance(data, DetectionData):
        raise TypeError(f"pictures need a DetectionData, not {type(data).__name__}")
    return data


def _batch(data: DetectionData, items: Sequence[int], device: torch.device) -> Batch:
    """Training images by their number, which is also the position that seeds flip and view."""
    if data.train_set is None:
        raise RuntimeError("the data have not been set up")
    batch = collate([data.train_set[SampleKey(item, item)] for item in items])
    return batch.to(device)


def _spread_where_erased(data: DetectionData, count: int) -> list[int]:
    """Training images spread over the set, preferably those that lost an annotation."""
    if data.train_set is None:
        raise RuntimeError("the data have not been set up")
    lost = [
        item
        for item, image in enumerate(data.train_set.images.tolist())
        if len(data.train_set.erased_rows[image])
    ]
    items = lost or list(range(len(data.train_set)))
    return [items[n] for n in np.linspace(0, len(items) - 1, min(count, len(items))).astype(int)]


def _layers(
    style: Style, annotated: Boxes, pasted: Boxes, erased: Boxes, ignored: Boxes, mined: Boxes
) -> list[Layer]:
    columns = (
        (IGNORED, ignored), (ANNOTATED, annotated), (PASTED, pasted), (ERASED, erased),
        (style, mined),
    )  # fmt: skip
    # Empty layers are left out: they would move the others outwards.
    some = (IGNORED, PASTED)
    return [Layer(s, boxes.boxes) for s, boxes in columns if s not in some or len(boxes)]


def _styles(batch: Batch) -> list[Style]:
    """The styles of a batch, for the legend."""
    ignored = [IGNORED] if len(batch.knowledge.ignored) else []
    pasted = [PASTED] if any(batch.pasted) else []
    return [*ignored, ANNOTATED, *pasted, ERASED, MINED]


def _scale(image: Tensor) -> float:
    longest = max(image.shape[-2:])
    return PANEL[longest > PANEL[0] / 2] / longest

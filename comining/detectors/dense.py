"""One-stage detectors: a class score for every anchor or point of a feature pyramid."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import torch
from torch import Tensor
from torchvision.models.detection import FCOS, RetinaNet

from comining.detectors.detector import (
    NO_OBJECT,
    Background,
    BackgroundRule,
    Regions,
)
from comining.detectors.known_entries import silent_entries, without_own_entries
from comining.detectors.losses import focal_loss_sum, normalizer
from comining.detectors.torchvision_detector import TorchvisionDetector
from comining.ops import paired_iou, rank_in_group
from comining.structures import Assignment, Boxes, DensePredictions, Knowledge

# The largest tensor of (image, box, anchor) triples that assignment builds at once, in elements of
# float32, by type of device: 64 MiB, and the size of the cache on a CPU.
MAX_PAIRS = {"cuda": 2**24, "cpu": 2**20}


class DenseDetector(TorchvisionDetector):
    """A torchvision one-stage detector, in which every anchor is a region.

    A subclass defines how boxes are encoded (:meth:`decode_boxes`), which regions anchors stand for
    (:meth:`regions`), their matching with targets (:meth:`match`), and the localisation losses
    (:meth:`location_losses`).

    Args:
        compile: compile backbone, head and the focal loss with ``torch.compile``; pays off on a
            GPU, after some minutes.
        channels_last: use the channels-last memory format for weights and activations.
    """

    # Names of further head outputs [B, A, 1] besides classes and boxes: torchvision's to ours.
    auxiliary_outputs: Mapping[str, str] = MappingProxyType({})

    def __init__(
        self,
        net: RetinaNet | FCOS,
        focal_alpha: float,
        focal_gamma: float,
        candidates_per_level: int,
        compile: bool,
        channels_last: bool,
    ):
        super().__init__(net, channels_last)
        if compile:
            # In place, so that no name in the state dict changes. Compiling the whole model would
            # break the graph at every loop over images.
            net.backbone.compile()
            net.head.compile()
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.candidates_per_level = candidates_per_level
        self.focal_loss = torch.compile(focal_loss_sum) if compile else focal_loss_sum

    # -- the network ---------------------------------------------------------------------

    def predict(self, images: Sequence[Tensor]) -> DensePredictions:
        predictions: DensePredictions = super().predict(images)
        return predictions

    def _forward(self, padded: Tensor, sizes: list[tuple[int, int]]) -> DensePredictions:
        """Run the network, under autocast if enabled, and return float32."""
        features = list(self.net.backbone(padded).values())
        outputs = self.net.head(features)
        anchors, per_level = self._anchors(padded, features)
        return DensePredictions(
            logits=outputs["cls_logits"].float(),
            deltas=outputs["bbox_regression"].float(),
            anchors=anchors,
            anchors_per_level=per_level,
            image_sizes=sizes,
            auxiliary={
                ours: outputs[name].float().squeeze(-1)
                for name, ours in self.auxiliary_outputs.items()
            },
        )

    def _detections(
        self, predictions: DensePredictions, sizes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        columns = {"cls_logits": predictions.logits, "bbox_regression": predictions.deltas}
        for name, ours in self.auxiliary_outputs.items():
            columns[name] = predictions.auxiliary[ours].unsqueeze(-1)
        levels = predictions.anchors_per_level
        found: list[dict[str, Tensor]] = self.net.postprocess_detections(
            {name: list(torch.split(column, levels, dim=1)) for name, column in columns.items()},
            [list(torch.split(predictions.anchors, levels))] * len(sizes),
            sizes,
        )
        return found

    # -- mining --------------------------------------------------------------------------

    @torch.no_grad()
    def candidates(self, predictions: DensePredictions, threshold: float) -> Boxes:
        """Step 1: of each level and image the best class scores, if they exceed ``threshold``.

        The threshold is strict and is applied to the class probability first, so that only the few
        remaining boxes are decoded.
        """
        logits = predictions.logits
        # Comparing logits avoids a sigmoid of the whole map; the margin covers rounding, and the
        # exact test on probabilities follows. Most anchors are excluded by their best class.
        bound = torch.tensor(threshold, dtype=torch.float64).logit().item() - 1e-3
        image, anchor = (logits.amax(dim=-1) > bound).nonzero(as_tuple=True)
        row, label = (logits[image, anchor] > bound).nonzero(as_tuple=True)
        image, anchor = image[row], anchor[row]
        probability = logits[image, anchor, label].sigmoid()
        first_of_level = torch.tensor(predictions.anchors_per_level[:-1]).cumsum(0)
        level = torch.bucketize(anchor, first_of_level.to(anchor.device), right=True)
        group = image * len(predictions.anchors_per_level) + level
        order = probability.argsort(descending=True, stable=True)
        order = order[group[order].argsort(stable=True)]
        rank = rank_in_group(group[order])
        order = order[(rank < self.candidates_per_level) & (probability[order] > threshold)]
        image, anchor, label = image[order], anchor[order], label[order]
        boxes = self.decode_boxes(predictions.deltas[image, anchor], predictions.anchors[anchor])
        auxiliary = {name: m[image, anchor] for name, m in predictions.auxiliary.items()}
        scores = self.ranking_scores(probability[order], auxiliary)
        return Boxes(boxes, label, image, len(predictions), scores)

    def ranking_scores(self, probability: Tensor, auxiliary: Mapping[str, Tensor]) -> Tensor:
        """The scores [M] by which NMS ranks candidates of a class probability [M].

        Args:
            auxiliary: further outputs [M] at the candidates, by name.
        """
        return probability

    @abstractmethod
    def decode_boxes(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """Boxes [M, 4] from deltas [M, 4] in the detector's encoding and their anchors [M, 4]."""

    # -- training ------------------------------------------------------------------------

    @torch.no_grad()
    def assign(self, predictions: DensePredictions, targets: Boxes) -> Assignment:
        """Match every anchor of every image with a target, or with background.

        Memory: at most four float32 tensors of :data:`MAX_PAIRS` (image, box, anchor) triples at a
            time, larger only if a single image has more.
        """
        boxes, labels = targets.padded()
        parts = []
        limit = MAX_PAIRS.get(boxes.device.type, 2**24) // len(predictions.anchors)
        for images in chunks(targets.counts, limit):
            most = max([1, *targets.counts[images]])
            parts.append(self.match(predictions, boxes[images, :most], labels[images, :most]))
        overlaps = [part.overlap for part in parts if part.overlap is not None]
        return Assignment(
            torch.cat([part.labels for part in parts]),
            torch.cat([part.boxes for part in parts]),
            predictions.num_classes,
            torch.cat(overlaps) if overlaps else None,
        )

    @abstractmethod
    def match(self, predictions: DensePredictions, boxes: Tensor, labels: Tensor) -> Assignment:
        """Match the anchors of b images with padded targets.

        Args:
            boxes: [b, G, 4], zeros where ``labels`` is -1.
            labels: [b, G], -1 where an image has fewer than G targets.
        """

    @torch.no_grad()
    def overlap(self, predictions: DensePredictions, targets: Boxes) -> Tensor:
        """The largest IoU [B, A] of every anchor's region with a target, 0 in images without."""
        return largest_overlap(self.regions(predictions), targets)

    @torch.no_grad()
    def predicted_overlap(self, predictions: DensePredictions, targets: Boxes) -> Tensor:
        """The largest IoU [B, A] of the box that every anchor predicts with a target."""
        deltas, anchors = predictions.deltas, predictions.anchors
        decoded = self.decode_boxes(deltas.flatten(0, 1), anchors.repeat(len(deltas), 1))
        return largest_overlap(decoded.view_as(deltas), targets)

    @abstractmethod
    def regions(self, predictions: DensePredictions) -> Tensor:
        """The boxes that stand for anchors in overlaps: [A, 4] or [B, A, 4]."""

    def losses(
        self,
        predictions: DensePredictions,
        targets: Boxes,
        background: BackgroundRule | None = None,
        knowledge: Knowledge | None = None,
    ) -> dict[str, Tensor]:
        assignment = self.assign(predictions, targets)
        logits = predictions.logits
        if knowledge is not None and (knowledge.some_unlooked or len(knowledge.ignored)):
            logits = logits.masked_fill(
                silent_entries(knowledge, predictions.anchors, assignment), NO_OBJECT
            )
        said = Background()
        if background is not None:
            said = self._said(background, predictions, targets, assignment, logits, knowledge)
        count = normalizer(assignment.positive.sum().to(logits.dtype), smallest=1.0)
        classification = self.focal_loss(
            logits, assignment.labels, self.focal_alpha, self.focal_gamma, said.weights, said.rate
        )
        losses = {"classification": classification / count}
        losses |= self.location_losses(predictions, assignment, count)
        return losses | {name: term / count for name, term in said.terms.items()}

    def _said(
        self,
        background: BackgroundRule,
        predictions: DensePredictions,
        targets: Boxes,
        assignment: Assignment,
        logits: Tensor,
        knowledge: Knowledge | None,
    ) -> Background:
        """The method's background, with ordinary background for classes that are complete.

        Args:
            logits: [B, A, K]; entries without loss are masked.
        """
        if knowledge is None or not knowledge.some_complete:
            return background(DenseRegions(self, predictions, targets, assignment, logits))
        complete = (knowledge.rate == 1).unsqueeze(1)  # [B, 1, K]
        closed = without_own_entries(complete.expand_as(logits).contiguous(), assignment)
        open_logits = logits.masked_fill(closed, NO_OBJECT)
        said = background(DenseRegions(self, predictions, targets, assignment, open_logits))
        weights, rate = said.weights, said.rate
        if weights is not None:
            weights = weights if weights.dim() == 3 else weights.unsqueeze(-1)
            weights = torch.where(complete, 1.0, weights)
        if rate is not None:
            rate = torch.where(complete, 1.0, rate)
        return replace(said, weights=weights, rate=rate)

    @abstractmethod
    def location_losses(
        self, predictions: DensePredictions, assignment: Assignment, positives: Tensor
    ) -> dict[str, Tensor]:
        """The localisation losses of positive anchors.

        Args:
            positives: [] the divisor of sums over the batch.
        """


class DenseRegions(Regions):
    """The anchors or points of a dense detector, as a :data:`BackgroundRule` sees them."""

    def __init__(
        self,
        detector: DenseDetector,
        predictions: DensePredictions,
        targets: Boxes,
        assignment: Assignment,
        logits: Tensor,
    ):
        self.detector = detector
        self.predictions = predictions
        self.targets, self.assignment = targets, assignment
        self.logits = logits
        self.labels = assignment.labels
        self.anchors = predictions.anchors

    def overlap(self, boxes: Boxes) -> Tensor:
        if boxes is self.targets and self.assignment.overlap is not None:
            return self.assignment.overlap  # already computed by the matching
        return self.detector.overlap(self.predictions, boxes)

    def predicted_overlap(self, boxes: Boxes) -> Tensor:
        return self.detector.predicted_overlap(self.predictions, boxes)

    def assign(self, boxes: Boxes) -> Tensor:
        return self.detector.assign(self.predictions, boxes).labels


def largest_overlap(regions: Tensor, targets: Boxes) -> Tensor:
    """The largest IoU [B, A] of regions [A, 4] or [B, A, 4] with a target of their image, or 0."""
    boxes, labels = targets.padded()
    rows = []
    for image in range(len(boxes)):  # one tensor [G, A] at a time
        real = labels[image] >= 0
        region = regions if regions.dim() == 2 else regions[image]
        iou = torch.where(real[:, None], paired_iou(boxes[image], region), 0)
        rows.append(iou.amax(dim=0))
    return torch.stack(rows)


def chunks(counts: Sequence[int], limit: int) -> Iterator[slice]:
    """Split a batch, given the boxes of each image, into parts with at most ``limit`` boxes.

    All images of a part count as many boxes as its fullest one, at least one; an image with more
    than ``limit`` is a part of its own.
    """
    start, most = 0, 1
    for image, count in enumerate(counts):
        most = max(most, count)
        if image > start and most * (image + 1 - start) > limit:
            yield slice(start, image)
            start, most = image, max(1, count)
    yield slice(start, len(counts))


def gather_targets(boxes: Tensor, labels: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Gather the target ``index`` [b, A] of every anchor from boxes [b, G, 4], labels [b, G]."""
    return boxes.gather(1, index.unsqueeze(-1).expand(-1, -1, 4)), labels.gather(1, index)

"""The seam between detectors and everything above them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.image_list import ImageList

from comining.cogeneration import rank_in_group
from comining.structures import (
    Assignment,
    Candidates,
    DensePredictions,
    Detections,
    Targets,
    pad_targets,
)

# The widest [images, boxes, anchors] table that assignment builds at once, in elements of
# float32: 64 MiB. More images are worked on in turns.
MAX_PAIRS = 2**24


class DenseDetector(nn.Module, ABC):
    """A torchvision one-stage detector that is trained by explicit targets.

    ``self.net`` is the torchvision model and the only place with parameters: its state dict
    loads into the plain torchvision model, and :meth:`detect` is that model's own inference.
    """

    pixel_mean: Tensor  # [3, 1, 1] on the scale of uint8
    pixel_std: Tensor

    def __init__(
        self,
        net: RetinaNet | FCOS,
        focal_alpha: float,
        focal_gamma: float,
        candidates_per_level: int,
    ):
        super().__init__()
        self.net = net
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.candidates_per_level = candidates_per_level
        mean = torch.tensor(net.transform.image_mean).view(3, 1, 1)
        std = torch.tensor(net.transform.image_std).view(3, 1, 1)
        self.register_buffer("pixel_mean", mean * 255, persistent=False)
        self.register_buffer("pixel_std", std * 255, persistent=False)

    # -- the network ---------------------------------------------------------------------

    def predict(self, images: Sequence[Tensor]) -> DensePredictions:
        """One forward for all images, in training or evaluation mode.

        Args:
            images: B times [3, H, W] uint8, already at the size that the network shall see.
        """
        sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
        padded = self._normalize_and_pad(images, sizes)
        features = list(self.net.backbone(padded).values())
        outputs = self.net.head(features)
        # Anchors take their dtype from the features; under bf16 they would be off by pixels.
        stand_ins = [feature.new_zeros((), dtype=torch.float32).expand(1, 1, *feature.shape[-2:])
                     for feature in features]  # fmt: skip
        one_image = ImageList(padded[:1], sizes[:1])
        anchors: Tensor = self.net.anchor_generator(one_image, stand_ins)[0]
        locations = [feature.shape[-2] * feature.shape[-1] for feature in features]
        per_location = len(anchors) // sum(locations)
        centerness = outputs.get("bbox_ctrness")
        return DensePredictions(
            logits=outputs["cls_logits"].float(),
            deltas=outputs["bbox_regression"].float(),
            anchors=anchors,
            anchors_per_level=[count * per_location for count in locations],
            image_sizes=sizes,
            centerness=None if centerness is None else centerness.float().squeeze(-1),
        )

    def _normalize_and_pad(self, images: Sequence[Tensor], sizes: list[tuple[int, int]]) -> Tensor:
        """[B, 3, H, W] float32: zero mean, unit deviation, zeros beyond each image's border."""
        multiple = self.net.transform.size_divisible
        height, width = (-(-max(side) // multiple) * multiple for side in zip(*sizes))
        batch = self.pixel_mean.new_zeros(len(images), 3, height, width)
        for row, image in zip(batch, images):
            row[:, : image.shape[-2], : image.shape[-1]] = (
                image - self.pixel_mean
            ) / self.pixel_std
        return batch

    @torch.no_grad()
    def detect(self, images: Sequence[Tensor]) -> list[Detections]:
        """Inference by torchvision's own forward.

        Args:
            images: B times [3, H, W] uint8 of any size; the model resizes them itself.

        Returns:
            Boxes in pixels of the images as they were given.
        """
        if self.net.training:
            raise RuntimeError("detect() needs the network in evaluation mode")
        # torchvision makes anchors in the dtype of the features, so that mixed precision would move
        # boxes by pixels: inference is float32 throughout.
        with torch.autocast(self.pixel_mean.device.type, enabled=False):
            found = self.net([image.float() / 255 for image in images])
        return [Detections(one["boxes"], one["labels"], one["scores"]) for one in found]

    # -- what is mined -------------------------------------------------------------------

    @torch.no_grad()
    def decode(self, predictions: DensePredictions, threshold: float) -> Candidates:
        """Step 1: of each level and image the best class scores, if they exceed ``threshold``.

        The threshold is strict and applies to the class probability alone, before anything else,
        so that only the few survivors are decoded.

        Returns:
            Candidates with the score by which NMS ranks them, boxes not clipped.
        """
        logits = predictions.logits
        # A comparison of logits spares a sigmoid of the whole map; the margin covers rounding and
        # the exact test on probabilities follows.
        bound = torch.tensor(threshold, dtype=torch.float64).logit().item() - 1e-3
        image, anchor, label = (logits > bound).nonzero(as_tuple=True)
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
        scores = probability[order]
        if predictions.centerness is not None:
            scores = (scores * predictions.centerness[image, anchor].sigmoid()).sqrt()
        return Candidates(boxes, label, scores, image)

    @abstractmethod
    def decode_boxes(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """Boxes [M, 4] from deltas [M, 4] in the detector's encoding and their anchors [M, 4]."""

    # -- what is trained -----------------------------------------------------------------

    @torch.no_grad()
    def assign(self, predictions: DensePredictions, targets: Sequence[Targets]) -> Assignment:
        """Match every anchor of every image with a target, or with background.

        Memory: tables of at most :data:`MAX_PAIRS` (image, box, anchor) triples at a time, more
        only where a single image needs more.
        """
        boxes, labels = pad_targets(targets, predictions.logits.device)
        pairs_per_image = boxes.shape[1] * len(predictions.anchors)
        step = max(1, MAX_PAIRS // max(1, pairs_per_image))
        parts = [
            self.match(predictions, boxes[start : start + step], labels[start : start + step])
            for start in range(0, len(targets), step)
        ]
        assigned, matched = (torch.cat(column) for column in zip(*parts))
        return Assignment(assigned, matched, predictions.num_classes)

    @abstractmethod
    def match(
        self, predictions: DensePredictions, boxes: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Match the anchors of b images with padded targets.

        Args:
            boxes: [b, G, 4], zeros where ``labels`` is -1.
            labels: [b, G], -1 where an image has fewer than G targets.

        Returns:
            assigned labels [b, A] (class, K background, -1 ignored) and matched boxes [b, A, 4].
        """

    @torch.no_grad()
    def overlap(self, predictions: DensePredictions, targets: Sequence[Targets]) -> Tensor:
        """The largest IoU [B, A] of every anchor's region with a target, 0 in images without."""
        boxes, labels = pad_targets(targets, predictions.logits.device)
        regions = self.regions(predictions)
        rows = []
        for image in range(len(boxes)):  # one table [G, A] at a time
            real = labels[image] >= 0
            region = regions if regions.dim() == 2 else regions[image]
            table = torch.where(real[:, None], paired_iou(boxes[image], region), 0)
            rows.append(table.amax(dim=0))
        return torch.stack(rows)

    @abstractmethod
    def regions(self, predictions: DensePredictions) -> Tensor:
        """What an anchor stands for when its overlap with boxes matters: [A, 4] or [B, A, 4]."""

    @abstractmethod
    def losses(
        self,
        predictions: DensePredictions,
        assignment: Assignment,
        weights: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The losses of one branch, summed over its batch and divided by its positives.

        (torchvision averages per-image ratios instead, which is not the same number.)

        Args:
            weights: [B, A] or [B, A, K], a factor on the classification terms; None means 1.
        """


def paired_iou(boxes: Tensor, anchors: Tensor) -> Tensor:
    """IoU of boxes [..., G, 4] with anchors [A, 4] as a table [..., G, A]; 0 for empty boxes."""
    corner = torch.maximum(boxes[..., None, :2], anchors[:, :2])
    end = torch.minimum(boxes[..., None, 2:], anchors[:, 2:])
    width, height = (end - corner).clamp_(min=0).unbind(-1)
    intersection = width * height
    area = (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1)
    anchor_area = (anchors[:, 2:] - anchors[:, :2]).prod(dim=-1)
    union = area[..., None] + anchor_area - intersection
    return intersection / union.clamp_(min=torch.finfo(union.dtype).tiny)


def gather_targets(boxes: Tensor, labels: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Pick for every anchor the target ``index`` [b, A] out of boxes [b, G, 4], labels [b, G]."""
    return boxes.gather(1, index.unsqueeze(-1).expand(-1, -1, 4)), labels.gather(1, index)

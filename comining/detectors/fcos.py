"""torchvision's FCOS (Tian et al. 2019), trained as by the authors of Co-mining."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSHead

from comining.detectors.backbones import Backbone, check_norm_groups
from comining.detectors.dense import DenseDetector, gather_targets
from comining.detectors.losses import centerness_target, giou_loss, normalizer
from comining.option_types import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt
from comining.structures import Assignment, DensePredictions


class FCOSDetector(DenseDetector):
    """Anchor-free: every location of a level is a point that predicts distances to four sides.

    Args:
        backbone: features and their strides.
        num_classes: K, without a background class.
        norm_groups: groups of the head's GroupNorm; None for torchvision's and the paper's 32.
        min_size, max_size: shortest and longest side at inference, px.
        center_sampling_radius: a point trains a box only if it lies within this many strides of
            the box's centre.
        level_range: a level takes boxes whose farthest side lies up to this many strides away (8
            in the paper: 64 px at stride 8); the last level takes all larger ones.
        iou_smoothing: added to numerator and denominator of the IoU in the box loss.
        score_threshold, nms_threshold, max_detections: of inference, not of mining.
        candidates_per_level: number of best scores of a pyramid level, for inference and mining.
        compile, channels_last: see :class:`DenseDetector`.
    """

    auxiliary_outputs = MappingProxyType({"bbox_ctrness": "centerness"})

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        norm_groups: PositiveInt | None,
        min_size: PositiveInt,
        max_size: PositiveInt,
        center_sampling_radius: PositiveFloat,
        level_range: PositiveFloat,
        focal_alpha: Fraction,
        focal_gamma: NonNegativeFloat,
        iou_smoothing: NonNegativeFloat,
        score_threshold: Fraction,
        nms_threshold: Fraction,
        max_detections: PositiveInt,
        candidates_per_level: PositiveInt,
        compile: bool,
        channels_last: bool,
    ):
        strides = tuple((stride,) for stride in backbone.strides)
        check_norm_groups(norm_groups, backbone)
        head = FCOSHead(backbone.net.out_channels, 1, num_classes)
        for module in head.modules():
            # FCOSHead fixes 32 groups, too many for a slim head.
            if norm_groups is not None and isinstance(module, nn.GroupNorm):
                module.num_groups = norm_groups
            # The norm before it keeps its input for the backward, not its output, so an in-place
            # ReLU saves a map, as in the head of RetinaNet.
            if isinstance(module, nn.ReLU):
                module.inplace = True
        net = FCOS(
            backbone.net,
            num_classes,
            min_size=min_size,
            max_size=max_size,
            image_mean=backbone.image_mean,
            image_std=backbone.image_std,
            anchor_generator=AnchorGenerator(strides, ((1.0,),) * len(strides)),
            head=head,
            center_sampling_radius=center_sampling_radius,
            score_thresh=score_threshold,
            nms_thresh=nms_threshold,
            detections_per_img=max_detections,
            topk_candidates=candidates_per_level,
        )
        super().__init__(
            net, focal_alpha, focal_gamma, candidates_per_level, compile, channels_last
        )
        self.center_sampling_radius = center_sampling_radius
        self.level_range = level_range
        self.iou_smoothing = iou_smoothing

    def ranking_scores(self, probability: Tensor, auxiliary: Mapping[str, Tensor]) -> Tensor:
        return (probability * auxiliary["centerness"].sigmoid()).sqrt()

    def decode_boxes(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        points, strides = points_and_strides(anchors)
        distances = deltas * strides.unsqueeze(-1)
        return torch.cat([points - distances[..., :2], points + distances[..., 2:]], dim=-1)

    def regions(self, predictions: DensePredictions) -> Tensor:
        # A point has no extent; its predicted box stands for it, like a proposal.
        return self.decode_boxes(predictions.deltas.detach(), predictions.anchors)

    def match(self, predictions: DensePredictions, boxes: Tensor, labels: Tensor) -> Assignment:
        points, strides = points_and_strides(predictions.anchors)
        x, y = points.t().contiguous()
        left, top, right, bottom = boxes.unsqueeze(2).unbind(-1)  # [b, G, 1] each
        # One tensor [b, G, A] for each side, with the points innermost.
        farthest = x - left
        for distance in (y - top, right - x, bottom - y):
            torch.maximum(farthest, distance, out=farthest)
        lower, upper = self._level_limits(predictions)
        fits = (farthest >= lower) & (farthest <= upper)
        del farthest

        # Within the radius of the centre on both axes, and inside of the box.
        radius = strides * self.center_sampling_radius
        for point, start, end in ((x, left, right), (y, top, bottom)):
            centre = (start + end) / 2
            fits &= point > torch.maximum(centre - radius, start)
            fits &= point < torch.minimum(centre + radius, end)
        fits &= (labels >= 0).unsqueeze(-1)

        # If boxes compete for a point, the smallest gets it.
        area = (right - left) * (bottom - top)
        smallest, index = torch.where(fits, area, torch.inf).min(dim=1)
        matched_boxes, matched_labels = gather_targets(boxes, labels, index)
        background = smallest == torch.inf
        assigned = matched_labels.masked_fill(background, predictions.num_classes)
        return Assignment(assigned, matched_boxes, predictions.num_classes)

    def _level_limits(self, predictions: DensePredictions) -> tuple[Tensor, Tensor]:
        """Shortest and longest distance [A], px, that the points of each level are trained to."""
        _, strides = points_and_strides(predictions.anchors)
        upper = strides * self.level_range
        lower = upper / 2
        lower[: predictions.anchors_per_level[0]] = -1
        upper[len(upper) - predictions.anchors_per_level[-1] :] = torch.inf
        return lower, upper

    def location_losses(
        self, predictions: DensePredictions, assignment: Assignment, positives: Tensor
    ) -> dict[str, Tensor]:
        image, point = assignment.positive.nonzero(as_tuple=True)
        points, strides = points_and_strides(predictions.anchors)
        wanted = distances_to_sides(points[point], assignment.boxes[image, point])
        centrality = centerness_target(wanted)
        distances = predictions.deltas[image, point] * strides[point].unsqueeze(-1)
        box = (giou_loss(distances, wanted, self.iou_smoothing) * centrality).sum()
        centerness = F.binary_cross_entropy_with_logits(
            predictions.auxiliary["centerness"][image, point], centrality, reduction="sum"
        )
        return {
            "box": box / normalizer(centrality.sum(), smallest=1e-6),
            "centerness": centerness / positives,
        }


def points_and_strides(anchors: Tensor) -> tuple[Tensor, Tensor]:
    """Centres [..., 2] and sides [...] of the squares that stand for points."""
    return (anchors[..., :2] + anchors[..., 2:]) / 2, anchors[..., 2] - anchors[..., 0]


def distances_to_sides(points: Tensor, boxes: Tensor) -> Tensor:
    """(left, top, right, bottom) px from points [..., 2] to the sides of boxes [..., 4]."""
    return torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], dim=-1)

"""torchvision's RetinaNet (Lin et al. 2017), trained as by the authors of Co-mining."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNetHead

from comining.detectors.backbones import Backbone, check_norm_groups
from comining.detectors.dense import DenseDetector, gather_targets
from comining.ops import paired_iou
from comining.option_types import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt
from comining.structures import IGNORED, Assignment, DensePredictions


class RetinaNetDetector(DenseDetector):
    """Anchor-based: 3 scales x 3 shapes at every location, matched by IoU.

    Args:
        backbone: features and their strides.
        num_classes: K, without a background class.
        anchor_scale: a level's smallest anchors in strides (paper: 4).
        whole_anchors: truncate anchor sides to whole px (32, 40, 50), as torchvision's builder
            does, so that weights load into it; the authors' are 32, 40.3, 50.8.
        norm_groups: groups of the head's GroupNorm, None for a head without norm (the paper's).
        min_size, max_size: shortest and longest side at inference, px.
        foreground_iou, background_iou: an anchor is positive from the first, background below the
            second, ignored between; the best anchors of every box are always positive.
        smooth_l1_beta: where the box loss turns from quadratic to linear, in units of the deltas.
        score_threshold, nms_threshold, max_detections: of inference, not of mining.
        candidates_per_level: number of best scores of a pyramid level, for inference and mining.
        compile, channels_last: see :class:`DenseDetector`.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        anchor_scale: PositiveFloat,
        whole_anchors: bool,
        norm_groups: PositiveInt | None,
        min_size: PositiveInt,
        max_size: PositiveInt,
        foreground_iou: Fraction,
        background_iou: Fraction,
        focal_alpha: Fraction,
        focal_gamma: NonNegativeFloat,
        smooth_l1_beta: NonNegativeFloat,
        score_threshold: Fraction,
        nms_threshold: Fraction,
        max_detections: PositiveInt,
        candidates_per_level: PositiveInt,
        compile: bool,
        channels_last: bool,
    ):
        if background_iou > foreground_iou:
            raise ValueError(
                f"detector.background_iou={background_iou} is larger than "
                f"detector.foreground_iou={foreground_iou}"
            )
        sizes = tuple(
            tuple(stride * anchor_scale * 2 ** (octave / 3) for octave in range(3))
            for stride in backbone.strides
        )
        if whole_anchors:
            sizes = tuple(tuple(int(side) for side in level) for level in sizes)
        anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
        channels = backbone.net.out_channels
        check_norm_groups(norm_groups, backbone)
        norm = None if norm_groups is None else partial(nn.GroupNorm, norm_groups)
        head = RetinaNetHead(channels, 9, num_classes, norm_layer=norm)
        net = RetinaNet(
            backbone.net,
            num_classes,
            min_size=min_size,
            max_size=max_size,
            image_mean=backbone.image_mean,
            image_std=backbone.image_std,
            anchor_generator=anchors,
            head=head,
            score_thresh=score_threshold,
            nms_thresh=nms_threshold,
            detections_per_img=max_detections,
            fg_iou_thresh=foreground_iou,
            bg_iou_thresh=background_iou,
            topk_candidates=candidates_per_level,
        )
        super().__init__(
            net, focal_alpha, focal_gamma, candidates_per_level, compile, channels_last
        )
        self.foreground_iou = foreground_iou
        self.background_iou = background_iou
        self.smooth_l1_beta = smooth_l1_beta

    def decode_boxes(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        boxes: Tensor = self.net.box_coder.decode_single(deltas, anchors)
        return boxes

    def regions(self, predictions: DensePredictions) -> Tensor:
        return predictions.anchors

    def match(self, predictions: DensePredictions, boxes: Tensor, labels: Tensor) -> Assignment:
        overlap = paired_iou(boxes, predictions.anchors)  # [b, G, A]
        exists = (labels >= 0).unsqueeze(-1)
        overlap.masked_fill_(~exists, -1)  # never the best of an anchor
        best, index = overlap.max(dim=1)
        matched_boxes, matched_labels = gather_targets(boxes, labels, index)
        # In a tie, all anchors with the largest overlap of a box are positive, and each is matched
        # to the box that *it* overlaps most: torchvision's Matcher and the authors' agree.
        low_quality = ((overlap == overlap.amax(dim=2, keepdim=True)) & exists).any(dim=1)
        positive = (best >= self.foreground_iou) | low_quality
        assigned = torch.where(best < self.background_iou, predictions.num_classes, IGNORED)
        return Assignment(
            torch.where(positive, matched_labels, assigned),
            matched_boxes,
            predictions.num_classes,
            best.clamp(min=0),
        )

    def location_losses(
        self, predictions: DensePredictions, assignment: Assignment, positives: Tensor
    ) -> dict[str, Tensor]:
        image, anchor = assignment.positive.nonzero(as_tuple=True)
        wanted: Tensor = self.net.box_coder.encode_single(
            assignment.boxes[image, anchor], predictions.anchors[anchor]
        )
        box = F.smooth_l1_loss(
            predictions.deltas[image, anchor], wanted, beta=self.smooth_l1_beta, reduction="sum"
        )
        return {"box": box / positives}

"""torchvision's Faster R-CNN (Ren et al. 2015), trained with explicit targets in both stages."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops.poolers import initLevelMapper

from comining.detectors.backbones import Backbone
from comining.detectors.detector import BackgroundRule
from comining.detectors.losses import normalizer
from comining.detectors.region_samples import (
    Doubtful,
    TwoStagePredictions,
    count_drawn,
    in_rows,
    match_anchors,
    match_proposals,
    padded_rows,
    sample,
    without,
)
from comining.detectors.stages import (
    KnownEntries,
    StageRegions,
    classification_loss,
    known_entries,
    left_to_knowledge,
)
from comining.detectors.torchvision_detector import TorchvisionDetector
from comining.option_types import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt
from comining.structures import IGNORED, Boxes, Knowledge

# Side of anchors of scale 1 at the finest level, px: the stride of P3.
ANCHOR_UNIT = 8
# Each stage draws its samples from its own seeds.
STAGES = ("rpn", "roi")
# RoI pooling (Lin et al. 2017, FPN, Eq. 1): boxes of 224 px use the level of stride 16.
CANONICAL_SIZE, CANONICAL_LEVEL = 224, 4


class FasterRCNNDetector(TorchvisionDetector):
    """A region proposal network (RPN), and a head that classifies its proposals (RoI head).

    The losses are torchvision's, term by term: cross-entropy and smooth L1 of the sampled regions
    of each stage, summed over the batch and divided by their number. Regions that are left out
    because they are ignored count in the divisor, so that what is ignored in one image does not
    raise the loss of the others. The samples depend on :meth:`seed_samples`, image by image;
    without it, on the position in the batch. Methods are
    called twice for a branch: for the sampled anchors of the RPN, whose single class is an object
    of any class, and for the sampled proposals. Terms of a method are divided like the
    classification loss of the stage.

    Args:
        backbone: features and their strides.
        num_classes: K, without a background class.
        anchor_scale: side of the smallest anchors in units of 8 px; it doubles from level to level
            (torchvision: 4).
        representation_size: features of a proposal in the RoI head.
        min_size, max_size: shortest and longest side at inference, px.
        rpn_foreground_iou, rpn_background_iou: an anchor is positive from the first, background
            below the second, ignored between; the best anchors of every box are always positive.
        rpn_samples, rpn_positive_share: sampled anchors of an image, and the largest share of
            positives among them.
        rpn_nms_threshold: among the proposals of a level.
        proposals_in_training, proposals_at_inference: limit of the best anchors of a level, and
            then of the proposals of an image.
        roi_foreground_iou: a proposal is positive from this IoU on, background below.
        roi_samples, roi_positive_share: as for the RPN.
        smooth_l1_beta: of both box losses, in units of the deltas.
        candidate_proposals: number of best proposals of an image that are candidates for mining.
        score_threshold, nms_threshold, max_detections: of inference, not of mining.
        focal_alpha, focal_gamma: for methods that refer to them; unused by the losses of this
            detector.
        compile: compile backbone and RPN with ``torch.compile``.
        channels_last: see :class:`TorchvisionDetector`.
    """

    first_label = 1  # 0 is background

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        anchor_scale: PositiveFloat,
        representation_size: PositiveInt,
        min_size: PositiveInt,
        max_size: PositiveInt,
        rpn_foreground_iou: Fraction,
        rpn_background_iou: Fraction,
        rpn_samples: PositiveInt,
        rpn_positive_share: Fraction,
        rpn_nms_threshold: Fraction,
        proposals_in_training: PositiveInt,
        proposals_at_inference: PositiveInt,
        roi_foreground_iou: Fraction,
        roi_samples: PositiveInt,
        roi_positive_share: Fraction,
        smooth_l1_beta: NonNegativeFloat,
        candidate_proposals: PositiveInt,
        score_threshold: Fraction,
        nms_threshold: Fraction,
        max_detections: PositiveInt,
        focal_alpha: Fraction,
        focal_gamma: NonNegativeFloat,
        compile: bool,
        channels_last: bool,
    ):
        if rpn_background_iou > rpn_foreground_iou:
            raise ValueError(
                f"detector.rpn_background_iou={rpn_background_iou} is larger than "
                f"detector.rpn_foreground_iou={rpn_foreground_iou}"
            )
        for stage, count, share, overlap in (
            ("rpn", rpn_samples, rpn_positive_share, rpn_foreground_iou),
            ("roi", roi_samples, roi_positive_share, roi_foreground_iou),
        ):
            if int(count * share) == 0:
                raise ValueError(
                    f"detector.{stage}_samples={count} with detector.{stage}_positive_share={share}"
                    ": no positive would ever be sampled"
                )
            if overlap == 0:
                raise ValueError(
                    f"detector.{stage}_foreground_iou=0: all regions would be positive"
                )
        sizes = tuple(
            (ANCHOR_UNIT * anchor_scale * 2**level,) for level in range(len(backbone.strides))
        )
        channels = backbone.net.out_channels
        net = FasterRCNN(
            backbone.net,
            min_size=min_size,
            max_size=max_size,
            image_mean=backbone.image_mean,
            image_std=backbone.image_std,
            rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes)),
            rpn_pre_nms_top_n_train=proposals_in_training,
            rpn_pre_nms_top_n_test=proposals_at_inference,
            rpn_post_nms_top_n_train=proposals_in_training,
            rpn_post_nms_top_n_test=proposals_at_inference,
            rpn_nms_thresh=rpn_nms_threshold,
            rpn_fg_iou_thresh=rpn_foreground_iou,
            rpn_bg_iou_thresh=rpn_background_iou,
            rpn_batch_size_per_image=rpn_samples,
            rpn_positive_fraction=rpn_positive_share,
            box_head=TwoMLPHead(channels * 7**2, representation_size),
            box_predictor=FastRCNNPredictor(representation_size, num_classes + 1),
            box_score_thresh=score_threshold,
            box_nms_thresh=nms_threshold,
            box_detections_per_img=max_detections,
            box_fg_iou_thresh=roi_foreground_iou,
            box_bg_iou_thresh=roi_foreground_iou,
            box_batch_size_per_image=roi_samples,
            box_positive_fraction=roi_positive_share,
        )
        # torchvision infers the strides from the first images, which is wrong if they are mostly
        # padding, and would depend on where a run was resumed.
        pool = net.roi_heads.box_roi_pool
        levels = min(len(net.backbone.body.return_layers), len(pool.featmap_names))
        pool.scales = [1 / stride for stride in list(backbone.strides)[:levels]]
        pool.map_levels = initLevelMapper(
            round(-torch.tensor(pool.scales[0]).log2().item()),
            round(-torch.tensor(pool.scales[-1]).log2().item()),
            canonical_scale=CANONICAL_SIZE,
            canonical_level=CANONICAL_LEVEL,
        )
        super().__init__(net, channels_last)
        if compile:
            net.backbone.compile()
            net.rpn.head.compile()
        self.num_classes = num_classes
        self.smooth_l1_beta = smooth_l1_beta
        self.candidate_proposals = candidate_proposals
        self.seeds: Sequence[int] | None = None  # of the samples, B

    @property
    def anchor_generator(self) -> Any:
        return self.net.rpn.anchor_generator

    # -- the network ---------------------------------------------------------------------

    def predict(self, images: Sequence[Tensor]) -> TwoStagePredictions:
        predictions: TwoStagePredictions = super().predict(images)
        return predictions

    def _forward(self, padded: Tensor, sizes: list[tuple[int, int]]) -> TwoStagePredictions:
        """Run backbone and RPN, under autocast if enabled, and return float32."""
        features = self.net.backbone(padded)
        rpn = self.net.rpn
        outputs = rpn.head(list(features.values()))
        anchors, per_level = self._anchors(padded, list(features.values()))
        objectness, deltas = (table.float() for table in concat_box_prediction_layers(*outputs))
        objectness, deltas = objectness.view(len(sizes), -1), deltas.view(len(sizes), -1, 4)
        with torch.no_grad():
            decoded = self._decoded_anchors(deltas, anchors)
            proposals, scores = rpn.filter_proposals(decoded, objectness, sizes, per_level)
        return TwoStagePredictions(
            features=features,
            objectness=objectness,
            deltas=deltas,
            anchors=anchors,
            proposals=proposals,
            proposal_scores=scores,
            image_sizes=sizes,
            classes=self.num_classes,
            most_candidates=self.candidate_proposals,
        )

    def _decoded_anchors(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """The boxes [B, A, 4] that the RPN predicts, without gradient."""
        deltas = deltas.detach()
        decoded: Tensor = self.net.rpn.box_coder.decode(
            deltas.flatten(0, 1), [anchors] * len(deltas)
        )
        return decoded.view_as(deltas)

    def box_features(self, predictions: TwoStagePredictions, boxes: list[Tensor]) -> Tensor:
        """The RoI head's features of boxes [n, 4] in each of B images: [sum of n, C]."""
        heads = self.net.roi_heads
        pooled = heads.box_roi_pool(predictions.features, boxes, predictions.image_sizes)
        features: Tensor = heads.box_head(pooled)
        return features

    def classify(
        self, predictions: TwoStagePredictions, boxes: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Logits [N, 1 + K] and deltas [N, 1 + K, 4] of boxes [n, 4] in each of B images.

        Background comes first, as in torchvision.
        """
        logits, deltas = self.net.roi_heads.box_predictor(self.box_features(predictions, boxes))
        return logits.float(), deltas.float().view(len(logits), 1 + self.num_classes, 4)

    def _detections(
        self, predictions: TwoStagePredictions, sizes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        logits, deltas = self.classify(predictions, predictions.proposals)
        found = self.net.roi_heads.postprocess_detections(
            logits, deltas.flatten(1), predictions.proposals, sizes
        )
        return [
            {"boxes": boxes, "scores": scores, "labels": labels}
            for boxes, scores, labels in zip(*found, strict=True)
        ]

    @torch.no_grad()
    def candidates(self, predictions: TwoStagePredictions, threshold: float) -> Boxes:
        """Step 1: boxes of the best proposals whose class probability exceeds a threshold.

        The RoI head classifies :attr:`candidate_proposals` of each image, best first by the RPN,
        and moves each box for its class.
        """
        proposals = [own[: self.candidate_proposals] for own in predictions.proposals]
        logits, deltas = self.classify(predictions, proposals)
        # Autocast keeps rounded copies of weights. Older versions of torch (before pull request
        # 165068) also use those made here, without gradient, for the losses.
        torch.clear_autocast_cache()
        probability = logits.softmax(dim=-1)[:, 1:]
        row, label = (probability > threshold).nonzero(as_tuple=True)
        boxes = self.net.roi_heads.box_coder.decode(deltas.flatten(1), proposals)
        boxes = boxes.view(deltas.shape)  # without proposals decode() returns another shape
        counts = torch.tensor([len(own) for own in proposals])
        image = torch.arange(len(proposals)).repeat_interleave(counts).to(row.device)
        return Boxes(
            boxes[row, label + 1], label, image[row], len(predictions), probability[row, label]
        )

    # -- training ------------------------------------------------------------------------

    def seed_samples(self, seeds: Sequence[int]) -> None:
        self.seeds = seeds

    def losses(
        self,
        predictions: TwoStagePredictions,
        targets: Boxes,
        background: BackgroundRule | None = None,
        knowledge: Knowledge | None = None,
        doubtful: Doubtful | None = None,
    ) -> dict[str, Tensor]:
        """The losses of both stages: ``rpn_objectness`` and ``rpn_box``, ``classification`` and
        ``box``.

        Args:
            predictions, targets, background, knowledge: see the base class.
            doubtful: background regions that the RoI head does not sample, nor, unless it says
                otherwise, the region proposal network.
        """
        of_rpn = self._rpn_losses(predictions, targets, background, knowledge, doubtful)
        return of_rpn | self._roi_losses(predictions, targets, background, knowledge, doubtful)

    def _seeds(self, stage: str, count: int) -> list[int]:
        seeds = range(count) if self.seeds is None else self.seeds
        return [2 * seed + STAGES.index(stage) for seed in seeds]

    def _rpn_losses(
        self,
        predictions: TwoStagePredictions,
        targets: Boxes,
        background: BackgroundRule | None,
        knowledge: Knowledge | None,
        doubtful: Doubtful | None,
    ) -> dict[str, Tensor]:
        rpn, size = self.net.rpn, len(predictions)
        anchors = predictions.anchors
        labels, matched = match_anchors(rpn, anchors, targets)
        sampler = rpn.fg_bg_sampler
        limits = sampler.batch_size_per_image, sampler.positive_fraction
        count = count_drawn(labels, 1, *limits)
        labels = left_to_knowledge(labels, [anchors] * size, knowledge, pooled=True)
        if doubtful is not None and doubtful.of_rpn:
            decoded = self._decoded_anchors(predictions.deltas, anchors)
            unsure = doubtful.among(list(decoded), list(predictions.objectness.sigmoid()))
            labels = without(labels, unsure, background=1)
        samples = sample(labels, 1, *limits, self._seeds("rpn", size))
        chosen = samples.of(torch.stack(labels)).masked_fill(~samples.real, IGNORED)
        boxes = samples.of(anchors.expand(size, -1, -1))
        deltas = samples.of(predictions.deltas)

        def assigned(others: Boxes) -> Tensor:
            return samples.of(torch.stack(match_anchors(rpn, anchors, others)[0]))

        regions = StageRegions(
            samples.of(predictions.objectness.unsqueeze(-1)), chosen, boxes, targets, pooled=True,
            predicted=lambda: samples.of(self._decoded_anchors(predictions.deltas, anchors)),
            assign=assigned,
        )  # fmt: skip
        positive = regions.positive
        wanted = rpn.box_coder.encode_single(
            samples.of(torch.stack(matched))[positive], boxes[positive]
        )
        return self._stage(
            regions, background, known_entries(knowledge, boxes, pooled=True), count,
            deltas[positive], wanted, ("rpn_objectness", "rpn_box", "rpn_"),
        )  # fmt: skip

    def _roi_losses(
        self,
        predictions: TwoStagePredictions,
        targets: Boxes,
        background: BackgroundRule | None,
        knowledge: Knowledge | None,
        doubtful: Doubtful | None,
    ) -> dict[str, Tensor]:
        heads = self.net.roi_heads
        own_boxes = [own.boxes for own in targets.split()]
        proposals = heads.add_gt_proposals(predictions.proposals, own_boxes)
        labels, matched = match_proposals(heads, proposals, targets, self.num_classes)
        sampler = heads.fg_bg_sampler
        limits = sampler.batch_size_per_image, sampler.positive_fraction
        count = count_drawn(labels, self.num_classes, *limits)
        labels = left_to_knowledge(labels, proposals, knowledge, pooled=False)
        if doubtful is not None:
            scores = [  # targets are not doubtful
                F.pad(own, (0, len(boxes)))
                for own, boxes in zip(predictions.proposal_scores, own_boxes, strict=True)
            ]
            unsure = doubtful.among(proposals, scores)
            labels = without(labels, unsure, background=self.num_classes)
        seeds = self._seeds("roi", len(predictions))
        drawn = sample(labels, self.num_classes, *limits, seeds)
        rows = [index[real] for index, real in zip(drawn.rows, drawn.real, strict=True)]
        boxes = [own[row] for own, row in zip(proposals, rows, strict=True)]
        logits, deltas = self.classify(predictions, boxes)
        # From here on in rows of S for each image, padded if an image has fewer.
        samples = padded_rows([torch.arange(len(row), device=logits.device) for row in rows])
        into_rows = partial(in_rows, real=samples.real)
        chosen = torch.cat([own[row] for own, row in zip(labels, rows, strict=True)])
        flat_matched = torch.cat([own[row] for own, row in zip(matched, rows, strict=True)])
        table = into_rows(torch.cat(boxes))

        def predicted() -> Tensor:
            if not len(deltas):  # decode() would return no last dimension of 4
                return torch.zeros_like(table)
            likeliest = logits[:, 1:].argmax(dim=1) + 1
            of_likeliest = deltas.detach()[torch.arange(len(deltas)), likeliest]
            return into_rows(heads.box_coder.decode(of_likeliest, boxes)[:, 0])

        def assigned(others: Boxes) -> Tensor:
            return into_rows(torch.cat(match_proposals(heads, boxes, others, self.num_classes)[0]))

        regions = StageRegions(
            into_rows(logits[:, 1:] - logits[:, :1]), into_rows(chosen, IGNORED), table, targets,
            pooled=False, predicted=predicted, assign=assigned,
        )  # fmt: skip
        positive = ((chosen >= 0) & (chosen < self.num_classes)).nonzero().squeeze(1)
        wanted = heads.box_coder.encode_single(flat_matched[positive], torch.cat(boxes)[positive])
        return self._stage(
            regions, background, known_entries(knowledge, table, pooled=False), count,
            deltas[positive, chosen[positive] + 1], wanted, ("classification", "box", ""),
        )  # fmt: skip

    def _stage(
        self,
        regions: StageRegions,
        background: BackgroundRule | None,
        known: KnownEntries | None,
        count: int,
        deltas: Tensor,
        wanted: Tensor,
        names: tuple[str, str, str],
    ) -> dict[str, Tensor]:
        """The losses of a stage.

        Args:
            count: what they are divided by, over all processes.
            deltas, wanted: [P, 4] of the positives.
            names: of the two losses, and the prefix for the names of a method's terms.
        """
        divisor = normalizer(deltas.new_tensor(float(count)), smallest=1.0)
        loss, terms = classification_loss(regions, background, known)
        box = F.smooth_l1_loss(deltas, wanted, beta=self.smooth_l1_beta, reduction="sum")
        of_classes, of_boxes, prefix = names
        losses = {of_classes: loss / divisor, of_boxes: box / divisor}
        return losses | {f"{prefix}{name}": term / divisor for name, term in terms.items()}

"""Co-generation, Steps 1-3 of Algorithm 1, and the merge of Eq. 1. Tensors in, tensors out.

Everything works on all images of a batch at once and never sends a gradient. Step 1 needs to
know how a detector encodes its boxes and is therefore :meth:`DenseDetector.decode`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torchvision.ops import box_iou, nms

from comining.ops import rank_in_group
from comining.structures import Candidates, Detections, Targets


def suppress(
    candidates: Candidates, num_classes: int, nms_threshold: float, max_per_image: int
) -> Candidates:
    """Step 2: class-wise non-maximum suppression, then the best ``max_per_image`` of an image.

    One NMS serves the whole batch: boxes of different images or classes are moved apart. The
    shift reaches millions of pixels, where float32 no longer resolves one, hence float64.

    Returns:
        Candidates sorted by image, then by falling score.
    """
    if len(candidates) == 0:
        return candidates
    boxes = candidates.boxes.double()
    extent = boxes.max() - boxes.min() + 1
    group = candidates.image * num_classes + candidates.labels
    keep = nms(boxes + (group * extent).unsqueeze(-1), candidates.scores.double(), nms_threshold)
    keep = keep[candidates.image[keep].argsort(stable=True)]  # nms returns falling scores
    kept = candidates[keep]
    return kept[rank_in_group(kept.image) < max_per_image]


def clip(
    candidates: Candidates, image_sizes: Sequence[tuple[int, int]], min_size: float
) -> Candidates:
    """Cut boxes at the border of their image and drop those with a side under ``min_size`` px."""
    if len(candidates) == 0:
        return candidates
    sizes = torch.tensor(image_sizes, dtype=torch.float32).to(candidates.boxes.device)
    limit = sizes[candidates.image][:, [1, 0, 1, 0]]
    boxes = torch.minimum(candidates.boxes.clamp(min=0), limit)
    big = ((boxes[:, 2:] - boxes[:, :2]) >= min_size).all(dim=1)
    return Candidates(boxes, candidates.labels, candidates.scores, candidates.image)[big]


def drop_annotated(
    candidates: Candidates,
    targets: Sequence[Targets],
    overlap_threshold: float,
    class_aware: bool,
) -> Candidates:
    """Step 3: drop what the annotations of its image already cover (IoU > threshold).

    Args:
        class_aware: compare with annotations of the same class only, as the authors' code does.
            Algorithm 1 in the paper compares with all.
    """
    if len(candidates) == 0 or not any(map(len, targets)):
        return candidates
    boxes = torch.cat([target.boxes for target in targets])
    labels = torch.cat([target.labels for target in targets])
    counts = torch.tensor([len(target) for target in targets])
    image = torch.arange(len(targets)).repeat_interleave(counts).to(boxes.device)
    comparable = candidates.image[:, None] == image
    if class_aware:
        comparable &= candidates.labels[:, None] == labels
    covered = (box_iou(candidates.boxes, boxes) > overlap_threshold) & comparable
    return candidates[~covered.any(dim=1)]


def merge(targets: Sequence[Targets], mined: Sequence[Detections]) -> list[Targets]:
    """Eq. 1: the annotations of every image, followed by pseudo-labels as full ground truth."""
    return [
        Targets(torch.cat([target.boxes, found.boxes]), torch.cat([target.labels, found.labels]))
        for target, found in zip(targets, mined, strict=True)
    ]

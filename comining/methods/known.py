"""What is known comes before what is mined."""

from __future__ import annotations

import torch

from comining.structures import Boxes, Knowledge


def drop_known(boxes: Boxes, knowledge: Knowledge) -> Boxes:
    """Drop boxes of classes that are complete in their image, and those in an ignored region.

    Args:
        boxes: of the B images that ``knowledge`` is about.
    """
    if len(boxes) == 0:
        return boxes
    known = knowledge.rate[boxes.image, boxes.labels] == 1
    ignored = knowledge.ignored
    if len(ignored):
        corner = torch.maximum(boxes.boxes[:, None, :2], ignored.boxes[:, :2])  # [N, R, 2]
        end = torch.minimum(boxes.boxes[:, None, 2:], ignored.boxes[:, 2:])
        shared = (end - corner).clamp(min=0).prod(dim=-1)
        inside = shared > knowledge.overlap * (
            (boxes.boxes[:, 2:] - boxes.boxes[:, :2]).prod(dim=-1, keepdim=True)
        )
        same_image = boxes.image[:, None] == ignored.image
        same_class = (boxes.labels[:, None] == ignored.labels) | (ignored.labels < 0)
        known |= (inside & same_image & same_class).any(dim=1)
    return boxes[~known]

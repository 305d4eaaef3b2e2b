"""Knowledge about an image takes precedence over what is mined in it."""

from __future__ import annotations

from comining.ops import share_inside
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
        inside = (share_inside(boxes.boxes, ignored.boxes) > knowledge.overlap).T  # [N, R]
        same_image = boxes.image[:, None] == ignored.image
        same_class = (boxes.labels[:, None] == ignored.labels) | (ignored.labels < 0)
        known |= (inside & same_image & same_class).any(dim=1)
    return boxes[~known]

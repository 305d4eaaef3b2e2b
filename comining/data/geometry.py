"""Maps boxes of a batch to pictures of another geometry, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from comining.ops import clip
from comining.structures import Batch, Boxes


@dataclass(frozen=True)
class Geometry:
    """An affine map from each of B images to a picture of the same size.

    A rectangle of centre c and sides s becomes a parallelogram. Its axis-aligned hull has the
    centre ``matrix @ c + shift`` and the sides ``abs(matrix) @ s``; both can be solved for c and s,
    so that :meth:`backward` inverts :meth:`forward` exactly. (The hull of a hull would grow: at a
    shear of 30 degrees a square would come back 2.2 times as wide.)
    """

    matrix: Tensor  # [B, 2, 2] float32
    shift: Tensor  # [B, 2] float32, px
    sizes: Sequence[tuple[int, int]]  # B times (height, width)
    # An object is dropped if less than this share of its hull lies inside the picture.
    min_visible: float
    min_box_size: float  # and if a side is shorter, px

    def forward(self, boxes: Boxes) -> Boxes:
        """The hulls in the pictures of boxes of the images, not cut at the border."""
        matrix, centre, sides = self._parts(boxes)
        return _of_parts(boxes, _times(matrix, centre) + self.shift[boxes.image],
                         _times(matrix.abs(), sides))  # fmt: skip

    def backward(self, boxes: Boxes) -> Boxes:
        """The rectangles in the images whose hulls are the given boxes in the pictures.

        A box without such a rectangle, because it is too narrow or too flat, is dropped.
        """
        matrix, centre, hull = self._parts(boxes)
        centre = _times(_inverse(matrix), centre - self.shift[boxes.image])
        sides = _times(_inverse(matrix.abs()), hull)
        return _of_parts(boxes, centre, sides)[(sides > 0).all(dim=1)]

    def _parts(self, boxes: Boxes) -> tuple[Tensor, Tensor, Tensor]:
        """Matrices [N, 2, 2], centres [N, 2] and sides [N, 2] of N boxes."""
        start, end = boxes.boxes[:, :2], boxes.boxes[:, 2:]
        return self.matrix[boxes.image], (start + end) / 2, end - start

    def visible(self, boxes: Boxes) -> Boxes:
        """The boxes of the pictures that lie far enough inside."""
        limit = torch.tensor([(width, height) for height, width in self.sizes])
        limit = limit.to(boxes.boxes)[boxes.image]
        start, end = boxes.boxes[:, :2], boxes.boxes[:, 2:]
        inside = (torch.minimum(end, limit) - start.clamp(min=0)).clamp(min=0).prod(dim=1)
        return boxes[inside >= self.min_visible * (end - start).prod(dim=1)]

    def objects(self, boxes: Boxes) -> Boxes:
        """Boxes of objects as targets in the pictures: cut at the border, without dropped ones."""
        return clip(self.visible(self.forward(boxes)), self.sizes, self.min_box_size)

    def batch(self, batch: Batch) -> Batch:
        """The batch with its boxes in the coordinates of the pictures; its images are unchanged."""
        # Every visible part of a region to ignore remains ignored.
        ignored = clip(self.forward(batch.knowledge.ignored), self.sizes, 0.0)
        return replace(
            batch,
            annotated=self.objects(batch.annotated),
            erased=self.objects(batch.erased),
            held_back=self.objects(batch.held_back),
            pseudo_labels=self.objects(batch.pseudo_labels),
            knowledge=replace(batch.knowledge, ignored=ignored),
            pasted=[],  # some may be out of view, so that the rest is not counted
        )


def _of_parts(boxes: Boxes, centre: Tensor, sides: Tensor) -> Boxes:
    corners = torch.cat([centre - sides / 2, centre + sides / 2], dim=1)
    return replace(boxes, boxes=corners)


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    """[N, 2, 2] times [N, 2], in full precision even if TF32 is allowed for matrix products."""
    return (matrix * vector.unsqueeze(1)).sum(dim=2)


def _inverse(matrix: Tensor) -> Tensor:
    """The inverse of [N, 2, 2]; torch's own would synchronise with the device."""
    (a, b), (c, d) = (row.unbind(dim=1) for row in matrix.unbind(dim=1))
    determinant = a * d - b * c
    adjugate = torch.stack([d, -b, -c, a], dim=1).view(-1, 2, 2)
    return adjugate / determinant[:, None, None]

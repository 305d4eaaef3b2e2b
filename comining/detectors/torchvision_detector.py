"""The base class of detectors whose network is one of torchvision's."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.image_list import ImageList

from comining.detectors.detector import Detector
from comining.ops import resized_shape
from comining.structures import Boxes

# Number of padded shapes whose anchors are cached: 4 MB each at 800 x 1344. Images grouped by
# orientation have about as many.
MAX_ANCHOR_SHAPES = 32


class TorchvisionDetector(Detector):
    """A torchvision detection model with a feature pyramid and anchors.

    A subclass defines how the network is run (:meth:`_forward`), and how its outputs become
    detections (:meth:`_detections`).

    Args:
        channels_last: use the channels-last memory format for weights and activations.
    """

    # The first label in torchvision's detections.
    first_label = 0

    pixel_mean: Tensor  # [3, 1, 1] on the scale of uint8
    pixel_std: Tensor

    def __init__(self, net: Any, channels_last: bool):
        super().__init__()
        self.net = net
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        net.to(memory_format=self.layout)
        self.anchors_of: dict[tuple[torch.device, int, int], tuple[Tensor, list[int]]] = {}
        mean = torch.tensor(net.transform.image_mean).view(3, 1, 1)
        std = torch.tensor(net.transform.image_std).view(3, 1, 1)
        self.register_buffer("pixel_mean", mean * 255, persistent=False)
        self.register_buffer("pixel_std", std * 255, persistent=False)

    @property
    def anchor_generator(self) -> Any:
        """torchvision's anchor generator."""
        return self.net.anchor_generator

    @property
    def smallest_region(self) -> float:
        # The side of a square anchor, or the stride of a point.
        return float(min(side for level in self.anchor_generator.sizes for side in level))

    @abstractmethod
    def _forward(self, padded: Tensor, sizes: list[tuple[int, int]]) -> Any:
        """Run the network, under autocast if enabled, and return float32.

        Args:
            padded: [B, 3, H, W], see :meth:`_normalize_and_pad`.
            sizes: (height, width) of each image in it.
        """

    @abstractmethod
    def _detections(
        self, predictions: Any, sizes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Detections of each image, postprocessed by torchvision's own code."""

    def predict(self, images: Sequence[Tensor]) -> Any:
        sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
        return self._forward(self._normalize_and_pad(images, sizes), sizes)

    def _anchors(self, padded: Tensor, features: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
        """Anchors [A, 4] float32 and their number on each level; cached by padded shape."""
        key = (padded.device, int(padded.shape[-2]), int(padded.shape[-1]))
        if key not in self.anchors_of:
            if len(self.anchors_of) == MAX_ANCHOR_SHAPES:
                del self.anchors_of[next(iter(self.anchors_of))]  # the oldest
            # Validation runs in inference mode, whose tensors could not be used in training later.
            with torch.inference_mode(False), torch.no_grad():
                # torchvision takes the dtype of anchors from the features; in bf16 they would be
                # off by up to 8 px, and would be cached like that.
                stand_ins = [
                    torch.empty((), device=padded.device).expand(1, 1, *feature.shape[-2:])
                    for feature in features
                ]
                grey = torch.empty((), device=padded.device).expand(1, 3, *key[1:])
                anchors = self.anchor_generator(ImageList(grey, [key[1:]]), stand_ins)[0]
            locations = [feature.shape[-2] * feature.shape[-1] for feature in features]
            per_location = len(anchors) // sum(locations)
            self.anchors_of[key] = (anchors, [count * per_location for count in locations])
        return self.anchors_of[key]

    def _normalize_and_pad(self, images: Sequence[Tensor], sizes: list[tuple[int, int]]) -> Tensor:
        """[B, 3, H, W] float32: zero mean, unit deviation, zeros beyond each image's border."""
        multiple = self.net.transform.size_divisible
        height, width = (-(-max(side) // multiple) * multiple for side in zip(*sizes))
        shape = (len(images), 3, height, width)
        batch = torch.empty(shape, device=self.pixel_mean.device, memory_format=self.layout)
        batch.zero_()
        for row, image in zip(batch, images):
            inside = row[:, : image.shape[-2], : image.shape[-1]]
            torch.sub(image, self.pixel_mean, out=inside).div_(self.pixel_std)
        return batch

    @torch.no_grad()
    def detect(self, images: Sequence[Tensor]) -> Boxes:
        """Inference as torchvision's own forward does it.

        Under mixed precision only the network itself is rounded: torchvision would also compute
        anchors and decode boxes in bf16, which moves them by pixels. In float32 the results equal
        those of ``self.net(images)``.

        Args:
            images: B times [3, H, W] uint8 of any size; the model resizes them itself.

        Returns:
            Boxes with scores, in pixels of the images as they were given.

        Raises:
            RuntimeError: the network is in training mode.
        """
        if self.net.training:
            raise RuntimeError("detect() needs the network in evaluation mode")
        resized = [self._resize(image.float() / 255) for image in images]
        resized_sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in resized]
        transform = self.net.transform
        padded = transform.batch_images(resized, size_divisible=transform.size_divisible)
        padded = padded.contiguous(memory_format=self.layout)
        predictions = self._forward(padded, resized_sizes)
        results = self._detections(predictions, resized_sizes)
        sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
        results = transform.postprocess(results, resized_sizes, sizes)
        boxes, labels, scores = (
            [of_image[key] for of_image in results] for key in ("boxes", "labels", "scores")
        )
        return Boxes.of_images(boxes, [own - self.first_label for own in labels], scores)

    def _resize(self, image: Tensor) -> Tensor:
        """Normalise and resize an image [3, H, W] float32 as torchvision's transform does.

        A side that would become 0 px keeps 1 px, as in training.
        """
        transform = self.net.transform
        image = transform.normalize(image)
        height, width = image.shape[-2:]
        limits = (transform.min_size[-1], transform.max_size)
        scale = min(limits[0] / min(height, width), limits[1] / max(height, width))
        if min(height, width) * scale >= 1:
            resized: Tensor = transform.resize(image)[0]
            return resized
        shape = resized_shape(height, width, *limits)
        return F.interpolate(image[None], size=shape, mode="bilinear", align_corners=False)[0]

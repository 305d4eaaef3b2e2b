"""The README's picture: ``python docs/readme_picture.py RUN/checkpoints/last.ckpt OUT.png``.

Shows what the run's own method, with its trained network, mines on training images that lost at
least two annotations. The images are drawn by lot, not picked.
"""

import random
import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from comining.checkpoint import load_detector
from comining.config import instantiate
from comining.data.sampler import SampleKey
from comining.drawing import ANNOTATED, ERASED, MINED, Layer, panel, sheet


def main(checkpoint: str, output: str) -> None:
    """Draw the picture."""
    detector, description = load_detector(checkpoint)
    config: Any = OmegaConf.create({**description["config"], "trainer": None})
    sparsity = instantiate(config.sparsity, "sparsity")
    data = instantiate(config.data, "data", sparsity=sparsity, seed=config.seed)
    data.setup("fit")
    data.train_set.flip = 0.0
    method = instantiate(config.method, "method")
    several = [
        n
        for n in range(len(data.train_set))
        if len(data.train_set.erased_rows[data.train_set.images[n]]) > 1
    ]
    panels = []
    for item in sorted(random.Random(0).sample(several, 8)):
        one = data.train_set[SampleKey(item, item)]
        (mined,), _ = method.cogenerate(detector, detector.predict([one.image]), [one.targets])
        layers = zip((ANNOTATED, ERASED, MINED), (one.targets, one.erased, mined))
        boxes = [Layer(style, found.boxes) for style, found in layers]
        panels.append(panel(one.image, boxes, scale=2.5))
    title = "Half of the annotations were erased; what co-mining finds again in training images"
    sheet(panels, 4, [ANNOTATED, ERASED, MINED], title).save(Path(output), optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""The loader: one uint8 view an image, against the naive one that ships two float32 views.

And against itself with three objects pasted into each image (``data.paste=3``), kept decoded or
decoded for every object.

python -m benchmarks.data [--images 24] [--json FILE]

Both read the same JPEGs of 640 x 480 px with one worker process, which is one core, and are asked
for the same batches. Ours is the application's training set. The naive one decodes, turns to
float32, resizes to 800 px and jitters the colours of a copy, all in the worker. Our second view is
made where the network is: on a GPU that costs no core, and on a CPU it is timed by itself.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from benchmarks import measure
from comining.config import CONFIG_FOLDER, instantiate_file
from comining.data.dataset import TrainingSet, collate
from comining.data.formats.coco import read_coco
from comining.data.sampler import StreamSampler
from comining.data.sparsity import Erasure
from comining.data.views import SecondView

WIDTH, HEIGHT = 640, 480


def arguments(given: list[str] | None) -> argparse.Namespace:
    """Options."""
    options = measure.parser("Images per second and core, ours against two float32 views.")
    options.add_argument("--images", type=int, default=24, help="of a round")
    options.add_argument("--batch", type=int, default=4)
    options.add_argument("--min-size", type=int, default=800)
    options.add_argument("--max-size", type=int, default=1333)
    options.set_defaults(rounds=10, seconds=240.0)
    chosen = options.parse_args(given)
    if chosen.quick:
        chosen.images, chosen.rounds, chosen.min_size = 4, 2, 96
    return chosen


def write_images(folder: Path, count: int) -> Path:
    """A COCO set of photographs of nothing, about as hard to decode as COCO's: 190 KB each."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    content["categories"] = [{"id": 1, "name": "thing"}]
    for number in range(1, count + 1):
        coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
        grain = rng.normal(0, 16, (HEIGHT, WIDTH, 1))
        picture = np.clip(smooth + grain, 0, 255).astype(np.uint8)
        name = f"{number}.jpg"
        Image.fromarray(picture).save(folder / "images" / name, quality=90)
        content["images"].append(
            {"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT}
        )
        content["annotations"].append(
            {
                "id": number,
                "image_id": number,
                "category_id": 1,
                "bbox": [100, 100, 200, 150],
                "area": 30000,
                "iscrowd": 0,
            }
        )
    file = folder / "annotations.json"
    file.write_text(json.dumps(content))
    return file


class TwoFloatViews(Dataset[tuple[Tensor, Tensor]]):
    """What one would write first."""

    def __init__(self, files: list[Path], min_size: int, max_size: int, jitter: dict[str, float]):
        self.files = files
        self.resize = v2.Resize(min_size, max_size=max_size, antialias=False)
        self.jitter = v2.ColorJitter(**jitter)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        picture = np.array(Image.open(self.files[index]).convert("RGB"))
        image = F.to_dtype(torch.from_numpy(picture).permute(2, 0, 1), torch.float32, scale=True)
        first: Tensor = self.resize(image)
        second: Tensor = self.jitter(first)
        return first, second


class Loader:
    """Serves the same images round after round, from one worker that stays alive.

    Args:
        workers: 1, or 0 to decode in this process.
    """

    def __init__(self, data: Dataset[Any], workers: int, **options: Any):
        # Spawned: a fork of a process with threads may hang.
        context = multiprocessing.get_context("spawn") if workers else None
        self.loader: DataLoader[Any] = DataLoader(
            data,
            num_workers=workers,
            persistent_workers=workers > 0,
            multiprocessing_context=context,
            pin_memory=torch.cuda.is_available(),
            **options,
        )

    def __call__(self) -> int:
        """Take all batches of a round; how many images there were."""
        return sum(
            len(batch.images) if hasattr(batch, "images") else len(batch[0])
            for batch in self.loader
        )


def main(given: list[str] | None = None) -> None:
    """Compare the loaders."""
    chosen = arguments(given)
    device = torch.device(chosen.device)
    view: SecondView = instantiate_file(CONFIG_FOLDER / "view" / "color.yaml", {})
    widths: Any = OmegaConf.to_container(OmegaConf.load(CONFIG_FOLDER / "view" / "color.yaml"))
    jitter = {name: widths[name] for name in ("brightness", "contrast", "saturation", "hue")}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        annotations = read_coco(write_images(folder, chosen.images))
        files = [folder / "images" / file for file in annotations.file_names]
        data, pasting, decoding = (
            TrainingSet(
                annotations,
                Erasure.only(annotations, np.zeros(len(annotations.ids), dtype=np.bool_)),
                folder / "images",
                min_size=chosen.min_size,
                max_size=chosen.max_size,
                flip=0.5,
                seed=0,
                paste=paste,
            )
            for paste in (0, 3, 3)
        )
        if decoding.paster is not None:
            decoding.paster.crops.limit = 0  # as in a set that is larger than what is kept
        workers = 0 if chosen.quick else 1  # to start one takes seconds
        steps = chosen.images // chosen.batch
        sampler = StreamSampler(data.landscape.tolist(), chosen.batch, start=0, stop=steps, seed=0)
        ours, pasted, decoded = (
            Loader(images, workers, batch_sampler=sampler, collate_fn=collate)
            for images in (data, pasting, decoding)
        )
        naive = Loader(
            TwoFloatViews(files, chosen.min_size, chosen.max_size, jitter),
            workers,
            batch_size=chosen.batch,
        )
        print(measure.machine(device))
        size = sum(file.stat().st_size for file in files) / len(files) / 1000
        print(f"{WIDTH}x{HEIGHT} JPEGs of {size:.0f} KB, shortest side to {chosen.min_size} px")
        taken = measure.interleave(
            {"ours": ours, "naive": naive, "pasting": pasted, "pasting, all decoded": decoded},
            device,
            rounds=chosen.rounds,
            seconds=chosen.seconds,
            clock="wall",  # the worker's time, not that of this process
        )
        batch = collate([data[key] for key in next(iter(sampler))])
    images = [image.to(device) for image in batch.images]
    second = measure.interleave(
        {"view": lambda: view(images, batch.positions, 0)},
        device,
        rounds=5,
        seconds=20,
        clock="wall",
    )["view"]
    measure.report_times(taken, {})
    count = steps * chosen.batch
    for label, seconds in taken.items():
        rate = count / statistics.median(seconds)
        print(f"  {label}: {rate:.0f} images a second and core")
    each = statistics.median(second) / chosen.batch
    print(f"  our second view, made on {device}: {each * 1e3:.1f} ms an image, not in these rates")
    if device.type == "cpu":
        with_view = statistics.median(taken["ours"]) / count + each
        print(f"  ours with the second view on the same core: {1 / with_view:.0f} images a second")
    # Images per second, so the naive loader's time comes first.
    measure.report_ratios(
        {
            "loader_over_naive": measure.ratio(taken["naive"], taken["ours"]),
            # Seconds per image.
            "pasting_over_plain": measure.ratio(taken["pasting"], taken["ours"]),
            "decoding_over_plain": measure.ratio(taken["pasting, all decoded"], taken["ours"]),
        },
        chosen.json,
    )


if __name__ == "__main__":
    main()

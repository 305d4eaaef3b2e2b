"""The page of proposals: seconds from opening it to the first picture, with many pictures.

python -m benchmarks.review_page [--folder DIR] [--images 2000] [--json FILE]

Draws a set of shapes, takes half of the boxes away, proposes these and as many wrong ones, writes
the page, and opens it in Debian's Chromium from the disk. DIR keeps all of it to be looked at.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from selenium import webdriver

from comining.completion.proposal_folder import (
    PROPOSALS_FILE,
    ProposalFolder,
    ProposalSource,
    RateEstimate,
)
from comining.completion.proposals import Proposal, write_proposals
from comining.completion.review_page import write_review_page
from comining.data.shapes import SHAPES, DrawShapes

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FIRST = "return performance.getEntriesByName('first-picture').map(mark => mark.startTime)[0]"


def main(given: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.review_page", description=__doc__)
    parser.add_argument("--folder", type=Path, help="keep the set and the page here")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(given)
    with tempfile.TemporaryDirectory() as temporary:
        root = options.folder or Path(temporary)
        started = time.perf_counter()
        folder = draw(root, options.images)
        drawn = time.perf_counter()
        page = write_review_page(folder)
        measured = {"proposals": len(folder.proposals), "drawn_s": drawn - started}
        measured["page_s"] = time.perf_counter() - drawn
        if CHROMIUM and DRIVER:
            measured |= seconds_to_first_picture(page, options.rounds)
    text = json.dumps({"images": options.images, **measured}, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text)


def draw(root: Path, images: int) -> ProposalFolder:
    """A folder of proposals on drawn pictures, the least certain first."""
    if not (root / "proposals" / PROPOSALS_FILE).exists():
        write_shapes = DrawShapes(
            train_images=images, val_images=1, test_images=1, image_size=320,
            object_size=(24, 110), objects=(2, 8), seed=0,
        )  # fmt: skip
        write_shapes(str(root / "shapes"))
        _propose(root)
    return ProposalFolder.read(root / "proposals")


def _propose(root: Path) -> None:
    rng = np.random.default_rng(0)
    content: dict[str, Any] = json.loads((root / "shapes/annotations/train.json").read_text())
    erased = rng.random(len(content["annotations"])) < 0.5
    real = [one for one, gone in zip(content["annotations"], erased, strict=True) if gone]
    kept = [one for one, gone in zip(content["annotations"], erased, strict=True) if not gone]
    (root / "sparse.json").write_text(json.dumps({**content, "annotations": kept}))
    found = [(one["image_id"], one["category_id"], one["bbox"], rng.beta(4, 2)) for one in real]
    # At least one for every image.
    for image in [*(one["image_id"] for one in real), *(one["id"] for one in content["images"])]:
        category = int(rng.integers(1, len(SHAPES) + 1))
        side = rng.uniform(24, 110, 2)
        place = rng.uniform(0, 320 - side)
        wrong = [round(float(value), 2) for value in (*place, *side)]
        found.append((image, category, wrong, rng.beta(2, 4)))
    found.sort(key=lambda one: abs(one[3] - 0.5))
    proposals = [
        Proposal(
            id=number, image_id=image, category_id=category, bbox=tuple(bbox),
            score=float(probability) * 0.6, probability=float(probability),
        )
        for number, (image, category, bbox, probability) in enumerate(found, start=1)
    ]  # fmt: skip
    folder = root / "proposals"
    folder.mkdir(parents=True, exist_ok=True)
    names = [category["name"] for category in content["categories"]]
    ProposalSource(
        annotations="../sparse.json",
        images="../shapes/train",
        classes=names,
        rates={name: RateEstimate(rate=0.5, interval=(0.44, 0.57)) for name in names},
    ).write(folder)
    write_proposals(folder / PROPOSALS_FILE, proposals)


def seconds_to_first_picture(page: Path, rounds: int) -> dict[str, float]:
    """Median and worst of the seconds until the first picture is there, in a fresh browser each."""
    seconds = []
    for _ in range(rounds):
        with browser(1280, 800) as driver:
            driver.get(page.absolute().as_uri())
            deadline = time.monotonic() + 60
            while (first := driver.execute_script(FIRST)) is None:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{page}: no picture after a minute")
                time.sleep(0.02)
            seconds.append(first / 1000)
    return {"first_picture_s": statistics.median(seconds), "first_picture_worst_s": max(seconds)}


def browser(width: int, height: int) -> webdriver.Chrome:
    """Debian's Chromium without a window; a context that ends it."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    # A container has neither user namespaces nor much shared memory.
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(flag)
    options.add_argument(f"--window-size={width},{height}")
    return webdriver.Chrome(options, webdriver.ChromeService(str(DRIVER)))


if __name__ == "__main__":
    main()

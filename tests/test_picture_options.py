"""Pictures as cameras and tools make them: turned, deep, of several pages, and strips."""

from __future__ import annotations

import json
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from comining.data.dataset import collate
from comining.data.formats.coco import read_coco
from comining.data.image_files import PictureFacts, check_images, warn_of_pictures
from comining.data.images import largest_value, load_image, open_image, orientation, pages
from comining.data.sampler import SampleKey
from comining.errors import DataError
from comining.evaluation.evaluation_module import EvaluationModule
from comining.methods import pseudo_label
from comining.methods.method import RunInfo
from comining.structures import Boxes
from tests.helpers import boxes, detector, edit_json, method, write_coco
from tests.test_datamodule import attach, coco_data

BOX = (1, 2, 10, 12, 1)


def noise(height: int, width: int, top: int = 256) -> NDArray[Any]:
    rng = np.random.default_rng(0)
    shape = (height, width) if top > 256 else (height, width, 3)
    return rng.integers(0, top, shape, dtype=np.uint16 if top > 256 else np.uint8)


def oriented(file: Path, tag: object, height: int = 48, width: int = 64, **options: Any) -> None:
    """A picture with an EXIF orientation; (height, width) of the stored pixels."""
    exif = Image.Exif()
    exif[0x0112] = tag
    Image.fromarray(noise(height, width)).save(file, exif=exif, **options)


# -- EXIF orientation --------------------------------------------------------------------


@pytest.mark.parametrize("tag", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_pictures_are_turned_as_pillow_turns_them(tmp_path: Path, tag: int, suffix: str) -> None:
    file = tmp_path / f"x.{suffix}"
    oriented(file, tag, 5, 8)
    with Image.open(file) as image:
        stored = np.array(image.convert("RGB"))
        turned = ImageOps.exif_transpose(image)
        assert turned is not None
        upright = np.array(turned.convert("RGB"))
    height, width = upright.shape[:2]
    found = load_image(file, (height, width), exif="apply")
    assert found.is_contiguous() or found.permute(1, 2, 0).is_contiguous()
    assert np.array_equal(found.permute(1, 2, 0), upright)
    assert np.array_equal(load_image(file, (5, 8)).permute(1, 2, 0), stored)
    if tag >= 5:
        with pytest.raises(DataError, match=r"is 5x8 px.*data\.exif=ignore takes the pixels"):
            load_image(file, (5, 8), exif="apply")
        with pytest.raises(DataError, match=r"is 8x5 px, .* says 5x8; .*data\.exif=apply"):
            load_image(file, (8, 5))


@pytest.mark.parametrize("tag", [3, 6])
@pytest.mark.parametrize("exif", ["ignore", "apply"])
def test_tiff_is_turned_by_its_decoder_and_once_only(tmp_path: Path, tag: int, exif: Any) -> None:
    """The tag is part of the format there; boxes of TIFF files always referred to this."""
    file = tmp_path / "x.tiff"
    pixels = noise(5, 8)
    Image.fromarray(pixels).save(file, tiffinfo={0x0112: tag})
    expected = np.rot90(pixels, 2 if tag == 3 else -1)
    found = load_image(file, expected.shape[:2], exif=exif)
    assert np.array_equal(found.permute(1, 2, 0), expected)
    with open_image(file, "x") as image:
        assert orientation(image) == 1


@pytest.mark.parametrize("tag", [0, 9, 255, 65535])
def test_what_is_no_orientation_is_none(tmp_path: Path, tag: Any) -> None:
    file = tmp_path / "x.jpg"
    oriented(file, tag, 5, 8)
    assert load_image(file, (5, 8), exif="apply").shape == (3, 5, 8)


def test_damaged_exif_data_are_none(tmp_path: Path) -> None:
    file = tmp_path / "x.jpg"
    oriented(file, 6, 5, 8)
    data = file.read_bytes()
    start = data.index(b"Exif\0\0") + 6
    for cut in (b"\0" * 8, b"XX*\0\x08\0\0\0", b"MM\0*\xff\xff\xff\xff"):
        file.write_bytes(data[:start] + cut + data[start + 8 :])
        assert load_image(file, (5, 8), exif="apply").shape == (3, 5, 8)


@pytest.mark.parametrize("check", ["size", "exist"])
def test_turned_pictures_are_counted_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, check: str
) -> None:
    for split, tags in (("train", (3, 1, 2)), ("val", (1, 4)), ("test", (1,))):
        write_coco(tmp_path, [[BOX]] * len(tags), split=split)
        for number, tag in enumerate(tags, start=1):
            oriented(tmp_path / split / f"{number:03d}.png", tag)
    data = coco_data(tmp_path, check=check)
    data.setup("fit")
    assert caplog.text.count("EXIF") == 1
    first = tmp_path / "train" / "001.png"
    assert f"3 of 6 pictures have an EXIF orientation, the first is {first}" in caplog.text
    assert "data.exif=apply" in caplog.text
    turned = [s["pictures"]["with_exif_orientation"] for s in data.summary().values()]
    assert turned == [2, 1, 0]
    caplog.clear()
    coco_data(tmp_path, check=check, exif="apply").setup("fit")
    assert "EXIF" not in caplog.text


def test_with_exif_applied_pixels_and_boxes_are_those_of_the_viewer(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        write_coco(tmp_path, [[BOX]], split=split)
        for file in (tmp_path / split).iterdir():
            oriented(file, 6, 64, 48)  # seen as 48 high, 64 wide
    data = coco_data(tmp_path, exif="apply", flip=0.0)
    data.setup("fit")
    assert data.train_set is not None
    sample = data.train_set[SampleKey(0, 0)]
    expected = torch.from_numpy(np.rot90(noise(64, 48), -1).copy()).permute(2, 0, 1)
    assert torch.equal(sample.image, expected)
    assert sample.annotated.boxes.tolist() == [[1, 2, 11, 14]]
    assert data.val_set is not None
    assert torch.equal(data.val_set[0][1], expected)
    with pytest.raises(DataError, match="says 64x48; its EXIF orientation is not applied"):
        coco_data(tmp_path).setup("fit")


def test_a_teacher_labels_pictures_as_they_are_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in ("train", "val", "test"):
        write_coco(tmp_path, [[BOX]], split=split)
        for file in (tmp_path / split).iterdir():
            oriented(file, 6, 64, 48)  # seen as 48 high, 64 wide
    data = coco_data(tmp_path, exif="apply", flip=0.0)
    data.setup("fit")
    teacher = detector("retinanet", 3).eval()
    seen: list[tuple[int, ...]] = []

    def detect(images: list[torch.Tensor]) -> Boxes:
        seen.extend(tuple(image.shape) for image in images)
        return boxes([(20, 20, 40, 40, 0, 0.9)])

    monkeypatch.setattr(teacher, "detect", detect)
    description = {"category_names": list(data.categories.names)}
    monkeypatch.setattr(pseudo_label, "load_detector", lambda path: (teacher, description))
    chosen = method("pseudo_label", teacher="x.ckpt", score_threshold=0.5)
    chosen.prepare(teacher, data, RunInfo(tmp_path, torch.device("cpu")))
    assert seen == [(3, 48, 64)]
    assert data.train_set is not None
    assert len(data.train_set.pseudo_labels[1]) == 1


# -- more than 8 bits --------------------------------------------------------------------


def deep_png(file: Path, pixels: NDArray[Any]) -> None:
    """A PNG file [H, W, channels] of 16 bits, which Pillow cannot write in colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    height, width, channels = pixels.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    data = chunk(b"IDAT", zlib.compress(rows))
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b""))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_the_upper_8_of_the_given_bits_are_taken_in_colour_too(
    tmp_path: Path, channels: int
) -> None:
    pixels = np.random.default_rng(0).integers(0, 4096, (5, 8, channels), dtype=np.uint16)
    deep_png(tmp_path / "x.png", pixels)
    colours = pixels[:, :, :3] if channels >= 3 else pixels[:, :, :1].repeat(3, axis=2)
    for bits, expected in ((12, colours >> 4), ("auto", colours >> 8)):
        found = load_image(tmp_path / "x.png", (5, 8), bit_depth=bits)  # type: ignore[arg-type]
        assert np.array_equal(found.permute(1, 2, 0), expected)


@pytest.mark.parametrize("kind", ["png", "tiff", "pgm", "plain pgm"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_the_upper_8_of_the_given_bits_are_taken(tmp_path: Path, kind: str, bits: Any) -> None:
    file = tmp_path / f"x.{kind.split()[-1]}"
    grey = noise(5, 8, 2**bits if bits > 8 else 257)
    grey[0, 0] = 2**bits - 1
    if kind == "pgm":
        file.write_bytes(b"P5 8 5 65535\n" + grey.astype(">u2").tobytes())
    elif kind == "plain pgm":
        file.write_bytes(b"P2 8 5 65535\n" + " ".join(map(str, grey.ravel())).encode())
    else:
        Image.fromarray(grey).save(file)
    found = load_image(file, bit_depth=bits)
    assert np.array_equal(found[0], np.minimum(grey >> (bits - 8), 255))
    assert found.max() == 255
    assert largest_value(file, "auto") == (grey.max(), 65535)


def test_a_file_that_names_its_largest_value_is_scaled_by_it_alone(tmp_path: Path) -> None:
    file = tmp_path / "x.pgm"
    grey = noise(5, 8, 4096)
    file.write_bytes(b"P5 8 5 4095\n" + grey.astype(">u2").tobytes())
    for bits in ("auto", 12, 8):
        found = load_image(file, bit_depth=bits)  # type: ignore[arg-type]
        assert np.abs(found[0].numpy().astype(int) - grey / 4095 * 255).max() <= 1


@pytest.mark.parametrize("bits", [8, 12])
def test_8_bits_are_8_bits_whatever_the_option(tmp_path: Path, bits: Any) -> None:
    Image.fromarray(noise(5, 8)).save(tmp_path / "x.png")
    assert torch.equal(
        load_image(tmp_path / "x.png"), load_image(tmp_path / "x.png", bit_depth=bits)
    )


@pytest.mark.parametrize(
    ("top", "bit_depth", "said"),
    [
        (4096, "auto", "no value of .*001.png exceeds 4095 of 65535.*data.bit_depth=12 takes"),
        (300, "auto", "exceeds 299 of 65535.*data.bit_depth=9 "),
        (65536, "auto", None),
        (9000, "auto", None),
        (4096, 12, None),
        (4096, 10, "data.bit_depth=10: .*001.png has values up to 4095, and what exceeds 1023"),
        (4096, 16, "exceeds 4095 of 65535"),
    ],
)
@pytest.mark.parametrize("check", ["size", "exist"])
def test_pictures_that_use_little_of_their_range_are_named_once(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    top: int,
    bit_depth: Any,
    said: str | None,
    check: str,
) -> None:
    for split in ("train", "val", "test"):
        write_coco(tmp_path, [[BOX]] * 3, split=split)
    grey = noise(48, 64, top)
    grey[0, 0] = top - 1
    Image.fromarray(grey).save(tmp_path / "train" / "001.png")
    coco_data(tmp_path, bit_depth=bit_depth, check=check).setup("fit")
    lines = [record.getMessage() for record in caplog.records]
    if said is None:
        assert not lines
    else:
        assert len(lines) == 1
        assert re.search(said, lines[0])


def test_one_dark_picture_among_others_is_no_reason_to_warn(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = [tmp_path / "dark.png", tmp_path / "bright.png"]
    for file, top in zip(files, (300, 60_000)):
        Image.fromarray(noise(5, 8, top)).save(file)
    warn_of_pictures([PictureFacts(headers=2, deep=files)], "ignore", "auto")
    assert not caplog.records


# -- pages and frames --------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["tiff", "gif", "webp", "png"])
def test_several_pages_are_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str
) -> None:
    write_coco(tmp_path, [[BOX]] * 3, split="train")
    names = [f"{number}.{suffix}" for number in (1, 2)] + ["003.png"]
    colours = ["red", "blue", "lime", "white", "black", "yellow"]
    frames = [Image.new("RGB", (64, 48), colour) for colour in colours]
    for name in names[:2]:
        options = {"lossless": True} if suffix == "webp" else {}
        frames[0].save(
            tmp_path / "train" / name, save_all=True, append_images=frames[1:], **options
        )
    edit_json(
        tmp_path / "train.json",
        lambda c: [one.update(file_name=name) for one, name in zip(c["images"], names)],
    )
    _, facts = check_images(read_coco(tmp_path / "train.json"), tmp_path / "train", sizes=True)
    warn_of_pictures([facts], "ignore", "auto")
    assert len(caplog.records) == 1
    first = tmp_path / "train" / names[0]
    assert "2 of 3 pictures have several pages or frames" in caplog.text
    assert f"{first} is the first of 6" in caplog.text
    found = load_image(first, (48, 64))
    assert (found.float() - torch.tensor([255.0, 0, 0]).view(3, 1, 1)).abs().max() <= 5


def test_damage_behind_the_first_page_is_no_matter(tmp_path: Path) -> None:
    file = tmp_path / "x.gif"
    frames = [Image.fromarray(np.roll(noise(48, 64), 7 * shift, axis=1)) for shift in range(3)]
    frames[0].save(file, save_all=True, append_images=frames[1:])
    data = file.read_bytes()
    for cut in (len(data) // 2, len(data) * 3 // 4, len(data) - 5):
        file.write_bytes(data[:cut])
        with open_image(file, "x") as image:
            assert pages(image) >= 1
        assert load_image(file).shape == (3, 48, 64)


# -- strips ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(10, 3000), (3000, 10), (1, 500)])
def test_strips_are_trained_on_and_evaluated(tmp_path: Path, size: tuple[int, int]) -> None:
    height, width = size
    for split in ("train", "val", "test"):
        file = write_coco(tmp_path, [[BOX]] * 2, split=split)
        Image.fromarray(noise(height, width)).save(tmp_path / split / "001.png")
        content = json.loads(file.read_text())
        content["images"][0].update(height=height, width=width)
        content["annotations"][0].update(bbox=[0, 0, min(8, width), min(8, height)], area=1)
        file.write_text(json.dumps(content))
    data = coco_data(tmp_path, min_size=64, max_size=128, val_batch_size=2)
    data.setup("fit")
    attach(data, 0, 1, global_step=0, max_steps=1, accumulate_grad_batches=1)
    built = detector("retinanet", 3, "backbone=slim", "data.min_size=64", "data.max_size=128")
    assert (built.net.transform.min_size, built.net.transform.max_size) == ((64,), 128)
    assert data.train_set is not None
    samples = [data.train_set[SampleKey(position, position)] for position in range(2)]
    assert min(samples[0].image.shape[-2:]) == 1
    training = collate(samples)
    losses = built.losses(built.predict(list(training.images)), training.annotated)
    assert all(torch.isfinite(loss) for loss in losses.values())
    built.eval()
    module = EvaluationModule(built, data.evaluated)
    (batch,) = data.val_dataloader()
    module.validation_step(batch, 0)
    assert set(module.evaluators["val"].detections) == {1, 2}
    assert module.evaluators["val"].gather()["AP"] is not None

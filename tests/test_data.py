"""The stream of training images: order, resumption, sharding, geometry."""

import json
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from comining.data.dataset import TrainingSet, collate
from comining.data.formats.coco import read_coco
from comining.data.images import load_image
from comining.data.sampler import SampleKey, StreamSampler
from comining.data.shapes import SHAPES, DrawShapes
from comining.data.sparsity import Erasure
from comining.errors import DataError
from comining.ops import resized_shape
from tests.helpers import assert_equal, boxes, write_coco

# -- the order ---------------------------------------------------------------------------

MIXED = [k % 3 != 0 for k in range(50)]


def steps(start: int = 0, stop: int = 40, **options: int) -> list[list[SampleKey]]:
    given = {"seed": 0, "batch_size": 8, **options}
    size = given.pop("batch_size")
    return list(StreamSampler(MIXED, size, start=start, stop=stop, **given))


def test_a_run_that_starts_later_sees_what_an_uninterrupted_one_sees() -> None:
    whole = steps()
    assert len(whole) == 40
    for start in (1, 6, 7, 39):
        assert steps(start=start) == whole[start:]


def test_positions_are_unique_and_count_on() -> None:
    keys = [key for batch in steps() for key in batch]
    assert [key.position for key in keys] == list(range(40 * 8))


def test_a_round_shows_every_image_once_but_for_the_rest() -> None:
    per_round = len(MIXED) // 8
    for number in range(3):
        batches = steps()[number * per_round : (number + 1) * per_round]
        seen = Counter(key.item for batch in batches for key in batch)
        assert set(seen.values()) == {1}
        assert len(seen) == 48
    assert steps()[:6] != steps()[6:12]  # another order in the next round


def test_batches_hold_one_orientation_but_for_the_mixed_rest() -> None:
    for number in range(5):
        batches = steps()[number * 6 : number * 6 + 6]
        mixed = [len({MIXED[key.item] for key in batch}) > 1 for batch in batches]
        assert sum(mixed) <= 1


def test_ranks_share_the_batches_of_one_process() -> None:
    whole = steps()
    shares = [steps(rank=rank, world_size=2) for rank in (0, 1)]
    assert [first + second for first, second in zip(*shares)] == whole
    with pytest.raises(ValueError, match="multiple of their number, 3"):
        steps(world_size=3)


def test_another_seed_is_another_order() -> None:
    assert steps(seed=1) != steps()


@pytest.mark.parametrize(("count", "batch"), [(1, 4), (3, 4), (5, 4), (4, 4)])
def test_a_set_smaller_than_a_batch_fills_it_evenly(count: int, batch: int) -> None:
    keys = list(StreamSampler([True] * count, batch, start=0, stop=30, seed=0))
    assert all(len(step) == batch for step in keys)
    seen = Counter(key.item for step in keys for key in step)
    assert set(seen) == set(range(count))
    assert max(seen.values()) <= 1.7 * min(seen.values())


# -- one image ---------------------------------------------------------------------------


def training_set(root: Path, flip: float, min_size: int = 48, seed: int = 0) -> TrainingSet:
    first = [(1, 2, 10, 12, 1), (20, 20, 30, 20, 3), (40, 4, 12, 9, 2)]
    annotations = read_coco(write_coco(root, [first, [], [(5, 5, 8, 8, 2)]]))
    erased = np.array([False, True, False, False])
    folder = root / "train"
    return TrainingSet(
        annotations, Erasure.only(annotations, erased), folder, min_size=min_size, max_size=1333,
        flip=flip, seed=seed,
    )  # fmt: skip


def test_kept_and_erased_travel_together(tmp_path: Path) -> None:
    data = training_set(tmp_path, flip=0.0)
    assert len(data) == 2  # an image without annotations is not trained on
    sample = data[SampleKey(0, 0)]
    assert sample.image.shape == (3, 48, 64)
    assert sample.image_id == 1
    assert_equal(sample.pseudo_labels, boxes([], scores=True))
    assert_equal(sample.annotated, boxes([(1, 2, 11, 14, 0), (40, 4, 52, 13, 1)]))
    assert_equal(sample.erased, boxes([(20, 20, 50, 40, 2)]))


def test_samples_become_a_batch(tmp_path: Path) -> None:
    data = training_set(tmp_path, flip=0.0)
    data.pseudo_labels = {3: boxes([(1, 1, 9, 9, 2, 0.75)])}
    batch = collate([data[SampleKey(7, 0)], data[SampleKey(8, 1)]])
    assert batch.image_ids == [1, 3]
    assert batch.positions == [7, 8]
    assert_equal(
        batch.annotated, boxes([(1, 2, 11, 14, 0), (40, 4, 52, 13, 1)], [(5, 5, 13, 13, 1)])
    )
    assert_equal(batch.erased, boxes([(20, 20, 50, 40, 2)], []))
    assert_equal(batch.pseudo_labels, boxes([], [(1, 1, 9, 9, 2, 0.75)]))
    assert_equal(batch.knowledge.ignored, boxes([], []))
    assert batch.knowledge.rate.shape == (2, 3)
    assert batch.knowledge.rate.isnan().all()
    assert batch.judged.all()
    for image, name in zip(batch.images, ("001.png", "003.png"), strict=True):
        assert torch.equal(image, load_image(tmp_path / "train" / name))


def test_flip_mirrors_image_and_boxes(tmp_path: Path) -> None:
    plain = training_set(tmp_path, flip=0.0)[SampleKey(0, 0)]
    mirrored = training_set(tmp_path, flip=1.0)[SampleKey(0, 0)]
    assert torch.equal(mirrored.image, plain.image.flip(-1))
    assert mirrored.annotated.boxes.tolist() == [[53, 2, 63, 14], [12, 4, 24, 13]]
    assert mirrored.erased.boxes.tolist() == [[14, 20, 44, 40]]


def test_resizing_scales_boxes_with_the_image(tmp_path: Path) -> None:
    sample = training_set(tmp_path, flip=0.0, min_size=96)[SampleKey(0, 0)]
    assert sample.image.shape == (3, 96, 128)
    assert sample.annotated.boxes.tolist() == [[2, 4, 22, 28], [80, 8, 104, 26]]


def test_what_is_random_depends_on_seed_and_position_alone(tmp_path: Path) -> None:
    data, again = (training_set(tmp_path, flip=0.5) for _ in range(2))
    keys = [SampleKey(position, 0) for position in range(40)]
    first = [data[key].image[0, 0, 0].item() for key in keys]
    assert [again[key].image[0, 0, 0].item() for key in reversed(keys)] == first[::-1]
    assert len(set(first)) == 2  # both ways occur
    other = training_set(tmp_path, flip=0.5, seed=1)
    assert [other[key].image[0, 0, 0].item() for key in keys] != first


@pytest.mark.parametrize("size", [(480, 640), (427, 640), (640, 333), (1000, 90), (96, 96)])
@pytest.mark.parametrize("limits", [(800, 1333), (96, 1333), (320, 480)])
def test_training_resizes_as_the_network_does_at_inference(
    size: tuple[int, int], limits: tuple[int, int], tmp_path: Path
) -> None:
    transform = GeneralizedRCNNTransform(*limits, [0.0] * 3, [1.0] * 3)
    expected, _ = transform.resize(torch.zeros(3, *size), None)
    assert resized_shape(*size, *limits) == expected.shape[-2:]


def test_training_pixels_are_those_of_inference(tmp_path: Path) -> None:
    data = training_set(tmp_path, flip=0.0, min_size=30)
    transform = GeneralizedRCNNTransform(30, 1333, [0.0] * 3, [1.0] * 3)
    original = load_image(tmp_path / "train" / "001.png")
    expected, _ = transform.resize(original.float(), None)
    got = data[SampleKey(0, 0)].image
    difference = (got.float() - expected).abs()
    assert difference.max() < 1.1  # whole grey values, from weights of eight bits
    assert difference.mean() < 0.5


# -- decoding ----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA", "RGB"])
def test_every_kind_of_image_becomes_rgb(tmp_path: Path, mode: str) -> None:
    file = tmp_path / ("x.tiff" if mode == "CMYK" else "x.png")
    Image.new("RGB", (7, 5), (255, 255, 255)).convert(mode).save(file)
    image = load_image(file, (5, 7))
    assert image.shape == (3, 5, 7)
    assert image.dtype == torch.uint8
    assert (image == 255).all()


def test_exif_orientation_is_not_applied(tmp_path: Path) -> None:
    file = tmp_path / "x.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (7, 5)).save(file, exif=exif)
    assert load_image(file).shape == (3, 5, 7)
    with pytest.raises(
        DataError, match=r"says 5x7; its EXIF orientation is not applied, data\.exif=apply"
    ):
        load_image(file, (7, 5))


GREYS = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)


@pytest.mark.parametrize("kind", ["png", "tiff", "big-endian tiff", "pgm"])
def test_of_16_bits_the_upper_8_are_kept(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"x.{kind.split()[-1]}"
    if kind == "pgm":
        file.write_bytes(b"P5 5 1 65535\n" + GREYS.astype(">u2").tobytes())
    elif kind == "big-endian tiff":
        Image.frombytes("I;16B", (5, 1), GREYS.astype(">u2").tobytes()).save(file)
        with Image.open(file) as image:
            assert image.mode == "I;16B"
    else:
        Image.fromarray(GREYS).save(file)
    assert load_image(file).tolist() == [[[0, 0, 1, 128, 255]]] * 3


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_without_a_known_range_are_refused(tmp_path: Path, dtype: type) -> None:
    file = tmp_path / "x.tiff"
    Image.fromarray(GREYS.astype(dtype)).save(file)
    with pytest.raises(DataError, match="no known range"):
        load_image(file)


def test_only_formats_of_image_sets_are_opened(tmp_path: Path) -> None:
    """Pillow would run Ghostscript on a PostScript file, whatever its name."""
    file = tmp_path / "x.jpg"
    Image.new("RGB", (7, 5)).save(file, "EPS")
    with pytest.raises(DataError, match=r"x\.jpg: not a readable image"):
        load_image(file)


def test_the_colours_of_cmyk_and_palette_images_are_right(tmp_path: Path) -> None:
    red = Image.new("RGB", (8, 8), (255, 0, 0))
    red.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    red.convert("P").save(tmp_path / "palette.png")
    transparent = red.convert("RGBA")
    transparent.putalpha(0)
    transparent.save(tmp_path / "alpha.png")
    red.quantize(4).save(tmp_path / "transparent.png", transparency=bytes([0, 128]))
    for name in ("cmyk.jpg", "palette.png", "alpha.png", "transparent.png"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            image = load_image(tmp_path / name)
        assert image[0].min() >= 250, name
        assert image[1:].max() <= 5, name


@pytest.mark.parametrize("content", [b"", b"<html>", b"half"])
def test_unreadable_images_are_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.png"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file)
    file.write_bytes(file.read_bytes()[:2000] if content == b"half" else content)
    with pytest.raises(DataError, match=r"x\.png: not a readable image"):
        load_image(file)


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "bomb.png"
    Image.new("1", (9460, 9460)).save(file)  # 11 kB, 268 MB as RGB
    assert file.stat().st_size < 20_000

    def decode(image: Image.Image) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(PngImageFile, "load", decode)
    with pytest.raises(DataError, match=r"bomb\.png: not a readable image .*9460x9460 px exceed"):
        load_image(file)
    Image.new("1", (9000, 9000)).save(file)
    with pytest.raises(DataError, match=r"bomb\.png: is 9000x9000 px, .* says 7x5"):
        load_image(file, (5, 7))


def test_a_wrong_size_is_found_on_decoding(tmp_path: Path) -> None:
    file = tmp_path / "x.png"
    Image.new("RGB", (7, 5)).save(file)
    with pytest.raises(DataError, match=r"x\.png: is 7x5 px, .* says 5x7"):
        load_image(file, (7, 5))


# -- the embedded set --------------------------------------------------------------------


def shapes(**options: int) -> DrawShapes:
    given = {"train_images": 12, "val_images": 3, "test_images": 2, "seed": 0, **options}
    return DrawShapes(image_size=96, object_size=[12, 36], objects=[1, 8], **given)


def test_shapes_are_a_real_coco_set(tmp_path: Path) -> None:
    shapes()(str(tmp_path / "s"))
    for split, count in (("train", 12), ("val", 3)):
        found = read_coco(tmp_path / "s" / "annotations" / f"{split}.json")
        assert len(found.image_ids) == count
        assert found.categories.names == SHAPES
        assert not found.repairs
        sides = found.boxes[:, 2:] - found.boxes[:, :2]
        assert sides.min() >= 6
        assert sides.max() <= 37
        for name in found.file_names:
            assert load_image(tmp_path / "s" / split / name, (96, 96)).float().std() > 1


def test_boxes_are_where_the_shapes_are() -> None:
    """Inside a box the picture differs from its surroundings."""
    picture, boxes, labels = shapes().draw(np.random.default_rng(5))
    assert len(boxes) == len(labels) >= 1
    pixels = np.asarray(picture).astype(float)
    for left, top, right, bottom in boxes:
        cross = pixels[int((top + bottom) / 2), int(left) + 1 : int(right)]
        ring_free = max(np.abs(np.diff(cross, axis=0)).max(), 0)
        outside = pixels[int((top + bottom) / 2), max(0, int(left) - 3) : int(left) + 6]
        assert max(ring_free, np.abs(np.diff(outside, axis=0)).max()) > 20


def test_the_same_recipe_draws_the_same_set_and_draws_it_once(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    shapes()(str(first))
    shapes()(str(second))
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert len(files) == 12 + 3 + 2 + 4
    for file in files:
        assert (first / file).read_bytes() == (second / file).read_bytes()
    stamp = (first / "train" / "000000.jpg").stat().st_mtime_ns
    shapes()(str(first))
    assert (first / "train" / "000000.jpg").stat().st_mtime_ns == stamp
    shapes(seed=1)(str(tmp_path / "c"))
    assert (tmp_path / "c" / files[0]).read_bytes() != (first / files[0]).read_bytes()


def test_training_and_validation_pictures_differ(tmp_path: Path) -> None:
    shapes()(str(tmp_path / "s"))
    boxes = [
        json.loads((tmp_path / "s" / "annotations" / f"{split}.json").read_text())["annotations"][0]
        for split in ("train", "val")
    ]
    assert boxes[0]["bbox"] != boxes[1]["bbox"]


def test_another_set_is_never_overwritten(tmp_path: Path) -> None:
    shapes()(str(tmp_path / "s"))
    with pytest.raises(ValueError, match="drawn by another recipe"):
        shapes(seed=1)(str(tmp_path / "s"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x.txt").write_text("important")
    advice = "your own data add data=auto sparsity=full, or take experiment=own$"
    with pytest.raises(ValueError, match=f"not empty and holds no shapes; .*; for {advice}"):
        shapes()(str(tmp_path / "mine"))
    assert not list(tmp_path.glob(".*"))  # no drafts are left

"""Files mutated at random give a validated set or our own error; never another one, never a hang.

The cases are derived from the tests' names (``derandomize``): every run tries the same ones. With
``COMINING_FUZZ=20`` it tries twenty times as many.
"""

from __future__ import annotations

import copy
import io
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from PIL import Image

from comining.data.annotations import AnnotationSet
from comining.data.formats.coco import read_coco
from comining.data.image_files import check_images
from comining.data.images import load_image
from comining.data.sparsity import ClassErasure, FromFile, RandomErasure
from comining.errors import CheckpointError, DataError, UserError
from comining.runs.checkpoint import read_checkpoint
from tests.helpers import edit_json, write_coco

# Pillow warns of what it skips in a damaged TIFF file before it refuses it.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

MORE = int(os.environ.get("COMINING_FUZZ", "1"))
SECONDS = 10  # a case takes milliseconds; beyond this it hangs


def cases(count: int) -> Callable[[Any], Any]:
    return settings(
        max_examples=count * MORE,
        derandomize=True,
        database=None,
        deadline=None,  # the machine may be busy; what hangs is stopped by within_time
        suppress_health_check=list(HealthCheck),
    )


@contextmanager
def within_time() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeoutError(f"hangs: more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def root(module_path: Path) -> Path:
    """A good set, which is never written to again, and room for spoilt files."""
    root = module_path / "set"
    boxes = [(1, 2, 10, 12, 1), (20, 20, 30, 20, 2), (40, 4, 12, 9, 3), (0, 0, 64, 48, 1)]
    file = write_coco(root, [boxes, boxes[:2], []])

    def say_what_is_known(content: dict[str, Any]) -> None:
        content["annotations"][3]["ignore"] = 1
        content["images"][1].update(neg_category_ids=[3], not_exhaustive_category_ids=[1, 2])

    edit_json(file, say_what_is_known)
    (root.parent / "outside.png").write_bytes((root / "train" / "001.png").read_bytes())
    (root / "train" / "link.png").symlink_to(root.parent / "outside.png")
    return root


# -- annotation files --------------------------------------------------------------------

HOSTILE: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3, 0.5, -0.0, 1e-300, 5e-324, 1e308, -1e308, float("nan"),
    float("inf"), float("-inf"), 2**31, 2**53 + 1, 2**63 - 1, -(2**63), 2**63, 10**400, "", " ",
    "x", "1", "\ud800", "\0", "\n", "é", "a" * 5000, "..", ".", "/", "/etc/passwd",
    "../outside.png", "sub/../../outside.png", "link.png", "001.png", "./001.png", "001.png/",
    "class 1", [], {},
    [[]], [1, 2, 3, 4], [0, 0, 1e308, 1e308], [1e-9, 1e-9, 1e-9, 1e-9], [63.9999999, 0, 1e-7, 1],
    [-5, -5, 80, 60], [float("nan")] * 4, {"id": 1}, [None, None], [True] * 4, 64, 48, 100_000,
]  # fmt: skip

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=5)
    ),
    max_leaves=8,
)
# Copied, because a later mutation may change what an earlier one put in.
values = (st.sampled_from(HOSTILE) | json_values).map(copy.deepcopy)


def paths(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every node of a JSON document, the document itself first."""
    yield path
    parts = node.items() if isinstance(node, dict) else enumerate(node)
    for key, part in parts:
        if isinstance(part, dict | list):
            yield from paths(part, (*path, key))
        else:
            yield (*path, key)


@st.composite
def mutated(draw: Any, document: dict[str, Any]) -> Any:
    """A document in which one to four nodes were replaced, deleted, repeated or swapped."""
    document = {"document": copy.deepcopy(document)}
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 4]))):
        ways = [path for path in paths(document) if path]
        *way, last = draw(st.sampled_from(ways))
        parent: Any = document
        for key in way:
            parent = parent[key]
        act = draw(st.sampled_from(["replace", "replace", "delete", "repeat", "add", "swap"]))
        if act == "delete" and last != "document":
            del parent[last]
        elif act == "repeat" and isinstance(parent, list):
            parent.insert(last, copy.deepcopy(parent[last]))
        elif act == "swap":
            other = draw(st.sampled_from(ways))
            found: Any = document
            for key in other:
                try:
                    found = found[key]
                except (KeyError, IndexError, TypeError):
                    break
            parent[last] = copy.deepcopy(found)
        elif act == "add" and isinstance(parent, dict):
            parent[draw(st.sampled_from(["id", "bbox", "iscrowd", "area", "width", "x"]))] = draw(
                values
            )
        else:
            parent[last] = draw(values)
    return document["document"]


def holds(annotations: AnnotationSet, folder: Path) -> None:
    """What the rest of the program takes for granted of a set that was accepted."""
    images, count = len(annotations.image_ids), len(annotations.ids)
    assert images == len(set(annotations.image_ids.tolist())) >= 1
    assert images == len(annotations.file_names) == len(annotations.sizes)
    assert count == len(set(annotations.ids.tolist()))
    assert (annotations.sizes >= 1).all()
    for column in (annotations.image, annotations.labels, annotations.areas, annotations.crowd):
        assert len(column) == count
    assert len(annotations.categories) == len(set(annotations.categories.ids)) >= 1
    assert list(annotations.categories.ids) == sorted(annotations.categories.ids)
    if count:
        assert 0 <= annotations.image.min() <= annotations.image.max() < images
        assert annotations.labels.min() >= 0
        assert annotations.labels.max() < len(annotations.categories)
        assert np.isfinite(annotations.bboxes).all()
        assert np.isfinite(annotations.boxes).all()
        assert np.isfinite(annotations.areas).all()
        assert (annotations.areas >= 0).all()
        height, width = annotations.sizes[annotations.image].T
        left, top, right, bottom = annotations.boxes.astype(np.float32).T
        assert (left >= 0).all()
        assert (top >= 0).all()
        assert (right <= width).all()
        assert (bottom <= height).all()
        # As training sees them; an empty one would be encoded as log(0).
        assert (right > left).all()
        assert (bottom > top).all()
    for name in annotations.file_names:
        assert (folder / name).resolve().is_relative_to(folder.resolve())
        name.encode()
    assert len(annotations.fingerprint()) == 16


PROTOCOLS = [
    RandomErasure(per=["image"], fraction=0.5, count=None, keep_at_least=0, regions=0.0, seed=0),
    RandomErasure(
        per=["category"], fraction=1.0, count=None, keep_at_least=2**70, regions=1.0, seed=2**63 - 1
    ),
    RandomErasure(
        per=["image", "category"], fraction=None, count=2**70, keep_at_least=1, regions=0.5, seed=7
    ),
    ClassErasure(fraction=0.5, known=True, regions=0.5, seed=2**63 - 1),
]


class Refused(NamedTuple):
    message: str


def outcome(file: Path, error: type[UserError], work: Callable[[], Any]) -> Any:
    """What ``work`` returns, or :class:`Refused` with one line that names the file."""
    with within_time():
        try:
            return work()
        except error as refusal:
            found = Refused(str(refusal))
    assert str(file) in found.message
    assert "\n" not in found.message
    found.message.encode()
    return found


def read(file: Path, folder: Path, drop: bool) -> Refused | np.ndarray:
    """All that happens to an annotation file before training.

    Returns:
        why it was refused, or [annotations] bool: what is erased with the file as its own sparse
        file.
    """

    def work() -> AnnotationSet:
        annotations = read_coco(file, "drop" if drop else "error")
        check_images(annotations, folder, sizes=True)
        return annotations

    annotations = outcome(file, DataError, work)
    event("refused" if isinstance(annotations, Refused) else "accepted")
    if isinstance(annotations, Refused):
        return annotations
    with within_time():
        holds(annotations, folder)
        for protocol in (*PROTOCOLS, FromFile(path=str(file))):
            erased, ignored, status = vars(protocol.apply(annotations)).values()
            assert status.shape == annotations.status.shape
            assert (status >= 0).all()
            assert not (ignored & ~erased).any()
            assert erased.shape == annotations.ids.shape
            assert not (erased & annotations.crowd).any()
    return erased


@cases(1500)
@given(data=st.data(), drop=st.booleans())
def test_mutated_records(root: Path, data: st.DataObject, drop: bool) -> None:
    good = json.loads((root / "train.json").read_text())
    file = root / "mutated.json"
    file.write_text(json.dumps(data.draw(mutated(good))))
    erased = read(file, root / "train", drop)
    if isinstance(erased, Refused):
        assert len(erased.message) < 6000  # the name of a file may be long
    else:
        assert not erased.any()


PLAIN = [b"0", b"1", b"9", b".5", b"e3", b"-", b" ", b"[", b"}", b",", b"null", b"NaN", b'"']


def spoil(data: st.DataObject, good: bytes) -> bytes:
    """Cut, overwrite, insert or remove bytes at random places."""
    content = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content)))
        act = data.draw(st.sampled_from(["cut", "overwrite", "insert", "remove"]))
        noise = data.draw(st.binary(min_size=1, max_size=8) | st.sampled_from(PLAIN))
        if act == "cut":
            del content[place:]
        elif act == "remove":
            del content[place : place + len(noise)]
        else:
            content[place : place + (len(noise) if act == "overwrite" else 0)] = noise
    return bytes(content)


@cases(500)
@given(data=st.data())
def test_mutated_bytes(root: Path, data: st.DataObject) -> None:
    file = root / "bytes.json"
    file.write_bytes(spoil(data, (root / "train.json").read_bytes()))
    erased = read(file, root / "train", drop=False)
    if isinstance(erased, Refused):
        assert len(erased.message) < 6000  # the name of a file may be long
    else:
        assert not erased.any()


@cases(300)
@given(
    box=st.lists(
        st.sampled_from([0.0, 1e-12, 1e-6, 6.4e-5, 1e-3, 32.0, 63.99999, 64.0, 1e9])
        | st.floats(allow_nan=True, allow_infinity=True),
        min_size=4,
        max_size=4,
    ),
    side=st.sampled_from([1, 48, 9000]),
)
def test_any_box(root: Path, box: list[float], side: int) -> None:
    """Every box is either inside the image and not empty, in float32 too, or refused."""
    good = json.loads((root / "train.json").read_text())
    good["images"][0].update(width=side, height=side)
    good["annotations"] = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": box}]
    file = root / "box.json"
    file.write_text(json.dumps(good))
    try:
        found = read_coco(file)
    except DataError:
        return
    holds(found, root / "train")
    # Scaled as for a network of 1333 px, and mirrored.
    moved = torch.from_numpy(found.boxes * 1333 / side).float()
    assert torch.log(moved[:, 2:] - moved[:, :2]).isfinite().all()
    assert torch.log((1333 - moved[:, :2]) - (1333 - moved[:, 2:])).isfinite().all()


# -- images and checkpoints --------------------------------------------------------------


def stored() -> dict[str, bytes]:
    """One small picture in many formats."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    rgb = Image.fromarray(pixels)
    kinds: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "jpeg": (rgb, "JPEG", {}),
        "progressive jpeg": (rgb, "JPEG", {"progressive": True}),
        "cmyk jpeg": (rgb.convert("CMYK"), "JPEG", {}),
        "png": (rgb, "PNG", {}),
        "palette png": (rgb.quantize(16), "PNG", {"transparency": bytes(8)}),
        "16 bit png": (Image.fromarray(pixels[..., 0].astype(np.uint16) * 257), "PNG", {}),
        "gif": (rgb, "GIF", {}),
        "bmp": (rgb, "BMP", {}),
        "ppm": (rgb, "PPM", {}),
        "tiff": (rgb, "TIFF", {"compression": "tiff_lzw"}),
        "plain tiff": (rgb, "TIFF", {}),
        "webp": (rgb, "WEBP", {}),
    }
    files = {}
    for name, (image, form, options) in kinds.items():
        buffer = io.BytesIO()
        image.save(buffer, form, **options)
        files[name] = buffer.getvalue()
    return files


STORED = stored()


@cases(600)
@given(data=st.data(), kind=st.sampled_from(sorted(STORED)))
def test_mutated_pictures(root: Path, data: st.DataObject, kind: str) -> None:
    file = root / "picture"
    file.write_bytes(spoil(data, STORED[kind]))
    found = outcome(file, DataError, lambda: load_image(file, (20, 30)))
    event("refused" if isinstance(found, Refused) else "accepted")
    if not isinstance(found, Refused):
        assert found.shape == (3, 20, 30)
        assert found.dtype == torch.uint8


@cases(150)
@given(data=st.data())
def test_mutated_checkpoints(root: Path, data: st.DataObject) -> None:
    description = {
        "config": {"backbone": {}, "detector": {}, "data": {}},
        "category_ids": [1, 2],
        "category_names": ["a", "b"],
    }
    buffer = io.BytesIO()
    torch.save({"comining": description, "state_dict": {"x": torch.zeros(3)}}, buffer)
    file = root / "x.ckpt"
    file.write_bytes(spoil(data, buffer.getvalue()))
    found = outcome(file, CheckpointError, lambda: read_checkpoint(file))
    if not isinstance(found, Refused):
        assert len(found["comining"]["category_ids"]) == len(found["comining"]["category_names"])

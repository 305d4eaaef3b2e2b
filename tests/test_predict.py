"""Detection in pictures as people have them: files, names, signals, and what is written."""

from __future__ import annotations

import importlib
import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf, open_dict
from PIL import Image, ImageDraw

from comining.config import CONFIG_FOLDER
from comining.data.annotations import Categories
from comining.data.images import load_image
from comining.errors import ConfigError, DataError
from comining.evaluation.picture_files import find_pictures
from comining.evaluation.picture_names import DrawingNames, json_name, printable
from comining.evaluation.predict import PicturePrediction, predict_pictures
from comining.runs.checkpoint import build_detector, describe, load_detector
from comining.runs.directory import OWNER, RunDirectory
from comining.runs.predictions import PredictionFiles, write_predictions
from comining.runs.row_file import RowFile
from comining.structures import Boxes
from tests.helpers import boxes, composed

ROOT = CONFIG_FOLDER.parent
HEIC = b"\0\0\0\x18ftypheic" + b"\0" * 100


def picture(size: tuple[int, int] = (64, 64), mode: str = "RGB") -> Image.Image:
    drawn = Image.new("RGB", size, (90, 90, 90))
    ImageDraw.Draw(drawn).rectangle([20, 10, 38, 24], fill=(220, 40, 40))
    return drawn.convert(mode)


def save(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture().save(folder / name, "PNG")
    return folder


@pytest.fixture(scope="module")
def checkpoint(module_path: Path) -> Path:
    """An untrained detector that detects everywhere."""
    torch.manual_seed(0)
    cfg = composed(
        "data.root=unset", "data.min_size=64", "data.max_size=160", "detector.score_threshold=0",
        "detector.max_detections=5",
    )  # fmt: skip
    config: Any = {
        name: OmegaConf.to_container(cfg[name], resolve=True)
        for name in ("backbone", "detector", "data")
    }
    weights = build_detector(config, 3, pretrained=False).state_dict()
    file = module_path / "x.ckpt"
    categories = Categories((2, 4, 7), ("red", "green", "blue"))
    torch.save(
        {
            "comining": describe(config, categories),
            "state_dict": {f"detector.{name}": value for name, value in weights.items()},
        },
        file,
    )
    return file


def evaluate(checkpoint: Path, folder: Path, run: Path, *overrides: str) -> list[dict[str, Any]]:
    """The rows that evaluate.py writes, in this process."""
    cfg = composed("trainer.accelerator=cpu", *overrides, name="evaluate", run=run)
    with open_dict(cfg):
        cfg.checkpoint, cfg.images, cfg.score_threshold = str(checkpoint), str(folder), 0.0
    sys.path.insert(0, str(ROOT))
    try:
        importlib.import_module("evaluate").main.__wrapped__(cfg)
    finally:
        sys.path.remove(str(ROOT))
    return read(run / "coco_results.json")


def read(file: Path) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    return content


def named(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["file_name"] for row in rows))


class Stub:
    """Detects one box in every picture; where ``fail`` answers, it raises that."""

    device = torch.device("cpu")

    def __init__(self, fail: Callable[[int], BaseException | None] = lambda call: None):
        self.fail = fail
        self.calls = 0

    def detect(self, images: list[torch.Tensor]) -> Boxes:
        self.calls += 1
        error = self.fail(self.calls)
        if error is not None:
            raise error
        return boxes([(1, 2, 11, 22, 1, 0.75)])


def predict(folder: Path, run: Path, stub: Any = None) -> PredictionFiles:
    """The same with a stub of a detector."""
    found = find_pictures(folder, OWNER)
    predictions = predict_pictures(
        stub or Stub(), found, category_ids=[2, 4, 7], category_names=["red", "green", "blue"],
        score_threshold=0.5,
    )  # fmt: skip
    directory = RunDirectory.claim(run, held="refuse")
    with directory.until_end():
        return write_predictions(predictions, found, directory, score_threshold=0.5, progress=True)


# -- which files -------------------------------------------------------------------------


def mixed(folder: Path) -> Path:
    save(folder, "a.png", "noextension")
    for name, kind in (("b.JPG", "JPEG"), ("c.jfif", "JPEG"), ("e.ppm", "PPM")):
        picture().save(folder / name, kind)
    (folder / "notes.txt").write_text("x")
    (folder / "IMG_1.HEIC").write_bytes(HEIC)
    return folder


def test_a_mixed_folder_is_told_by_content(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = evaluate(checkpoint, mixed(tmp_path / "mixed"), tmp_path / "run")
    assert named(rows) == ["a.png", "b.JPG", "c.jfif", "e.ppm", "noextension"]
    assert {row["category_id"] for row in rows} <= {2, 4, 7}
    lines = capsys.readouterr().out.splitlines()
    assert "1 file is not a picture: 1 .txt" in lines
    assert "1 HEIC picture cannot be decoded, convert to JPEG or PNG: IMG_1.HEIC" in lines
    assert "5 images, 25 detections" in lines
    assert "skipped: 0" in lines
    assert sum("EXIF" in line for line in lines) == 1
    assert read(tmp_path / "run" / "skipped.json") == [
        {"file_name": "IMG_1.HEIC", "reason": "cannot decode HEIC"}
    ]


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.jpg", HEIC, "HEIC"),
        ("a", b"\0\0\0\x1cftypmif1\0\0\0\0avifmif1" + b"\0" * 9, "AVIF"),
        ("a.bin", b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        ("a.jpg", b"8BPS\0\1", "Photoshop"),
        ("a.xml", b"<?xml version='1.0'?>\n<svg xmlns='x'/>", "SVG"),
        ("a.dcm", b"\0" * 128 + b"DICM", "DICOM"),
        ("a.tga", b"\0\0\2", "TGA"),
    ],
)
def test_other_kinds_of_pictures_are_called_that(
    tmp_path: Path, name: str, content: bytes, kind: str
) -> None:
    save(tmp_path, "z.png")
    (tmp_path / name).write_bytes(content)
    found = find_pictures(tmp_path, OWNER)
    assert found.foreign == {kind: [PurePath(name)]}
    assert not found.others


def test_a_raw_file_is_no_tiff_though_its_preview_could_be_read(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.NEF", "TIFF")
    picture().save(tmp_path / "b.data", "TIFF")
    found = find_pictures(tmp_path, OWNER)
    assert found.pictures == [PurePath("b.data")]
    assert found.foreign == {"camera raw": [PurePath("a.NEF")]}


def test_texts_that_begin_like_pictures_are_none(tmp_path: Path) -> None:
    save(tmp_path, "a.heic")  # a PNG all the same
    picture().save(tmp_path / "plain", "BMP")
    (tmp_path / "cars.txt").write_text("BMW and others")
    (tmp_path / "letter.txt").write_text("P5 is a process")
    (tmp_path / "P").write_text("P")
    (tmp_path / "film.mp4").write_bytes(b"\0\0\0\x18ftypisom" + b"\0" * 20)
    (tmp_path / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    found = find_pictures(tmp_path, OWNER)
    assert found.pictures == [PurePath("a.heic"), PurePath("plain")]
    assert found.others == {".txt": 2, "without a suffix": 1, ".mp4": 1, "hidden": 1}
    assert found.notes() == [
        "5 files are not pictures: 2 .txt, 1 hidden, 1 without a suffix, 1 .mp4"
    ]


def test_files_named_like_pictures_are_named_when_they_are_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "in", "a.png")
    (tmp_path / "in" / "empty.jpg").write_bytes(b"")
    (tmp_path / "in" / "page.png").write_text("<html>not found</html>")
    (tmp_path / "in" / "half.png").write_bytes((tmp_path / "in" / "a.png").read_bytes()[:90])
    written = predict(tmp_path / "in", tmp_path / "run")
    assert [str(name) for name in written.skipped] == ["empty.jpg", "half.png", "page.png"]
    out = capsys.readouterr().out
    assert "skipped: 3 empty.jpg, half.png, page.png" in out
    assert "skipped: half.png: not a readable image" in caplog.text
    skipped = read(tmp_path / "run" / "skipped.json")
    assert [row["file_name"] for row in skipped] == ["empty.jpg", "half.png", "page.png"]
    assert all(str(tmp_path) + "/in/half.png:" not in row["reason"] for row in skipped)
    assert all(row["reason"].startswith("not a readable image") for row in skipped)


def test_hidden_and_system_folders_are_counted(tmp_path: Path) -> None:
    save(tmp_path, "a.png", "sub/b.png", "__MACOSX/a.png", "sub/.cache/deep/x.png", "@eaDir/t.jpg")
    found = find_pictures(tmp_path, OWNER)
    assert found.pictures == [PurePath("a.png"), PurePath("sub/b.png")]
    assert len(found.hidden) == 3
    assert found.notes() == [
        "3 hidden folders left out, 3 files in all: @eaDir, __MACOSX, sub/.cache"
    ]
    # A folder that is asked for by name is meant.
    assert len(find_pictures(tmp_path / "sub" / ".cache", OWNER).pictures) == 1


def test_folders_behind_links_are_looked_at_once(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere", "e.png", "deep/f.png")
    folder = save(tmp_path / "in", "z/a.png", "b.png")
    (folder / "a_link").symlink_to("z")  # sorts before the folder itself
    (folder / "loop").symlink_to(folder)
    (folder / "z" / "out").symlink_to(tmp_path / "elsewhere")
    (folder / "z" / "out2").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(folder)
    (folder / "file.png").symlink_to("b.png")
    (folder / "broken.png").symlink_to("nothing.png")
    (folder / "circle").symlink_to("circle")
    found = find_pictures(folder, OWNER)
    assert [str(name) for name in found.pictures] == [
        "b.png", "file.png", "z/a.png", "z/out/deep/f.png", "z/out/e.png",
    ]  # fmt: skip
    assert {str(name) for name in found.repeated} == {"a_link", "loop", "z/out2", "z/out/back"}
    assert found.broken == [PurePath("broken.png")]
    assert [str(name) for name in found.unreadable] == ["circle"]
    assert any(note.startswith("4 folders seen under another name") for note in found.notes())


def test_folders_may_be_deeper_than_calls(tmp_path: Path) -> None:
    """Python stops at 1,000 calls within each other, Linux at 2,000 folders."""
    deep = "d/" * 400
    save(tmp_path, f"{deep}a.png")
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(300)
    try:
        found = find_pictures(tmp_path, OWNER)
    finally:
        sys.setrecursionlimit(limit)
    assert found.pictures == [PurePath(deep) / "a.png"]


def test_pipes_and_sockets_are_not_opened(tmp_path: Path) -> None:
    save(tmp_path, "a.png")
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for ever
    found = find_pictures(tmp_path, OWNER)
    assert found.pictures == [PurePath("a.png")]
    assert found.notes() == ["1 pipe or device left out: pipe.png"]


def test_output_of_runs_is_left_out(checkpoint: Path, tmp_path: Path) -> None:
    folder = save(tmp_path / "in", "a.png")
    for name in ("first", "second"):
        rows = evaluate(checkpoint, folder, folder / "runs" / name)
        assert named(rows) == ["a.png"]
    assert {str(name) for name in find_pictures(folder, OWNER).runs} == {
        "runs/first", "runs/second",
    }  # fmt: skip
    # Even where it is the folder itself.
    rows = evaluate(checkpoint, folder, folder)
    assert named(rows) == ["a.png"]
    drawings = folder / "runs" / "first" / "pictures"
    assert named(evaluate(checkpoint, drawings, tmp_path / "run")) == ["a.png.png"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_may_not_be_read_is_named(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may read everything, so that the system's answer is replaced."""
    folder = save(tmp_path / "in", "a.png", "secret/b.png")
    closed = folder / "secret" / ("b.png" if kind == "file" else "")

    def refuse(function: Any) -> Any:
        def refused(path: Any, *arguments: Any, **options: Any) -> Any:
            if Path(path) == closed:
                raise PermissionError(13, "Permission denied", str(path))
            return function(path, *arguments, **options)

        return refused

    if kind == "file":
        monkeypatch.setattr(Path, "open", refuse(Path.open))
    else:
        monkeypatch.setattr(os, "scandir", refuse(os.scandir))
    found = find_pictures(folder, OWNER)
    assert found.pictures == [PurePath("a.png")]
    name = closed.relative_to(folder)
    assert found.notes() == [f"1 file or folder cannot be read: {name} (Permission denied)"]
    if kind == "folder":
        with pytest.raises(DataError, match=r"images=.*secret: cannot be read \(Permission denied"):
            find_pictures(closed, OWNER)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    folder = save(tmp_path / "in", "a.png", "secret/b.png")
    (folder / "secret").chmod(0)
    try:
        found = find_pictures(folder, OWNER)
        with pytest.raises(DataError, match="Permission denied"):
            find_pictures(folder / "secret", OWNER)
    finally:
        (folder / "secret").chmod(0o755)
    assert found.notes() == ["1 file or folder cannot be read: secret (Permission denied)"]


def test_a_single_picture(checkpoint: Path, tmp_path: Path) -> None:
    save(tmp_path / "in", "a", "b.png")
    rows = evaluate(checkpoint, tmp_path / "in" / "a", tmp_path / "run")
    assert named(rows) == ["a"]
    assert [file.name for file in (tmp_path / "run" / "pictures").iterdir()] == ["a.png"]


# -- names -------------------------------------------------------------------------------


def test_a_hostile_folder(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, long = tmp_path / "in", "b" * 249 + ".png"
    save(folder, "a.png", long, "d.png")
    picture((12000, 100)).save(folder / "c.png")
    rows = evaluate(checkpoint, folder, tmp_path / "run")
    assert {"a.png", long, "d.png"} <= set(named(rows))
    drawings = {
        row["file_name"]: row["drawing"] for row in read(tmp_path / "run" / "pictures.json")
    }
    assert list(drawings) == ["a.png", long, "c.png", "d.png"]
    for drawing in drawings.values():
        assert (tmp_path / "run" / drawing).is_file()
    assert len(set(drawings.values())) == 4
    assert "4 images" in capsys.readouterr().out
    with Image.open(tmp_path / "run" / drawings["c.png"]) as drawn:
        assert drawn.size == (12000, 100)  # reduced to 1600 px it would show nothing


ODD = [
    "new\nline.png", "tab\t.png", "\x1b[31mred.png", "bytes\udcff.png", "zürich.png", "日本.png",
    "quote'\".png", "a,b=c#d[e].png", " .png", "ü" * 125 + ".png", "-rf.png", "back\\slash.png",
    "\u202eright-to-left.png",
]  # fmt: skip


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_names_of_any_bytes_on_a_terminal_of_any_encoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    folder = save(tmp_path / "in", *ODD)
    for name in ODD[:4]:  # and broken ones, which are printed
        (folder / f"broken {name}").write_bytes(b"")
    (folder / "bad\udcfe.txt").write_text("x")
    (folder / "kind.\udcfe").write_text("x")
    terminal = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(sys, "stdout", terminal)
    handler = logging.StreamHandler(terminal)
    logging.getLogger().addHandler(handler)
    monkeypatch.setattr(logging, "raiseExceptions", True)
    try:
        written = predict(folder, tmp_path / "run")
    finally:
        logging.getLogger().removeHandler(handler)
    assert written.images == len(ODD)
    assert len(written.skipped) == 4
    terminal.flush()
    out = terminal.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    assert "new\\nline.png" in out
    assert "\x1b" not in out
    assert "\\xfe" in out
    assert (written.results.read_bytes() + b"").isascii()
    rows = read(written.results)
    assert sorted(row["file_name"] for row in rows) == sorted(
        "bytes\\xff.png" if "\udcff" in name else name for name in ODD
    )
    for row in rows:
        row["file_name"].encode()  # no surrogates, which other readers of JSON refuse
    made = list((tmp_path / "run" / "pictures").iterdir())
    assert len(made) == len(ODD)


def test_names_in_words() -> None:
    assert printable("a\nb\udcff\x07ü") == "a\\nb\\xff\\x07ü"
    assert json_name(PurePath("a/ü\udcff")) == "a/ü\\xff"
    assert json_name(PurePath("a/\\xff")) == "a/\\xff"


def test_no_two_pictures_share_a_drawing(tmp_path: Path) -> None:
    names = [
        "a.jpg", "a.png", "A.jpg", "a.jpg.png", "sub/a.jpg", "Sub/a.jpg", "zu\u0308.png",
        "z\u00fc.png", "a.JPG", "x" * 251 + ".jpg", "x" * 251 + ".png", "ß.png", "ss.png",
    ]  # fmt: skip
    drawings = DrawingNames(tmp_path)
    made = [drawings.plain(PurePath(name)) for name in names]
    assert made[:2] == [PurePath("a.jpg.png"), PurePath("a.png.png")]
    assert len({str(name).casefold() for name in made}) == len(names)
    assert all(len(os.fsencode(part)) <= 255 for name in made for part in name.parts)
    again = DrawingNames(tmp_path)
    assert [again.plain(PurePath(name)) for name in names] == made


def test_a_drawing_never_replaces_a_file(tmp_path: Path) -> None:
    """Where a folder has the name of a drawing, and on file systems with rules of their own."""
    folder = save(tmp_path / "in", "a.jpg", "a.jpg.png/b.jpg", "z.png")
    written = predict(folder, tmp_path / "run")
    assert (written.images, len(written.not_drawn)) == (3, 0)
    drawings = [row["drawing"] for row in read(tmp_path / "run" / "pictures.json")]
    assert drawings[0] == "pictures/a.jpg.png"
    assert drawings[1].startswith("pictures/b.jpg~")
    assert all((tmp_path / "run" / name).is_file() for name in drawings)


# -- pictures ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "drawn"),
    [
        ("dot", picture((1, 1))),
        ("column", picture((10, 1000))),
        ("grey16", Image.new("I;16", (64, 48), 40000)),
        ("palette", picture(mode="P")),
        ("cmyk", picture(mode="CMYK")),
        ("alpha", picture(mode="RGBA")),
        ("bits", picture(mode="1")),
    ],
)
def test_odd_pictures_are_drawn(
    checkpoint: Path, tmp_path: Path, name: str, drawn: Image.Image
) -> None:
    (tmp_path / "in").mkdir()
    drawn.save(tmp_path / "in" / name, "TIFF")
    evaluate(checkpoint, tmp_path / "in", tmp_path / "run")
    (record,) = read(tmp_path / "run" / "pictures.json")
    assert (record["width"], record["height"]) == drawn.size
    with Image.open(tmp_path / "run" / record["drawing"]) as found:
        assert found.size == drawn.size


def test_large_pictures_are_drawn_reduced(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, size in (("a", (4000, 1000)), ("b", (8000, 250))):
        Image.new("L", size).save(tmp_path / "in" / name, "PNG")
    predict(tmp_path / "in", tmp_path / "run")
    sizes = []
    for file in sorted((tmp_path / "run" / "pictures").iterdir()):
        with Image.open(file) as found:
            sizes.append(found.size)
    assert sizes == [(1600, 400), (6400, 200)]


@pytest.mark.parametrize(("orientation", "size"), [(1, (64, 48)), (3, (64, 48)), (6, (48, 64))])
def test_pictures_are_turned_as_viewers_turn_them(
    checkpoint: Path, tmp_path: Path, orientation: int, size: tuple[int, int]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture((64, 48)).save(folder / "a.jpg", exif=exif, quality=95)
    rows = evaluate(checkpoint, folder, tmp_path / "run")
    (record,) = read(tmp_path / "run" / "pictures.json")
    assert (record["width"], record["height"]) == size
    upright = load_image(folder / "a.jpg", exif="apply")
    assert tuple(upright.shape) == (3, size[1], size[0])
    detector, _ = load_detector(checkpoint)
    expected = detector.detect([upright])
    assert [row["score"] for row in rows] == pytest.approx(expected.known_scores.tolist())
    x, y, w, h = rows[0]["bbox"]
    assert [x, y, x + w, y + h] == pytest.approx(expected.boxes[0].tolist(), abs=1e-4)


# -- failures ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"), "out of memory"),
        (MemoryError(), "out of memory"),
        (RuntimeError("Input and output sizes\nshould be greater than 0"), "RuntimeError: Input"),
        (RecursionError(), "RecursionError"),
        (ValueError("x" * 5000), "ValueError: xxx"),
    ],
)
def test_a_picture_that_cannot_be_detected_in_is_skipped(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    words: str,
) -> None:
    folder = save(tmp_path / "in", "a.png", "b.png", "c.png")
    predict(folder, tmp_path / "run", Stub(lambda call: error if call == 2 else None))
    rows = read(tmp_path / "run" / "coco_results.json")
    assert [(row["image_id"], row["file_name"]) for row in rows] == [(1, "a.png"), (3, "c.png")]
    assert rows[0]["bbox"] == [1, 2, 10, 20]
    assert rows[0]["category_id"] == 4
    (line,) = caplog.messages
    assert line.startswith(f"skipped: b.png: {words}")
    assert len(line) < 400
    assert "skipped: 1 b.png" in capsys.readouterr().out
    (skipped,) = read(tmp_path / "run" / "skipped.json")
    assert skipped["image_id"] == 2
    assert "\n" not in skipped["reason"]


def test_numbers_that_are_not_finite_are_no_detections(tmp_path: Path) -> None:
    class Broken(Stub):
        def detect(self, images: list[torch.Tensor]) -> Boxes:
            found = super().detect(images)
            if self.calls == 1:
                found.boxes[0, 0] = torch.nan
            return found

    written = predict(save(tmp_path / "in", "a.png", "b.png"), tmp_path / "run", Broken())
    assert [str(name) for name in written.skipped] == ["a.png"]
    assert named(read(written.results)) == ["b.png"]


@pytest.mark.parametrize("part", ["drawing", "writing"])
def test_detections_stay_where_the_drawing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if part == "drawing":
        monkeypatch.setattr("comining.evaluation.predict.panel", fail_once(ValueError("too thin")))
    else:
        full = OSError(28, "No space left on device")
        monkeypatch.setattr(Image.Image, "save", fail_once(full, Image.Image.save))
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(encoded())
    written = predict(folder, tmp_path / "run")
    assert named(read(written.results)) == ["a.png", "b.png"]
    assert [str(name) for name in written.not_drawn] == ["a.png"]
    assert [row["drawing"] for row in read(tmp_path / "run" / "pictures.json")] == [
        None, "pictures/b.png.png",
    ]  # fmt: skip
    (reason,) = read(tmp_path / "run" / "skipped.json")
    assert reason["reason"].startswith("not drawn: ")
    assert "not drawn: 1 a.png" in capsys.readouterr().out


PICTURE = io.BytesIO()
picture().save(PICTURE, "PNG")


def encoded() -> bytes:
    return PICTURE.getvalue()


def fail_once(error: Exception, function: Any = None) -> Any:
    calls: list[int] = []

    def failing(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise error
        return function(*arguments, **options) if function else picture()

    return failing


def test_a_full_disk_leaves_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(tmp_path / "in", "a.png", "b.png", "c.png")
    append, calls = RowFile.append, []

    def full(self: RowFile, rows: Any) -> None:
        calls.append(1)
        if len(calls) == 3:  # the second picture's detections
            raise ConfigError("coco_results.json: cannot be written (No space left on device)")
        append(self, rows)

    monkeypatch.setattr(RowFile, "append", full)
    with pytest.raises(ConfigError, match="No space left"):
        predict(folder, tmp_path / "run")
    assert named(read(tmp_path / "run" / "coco_results.json")) == ["a.png"]
    assert named(read(tmp_path / "run" / "pictures.json")) == ["a.png"]
    assert not list((tmp_path / "run").glob(".*.jsonl"))


def test_rows_are_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = RowFile(tmp_path / "x.json")
    rows.append([{"a": 1}, {"b": "ü\n"}])

    class Full:
        """A disk that takes five bytes of it."""

        def __init__(self, file: Any):
            self.file, self.room = file, 5

        def write(self, data: memoryview) -> int:
            if not self.room:
                raise OSError(28, "No space left on device")
            taken: int = self.file.write(data[: self.room])
            self.room = 0
            return taken

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    whole, rows._file = rows._file, Full(rows._file)  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=r"x\.json: cannot be written \(No space left"):
        rows.append([{"c": 3}])
    rows._file = whole
    with pytest.raises(ValueError, match="not JSON compliant"):
        rows.append([{"c": 3}, {"d": float("nan")}])
    assert len(rows.draft.read_text().splitlines()) == 2
    rows.append([])
    rows.append([{"e": 5}])
    rows.finish()
    assert json.loads((tmp_path / "x.json").read_text()) == [{"a": 1}, {"b": "ü\n"}, {"e": 5}]
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]
    empty = RowFile(tmp_path / "y.json")
    empty.finish()
    assert json.loads((tmp_path / "y.json").read_text()) == []


def test_a_picture_without_detections_is_written(tmp_path: Path) -> None:
    class Blind(Stub):
        def detect(self, images: list[torch.Tensor]) -> Boxes:
            return Boxes.empty(1, scores=True)

    written = predict(save(tmp_path / "in", "a.png"), tmp_path / "run", Blind())
    assert read(written.results) == []
    assert (tmp_path / "run" / "pictures" / "a.png.png").exists()


def test_nothing_is_left_where_no_picture_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"none of 1 pictures could be read; a\.png: not"):
        predict(tmp_path / "in", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_many_failures_are_named_in_the_file_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save(tmp_path / "in", "z.png")
    for number in range(60):
        (folder / f"{number:02d}.jpg").write_bytes(b"")
    predict(folder, tmp_path / "run")
    out = capsys.readouterr().out
    assert "skipped: 60 00.jpg, 01.jpg, 02.jpg, 03.jpg, 04.jpg, ... (all in skipped.json)" in out
    assert len(caplog.messages) == 21
    assert len(read(tmp_path / "run" / "skipped.json")) == 60


def test_progress_is_a_line_every_tenth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predict(save(tmp_path / "in", *(f"{n}.png" for n in range(40))), tmp_path / "run")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("picture=")]
    assert lines == [f"picture={number}/40" for number in range(4, 41, 4)]


def test_a_terminal_has_a_bar_and_whole_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    folder = save(tmp_path / "in", "a.png", "c.png", "\udcffz.png")
    (folder / "b\udcff.png").write_bytes(b"")
    terminal = Terminal(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    handler = logging.StreamHandler(terminal)
    logging.getLogger().addHandler(handler)
    try:
        predict(folder, tmp_path / "run")
    finally:
        logging.getLogger().removeHandler(handler)
    terminal.flush()
    out = terminal.buffer.getvalue().decode()  # type: ignore[attr-defined]
    assert "4/4" in out
    assert "picture=" not in out
    assert any(line.startswith("skipped: b\\xff.png: ") for line in re.split("[\r\n]", out))


def test_several_frames_are_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save(tmp_path / "in", "a.png")
    for name in ("m.gif", "n.tif"):
        frames = [Image.new("RGB", (60, 64), (80 * n, 0, 0)) for n in range(3)]
        frames[0].save(folder / name, save_all=True, append_images=frames[1:])
    predict(folder, tmp_path / "run")
    out = capsys.readouterr().out
    line = "several pages or frames: 2, only the first is used: m.gif is the first of 3"
    assert out.splitlines().count(line) == 1
    records = read(tmp_path / "run" / "pictures.json")
    assert [record["width"] for record in records][1:] == [60, 60]


# -- being told to stop ------------------------------------------------------------------


class Scored(Stub):
    """Detects boxes of these labels and scores, picture by picture."""

    def __init__(self, *found: list[tuple[int, float]]):
        super().__init__()
        self.found = found

    def detect(self, images: list[torch.Tensor]) -> Boxes:
        self.calls += 1
        rows = [(1, 2, 11, 22, label, score) for label, score in self.found[self.calls - 1]]
        return boxes(rows, scores=True)


def test_detected_classes_are_named_and_low_scores_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save(tmp_path / "in", "a.png", "b.png", "c.png")
    written = predict(
        folder, tmp_path / "run", Scored([(2, 0.25), (0, 0.75), (2, 0.5)], [(1, 0.5)], [])
    )
    assert [row["categories"] for row in read(tmp_path / "run" / "pictures.json")] == [
        [{"id": 2, "name": "red"}, {"id": 7, "name": "blue"}], [{"id": 4, "name": "green"}], [],
    ]  # fmt: skip
    assert [row["category_id"] for row in read(written.results)] == [7, 2, 7, 4]
    assert "\nin 2 of 3 pictures no detection scores more than 0.5 (score_threshold)\n" in (
        capsys.readouterr().out
    )


def test_high_scores_are_not_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predict(save(tmp_path / "in", "a.png"), tmp_path / "run")
    assert "score_threshold" not in capsys.readouterr().out


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, AssertionError])
def test_whatever_ends_it_leaves_what_is_done(
    tmp_path: Path, kind: type[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    """An AssertionError stands for a fault in what consumes the pictures."""
    folder = save(tmp_path / "in", "a.png", "b.png", "c.png")
    found = find_pictures(folder, OWNER)

    def predictions() -> Iterator[PicturePrediction]:
        yield from list(
            predict_pictures(
                Stub(), found,  # type: ignore[arg-type]
                category_ids=[1, 2], category_names=["x", "y"], score_threshold=0.5,
            )
        )[:2]  # fmt: skip
        raise kind

    directory = RunDirectory.claim(tmp_path / "run", held="refuse")
    with pytest.raises(kind), directory.until_end():
        write_predictions(predictions(), found, directory, score_threshold=0.5, progress=False)
    assert named(read(tmp_path / "run" / "coco_results.json")) == ["a.png", "b.png"]
    assert len(read(tmp_path / "run" / "pictures.json")) == 2
    assert not list((tmp_path / "run").glob(".*.jsonl"))
    if kind is KeyboardInterrupt:
        assert "interrupted after 2 of 3 pictures" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_leaves_what_is_done(
    checkpoint: Path, tmp_path: Path, name: str, code: int
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3000):
        (folder / f"{number:04d}.png").write_bytes(encoded())
    process = subprocess.Popen(
        [
            sys.executable, str(ROOT / "evaluate.py"), f"checkpoint={checkpoint}", "images=in",
            "hydra.run.dir=run", "trainer.accelerator=cpu",
        ],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    pictures = tmp_path / "run" / "pictures"
    while not (pictures.is_dir() and len(os.listdir(pictures)) > 3):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.Signals[name])
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert f"{name}: stopping after this picture" in out
    records = read(tmp_path / "run" / "pictures.json")
    assert f"interrupted after {len(records)} of 3000 pictures" in err
    assert 3 <= len(records) < 3000
    rows = read(tmp_path / "run" / "coco_results.json")
    assert named(rows) == [f"{number:04d}.png" for number in range(len(records))]
    assert len(os.listdir(pictures)) == len(records)
    assert not list((tmp_path / "run").glob(".*.json*"))


def test_a_signal_before_the_first_picture_leaves_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tmp_path / "in", "a.png")
    monkeypatch.syspath_prepend(str(ROOT))

    def interrupted(*arguments: Any, **options: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    monkeypatch.setattr(importlib.import_module("evaluate"), "find_pictures", interrupted)
    with pytest.raises(SystemExit) as stop:
        evaluate(checkpoint, folder, tmp_path / "run")
    assert stop.value.code == 143
    assert not (tmp_path / "run").exists()

"""Sets written in another format hold what the format can hold; the rest is counted."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from comining.data import export_files, set_export
from comining.data.annotations import AnnotationSet
from comining.data.convert import main, read_sets
from comining.data.formats.annotation_format import ReadOptions
from comining.data.image_files import check_images
from tests.annotated_folders import WRITERS, boxes_by_name, coco, picture, text
from tests.helpers import edit_json, real_data, write_coco

BOXES = [(1, 2, 10, 12, 1), (20.123456, 20.01, 30.07, 20.99, 3), (-4, 40, 9.5, 8.25, 2)]


def convert(source: Path, output: Path, *options: str) -> None:
    main([str(source), str(output), *options])


def sets(root: Path, name: str, **options: Any) -> dict[str, AnnotationSet]:
    read = read_sets(root, name, ReadOptions(**options), pictures=True)
    for one, folder in read.values():
        check_images(one, folder, sizes=True)
    return {split: one for split, (one, _) in read.items()}


def names_of(one: AnnotationSet) -> list[str]:
    return [one.categories.names[label] for label in one.labels]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """COCO, two splits with the same file names, an image without objects."""
    root = tmp_path / "source"
    write_coco(root, [BOXES, [], BOXES[:1]])
    write_coco(root, [BOXES[1:], BOXES[:2]], split="val")
    return root


@pytest.mark.parametrize("to", ["yolo", "voc", "coco"])
def test_there_and_back_nothing_changes(tmp_path: Path, source: Path, to: str) -> None:
    convert(source, tmp_path / "there", "--to", to)
    convert(tmp_path / "there", tmp_path / "back", "--to", "coco")
    before, after = sets(source, "coco_folder"), sets(tmp_path / "back", "coco_folder")
    assert before.keys() == after.keys() == {"train", "val"}
    for split, one in before.items():
        assert after[split].fingerprint() == one.fingerprint()
        assert boxes_by_name(after[split]) == boxes_by_name(one)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("to", ["yolo", "voc", "coco"])
def test_any_format_becomes_any_other(tmp_path: Path, name: str, to: str) -> None:
    WRITERS[name](tmp_path / "set")
    (expected,) = sets(tmp_path / "set", name).values()
    convert(tmp_path / "set", tmp_path / "out", "--to", to, "--images", "link")
    found = sets(tmp_path / "out", "coco_folder" if to == "coco" else to)
    assert found["train"].fingerprint() == expected.fingerprint()
    linked = next((tmp_path / "out").rglob("a.png"))
    assert linked.samefile(next((tmp_path / "set").rglob("a.png")))


def test_names_in_folders_and_of_splits(tmp_path: Path) -> None:
    root = tmp_path / "set"
    coco(root)
    for name in ("train/a.png", "sub/b.png", "sub/deep/c.png"):
        place = root / "images" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        (root / "images" / place.name).rename(place)

    def rename(content: dict[str, Any]) -> None:
        for image, name in zip(
            content["images"], ("train/a.png", "sub/b.png", "sub/deep/c.png"), strict=True
        ):
            image["file_name"] = name

    edit_json(root / "annotations/train.json", rename)
    expected = boxes_by_name(sets(root, "coco_folder")["train"])
    for to in ("yolo", "voc"):
        convert(root, tmp_path / to, "--to", to)
        assert boxes_by_name(sets(tmp_path / to, to)["train"]) == expected


def test_what_a_format_cannot_hold_is_counted(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(content: dict[str, Any]) -> None:
        first, second, _, fourth = content["annotations"]
        first["iscrowd"] = 1
        second["area"] = 100
        fourth["id"] = 70
        content["categories"].append({"id": 9, "name": "a class without an object"})
        content["images"][0]["id"] = 50
        for one in content["annotations"][:3]:
            one["image_id"] = 50

    def change_val(content: dict[str, Any]) -> None:
        content["categories"].append({"id": 9, "name": "a class without an object"})
        content["annotations"].append({**content["annotations"][0], "id": 99})

    edit_json(source / "train.json", change)
    edit_json(source / "val.json", change_val)
    convert(source, tmp_path / "yolo", "--to", "yolo")
    said = capsys.readouterr().out
    assert "crowds and other regions to ignore, left out: 1" in said
    assert "areas of masks, which become those of the boxes: 1" in said
    assert "category ids: 1" in said
    assert "image ids: 1" in said
    assert "annotation ids: " in said
    assert "annotations that are equal to another, left out: 1" in said
    found = sets(tmp_path / "yolo", "yolo")
    assert len(found["train"].ids) == 3
    assert "a class without an object" in found["train"].categories.names
    convert(source, tmp_path / "voc", "--to", "voc")
    said = capsys.readouterr().out
    assert "regions to ignore, unless data.difficult=ignore" in said
    assert "classes without an object: 1" in said
    convert(source, tmp_path / "coco", "--to", "coco")
    assert "not kept" not in capsys.readouterr().out
    assert sets(tmp_path / "coco", "coco_folder")["train"].crowd.sum() == 1


def test_names_with_signs_of_the_format(tmp_path: Path, source: Path) -> None:
    for split in ("train", "val"):
        edit_json(
            source / f"{split}.json",
            lambda c: [one.update(name=f"{one['name']}: <&> '\" no") for one in c["categories"]],
        )
    for to in ("yolo", "voc"):
        convert(source, tmp_path / to, "--to", to)
        found, expected = sets(tmp_path / to, to)["train"], sets(source, "coco_folder")["train"]
        assert names_of(found) == names_of(expected)


def test_nothing_is_written_over_and_nothing_is_left(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    output = tmp_path / "out"
    text(output / "mine.txt", "x")
    with pytest.raises(SystemExit) as end:
        convert(source, output, "--to", "yolo")
    assert end.value.code == 2
    assert f"{output}: is not empty" in capsys.readouterr().err
    assert [file.name for file in output.iterdir()] == ["mine.txt"]
    (output / "mine.txt").unlink()

    def full(*arguments: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setitem(export_files.PUT, "copy", full)
    with pytest.raises(SystemExit):
        convert(source, output, "--to", "yolo")
    assert "no space left" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["out", "source"]
    assert not any(output.iterdir())
    monkeypatch.undo()
    convert(source, output, "--to", "yolo")  # an empty folder is filled
    assert (output / "data.yaml").exists()


def test_without_pictures(tmp_path: Path, source: Path) -> None:
    convert(source, tmp_path / "out", "--to", "voc", "--images", "none")
    assert {one.name for one in (tmp_path / "out").iterdir()} == {"Annotations", "ImageSets"}


@pytest.mark.parametrize("to", ["yolo", "voc"])
def test_two_pictures_of_one_stem_are_refused(
    tmp_path: Path, to: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = coco(tmp_path / "set")
    picture(root / "images/a.jpg")
    edit_json(
        root / "annotations/train.json",
        lambda c: c["images"].append({**c["images"][0], "id": 9, "file_name": "a.jpg"}),
    )
    with pytest.raises(SystemExit):
        convert(root, tmp_path / "out", "--to", to)
    assert "another image has the same name but for the suffix" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_bad_sources_end_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for source in (tmp_path / "none", tmp_path):
        with pytest.raises(SystemExit):
            convert(source, tmp_path / "out", "--to", "yolo")
        assert str(source) in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("name", ["coco128", "bccd", "highway"])
@pytest.mark.parametrize("to", ["yolo", "voc"])
def test_real_sets_there_and_back(tmp_path: Path, name: str, to: str) -> None:
    before = read_sets(real_data(name), "coco_folder", ReadOptions(), pictures=False)
    writers = {"yolo": set_export.YoloExport(), "voc": set_export.VocExport()}
    export_files.write_export(writers[to].export(before), tmp_path / to, "copy")
    # Crowds are difficult objects in VOC.
    after = sets(tmp_path / to, to, difficult="ignore")
    assert after.keys() == before.keys()
    for split, (one, _) in before.items():
        assert named_boxes(after[split]) == named_boxes(one)


def named_boxes(one: AnnotationSet) -> dict[str, list[tuple[Any, ...]]]:
    """For every image its boxes with the names of their classes, without crowds."""
    names = one.categories.names
    found = boxes_by_name(_objects(one))
    return {
        image: sorted((*box[:4], names[int(box[4])]) for box in boxes)
        for image, boxes in found.items()
    }


def _objects(one: AnnotationSet) -> AnnotationSet:
    kept = ~one.crowd
    return replace(one, image=one.image[kept], labels=one.labels[kept], bboxes=one.bboxes[kept])

"""Proposals for missing boxes: their files, exports, and what a review makes of them."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from comining.complete import main
from comining.completion.completed_set import with_proposals, with_records
from comining.completion.proposal_folder import (
    PROPOSALS_FILE,
    SOURCE_FILE,
    ProposalFolder,
    RateEstimate,
    path_from,
)
from comining.completion.proposals import (
    Proposal,
    digest,
    read_proposals,
    with_precision,
    with_probability,
    write_proposals,
)
from comining.completion.review_page import write_review_page
from comining.data.annotations import AnnotationSet
from comining.data.convert import read_sets
from comining.data.formats.annotation_format import ReadOptions
from comining.data.formats.coco import read_coco
from comining.data.knowledge import COMPLETE, PARTIAL, UNLOOKED, Annotated
from comining.errors import DataError
from comining.runs.command_line import readable
from tests.helpers import composed, edit_json
from tests.proposal_folders import proposal, proposed, write_decisions, write_folder

C, P, U = COMPLETE, PARTIAL, UNLOOKED
NAMES = ['say "cheese"', "</script><b>&amp;", "Zürich \u2028 🐈‍⬛"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path)


def loaded(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text())
    return content


# -- the contract ------------------------------------------------------------------------


def test_proposals_are_read_as_they_were_written(folder: Path) -> None:
    edit_json(folder / PROPOSALS_FILE, lambda rows: rows[2].update(fold=1))
    read = ProposalFolder.read(folder)
    assert [one.model_dump(exclude={"fold"}) for one in read.proposals] == [
        one.model_dump() for one in proposed()
    ]
    write_proposals(folder / "again.json", read.proposals)
    assert loaded(folder / "again.json") == loaded(folder / PROPOSALS_FILE)
    assert read_proposals(folder / "again.json", read.annotations) == read.proposals


def test_no_proposal_at_all(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, [])
    assert ProposalFolder.read(folder).proposals == []
    assert main(["export", str(folder), "--precision", "0.9"]) == 0
    assert loaded(folder / "completed.json") == loaded(tmp_path / "train.json")
    assert main(["review", str(folder)]) == 0


def test_the_hash_is_of_the_boxes() -> None:
    proposals = proposed()
    assert digest(proposals[::-1]) == digest(proposals)
    likelier = [one.model_copy(update={"probability": 1.0, "score": 0.0}) for one in proposals]
    assert digest(likelier) == digest(proposals)
    for change in ({"id": 9}, {"image_id": 2}, {"category_id": 3}, {"bbox": (0.0, 0.0, 1.0, 1.0)}):
        assert digest([proposals[0].model_copy(update=change), *proposals[1:]]) != digest(proposals)
    assert digest(proposals[1:]) != digest(proposals)


def test_paths_hold_from_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert path_from(tmp_path / "out" / "deep", "data/train.json") == "../../data/train.json"
    assert path_from(Path("out"), Path("data")) == "../data"
    absolute = str(tmp_path / "data" / "train.json")
    assert path_from(tmp_path / "out", absolute) == absolute


def test_a_folder_is_found_from_anywhere(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert len(ProposalFolder.read(Path()).proposals) == 6
    edit_json(
        folder / "complete.json", lambda source: source.update(annotations=f"{tmp_path}/train.json")
    )
    assert len(ProposalFolder.read(folder).proposals) == 6


def test_rates_of_classes(tmp_path: Path) -> None:
    rates = {"class 2": RateEstimate(rate=0.5, interval=(0.4, 0.6))}
    source = ProposalFolder.read(write_folder(tmp_path, rates=rates)).source
    assert source.rates["class 2"].interval == (0.4, 0.6)


# -- what is taken -----------------------------------------------------------------------


def of_probabilities(*values: float) -> list[Proposal]:
    return [proposal(number, 1, 1, value) for number, value in enumerate(values, start=1)]


@pytest.mark.parametrize(
    ("precision", "ids"),
    [(0.0, [1, 2, 3, 4]), (0.65, [1, 2, 3, 4]), (0.8, [2, 3, 4]), (0.85, [3, 4]), (0.95, [])],
)
def test_the_largest_set_of_a_precision(precision: float, ids: list[int]) -> None:
    proposals = of_probabilities(0.2, 0.7, 0.9, 0.8)
    assert [one.id for one in with_precision(proposals, precision)] == ids


def test_no_larger_set_has_the_precision() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        values = np.round(rng.random(rng.integers(0, 12)), 2)
        precision = round(float(rng.random()), 2)
        taken = with_precision(of_probabilities(*values), precision)
        best = np.sort(values)[::-1]
        means = [best[:count].mean() for count in range(1, len(best) + 1)]
        assert len(taken) == sum(mean >= precision - 1e-12 for mean in means)
        assert sorted(one.probability for one in taken) == sorted(best[: len(taken)])


def test_rounding_of_sums_takes_nothing_away() -> None:
    assert len(with_precision(of_probabilities(*[0.1] * 10), 0.1)) == 10


def test_of_equal_probabilities_the_higher_score_counts() -> None:
    tied = [
        one.model_copy(update={"score": score})
        for one, score in zip(of_probabilities(1.0, 0.5, 0.5), (0.1, 0.2, 0.3), strict=True)
    ]
    assert [one.id for one in with_precision(tied, 0.75)] == [1, 3]


def test_a_probability_cuts() -> None:
    assert [one.id for one in with_probability(proposed(), 0.5)] == [1, 3, 4, 6]


# -- completed.json ----------------------------------------------------------------------


def enrich(file: Path) -> dict[str, Any]:
    """What other programs write into a file, and what we do not read."""

    def change(content: dict[str, Any]) -> None:
        content["info"] = {"year": 2024, "contributor": "Zoë 🐈", "x": [None, 1e-7, 2**70]}
        content["licenses"] = [{"id": 0, "url": "http://example.org"}]
        content["images"][0] |= {"license": 0, "neg": "ours", "coco_url": "u"}
        content["annotations"][0] |= {"id": 70, "segmentation": [[1, 2, 3, 4, 5, 6.5]]}
        content["annotations"][1] |= {"attributes": {"occluded": True}, "iscrowd": 0}
        content["categories"][0]["supercategory"] = "shape"
        content["videos"] = []

    edit_json(file, change)
    return loaded(file)


def test_completed_keeps_everything_and_marks_what_it_adds(folder: Path, tmp_path: Path) -> None:
    before = enrich(tmp_path / "train.json")
    assert main(["export", str(folder), "--probability", "0.5"]) == 0
    after = loaded(folder / "completed.json")
    assert loaded(tmp_path / "train.json") == before
    known = len(before["annotations"])
    added = after["annotations"][known:]
    assert {**after, "annotations": after["annotations"][:known]} == before
    assert list(after) == list(before)
    assert [one.pop("id") for one in added] == [71, 72, 73, 74]
    assert added[1] == {
        "image_id": 1, "category_id": 2, "bbox": [16.5, 3.25, 12.0, 10.5], "area": 126.0,
        "iscrowd": 0, "proposed": True, "probability": 0.7, "score": 0.35,
    }  # fmt: skip
    assert len(read_coco(folder / "completed.json").ids) == known + 4


def test_numbers_that_only_python_writes_stay(folder: Path, tmp_path: Path) -> None:
    edit_json(tmp_path / "train.json", lambda c: c["images"][0].update(blur=float("nan")))
    assert main(["export", str(folder), "--precision", "0.9"]) == 0
    assert '"blur": NaN' in (folder / "completed.json").read_text()


@pytest.mark.parametrize(
    ("taken", "expected"),
    [([], [1, 2]), ([5, "9", 7.0], [10, 11]), ([-3], [1, 2]), ([2**63 - 1, 1, 3], [2, 4])],
)
def test_new_ids_are_free(taken: list[Any], expected: list[int]) -> None:
    content = {"annotations": [{"id": number} for number in taken]}
    after = with_records(content, [{"image_id": 1}, {"image_id": 1}])
    assert [one["id"] for one in after["annotations"][len(taken) :]] == expected
    assert len(content["annotations"]) == len(taken)


# -- exports for tools -------------------------------------------------------------------


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A folder whose class and file names need care in every format."""
    folder = write_folder(tmp_path, classes=NAMES)

    def rename(content: dict[str, Any]) -> None:
        for category, name in zip(content["categories"], NAMES, strict=True):
            category["name"] = name
        for image, name in zip(content["images"], ("a & b.png", "50%#?'\".png", "ü 🐈.png")):
            (tmp_path / "train" / image["file_name"]).rename(tmp_path / "train" / name)
            image["file_name"] = name
        content["annotations"].append(
            {"id": 99, "image_id": 4, "category_id": 1, "bbox": [0, 0, 9, 9], "iscrowd": 1}
        )

    edit_json(tmp_path / "train.json", rename)
    return folder


def expected_boxes(folder: Path) -> list[tuple[str, str, list[float]]]:
    """What each program shall show: file, class, box cut at the border."""
    file = folder / "expected.json"
    read = ProposalFolder.read(folder)
    file.write_text(json.dumps(with_proposals(read.content, read.proposals)))
    completed = read_coco(file)
    return shown_boxes(completed)


def shown_boxes(annotations: AnnotationSet) -> list[tuple[str, str, list[float]]]:
    names = annotations.categories.names
    rows = zip(annotations.image, annotations.labels, annotations.boxes, annotations.crowd)
    return sorted(
        (annotations.file_names[image], names[label], np.round(box, 4).tolist())
        for image, label, box, crowd in rows
        if not crowd
    )


def test_cvat_is_read_back(odd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(odd), "--to", "cvat", "--probability", "0"]) == 0
    assert "regions to ignore, left out: 1" in capsys.readouterr().out
    home = tmp_path / "cvat"
    home.mkdir()
    (home / "annotations.xml").write_bytes((odd / "cvat.xml").read_bytes())
    (home / "images").symlink_to(tmp_path / "train")
    read, _ = read_sets(home, "cvat", ReadOptions(), pictures=True)["train"]
    assert list(read.categories.names) == NAMES
    assert shown_boxes(read) == expected_boxes(odd)
    boxes = ElementTree.parse(odd / "cvat.xml").getroot().findall("image/box")
    found = [one.find("attribute") for one in boxes if one.get("source") == "auto"]
    assert sorted(float(one.text or "") for one in found if one is not None) == sorted(
        one.probability for one in proposed()
    )
    assert len([one for one in boxes if one.get("source") == "manual"]) == 4


def test_cvat_refuses_what_xml_cannot_hold(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_json(tmp_path / "train.json", lambda c: c["images"][0].update(file_name="a\uffff.png"))
    assert main(["export", str(folder), "--to", "cvat", "--probability", "0"]) == 2
    assert "cannot be written as XML" in capsys.readouterr().err


def label_studio(folder: Path) -> list[dict[str, Any]]:
    assert main(["export", str(folder), "--to", "label_studio", "--probability", "0"]) == 0
    tasks: list[dict[str, Any]] = json.loads((folder / "label_studio.json").read_text())
    return tasks


def test_label_studio_counts_in_percent(odd: Path) -> None:
    tasks = label_studio(odd)
    found = []
    images = [one["file_name"] for one in loaded(odd.parent / "train.json")["images"]]
    for name, task in zip(images, tasks, strict=True):
        for region in task["predictions"][0]["result"] if task.get("predictions") else []:
            value = region["value"]
            x, y, w, h = (value[key] / 100 for key in ("x", "y", "width", "height"))
            box = [x * 64, y * 48, (x + w) * 64, (y + h) * 48]
            (label,) = value["rectanglelabels"]
            found.append((name, label, np.round(box, 4).tolist()))
            assert (region["original_width"], region["original_height"]) == (64, 48)
    assert sorted(found) == expected_boxes(odd)
    assert tasks[1]["data"]["image"] == "/data/local-files/?d=50%25%23%3F%27%22.png"
    assert tasks[0]["predictions"][0]["score"] == pytest.approx((0.5 + 0.4 + 0.7) / 3)
    scores = [one.get("score") for one in tasks[0]["predictions"][0]["result"]]
    assert scores == [None, None, 0.5, 0.4, 0.7]
    config = ElementTree.parse(odd / "label_studio_config.xml").getroot()
    assert [one.get("value") for one in config.findall("RectangleLabels/Label")] == NAMES


def test_an_image_without_a_box_has_no_prediction(tmp_path: Path) -> None:
    tasks = label_studio(write_folder(tmp_path, []))
    assert "predictions" not in tasks[2]
    assert "score" not in tasks[0]["predictions"][0]


def test_label_studio_itself_takes_them(odd: Path) -> None:
    interface = pytest.importorskip(
        "label_studio_sdk.label_interface", reason="label-studio-sdk is not installed"
    )
    tasks = label_studio(odd)
    labels = interface.LabelInterface((odd / "label_studio_config.xml").read_text())
    predictions = [one for task in tasks for one in task.get("predictions", [])]
    assert len(predictions) == 4
    for task in tasks:
        assert labels.validate_task({"data": task["data"]})
    for prediction in predictions:
        assert labels.validate_prediction(prediction)
    predictions[0]["result"][0]["value"]["rectanglelabels"] = ["none of these"]
    assert not labels.validate_prediction(predictions[0])


def test_datumaro_reads_the_file_for_cvat(odd: Path, tmp_path: Path) -> None:
    """CVAT's own formats are built on it."""
    datumaro = pytest.importorskip("datumaro", reason="datumaro is not installed")
    assert main(["export", str(odd), "--to", "cvat", "--probability", "0"]) == 0
    home = tmp_path / "cvat"
    shutil.copytree(tmp_path / "train", home / "images")
    shutil.copy(odd / "cvat.xml", home / "annotations.xml")
    read = datumaro.Dataset.import_from(str(home), "cvat")
    boxes = [box for item in read for box in item.annotations]
    found = [
        float(one.attributes["probability"]) for one in boxes if "probability" in one.attributes
    ]
    assert sorted(found) == sorted(one.probability for one in proposed())
    expected = sorted(box for _, _, box in expected_boxes(odd))
    corners = sorted([one.x, one.y, one.x + one.w, one.y + one.h] for one in boxes)
    np.testing.assert_allclose(corners, expected, atol=0.02)  # it rounds


def test_yolo_is_read_back(odd: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["export", str(odd), "--to", "yolo", "--probability", "0", "--out", str(out)]) == 0
    read, _ = read_sets(out / "yolo", "yolo", ReadOptions(), pictures=True)["train"]
    assert list(read.categories.names) == NAMES
    assert shown_boxes(read) == expected_boxes(odd)


def test_several_exports_at_once_write_over_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["export", str(folder), "--precision", "0.7", "--out", str(out)]
    assert main([*options, "--to", "coco", "cvat", "label_studio"]) == 0
    assert "4 of 6 proposals taken" in capsys.readouterr().out
    assert {file.name for file in out.iterdir()} == {
        "completed.json", "cvat.xml", "label_studio.json", "label_studio_config.xml",
    }  # fmt: skip
    assert main([*options, "--to", "yolo", "cvat"]) == 2
    assert "cvat.xml: already exists" in capsys.readouterr().err
    assert not (out / "yolo").exists()


def test_the_printed_options_train_on_what_was_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "my set (1), a=b"
    home.mkdir()
    folder = write_folder(home)
    edit_json(folder / SOURCE_FILE, lambda source: source.update(exif="apply", bit_depth=12))
    decisions = write_decisions(folder / "decisions.json", {1: "accept"})
    out = folder / "reviewed.json"
    commands = {
        "partial": ["export", str(folder), "--precision", "0.7"],
        "fields": ["apply", str(folder), str(decisions), "--out", str(out)],
    }
    for (annotated, command), file in zip(
        commands.items(), (folder / "completed.json", out), strict=True
    ):
        assert main(command) == 0
        options = shlex.split(capsys.readouterr().out.split("train with: python train.py ")[1])
        data = composed(*readable(options)).data
        assert (data.train_annotations, data.annotated) == (str(file), annotated)
        assert Path(data.train_images) == ProposalFolder.read(folder).images
        assert (data.exif, data.bit_depth) == ("apply", 12)


@pytest.mark.parametrize("cut", [["--precision", "1.5"], ["--probability", "nan"], []])
def test_a_cut_is_a_share(folder: Path, cut: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(folder), *cut])
    assert stopped.value.code == 2


# -- apply -------------------------------------------------------------------------------


def applied(
    folder: Path, said: dict[int, str | int], looked: Sequence[tuple[int, int]] = ()
) -> Path:
    out = folder / "reviewed.json"
    file = write_decisions(folder / "decisions.json", said, looked)
    assert main(["apply", str(folder), str(file), "--out", str(out)]) == 0
    return out


def status(file: Path, annotated: Annotated = "fields") -> list[list[int]]:
    rows: list[list[int]] = read_coco(file).annotated_as(annotated).status.tolist()
    return rows


def test_what_was_decided_is_known(folder: Path, tmp_path: Path) -> None:
    # All of class 1 in image 1; class 2 there is class 3; class 1 in image 2 is not decided; of two
    # of class 3 in image 3 one is.
    said: dict[int, str | int] = {1: "accept", 2: "reject", 3: 3, 6: "accept"}
    out = applied(folder, said, [(2, 3), (4, 2)])
    expected = [[C, C, P], [P, P, C], [P, P, P], [P, C, P]]
    for annotated in ("fields", "partial", "exhaustive"):
        assert status(out, annotated) == expected  # type: ignore[arg-type]
    content = loaded(out)
    before = loaded(tmp_path / "train.json")
    known = len(before["annotations"])
    added = content["annotations"][known:]
    assert content["annotations"][:known] == before["annotations"]
    assert [(one["image_id"], one["category_id"]) for one in added] == [(1, 1), (1, 3), (3, 3)]
    assert all(one["proposed"] and one["reviewed"] for one in added)
    assert added[1]["proposed_category_id"] == 2
    assert "proposed_category_id" not in added[0]
    assert content["images"][1]["neg_category_ids"] == [3]


def test_without_a_decision_nothing_changes_but_what_is_said(folder: Path, tmp_path: Path) -> None:
    before = enrich(tmp_path / "train.json")
    out = applied(folder, {})
    after = loaded(out)
    assert status(out) == [[P] * 3] * 4 == status(tmp_path / "train.json", "partial")
    for record in after["images"]:
        assert record.pop("neg_category_ids") == []
        assert record.pop("not_exhaustive_category_ids") == [1, 2, 3]
    assert after == before


@pytest.mark.parametrize("annotated", ["partial", "exhaustive", "fields"])
def test_what_the_run_took_for_granted_still_holds(tmp_path: Path, annotated: Annotated) -> None:
    folder = write_folder(tmp_path, annotated=annotated)
    before = read_coco(tmp_path / "train.json").annotated_as(annotated).status
    assert status(applied(folder, {})) == before.tolist()


def with_fields(folder: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["images"][0] |= {"neg_category_ids": [2], "not_exhaustive_category_ids": [1]}
        content["images"][1] |= {"neg_category_ids": [3, 1], "not_exhaustive_category_ids": []}
        content["images"][2] |= {"neg_category_ids": None, "not_exhaustive_category_ids": [2.0]}

    edit_json(folder.parent / "train.json", change)


def test_fields_of_the_file_stay_right(folder: Path) -> None:
    with_fields(folder)
    untouched = loaded(folder.parent / "train.json")["images"]
    assert status(folder.parent / "train.json") == [[P, C, C], [C, C, C], [U, P, U], [U, C, U]]
    # Class 2 was absent in image 1, and is there; one of two of class 3 in image 3, which nobody
    # had looked for; nothing of image 2.
    out = applied(folder, {3: "accept", 5: "accept"})
    assert status(out) == [[P, C, C], [C, C, C], [U, P, P], [P] * 3]
    after = loaded(out)["images"]
    assert after[1] == untouched[1]
    assert after[0]["neg_category_ids"] == []
    assert after[0]["not_exhaustive_category_ids"] == [1]
    assert after[2]["not_exhaustive_category_ids"] == [2.0, 3]


def test_rejecting_one_of_two_says_nothing(folder: Path) -> None:
    with_fields(folder)
    assert status(applied(folder, {5: "reject"}))[2] == [U, P, U]


def test_rejecting_all_says_that_the_class_is_complete(folder: Path) -> None:
    with_fields(folder)
    out = applied(folder, {5: "reject", 6: "reject"})
    assert status(out)[2] == [U, P, C]
    assert loaded(out)["images"][2]["neg_category_ids"] == [3]


def test_an_unused_root_may_stay_in_fields(folder: Path) -> None:
    def add_root(content: dict[str, Any]) -> None:
        for category in content["categories"]:
            category["supercategory"] = "project"
        content["categories"].append({"id": 0, "name": "project", "supercategory": "none"})
        content["images"][0]["neg_category_ids"] = [0, 2]

    edit_json(folder.parent / "train.json", add_root)
    out = applied(folder, {1: "accept", 2: "accept"})
    assert loaded(out)["images"][0]["neg_category_ids"] == [0, 2]
    assert status(out)[0] == [C, C, C]


def test_work_that_was_shared(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = write_decisions(tmp_path / "one.json", {1: "accept", 4: "reject"}, [(1, 1)])
    two = write_decisions(tmp_path / "two.json", {2: 3, 4: "reject"})
    out = tmp_path / "out.json"
    assert main(["apply", str(folder), str(one), str(two), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    for line in ("accepted: 1", "accepted as another class: 1", "rejected: 1", "not decided: 3"):
        assert line in said.splitlines()
    assert status(out)[:2] == [[C, P, P], [C, P, P]]


def test_a_box_that_one_of_two_reviewers_corrected(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [write_decisions(tmp_path / f"{name}.json", {1: "accept"}) for name in "abc"]
    for file, x in zip(files[1:], (6, 7), strict=True):
        edit_json(file, lambda content, x=x: content["decisions"][0].update(bbox=[x, 3, 12, 10]))
    for number, given in enumerate((files[:2], files[1::-1])):
        out = tmp_path / f"{number}.json"
        assert main(["apply", str(folder), *map(str, given), "--out", str(out)]) == 0
        assert loaded(out)["annotations"][4]["bbox"] == [6, 3, 12, 10]
        assert "with a corrected box: 1" in capsys.readouterr().out
    out = tmp_path / "none.json"
    assert main(["apply", str(folder), *map(str, files), "--out", str(out)]) == 2
    assert capsys.readouterr().err == (
        f"error: {files[2]}: decisions[0]: proposal 1 has another box in {files[1]}: decisions[0]\n"
    )
    assert not out.exists()


# -- the files of the page ---------------------------------------------------------------


def page_data(folder: Path) -> dict[str, Any]:
    text = (folder / "review_data.js").read_text(encoding="ascii")
    data: dict[str, Any] = json.loads(text.removeprefix("window.REVIEW_DATA = ").rstrip(";\n"))
    return data


def test_the_data_of_the_page(odd: Path) -> None:
    write_review_page(ProposalFolder.read(odd), progress=False)
    data = page_data(odd)
    assert data["hash"] == digest(proposed())
    assert [name for _, name, _ in data["classes"]] == NAMES
    # Images in the order of their proposals; the fourth has none.
    assert [image[1] for image in data["images"]] == ["a & b.png", "50%#?'\".png", "ü 🐈.png"]
    assert [row[0] for row in data["proposals"]] == [1, 2, 3, 4, 5, 6]
    assert data["proposals"][3] == [4, 1, 0, 22.0, 3.25, 12.0, 10.5, 0.45, 0.9]
    assert [row[:2] for row in data["annotations"]] == [[0, 0], [0, 2], [1, 1]]
    text = (odd / "review_data.js").read_text()
    assert "<" not in text
    assert "\u2028" not in text
    for _, _, width, height, thumbnail, full in data["images"]:
        with Image.open(odd / thumbnail) as picture:
            assert picture.format == "JPEG"
            assert picture.size == (width, height) == (64, 48)
        assert full.startswith("../train/")
        assert not set(full) & set("#?\"' ")


def test_what_is_known_to_be_complete_is_on_the_page(folder: Path) -> None:
    with_fields(folder)
    write_review_page(ProposalFolder.read(folder), progress=False)
    assert page_data(folder)["complete"] == [[0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]


def turned(file: Path, size: tuple[int, int]) -> np.ndarray[Any, Any]:
    """A JPEG that viewers turn by a quarter; its stored pixels."""
    picture = Image.radial_gradient("L").resize(size).convert("RGB")
    picture.paste((255, 0, 0), (0, 0, size[0] // 2, size[1] // 4))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(file, "JPEG", exif=exif, quality=95)
    return np.asarray(Image.open(file), dtype=np.int64)


@pytest.mark.parametrize("exif", ["ignore", "apply"])
def test_thumbnails_lie_as_the_boxes_do(tmp_path: Path, exif: str) -> None:
    folder = write_folder(tmp_path, exif=exif)
    size = (64, 48) if exif == "ignore" else (48, 64)
    stored = turned(tmp_path / "train" / "001.png", size)
    write_review_page(ProposalFolder.read(folder), progress=False)
    image = page_data(folder)["images"][0]
    with Image.open(folder / image[4]) as picture:
        assert picture.getexif().get(0x0112, 1) == 1
        found = np.asarray(picture, dtype=np.int64)
    upright = Image.fromarray(stored.astype(np.uint8)).transpose(Image.Transpose.ROTATE_270)
    expected = stored if exif == "ignore" else np.asarray(upright, dtype=np.int64)
    assert np.abs(found - expected).mean() < 6
    # A browser would turn the picture itself.
    assert (image[5] is None) == (exif == "ignore")


def test_large_pictures_get_small_copies(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    edit_json(tmp_path / "train.json", lambda c: c["images"][0].update(width=2000, height=1500))
    edit_json(tmp_path / "train.json", lambda c: c["images"][1].update(width=2000, height=1500))
    Image.radial_gradient("L").resize((2000, 1500)).save(tmp_path / "train" / "001.png")
    Image.radial_gradient("L").resize((2000, 1500)).save(tmp_path / "train" / "002.png", "TIFF")
    write_review_page(ProposalFolder.read(folder), progress=False)
    shown, tiff = page_data(folder)["images"][:2]
    assert Image.open(folder / shown[4]).size == (640, 480)
    # No browser shows a TIFF file, so that its copy has to do.
    assert tiff[5] is None
    assert Image.open(folder / tiff[4]).size == (1600, 1200)


def test_a_picture_of_another_size_is_refused(folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (63, 48)).save(tmp_path / "train" / "002.png")
    with pytest.raises(DataError, match=r"image 2: .*002.png: is 63x48 px"):
        write_review_page(ProposalFolder.read(folder), progress=False)
    assert not (folder / "review.html").exists()

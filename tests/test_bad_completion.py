"""What is said of bad proposals and decisions: a table of ``docs/bad-input.md``.

``python -m tests.test_bad_completion`` prints it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from comining.complete import main
from comining.config import CONFIG_FOLDER
from tests.helpers import edit_json
from tests.proposal_folders import write_decisions, write_folder

DOCUMENT = CONFIG_FOLDER.parent / "docs" / "bad-input.md"
Spoil = Callable[[Path], object]


class Row(NamedTuple):
    """One kind of bad input; ``says`` is the whole message, DIR the folder, ``...`` anything."""

    file: str
    kind: str
    how: str
    spoil: Spoil
    says: str


def text(name: str, content: str | bytes) -> Spoil:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def proposal(**changes: Any) -> Spoil:
    return lambda folder: edit_json(folder / P, lambda rows: rows[1].update(changes))


def source(**changes: Any) -> Spoil:
    return lambda folder: edit_json(folder / "complete.json", lambda one: one.update(changes))


def decision(**changes: Any) -> Spoil:
    return lambda folder: edit_json(folder / D, lambda one: one["decisions"][1].update(changes))


def decisions(**changes: Any) -> Spoil:
    return lambda folder: edit_json(folder / D, lambda one: one.update(changes))


def without(key: str) -> Spoil:
    return lambda folder: edit_json(folder / P, lambda rows: rows[1].pop(key))


def removed(name: str) -> Spoil:
    return lambda folder: (folder / name).unlink()


P, D, NAN = "proposals.json", "decisions.json", float("nan")
IN_P, IN_D = f"DIR/{P}: ", f"DIR/{D}: "
TRAIN = "DIR/../train.json"
ROWS = [
    Row(P, "missing", "", removed(P), IN_P + "no such file"),
    Row(P, "no JSON", "a web page", text(P, "<html>"),
        IN_P + "not a JSON file (expected value at line 1 column 1)"),
    Row(P, "another encoding", "UTF-16", text(P, "[]".encode("utf-16")),
        IN_P + "not a JSON file (...)"),
    Row(P, "deep nesting", "100,000 times `[`", text(P, "[" * 100_000),
        IN_P + "not a JSON file (recursion limit exceeded ...)"),
    Row(P, "no list", "COCO's annotation file", text(P, '{"images": []}'),
        IN_P + "proposals must be a valid array, got {'images': []}"),
    Row(P, "record of another type", "`5`", text(P, "[5]"),
        IN_P + "proposals[0] must be an object, got 5"),
    Row(P, "key missing", "no `probability`", without("probability"),
        IN_P + "proposals[1]: 'probability' is missing"),
    Row(P, "probability NaN", "", proposal(probability=NAN),
        IN_P + "proposals[1].probability must be a finite number, got nan"),
    Row(P, "probability in percent", "`90`", proposal(probability=90),
        IN_P + "proposals[1].probability must be less than or equal to 1, got 90"),
    Row(P, "probability a text", '`"0.5"`', proposal(probability="0.5"),
        IN_P + "proposals[1].probability must be a valid number, got '0.5'"),
    Row(P, "probability a truth value", "`true`", proposal(probability=True),
        IN_P + "proposals[1].probability must be a valid number, got True"),
    Row(P, "score infinite", "", proposal(score=float("inf")),
        IN_P + "proposals[1].score must be a finite number, got inf"),
    Row(P, "box of three numbers", "", proposal(bbox=[1, 2, 3]),
        IN_P + "proposals[1].bbox[3] is missing"),
    Row(P, "box with NaN", "", proposal(bbox=[1, 2, NAN, 4]),
        IN_P + "proposals[1].bbox[2] must be a finite number, got nan"),
    Row(P, "box without area", "", proposal(bbox=[1, 2, 0, 4]),
        IN_P + "proposals[1]: bbox (1.0, 2.0, 0.0, 4.0) in image 1 of 64x48 px is empty"),
    Row(P, "box outside of its image", "", proposal(bbox=[100, 2, 9, 4]),
        IN_P + "proposals[1]: bbox (100.0, 2.0, 9.0, 4.0) in image 1 of 64x48 px lies outside of "
        "it by more than half"),
    Row(P, "id twice", "", proposal(id=1), IN_P + "proposals[1]: id 1 occurs twice"),
    Row(P, "id a share", "`1.5`", proposal(id=1.5),
        IN_P + "proposals[1].id must be a valid integer, got 1.5"),
    Row(P, "id 0", "", proposal(id=0),
        IN_P + "proposals[1].id must be greater than or equal to 1, got 0"),
    Row(P, "image that is not there", "", proposal(image_id=99),
        IN_P + f"proposals[1]: image_id 99 is not among the images of {TRAIN}"),
    Row(P, "class that is not there", "", proposal(category_id=9),
        IN_P + f"proposals[1]: category_id 9 is not among the categories of {TRAIN}"),
    Row("complete.json", "missing", "", removed("complete.json"),
        "DIR/complete.json: no such file"),
    Row("complete.json", "of a later version", "`2`", source(version=2),
        "DIR/complete.json: version must be 1, got 2"),
    Row("complete.json", "annotations absent", "", source(annotations="../x.json"),
        "DIR/../x.json: no such annotation file"),
    Row("complete.json", "annotations with other classes", "", source(classes=["class 1", "cat"]),
        f"DIR/complete.json: classes are not those of {TRAIN}: ['cat', 'class 2', 'class 3']"),
    Row("complete.json", "classes in another order", "",
        source(classes=["class 2", "class 1", "class 3"]),
        f"DIR/complete.json: classes are not those of {TRAIN}: they have another order"),
    Row("complete.json", "an interval upside down", "",
        source(rates={"class 1": {"rate": 0.5, "interval": [0.6, 0.4]}}),
        "DIR/complete.json: rates.class 1: interval [0.6, 0.4] must be [low, high]"),
    Row(D, "missing", "", removed(D), IN_D + "no such file"),
    Row(D, "truncated", "its first 40 bytes",
        lambda folder: (folder / D).write_bytes((folder / D).read_bytes()[:40]),
        IN_D + "not a JSON file (EOF while parsing a string at line 1 column 40)"),
    Row(D, "the proposals instead", "", lambda folder: (folder / P).replace(folder / D)
        and write_proposals_again(folder), IN_D + "top level must be an object, got [...]"),
    Row(D, "on other proposals", "a box was moved since", proposal(bbox=[1, 2, 3, 4]),
        IN_D + f"these are decisions on other proposals than those of DIR/{P}"),
    Row(D, "unknown proposal", "", decision(id=99),
        IN_D + f"decisions[1]: id 99 is not among the proposals of DIR/{P}"),
    Row(D, "unknown decision", "", decision(decision="maybe"),
        IN_D + "decisions[1].decision must be 'accept', 'reject' or 'class', got 'maybe'"),
    Row(D, "another class, but which", "", decision(decision="class"),
        IN_D + "decisions[1]: the decision 'class' needs a category_id"),
    Row(D, "a class for what is none", "", decision(category_id=1),
        IN_D + "decisions[1]: the decision 'reject' has no category_id"),
    Row(D, "unknown class", "", decision(decision="class", category_id=9),
        IN_D + f"decisions[1]: category_id 9 is not among the categories of {TRAIN}"),
    Row(D, "a box for a rejected proposal", "", decision(bbox=[1, 2, 3, 4]),
        IN_D + "decisions[1]: the decision 'reject' has no bbox"),
    Row(D, "corrected box without area", "", decision(decision="accept", bbox=[1, 2, 0, 4]),
        IN_D + "decisions[1]: bbox (1.0, 2.0, 0.0, 4.0) in image 1 of 64x48 px is empty"),
    Row(D, "corrected box of three numbers", "", decision(decision="accept", bbox=[1, 2, 3]),
        IN_D + "decisions[1].bbox[3] is missing"),
    Row(D, "two decisions on one proposal", "", decision(id=1),
        IN_D + f"decisions[1]: proposal 1 has another decision in DIR/{D}: decisions[0]"),
    Row(D, "image that is not there", "",
        decisions(looked_through=[{"image_id": 9, "category_id": 1}]),
        IN_D + f"looked_through[0]: image_id 9 is not among the images of {TRAIN}"),
    Row(D, "of a later version", "`2`", decisions(version=2),
        IN_D + "version must be 1, got 2"),
    Row("annotations.json", "is there already", "",
        text("annotations.json", "{}"),
        "DIR/annotations.json: already exists; nothing is overwritten"),
]  # fmt: skip


def write_proposals_again(folder: Path) -> None:
    (folder / P).write_bytes((folder / D).read_bytes())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = write_folder(tmp_path)
    write_decisions(made / D, {1: "accept", 2: "reject"}, [(1, 2)])
    return made


def apply(folder: Path) -> int:
    decisions, out = folder / D, folder / "annotations.json"
    return main(["apply", str(folder), str(decisions), "--out", str(out)])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.file}-{row.kind}")
def test_it_is_refused_in_one_line(
    folder: Path, row: Row, capsys: pytest.CaptureFixture[str]
) -> None:
    row.spoil(folder)
    before = sorted(file.name for file in folder.iterdir())
    assert apply(folder) == 2
    said = capsys.readouterr().err
    parent = re.escape(str(folder.parent))
    says = re.escape("error: " + row.says.replace("DIR/..", "PARENT"))
    says = says.replace("PARENT", parent).replace("DIR", re.escape(str(folder)))
    assert re.fullmatch(says.replace(r"\.\.\.", ".*") + "\n", said), said
    assert sorted(file.name for file in folder.iterdir()) == before


def test_what_is_sound_is_applied(folder: Path) -> None:
    # A mark at the beginning, as editors write it.
    (folder / D).write_bytes(b"\xef\xbb\xbf" + (folder / D).read_bytes())
    assert apply(folder) == 0
    assert json.loads((folder / "annotations.json").read_text())["annotations"][-1]["reviewed"]


def test_a_folder_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["review", str(tmp_path / "x")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'x'}: no such folder\n"


def table() -> str:
    lines = ["| file | what | how | message |", "|---|---|---|---|"]
    lines += [f"| `{row.file}` | {row.kind} | {row.how} | `{row.says}` |" for row in ROWS]
    return "\n".join(lines)


def test_the_document_has_these_rows() -> None:
    """If this fails: python -m tests.test_bad_completion, between the two marks."""
    marks = r"<!-- bad completion: begin -->\n(.*?)\n<!-- bad completion: end -->"
    found = re.search(marks, DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    assert found[1] == table()


if __name__ == "__main__":
    print(table())

"""Protocols: counts, seeds, and that the order of the file does not matter."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from comining.config import CONFIG_FOLDER, instantiate_file
from comining.data.annotations import AnnotationSet
from comining.data.formats.coco import read_coco
from comining.data.sparsity import main
from comining.errors import DataError
from tests.helpers import edit_json, real_data, write_coco


def protocol(name: str, **options: Any) -> Any:
    return instantiate_file(CONFIG_FOLDER / "sparsity" / f"{name}.yaml", options)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Images with 0 ... 9 annotations, a crowd more in every one that has any."""
    rng = np.random.default_rng(0)
    records = [
        [
            (*rng.uniform(0, 20, 2), *rng.uniform(4, 20, 2), int(rng.integers(1, 4)))
            for _ in range(n)
        ]
        for n in [*range(10), 1, 1, 2, 3]
    ]
    path = write_coco(tmp_path, records)

    def add_crowds(content: dict[str, Any]) -> None:
        for n, image in enumerate(content["images"][1:]):
            crowd = {**content["annotations"][0], "id": 1000 + n, "image_id": image["id"]}
            content["annotations"].append({**crowd, "iscrowd": 1})

    return edit_json(path, add_crowds)


def per_group(annotations: AnnotationSet, mask: Any, *columns: Any) -> Counter[Any]:
    rows = np.flatnonzero(mask)
    return Counter(tuple(int(column[row]) for column in columns) for row in rows)


EXPECTED = {
    "full": lambda n: n,
    "easy": lambda n: n - 1 if n > 1 else n,
    "hard": lambda n: n - n // 2,
    "extreme": lambda n: 1,
}


@pytest.mark.parametrize("name", EXPECTED)
def test_counts_per_image(file: Path, name: str) -> None:
    annotations = read_coco(file)
    erased = protocol(name).erase(annotations)
    assert not (erased & annotations.crowd).any()
    before = per_group(annotations, ~annotations.crowd, annotations.image)
    kept = per_group(annotations, ~erased & ~annotations.crowd, annotations.image)
    assert kept == {image: EXPECTED[name](n) for image, n in before.items()}


@pytest.mark.parametrize(("fraction", "kept_of"), [(0.5, lambda n: n - n // 2), (0.3, None)])
def test_miss_erases_a_share_of_every_category(file: Path, fraction: float, kept_of: Any) -> None:
    annotations = read_coco(file)
    erased = protocol("miss50", fraction=fraction).erase(annotations)
    before = per_group(annotations, ~annotations.crowd, annotations.labels)
    kept = per_group(annotations, ~erased & ~annotations.crowd, annotations.labels)
    for label, n in before.items():
        assert kept[label] == (kept_of(n) if kept_of else n - int(n * fraction))


def test_keep1_keeps_one_of_every_category_of_every_image(file: Path) -> None:
    annotations = read_coco(file)
    erased = protocol("keep1").erase(annotations)
    columns = annotations.image, annotations.labels
    before = per_group(annotations, ~annotations.crowd, *columns)
    kept = per_group(annotations, ~erased & ~annotations.crowd, *columns)
    assert kept == dict.fromkeys(before, 1)


@pytest.mark.parametrize("name", ["easy", "hard", "extreme", "miss50", "keep1"])
def test_the_choice_depends_on_the_seed_and_not_on_the_order(file: Path, name: str) -> None:
    annotations = read_coco(file)
    chosen = set(annotations.ids[protocol(name).erase(annotations)].tolist())
    again = set(annotations.ids[protocol(name).erase(annotations)].tolist())
    other = set(annotations.ids[protocol(name, seed=1).erase(annotations)].tolist())
    assert chosen == again
    assert chosen != other

    rng = np.random.default_rng(1)

    def shuffle(content: dict[str, Any]) -> None:
        for section in content.values():
            rng.shuffle(section)

    shuffled = read_coco(edit_json(file, shuffle))
    assert shuffled.ids.tolist() != annotations.ids.tolist()
    assert set(shuffled.ids[protocol(name).erase(shuffled)].tolist()) == chosen


def test_every_annotation_of_an_image_is_kept_equally_often(tmp_path: Path) -> None:
    annotations = read_coco(write_coco(tmp_path, [[(k, k, 5, 5, 1) for k in range(4)]] * 200))
    kept = ~protocol("extreme").erase(annotations)
    counts = kept.reshape(200, 4).sum(axis=0)
    assert counts.sum() == 200
    assert counts.min() > 30  # 50 expected; 30 is 3.3 standard deviations away


def test_growing_shares_are_nested(file: Path) -> None:
    annotations = read_coco(file)
    small, large = (protocol("miss50", fraction=f).erase(annotations) for f in (0.3, 0.7))
    assert not (small & ~large).any()


def test_a_set_without_annotations_loses_none(tmp_path: Path) -> None:
    annotations = read_coco(write_coco(tmp_path, [[], []]))
    for name in ("full", "hard", "extreme", "miss50", "keep1"):
        assert protocol(name).erase(annotations).shape == (0,)


@pytest.mark.parametrize(
    "options",
    [
        {"fraction": 1.5},
        {"fraction": None},
        {"count": 1},
        {"per": []},
        {"keep_at_least": -1},
    ],
)
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="sparsity"):
        protocol("hard", **options)


# -- files -------------------------------------------------------------------------------


def test_the_written_split_is_the_one_that_training_uses(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, erased_output = tmp_path / "out" / "sparse.json", tmp_path / "erased.json"
    arguments = [str(file), str(output), "--protocol", "hard", "--seed", "3"]
    main([*arguments, "--erased", str(erased_output)])
    annotations = read_coco(file)
    erased = protocol("hard", seed=3).erase(annotations)
    sparse = json.loads(output.read_text())
    full = json.loads(file.read_text())
    assert sparse["images"] == full["images"]  # emptied images stay
    assert sparse["categories"] == full["categories"]
    gone = set(annotations.ids[erased].tolist())
    assert sparse["annotations"] == [a for a in full["annotations"] if a["id"] not in gone]
    assert {a["id"] for a in json.loads(erased_output.read_text())["annotations"]} == gone

    printed = capsys.readouterr().out
    kept = int((~erased & ~annotations.crowd).sum())
    assert f"all      {kept:8d} {len(gone):8d}" in printed
    assert "0 lost all their annotations and 1 had none; crowds set aside: 13" in printed

    from_file = protocol("file", path=str(output))
    assert np.array_equal(from_file.erase(annotations), erased)


def test_a_split_of_text_ids_is_written_whole(file: Path, tmp_path: Path) -> None:
    plain, spelt = tmp_path / "plain.json", tmp_path / "spelt.json"
    main([str(file), str(plain), "--protocol", "hard"])

    def as_text(content: dict[str, Any]) -> None:
        for record in content["annotations"]:
            record["id"] = f"{record['id']}.0"

    main([str(edit_json(file, as_text)), str(spelt), "--protocol", "hard"])
    ids = [str(record["id"]) + ".0" for record in json.loads(plain.read_text())["annotations"]]
    assert [record["id"] for record in json.loads(spelt.read_text())["annotations"]] == ids
    assert len(ids) > 10


def test_crowds_may_be_erased_as_objects(file: Path, tmp_path: Path) -> None:
    edit_json(file, lambda c: [record.update(iscrowd=1) for record in c["annotations"]])
    sparse = tmp_path / "sparse.json"
    main([str(file), str(sparse), "--protocol", "hard", "--crowd", "object"])
    annotations = read_coco(file, crowd="object")
    erased = protocol("hard").erase(annotations)
    assert 0 < erased.sum() < len(erased)
    from_file = protocol("file", path=str(sparse)).erase(annotations)
    assert np.array_equal(from_file, erased)
    assert not protocol("hard").erase(read_coco(file)).any()


def test_a_ready_made_file_may_number_classes_differently(file: Path, tmp_path: Path) -> None:
    sparse = tmp_path / "sparse.json"
    main([str(file), str(sparse), "--protocol", "hard"])
    annotations = read_coco(file)
    expected = protocol("file", path=str(sparse)).erase(annotations)

    def renumber(content: dict[str, Any]) -> None:
        for record in content["categories"]:
            record["id"] = 9 - record["id"]
        for record in content["annotations"]:
            record["category_id"] = 9 - record["category_id"]

    edit_json(sparse, renumber)
    assert np.array_equal(protocol("file", path=str(sparse)).erase(annotations), expected)
    edit_json(sparse, lambda c: c["categories"][0].update(name="cat"))
    with pytest.raises(DataError, match=r"differ: 'class 1' .*'cat' "):
        protocol("file", path=str(sparse)).erase(annotations)


def test_a_ready_made_file_may_be_renumbered(file: Path, tmp_path: Path) -> None:
    sparse = tmp_path / "sparse.json"
    main([str(file), str(sparse), "--protocol", "extreme"])
    annotations = read_coco(file)
    expected = protocol("file", path=str(sparse)).erase(annotations)

    def renumber(content: dict[str, Any]) -> None:
        content["annotations"].reverse()
        for number, record in enumerate(content["annotations"], start=1):
            record["id"] = number

    edit_json(sparse, renumber)
    assert np.array_equal(protocol("file", path=str(sparse)).erase(annotations), expected)


def test_a_foreign_sparse_file_is_refused_by_record(file: Path, tmp_path: Path) -> None:
    sparse = tmp_path / "sparse.json"
    main([str(file), str(sparse), "--protocol", "easy"])
    edit_json(sparse, lambda c: c["annotations"][0].update(bbox=[1, 1, 2, 2]))
    with pytest.raises(DataError, match=r"sparse.json: image 2, category \d, bbox \[1.0, 1.0"):
        protocol("file", path=str(sparse)).erase(read_coco(file))


def test_the_command_line_refuses_bad_input_in_one_line(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_json(file, lambda c: c["annotations"][0].update(bbox=[1, 1, 0, 2]))
    with pytest.raises(SystemExit) as stop:
        main([str(file), str(tmp_path / "o.json"), "--protocol", "hard"])
    assert stop.value.code == 2
    assert "annotation 1: bbox" in capsys.readouterr().err
    assert not (tmp_path / "o.json").exists()


def test_the_full_file_is_never_overwritten(file: Path) -> None:
    before = file.read_bytes()
    with pytest.raises(SystemExit):
        main([str(file), str(file), "--protocol", "hard"])
    assert file.read_bytes() == before


def test_coco128_splits_are_stable() -> None:
    """The split of a real file must never change behind a user's back."""
    root = real_data("coco128")
    annotations = read_coco(root / "annotations" / "instances_train2017.json")
    erased = {
        name: protocol(name).erase(annotations) for name in ("easy", "hard", "extreme", "miss50")
    }
    counts = {name: int(mask.sum()) for name, mask in erased.items()}
    images = np.bincount(annotations.image[~annotations.crowd], minlength=128)
    assert counts["easy"] == (images > 1).sum()
    assert counts["hard"] == (images // 2).sum()
    assert counts["extreme"] == (images - 1)[images > 0].sum()
    assert abs(counts["miss50"] - 929 / 2) < 40
    assert int(annotations.ids[erased["hard"]].sum() % 1_000_003) == STABLE


# A change of this number is a change of every published split.
STABLE = 864070

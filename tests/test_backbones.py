"""Pretrained weights, from a local stand-in for the server, and without one."""

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import ResNet18_Weights, resnet18, resnet34
from torchvision.ops import FrozenBatchNorm2d

from comining.config import instantiate
from comining.detectors.backbones import Backbone, FrozenBatchNorm, slim_fpn
from comining.errors import ConfigError
from tests.helpers import composed, images
from tests.test_bad_input import Pwned


def backbone(*overrides: str) -> Backbone:
    built: Backbone = instantiate(composed("backbone=resnet18", *overrides).backbone, "backbone")
    return built


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server with one weight file, at whose address torchvision now looks."""
    folder = tmp_path / "server"
    folder.mkdir()
    torch.manual_seed(7)
    torch.save(resnet18().state_dict(), folder / "weights.pth")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Not into the test output."""

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{running.server_address[1]}"
        monkeypatch.setattr(ResNet18_Weights.IMAGENET1K_V1.value, "url", f"{address}/weights.pth")
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
        yield address
        running.shutdown()


def test_weights_are_downloaded_once_and_then_cached(server: str, tmp_path: Path) -> None:
    torch.manual_seed(7)
    expected = resnet18().state_dict()
    for _ in range(2):
        body = backbone("backbone.weights=IMAGENET1K_V1").net.body.state_dict()
        assert torch.equal(body["layer4.1.conv2.weight"], expected["layer4.1.conv2.weight"])
        assert torch.equal(body["bn1.weight"], expected["bn1.weight"])
    assert (tmp_path / "cache" / "hub" / "checkpoints" / "weights.pth").is_file()


def test_without_a_server_the_message_says_where_the_file_belongs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    url = "http://127.0.0.1:9/weights.pth"  # nobody listens there
    monkeypatch.setattr(ResNet18_Weights.IMAGENET1K_V1.value, "url", url)
    with pytest.raises(ConfigError, match=r"cannot download .*127\.0\.0\.1:9/weights\.pth"):
        backbone("backbone.weights=IMAGENET1K_V1")


@pytest.mark.parametrize("kind", ["page", "half", "another network", "code"])
def test_a_damaged_file_in_torchvisions_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """What lies there is not hashed again, and it runs no code."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / Path(ResNet18_Weights.IMAGENET1K_V1.url).name
    file.parent.mkdir(parents=True)
    if kind == "code":
        torch.save({"a": Pwned(tmp_path / "pwned")}, file)
    else:
        torch.save(resnet34().state_dict() if kind == "another network" else {}, file)
    if kind == "page":
        file.write_bytes(b"<html>Log in to this network</html>")
    elif kind == "half":
        file.write_bytes(file.read_bytes()[:100])
    words = rf"backbone.weights=IMAGENET1K_V1: {file} does not hold its weights \(.*\); delete that"
    with pytest.raises(ConfigError, match=words) as refused:
        backbone("backbone.weights=IMAGENET1K_V1")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "pwned").exists()


class Portal(http.server.BaseHTTPRequestHandler):
    """Answers everything with a page, or not at all."""

    answers = True

    def do_GET(self) -> None:
        if self.answers:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>Log in to this network</html>")

    def log_message(self, *_: Any) -> None:
        """Not into the test output."""


@pytest.mark.parametrize("answers", [True, False])
def test_a_server_that_sends_no_weights_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: bool
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(Portal, "answers", answers)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Portal) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{running.server_address[1]}/resnet18-f37072fd.pth"
        monkeypatch.setattr(ResNet18_Weights.IMAGENET1K_V1.value, "url", url)
        with pytest.raises(ConfigError) as refused:
            backbone("backbone.weights=IMAGENET1K_V1")
        running.shutdown()
    assert str(refused.value).startswith("cannot download backbone.weights=IMAGENET1K_V1")
    assert url in str(refused.value)
    assert ("invalid hash" in str(refused.value)) == answers
    assert not list(tmp_path.glob("hub/checkpoints/*.pth"))


def test_a_download_folder_that_cannot_be_made(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "file" / "cache"))
    with pytest.raises(ConfigError, match=r"cannot download .*Not a directory"):
        backbone("backbone.weights=IMAGENET1K_V1")


def test_an_unknown_weight_set_is_answered_by_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="resnet18 has IMAGENET1K_V1"):
        backbone("backbone.weights=BEST")


def test_from_scratch_everything_trains() -> None:
    scratch = ["backbone.weights=null", "backbone.norm=batch", "backbone.trainable_layers=5"]
    assert all(p.requires_grad for p in backbone(*scratch).net.parameters())


@pytest.mark.parametrize("source", ["p5", "c5"])
def test_five_levels_from_stride_8(source: str) -> None:
    built = backbone("backbone.weights=null", f"backbone.extra_levels_from={source}")
    features = built.net(torch.zeros(1, 3, 256, 256))
    assert [256 // f.shape[-1] for f in features.values()] == list(built.strides)
    assert built.net.fpn.extra_blocks.p6.in_channels == {"p5": 256, "c5": 512}[source]


@pytest.mark.parametrize("first_level", [2, 3])
def test_the_slim_pyramid_begins_where_it_is_told(first_level: int) -> None:
    built = slim_fpn(
        widths=[8, 16, 32, 64], out_channels=16, norm_groups=4, first_level=first_level
    )
    features = built.net(torch.zeros(1, 3, 128, 128))
    assert [128 // f.shape[-1] for f in features.values()] == list(built.strides)
    assert built.strides[0] == 2**first_level


def test_the_slim_network_keeps_every_image_by_itself() -> None:
    """No batch statistics: a view does not depend on the other view of its batch."""
    torch.manual_seed(0)
    net = slim_fpn(widths=[8, 16, 32, 64], out_channels=16, norm_groups=4, first_level=3).net
    batch = torch.stack(images(3, 64, 64)).float() / 255
    together = net(batch)
    alone = net(batch[1:2])
    for level, features in together.items():
        torch.testing.assert_close(features[1:2], alone[level], atol=1e-5, rtol=1e-4)


def frozen_norm() -> tuple[FrozenBatchNorm, FrozenBatchNorm2d]:
    """Ours and torchvision's with the same statistics."""
    torch.manual_seed(0)
    ours, theirs = FrozenBatchNorm(6), FrozenBatchNorm2d(6)
    for value in ours.state_dict().values():
        value.copy_(torch.rand(6) + 0.5)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def test_the_frozen_norm_is_torchvisions() -> None:
    ours, theirs = frozen_norm()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert not list(ours.parameters())
    features = torch.randn(2, 6, 5, 7, requires_grad=True)
    results = [norm(features) for norm in (ours, theirs)]
    torch.testing.assert_close(*results)
    gradients = [torch.autograd.grad(result.square().sum(), features) for result in results]
    torch.testing.assert_close(*gradients)
    # ... and takes the weights of an ordinary batch norm, as torchvision's does.
    ours.load_state_dict(torch.nn.BatchNorm2d(6).state_dict())


def test_the_frozen_norm_makes_no_new_map_where_nothing_trains() -> None:
    """Behind frozen layers and at inference: the same numbers to the last bit, in place."""
    ours, theirs = frozen_norm()
    features = torch.randn(2, 6, 5, 7)
    expected = theirs(features)
    trained = ours(features.clone().requires_grad_()).detach()
    result = ours(features)
    assert result.data_ptr() == features.data_ptr()
    assert torch.equal(result, trained)
    torch.testing.assert_close(result, expected)


def test_the_frozen_norm_keeps_bf16_and_rounds_once() -> None:
    ours, theirs = frozen_norm()
    features = torch.randn(2, 6, 5, 7, dtype=torch.bfloat16, requires_grad=True)
    result = ours(features)
    assert result.dtype == torch.bfloat16
    assert theirs(features).dtype == torch.float32  # what this class is for
    torch.testing.assert_close(result, theirs(features).bfloat16(), rtol=2**-7, atol=1e-6)
    result.sum().backward()
    assert features.grad is not None
    assert features.grad.dtype == torch.bfloat16


def test_features_of_a_resnet_are_bf16_throughout_under_autocast() -> None:
    net = backbone("backbone.weights=null").net
    seen = []
    for module in net.modules():
        if isinstance(module, FrozenBatchNorm | torch.nn.ReLU):
            module.register_forward_hook(lambda *args: seen.append(args[2].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        net(torch.stack(images(1, 64, 64)).float() / 255)
    assert set(seen) == {torch.bfloat16}

"""The second view: photometric, per image, and determined by (seed, position)."""

import pytest
import torch
from torchvision.transforms.v2 import functional as F

from comining.config import instantiate
from comining.data.views import ColorJitter, SecondView
from tests.helpers import composed, images


def view(name: str, *overrides: str) -> SecondView:
    built: SecondView = instantiate(composed(f"view={name}", *overrides).view, "view")
    return built


@pytest.mark.parametrize("name", ["color", "blur"])
def test_size_type_and_the_original_stay(name: str) -> None:
    batch = images(6, 40, 50)
    before = [image.clone() for image in batch]
    changed = view(name)(batch, range(6), seed=0)
    assert all(c.shape == (3, 40, 50) and c.dtype == torch.uint8 for c in changed)
    assert all(torch.equal(image, b) for image, b in zip(batch, before, strict=True))
    assert any(not torch.equal(image, c) for image, c in zip(batch, changed, strict=True))


@pytest.mark.parametrize("name", ["color", "blur"])
def test_each_image_has_its_own_change_whatever_its_company(name: str) -> None:
    same = images(1) * 4
    together = view(name, "view.p=1.0")(same, [0, 1, 2, 3], seed=0)
    assert len({tuple(image.flatten().tolist()) for image in together}) == 4
    alone = view(name, "view.p=1.0")(same[:1], [2], seed=0)
    assert torch.equal(alone[0], together[2])
    assert not torch.equal(view(name, "view.p=1.0")(same[:1], [2], seed=1)[0], together[2])


def test_the_share_of_changed_images_is_p() -> None:
    batch = images(1, 8, 8) * 400
    changed = view("color")(batch, range(400), seed=0)
    share = sum(not torch.equal(a, b) for a, b in zip(batch, changed, strict=True)) / 400
    assert abs(share - 0.8) < 0.07


def test_none_is_the_image_itself() -> None:
    batch = images(3)
    assert all(torch.equal(a, b) for a, b in zip(batch, view("none")(batch, range(3), 0)))


def test_parameters_are_drawn_from_their_whole_range() -> None:
    jitter = ColorJitter(brightness=0.8, contrast=0.0, saturation=0.0, hue=0.0, p=1.0)
    grey = [torch.full((3, 4, 4), 100, dtype=torch.uint8)] * 500
    values = torch.stack([v[0, 0, 0] for v in jitter(grey, range(500), 0)]).float()
    assert 20 <= values.min() < 25
    assert 175 < values.max() <= 180
    assert abs(values.mean() - 100) < 8


def test_the_change_is_torchvisions() -> None:
    """With one adjustment of known strength, the picture is torchvision's."""
    generator = torch.Generator().manual_seed(0)
    picture = images(1)[0]
    jitter = ColorJitter(brightness=0.0, contrast=0.0, saturation=0.0, hue=0.2, p=1.0)
    got = jitter.change(picture, generator)
    shifts = torch.linspace(-0.2, 0.2, 401).tolist()
    distances = [(F.adjust_hue(picture, h).int() - got.int()).abs().float().mean() for h in shifts]
    assert min(distances) < 0.5
    assert max(distances) > 5


def test_blur_fits_tiny_images() -> None:
    assert view("blur", "view.p=1.0")(images(1, 3, 2), [0], 0)[0].shape == (3, 3, 2)


@pytest.mark.parametrize(
    "override", ["view.p=1.5", "view.hue=0.6", "view.brightness=-1", "view.contrast=x"]
)
def test_bad_options_are_refused(override: str) -> None:
    with pytest.raises(ValueError, match="view"):
        view("color", override)

"""Which parameters the optimizer treats how."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from comining.data.views import NoChange
from comining.detectors.dense import DenseDetector
from comining.methods.supervised import Supervised
from comining.training.training_module import DetectionModule, ParameterGroups
from tests.helpers import detector
from tests.test_train import train

NORMS = (nn.BatchNorm2d, nn.GroupNorm)
FROM_SCRATCH = ["backbone=resnet18", "backbone.norm=batch", "backbone.trainable_layers=5"]


@pytest.fixture(params=["retinanet", "fcos"])
def built(request: pytest.FixtureRequest) -> DenseDetector:
    return detector(request.param, 3)


def names(built: nn.Module, group: dict[str, Any]) -> set[str]:
    wanted = {id(parameter) for parameter in group["params"]}
    return {name for name, parameter in built.named_parameters() if id(parameter) in wanted}


def norms_and_biases(built: nn.Module) -> set[str]:
    """Found by the kinds of modules, not by the shapes of parameters."""
    of_norms = {
        f"{name}.{key}"
        for name, module in built.named_modules()
        if isinstance(module, NORMS)
        for key, _ in module.named_parameters(recurse=False)
    }
    biases = {name for name, _ in built.named_parameters() if name.endswith(".bias")}
    return of_norms | biases


def test_by_default_all_are_one_group_in_the_order_of_the_modules(built: DenseDetector) -> None:
    (group,) = built.parameter_groups(1.0, True)
    assert group.keys() == {"params", "lr_factor"}
    assert group["lr_factor"] == 1
    trained = [parameter for parameter in built.parameters() if parameter.requires_grad]
    assert [id(parameter) for parameter in group["params"]] == [id(p) for p in trained]


def test_frozen_parameters_are_in_no_group() -> None:
    built = detector("retinanet", 3, "backbone=resnet18")  # stem and layer1 are frozen
    (group,) = built.parameter_groups(1.0, True)
    frozen = {name for name, p in built.named_parameters() if not p.requires_grad}
    assert frozen
    assert names(built, group) == {name for name, _ in built.named_parameters()} - frozen


@pytest.mark.parametrize("backbone", [["backbone=slim"], FROM_SCRATCH], ids=["slim", "resnet18"])
@pytest.mark.parametrize("name", ["retinanet", "fcos", "faster_rcnn"])
def test_every_parameter_is_in_the_one_group_that_fits_it(name: str, backbone: list[str]) -> None:
    built = detector(name, 3, *backbone)
    groups = built.parameter_groups(0.1, False)
    assert len(groups) == 4
    members = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(members) == len(set(members))
    assert set(members) == {id(p) for p in built.parameters() if p.requires_grad}
    everything = {name for name, _ in built.named_parameters()}
    body = {name for name in everything if name.startswith("net.backbone.body.")}
    exempt = norms_and_biases(built)
    assert exempt & body
    assert exempt - body
    for group in groups:
        slower, free = group["lr_factor"] == 0.1, group.get("weight_decay") == 0.0
        assert slower or group["lr_factor"] == 1
        assert free or "weight_decay" not in group  # the optimizer's own then
        expected = (body if slower else everything - body) & (
            exempt if free else everything - exempt
        )
        assert names(built, group) == expected


def test_one_difference_makes_two_groups(built: DenseDetector) -> None:
    assert [group["lr_factor"] for group in built.parameter_groups(0.5, True)] == [0.5, 1]
    exempt = [group.get("weight_decay") for group in built.parameter_groups(1.0, False)]
    assert sorted(exempt, key=str) == [0.0, None]


def test_two_steps_of_adamw_take_the_rates_and_decays_of_the_groups() -> None:
    """Under a constant gradient AdamW moves every weight by its rate, beside its decay."""
    rate, decay = 1e-3, 0.5
    built = detector("retinanet", 3)
    module = DetectionModule(
        built, Supervised(["original"]), NoChange(),
        lambda groups: torch.optim.AdamW(groups, lr=rate, weight_decay=decay, eps=0.0),
        ParameterGroups(backbone_lr_factor=0.1, decay_norms_and_biases=False),
        lambda step: 1.0, {}, Path("unused"), 0, {},
    )  # fmt: skip
    optimizer = module.configure_optimizers()["optimizer"]
    exempt = norms_and_biases(built)
    before = {name: p.detach().clone() for name, p in built.named_parameters()}
    for _ in range(2):
        for parameter in built.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    for name, parameter in built.named_parameters():
        lr = rate * (0.1 if name.startswith("net.backbone.body.") else 1.0)
        shrink = 1.0 if name in exempt else 1 - lr * decay
        expected = (before[name] * shrink - lr) * shrink - lr
        torch.testing.assert_close(parameter.detach(), expected, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_run_uses_the_groups(tmp_path: Path, optimizer: str) -> None:
    options = [
        f"data.root={tmp_path / 'shapes'}", "data.prepare.train_images=4",
        "data.prepare.val_images=1", "data.prepare.test_images=1", "data.batch_size=2",
        "trainer.enable_progress_bar=false", "trainer.accelerator=cpu", "trainer.max_steps=2",
        "pictures.every_n_steps=0", "method=original", f"optimizer={optimizer}",
        "optimizer.weight_decay=0.25", "parameter_groups.backbone_lr_factor=0.1",
        "parameter_groups.decay_norms_and_biases=false",
    ]  # fmt: skip
    train(tmp_path / "run", *options)
    file = tmp_path / "run" / "checkpoints" / "last.ckpt"
    (state,) = torch.load(file, weights_only=True)["optimizer_states"]
    groups = {
        (group["initial_lr"], group["weight_decay"]): group["lr"] for group in state["param_groups"]
    }
    base = max(initial for initial, _ in groups)
    rates = {(round(initial / base, 6), decay): lr for (initial, decay), lr in groups.items()}
    assert rates.keys() == {(1.0, 0.25), (1.0, 0.0), (0.1, 0.25), (0.1, 0.0)}
    assert rates[0.1, 0.0] == rates[0.1, 0.25] == pytest.approx(0.1 * rates[1.0, 0.0])

"""Learning-rate factors at the steps that matter."""

from typing import Any

import pytest
from omegaconf import OmegaConf

from comining.config import instantiate
from comining.errors import ConfigError
from comining.training.schedule import OneCycle, WarmupMultiStep


def schedule(name: str, **options: Any) -> Any:
    """As a yaml builds it."""
    node = {"_target_": f"comining.training.schedule.{name}", **options}
    return instantiate(OmegaConf.create(node), "schedule")


def test_the_papers_schedule() -> None:
    factor = WarmupMultiStep(
        warmup_steps=1000,
        warmup_start=0.001,
        milestones=[60000, 80000],
        gamma=0.1,
        max_steps=90000,
    )
    expected = {
        0: 0.001,
        500: 0.5005,
        1000: 1.0,
        59999: 1.0,
        60000: 0.1,
        79999: 0.1,
        80000: 0.01,
        89999: 0.01,
    }
    assert {step: factor(step) for step in expected} == pytest.approx(expected)


def test_no_warm_up_and_no_milestones() -> None:
    factor = WarmupMultiStep(
        warmup_steps=0, warmup_start=0.1, milestones=[], gamma=0.1, max_steps=5
    )
    assert [factor(step) for step in range(5)] == [1.0] * 5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"milestones": [5, 3]}, "milestones must be increasing"),
        ({"milestones": [3, 3]}, "milestones must be increasing"),
        ({"milestones": [0]}, r"milestones\[0\]=0 must be a whole number of at least 1"),
        ({"milestones": [10]}, r"milestones=\[10\] reach beyond trainer\.max_steps=10"),
        ({"milestones": [3, 11]}, r"milestones=\[3, 11\] reach beyond trainer\.max_steps=10"),
        ({"warmup_steps": 10}, r"warmup_steps=10 reach beyond trainer\.max_steps=10"),
        ({"warmup_steps": -1}, "warmup_steps=-1 must be a whole number of at least 0"),
        ({"warmup_start": -0.1}, r"warmup_start=-0\.1 must be a number from 0 to 1"),
        ({"gamma": float("nan")}, "gamma=nan must be a number from 0 to 1"),
        ({"gamma": 10.0}, r"gamma=10\.0 must be a number from 0 to 1"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], words: str) -> None:
    given = {"warmup_steps": 0, "warmup_start": 0.1, "milestones": [5], "gamma": 0.1}
    with pytest.raises(ConfigError, match=rf"^schedule\.{words}"):
        schedule("WarmupMultiStep", **{**given, **options}, max_steps=10)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rise": 1.0}, r"rise=1\.0 must be a number above 0 and below 1"),
        ({"start": -1.0}, r"start=-1\.0 must be a number from 0 to 1"),
        ({"end": 1.5}, r"end=1\.5 must be a number from 0 to 1"),
        ({"max_steps": 0}, "max_steps=0 must be a whole number of at least 1"),
    ],
)
def test_bad_options_of_one_cycle_are_named(options: dict[str, Any], words: str) -> None:
    given = {"rise": 0.3, "start": 0.04, "end": 0.0, "max_steps": 10}
    with pytest.raises(ConfigError, match=rf"^schedule\.{words}"):
        schedule("OneCycle", **{**given, **options})


def test_one_cycle_rises_to_one_and_falls_to_its_end() -> None:
    factor = OneCycle(rise=0.3, start=0.04, end=0.0, max_steps=100)
    values = [factor(step) for step in range(101)]
    assert values[0] == pytest.approx(0.04)
    assert values[30] == pytest.approx(1.0)
    assert values[100] == pytest.approx(0.0)
    assert values[:31] == sorted(values[:31])
    assert values[30:] == sorted(values[30:], reverse=True)
    assert factor(15) == pytest.approx(0.52)

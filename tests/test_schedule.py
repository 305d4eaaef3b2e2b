"""Learning-rate factors at the steps that matter."""

from typing import Any

import pytest

from comining.training.schedule import OneCycle, WarmupMultiStep


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


@pytest.mark.parametrize("milestones", [[5, 3], [3, 3], [0], [10], [3, 11]])
def test_bad_milestones_are_refused(milestones: list[int]) -> None:
    with pytest.raises(ValueError, match="milestones"):
        WarmupMultiStep(
            warmup_steps=0, warmup_start=0.1, milestones=milestones, gamma=0.1, max_steps=10
        )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"warmup_steps": 10}, r"schedule\.warmup_steps=10 reach beyond trainer\.max_steps=10"),
        ({"warmup_steps": -1}, r"schedule\.warmup_steps must not be negative, got -1"),
        ({"warmup_start": -0.1}, r"schedule\.warmup_start must lie in 0 \.\.\. 1, got -0\.1"),
        ({"gamma": float("nan")}, r"schedule\.gamma must lie in 0 \.\.\. 1, got nan"),
        ({"gamma": 10.0}, r"schedule\.gamma must lie in 0 \.\.\. 1, got 10"),
    ],
)
def test_other_bad_options_are_named(options: dict[str, float], words: str) -> None:
    given: Any = {"warmup_steps": 0, "warmup_start": 0.1, "milestones": [5], "gamma": 0.1}
    with pytest.raises(ValueError, match=words):
        WarmupMultiStep(**{**given, **options}, max_steps=10)


@pytest.mark.parametrize(("name", "value"), [("rise", 1.0), ("start", -1.0), ("end", 1.5)])
def test_bad_shares_of_one_cycle_are_named(name: str, value: float) -> None:
    given = {"rise": 0.3, "start": 0.04, "end": 0.0, name: value}
    with pytest.raises(ValueError, match=rf"schedule\.{name} must lie"):
        OneCycle(**given, max_steps=10)


def test_one_cycle_rises_to_one_and_falls_to_its_end() -> None:
    factor = OneCycle(rise=0.3, start=0.04, end=0.0, max_steps=100)
    values = [factor(step) for step in range(101)]
    assert values[0] == pytest.approx(0.04)
    assert values[30] == pytest.approx(1.0)
    assert values[100] == pytest.approx(0.0)
    assert values[:31] == sorted(values[:31])
    assert values[30:] == sorted(values[30:], reverse=True)
    assert factor(15) == pytest.approx(0.52)

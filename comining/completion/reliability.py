"""The reliability diagram of probabilities."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from comining.completion.judge import CALIBRATION_BINS, Judgement

# Of Okabe and Ito (2008), for colour-blind people.
BLUE, ORANGE = "#0072B2", "#D55E00"


def draw_reliability(file: Path, judged: Judgement) -> list[Path]:
    """Draw the share of right proposals against their probability, and how many there are.

    Returns:
        The file; an empty list without proposals, or if matplotlib is not installed.
    """
    if not judged.calibration:
        return []
    if importlib.util.find_spec("matplotlib") is None:
        print('no diagram: matplotlib is missing, pip install -e ".[report]"', file=sys.stderr)
        return []
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    shares, counts = figure.subplots(2, height_ratios=[3, 1], sharex=True)
    probability, right, number = zip(*judged.calibration, strict=True)
    shares.plot([0, 1], [0, 1], color="0.6", linestyle="--", label="perfectly calibrated")
    shares.plot(probability, right, "o-", color=BLUE, label="proposals")
    shares.set_ylabel("share of right proposals")
    shares.set_ylim(-0.02, 1.02)
    shares.legend(loc="upper left", frameon=False)
    shares.set_title(f"expected calibration error {judged.calibration_error:.3f}", fontsize=10)
    width = 1 / CALIBRATION_BINS
    bins = [min(int(p * CALIBRATION_BINS), CALIBRATION_BINS - 1) * width for p in probability]
    counts.bar(bins, number, width=width, align="edge", color=ORANGE, edgecolor="white")
    counts.set_ylabel("proposals")
    counts.set_xlabel("probability")
    counts.set_xlim(0, 1)
    figure.savefig(file, dpi=120)
    return [file]

"""Timing several ways to do one thing against each other, fairly, on a machine that others use too.

The variants of a comparison take turns in one process, so that what slows the machine down for a
while slows all of them. A ratio is taken within each round, and the median over the rounds is
reported with the distance between the quartiles as its spread.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("torch", "torchvision", "pycocotools", "faster-coco-eval", "pillow")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass
class Ratio:
    """Of two variants, over the rounds."""

    ratio: float  # median
    spread: float  # between the quartiles


def parser(description: str) -> argparse.ArgumentParser:
    """The options that all benchmarks share."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--device", default="cpu", help="cpu or cuda")
    options.add_argument("--json", type=Path, help="write {name: {ratio, spread}} to this file")
    options.add_argument("--rounds", type=int, default=20, help="at the most")
    options.add_argument(
        "--seconds", type=float, help="no round begins after so much time in a comparison"
    )
    options.add_argument(
        "--clock",
        choices=tuple(CLOCKS),
        default="wall",
        help="cpu leaves out the time that other processes had: for one thread on a shared machine",
    )
    options.add_argument("--quick", action="store_true", help="tiny, to see that it runs")
    return options


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleave(
    variants: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    rounds: int,
    seconds: float,
    clock: str,
    warmup: int = 1,
) -> dict[str, list[float]]:
    """Seconds of every variant in every round.

    Args:
        rounds: at the most; at least two are made, whatever they take.
        seconds: no round begins later than this after the first one.
        clock: one of :data:`CLOCKS`.
        warmup: rounds beforehand that are not counted.
    """
    now = CLOCKS[clock]
    names = list(variants)
    taken: dict[str, list[float]] = {name: [] for name in names}
    begin = time.perf_counter()
    for number in range(-warmup, rounds):
        if number == 0:
            begin = time.perf_counter()
        if number >= 2 and time.perf_counter() - begin > seconds:
            break
        # Another one begins every round: none always runs in the wake of the same neighbour.
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            synchronize(device)
            start = now()
            variants[name]()
            synchronize(device)
            if number >= 0:
                taken[name].append(now() - start)
    return taken


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Ratio:
    """Round by round."""
    ratios = [a / b for a, b in zip(numerator, denominator, strict=True)]
    lower, _, upper = statistics.quantiles(ratios, n=4, method="inclusive")
    return Ratio(statistics.median(ratios), upper - lower)


def peak_memory(run: Callable[[], object], device: torch.device) -> float:
    """MiB that ``run`` takes at its peak beyond what was there before; NaN if nobody can tell."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    try:
        # What earlier steps freed and the C library keeps would serve this one unseen.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew (man 5 proc)
        before = _status("VmRSS")
        run()
        return (_status("VmHWM") - before) / 2**10
    except (OSError, AttributeError):  # not Linux, or another C library
        run()
        return float("nan")


def _status(key: str) -> int:
    """A line of /proc/self/status, KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))


def machine(device: torch.device) -> str:
    """Processor, threads and versions."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":", 1)[1].strip() if names else cpu
    parts = [f"{cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} threads used"]
    if device.type == "cuda":
        parts.append(torch.cuda.get_device_name(device))
    if hasattr(os, "getloadavg"):
        parts.append(f"load {os.getloadavg()[0]:.1f}")
    for package in PACKAGES:
        try:
            parts.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            parts.append(f"no {package}")
    return ", ".join([*parts, f"Python {platform.python_version()}"])


def report_times(taken: Mapping[str, Sequence[float]], peaks: Mapping[str, float]) -> None:
    """One line a variant: fastest and median time, peak memory."""
    for name, seconds in taken.items():
        best, median = min(seconds) * 1e3, statistics.median(seconds) * 1e3
        peak = f"{peaks[name]:8.0f} MiB at the peak" if name in peaks else ""
        print(f"  {name:24} {best:10.1f} ms best {median:10.1f} ms median {peak}")
    rounds = min(map(len, taken.values()))
    print(f"  {rounds} rounds, the variants in turns")


def report_ratios(ratios: Mapping[str, Ratio], file: Path | None) -> None:
    """Print the ratios, and write them where they are wanted."""
    for name, one in ratios.items():
        print(f"{name:30} {one.ratio:8.3f}  spread {one.spread:.3f}")
    if file is not None:
        content = {name: asdict(one) for name, one in ratios.items()}
        file.write_text(json.dumps(content, indent=2) + "\n")

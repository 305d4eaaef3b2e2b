"""One training step with weights and activations in the channels-last layout, and without.

python -m benchmarks.layout [--backbone efficientnet_lite0] [--batch 8] [--json FILE]

Both variants are the step of ``method=joint`` on the same views: the same weights, the same images
of the same size, and a learning rate of zero. The options are those of :mod:`benchmarks.step`.
"""

from __future__ import annotations

import argparse
import functools

from benchmarks import measure
from benchmarks.setting import Setting
from benchmarks.step import add_setting, with_defaults


def arguments(given: list[str] | None) -> argparse.Namespace:
    """Options; by default the network and the image size of ``experiment=own`` on a CPU."""
    options = measure.parser("One training step in two memory layouts.")
    add_setting(options)
    options.set_defaults(height=224, width=320, backbone="efficientnet_lite0")
    return with_defaults(options.parse_args(given))


def settings(chosen: argparse.Namespace) -> dict[str, Setting]:
    """The same detector in both layouts."""
    layouts = {"channels_last": True, "contiguous": False}
    return {
        name: Setting(argparse.Namespace(**vars(chosen) | {"channels_last": channels_last}))
        for name, channels_last in layouts.items()
    }


def main(given: list[str] | None = None) -> None:
    """Run the comparison."""
    chosen = arguments(given)
    of_layout = settings(chosen)
    device = of_layout["contiguous"].device
    print(measure.machine(device))
    print(
        f"{chosen.detector}, {chosen.backbone}, {chosen.height}x{chosen.width}, "
        f"K={chosen.classes}, {chosen.batch} pairs of views, {chosen.precision}"
    )
    taken = measure.interleave(
        {
            name: functools.partial(one.ours, one.methods["joint"])
            for name, one in of_layout.items()
        },
        device,
        rounds=chosen.rounds,
        seconds=chosen.seconds,
        clock=chosen.clock,
    )
    measure.report_times(taken, {})
    one, other = taken.values()
    measure.report_ratios({"channels_last_over_contiguous": measure.ratio(one, other)}, chosen.json)


if __name__ == "__main__":
    main()

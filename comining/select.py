"""Choose among methods, thresholds or options: ``python -m comining.select RUN...``.

Ranks runs by the validation split, mean over seeds, best first: by AP where it is fully annotated,
else by a recall that missing annotations do not lower. See docs/selection.md. Reads the
``result.json`` files below the directories, and writes nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from comining.errors import UserError, one_line
from comining.reports.ranking import rank_folders


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m comining.select", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="directories of runs or sweeps")
    parser.add_argument(
        "--annotated", type=float, metavar="SHARE",
        help="of the objects of the validation split, from 0 to 1, roughly",
    )  # fmt: skip
    parser.add_argument("--by", metavar="NUMBER", help="one of COCO's 12 numbers instead")
    given = parser.parse_args(arguments)
    try:
        print(rank_folders(given.folders, given.by, given.annotated))
    except (UserError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The page of results out of committed records: ``python -m comining.study``.

``python -m comining.study collect RUN ... --to results/bccd`` copies the results of finished and
diverged runs, without the paths of the machine. ``python -m comining.study write results
RESULTS.md`` writes the page and, into ``results/plots``, its plots (they need matplotlib:
``pip install -e ".[report]"``).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from comining.errors import UserError, one_line
from comining.reports.study_files import collect
from comining.reports.study_page import write_page


def main(arguments: Sequence[str] | None = None) -> int:
    """The commands; returns the exit code: 2 for bad input or an output that is not writable."""
    parser = argparse.ArgumentParser(prog="python -m comining.study", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    copying = commands.add_parser("collect", help="copy results of runs")
    copying.add_argument("runs", nargs="+", type=Path, help="directories of runs or sweeps")
    copying.add_argument("--to", required=True, type=Path, help="folder of the study")
    writing = commands.add_parser("write", help="write the page")
    writing.add_argument("folder", type=Path, help="holds a folder per study")
    writing.add_argument("page", type=Path, help="the Markdown file to write")
    given = parser.parse_args(arguments)
    try:
        if given.command == "collect":
            written, left_out = collect(given.runs, given.to)
            print(f"{len(written)} results in {given.to}, {len(left_out)} left out")
            for path, status in left_out.items():
                print(f"left out, {status}: {path}")
        else:
            write_page(given.folder, given.page)
            print(f"written: {given.page}")
    except (UserError, OSError) as error:
        message = one_line(error)
        print(f"error: {message}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""``python -m comining.study``: the page of results out of committed ``result.json`` files.

``python -m comining.study collect RUN ... --to results/bccd`` copies results of finished runs,
without the paths of the machine; ``python -m comining.study write results RESULTS.md`` writes the
page and, into ``results/plots``, its plots (they need ``pip install -e ".[report]"``). Every figure
comes from these files; a cell that has not been run is shown as a dash.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from comining.reports.study_page import write
from comining.reports.study_results import collect


def main(given: Sequence[str] | None = None) -> None:
    """The two commands."""
    parser = argparse.ArgumentParser(prog="python -m comining.study", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    copying = commands.add_parser("collect", help="copy results of runs")
    copying.add_argument("runs", nargs="+", type=Path)
    copying.add_argument("--to", required=True, type=Path)
    writing = commands.add_parser("write", help="write the page")
    writing.add_argument("folder", type=Path)
    writing.add_argument("page", type=Path)
    chosen = parser.parse_args(given)
    if chosen.command == "collect":
        print(f"{collect(chosen.runs, chosen.to)} results in {chosen.to}")
    else:
        write(chosen.folder, chosen.page)
        print(f"written: {chosen.page}")


if __name__ == "__main__":
    main()

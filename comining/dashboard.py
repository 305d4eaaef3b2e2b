"""The dashboard of a W&B project: ``python -m comining.dashboard --project P``.

Saves a workspace with panels for pseudo-labels, their quality, AP and losses. ``--json FILE``
writes it to a file instead, without key or network. Needs ``pip install -e ".[dashboard]"``.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from comining.errors import UserError, one_line
from comining.reports.wandb_workspace import (
    build_workspace,
    dashboard_sections,
    save_workspace,
    write_workspace,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 2 where the extra or a key is missing, or W&B refuses."""
    parser = argparse.ArgumentParser(prog="python -m comining.dashboard", description=__doc__)
    parser.add_argument("--project", required=True, help="W&B project of the runs (logger.project)")
    parser.add_argument("--entity", help="user or team; default: WANDB_ENTITY, or your own account")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the workspace, save nothing"
    )
    parser.add_argument(
        "--runs", nargs="+", type=Path, metavar="DIR", default=[],
        help="only panels of figures that these runs or sweeps have logged",
    )  # fmt: skip
    given = parser.parse_args(arguments)
    entity = given.entity or os.environ.get("WANDB_ENTITY") or None
    try:
        sections = dashboard_sections(given.runs)
        if given.json is None:
            print(f"saved: {save_workspace(given.project, entity, sections)}")
        else:
            write_workspace(build_workspace(given.project, entity, sections), given.json)
            print(f"written: {given.json}")
    except (UserError, OSError) as error:
        message = one_line(error)
        print(f"error: {message}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

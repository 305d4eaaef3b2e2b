"""``metrics.csv``, which every run writes whatever ``logger=`` is."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from comining.tracking.tracker import Tracker


class MetricsFile(Tracker):
    """Writes ``metrics.csv``: one row per call of :meth:`figures`, missing figures left empty.

    A resumed run continues the file. Rows that the stopped run wrote after its last checkpoint
    are dropped, because these steps are done again. (Lightning's own CSV logger deletes the file.)

    Args:
        folder: the run directory.
    """

    def __init__(self, folder: str | Path):
        self.file = Path(folder) / "metrics.csv"
        self.columns: list[str] = []

    def start(self, config: Mapping[str, Any], step: int, rows: int) -> None:
        earlier = self._read() if rows else []
        if earlier:
            self.columns = list(earlier[0])
            self._rewrite(earlier[:rows])
        else:
            self.columns = []
            self.file.unlink(missing_ok=True)

    def figures(self, row: Mapping[str, float], step: int) -> None:
        cells: dict[str, Any] = {"step": step, **row}
        new = [name for name in cells if name not in self.columns]
        if new:
            earlier = self._read() if self.columns else []
            self.columns += new
            self._rewrite([*earlier, cells])
            return
        with self.file.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns).writerow(cells)

    def _read(self) -> list[dict[str, Any]]:
        if not self.file.exists():
            return []
        with self.file.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        # A killed run may leave half a row.
        return [row for row in rows if None not in row.values() and row["step"].isdigit()]

    def _rewrite(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        draft = self.file.with_name(f".{self.file.name}.{os.getpid()}")
        with draft.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, restval="")
            writer.writeheader()
            writer.writerows(rows)
        os.replace(draft, self.file)

"""One thread for each process of the suite, and for each that a test starts; shared records."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

from pathlib import Path

import pytest

from comining.runs.result import RunResult
from tests.recorded import RunFolder, train_records


@pytest.fixture(scope="session")
def trained(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, dict[tuple[str, str], RunResult]]:
    """Directories of tiny runs that ended in every way, and (status, method) -> their records."""
    folder = tmp_path_factory.mktemp("trained")
    return folder / "runs", train_records(folder)


@pytest.fixture
def runs(tmp_path: Path, trained: tuple[Path, dict[tuple[str, str], RunResult]]) -> RunFolder:
    """An empty folder for copies of real records with other numbers."""
    return RunFolder(tmp_path / "runs", trained[1])

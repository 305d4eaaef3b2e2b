"""One thread for each process of the suite, and for each that a test starts; shared records."""

import logging
import os
import shutil
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

from pathlib import Path

import pytest

from comining.runs.result import RunResult
from tests.recorded import RunFolder, train_records


@pytest.fixture(autouse=True)
def logging_of_one_test() -> Iterator[None]:
    """What a run in this process has set up to log ends with its test.

    Hydra leaves a handler on the root logger that writes to the standard output of that test, which
    pytest has closed by the time that another test logs.
    """
    _forget_handlers()
    yield
    _forget_handlers()


def _forget_handlers() -> None:
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if not type(handler).__module__.startswith("_pytest."):
            root.removeHandler(handler)
    root.setLevel(logging.WARNING)


@pytest.fixture(scope="module")
def module_path(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A folder for what the tests of one file share.

    It goes with the last of them, as ``tmp_path`` goes with its test: the runs of the whole suite
    would take 19 GB. Where a test failed, it stays.
    """
    failed = request.session.testsfailed
    folder = tmp_path_factory.mktemp(request.module.__name__.rpartition(".")[2])
    yield folder
    if request.session.testsfailed == failed:
        shutil.rmtree(folder)


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

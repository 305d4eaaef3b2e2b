"""The owner of a run directory: no two runs write into one."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import logging
import os
import platform
import secrets
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Self

from comining.errors import ConfigError, OutputError, UserError
from comining.runs.files import replace_file
from comining.runs.lock import try_lock
from comining.runs.result import REPLACED, RunResult

OWNER = ".owner"
WANDB_ID = "wandb_id"
LOG = "train.log"
# Files that only a run or an evaluation writes. (Folders may hold others: SLURM's logs, data.)
RUN_FILES = (
    "result.json",
    "config.yaml",
    "overrides.yaml",
    "metrics.csv",
    "checkpoints",
    "pictures",
    "evaluation.json",
    "coco_results.json",
)
# Errors of the disk, not of a single file.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
WAIT_FOR_OWNER = 60.0  # seconds, until another node sees what rank 0 has written

# Directories that this process owns; a file lock does not exclude the process that holds it.
_owned: set[Path] = set()


class DirectoryTakenError(ConfigError):
    """A directory belongs to another run."""


class RunDirectory:
    """A directory that one run owns exclusively, until :meth:`release` or the end of its process.

    Created by :meth:`claim` in the process that owns it, by :meth:`join` in the run's others.

    Attributes:
        path: absolute.
        owned: whether this process is the one that writes the run's records.
        begun: whether the run has written anything worth keeping, see :meth:`begin`.
    """

    def __init__(self, path: Path, owned: bool):
        self.path = path
        self.owned = owned
        self.begun = False
        self.replaced: Path | None = None  # where the earlier content is
        self._new = False  # there was no run in it
        self._fresh = False  # the owner file is ours
        self._made: list[Path] = []  # folders made for it, innermost first
        self._descriptor = -1
        self._log: logging.Handler | None = None

    # -- becoming the owner ------------------------------------------------------------------

    @classmethod
    def claim(
        cls,
        path: Path,
        *,
        held: Literal["refuse", "resume", "replace"],
        numbered: bool = False,
        advice: str = "",
    ) -> Self:
        """Take a directory for this process, or fail without changing anything.

        Args:
            path: made where it is missing.
            held: what to do if the directory holds a run that has ended: refuse it, take it over,
                or move the content into the folder ``replaced`` beside it.
            numbered: if it is taken, try ``NAME_2``, ``NAME_3``, ... instead of refusing.
            advice: what else the user can do, for the error message.

        Raises:
            DirectoryTakenError: it belongs to a run that is still running, or holds another one.
            ConfigError: it cannot be made or written.
        """
        path = Path(os.path.abspath(path))
        names = (path.with_name(f"{path.name}_{n}") for n in itertools.count(2))
        for name in itertools.chain([path], names if numbered else ()):
            try:
                return cls._claim(name, held, advice)
            except DirectoryTakenError:
                if not numbered:
                    raise
            except OSError as error:
                raise ConfigError(f"{name}: cannot be a run directory, {error.strerror}") from error
        raise AssertionError("the names never end")

    @classmethod
    def _claim(cls, path: Path, held: str, advice: str) -> Self:
        run = cls(path, owned=True)
        run._open(path)
        try:
            if any((path / name).exists() for name in RUN_FILES):
                if held == "refuse":
                    raise DirectoryTakenError(
                        f"{path} holds another run ({_status(path)}); {advice}"
                    )
                if held == "replace":
                    run._replace()
            run._new = not any((path / name).exists() for name in RUN_FILES)
            run._sign()
        except BaseException:
            run.abandon()
            raise
        return run

    def _open(self, path: Path) -> None:
        """Make the directory and lock its owner file."""
        if path in _owned:
            raise DirectoryTakenError(f"{path} belongs to another run of this process")
        while True:
            self._made += _make(path)
            file = path / OWNER
            try:
                descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
                fresh = True
            except FileExistsError:
                try:
                    descriptor = os.open(file, os.O_RDWR)
                    fresh = False
                except FileNotFoundError:
                    continue  # its owner has just released it
            except FileNotFoundError:
                continue  # its owner has just removed the directory
            if try_lock(descriptor) is False:
                content = os.read(descriptor, 4096)
                os.close(descriptor)
                raise DirectoryTakenError(
                    f"{path} belongs to a run that is still running{_who(content)}; wait for its "
                    "end, or choose another directory"
                )
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), file.stat()):
                    break
            os.close(descriptor)  # it was moved or removed before the lock was ours
        self._descriptor = descriptor
        self._fresh = fresh
        _owned.add(path)

    def _replace(self) -> None:
        """Move the content aside; the old owner file is locked until the new one is."""
        before = self._descriptor
        folder = self.path.parent / REPLACED
        folder.mkdir(exist_ok=True)
        stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        for number in itertools.count(1):
            suffix = "" if number == 1 else f"_{number}"
            target = folder / f"{self.path.name}_{stamp}{suffix}"
            if not target.exists():
                break
        os.rename(self.path, target)
        self.replaced = target
        self._descriptor = -1
        _owned.discard(self.path)
        try:
            self._open(self.path)
        finally:
            os.close(before)

    def _sign(self) -> None:
        """Say in the owner file who owns the directory."""
        content = {
            "host": platform.node(), "pid": os.getpid(),
            "since": datetime.now().isoformat(timespec="seconds"),
        }  # fmt: skip
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        os.write(self._descriptor, (json.dumps(content) + "\n").encode())

    def create_wandb_id(self) -> None:
        """Create the W&B id of the run, unless it has one: 8 hexadecimal digits.

        Done here, because a run may have several processes and several starts, but only one id.
        """
        if not (self.path / WANDB_ID).exists():
            name = secrets.token_hex(4).encode()
            replace_file(self.path / WANDB_ID, lambda file: file.write(name))

    @classmethod
    def join(cls, path: Path, wait_s: float = WAIT_FOR_OWNER) -> Self:
        """Use the directory that another process of this run owns.

        Raises:
            ConfigError: it cannot be seen from here.
        """
        deadline = time.monotonic() + wait_s
        while not (path / OWNER).exists():
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"{path}: this process ({platform.node()}) does not see the run directory of "
                    "rank 0; all nodes need the same hydra.run.dir on a file system that they share"
                )
            time.sleep(0.1)
        return cls(path, owned=False)

    # -- using it ----------------------------------------------------------------------------

    def begin(self) -> None:
        """Keep the directory from here on, however the run ends."""
        self.begun = True
        if self.owned and self.replaced is not None:
            print(
                f"moved aside: the earlier content of {self.path} is in {self.replaced}", flush=True
            )

    def log_to_file(self) -> None:
        """Write the log of this process to ``train.log``, too."""
        if self.owned:
            root = logging.getLogger()
            self._log = _LogFile(self.path / LOG, delay=True, encoding="utf-8")
            self._log.setFormatter(root.handlers[0].formatter if root.handlers else None)
            root.addHandler(self._log)

    def explained(self, error: Exception) -> Exception:
        """A one-line error about a file that could not be written; any other error unchanged."""
        if not isinstance(error, OSError):
            return error
        file = Path(os.fsdecode(error.filename or self.path))
        within = error.filename is not None and file.is_relative_to(self.path)
        if not within and error.errno not in DISK_ERRORS:
            return error
        return OutputError(f"{file}: cannot be written, {error.strerror}")

    # -- and leaving it ----------------------------------------------------------------------

    def release(self) -> None:
        """Give up the directory, with its content; it can be resumed from now on."""
        if self._log is not None:
            logging.getLogger().removeHandler(self._log)
            self._log.close()
            self._log = None
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            _owned.discard(self.path)

    def abandon(self) -> None:
        """Undo the claim of a run that has not begun, as if it had never been started."""
        if self._log is not None:
            self._log.close()
        if self._descriptor >= 0 and self._new:
            for name in (LOG, WANDB_ID, OWNER):
                (self.path / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # it holds something else, or another run begins
                for folder in self._made:
                    folder.rmdir()
            if self.replaced is not None:
                os.rename(self.replaced, self.path)
                with contextlib.suppress(OSError):  # earlier ones are in it
                    self.replaced.parent.rmdir()
        elif self._descriptor >= 0 and self._fresh:
            (self.path / OWNER).unlink(missing_ok=True)
        self.release()

    @contextlib.contextmanager
    def until_end(self) -> Iterator[Self]:
        """Release the directory at the end, or abandon it if bad input ends the run at once."""
        try:
            yield self
        except (UserError, OSError) as error:
            if not self.begun:
                self.abandon()
            raise self.explained(error) from error.__cause__
        finally:
            self.release()


class _LogFile(logging.FileHandler):
    """A log file whose failures end no run; the lines are on standard output anyway."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # of logging
        pass


def _make(path: Path) -> list[Path]:
    """Make a folder and its parents; those that were missing, innermost first."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    return missing


def _status(path: Path) -> str:
    """How the run in a directory ended, in a few words."""
    if not (path / "result.json").exists():
        return "without a result"
    try:
        return RunResult.read(path / "result.json").status
    except UserError:
        return "its result.json cannot be read"


def _who(content: bytes) -> str:
    """The owner named in an owner file; "" if it is not written yet."""
    try:
        owner: Any = json.loads(content)
        return f" (process {owner['pid']} on {owner['host']})"
    except (ValueError, KeyError, TypeError):
        return ""

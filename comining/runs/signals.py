"""SIGTERM, Ctrl-C and SLURM's warning: end at the next step, with a checkpoint."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Self

# What a scheduler or a person sends. SLURM sends SIGUSR1 ahead of the time limit where the job
# asks for it: #SBATCH --signal=USR1@120
# (Windows has no SIGUSR1.)
CAUGHT = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
)


class Interrupted(BaseException):
    """The run was told to stop. Not an error, and not to be caught as one.

    Args:
        signum: the signal; SIGPIPE stands for closed standard output.
        step: the optimizer step after which it stopped, with its checkpoint; None outside training.
    """

    def __init__(self, signum: int, step: int | None = None):
        name = signal.Signals(signum).name
        closed = ": the output was closed" if name == "SIGPIPE" else ""
        super().__init__(f"stopped by {name}{closed}")
        self.signum = signum
        self.step = step

    @property
    def exit_code(self) -> int:
        """As a shell reports a process that died of the signal: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.signum


class Signals:
    """While entered, catches the signals that end a run.

    In training (:attr:`deferred`) a signal is noted, and training stops after its step, when a
    checkpoint can be written; a second one, or one at any other time, raises :class:`Interrupted`
    at once. Prediction does the same, picture by picture.

    Attributes:
        unit: what is finished before a deferred signal takes effect, for the message.
    """

    def __init__(self) -> None:
        self.unit = "step"
        self.deferred = False
        self.received = 0  # the first signal that came in training
        self._before: dict[int, object] = {}
        self._process = os.getpid()

    def __enter__(self) -> Self:
        self._process = os.getpid()
        self.install()
        return self

    def install(self) -> None:
        """Install the handlers; called again after a library (Lightning) has replaced them."""
        if threading.current_thread() is not threading.main_thread():
            return  # Python delivers signals to the main thread only
        for signum in CAUGHT:
            handler = signal.signal(signum, self._handle)
            self._before.setdefault(signum, handler)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]  # what signal() returned
        self._before = {}
        self.deferred, self.received, self.unit = False, 0, "step"

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A loader's worker, see comining.data.loading; here where that has no effect.
            if signum == signal.SIGTERM:
                os._exit(128 + signum)
            return  # Ctrl-C reaches it, too, but the main process ends it in good time
        self.stop(signum)

    def stop(self, signum: int) -> None:
        """End the run as a signal does, without the signal.

        Raises:
            Interrupted: unless training stops after its step.
        """
        if os.getpid() != self._process:
            return  # a worker of the data loader; the main process does the same
        if self.deferred and not self.received:
            self.received = signum
            print(f"{signal.Signals(signum).name}: stopping after this {self.unit}", flush=True)
            return
        if self.deferred and signum == signal.SIGPIPE:
            return  # it stops already
        raise Interrupted(signum)


# Of this process, as the handlers themselves are.
SIGNALS = Signals()

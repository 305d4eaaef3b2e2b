"""Worker processes of data loaders."""

from __future__ import annotations

import os
import signal
import threading


def leave_signals_to_main(worker: int) -> None:
    """Make a worker end only when its main process says so (``worker_init_fn`` of a loader).

    Schedulers, and ``timeout``, send SIGTERM to all processes of a job. A worker that dies of it
    makes its main process fail in place of stopping after the step. A worker whose main process has
    died ends by itself.

    Args:
        worker: its number; not used.
    """
    if not hasattr(signal, "sigwaitinfo"):
        return  # macOS and Windows do not say who has sent a signal
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_by_main, args=(os.getppid(),), daemon=True).start()


def _end_by_main(main: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != main:
        pass
    os._exit(0)

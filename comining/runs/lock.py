"""A lock that ends with the process that holds it, however it ends."""

from __future__ import annotations

import errno


def try_lock(descriptor: int) -> bool | None:
    """Lock an open file for this process alone, without waiting.

    The lock belongs to the process: a worker forked from it does not hold it, and closing any
    descriptor of the file in this process releases it.

    Returns:
        True: this process holds it; False: another one does; None: neither the system (Windows) nor
        the file system can lock.
    """
    try:
        import fcntl
    except ModuleNotFoundError:
        return None
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        return None
    return True

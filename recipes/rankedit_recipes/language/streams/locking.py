"""One writer at a time in a stream's folder."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

from rankedit_recipes.language.errors import LanguageError

try:
    import fcntl
except ImportError:  # Windows; see `locked`
    fcntl = None  # type: ignore[assignment]

LOCK = "stream.lock"
# Writing takes milliseconds, on a busy network a second.
_PATIENCE = 60.0
_PAUSE = 0.02
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextlib.contextmanager
def locked(folder: Path, call: str) -> Iterator[None]:
    """Hold the folder's lock; the kernel gives it back when the process ends, however it ends.

    Raises:
        LanguageError: another process holds it for a minute; the file system, or the operating
            system, has no such locks.
        OSError: the lock's file cannot be made.
    """
    if fcntl is None:
        # Without a lock two writers would lose facts in silence, and one that is never tested on
        # such a system is none.
        raise LanguageError(
            f"{call}: '{folder}' cannot be locked: streams in folders need fcntl.flock, which this "
            "operating system lacks; keep the stream in memory (folder=None) and save its edits."
        )
    descriptor = _acquired(folder / LOCK, call)
    try:
        yield
    finally:
        # By name: a child process that was forked meanwhile would hold what is only closed here.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _acquired(file: Path, call: str) -> int:
    deadline = time.monotonic() + _PATIENCE
    while True:
        descriptor = _tried(file, call)
        if descriptor is not None:
            return descriptor
        if time.monotonic() > deadline:
            raise LanguageError(
                f"{call}: another process has held '{file}' for {_PATIENCE:.0f} seconds; nothing "
                "was written. Wait until it has finished, or end it, and make the call again."
            )
        time.sleep(_PAUSE)


def _tried(file: Path, call: str) -> int | None:
    """A descriptor that holds the lock; None if somebody else does."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Somebody may have removed the file meanwhile; the next writer would lock another one.
        if os.path.samestat(os.fstat(descriptor), file.stat()):
            return descriptor
    except (BlockingIOError, PermissionError, FileNotFoundError):
        pass
    except OSError as error:
        os.close(descriptor)
        if error.errno in _NO_LOCKS:
            raise LanguageError(
                f"{call}: '{file}' cannot be locked ({error.strerror}), and without a lock two "
                "writers would lose facts; keep the stream on a file system that has locks."
            ) from error
        raise
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None

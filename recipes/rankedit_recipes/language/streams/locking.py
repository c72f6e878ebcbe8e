"""One writer at a time in a stream's folder."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

from rankedit.interrupt import completely
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
    lock = _Lock(folder / LOCK, call)
    try:
        lock.acquire()
        yield
    finally:
        lock.release()


class _Lock:
    """A file that is locked; known by its descriptor before it is, so that none is left behind."""

    _descriptor: int | None = None

    def __init__(self, file: Path, call: str) -> None:
        self._file, self._call = file, call

    def acquire(self) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not self._tried():
            self.release()
            if time.monotonic() > deadline:
                raise LanguageError(
                    f"{self._call}: another process has held '{self._file}' for {_PATIENCE:.0f} "
                    "seconds; nothing was written. Wait until it has finished, or end it, and make "
                    "the call again."
                )
            time.sleep(_PAUSE)

    def _tried(self) -> bool:
        self._descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Somebody may have removed the file meanwhile; the next writer would lock another one.
            return os.path.samestat(os.fstat(self._descriptor), self._file.stat())
        except (BlockingIOError, PermissionError, FileNotFoundError):
            return False
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            raise LanguageError(
                f"{self._call}: '{self._file}' cannot be locked ({error.strerror}), and without a "
                "lock two writers would lose facts; keep the stream where there are locks."
            ) from error

    def release(self) -> None:
        # By name: a child process that was forked meanwhile would hold what is only closed here.
        completely([self._unlock, self._close])

    def _unlock(self) -> None:
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __del__(self) -> None:
        # Ctrl-C may come between the end of the work and the call that ends the lock.
        self.release()

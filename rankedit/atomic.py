"""Write a file so that a reader only ever sees the old one or the new one, whole."""

import contextlib
import hashlib
import os
import re
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: nothing is known of other writers there, and no litter is removed
    fcntl = None  # type: ignore[assignment]

_SUFFIX = ".rankedit-tmp"
_LOCK_SUFFIX = ".rankedit-lock"
_LONGEST_NAME = 180  # bytes; most file systems stop at 255 and our additions need about 50
# A new lock may be taken for an old one and removed at once; eight times in a row it is not that.
_ATTEMPTS = 8


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside `path`; when the block ends well it becomes `path` in one step.

    The data are on the disk (`fsync`) before the name changes, so a power cut, `kill -9` or a full
    disk leaves the previous file untouched. The new file has the mode that the umask gives, also
    when the writer made it private. If the block raises, the temporary file is removed. What a
    killed process left behind is removed at the next write of the same file; live writers, in other
    containers too, and other machines in shared folders are never disturbed: each writer holds a
    lock (`flock`) on a file beside the temporary one.

    A symbolic link at `path` is replaced, not followed.

    Args:
        path: where the file shall be. Its folder must exist.

    Yields:
        The path to write to. It exists already, empty; it may be overwritten or replaced.

    Raises:
        FileNotFoundError: the folder of `path` does not exist.
        IsADirectoryError: `path` is a folder.
        OSError: the disk is full, the folder cannot be written, ...; `path` is as it was.
    """
    target = Path(path)
    check_target(target)
    remove_stale(target)
    temporary, lock, descriptor = _locked(target)
    try:
        mode = _create(temporary)
        yield temporary
        temporary.chmod(mode)
        sync(temporary)
        temporary.replace(target)
        sync_folder(target.parent)
    finally:
        # After a rename nothing is there any more; after a failure this is the litter. The lock
        # goes last: whoever finds none takes the temporary file for litter.
        temporary.unlink(missing_ok=True)
        lock.unlink(missing_ok=True)
        if descriptor is not None:
            os.close(descriptor)


def check_target(target: Path) -> None:
    """Refuse what `atomic_write` could not write, before the work that is to be written.

    Raises:
        FileNotFoundError: its folder does not exist.
        IsADirectoryError: it is a folder.
    """
    if target.is_dir():
        msg = f"atomic_write: expected a file name, got the folder '{target}'; add a file name"
        raise IsADirectoryError(msg)
    if not target.parent.is_dir():
        msg = f"atomic_write: cannot write '{target}': its folder does not exist; create it first"
        raise FileNotFoundError(msg)


def _label(target: Path) -> str:
    """The target's name as it appears in the temporary one, shortened when it is too long."""
    if len(os.fsencode(target.name)) <= _LONGEST_NAME:
        return target.name
    return hashlib.sha256(os.fsencode(target.name)).hexdigest()[:32]


def _host() -> str:
    """A short mark of this machine: not every shared folder shares its locks."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _create(temporary: Path) -> int:
    """Create the file and return the mode it got, which is how one learns the umask safely."""
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return os.fstat(descriptor).st_mode & 0o777
    finally:
        os.close(descriptor)


def sync(file: Path) -> None:
    """Have a file's data on the disk before anything that relies on them."""
    descriptor = os.open(file, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable; only POSIX can open a folder."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_stale(target: Path) -> None:
    """Remove temporary files of `target` whose writer on this machine is gone.

    `atomic_write` does so by itself; call it where the file is removed and not written again.
    """
    begin = re.escape(f".{_label(target)}.{_host()}-")
    pattern = re.compile(rf"({begin}[0-9a-f]{{8}})({_SUFFIX}|{_LOCK_SUFFIX})")
    stems = {m[1] for entry in os.scandir(target.parent) if (m := pattern.fullmatch(entry.name))}
    for stem in stems:
        lock = target.with_name(stem + _LOCK_SUFFIX)
        # Who holds the lock may remove both: a writer that comes in between finds its lock gone.
        descriptor = _lock(lock)
        if descriptor is None:
            continue
        with contextlib.suppress(OSError):  # another user's litter stays
            target.with_name(stem + _SUFFIX).unlink(missing_ok=True)
            lock.unlink(missing_ok=True)
        os.close(descriptor)


def _locked(target: Path) -> tuple[Path, Path, int | None]:
    """Names of a new temporary file and of its lock, and the lock held, where locks are known."""
    for attempt in range(_ATTEMPTS):
        stem = f".{_label(target)}.{_host()}-{secrets.token_hex(4)}"
        lock = target.with_name(stem + _LOCK_SUFFIX)
        descriptor = _lock(lock)
        if descriptor is not None or attempt == _ATTEMPTS - 1:
            break
        lock.unlink(missing_ok=True)
    return target.with_name(stem + _SUFFIX), lock, descriptor


def _lock(file: Path) -> int | None:
    """A descriptor that holds the lock; None if somebody else does, or it cannot be known.

    Not on the temporary file itself, which writers may replace by another one. A process number
    says nothing: in two containers of one host name both writers may be number 1.
    """
    if fcntl is None:
        return None
    descriptor = -1
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), file.stat()):
            return descriptor
    except OSError:
        pass  # held, gone, another user's, or a file system without locks
    if descriptor >= 0:
        os.close(descriptor)
    return None

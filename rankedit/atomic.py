"""Write a file so that a reader only ever sees the old one or the new one, whole."""

import contextlib
import hashlib
import os
import re
import secrets
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

_SUFFIX = ".rankedit-tmp"
_LONGEST_NAME = 180  # bytes; most file systems stop at 255 and our additions need about 50
# What this process is writing now: a name with its own pid is stale unless it is here.
_writing: set[str] = set()
_writing_lock = threading.Lock()


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside `path`; when the block ends well it becomes `path` in one step.

    The data are on the disk (`fsync`) before the name changes, so a power cut, `kill -9` or a full
    disk leaves the previous file untouched. The new file has the mode that the umask gives, also
    when the writer made it private. If the block raises, the temporary file is removed. What a
    killed process left behind is removed at the next write of the same file; a live process of
    this machine and processes of other machines (shared folders) are never disturbed.

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
    _check_target(target)
    remove_stale(target)
    name = f".{_label(target)}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}{_SUFFIX}"
    temporary = target.with_name(name)
    with _writing_lock:
        _writing.add(name)
    try:
        mode = _create(temporary)
        yield temporary
        temporary.chmod(mode)
        sync(temporary)
        temporary.replace(target)
        _sync_folder(target.parent)
    finally:
        # After a rename nothing is there any more; after a failure this is the litter.
        temporary.unlink(missing_ok=True)
        with _writing_lock:
            _writing.discard(name)


def _check_target(target: Path) -> None:
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
    """A short mark of this machine: process numbers mean nothing on another one."""
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


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable; only POSIX can open a folder."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_stale(target: Path) -> None:
    """Remove temporary files of `target` whose process on this machine is dead.

    `atomic_write` does so by itself; call it where the file is removed and not written again.
    """
    pattern = re.compile(
        re.escape(f".{_label(target)}.{_host()}-") + r"(\d+)-[0-9a-f]{8}" + re.escape(_SUFFIX)
    )
    for entry in os.scandir(target.parent):
        match = pattern.fullmatch(entry.name)
        if match and not _in_use(entry.name, int(match[1])):
            Path(entry.path).unlink(missing_ok=True)


def _in_use(name: str, pid: int) -> bool:
    if pid == os.getpid():
        with _writing_lock:
            return name in _writing
    if os.name != "posix":  # there signal 0 would end the process instead of asking for it
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

"""A reader sees the old file or the new one, whole, whatever happens to the writer."""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rankedit import atomic
from rankedit.atomic import atomic_write

# The module alone: importing the package would import torch in every one of these processes.
ALONE = f"""
import importlib.util
spec = importlib.util.spec_from_file_location("atomic", {atomic.__file__!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
atomic_write = module.atomic_write
"""

WRITER = """
import sys
path, size = sys.argv[1], int(sys.argv[2])
print("ready", flush=True)
number = 0
while True:
    number = (number + 1) % 256
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        for _ in range(64):
            file.write(bytes([number]) * (size // 64))
"""

LIMITED = """
import resource, signal, sys
path, limit, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
try:
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        file.write(b"n" * size)
except OSError as error:
    print("refused", error.errno)
else:
    print("written")
"""


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_writes_and_replaces(tmp_path):
    target = tmp_path / "edit.bin"
    for content in (b"first", b"second"):
        with atomic_write(target) as temporary:
            assert temporary.parent == tmp_path
            assert temporary.name.endswith(".rankedit-tmp")
            assert not target.exists() or target.read_bytes() == b"first"
            temporary.write_bytes(content)
        assert target.read_bytes() == content
    assert names(tmp_path) == ["edit.bin"]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_mode_follows_the_umask_even_of_a_private_writer(tmp_path, umask):
    target = tmp_path / "edit.bin"
    before = os.umask(umask)
    try:
        with atomic_write(target) as temporary:
            temporary.unlink()
            os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))
    finally:
        os.umask(before)
    assert target.stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, error):
    target = tmp_path / "edit.bin"
    target.write_bytes(b"old")

    def write() -> None:
        with atomic_write(target) as temporary:
            temporary.write_bytes(b"half")
            raise error

    with pytest.raises(error):
        write()
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["edit.bin"]


def test_refuses_a_folder_and_a_missing_folder(tmp_path):
    with pytest.raises(IsADirectoryError, match="add a file name"), atomic_write(tmp_path):
        pass
    with (
        pytest.raises(FileNotFoundError, match="its folder does not exist; create it first"),
        atomic_write(tmp_path / "missing" / "edit.bin"),
    ):
        pass


def test_a_name_of_the_longest_length_works(tmp_path):
    target = tmp_path / ("n" * 255)
    with atomic_write(target) as temporary:
        temporary.write_bytes(b"x")
    assert names(tmp_path) == [target.name]


HOLDER = """
import sys
with atomic_write(sys.argv[1]) as temporary:
    if sys.argv[2] == "replace":
        temporary.unlink()
    temporary.write_bytes(b"theirs")
    print(temporary.name, flush=True)
    sys.stdin.readline()
"""


def holder(target: Path, how: str = "write") -> tuple[subprocess.Popen, str]:
    """A process that is in the middle of writing, and the name of its temporary file."""
    process = subprocess.Popen(
        [sys.executable, "-c", ALONE + HOLDER, target, how],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return process, process.stdout.readline().strip()


@pytest.mark.parametrize("how", ["write", "replace"])
def test_a_live_writer_keeps_its_file_and_a_killed_ones_goes(tmp_path, monkeypatch, how):
    """Numbers of processes mean nothing: another container's are not seen, or are ours."""
    target = tmp_path / "edit.bin"
    live, mine = holder(target, how)
    dead, litter = holder(target, how)
    dead.kill()
    dead.communicate()
    assert {mine, litter} < set(names(tmp_path))
    monkeypatch.setattr(os, "getpid", lambda: 1)
    monkeypatch.setattr(os, "kill", lambda *arguments: pytest.fail("asked for a process"))
    with atomic_write(target) as temporary:
        assert (tmp_path / mine).read_bytes() == b"theirs"
        assert not (tmp_path / litter).exists()
        temporary.write_bytes(b"ours")
    assert target.read_bytes() == b"ours"
    assert live.communicate("go on\n")[0] == ""
    assert live.returncode == 0
    assert target.read_bytes() == b"theirs"
    assert names(tmp_path) == ["edit.bin"]


def test_a_second_writer_of_one_process_is_alive_too(tmp_path):
    target = tmp_path / "edit.bin"
    with atomic_write(target) as outer:
        with atomic_write(target) as inner:
            assert outer.exists()
            inner.write_bytes(b"inner")
        assert names(tmp_path)[0] != "edit.bin"
        outer.write_bytes(b"outer")
    assert target.read_bytes() == b"outer"
    assert names(tmp_path) == ["edit.bin"]


def test_litter_of_other_targets_and_other_machines_stays(tmp_path):
    target = tmp_path / "edit.bin"
    with atomic_write(target) as temporary:
        own = temporary.name
    host = own.split(".")[3].partition("-")[0]
    other = tmp_path / own.replace("edit.bin", "other.bin")
    elsewhere = tmp_path / own.replace(host, "00000000")
    for path in (tmp_path / own, other, elsewhere):
        path.touch()
    with atomic_write(target):
        assert not (tmp_path / own).exists()
    assert names(tmp_path) == sorted(["edit.bin", other.name, elsewhere.name])


@pytest.mark.parametrize("error", [OSError(95, "not supported"), OSError(37, "no locks")])
def test_without_locks_files_are_written_and_nothing_is_removed(tmp_path, monkeypatch, error):
    target = tmp_path / "edit.bin"
    with atomic_write(target) as temporary:
        litter = tmp_path / temporary.name

    def refuse(*arguments) -> None:
        raise error

    litter.touch()
    monkeypatch.setattr(atomic.fcntl, "flock", refuse)
    with atomic_write(target) as temporary:
        temporary.write_bytes(b"x")
    assert target.read_bytes() == b"x"
    assert litter.exists()
    monkeypatch.setattr(atomic, "fcntl", None)
    with atomic_write(target) as temporary:
        temporary.write_bytes(b"y")
    assert target.read_bytes() == b"y"
    assert litter.exists()


def test_many_processes_that_clear_away_and_write_disturb_nobody(tmp_path):
    """Each sees the others' files come and go while it looks for litter."""
    script = (
        ALONE
        + """
import sys
for number in range(60):
    with atomic_write(sys.argv[1]) as temporary:
        temporary.write_bytes(bytes([number]) * 4096)
"""
    )
    target = tmp_path / "edit.bin"
    writers = [subprocess.Popen([sys.executable, "-c", script, target]) for _ in range(4)]
    assert [writer.wait() for writer in writers] == [0] * 4
    assert len(set(target.read_bytes())) == 1
    assert names(tmp_path) == ["edit.bin"]


def test_threads_on_one_file_leave_one_whole_file(tmp_path):
    target = tmp_path / "edit.bin"

    def write(value: int) -> None:
        for _ in range(20):
            with atomic_write(target) as temporary:
                temporary.write_bytes(bytes([value]) * 4096)

    threads = [threading.Thread(target=write, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    content = target.read_bytes()
    assert len(content) == 4096
    assert len(set(content)) == 1
    assert names(tmp_path) == ["edit.bin"]


@pytest.mark.parametrize("limit", [0, 1, 4095, 65536, 99_999])
def test_a_full_disk_keeps_the_old_file(tmp_path, limit):
    target = tmp_path / "edit.bin"
    target.write_bytes(b"old")
    answer = subprocess.run(
        [sys.executable, "-c", ALONE + LIMITED, target, str(limit), "100000"],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert answer.stdout.startswith("refused")
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["edit.bin"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != limit


def test_kill_at_any_moment_leaves_a_whole_file(tmp_path):
    target = tmp_path / "edit.bin"
    size = 1 << 20
    target.write_bytes(bytes([0]) * size)
    for kill in range(6):
        writer = subprocess.Popen(
            [sys.executable, "-c", ALONE + WRITER, target, str(size)], stdout=subprocess.PIPE
        )
        writer.stdout.readline()
        time.sleep(0.013 * kill)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        content = target.read_bytes()
        assert len(content) == size
        assert len(set(content)) == 1
        assert len(names(tmp_path)) <= 3  # earlier litter went when this writer began
    with atomic_write(target) as temporary:
        temporary.write_bytes(b"new")
    assert names(tmp_path) == ["edit.bin"]

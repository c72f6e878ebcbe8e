"""Damaged and hostile files: one kind of error, at once, and without taking memory for claims."""

import io
import os
import random
import resource
import time
import tracemalloc

import pytest
import torch

from rankedit.edits import LowRank
from rankedit.errors import EditFileError
from rankedit.files.format import read_file
from rankedit.files.storage import load, save
from rankedit.gated import GatedEdit
from rankedit.gates import Identity, JointSigmoid, Sigmoid
from rankedit.metric import Metric
from rankedit.moments import Provenance, SecondMoment
from tests.attacks.forging import (
    DATA,
    GATED,
    GATED_TENSORS,
    LOW_RANK,
    MOMENT,
    MOMENT_TENSORS,
    edit_file,
    signed,
    tensor,
)
from tests.attacks.hostile_files import HOSTILE

GATES = {gate.name: gate for gate in (Sigmoid, JointSigmoid, Identity)}
# Of the processor; where other work shares its caches, 0.06 s become 0.2. An attack takes minutes.
LIMIT_SECONDS = 0.5
LIMIT_BYTES = 16 << 20


@pytest.fixture(scope="module")
def small_file(tmp_path_factory) -> bytes:
    """One thing of each kind."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(9, 3, generator=generator)
    gated = GatedEdit(
        rows[:2], rows[2:4, :2], Metric.identity(3), Sigmoid(torch.tensor([0.5, 0.6]))
    )
    items = {
        "layer.0": LowRank(rows[:2].T.contiguous(), rows[2:4]),
        "layer.1": gated,
        "layer.2": SecondMoment(3, provenance=Provenance(corpus="c", tokens=9)).update(rows),
        "embedding": rows[0],
    }
    path = tmp_path_factory.mktemp("small") / "small.safetensors"
    save(items, path, metadata={"author": "x"})
    return path.read_bytes()


def attempt(content: bytes):
    return read_file(io.BytesIO(content), len(content), GATES)


def refused(content: bytes) -> bool:
    """Whether it is refused; any error but the library's own passes through."""
    try:
        attempt(content)
    except EditFileError:
        return True
    return False


def test_files_that_are_right_in_every_respect_load():
    """Otherwise the hostile ones, which differ in one respect, would prove nothing."""
    assert list(attempt(edit_file(LOW_RANK))) == ["a.b"]
    assert sorted(attempt(edit_file(GATED, tensors=GATED_TENSORS))) == ["a", "b"]
    assert list(attempt(edit_file(MOMENT, tensors=MOMENT_TENSORS))) == ["a"]
    assert attempt(edit_file(LOW_RANK, base=["0" * 16])).base == {"a.b": "0" * 16}
    assert len(DATA) == 20


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_is_refused_in_words_at_once_and_without_memory(name, tmp_path):
    make, message = HOSTILE[name]
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(make())
    assert peak_bytes(path) < LIMIT_BYTES
    seconds = []
    for _ in range(3):
        start = time.process_time()
        with pytest.raises(EditFileError, match=message) as caught:
            load(path)
        seconds.append(time.process_time() - start)
    assert min(seconds) < LIMIT_SECONDS
    assert "load: " in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 600


def peak_bytes(path) -> int:
    """The most memory that refusing the file took at any moment."""
    tracemalloc.start()
    try:
        with pytest.raises(EditFileError):
            load(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_there_are_at_least_forty_hostile_files():
    assert len(HOSTILE) >= 40


def test_every_truncation_is_refused(small_file):
    assert not refused(small_file)
    assert all(refused(small_file[:length]) for length in range(len(small_file)))


def test_every_appended_byte_is_refused(small_file):
    assert all(refused(small_file + bytes([value])) for value in range(256))


def test_every_flipped_bit_is_refused(small_file):
    for at in range(len(small_file)):
        for bit in range(8):
            damaged = bytearray(small_file)
            damaged[at] ^= 1 << bit
            assert refused(bytes(damaged)), (at, bit)


def mutated(content: bytes, draw: random.Random) -> bytes:
    """One to four edits of the kinds that disks, editors and fuzzers make."""
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 4))):
        at = draw.randrange(len(changed))
        kind = draw.randrange(6)
        if kind == 0:
            changed[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            changed[at] = draw.randrange(256)
        elif kind == 2:
            changed[at] = draw.choice(b'0123456789"{}[]:,-.\\')
        elif kind == 3:
            del changed[at : at + draw.randrange(1, 9)]
        elif kind == 4:
            changed[at:at] = changed[max(0, at - draw.randrange(1, 40)) : at]
        else:
            changed[at : at + 8] = draw.choice((b"\0", b"\xff", b"\x7f", b"9")) * 8
    return bytes(changed)


def test_every_mutation_is_refused(small_file):
    draw = random.Random(1)
    survivors = []
    for _ in range(25_000):
        damaged = mutated(small_file, draw)
        if damaged != small_file and not refused(damaged):
            survivors.append(damaged)
    assert not survivors


def test_signed_mutations_are_refused_or_harmless(small_file):
    """With a fitting digest the deeper checks are reached: what loads is finite and well formed."""
    draw = random.Random(2)
    loaded = 0
    for _ in range(25_000):
        try:
            items = attempt(signed(mutated(small_file, draw)))
        except EditFileError:
            continue
        loaded += 1
        for item in items.values():
            assert_harmless(item)
    assert loaded > 500  # mutations of the data are mostly just other numbers


def assert_harmless(item):
    if isinstance(item, LowRank):
        assert item.up.shape[1] == item.down.shape[0]
        assert bool(torch.isfinite(item.up).all() and torch.isfinite(item.down).all())
    elif isinstance(item, GatedEdit):
        assert item.images.shape == item.keys.shape
        assert bool(torch.isfinite(item.targets).all())
    elif isinstance(item, SecondMoment):
        assert item.count >= 0
    else:
        assert bool(torch.isfinite(item).all())


def test_a_pipe_is_refused_without_waiting_for_a_writer(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(EditFileError, match="not a regular file"):
        load(pipe)


def test_a_sparse_terabyte_is_refused_without_reading_it(tmp_path):
    path = tmp_path / "sparse"
    with path.open("wb") as stream:
        stream.write(edit_file(LOW_RANK))
        stream.truncate(1 << 40)
    with pytest.raises(EditFileError, match="left over"):
        load(path)


def test_a_file_larger_than_the_memory_is_refused(tmp_path):
    """Eight terabytes of holes, with a header that claims just that."""
    size = 1 << 43
    entry = {"kind": "tensor", "module": "a", "tensor": 0}
    content = edit_file(entry, tensors={"0": tensor("F64", [size // 8], 0, size)}, data=b"")
    path = tmp_path / "sparse"
    path.write_bytes(content)
    os.truncate(path, len(content) + size)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 40, limits[1]))
    try:
        with pytest.raises(EditFileError, match=f"of {size} bytes does not fit in memory"):
            load(path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def test_a_file_that_is_cut_while_it_is_read_is_refused(small_file):
    with pytest.raises(EditFileError, match="became shorter while it was read"):
        read_file(io.BytesIO(small_file[:-1]), len(small_file), GATES)


def test_missing_files_and_folders_are_reported_as_such(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nothing")
    with pytest.raises(IsADirectoryError):
        load(tmp_path)

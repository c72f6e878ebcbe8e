"""Short digests that tell whether a model, or a batch of data, is the one of an earlier run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from types import CodeType

import torch
from torch import Tensor, nn

from rankedit.models.experts import parts_of
from rankedit.models.swapping import slots_of

# Numbers of each tensor that are looked at: enough to notice training, merging or another seed.
_SAMPLES = 64


def model_digest(model: nn.Module) -> str:
    """A mark of all weights of a model, cheap at any size: 64 numbers of each tensor enter it.

    Edits that are attached count with their tensors: what a model reads below them is not what it
    reads without. Names, shapes and dtypes count too. Of weights that are sharded, quantised into a
    tensor subclass, or waiting on the meta device, only those do.
    """
    digest = hashlib.sha256()
    for name, tensor in _named_tensors(model):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        data = tensor.detach()
        if type(data) in (Tensor, nn.Parameter) and not data.is_meta and data.numel():
            digest.update(_sample(data))
    return digest.hexdigest()


def _named_tensors(model: nn.Module) -> Iterable[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()
    for name, module in parts_of(model):
        for number, slot in enumerate(slots_of(module)):
            held = sorted(slot.tensors.items())
            yield from ((f"{name} edit {number} {key}", tensor) for key, tensor in held)


def _sample(tensor: Tensor) -> bytes:
    flat = tensor.reshape(-1)
    if flat.numel() > _SAMPLES:
        places = torch.arange(_SAMPLES, device=flat.device) * (flat.numel() - 1) // (_SAMPLES - 1)
        flat = flat[places]
    return _bytes(flat)


def _bytes(tensor: Tensor) -> bytes:
    return (
        tensor.detach()
        .resolve_neg()
        .contiguous()
        .reshape(-1)
        .view(torch.uint8)
        .cpu()
        .numpy()
        .tobytes()
    )


def batch_digest(batch: object, *, before: str = "", whole: bool = True) -> str:
    """A digest of the tensors, numbers and strings in a batch of mappings and sequences.

    Args:
        batch: the batch.
        before: the digest of the batches before it, which enters.
        whole: whether all numbers of tensors enter, or a sample of them.
    """
    digest = hashlib.sha256(before.encode())
    for piece in _pieces(batch, _bytes if whole else _sample):
        digest.update(piece)
    return digest.hexdigest()


def function_digest(function: Callable[..., object]) -> str:
    """A mark of what a function does: of its code, without the place where it stands."""
    code = getattr(function, "__code__", None)
    name = getattr(function, "__qualname__", type(function).__qualname__)
    parts = [name] if code is None else [name, *_code(code)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _code(code: CodeType) -> Iterable[str]:
    yield code.co_code.hex()
    yield repr(code.co_names)
    for constant in code.co_consts:  # functions inside of it are written as their address
        yield from _code(constant) if isinstance(constant, CodeType) else (repr(constant),)


def _pieces(value: object, numbers: Callable[[Tensor], bytes]) -> Iterable[bytes]:
    if isinstance(value, Tensor):
        yield f"{value.dtype}{tuple(value.shape)}".encode()
        # A view of bytes needs at least one axis; `contiguous` also resolves lazy conjugates.
        yield numbers(value) if not value.is_meta and value.layout == torch.strided else b""
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key).encode()
            yield from _pieces(item, numbers)
    elif isinstance(value, (tuple, list)):
        yield f"{type(value).__name__}{len(value)}".encode()
        for item in value:
            yield from _pieces(item, numbers)
    elif isinstance(value, (str, int, float, bool)):
        yield repr(value).encode()
    else:  # what the representation of other objects says need not be the same in another process
        yield type(value).__name__.encode()

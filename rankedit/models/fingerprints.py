"""A hash of a layer's weights, to tell whether an edit meets the model that it was made for."""

from __future__ import annotations

import hashlib
import struct
import sys
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from rankedit.errors import ProjectionError
from rankedit.models.asking import loaded
from rankedit.models.geometry import innermost
from rankedit.shapes import check_kind

# Tensors up to this size are hashed whole; of larger ones, evenly spaced blocks of this total.
SAMPLED_BYTES = 1 << 24
BLOCK_BYTES = 1 << 12


def fingerprint(module: nn.Module) -> str:
    """SHA-256 of what the innermost layer would save, as 64 hexadecimal digits.

    The digest is taken over, in this order:

    1. the ASCII bytes `rankedit.weights.1` and a zero byte;
    2. for each tensor of the layer's `state_dict`, sorted by name (the parts of a tensor subclass,
       such as a quantised weight, count as tensors named `name.part`):

       * the name in UTF-8 and a zero byte; the dtype's name without `torch.`, and a zero byte;
       * the number of dimensions and each size as little-endian unsigned 64-bit integers;
       * the bytes of the row-major content, little-endian: all of them up to 16 MiB; of a larger
         tensor of N bytes the 4096 blocks of 4 KiB that start at the bytes
         `(i (N − 4096)) // 4095`, i = 0 ... 4095.

    Edits that are attached, LoRA layers around it, its device and offloading do not enter; its
    dtype does. Under FSDP the weights are gathered, so every rank must make the call.

    Raises:
        ProjectionError: a weight is on the meta device and no hook can load it.
    """
    check_kind("fingerprint", "module", module, nn.Module)
    inner = innermost(module)
    digest = hashlib.sha256(b"rankedit.weights.1\0")
    for name, tensor in tensors_of(inner):
        dtype = str(tensor.dtype).removeprefix("torch.")
        digest.update(f"{name}\0{dtype}\0".encode())
        digest.update(struct.pack(f"<{tensor.ndim + 1}Q", tensor.ndim, *tensor.shape))
        digest.update(_content(tensor))
    return digest.hexdigest()


def tensors_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What a layer would save, by name: gathered, loaded, tensor subclasses in their parts."""
    with loaded(module):
        state = sorted(module.state_dict().items())
        kept = {name: value.detach() for name, value in state if isinstance(value, Tensor)}
    # One tensor at a time: gathered or dequantised, all together may not fit.
    for name, value in kept.items():
        yield from _plain(name, _loaded(module, name, value))


def _loaded(module: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """The tensor itself, where an offloading hook keeps it if it is on the meta device."""
    if not tensor.is_meta:
        return tensor
    hook = getattr(module, "_hf_hook", None)
    for part in getattr(hook, "hooks", (hook,)):
        weights = getattr(part, "weights_map", None)
        if weights is not None:
            return torch.as_tensor(weights[name]).detach()
    raise ProjectionError(
        f"fingerprint: module must have data, but {name!r} of {type(module).__name__} is on the "
        "meta device and no offloading hook keeps its content; load the checkpoint first."
    )


def _plain(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    sharded = sys.modules.get("torch.distributed.tensor")
    if sharded is not None and isinstance(tensor, sharded.DTensor):
        tensor = tensor.full_tensor()
    # Subclasses that only add Python attributes keep plain bytes (bitsandbytes' parameters).
    if type(tensor) in (Tensor, nn.Parameter) or not hasattr(tensor, "__tensor_flatten__"):
        yield name, tensor
        return
    parts, _ = tensor.__tensor_flatten__()
    for part in sorted(parts):
        if getattr(tensor, part) is not None:
            yield from _plain(f"{name}.{part}", getattr(tensor, part))


def content_digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes, sampled like those of `fingerprint`."""
    return hashlib.sha256(_content(tensor)).hexdigest()


def _content(tensor: Tensor) -> bytes:
    # As bytes: numpy knows no bfloat16, and NaN of different bits are different.
    flat = tensor.detach().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
    if flat.numel() > SAMPLED_BYTES:
        count = SAMPLED_BYTES // BLOCK_BYTES
        starts = torch.arange(count, device=flat.device) * (flat.numel() - BLOCK_BYTES)
        starts = starts // (count - 1)
        blocks = [flat[start : start + BLOCK_BYTES] for start in starts.tolist()]
        flat = torch.cat(blocks)
    return flat.cpu().numpy().tobytes()

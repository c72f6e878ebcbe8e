"""Which weights can take an edit: readable, writable, and what the layer multiplies by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from rankedit.errors import AttachError
from rankedit.models.asking import on_disk
from rankedit.models.experts import Expert
from rankedit.models.projections import Projection
from rankedit.models.selecting import clean_name
from rankedit.models.swapping import suspended
from rankedit.models.targets import Target
from rankedit.shapes import describe

# Relative deviation of `keys @ Wᵀ` from the layer's output at which the weight is not what it
# multiplies by; a bfloat16 layer deviates by 0.004.
_DEVIATION = 0.02


def plain_weight(target: Target) -> Tensor:
    """The weight of a layer, if adding to it changes what the layer does.

    Raises:
        AttachError: says what kind of weight it is.
    """
    weight, own = _stored(target.layer)
    why = ""
    if weight is None or own is None:
        why = "has no parameter of its own called weight (it is computed or packed)"
    elif on_disk(target.layer):
        why = "has its weight on disk between forwards (group offloading)"
    elif not_writable(weight):
        why = f"has its weight {not_writable(weight)}"
    elif not weight.is_floating_point() or weight.element_size() < 2:
        why = f"stores its weight as {weight.dtype} (quantised)"
    if own is None or why:
        raise AttachError(
            f"fuse_: {target.name!r} ({type(target.layer).__name__}) {why}, where adding an edit "
            "would fail, vanish or corrupt it; use attach, which keeps the edit beside the weight."
        )
    return own


def _stored(layer: nn.Module) -> tuple[nn.Parameter | None, Tensor | None]:
    """The parameter that holds a layer's weight, and the weight in it."""
    if not isinstance(layer, Expert):
        weight = layer._parameters.get("weight")
        return weight, weight
    whole = layer.stack.owner._parameters.get(layer.parameter)
    return whole, None if whole is None else layer.stored


def written(name: str, layer: nn.Module, shape: torch.Size) -> Tensor:
    """The weight of a fused layer, if the original can be put back into it.

    Raises:
        AttachError: says what is there instead.
    """
    weight, own = _stored(layer)
    if weight is not None and own is not None and own.shape == shape and not not_writable(weight):
        return own
    found = "no such parameter"
    if weight is not None and own is not None:
        found = f"{describe(own)} {not_writable(weight)}".rstrip()
    raise AttachError(
        f"unfuse_: {name!r} ({type(layer).__name__}) must have its plain weight {list(shape)} that "
        f"fuse_ wrote, got {found}: take away what computes, packs or offloads it "
        "(torch.nn.utils.parametrize.remove_parametrizations, prune.remove), or load the model "
        "anew."
    )


def weight_of(layer: nn.Module) -> Tensor:
    """The weight as it is stored, to be written in place."""
    return layer.stored if isinstance(layer, Expert) else layer.get_parameter("weight")


def not_writable(weight: Tensor) -> str:
    """Why a weight cannot be written to in place, in words after "its weight"; empty if it can."""
    if weight.is_meta:
        return "on the meta device (offloaded, or not loaded)"
    if weight.layout != torch.strided:
        return f"as {weight.layout} (sparse or packed)"
    if type(weight.data) is not Tensor or type(weight) is not nn.Parameter:
        return f"in a {type(weight).__name__} (quantised or sharded)"
    if weight.is_inference() and not torch.is_inference_mode_enabled():
        return "made in inference mode, and not to be written to outside it"
    return "with entries that share memory (expanded)" if _overlaps(weight) else ""


def _overlaps(tensor: Tensor) -> bool:
    """Whether two entries are, or may be, one place in memory."""
    last = 0  # of the axes so far, from the one of the smallest steps
    for step, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and step <= last:
            return True
        last += step * (size - 1)
    return False


def is_transposed(target: Target, weight: Tensor) -> bool:
    """Whether the weight is stored `[in, out]`, by comparing its products with what the layer does.

    Raises:
        AttachError: the layer does something else with it.
    """
    view = Projection(target.layer)
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(4, view.in_features, generator=generator).to(weight.device)
    with suspended(target.layer) as bare:
        outputs = Projection(bare).outputs(keys).float()
    matrix = weight.detach().flatten(1).float()
    for transposed, form in ((False, matrix.T), (True, matrix)):
        if form.shape == (view.in_features, view.out_features):
            deviation = float((keys @ form - outputs).norm())
            if deviation <= _DEVIATION * float(outputs.norm()):
                return transposed
    raise AttachError(
        f"fuse_: the weight {list(weight.shape)} of {target.name!r} is not the matrix that its "
        f"{type(target.layer).__name__} multiplies by: scaled, masked or quantised; use attach."
    )


def check_untied(model: nn.Module, targets: Sequence[Target]) -> None:
    """Refuse weights whose memory other layers of the model use too.

    Raises:
        AttachError: names them.
    """
    spans: dict[int, list[tuple[str, int, int]]] = {}
    for name, tensor in _tensors(model):
        storage = tensor.untyped_storage().data_ptr()
        start = tensor.data_ptr()
        spans.setdefault(storage, []).append((name, start, start + tensor.nbytes))
    for target in targets:
        own = target.layer._parameters.get("weight")
        weight = target.layer.stored if isinstance(target.layer, Expert) else own
        if weight is None or not _is_plain(weight):
            continue
        start, stop = weight.data_ptr(), weight.data_ptr() + weight.nbytes
        neighbours = spans.get(weight.untyped_storage().data_ptr(), [])
        shared = [name for name, first, last in neighbours if first < stop and start < last]
        if len(shared) > 1:
            raise AttachError(
                f"fuse_: the weight of {target.name!r} is shared by {shared}, and all of them "
                "would change; use attach, which edits this layer alone, or pass tied=True."
            )


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All tensors with memory of their own, under each of their names."""
    for kind in (model.named_parameters, model.named_buffers):
        for name, tensor in kind(remove_duplicate=False):
            if _is_plain(tensor) and tensor.numel():
                yield clean_name(name), tensor


def _is_plain(tensor: Tensor) -> bool:
    plain = not tensor.is_meta and tensor.layout == torch.strided
    return plain and type(tensor.data) is Tensor

"""Running a causal model on rows of tokens, and seeing or shifting what happens in it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rankedit.models.reading import may_stop
from rankedit_recipes.language.model.tokens import Batch

Hook = Callable[..., Any]


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; afterwards every module is in the mode it was in."""
    # Module by module: somebody may keep a part of the model in evaluation mode (a frozen tower).
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode and without gradients."""
    with evaluating(model), torch.no_grad():
        yield


def embedding_device(model: nn.Module) -> torch.device:
    """Where the model reads its tokens."""
    # Not `model.device`: accelerate may spread a model over several, and one reads the tokens.
    # Models of one's own that are only evaluated need not have the method.
    own = getattr(model, "get_input_embeddings", None)
    embedding: nn.Module = own() if callable(own) else model
    device = next(embedding.parameters()).device
    if device.type != "meta":
        return device
    # Weights that accelerate keeps elsewhere come when the layer runs, where its hook says.
    place = getattr(getattr(embedding, "_hf_hook", None), "execution_device", None)
    return torch.device("cpu" if place is None else place)


def first_tensor(value: object) -> Tensor | None:
    """The first floating-point tensor in arguments or results."""
    if isinstance(value, Tensor):
        return value if value.is_floating_point() else None
    # Arguments by name, and outputs of transformers, which are ordered mappings.
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        found = (first_tensor(part) for part in value)
        return next((tensor for tensor in found if tensor is not None), None)
    return None


@contextlib.contextmanager
def hooked(*hooks: tuple[nn.Module, Hook]) -> Iterator[None]:
    """Forward hooks `hook(module, args, output)`, in order, for a while."""
    with contextlib.ExitStack() as stack:
        for module, hook in hooks:
            stack.callback(module.register_forward_hook(hook).remove)
        yield


def logits_at(model: nn.Module, batch: Batch, places: Tensor) -> Tensor:
    """Logits `[rows, k, words]` at some places `[rows, k]` of each row, in float32.

    The vectors of all other tokens are left out before the output layer: the logits of a whole
    batch would take more memory than everything else.
    """
    # Not `logits_to_keep`: in transformers 5.23 it keeps the same places of every row, and each row
    # has its own here; and models with code of their own do not take it.
    head: nn.Module | None = getattr(model, "get_output_embeddings", lambda: None)()

    def choose(_head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (_at(args[0], places), *args[1:])

    handle = None if head is None else head.register_forward_pre_hook(choose)
    try:
        logits: Tensor = model(**batch.arguments()).logits
    finally:
        if handle is not None:
            handle.remove()
    return (_at(logits, places) if head is None else logits).float()


def _at(rows: Tensor, places: Tensor) -> Tensor:
    index = places.to(rows.device)[..., None].expand(-1, -1, rows.shape[-1])
    return rows.gather(1, index)


class _Enough(BaseException):
    """Unwinds a run of which nothing more is needed; a model must not swallow it."""


@dataclass
class Seen:
    """What a run of the model read and wrote at the subject of each row.

    Attributes:
        read: by projection, what it read `[rows, in]`.
        given: by projection, what it gave, shifts included `[rows, out]`.
        stream: by block, the residual stream behind it `[rows, width]`.
    """

    read: dict[str, Tensor]
    given: dict[str, Tensor]
    stream: dict[str, Tensor]


def look(
    model: nn.Module,
    batch: Batch,
    *,
    projections: Mapping[str, nn.Module],
    blocks: Mapping[str, nn.Module],
    shifts: Mapping[str, Tensor] | None = None,
) -> Seen:
    """Run the model and note vectors at the subjects, all in float32 on the CPU.

    The run ends where everything was noted: what is edited lies low, and most blocks above it.

    Args:
        model: the model.
        batch: rows of tokens.
        projections: to look at.
        blocks: to look behind.
        shifts: by projection, what is added to its output at the subject of each row
            `[rows, out]`.
    """
    seen = Seen({}, {}, {})
    hooks: list[tuple[nn.Module, Hook]] = []
    for name, module in projections.items():
        if shifts and name in shifts:
            # First, for hooks run in the order of adding: what is noted has the shift in it.
            hooks.append((module, _adding(batch, shifts[name])))
        hooks.append((module, _noting(batch, name, seen)))
    for name, block in blocks.items():
        hooks.append((block, _noting_stream(batch, name, seen)))

    def end(*_: object) -> None:
        if len(seen.read) == len(projections) and len(seen.stream) == len(blocks):
            raise _Enough

    if _may_end(model):
        # After all others: what notes comes first.
        hooks += [(module, end) for module in (*projections.values(), *blocks.values())]
    with quiet(model), hooked(*hooks), contextlib.suppress(_Enough):
        # Through the output layer at one place only: its other logits would be most of the memory.
        logits_at(model, batch, batch.subjects[:, None])
    return seen


def _may_end(model: nn.Module) -> bool:
    """Whether a run may be unwound; accelerate's hooks put weights away when a module is done."""
    return may_stop(model) and not any(hasattr(module, "_hf_hook") for module in model.modules())


def _at_subjects(batch: Batch, vectors: Tensor) -> Tensor:
    # OPT's blocks hand their MLP the tokens of all rows as one list (transformers 5.23).
    rows = vectors.detach().reshape(*batch.ids.shape, -1)
    subjects = batch.subjects.to(rows.device)
    return rows[torch.arange(len(rows), device=rows.device), subjects].float().cpu()


def _noting(batch: Batch, name: str, seen: Seen) -> Hook:
    def hook(_module: nn.Module, args: object, output: Tensor) -> None:
        read = first_tensor(args)
        if read is not None:
            seen.read[name] = _at_subjects(batch, read)
            seen.given[name] = _at_subjects(batch, output)

    return hook


def _noting_stream(batch: Batch, name: str, seen: Seen) -> Hook:
    def hook(_module: nn.Module, _args: object, output: object) -> None:
        written = first_tensor(output)
        if written is not None:
            seen.stream[name] = _at_subjects(batch, written)

    return hook


def _adding(batch: Batch, shift: Tensor) -> Hook:
    def hook(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
        # A copy: the output may be another module's input, or a view that autograd guards.
        changed = output.clone().reshape(*batch.ids.shape, -1)
        rows = torch.arange(len(changed), device=changed.device)
        changed[rows, batch.subjects.to(changed.device)] += shift.to(changed)
        return changed.reshape(output.shape)

    return hook

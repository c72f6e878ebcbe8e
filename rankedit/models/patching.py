"""Attach edits to a model and take them out again, all of them or none.

    with attach(model, {"h.3.mlp.c_proj": edit}) as attachment:
        attachment.set(strength=0.5)
        ...

`attach` checks and prepares every edit before it touches a layer; a failure at any point leaves the
model bitwise as it was. Several edits on one layer add up: each is bound to the bare layer, so that
they may be attached and detached in any order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from torch import Tensor, nn

from rankedit.errors import AttachError
from rankedit.models.binding import (
    Installed,
    bound_tensors,
    changes_of,
    check_number,
    exchange,
    write,
)
from rankedit.models.geometry import device_of
from rankedit.models.projections import Projection
from rankedit.models.swapping import (
    STRENGTH,
    check_reachable,
    install,
    remove,
    scalar,
    slots_of,
)
from rankedit.models.targets import Edits, check_run, resolve

__all__ = ["Attachment", "Edits", "attach", "detach_all"]


def attach(model: nn.Module | Projection, edits: Edits, *, strength: float = 1.0) -> Attachment:
    """Install edits on projections of a model; names, parameters and `state_dict` stay as they are.

    Every edit acts on the innermost layer, below any LoRA. Tensors of an edit that require
    gradients are used as they are and receive them; all others are copied, so that settings changed
    here do not reach the edit. Edits compute in float32, also where the model computes in float64.

    `I Wᵀ` of a gated edit, what the layer gives for its keys, is fixed when the edit is attached.
    After the weight has changed (`fuse_`, training), call `refresh` or attach again.

    Args:
        model: a model, with `edits` by name; or a layer or `Projection`, with `edits` for it.
        edits: `{name: edit}` or `{name: [edits]}`, or one or several edits for the layer passed.
            The name `"attn.qkv[768:1536]"` means these output rows of a fused projection.
        strength: factor of what the edits add; 0 switches them off, bitwise up to the sign of zero.

    Returns:
        An `Attachment`: a context manager that takes the edits out at its end, or call `detach`.

    Raises:
        ProjectionError: a name is unknown (lists the nearest), or not a projection.
        ShapeError: an edit is of another size than its projection.
        AttachError: the edit would not act there (never called, tensor-parallel, `forward`
            replaced, named twice), learns a tensor that is not float32, or strength is not finite.

    Example:
        >>> import torch
        >>> from rankedit.edits import LowRank
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> _ = layer.weight.data.zero_()
        >>> with attach(layer, LowRank(torch.ones(1, 1), torch.ones(1, 2))):
        ...     layer(torch.ones(2)).tolist()
        [2.0]
        >>> layer(torch.ones(2)).tolist()
        [0.0]
    """
    check_number("attach", STRENGTH, strength)
    targets = resolve("attach", model, edits)
    for target in targets:
        check_reachable("attach", target.name, target.layer)
        check_run("attach", target)
    prepared = [
        (target, edit, bound_tensors("attach", target, edit))
        for target in targets
        for edit in target.edits
    ]
    installed: list[Installed] = []
    try:
        for target, edit, tensors in prepared:
            tensors[STRENGTH] = scalar(strength, device_of(target.layer))
            slot = install(target.layer, edit, target.view.layout, target.view.bounds, tensors)
            installed.append(Installed(target, slot))
    except BaseException:
        for item in reversed(installed):
            remove(item.layer, item.slot)
        raise
    return Attachment(installed)


def detach_all(model: nn.Module) -> int:
    """Take every edit out of a model, whoever attached it; for copies and unpickled models.

    Returns:
        How many edits there were.
    """
    found = [(layer, slot) for layer in model.modules() for slot in slots_of(layer)]
    for layer, slot in found:
        remove(layer, slot)
    return len(found)


class Attachment:
    """Edits that are in a model: change their settings, swap their tensors, take them out.

    Settings and tensors are changed in place, so that compiled code keeps running as it is.
    """

    def __init__(self, installed: Sequence[Installed]) -> None:
        self._installed = tuple(installed)
        self._active = True

    @property
    def active(self) -> bool:
        """Whether the edits are in the model."""
        return self._active

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the edited projections, each once."""
        return tuple(dict.fromkeys(item.target.name for item in self._installed))

    def detach(self) -> None:
        """Take the edits out; the model is bitwise what it was. Doing it again changes nothing."""
        if self._active:
            for item in reversed(self._installed):
                remove(item.layer, item.slot)
        self._active = False

    def set(self, *names: str, strength: float | None = None, **settings: float | Tensor) -> None:
        """Change strength and gate parameters while the edits are attached.

        Args:
            *names: only these projections; all by default.
            strength: factor of what the edits add.
            **settings: an edit's own settings, such as `bias` and `temperature` of a gate: a
                number, or one for each key where the edit was made with one for each key.

        Raises:
            AttachError: detached already, an unknown name or setting, or not a finite number.
            ShapeError: a value of another shape than the setting, or refused by the gate, which is
                given all of them together.
        """
        self._check_active("set")
        items = self._chosen("Attachment.set", names)
        if strength is not None:
            settings[STRENGTH] = strength
        write(changes_of(items, settings))

    def refresh(self, edits: Edits) -> None:
        """Exchange the tensors of the attached edits for those of others, in place.

        Strength stays; gate parameters become those of the new edits. Nothing is recompiled.

        Args:
            edits: for the same projections, as many for each, of the same kinds and sizes; gated
                edits with the same kind of gate, both normalised or not, with a floor or without.

        Raises:
            AttachError: detached already, or the edits do not correspond; nothing has changed then.
        """
        self._check_active("refresh")
        groups: dict[str, list[Installed]] = {}
        for item in self._installed:
            groups.setdefault(item.target.name, []).append(item)
        given = edits if isinstance(edits, Mapping) else {"": edits}
        listed = {
            name: tuple(value) if isinstance(value, Sequence) else (value,)
            for name, value in given.items()
        }
        if {name: len(items) for name, items in groups.items()} != {
            name: len(value) for name, value in listed.items()
        }:
            raise AttachError(
                "Attachment.refresh: expected as many edits for the same projections, "
                f"{ {name: len(items) for name, items in groups.items()} }, got "
                f"{ {name: len(value) for name, value in listed.items()} }; detach and attach anew."
            )
        changes: list[tuple[Tensor, Tensor]] = []
        for name, items in groups.items():
            for item, edit in zip(items, listed[name], strict=True):
                changes += exchange(item, edit)
        write(changes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.detach()

    def __repr__(self) -> str:
        state = "" if self._active else ", detached"
        return f"Attachment({len(self._installed)} edits on {list(self.names)}{state})"

    def _check_active(self, verb: str) -> None:
        if not self._active:
            raise AttachError(
                f"Attachment.{verb}: the edits have been detached; call attach again for new ones."
            )

    def _chosen(self, call: str, names: Sequence[str]) -> list[Installed]:
        unknown = [name for name in names if name not in self.names]
        if unknown:
            raise AttachError(
                f"{call}: {unknown[0]!r} is not among the edited projections {list(self.names)}."
            )
        return [item for item in self._installed if not names or item.target.name in names]

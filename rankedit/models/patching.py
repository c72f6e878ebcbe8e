"""Attach edits to a model and take them out again, all of them or none.

    with attach(model, {"h.3.mlp.c_proj": edit}) as attachment:
        attachment.set(strength=0.5)
        ...

`attach` checks and prepares every edit before it touches a layer; a failure at any point leaves the
model bitwise as it was. Several edits on one layer add up: each is bound to the bare layer, so that
they may be attached and detached in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Self

from torch import Tensor, nn

from rankedit.errors import AttachError
from rankedit.interrupt import completely
from rankedit.models.asking import gradients_kept
from rankedit.models.binding import Installed, bound_tensors, changes_of, exchange
from rankedit.models.experts import check_know_rows, parts_of
from rankedit.models.projections import Projection
from rankedit.models.reaching import Watch, discard
from rankedit.models.slots import STRENGTH, Slot
from rankedit.models.swapping import LOCK, check_reachable, install, made, remove, slots_of
from rankedit.models.targets import Edits, Target, check_run, resolve
from rankedit.models.telling import Context, checked, told_of
from rankedit.protocol import Edit
from rankedit.shapes import check_kind

__all__ = ["Attachment", "Edits", "attach", "detach_all"]


@gradients_kept
def attach(model: nn.Module | Projection, edits: Edits, *, strength: float = 1.0) -> Attachment:
    """Install edits on projections of a model; names, parameters and `state_dict` stay as they are.

    Every edit acts on the innermost layer, below any LoRA. Tensors of an edit that require
    gradients are used as they are and receive them; all others are copied, so that settings changed
    here do not reach the edit. Edits compute in float32, and in float64 where the layer does.

    Other threads may run the model meanwhile: each call of a layer sees all of an edit or none of
    it. Whether the model calls the edited layers is observed: `Attachment.reached` tells, and edits
    that were never reached are warned of.

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
            replaced, named twice, below an adapter that scales or rotates), learns a tensor that is
            not float32, or has numbers that are not finite in the layer's precision.

    Warns:
        RankeditWarning: the model did not call the layers, or was rearranged since.

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
    targets = resolve("attach", model, edits)
    for target in targets:
        check_reachable("attach", target.name, target.layer)
        check_run("attach", target)
    context = Context()
    pairs = [(target, edit) for target in targets for edit in target.edits]
    prepared = [(target, _slot(target, edit, strength, context)) for target, edit in pairs]
    items = [Installed(target, slot.mark) for target, slot in prepared]
    # What model a layer on its own is in is not known: whether that reached it is told at the end.
    root = None if isinstance(model, Projection) or not any(t.parents for t in targets) else model
    watch = Watch(root, [(item.target, item.mark) for item in items])
    attachment = Attachment(items, watch, context)
    try:
        # The hook first: it must have seen every call that could have reached an edit.
        attachment._watch.start()
        for target, slot in prepared:
            install(target.layer, slot)
    except BaseException:
        completely(attachment._steps())
        raise
    return attachment


def _slot(target: Target, edit: Edit, strength: float, context: Context) -> Slot:
    tensors = bound_tensors("attach", target, edit, strength)
    told = told_of(target.name, target.layer, edit, target.view.layout.stride, context)
    return made(target.layer, edit, target.view.layout, target.view.bounds, tensors, told)


@gradients_kept
def detach_all(model: nn.Module) -> int:
    """Take every edit out of a model, whoever attached it; for copies and unpickled models.

    Returns:
        How many edits there were.
    """
    check_kind("detach_all", "model", model, nn.Module)
    # Listed before anything is taken out: an interrupt must not lose what is still to be done.
    found = [(layer, slot.mark) for _, layer in parts_of(model) for slot in slots_of(layer)]
    completely(
        [partial(remove, layer, mark) for layer, mark in found]
        + [partial(discard, module) for module in model.modules()]
    )
    return len(found)


class Attachment:
    """Edits that are in a model: change their settings, swap their tensors, take them out.

    Settings and tensors are exchanged for others of their shape, so that compiled code keeps
    running as it is. What was recorded from a forward pass (a CUDA graph, a trace) keeps those that
    it was recorded with: record it anew.
    """

    def __init__(self, installed: Sequence[Installed], watch: Watch, context: Context) -> None:
        self._installed, self._watch, self._context = tuple(installed), watch, context
        self._active = True

    @property
    def active(self) -> bool:
        """Whether the edits are in the model."""
        return self._active

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the edited projections, each once."""
        return tuple(dict.fromkeys(item.target.name for item in self._installed))

    @property
    def reached(self) -> dict[str, bool]:
        """By name of the projection, whether a call of it reached its edits since `attach`.

        False again once the model was rearranged so that it calls other layers in their place.
        """
        return self._watch.reached()

    @gradients_kept
    def detach(self) -> None:
        """Take the edits out; the model is bitwise what it was. Doing it again changes nothing.

        Warns:
            RankeditWarning: the model ran and never reached some of the edits.
        """
        if self._active:
            completely(self._steps())
            self._watch.report()

    def _steps(self) -> list[Callable[[], None]]:
        """What taking the edits out consists of; each step may be repeated."""
        # Last in, first out; closed last, so that `detach` can be called again after an interrupt.
        out = [partial(remove, item.layer, item.mark) for item in reversed(self._installed)]
        return [*out, self._watch.stop, self._close]

    def _close(self) -> None:
        self._active = False

    @gradients_kept
    def set(
        self, *names: str, strength: float | Tensor | None = None, **settings: float | Tensor
    ) -> None:
        """Change strength and gate parameters while the edits are attached.

        Args:
            *names: only these projections; all by default.
            strength: factor of what the edits add.
            **settings: an edit's own settings, such as `bias` and `temperature` of a gate: a
                number, or one for each key where the edit was made with one for each key.

        Each of them may also be a tensor `[batch]` with one number for each row of a batch (and
        `[batch, n]` where there is one for each of n keys): for inputs `[batch, ..., in]` of the
        layer, a row is an entry of the first axis. Another call takes them back to one number.

        Raises:
            AttachError: detached already, an unknown name or setting, or not a finite number.
            ShapeError: a value of another shape than the setting, or refused by the gate, which is
                given all of them together.
        """
        self._check_active("set")
        items = self._chosen("Attachment.set", names)
        if strength is not None:
            settings[STRENGTH] = strength
        with LOCK:  # what is read here is what is replaced
            changes = changes_of(items, settings)
            check_know_rows("set", {i.target.name: i.layer for i, s in changes if s.by_row})
            _publish(changes)

    def tell(self, **context: float | Tensor | None) -> None:
        """Tell edits that read something of each call what it is, for the calls to come.

        All of it is exchanged at once, and holds for all layers and threads until something else is
        told: run different prompts one after another. Checkpointed passes need it until their
        gradients are there. `tell()` forgets; the model does not run until it is told again.

        Args:
            **context: by name what the edits read, such as `rows [batch, tokens]` and `time` of
                `PlacedEdit`; `rows=None` for calls that are to stay as they are, to the bit.

        Raises:
            AttachError: detached already, or a name that no edit reads.
            ShapeError: no finite numbers, or rows that are no `[batch, tokens, ...]`.
        """
        self._check_active("tell")
        self._context.values = checked(context, [item.slot.edit for item in self._installed])

    @gradients_kept
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
        # As `attach` was called: edits for one layer have the empty name.
        given = edits if isinstance(edits, Mapping) else {"": edits}
        listed = {
            name: tuple(value) if isinstance(value, Sequence) else (value,)
            for name, value in given.items()
        }
        present, new = ({n: len(part[n]) for n in part} for part in (groups, listed))
        if present != new:
            raise AttachError(
                "Attachment.refresh: expected as many edits for the same projections, "
                f"{present}, got {new}; detach and attach anew."
            )
        with LOCK:
            _publish(
                [
                    (item, exchange(item, edit))
                    for name, items in groups.items()
                    for item, edit in zip(items, listed[name], strict=True)
                ]
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.detach()
        else:  # no report: what was broken off may well have called only some of the layers
            completely(self._steps())

    def __repr__(self) -> str:
        state = "" if self._active else ", detached"
        return f"Attachment({len(self._installed)} edits on {list(self.names)}{state})"

    def _check_active(self, verb: str) -> None:
        if not self._active:
            raise AttachError(
                f"Attachment.{verb}: the edits have been detached; call attach again for new ones."
            )

    def _chosen(self, call: str, names: Sequence[str]) -> list[Installed]:
        unknown = [n for n in names if not isinstance(n, str) or n not in self.names]
        if unknown:
            raise AttachError(
                f"{call}: {unknown[0]!r:.80} is not among the edited projections "
                f"{list(self.names)}."
            )
        return [item for item in self._installed if not names or item.target.name in names]


def _publish(changes: Iterable[tuple[Installed, Slot]]) -> None:
    completely([partial(install, item.layer, slot) for item, slot in changes])

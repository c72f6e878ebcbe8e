"""Experts whose matrices are one parameter: each of them as a layer of its own.

Mixtures keep the weights of all experts in a few 3-dimensional parameters, which a function of the
experts' module multiplies by; no module is there that reads what one expert reads. `Expert` is that
module: it has no parameter, reads `parameter[number]` whenever it is run, and is known by the name
`experts.down_proj.5`. Hooks and edits sit on it as on any linear layer.

While one of them has any, its owner runs the touched experts beside its own function, for the
tokens routed to them, and adds what edits change:

    y_t = forward(x)_t + Σ_touched e  p_te (f_e(x_t; edited) − f_e(x_t))

So it does not matter by which function the owner computes, nor that it is exchanged meanwhile; see
docs/decisions/experts-as-layers.md.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MethodType
from typing import Any, SupportsIndex, cast

from torch import Tensor, nn

from rankedit.errors import AttachError, ProjectionError

_STACK = "_rankedit_experts"  # where the owner keeps them: they are copied and pickled with it
_BASE = "_rankedit_routed"
# What transformers 5 says of a module of experts, whose forward takes (vectors, experts, weights).
# In this order: models of diffusers warn when asked for what is in their configuration (0.42).
_SAID = ("is_transposed", "has_gate", "has_bias", "num_experts")

_KEPT: dict[type[nn.Module], type[nn.Module]] = {}


class Expert(nn.Linear):
    """One matrix of a stack, `y = W_e x + b_e`.

    Attributes:
        stack: of which it is a part.
        parameter: name of the stack's parameter.
        number: of the expert.
        routed: while it is called, what came to the owner `[tokens, dim]` and which of it is here.
    """

    def __init__(self, stack: Stack, parameter: str, number: int) -> None:
        nn.Module.__init__(self)
        self.stack, self.parameter, self.number = stack, parameter, number
        self.routed: tuple[Tensor, Tensor] | None = None
        self.out_features, self.in_features = self.weight.shape
        self.training = False

    @property
    def stored(self) -> Tensor:
        """The matrix as it lies in the parameter: `[in, out]` where the owner says transposed."""
        found: Tensor = getattr(self.stack.owner, self.parameter)[self.number]
        return found

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """`[out, in]`, a view."""
        return self.stored.mT if self.stack.owner.is_transposed else self.stored

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        """`[out]`, if experts have one."""
        owner = self.stack.owner
        return getattr(owner, f"{self.parameter}_bias")[self.number] if owner.has_bias else None

    @property
    def edited(self) -> bool:
        """Whether anything may be added to what it gives: by edits, or by hooks on its output."""
        return bool(getattr(self, "_rankedit_slots", ()) or self._forward_hooks)

    def named_parameters(self, *_: object, **__: object) -> Iterator[tuple[str, nn.Parameter]]:
        """The stack's parameter, which tells where and as what it computes."""
        yield "weight", getattr(self.stack.owner, self.parameter)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:  # noqa: ANN401, FBT001
        for name, tensor in (("weight", self.weight), ("bias", self.bias)):
            if tensor is not None:
                destination[prefix + name] = tensor if keep_vars else tensor.detach()


class Stack:
    """The experts of one module, made when they are first asked for.

    Attributes:
        owner: the module.
        layers: by `(parameter, number)`.
        watchers: how many want to see what experts read.
    """

    def __init__(self, owner: Any) -> None:  # noqa: ANN401 - a module with what `_SAID` names
        self.owner = owner
        self.watchers = 0
        self.layers = {
            (name, number): Expert(self, name, number)
            for name in (self.up, "down_proj")
            for number in range(owner.num_experts)
        }

    @property
    def up(self) -> str:
        """Name of the first parameter."""
        return "gate_up_proj" if self.owner.has_gate else "up_proj"

    def touched(self) -> list[int]:
        """Experts that have edits or hooks."""
        found = (n for (_, n), e in self.layers.items() if e.edited or e._forward_pre_hooks)
        return sorted(set(found))

    def settle(self) -> None:
        """The owner routes to its experts as long as one is edited or watched."""
        cls = type(self.owner)
        routes = self.watchers > 0 or any(layer.edited for layer in self.layers.values())
        if routes != (_BASE in vars(cls)):
            _become(self.owner, routed_class(cls) if routes else vars(cls)[_BASE])

    def added(
        self, number: int, tokens: Tensor, rows: Tensor, inputs: Tensor, weights: Tensor
    ) -> Tensor | None:
        """What edits of an expert add to the owner's output for rows `[n, dim]` of its inputs."""
        up, down = self.layers[self.up, number], self.layers["down_proj", number]
        for layer in (up, down):
            layer.routed = inputs, tokens
        try:
            inner = self._gated(up(rows))
            given = self._normed(down(inner))
            if not (up.edited or down.edited):
                return None
            bare = self._gated(nn.Linear.forward(up, rows)) if up.edited else inner
            difference = given - self._normed(nn.Linear.forward(down, bare))
        finally:
            up.routed = down.routed = None
        return difference * weights[:, None]

    def _gated(self, rows: Tensor) -> Tensor:
        act = self.owner._apply_gate if self.owner.has_gate else self.owner.act_fn
        return cast("Tensor", act(rows))

    def _normed(self, rows: Tensor) -> Tensor:
        norm = getattr(self.owner, "has_post_expert_norm", False)
        return cast("Tensor", self.owner.post_expert_norm(rows)) if norm else rows


def stack_of(module: nn.Module) -> Stack | None:
    """The experts of a module whose matrices are 3-dimensional parameters; None of any other.

    What is known of such a module is what transformers 5 writes into it, whatever model it is of.
    Quantised, sharded, offloaded and expert-parallel ones are none: there is no matrix to read.
    """
    if not all(hasattr(module, name) for name in _SAID) or getattr(
        module, "_is_expert_parallel", False
    ):
        return None
    names = ("gate_up_proj" if module.has_gate else "up_proj", "down_proj")
    if not all(_is_plain(module._parameters.get(name), module.num_experts) for name in names):
        return None
    if _STACK not in vars(module):
        vars(module)[_STACK] = Stack(module)
    stack: Stack = vars(module)[_STACK]
    return stack


def _is_plain(tensor: Tensor | None, count: object) -> bool:
    if type(tensor) is not nn.Parameter or type(tensor.data) is not Tensor or tensor.is_meta:
        return False
    wide = tensor.is_floating_point() and tensor.element_size() > 1
    return wide and tensor.ndim == 3 and tensor.shape[0] == count


def experts_of(module: nn.Module, name: str) -> Iterator[tuple[str, Expert]]:
    """The experts of a module by their names, which begin with the module's."""
    stack = stack_of(module)
    yield from _named(stack, name) if stack is not None else ()


def _named(stack: Stack, name: str) -> Iterator[tuple[str, Expert]]:
    for (parameter, number), expert in stack.layers.items():
        yield f"{name}.{parameter}.{number}".lstrip("."), expert


def parts_of(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules of a model by name, and those of its experts that were ever asked for."""
    for name, module in model.named_modules():
        yield name, module
        if _STACK in vars(module):
            yield from _named(vars(module)[_STACK], name)


@contextlib.contextmanager
def watched(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Experts among the layers are called inside the block, also those to which no token comes."""
    stacks = {id(e.stack): e.stack for e in layers if isinstance(e, Expert)}.values()
    try:
        for stack in stacks:
            stack.watchers += 1
            stack.settle()
        yield
    finally:
        for stack in stacks:
            stack.watchers -= 1
            stack.settle()


def check_know_rows(verb: str, layers: Mapping[str, nn.Module]) -> None:
    """Refuse what is about rows of a batch where layers do not know them.

    Raises:
        AttachError: one is an expert.
    """
    name = next((name for name, layer in layers.items() if isinstance(layer, Expert)), None)
    if name is not None:
        raise AttachError(
            f"Attachment.{verb}: {name!r} is an expert, which reads tokens of all rows together, "
            "so that nothing can be given for each row; give one number for all, or run the rows "
            "one after the other."
        )


# ---------------------------------------------------------------------------------- the owner


class RoutedExperts(nn.Module):
    """What `routed_class` puts before the class of an owner."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RoutedExperts:  # noqa: FBT001, FBT002
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for layer in vars(self)[_STACK].layers.values():
            layer._apply(fn)
        return self

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        return _rebuild, (vars(type(self))[_BASE],), self.__dict__


def _rebuild(base: type[nn.Module]) -> nn.Module:
    cls = routed_class(base)
    return cls.__new__(cls)


def routed_class(base: type[nn.Module]) -> type[nn.Module]:
    """The subclass of an owner's class that adds what edits of its experts change."""
    if base in _KEPT:
        return _KEPT[base]

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as the owner's own
        outputs = base.forward(self, *args, **kwargs)
        if kwargs:
            args = inspect.signature(base.forward).bind(self, *args, **kwargs).args[1:]
        return _with_experts(vars(self)[_STACK], outputs, *args[:3])

    namespace = {"__module__": base.__module__, "__doc__": base.__doc__, "forward": forward}
    cls = type(f"Routed{base.__name__}", (RoutedExperts, base), {**namespace, _BASE: base})
    return _KEPT.setdefault(base, cls)


def _with_experts(
    stack: Stack, outputs: Tensor, inputs: Tensor, index: Tensor, weights: Tensor
) -> Tensor:
    if inputs.ndim != 2 or index.shape != weights.shape or index.ndim != 2:
        raise ProjectionError(
            f"{type(stack.owner).__name__}: experts must get vectors [tokens, dim] and the numbers "
            f"and weights [tokens, k] of their experts, got {list(inputs.shape)}, "
            f"{list(index.shape)} and {list(weights.shape)}; detach edits of its experts."
        )
    for number in stack.touched():
        tokens, place = (index == number).nonzero(as_tuple=True)
        added = stack.added(number, tokens, inputs[tokens], inputs, weights[tokens, place])
        if added is not None:
            outputs = outputs.index_add(0, tokens, added.to(outputs.dtype))
    return outputs


def _become(module: nn.Module, cls: type[nn.Module]) -> None:
    """Another class, and what wrappers hold of the old one's forward (accelerate's hooks)."""
    own = {type(module).forward, cls.forward}
    module.__class__ = cls
    for name in ("forward", "_old_forward"):
        held = vars(module).get(name)
        if isinstance(held, MethodType) and held.__self__ is module and held.__func__ in own:
            vars(module)[name] = MethodType(cls.forward, module)

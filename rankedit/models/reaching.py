"""Whether a model calls the layers whose edits are attached, seen while it runs.

Nothing about a model tells whether it calls a layer: it may hand the weight to a function of its
own, keep an unused layer in its tree, or have put another in its place since. So that is observed:
each edit notes that it was reached, and a hook on the model looks at the notes after each call.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from rankedit.errors import RankeditWarning
from rankedit.models.slots import Mark
from rankedit.models.targets import Target

_USUAL = "The model may use their weights in a function of its own, or other layers in their place"
_ALONE = (
    "The model that it is in may not have run, or may use the weight in a function of its own, "
    "which is told at once where edits are attached to the model by name"
)
_REMEDY = (
    "the edits there do nothing: attach to what is called, or put static edits into the weights "
    "with fuse_"
)


def not_called(call: str, names: Iterable[str], when: str, remedy: str, why: str = _USUAL) -> str:
    """What to say of projections that were not called: all who look for that say it so."""
    listed = list(dict.fromkeys(names))
    shown = ", ".join(map(repr, listed[:5])) + (", ..." if len(listed) > 5 else "")
    return (
        f"{call}: {len(listed)} projections were not called {when}: {shown}. {why} "
        f"(rankedit.probe tells what is called); {remedy}."
    )


class _Observed:
    """What is known of one edit."""

    def __init__(self, target: Target, mark: Mark) -> None:
        self.target, self.mark = target, mark
        self.reached = self.told = False
        self.around = self.surroundings()

    def surroundings(self) -> list[list[object]]:
        """The modules around the layer, what runs them, their children, and their switches."""
        found = []
        for part in self.target.parents:
            own = vars(part)  # where functions are patched in; diffusers keeps its processors there
            runs = (type(part).forward, own.get("forward"), own.get("processor"))
            around = [id(function) for function in (*runs, *part._modules.values())]
            found.append([*around, *_switches(own), *_switches(own.get("config"))])
        return found

    def passed(self) -> bool:
        """Whether the edit was reached since this was asked before."""
        found, self.mark.reached = self.mark.reached, False
        if found and not self.reached:
            # What the call itself set, as that a text's keys are kept, is no change to tell of.
            self.around = self.surroundings()
        self.reached |= found
        return found


def _switches(holder: object) -> list[tuple[str, object]]:
    """What is on or off, and named, of a module or its configuration; modes are seen elsewhere."""
    # Numbers count calls and lengths: they change without another way through the model.
    named = holder if isinstance(holder, dict) else getattr(holder, "__dict__", {})
    return [(n, v) for n, v in named.items() if isinstance(v, (bool, str)) and n != "training"]


class Watch:
    """A forward hook on a model: what its calls did not reach.

    Copies of the hook, in copies of the model, see nothing: they know the layers of the original.
    """

    def __init__(
        self, model: nn.Module | None = None, marked: Sequence[tuple[Target, Mark]] = ()
    ) -> None:
        self._model = model
        self._observed = [_Observed(target, mark) for target, mark in marked]
        self._modes: set[tuple[bool, ...]] = set()

    def start(self) -> None:
        """Look on, if there is a model around the layers."""
        if self._model is not None:
            self._model.register_forward_hook(self)

    def stop(self) -> None:
        """Take the hook out, whether or not it got in."""
        if self._model is not None:
            discard(self._model, self)

    def __call__(self, model: nn.Module, _args: object, _output: object) -> None:
        """The model was called."""
        # What is fast without gradients may leave out the layers that a training forward calls.
        fused = torch.backends.mha.get_fastpath_enabled()
        mode = (model.training, torch.is_grad_enabled(), fused)
        first = mode not in self._modes
        self._modes.add(mode)
        # Warnings are no part of a graph. What was reached is in the marks, which it does write.
        if torch.compiler.is_compiling():
            return
        missed = [one for one in self._observed if not one.passed() and not one.told]
        if not missed:
            return
        moved = [one for one in missed if one.around != one.surroundings()]
        if moved:
            self._tell(
                moved,
                "after it was rearranged",
                "The model was rearranged after attaching (its projections were fused, a layer was "
                "replaced, or a switch of its modules set)",
            )
        # Of several that were attached together, others may be called later: of routed experts.
        elif first and len(missed) == len(self._observed):
            again = ", and the first in this mode" if len(self._modes) > 1 else ""
            self._tell(missed, f"in the model's {'latest' if again else 'first'} call{again}")

    def reached(self) -> dict[str, bool]:
        """By name, whether the edits of a layer were reached."""
        names: dict[str, bool] = {}
        for one in self._observed:
            name = one.target.name
            names[name] = names.get(name, False) or one.reached or one.mark.reached
        return names

    def report(self) -> None:
        """Warn of edits that were never reached, if the model ran, or could not be seen to."""
        reached = self.reached()
        missed = [one for one in self._observed if not reached[one.target.name] and not one.told]
        # A model that never ran says nothing of its layers.
        if missed and self._modes:
            self._tell(missed, "while edits were attached there")
        elif missed and self._model is None:
            self._tell(missed, "while an edit was attached to the layer alone", _ALONE)

    def _tell(self, observed: Sequence[_Observed], when: str, why: str = _USUAL) -> None:
        for one in observed:
            one.told, one.reached = True, False
        names = [one.target.name for one in observed]
        warnings.warn(
            not_called("attach", names, when, _REMEDY, why),
            RankeditWarning,
            stacklevel=5,  # of who detaches; a call of the model has frames of torch in between
        )

    def __deepcopy__(self, memo: dict[int, object]) -> Watch:
        return Watch()

    def __reduce__(self) -> tuple[type[Watch], tuple[()]]:
        return Watch, ()


def discard(model: nn.Module, watch: Watch | None = None) -> None:
    """Take a watch, or all there are, out of a model's hooks."""
    for key, hook in list(model._forward_hooks.items()):
        if hook is watch or (watch is None and isinstance(hook, Watch)):
            model._forward_hooks.pop(key, None)

"""A gated edit of several concepts in which each has a strength of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

import rankedit as rk
from rankedit.products import full_precision, sum_of_products
from rankedit.shapes import Inputs, Keys, Outputs, Values
from rankedit_recipes.perfusion.errors import PerfusionError

WEIGHTS = "weights"
_ROWS = "rows"
# How often pipelines repeat a batch: once, with guidance, with perturbed attention beside it.
_REPEATS = (1, 2, 3)


class _Seen(NamedTuple):
    """An input, told from all others while it is held, and what was computed of it."""

    root: Tensor
    view: tuple[object, ...]
    coefficients: Tensor


class Remembered:
    """Remembers the coefficients of the last input of edits that differ in their rows only.

    All layers of a denoiser read one encoding of the text, and most denoisers in all steps of
    sampling: gates and coordinates are computed once for a picture, not for each layer and step.
    An input is known by its identity and its version; writes that count no version (through
    `x.data`) are not noticed.
    """

    def __init__(self) -> None:
        self._seen: _Seen | None = None

    def of(self, x: Inputs, settings: Sequence[Tensor], compute: Callable[[], Tensor]) -> Tensor:
        """The coefficients of an input, computed if it is not the one of before, unchanged.

        Args:
            x: the input.
            settings: what else they depend on and may change, in place.
            compute: gives them.
        """
        # Tensors of inference mode count no versions, and torch raises where they are asked for.
        if _traced(x) or torch.is_inference_mode_enabled():
            return compute()
        versions = []  # in one pass: this runs for every layer and step
        for tensor in (x, *settings):
            if tensor.requires_grad or tensor.is_inference():
                return compute()
            versions.append(tensor._version)
        # Views of a tensor are new objects each time; what they are views of stays.
        root = x if x._base is None else x._base
        view = (x.shape, x.stride(), x.storage_offset(), x.dtype, versions)
        seen = self._seen
        if seen is not None and seen.root is root and seen.view == view:
            return seen.coefficients
        found = compute()
        self._seen = _Seen(root, view, found)
        return found

    def forget(self) -> None:
        """Compute anew next time."""
        self._seen = None

    def __reduce__(self) -> tuple[type[Remembered], tuple[()]]:
        # Copies have settings of their own, which versions do not tell from these.
        return Remembered, ()


def _traced(x: Tensor) -> bool:
    """Whether what runs now is recorded, to run again for other inputs."""
    if torch.compiler.is_compiling() or type(x) is not Tensor:
        return True
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return True
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


@dataclass(frozen=True, eq=False)
class Weighted:
    """`Σ_j w_j (gate_j(s_j) o_j − c_j W i_j)`: both terms of a concept are scaled together.

    Attributes:
        edit: the joint edit.
        weights: `[n]`, one strength for each key; 1 is the edit itself.
        remembered: shared by edits whose keys, gates and weights are the same.
    """

    edit: rk.GatedEdit
    weights: Tensor
    remembered: Remembered = field(default_factory=Remembered)
    _changing: tuple[str, ...] = field(init=False, repr=False)
    linear_in: ClassVar[tuple[str, ...]] = (_ROWS,)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_changing", tuple(sorted(self.settings())))

    @property
    def in_features(self) -> int:
        """Width of the inputs."""
        return self.edit.in_features

    @property
    def out_features(self) -> int:
        """Width of the outputs."""
        return self.edit.out_features

    def __deepcopy__(self, memo: dict[int, Any]) -> Weighted:
        """The same edit, which remembers what it sees by itself: one memory for all of a model."""
        return replace(self, remembered=copy.deepcopy(self.remembered, memo))

    def bind(self, outputs: Callable[[Keys], Values]) -> dict[str, Tensor]:
        """The edit's tensors, the strengths, and as rows `[2n, out]` the targets and `−W i_j`."""
        bound = self.edit.bind(outputs)
        bound.pop("removed")  # of orthogonal combinations of the keys, which have no strengths
        targets = bound.pop("targets")
        removed = -outputs(self.edit.keys).to(targets)
        return {**bound, WEIGHTS: self.weights.float(), _ROWS: torch.cat([targets, removed])}

    def added(self, x: Inputs, tensors: Mapping[str, Tensor]) -> Outputs:
        """What the edit adds, with each concept's part scaled."""
        added = sum_of_products(x, self.terms(x, tensors))
        return added + 0.0 if "floor" in tensors else added  # no negative zeros in the dead zone

    def terms(self, x: Inputs, tensors: Mapping[str, Tensor]) -> tuple[tuple[Tensor, Tensor], ...]:
        """Gates and coordinates of the concepts, each scaled, with the rows."""
        settings = [tensors[name] for name in self._changing]
        found = self.remembered.of(x, settings, lambda: self._coefficients(x, tensors))
        return ((found, tensors[_ROWS]),)

    def _coefficients(self, x: Inputs, tensors: Mapping[str, Tensor]) -> Tensor:
        rows = tensors[_ROWS]
        known = {**tensors, "targets": rows, "removed": rows}  # of which it needs the factors only
        (opening, _), (parts, _) = self.edit.terms(x, known)
        with full_precision(x):
            # From the orthogonal basis back to the keys, to which strengths belong.
            if "to_coordinates" in tensors:
                parts = linear(parts, tensors["to_coordinates"])
            return torch.cat([opening * tensors[WEIGHTS], parts * tensors[WEIGHTS]], -1)

    def rows_for(self, setting: Tensor, count: int) -> Tensor:
        """A setting `[rows, n]` for a batch of `count`: guidance repeats all rows, one after all.

        Raises:
            PerfusionError: the batch is not those rows, whole and a few times; or they are none,
                for no call was seen that tells whose they are.
        """
        if not len(setting):
            raise PerfusionError(
                "perfusion: settings by row were set after the prompts had been encoded, or the "
                "text encoder has run for another pipeline since, so that it is not known which "
                "row is whose; set them first, and then call the pipeline or its encode_prompt."
            )
        # Apart: code compiled for any number of rows (torch 2.13) has no divmod.
        times, rest = count // len(setting), count % len(setting)
        if rest or times not in _REPEATS:
            raise PerfusionError(
                f"perfusion: settings were given for a batch of {len(setting)} rows (prompts times "
                f"pictures of each), but the model runs with {count}, which is not those once, or "
                "a few times as with guidance; give one for each row, or one for all: "
                "perfusion.set_concepts(pipe, strength=1.0)."
            )
        if times == 1:
            return setting
        repeated = setting.repeat(times, 1)
        # What remembers coefficients tells settings by their versions.
        if not (_traced(setting) or repeated.is_inference() or setting.is_inference()):
            torch._C._autograd._unsafe_set_version_counter((repeated,), (setting._version,))
        return repeated

    def settings(self) -> frozenset[str]:
        """The edit's settings, and the strengths."""
        return self.edit.settings() | {WEIGHTS}

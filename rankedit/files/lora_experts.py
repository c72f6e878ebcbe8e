"""Edits of experts that lie in one parameter, as PEFT's `target_parameters` hold them.

PEFT (0.21.2) wraps the module of the experts once for each parameter, the last registered one
outermost, and keeps one pair of factors for all experts of a parameter, of one rank r:

    A [experts·r, in], rows by expert, then rank;  B [out, r·experts], columns by rank, then expert

Experts without an edit, and ranks that an edit lacks, are zeros. What is stored as `[in, out]`
(gpt-oss) PEFT turns by itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from rankedit.edits import LowRank
from rankedit.errors import EditFileError
from rankedit.models.experts import Expert
from rankedit.models.selecting import find

Factors = Callable[[str, LowRank, int], tuple[Tensor, Tensor]]

# A module of this name is nowhere usual; the name of an expert in a parameter is.
_LIKELY = re.compile(r"(.*\.)?experts\.\w+\.\d+")


@dataclass(frozen=True)
class StackLora:
    """All edits of one parameter.

    Attributes:
        owner: name of the experts' module in the file.
        parameter: name of the parameter.
        wrappers: how many other wrapped parameters are around this one.
        count: of experts.
        edits: by number of the expert.
    """

    owner: str
    parameter: str
    wrappers: int
    count: int
    edits: Mapping[int, LowRank]

    @property
    def name(self) -> str:
        """Of the parameter in the model."""
        return f"{self.owner}.{self.parameter}"

    def tensors(self, rank: int, factors: Factors) -> dict[str, Tensor]:
        """A and B of a rank by the names that PEFT gives them, without its prefix."""
        made = {n: factors(f"{self.name}.{n}", e, rank) for n, e in self.edits.items()}
        down, up = next(iter(made.values()))
        first = down.new_zeros(self.count, *down.shape)
        second = up.new_zeros(*up.shape, self.count)
        for number, (down, up) in made.items():
            first[number], second[..., number] = down, up
        stem = self.owner + ".base_layer" * self.wrappers
        return {
            f"{stem}.lora_A.weight": first.flatten(0, 1),
            f"{stem}.lora_B.weight": second.flatten(1).contiguous(),
        }


def stacks_of(
    edits: Mapping[str, LowRank], model: nn.Module | None, component: str
) -> tuple[dict[str, LowRank], list[StackLora]]:
    """The edits of layers, and those of experts by their parameter.

    Raises:
        EditFileError: without the model, a name is likely that of an expert in a parameter.
    """
    if model is None:
        likely = next((name for name in edits if _LIKELY.fullmatch(name)), None)
        if likely is None:
            return dict(edits), []
        raise EditFileError(
            f"to_lora: {likely!r} is named as an expert in one parameter is, which a LoRA holds in "
            "another form than a layer; pass model=, which tells what it is."
        )
    layers = {name: find(model, name) for name in edits}
    found: dict[tuple[str, str], dict[int, LowRank]] = {}
    owners: dict[str, Any] = {}
    for name, layer in layers.items():
        if isinstance(layer, Expert):
            owner = name.rsplit(".", 2)[0]
            owners[owner] = layer.stack.owner
            found.setdefault((owner, layer.parameter), {})[layer.number] = edits[name]
    rest = {n: edit for n, edit in edits.items() if not isinstance(layers[n], Expert)}
    stacks = []
    for (owner, parameter), by_number in found.items():
        registered = list(owners[owner]._parameters)
        after = registered[registered.index(parameter) + 1 :]
        wrappers = sum((owner, other) in found for other in after)
        count: int = owners[owner].num_experts
        named = f"{component}.{owner}" if component else owner
        stacks.append(StackLora(named, parameter, wrappers, count, by_number))
    return rest, stacks


def check_kept(stacks: list[StackLora], *, folder: bool) -> None:
    """Refuse layouts that have no place for parameters.

    Raises:
        EditFileError: not PEFT's.
    """
    if stacks and not folder:
        raise EditFileError(
            f"to_lora: {stacks[0].name!r} has all experts in one parameter, for which this layout "
            "has no form; write the layout of PEFT (layout=rankedit.PEFT), or fuse_ the edits."
        )

"""What tells one method of editing concepts from another, as one frozen value.

All methods are one problem, posed once for all projections. With encodings `k` of a concept and
the encodings `g` that they are to act like, every key and value projection W of a denoiser gets
`W (I + M)`, where the map M `[in, in]` is the solution of

    minimise  ‖M‖²_metric + Σ_j s_j⁻¹ ‖k_j Mᵀ − (g_j − k_j)‖²      (held keys: h Mᵀ = 0)

which is `rankedit.solve_edit` for the identity. The published loops solve the same with W on both
sides, once for each projection: their solution is linear in W, so that it is `W M`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from torch import Tensor

import rankedit as rk
from rankedit_recipes.concepts.errors import ConceptsError

Cost = Literal["identity", "covariance", "null space"]
Tokens = Literal["last", "all", "carried"]
Keep = Literal["soft", "hard"]
Projections = Literal["both", "values"]


@dataclass(frozen=True)
class Settings:
    """A method: what a change costs, which encodings are keys, and how others are kept.

    Attributes:
        method: its name.
        cost: of a change: `"identity"`, `weight·I`; `"covariance"`, `weight·C` with C the second
            moment of the encodings of captions; `"null space"`, `weight·I` where the held
            concepts have no part and infinite elsewhere.
        weight: see cost.
        ridge: added to C, in units of its mean eigenvalue.
        cut: of the null space: eigenvalues up to this share of the largest count as zero.
        softness: the weight of a key's squared error is 1/softness; 0 for an equality.
        balanced: divide a concept's weight by the number of its keys, so that a concept with many
            contexts counts as much as one with few.
        tokens: which encodings of a prompt are keys: `"last"` token of the word; `"all"`; or
            `"carried"`: those that change when the word is taken out, by at least `carried` of the
            largest change.
        carried: see tokens.
        neighbours: what erasing to nothing means. 0: the prompt without the word, as published;
            else the mean of so many of the words with the nearest embeddings, in its place.
        beyond: and so much further away from the concept: with the mean g of the neighbours and
            the concept's key k the goal is `g + beyond (g − k)`.
        contexts: whether the word is read in sentences, instead of alone.
        keep: `"soft"`: the squared change of a held concept's keys has the weight `preserve`;
            `"hard"`: its mean key must not move at all.
        preserve: see keep.
        influence: keep hard only the held concepts that would otherwise move more than the mean.
        anchored: hold the encodings of the empty prompt too: its beginning, and the three centres
            of what fills it up.
        projections: `"both"`, or `"values"` alone.
        rounds: how often what brings the concept back is looked for and erased too (RECE).
        pullback: ridge of that search.
        rank: of the map, at most, for each concept; 0 for no limit.
    """

    method: str
    cost: Cost = "identity"
    weight: float = 1.0
    ridge: float = 1e-3
    cut: float = 1e-6
    softness: float = 1.0
    balanced: bool = False
    tokens: Tokens = "last"
    carried: float = 0.1
    neighbours: int = 0
    beyond: float = 0.0
    contexts: bool = False
    keep: Keep = "soft"
    preserve: float = 1.0
    influence: bool = False
    anchored: bool = False
    projections: Projections = "both"
    rounds: int = 0
    pullback: float = 0.1
    rank: int = 0

    def __post_init__(self) -> None:
        choices = {"cost": Cost, "tokens": Tokens, "keep": Keep, "projections": Projections}
        for name, kind in choices.items():
            if getattr(self, name) not in get_args(kind):
                raise ConceptsError(
                    f"Settings: {name} must be one of {', '.join(get_args(kind))}, got "
                    f"{getattr(self, name)!r}."
                )
        for field in fields(self):
            value = getattr(self, field.name)
            whole = field.type != "int" or isinstance(value, int)
            if field.type in ("float", "int") and (
                isinstance(value, bool) or not _number(value) or not whole
            ):
                raise ConceptsError(f"Settings: {field.name} must be a number, got {value!r}.")
            if field.type == "bool" and not isinstance(value, bool):
                raise ConceptsError(f"Settings: {field.name} must be true or false, got {value!r}.")
        positive = ("weight", "pullback", "preserve")
        least = ("softness", "ridge", "cut", "carried", "rounds", "rank", "neighbours", "beyond")
        # As what must hold and not as what must not: a nan is in no range.
        wrong = {n: getattr(self, n) for n in positive if not 0 < getattr(self, n) < math.inf}
        wrong |= {n: getattr(self, n) for n in least if not 0 <= getattr(self, n) < math.inf}
        if wrong:
            raise ConceptsError(f"Settings: out of range: {wrong}; see its attributes.")

    @property
    def reducible(self) -> bool:
        """Whether keys may be replaced by fewer whose edit is the same, see `solving.reduced`."""
        return self.softness > 0

    def solve(
        self,
        layer: object,
        keys: Tensor,
        values: Tensor,
        metric: rk.Metric,
        *,
        softness: float | Tensor | None = None,
        held: Tensor | None = None,
    ) -> rk.LowRank:
        """The edit of one linear map, as `rankedit.solve_edit` takes its arguments.

        Args:
            layer: only run; for an edit of concepts the identity of encodings.
            keys: `[n, in]`.
            values: `[n, out]`, what they are to give.
            metric: what a change costs.
            softness: one number, or one for each key; the method's own by default.
            held: `[h, in]`, keys that must not move.
        """
        soft = self.softness if softness is None else softness
        return rk.solve_edit(layer, keys, values, metric, softness=soft, hold=held)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Settings:
        """What `to_dict` gave.

        Raises:
            ConceptsError: an unknown setting, or a value out of range.
        """
        unknown = sorted(set(values) - {field.name for field in fields(Settings)})
        if unknown or "method" not in values:
            raise ConceptsError(
                f"Settings: unknown {unknown}, or no method; known are "
                f"{', '.join(field.name for field in fields(Settings))}."
            )
        return Settings(**values)


def _number(value: object) -> bool:
    return isinstance(value, int | float)

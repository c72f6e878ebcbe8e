"""What tells one method of direct editing from another, as one frozen value.

What solves is `Settings.solve`, and nothing else: the edits of a batch, of a stream and of the
benchmark come from the ledger that `Settings.ledger` makes. A subclass that overrides it is a
method of its own; `rankedit_recipes.language.method_of` makes one from a function.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import torch

import rankedit as rk
from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.language.requests import Request

Cost = Literal["covariance", "null space", "identity"]
Spread = Literal["even", "root"]
Anchor = Literal["output", "stream"]
# Streams that do without them stay readable for versions that have no such settings.
_LATER = ("space", "chat")


@dataclass(frozen=True)
class Settings:
    """A method: what a change costs, what is asked of the keys, where, and how values are found.

    Every length is relative to the model at hand, so that one set of numbers serves models of any
    width: what the papers give in absolute units is converted in the methods' docstrings.

    Attributes:
        method: its name.
        cost: of a change: `"covariance"`, `M = weight·d·C` with C the second moment of what the
            projection reads and d its width; `"null space"`, `M = weight·tr(C)·I` in the
            directions that hold at most the share `energy` of tr(C), and infinite elsewhere;
            `"identity"`, `M = weight·tr(C)/d·I`, which needs no more of C than its size.
        weight: see cost. With softness 1 and the covariance, weight·d is MEMIT's λ: the number of
            vectors of the corpus that one edit weighs as much as.
        ridge: added to C, in units of its mean eigenvalue; None for `rankedit.Metric`'s default.
        energy: see cost.
        softness: 0 if every key must give its value exactly, else the weight of the squared error
            is 1/softness.
        layers: how many neighbouring blocks share an edit, at most; see `shared_by`.
        depth: where the last of them lies, as a share of all blocks (published: about a third: 17
            of 48, 12 of 36, 8 of 28, 8 of 24); None for those that `default_blocks` measures.
        spread: of what the i-th block from the last one takes over of what lacks still: `"even"`,
            1/i (MEMIT), or `"root"`, 1/√i (PMET).
        contexts: lengths in tokens of the sentences before the prompt, beside the bare prompt.
        bare: share of the bare prompt in the mean over contexts; None for that of any other.
        consistent: False divides by the bare prompt's key what is solved for the mean key: the
            published ROME's fault, kept for comparison. Needs one layer and softness 0.
        through: whether the search sees what an edit for the mean key gives each context, instead
            of the whole shift everywhere (published). The edit is the cheapest one under the
            metric there, whatever `solve` is.
        anchor: what the clamp, the decay and the learning rate are relative to: the length of what
            the projection gives (ROME), or of the residual stream behind the block (MEMIT).
        steps: of the search for values.
        learning_rate: of Adam; 1 moves each coordinate by the anchor's root mean square at first.
        clamp: largest length of a change, in anchors.
        decay: weight of the change's length in anchors.
        kl: weight of the divergence of what follows the subject.
        stop_below: a request is done when its objective is below this.
        first_for: a request is done when its target has been the likeliest token everywhere for so
            many steps (ENCORE); 0 for never.
        seed: of the sentences.
        tokens: how many tokens are optimised over at once: memory, not results.
        space: for requests that leave it open; see `Request.space`.
        chat: the same; see `Request.chat`.
    """

    method: str
    cost: Cost = "covariance"
    weight: float = 1.0
    ridge: float | None = None
    energy: float = 0.02
    softness: float = 0.0
    layers: int = 1
    depth: float | None = None
    spread: Spread = "even"
    contexts: tuple[int, ...] = (10,) * 5
    bare: float | None = None
    consistent: bool = True
    through: bool = True
    anchor: Anchor = "output"
    steps: int = 20
    learning_rate: float = 0.5
    clamp: float = 4.0
    decay: float = 0.5
    kl: float = 0.0625
    stop_below: float = 0.05
    first_for: int = 0
    seed: int = 0
    tokens: int = 8192
    space: bool | None = None
    chat: bool = False

    def __post_init__(self) -> None:
        choices = {"cost": Cost, "spread": Spread, "anchor": Anchor}
        for name, kind in choices.items():
            if getattr(self, name) not in get_args(kind):
                raise LanguageError(
                    f"Settings: {name} must be one of {', '.join(get_args(kind))}, got "
                    f"{getattr(self, name)!r}."
                )
        self._check_types()
        self._check_numbers()
        if not self.consistent and self.solver:
            raise LanguageError(
                "Settings: consistent=False is ROME's published formula, which calls no other "
                f"solve, got that of {self.solver}; leave consistent=True."
            )
        if not self.consistent and (self.softness or self.layers > 1):
            raise LanguageError(
                "Settings: consistent=False is ROME's published fault, which needs softness 0 and "
                f"one layer, got softness {self.softness} and {self.layers} layers."
            )

    def _check_types(self) -> None:
        kinds = {"float": (int, float), "int": (int,), "bool": (bool,)}
        for field in fields(self):
            value = getattr(self, field.name)
            kind = kinds.get(str(field.type), (object,))
            # To Python, True is a number too.
            if not isinstance(value, kind) or (int in kind and isinstance(value, bool)):
                raise LanguageError(
                    f"Settings: {field.name} must be of type {field.type}, got {value!r}."
                )

    def _check_numbers(self) -> None:
        positive = ("weight", "layers", "steps", "learning_rate", "clamp", "tokens")
        least = ("softness", "decay", "kl", "stop_below", "first_for")
        # As what must hold and not as what must not: a nan is in no range.
        wrong = {n: getattr(self, n) for n in positive if not 0 < getattr(self, n) < math.inf}
        wrong |= {n: getattr(self, n) for n in least if not 0 <= getattr(self, n) < math.inf}
        shares = {"depth": self.depth, "energy": self.energy, "bare": self.bare}
        wrong |= {n: v for n, v in shares.items() if v is not None and not 0 < v <= 1}
        if min(self.contexts, default=1) < 1:
            wrong["contexts"] = self.contexts
        if wrong:
            raise LanguageError(f"Settings: out of range: {wrong}; see its attributes.")

    def metric(self, moment: rk.SecondMoment) -> rk.Metric:
        """What a change of a projection costs that reads inputs with this second moment."""
        trace = float(moment.matrix.trace())
        if self.cost == "identity":
            # In units of C's mean eigenvalue: one weight means the same for each cost.
            return rk.Metric.identity(moment.dim, self.weight * trace / moment.dim)
        if self.cost == "null space":
            # AlphaEdit's L2 in units of tr(C), the mean squared length of what is read.
            return rk.Metric.null_space(moment, energy=self.energy, scale=self.weight * trace)
        metric = rk.Metric.from_moment(moment, ridge=self.ridge)
        # λ in vectors per width: a wider model has more directions to have seen as often.
        return metric.scaled(self.weight * moment.dim)

    def shared_by(self, count: int) -> Settings:
        """The method for another number of blocks, with as much of an edit met in the end.

        A soft method leaves a part of what lacks to the blocks above. The fewer there are, the more
        each must meet: the weight is lowered in proportion.
        """
        # Not by w·3/3, which is not w for every w: a stream would not know its own metric again.
        if count == self.layers:
            return self
        return replace(self, weight=self.weight * count / self.layers, layers=count)

    def shares(self, contexts: int) -> torch.Tensor:
        """Shares of the bare prompt and the other contexts in means over them, float64."""
        # With no other context the bare prompt is the mean, whatever its share would be.
        bare = 1.0 if contexts == 1 else (1 / contexts if self.bare is None else self.bare)
        others = (1 - bare) / max(1, contexts - 1)
        return torch.tensor([bare, *[others] * (contexts - 1)], dtype=torch.float64)

    def solve(
        self, layer: object, keys: torch.Tensor, values: torch.Tensor, metric: rk.Metric
    ) -> rk.LowRank:
        """The edit of one projection, as `rankedit.solve_edit` takes its arguments.

        A subclass may solve in another way. What it gives must depend on nothing but the arguments:
        a stream asks for the edit of all facts anew whenever one comes or goes.

        Args:
            layer: only run, with `rankedit.linear_output`; gives what the unedited projection gave.
            keys: `[n, in]`, one for each fact, in the order of entry.
            values: `[n, out]`, what they are to give, without the projection's bias.
            metric: what a change costs.
        """
        return rk.solve_edit(layer, keys, values, metric, softness=self.softness)

    @property
    def solver(self) -> str:
        """Whose `solve` it is, as `module:name`; empty for `rankedit.solve_edit`."""
        # By where `solve` stands: a subclass that has other settings only solves as this one does.
        kind = next(kind for kind in type(self).__mro__ if "solve" in vars(kind))
        return "" if kind is Settings else f"{kind.__module__}:{kind.__qualname__}"

    def ledger(self, layer: object, metric: rk.Metric) -> rk.Ledger:
        """An empty ledger of one projection, which `solve` solves."""
        # What facts lack is all that `solve_edit` needs: no layer is run for each of them.
        if not self.solver:
            return rk.Ledger(layer, metric, softness=self.softness)
        return rk.Ledger(layer, metric, solver=self.solve)

    def asked(self, requests: Sequence[Request]) -> list[Request]:
        """Requests with what they leave open."""
        return [request.settled(space=self.space, chat=self.chat) for request in requests]

    def search(self) -> rk.ValueSearch:
        """How values are searched for."""
        return rk.ValueSearch(
            steps=self.steps,
            learning_rate=self.learning_rate,
            clamp=self.clamp,
            decay=self.decay,
            kl=self.kl,
            stop_below=self.stop_below,
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON; what earlier versions did not know is left out where nobody asked for it."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        plain = {field.name: field.default for field in fields(self) if field.name in _LATER}
        return {n: v for n, v in values.items() if n not in plain or v != plain[n]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Settings:
        """What `to_dict` gave.

        Raises:
            LanguageError: an unknown setting, or a value out of range.
        """
        # A setting that a later version has may change the result: it is not dropped in silence.
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown or "method" not in values:
            raise LanguageError(f"Settings: unknown {unknown}, or no method, in {values!r:.200}.")
        # JSON and TOML have no tuples, and a frozen value must be hashable.
        lists = {n: tuple(v) for n, v in values.items() if isinstance(v, list)}
        return cls(**{**values, **lists})

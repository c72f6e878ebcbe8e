"""All edits of one projection: add, replace and remove them, in any order, exactly."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from rankedit.closed_form import solve_lacking
from rankedit.edits import LowRank
from rankedit.errors import ShapeError, SolveError
from rankedit.linear_outputs import linear_output
from rankedit.metric import Metric
from rankedit.shapes import Keys, Values, check_rows

# A layer is the same while its output for a known key moves by no more than this, relative.
_SAME = 1e-4


@dataclass(frozen=True)
class Conflict:
    """Two keys that are nearly parallel under the metric: editing one moves the other.

    Attributes:
        first: name of one edit in the ledger.
        second: name of the other; the same if the two keys belong to one edit.
        cosine: of the two keys under the metric.
        disagreement: `‖r₁ − cosine·r₂‖/‖r₁‖` with the keys scaled to unit length: 0 if the two ask
            for the same change, above 1 if they ask for opposite ones.
    """

    first: Hashable
    second: Hashable
    cosine: float
    disagreement: float


@dataclass(frozen=True)
class _Entry:
    keys: Keys
    lacking: Values


@dataclass(frozen=True)
class _Witness:
    """What the original layer gives for one input, run alone: a batch may round differently."""

    key: Keys
    output: Values

    @classmethod
    def of(cls, layer: object, key: Keys) -> _Witness:
        return cls(key.detach().clone(), linear_output(layer, key).detach().double().clone())

    def holds(self, layer: object) -> bool:
        now = linear_output(layer, self.key).detach().double()
        return float((now - self.output).norm()) <= _SAME * float(self.output.norm())


class Ledger:
    """Edits of one projection, as what each key is to give; solved together on demand.

    After any sequence of additions, replacements and removals, `edit()` is the solution of the one
    batch over what remains: order does not matter, and undoing is exact. Sequential methods
    (recursive least squares; MEMIT with accumulated keys) equal this batch in exact arithmetic.

    The layer must be in its original state whenever something is added: the ledger's edit replaces
    all earlier ones. It notices an edited layer by what it gives for the first and the latest key
    that were ever entered, and for a random input.

    Args:
        layer: module, weight or linear function, unedited; see `solve_edit`.
        metric: what a change costs.
        softness: one number, for every key; see `solve_edit`.
        hold: `[h, in]`, keys whose output must never move.

    Raises:
        ShapeError: softness or hold is not what `solve_edit` takes.

    Example:
        >>> ledger = Ledger(torch.zeros(2, 3), Metric.identity(3))
        >>> key, value = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[1.0, 2.0]])
        >>> ledger.add("first", key, value)
        >>> ledger.add("second", key.roll(1), 3 * value)
        >>> ledger.remove("first")
        >>> ledger.names(), ledger.edit().delta().tolist()
        (['second'], [[0.0, 3.0, 0.0], [0.0, 6.0, 0.0]])
    """

    def __init__(
        self,
        layer: object,
        metric: Metric,
        *,
        softness: float = 0.0,
        hold: Keys | None = None,
    ) -> None:
        if not isinstance(softness, (int, float)) or not 0 <= softness < math.inf:
            raise ShapeError(
                f"Ledger: softness must be one finite number of at least 0, got {softness!r}; it "
                "holds for every key, so that edits can be entered in any order."
            )
        if hold is not None:
            check_rows("Ledger", "hold", hold, metric.dim)
        self._layer = layer
        self._metric = metric
        self._softness = softness
        self._hold = hold
        self._entries: dict[Hashable, _Entry] = {}
        self._witnesses: list[_Witness] = []

    def add(self, name: Hashable, keys: Keys, values: Values) -> None:
        """Enter an edit: `keys [n, in]` are to give `values [n, out]`.

        Raises:
            SolveError: the name is taken, or the layer no longer gives what it gave.
        """
        if name in self._entries:
            raise SolveError(
                f"Ledger.add: {name!r} is in the ledger already; use replace, or another name."
            )
        self._entries[name] = self._entry("add", keys, values)

    def replace(self, name: Hashable, keys: Keys, values: Values) -> None:
        """Put other keys and values in the place of an edit."""
        self._known("replace", name)
        self._entries[name] = self._entry("replace", keys, values)

    def remove(self, name: Hashable) -> None:
        """Take an edit out, as if it had never been added."""
        self._known("remove", name)
        del self._entries[name]

    def names(self) -> list[Hashable]:
        """Names of the edits, in the order of entry."""
        return list(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def edit(self) -> LowRank:
        """The one edit that gives all keys of the ledger their values.

        Raises:
            SolveError: the ledger is empty, or its edits contradict each other.
        """
        if not self._entries:
            raise SolveError("Ledger.edit: the ledger is empty; add an edit first.")
        keys, lacking = self._stacked()
        return solve_lacking(keys, lacking, self._metric, softness=self._softness, hold=self._hold)

    def conflicts(self, threshold: float = 0.9) -> list[Conflict]:
        """Pairs of keys whose cosine under the metric is at least `threshold`, worst first."""
        if not self._entries:
            return []
        keys, lacking = self._stacked()
        owners = [name for name, entry in self._entries.items() for _ in entry.keys]
        cosines = self._metric.cosine(keys, keys).cpu()
        # Scaled to unit length under the metric, so that long keys do not look like strong wishes.
        unit = lacking.cpu() / self._metric.energy(keys).sqrt().cpu()[:, None]
        found = []
        pairs = torch.ones_like(cosines, dtype=torch.bool).triu(1)
        for i, j in torch.nonzero(pairs & (cosines.abs() >= threshold)).tolist():
            cosine = float(cosines[i, j])
            apart = float((unit[i] - cosine * unit[j]).norm() / unit[i].norm().clamp_min(1e-300))
            found.append(Conflict(owners[i], owners[j], cosine, apart))
        return sorted(found, key=lambda conflict: -abs(conflict.cosine))

    def _stacked(self) -> tuple[Tensor, Tensor]:
        entries = self._entries.values()
        return torch.cat([e.keys for e in entries]), torch.cat([e.lacking for e in entries])

    def _known(self, call: str, name: Hashable) -> None:
        if name not in self._entries:
            raise SolveError(
                f"Ledger.{call}: no edit is called {name!r}; the ledger holds {self.names()[:20]}."
            )

    def _entry(self, call: str, keys: Keys, values: Values) -> _Entry:
        self._check_unchanged(call)
        check_rows(f"Ledger.{call}", "keys", keys, self._metric.dim)
        outputs = linear_output(self._layer, keys)
        check_rows(f"Ledger.{call}", "values", values, outputs.shape[1], len(keys))
        lacking = values.detach().to(keys.device).double() - outputs.to(keys.device).double()
        self._witnesses[2:] = [_Witness.of(self._layer, keys[:1])]
        if len(self._witnesses) == 1:
            generator = torch.Generator().manual_seed(0)
            probe = torch.randn(1, self._metric.dim, generator=generator).to(keys)
            # As long as a key: far shorter it would drown in the layer's bias, in half precision.
            probe *= keys[:1].norm() / probe.norm()
            self._witnesses.append(_Witness.of(self._layer, probe))
        return _Entry(keys.detach().clone(), lacking)

    def _check_unchanged(self, call: str) -> None:
        if not all(witness.holds(self._layer) for witness in self._witnesses):
            raise SolveError(
                f"Ledger.{call}: the layer no longer gives what it gave when the last edit was "
                "entered; detach or unfuse edits first, the ledger works on the original layer."
            )

"""All edits of one projection: add, replace and remove them, in any order, exactly."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rankedit.closed_form import solve_lacking
from rankedit.edits import LowRank
from rankedit.errors import ShapeError, SolveError
from rankedit.linear_outputs import linear_output, standing_edits
from rankedit.metric import Metric
from rankedit.originals import Original, Witness
from rankedit.shapes import Keys, Values, check_kind, check_rows, describe, is_number

Solver = Callable[[object, Keys, Values, Metric], LowRank]


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


class _Entry(NamedTuple):
    keys: Keys
    # Values, or what is lacking where no outputs are known.
    given: Values
    outputs: Values | None

    @property
    def lacking(self) -> Values:
        """`R = V − K Wᵀ`; subtracted in float64, where two float32 numbers lose nothing."""
        given = self.given.to(self.keys.device).double()
        return given if self.outputs is None else given - self.outputs


class Ledger:
    """Edits of one projection, as what each key is to give; solved together on demand.

    After any sequence of additions, replacements and removals, `edit()` is the solution of the one
    batch over what remains: order does not matter, and undoing is exact. Sequential methods
    (recursive least squares; MEMIT with accumulated keys) equal this batch in exact arithmetic.
    A solver of one's own is asked for that batch too, so that its edits are undone as exactly, if
    what it returns depends on its arguments alone.

    The layer must be in its original state whenever something is added: the edit replaces earlier
    ones. Attached edits are refused, and what was fused since; other changes are noticed by what it
    gives for the first and the latest key ever entered, and for a random input.

    Args:
        layer: module, weight or linear function, unedited; see `solve_edit`.
        metric: what a change costs.
        softness: one number, for every key; see `solve_edit`.
        hold: `[h, in]`, keys whose output must never move.
        value_metric: of width `out`; see `solve_edit`.
        solver: `(layer, keys, values, metric) -> LowRank`, in the place of `solve_edit`; see
            `rankedit.testing.check_solver`. The layer that it gets is only run
            (`linear_output(layer, keys)`): it gives what the original one gave for the keys.

    Raises:
        ShapeError: what `solve_edit` does not take either, or what it is told beside a solver.

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
        value_metric: Metric | None = None,
        solver: Solver | None = None,
    ) -> None:
        if solver is not None and (softness or hold is not None or value_metric is not None):
            raise ShapeError(
                "Ledger: softness, hold and value_metric are what solve_edit is told, and the "
                "solver is called in its place; leave them out, and let the solver decide."
            )
        if not is_number(softness) or softness < 0:
            raise ShapeError(
                f"Ledger: softness must be one finite number of at least 0, got {softness!r}; it "
                "holds for every key, so that edits can be entered in any order."
            )
        check_kind("Ledger", "metric", metric, Metric)
        check_kind("Ledger", "value_metric", value_metric, Metric, optional=True)
        if hold is not None:
            check_rows("Ledger", "hold", hold, metric.dim, of="metric")
        self._layer, self._metric, self._solver = layer, metric, solver
        self._told: Any = {"softness": softness, "hold": hold, "value_metric": value_metric}
        self._entries: dict[Hashable, _Entry] = {}
        self._witnesses: list[Witness] = []
        self._fused = standing_edits(layer).fused

    def add(self, name: Hashable, keys: Keys, values: Values) -> None:
        """Enter an edit: `keys [n, in]` are to give `values [n, out]`.

        Raises:
            SolveError: the name is taken, or the layer no longer gives what it gave.
        """
        self._check_free("add", name)
        self._entries[name] = self._entry("add", keys, values)

    def add_lacking(self, names: Sequence[Hashable], keys: Keys, lacking: Values) -> None:
        """Enter many edits at once, one for each row, by what is lacking: `R = V − K Wᵀ`.

        The layer is checked once, and run for no key (with a solver of one's own for each): a
        hundred thousand rows take a second where `add` takes minutes.

        Args:
            names: one for each row.
            keys: `[n, in]`.
            lacking: `[n, out]`, what each key is to give more than it does.

        Raises:
            SolveError: as for `add`; nothing is entered then.
        """
        call = "add_lacking"
        check_rows(f"Ledger.{call}", "keys", keys, self._metric.dim)
        self._check_original(call)
        width = linear_output(self._layer, keys[:1]).shape[1]
        check_rows(f"Ledger.{call}", "lacking", lacking, width, len(keys), per="keys")
        for name in names:
            self._check_free(call, name)
        if not len(names) == len(set(names)) == len(keys):
            raise SolveError(
                f"Ledger.{call}: there must be a name for each of {len(keys)} rows, and no two the "
                f"same, got {len(names)}, {len(set(names))} of them different."
            )
        self._witness(keys[:1])
        keys, given, outputs = keys.detach().clone(), lacking.detach().clone(), None
        if self._solver is not None:
            # One by one, as `add` runs them: rows of a batch may round differently.
            rows = [linear_output(self._layer, row).detach() for row in keys.split(1)]
            outputs = torch.cat(rows).to(keys.device).double()
            given = given.to(keys.device) + torch.cat(rows).to(keys.device)
        for number, name in enumerate(names):
            row = slice(number, number + 1)
            told = None if outputs is None else outputs[row]
            self._entries[name] = _Entry(keys[row], given[row], told)

    def replace(self, name: Hashable, keys: Keys, values: Values) -> None:
        """Put other keys and values in the place of an edit."""
        self._known("replace", name)
        self._entries[name] = self._entry("replace", keys, values)

    def remove(self, name: Hashable) -> None:
        """Take an edit out, as if it had never been added."""
        self._known("remove", name)
        self._check_original("remove", attached=False)
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
            SolveError: the ledger is empty, its edits contradict each other, or a solver runs the
                layer for other inputs than the keys while it is edited.
            ShapeError: the solver returns something else, or value_metric is of another width.
        """
        if not self._entries:
            raise SolveError("Ledger.edit: the ledger is empty; add an edit first.")
        if self._solver is not None:
            return self._solved(self._solver)
        keys, lacking = self._stacked()
        return solve_lacking(keys, lacking, self._metric, **self._told)

    def _solved(self, solver: Solver) -> LowRank:
        entries = self._entries.values()
        keys, values = (torch.cat([getattr(e, n) for e in entries]) for n in ("keys", "given"))
        outputs = torch.cat([e.outputs for e in entries if e.outputs is not None])
        original = Original(self._layer, keys, outputs, lambda: self._check_original("edit"))
        edit = solver(original, keys.clone(), values, self._metric.guarded)  # few ask for it
        shape, given = [outputs.shape[1], self._metric.dim], describe(edit)
        if isinstance(edit, LowRank):
            given = f"one of {[edit.out_features, edit.in_features]}"
        if given != f"one of {shape}":
            raise ShapeError(
                f"Ledger.edit: the solver must return a LowRank of the layer's shape {shape}, got "
                f"{given}; rankedit.testing.check_solver says what else it must do."
            )
        return edit

    def conflicts(self, threshold: float = 0.9) -> list[Conflict]:
        """Pairs of keys whose cosine under the metric is at least `threshold`, worst first."""
        check_kind("Ledger.conflicts", "threshold", threshold, int, float)
        if not self._entries:
            return []
        keys, lacking = self._stacked()
        owners = [name for name, entry in self._entries.items() for _ in entry.keys]
        cosines = self._metric.cosine(keys, keys).cpu()
        # Scaled to unit length under the metric, so that long keys do not look like strong wishes.
        unit = lacking.cpu() / self._metric.energy(keys).sqrt().cpu()[:, None]
        found, pairs = [], torch.ones_like(cosines, dtype=torch.bool).triu(1)
        for i, j in torch.nonzero(pairs & (cosines.abs() >= threshold)).tolist():
            cosine = float(cosines[i, j])
            apart = float((unit[i] - cosine * unit[j]).norm() / unit[i].norm().clamp_min(1e-300))
            found.append(Conflict(owners[i], owners[j], cosine, apart))
        return sorted(found, key=lambda conflict: -abs(conflict.cosine))

    def _stacked(self) -> tuple[Tensor, Tensor]:
        entries = self._entries.values()
        return torch.cat([e.keys for e in entries]), torch.cat([e.lacking for e in entries])

    def _known(self, call: str, name: Hashable) -> None:
        check_kind(f"Ledger.{call}", "name", name, Hashable)
        if name not in self._entries:
            raise SolveError(
                f"Ledger.{call}: no edit is called {name!r:.80}; the ledger holds "
                f"{self.names()[:20]}."
            )

    def _entry(self, call: str, keys: Keys, values: Values) -> _Entry:
        self._check_original(call)
        check_rows(f"Ledger.{call}", "keys", keys, self._metric.dim)
        outputs = linear_output(self._layer, keys)
        check_rows(f"Ledger.{call}", "values", values, outputs.shape[1], len(keys), per="keys")
        self._witness(keys[:1])
        return _Entry(
            keys.detach().clone(),
            values.detach().clone(),
            outputs.detach().to(keys.device).double(),
        )

    def _witness(self, key: Keys) -> None:
        # The first key, a random input, the latest key: few changes of a layer are seen by none.
        self._witnesses[2:] = [Witness.of(self._layer, key)]
        if len(self._witnesses) == 1:
            generator = torch.Generator().manual_seed(0)
            probe = torch.randn(1, self._metric.dim, generator=generator).to(key)
            # As long as a key: far shorter it would drown in the layer's bias, in half precision.
            probe *= key.norm() / probe.norm()
            self._witnesses.append(Witness.of(self._layer, probe))

    def _check_free(self, call: str, name: Hashable) -> None:
        check_kind(f"Ledger.{call}", "name", name, Hashable)
        if name in self._entries:
            raise SolveError(
                f"Ledger.{call}: {name!r} is in the ledger already; use replace, or another name."
            )

    def _check_original(self, call: str, *, attached: bool = True) -> None:
        now, why = standing_edits(self._layer), ""
        if attached and now.attached:
            why = f"it has attached edits ({len(now.attached)})"
        elif now.fused != self._fused:
            why = "edits were fused or unfused since"
        elif attached and not all(witness.holds(self._layer) for witness in self._witnesses):
            why = "it no longer gives what it gave when the last edit was entered"
        if why:
            raise SolveError(f"Ledger.{call}: the layer is another: {why}; detach or unfuse first.")

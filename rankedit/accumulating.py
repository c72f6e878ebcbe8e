"""What a second moment accumulates: ordinary vectors, extreme ones apart, and the first few."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from rankedit.errors import ShapeError
from rankedit.extremes import FEWEST, Energies, Extremes
from rankedit.gathering import gathered
from rankedit.inference import makes_ordinary
from rankedit.packing import Triangle
from rankedit.shapes import check_finite, describe
from rankedit.sums import Products, Sums, measured

Policy = Literal["apart", "together"]

_NUMBERS = ("count", "weight_squares", "fourth")


class Accumulator:
    """Sums of vectors, of which those of extreme energy are kept apart.

    Args:
        sums: of the ordinary ones.
        extremes: sums of the others.
        policy: whether there are any.
        products: precision of products of vectors that are no finer than float32.
    """

    def __init__(
        self, sums: Sums, extremes: Extremes, energies: Energies, policy: Policy, products: Products
    ) -> None:
        self.policy: Policy = policy
        self.products: Products = products
        self._sums = sums
        self._extremes = extremes
        self._energies = energies
        # Rows, weights and energies of the first few vectors, which nothing can be compared with.
        self._young: list[tuple[Tensor, Tensor | None, Tensor]] = []

    # Sums outlive the inference mode that a model may run in, whose tensors could not be added to.
    @classmethod
    @makes_ordinary
    def empty(
        cls, dim: int, device: torch.device | str | None, policy: Policy, products: Products
    ) -> Accumulator:
        """Of no vectors."""
        sums = Sums.zero(dim, device)
        place = sums.total.device
        return cls(sums, Extremes.none(dim, place), Energies.on(place), policy, products)

    @property
    def device(self) -> torch.device:
        """Where the sums are."""
        return self._sums.total.device

    @property
    def ordinary(self) -> Sums:
        """Sums of the ordinary vectors."""
        return self._judged()._sums

    @property
    def extremes(self) -> Extremes:
        """Sums of the others."""
        return self._judged()._extremes

    def _judged(self) -> Accumulator:
        # A copy while there are young ones: to look changes nothing, whatever interrupts it.
        if not self._young:
            return self
        judged = self.to(self.device)
        judged._settle()
        return judged

    # ---------------------------------------------------------------- vectors

    @makes_ordinary
    @torch.no_grad()
    def take(self, given: Tensor, weights: Tensor | None) -> None:
        """Add vectors `[n, dim]` of any float dtype, finite."""
        rows, energies = measured(given, self.products, self.device)
        weights = None if weights is None else weights.to(energies)
        if self.policy == "together":
            self._sums.add_(rows, weights, energies)
            return
        self._energies.add_(energies, weights)
        if self._energies.rows < FEWEST:
            self._young.append((rows.clone(), weights, energies))
            return
        self._settle()
        self._split(rows, weights, energies)

    def _settle(self) -> None:
        """Judge the first vectors by what is known now."""
        young, self._young = self._young, []
        for rows, weights, energies in young:
            self._split(rows, weights, energies)

    def _split(self, rows: Tensor, weights: Tensor | None, energies: Tensor) -> None:
        far = energies > self._energies.bound()
        if not bool(far.any()):
            self._sums.add_(rows, weights, energies)
            return
        inner, outer = (None if weights is None else weights[which] for which in (~far, far))
        self._sums.add_(rows[~far], inner, energies[~far])
        self._fold(self._extremes.add_(rows[far].double(), outer))

    def _fold(self, rows: Tensor) -> None:
        # What is left of extreme vectors beside their directions is as long as ordinary ones are,
        # and has its place there: in sum, no energy is lost.
        if len(rows):
            self._sums.outer.add_product_(rows, rows)

    # ---------------------------------------------------------------- sums

    def merge_(self, other: Accumulator) -> None:
        """Add what another one has; the first few of both are judged by all that is known then."""
        theirs = other.to(self.device)
        self._energies.merge_(theirs._energies)
        theirs._energies = self._energies
        # Only where neither has sums yet: one from an old file does not say how many it has seen.
        unknown = self._energies.rows < FEWEST and not float(
            (self._sums.scalars + theirs._sums.scalars)[0]
        )
        if unknown:
            self._young += theirs._young
        else:
            self._settle()
            theirs._settle()
        self._sums.merge_(theirs._sums)
        self._fold(self._extremes.merge_(theirs._extremes))

    def reduced(
        self, device: torch.device, group: torch.distributed.ProcessGroup | None
    ) -> Accumulator:
        """The sum over processes, through a device; all must hold the same width."""
        whole = self.to(self.device)
        everywhere = gathered(whole._energies.to("cpu"), group)
        whole._energies = Energies.on(self.device)
        for energies in everywhere:
            whole._energies.merge_(energies)
        whole._settle()  # only now the first few of each are judged, by what all have seen
        flat, dim = whole._sums.flat().to(device), self._sums.outer.dim
        torch.distributed.all_reduce(flat, group=group)
        whole._sums = Sums.from_flat(flat.to(self.device), dim)
        extremes = gathered(whole._extremes.to("cpu"), group)
        whole._extremes = Extremes.none(dim, self.device)
        for found in extremes:
            whole._fold(whole._extremes.merge_(found))
        return whole

    def together(self) -> Accumulator:
        """A copy in which the extreme ones count as the others do."""
        whole = self.to(self.device)
        whole._settle()
        whole.policy = "together"
        extremes, whole._extremes = (
            whole._extremes,
            Extremes.none(self._sums.outer.dim, self.device),
        )
        whole._fold(extremes.rows)
        whole._sums.total += extremes.total
        whole._sums.scalars += extremes.scalars
        return whole

    @makes_ordinary
    def to(self, device: torch.device | str) -> Accumulator:
        """A copy on a device."""
        parts = self._sums.to(device), self._extremes.to(device), self._energies.to(device)
        moved = Accumulator(*parts, self.policy, self.products)
        moved._young = [
            (rows.to(device), None if weights is None else weights.to(device), energies.to(device))
            for rows, weights, energies in self._young
        ]
        return moved

    # ---------------------------------------------------------------- state

    def state(self) -> dict[str, Tensor]:
        """All sums as named tensors; see `SecondMoment.state`."""
        judged = self._judged()
        sums, extremes = judged._sums, judged._extremes
        state = {"outer_packed": sums.outer.packed(), "total": sums.total.clone()}
        state |= dict(zip(_NUMBERS, sums.scalars.clone(), strict=True))
        if self.policy == "apart":
            state["energies"] = self._energies.state()
        return state | (extremes.state() if extremes else {})

    @classmethod
    def from_state(
        cls, state: Mapping[str, Tensor], policy: Policy, products: Products
    ) -> Accumulator:
        """From `state()`.

        Raises:
            ShapeError: sums of inconsistent shape, not finite, or a negative count.
        """
        total = state["total"]
        dim = total.shape[0]
        for name, shape in {"outer_packed": [dim * (dim + 1) // 2], "total": [dim]}.items():
            if list(state[name].shape) != shape:
                raise ShapeError(
                    f"SecondMoment.from_state: {name} must have shape {shape}, got "
                    f"{describe(state[name])}."
                )
            check_finite("SecondMoment.from_state", name, state[name])
        found = cls.empty(dim, total.device, policy, products)
        total = total.to(torch.float64, copy=True)
        scalars = torch.stack([_number(name, state[name]).to(total) for name in _NUMBERS])
        found._sums = Sums(Triangle.from_packed(state["outer_packed"], dim), total, scalars)
        if "energies" in state:
            found._energies = Energies.from_state(state["energies"])
        if "extremes" in state:
            found._extremes = Extremes.from_state(state, dim)
        return found


def _number(name: str, value: Tensor) -> Tensor:
    if value.ndim or not 0 <= float(value) < float("inf"):
        raise ShapeError(
            f"SecondMoment.from_state: {name} must be one finite number, not negative, got "
            f"{value.tolist()!r:.80}; the state is damaged."
        )
    return value


def check_settings(call: str, extremes: object, products: object) -> None:
    """Refuse settings that there are none of.

    Raises:
        ShapeError: names them.
    """
    given = {"extremes": extremes, "products": products}
    known = {"extremes": ("apart", "together"), "products": ("float32", "float64")}
    for name, value in given.items():
        if value not in known[name]:
            one, other = known[name]
            raise ShapeError(f"{call}: {name} must be {one!r} or {other!r}, got {value!r:.80}.")

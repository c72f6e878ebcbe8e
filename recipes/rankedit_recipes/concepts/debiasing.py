"""`debias`: let a concept's pictures show attributes in given shares, by measuring them in a loop.

UCE's third use (Gandikota et al., WACV 2024, arXiv 2308.14761): the encoding k of a concept is to
act like `k + Σ_i α_i a_i`. In each round pictures are made and judged, and

    α_i ← α_i + step · (wanted share_i − measured share_i)

until every share is within the tolerance. Published is a step of 1, with an attribute's own
encoding as a_i and new noise in every round; see `shifting` for the directions. Here the noise is
the same in each round, so that rounds differ by their edits alone, and the shares that are reported
are those of pictures that the loop never saw.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Protocol

from PIL import Image

import rankedit as rk
from rankedit.progress import progress as show_progress
from rankedit_recipes.concepts.contexts import filled
from rankedit_recipes.concepts.edited import Edited
from rankedit_recipes.concepts.editing import Statistics, check_family, kept_of, moment_of, rows_of
from rankedit_recipes.concepts.errors import ConceptsError
from rankedit_recipes.concepts.methods.own import Method, settings_of
from rankedit_recipes.concepts.reading import Rows
from rankedit_recipes.concepts.requests import Request, check_requests
from rankedit_recipes.concepts.settings import Settings
from rankedit_recipes.concepts.shifting import Shifts, read_shifts, shown_templates
from rankedit_recipes.concepts.solving import Kept
from rankedit_recipes.diffusion.generating import Sampling, generate
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.diffusion.statistics import text_digest
from rankedit_recipes.diffusion.text import Pipeline


class NamingJudge(Protocol):
    """Anything that says which attribute a picture shows."""

    def __call__(self, pictures: Sequence[Image.Image], request: Request) -> Sequence[str]:
        """For each picture of `request.name` one of `request.to`, or another text for none."""


@dataclass(frozen=True)
class Steering:
    """How shares are measured and steered.

    Attributes:
        pictures: made in each round of each concept.
        prompts: sentences with one `{}` for the concept, in turn; its contexts if there are none.
        rounds: at most; each makes all pictures anew.
        step: see the module.
        tolerance: of a share, within which it counts as met.
        seed: of the first picture's noise. The last measurement has noise of its own behind it.
        sampling: how pictures are made.
    """

    pictures: int = 24
    prompts: tuple[str, ...] = ()
    rounds: int = 10
    step: float = 1.0
    tolerance: float = 0.05
    seed: int = 0
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        least = {"pictures": 1, "rounds": 1}
        wrong = {n: getattr(self, n) for n, low in least.items() if not getattr(self, n) >= low}
        wrong |= {n: getattr(self, n) for n in ("step", "tolerance") if not getattr(self, n) > 0}
        if wrong:
            raise ConceptsError(f"Steering: out of range: {wrong}; see its attributes.")
        for prompt in self.prompts:
            if prompt.count("{}") != 1:
                raise ConceptsError(
                    f"Steering: a prompt has one {{}} where the concept stands, such as 'a photo "
                    f"of a {{}}', got {prompt!r}."
                )


def debias(
    pipe: Pipeline,
    requests: Sequence[Request],
    judge: NamingJudge,
    *,
    method: Method = "covariance",
    statistics: Statistics = None,
    steering: Steering | None = None,
    path: str | PathLike[str] | None = None,
    progress: bool = True,
) -> Edited:
    """Let concepts show attributes in given shares; everything else that is asked for goes with it.

    Args:
        pipe: a text-to-image pipeline of diffusers, unedited.
        requests: at least one of `balance`; those with amounts begin there. Others as in `edit`.
        judge: says which attribute a picture shows.
        method: as in `edit`.
        statistics: as in `edit`.
        steering: how shares are measured.
        path: file that the best edit so far is written to after every round.
        progress: show it.

    Returns:
        An edit like any other; its requests have the amounts, and the shares that were measured on
        pictures that nothing was steered by.

    Raises:
        ConceptsError: nothing is to be balanced, a judge that names none of the attributes, and
            whatever `edit` refuses.
        KeyboardInterrupt: Ctrl-C; says where the best edit is.

    Warns:
        RankeditWarning: no round met the shares; the best one is returned.
    """
    check_requests(requests)
    if not any(request.kind == "balance" for request in requests):
        raise ConceptsError(
            "debias: nothing is to be balanced; give concepts.balance('car', {'red': 0.5, ...})."
        )
    settings, parts = settings_of(method), Parts(pipe, entrance=True)
    check_family(parts, settings)
    moment = moment_of(pipe, statistics, progress=progress)
    loop = _Loop(parts, requests, settings, moment, judge, steering or Steering())
    return loop.run(path, shown=progress)


class _Loop:
    """One call of `debias`."""

    def __init__(
        self,
        parts: Parts,
        requests: Sequence[Request],
        settings: Settings,
        moment: rk.SecondMoment | None,
        judge: NamingJudge,
        steering: Steering,
    ) -> None:
        self._parts, self._settings, self._judge = parts, settings, judge
        self._steering = steering
        self._requests = [_begun(request) for request in requests]
        self._balanced = [r for r in self._requests if r.kind == "balance"]
        self._kept: Kept = kept_of(parts, requests, settings, moment)
        self._texts = text_digest(parts)
        # Read once: from round to round only the amounts change.
        self._shifts: dict[str, Shifts] = {
            r.name: read_shifts(parts, r, settings) for r in self._balanced
        }
        fixed = [r for r in requests if r.kind not in ("hold", "balance")]
        self._rows: dict[str, Rows] = {r.name: rows_of(parts, r, settings) for r in fixed}
        self._prompts = {r.name: self._prompts_of(r) for r in self._balanced}

    def _prompts_of(self, request: Request) -> list[str]:
        """For each picture its prompt, going round the words and the sentences."""
        given = self._steering.prompts
        sentences = given or shown_templates(self._parts, request, self._settings)
        pairs = [(word, text) for text in sentences for word in request.words]
        chosen = (pairs[i % len(pairs)] for i in range(self._steering.pictures))
        return [filled(text, word) for word, text in chosen]

    def run(self, path: str | PathLike[str] | None, *, shown: bool) -> Edited:
        amounts = {r.name: r.amounts for r in self._balanced}
        best: tuple[float, Edited] | None = None
        done, rounds = 0, self._steering.rounds
        try:
            # One more than the rounds: the last measurement.
            with show_progress("debias", rounds + 1, shown=shown) as advance:
                while done < rounds:
                    edited = self._solved(amounts)
                    shares = self._measured(edited, self._steering.seed)
                    gap = max(_gap(r, shares[r.name]) for r in self._balanced)
                    if best is None or gap < best[0]:
                        best = (gap, edited)
                        if path is not None:
                            edited.save(path)
                    done += 1
                    advance(f"largest gap {gap:.0%}, best {best[0]:.0%}")
                    if gap <= self._steering.tolerance:
                        break
                    amounts = {
                        r.name: self._moved(r, amounts[r.name], shares[r.name])
                        for r in self._balanced
                    }
                least, found = _best_of(best)
                edited = self._verified(found)
                advance("measured on other noise")
        except KeyboardInterrupt as interrupt:
            raise KeyboardInterrupt(_stopped(done, path, written=best is not None)) from interrupt
        if least > self._steering.tolerance:
            warnings.warn(_unmet(self._balanced, least, self._steering), stacklevel=3)
        if path is not None:
            edited.save(path)
        return edited

    def _moved(
        self, request: Request, amounts: Sequence[float], shares: Sequence[float]
    ) -> tuple[float, ...]:
        # As published: a concept whose shares are all met is left where it is.
        if _gap(request, shares) <= self._steering.tolerance:
            return tuple(amounts)
        return steered(amounts, request.shares, shares, self._steering.step)

    def _solved(self, amounts: dict[str, tuple[float, ...]]) -> Edited:
        requests = [
            replace(r, amounts=amounts[r.name]) if r.kind == "balance" else r
            for r in self._requests
        ]
        rows = self._rows | {n: self._shifts[n].rows(own) for n, own in amounts.items()}
        return Edited.solve(requests, self._settings, rows, self._kept, self._texts)

    def _measured(self, edited: Edited, seed: int) -> dict[str, tuple[float, ...]]:
        """Shares of the pictures of each concept that show each of its attributes."""
        found = {}
        with edited.attach(self._parts.pipe):
            for request in self._balanced:
                prompts = self._prompts[request.name]
                seeds = range(seed, seed + len(prompts))
                made = generate(self._parts.pipe, prompts, seeds, self._steering.sampling)
                found[request.name] = _shares(self._judge, made, request)
        return found

    def _verified(self, edited: Edited) -> Edited:
        shares = self._measured(edited, self._steering.seed + self._steering.pictures)
        requests = tuple(
            replace(r, measured=shares[r.name]) if r.kind == "balance" else r
            for r in edited.requests
        )
        return replace(edited, requests=requests)


def _best_of(found: tuple[float, Edited] | None) -> tuple[float, Edited]:
    if found is None:
        raise ConceptsError("debias: no round was made; give Steering at least one.")
    return found


def steered(
    amounts: Sequence[float], wanted: Sequence[float], measured: Sequence[float], step: float
) -> tuple[float, ...]:
    """`α_i + step · (wanted_i − measured_i)`.

    Example:
        >>> steered((0.0, 0.0), (0.5, 0.5), (0.75, 0.25), 1.0)
        (-0.25, 0.25)
    """
    both = zip(amounts, wanted, measured, strict=True)
    return tuple(a + step * (w - m) for a, w, m in both)


def _begun(request: Request) -> Request:
    if request.kind != "balance":
        return request
    return replace(request, amounts=request.amounts or (0.0,) * len(request.to), measured=())


def _shares(
    judge: NamingJudge, pictures: Sequence[Image.Image], request: Request
) -> tuple[float, ...]:
    named = list(judge(pictures, request))
    if len(named) != len(pictures):
        raise ConceptsError(
            f"debias: the judge named {len(named)} attributes for {len(pictures)} pictures; it is "
            "to give one for each, and '' where there is none."
        )
    known = {attribute.casefold(): attribute for attribute in request.to}
    for said in dict.fromkeys(named):
        # Another word is another attribute, or none; this one was meant to be the same.
        meant = known.get(str(said).strip().casefold(), said)
        if meant != said:
            raise ConceptsError(
                f"debias: the judge said {said!r} of pictures of {request.name!r}, where {meant!r} "
                "was asked for; it is to use the same words."
            )
    return tuple(named.count(attribute) / len(named) for attribute in request.to)


def _gap(request: Request, shares: Sequence[float]) -> float:
    return max(abs(w - m) for w, m in zip(request.shares, shares, strict=True))


def _stopped(done: int, path: str | PathLike[str] | None, *, written: bool) -> str:
    rounds = f"debias: interrupted after {done} round{'s' * (done != 1)}"
    if path is None or not written:
        return f"{rounds}; nothing was written"
    return (
        f"{rounds}; '{path}' has the best of them. To go on from it, give debias the requests of "
        "Edited.load(path)"
    )


def _unmet(requests: Sequence[Request], gap: float, steering: Steering) -> rk.RankeditWarning:
    names = ", ".join(repr(request.name) for request in requests)
    return rk.RankeditWarning(
        f"debias: after {steering.rounds} rounds a share of {names} is still {gap:.0%} from what "
        f"was asked for (tolerance {steering.tolerance:.0%}); go on from it, with another "
        f"step than {steering.step:g} or with more pictures than {steering.pictures}."
    )

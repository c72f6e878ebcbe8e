"""The scores of a model over many cases: as a table, by relation, and on disk."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rankedit.atomic import atomic_write
from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.language.evaluating.measures import COMBINED, MEASURES, Figure, figure
from rankedit_recipes.language.requests import Case


@dataclass(frozen=True)
class Scores:
    """What `evaluate` found.

    Attributes:
        names: of the cases.
        relations: of the cases.
        samples: by measure: `[cases]`, NaN where a case has no such prompts; or, for the locality,
            `[texts]`.
        notes: anything worth recording.
    """

    names: tuple[str, ...]
    relations: tuple[str, ...]
    samples: Mapping[str, Tensor]
    notes: Mapping[str, str] = field(default_factory=dict)

    # Kept, for each interval takes a thousand resamples.
    @cached_property
    def figures(self) -> dict[str, Figure]:
        """Each measure's number with its interval, in the order of `MEASURES`."""
        return {name: figure(MEASURES[name], samples) for name, samples in self._columns().items()}

    def __getitem__(self, name: str) -> float:
        """A measure's number, as it is shown.

        Raises:
            LanguageError: it was not measured.
        """
        if name not in self.figures:
            raise LanguageError(
                f"Scores: {name!r} was not measured; measured are {', '.join(self.figures)}."
            )
        return self.figures[name].value

    def _columns(self) -> dict[str, Tensor]:
        """Samples by measure; for the harmonic score those of its three parts side by side."""
        # A measure that no case has is not 0 and not NaN: it was not measured.
        known = {name: s for name, s in self.samples.items() if not bool(s.isnan().all())}
        if all(name in known for name in COMBINED):
            known["score"] = torch.stack([known[name] for name in COMBINED], dim=1)
        return {name: known[name] for name in MEASURES if name in known}

    def by_relation(self) -> dict[str, Scores]:
        """Scores of the cases of each relation, without what belongs to no case."""
        found = {}
        # A set of texts has another order in each process.
        for relation in sorted(set(self.relations)):
            found[relation] = self.chosen(
                [i for i, other in enumerate(self.relations) if other == relation]
            )
        return found

    def chosen(self, indices: Sequence[int]) -> Scores:
        """Scores of some of the cases."""
        kept = {
            name: samples[list(indices)]
            for name, samples in self.samples.items()
            # Its samples are texts, which belong to no case.
            if name != "locality"
        }
        return Scores(
            tuple(self.names[i] for i in indices),
            tuple(self.relations[i] for i in indices),
            kept,
            self.notes,
        )

    def table(self, *, title: str = "") -> Any:  # noqa: ANN401 - a table of rich
        """A table of rich: each measure, its number with its interval, and its definition."""
        from rich.table import Table

        table = Table(title=title or None, show_lines=False)
        table.add_column("measure", no_wrap=True)
        table.add_column("value (95 % interval)", justify="right", no_wrap=True)
        table.add_column("n", justify="right")
        table.add_column("definition")
        for name, found in self.figures.items():
            measure = MEASURES[name]
            definition = f"{measure.definition} [{measure.source}]"
            # rich takes words in square brackets for colours.
            table.add_row(
                name, found.text(measure), str(found.count), definition.replace("[", r"\[")
            )
        return table

    def as_json(self) -> dict[str, Any]:
        """Everything, as JSON can hold it: figures with definitions, then what each case gave."""
        return {
            "figures": {
                name: {
                    "value": found.value,
                    "low": found.low,
                    "high": found.high,
                    "count": found.count,
                    "definition": MEASURES[name].definition,
                    "source": MEASURES[name].source,
                }
                for name, found in self.figures.items()
            },
            "notes": dict(self.notes),
            "cases": {"name": list(self.names), "relation": list(self.relations)},
            "samples": {
                # JSON has no NaN; Python would write one that other readers refuse.
                name: [None if math.isnan(x) else round(x, 6) for x in samples.tolist()]
                for name, samples in self.samples.items()
            },
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Scores:
        """What `as_json` gave; figures are computed from the samples again."""
        samples = {
            str(name): torch.tensor(
                [math.nan if x is None else x for x in values], dtype=torch.float64
            )
            for name, values in found["samples"].items()
        }
        cases = found["cases"]
        return cls(tuple(cases["name"]), tuple(cases["relation"]), samples, found["notes"])

    def save(self, path: str | PathLike[str]) -> None:
        """Write the scores as JSON, whole or not at all."""
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(self.as_json()) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Scores:
        """Read what `save` wrote.

        Raises:
            LanguageError: no such file, or none of scores.
        """
        try:
            return cls.from_json(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise LanguageError(
                f"Scores.load: '{path}' is no file of scores ({error}); give one that "
                "Scores.save or `rankedit language evaluate --out` wrote."
            ) from error


def joined(parts: Sequence[Scores]) -> Scores:
    """Scores of the cases of all parts, as if they had been evaluated together.

    The locality of each part counts as one sample: its texts are the same for all.

    Raises:
        LanguageError: no part.
    """
    if not parts:
        raise LanguageError("joined: at least one part is expected, got none.")
    names = [name for name in MEASURES if any(name in part.samples for part in parts)]

    def column(name: str, part: Scores) -> Tensor:
        if name not in part.samples:
            return torch.full((len(part.names),), math.nan, dtype=torch.float64)
        samples = part.samples[name]
        # The same texts for each edit: their mean is what one edit moved.
        return samples.mean(0, keepdim=True) if name == "locality" else samples

    samples = {name: torch.cat([column(name, part) for part in parts]) for name in names}
    return Scores(
        tuple(name for part in parts for name in part.names),
        tuple(relation for part in parts for relation in part.relations),
        samples,
        parts[0].notes,
    )


def relation_of(case: Case) -> str:
    """What a case is grouped by: its relation, or its prompt."""
    return case.request.relation or case.request.prompt

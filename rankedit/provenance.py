"""Where statistics come from, so that they are not used for something else."""

from __future__ import annotations

from dataclasses import dataclass, fields

from rankedit.errors import StatisticsError


@dataclass(frozen=True)
class Provenance:
    """Where statistics come from. Empty fields are unknown; files carry all of them.

    Attributes:
        model: name or path of the model.
        weights: a mark of the weights that the data flowed through. `collect` puts a digest of the
            whole model here; it is not comparable with `fingerprint`, which is of one layer.
        module: the projection (or projections, joined by commas) whose input this is.
        tokenizer: name of the tokenizer.
        corpus: name of the data.
        dtype: dtype in which the model ran.
        tokens: how many tokens were offered, including those that a mask left out.
    """

    model: str = ""
    weights: str = ""
    module: str = ""
    tokenizer: str = ""
    corpus: str = ""
    dtype: str = ""
    tokens: int = 0

    def merged(self, other: Provenance, *, call: str = "SecondMoment.merge") -> Provenance:
        """Provenance of the sum of two moments; corpora are joined, tokens added.

        Args:
            other: where the other one comes from.
            call: what adds them, for the message.

        Raises:
            StatisticsError: both name a model, weights, module or tokenizer, and they differ.
        """
        for name in ("model", "weights", "module", "tokenizer"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine and theirs and mine != theirs:
                raise StatisticsError(
                    f"{call}: both moments must have the same {name}, got {mine!r} and "
                    f"{theirs!r}; collect both on one model, or clear the field with "
                    f"dataclasses.replace(moment.provenance, {name}='')."
                )
        # Unknown in one of them: what the other knows is believed, or old files could not be
        # merged.
        known = {f.name: getattr(self, f.name) or getattr(other, f.name) for f in fields(self)}
        # Sorted and each once: the sum of shards must not depend on their order.
        corpora = sorted({c for p in (self, other) for c in p.corpus.split(" + ") if c})
        known |= {"corpus": " + ".join(corpora), "tokens": self.tokens + other.tokens}
        return Provenance(**known)

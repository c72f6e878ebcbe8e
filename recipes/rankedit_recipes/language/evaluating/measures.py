"""What is measured of an edited model: each measure with its definition, and its uncertainty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Better = Literal["higher", "lower", "unchanged"]
_LEVEL = 0.95
# Each end of the interval is then that of 25 resamples.
_RESAMPLES = 1000


@dataclass(frozen=True)
class Measure:
    """One number that describes a model.

    Attributes:
        name: of the measure.
        definition: what exactly is counted.
        source: where the definition comes from.
        better: whether an edit should raise it, lower it, or leave it as it was.
        scale: what the mean is multiplied by to be shown: 100 for percent.
        digits: behind the point.
    """

    name: str
    definition: str
    source: str
    better: Better
    scale: float = 100.0
    digits: int = 1


_COUNTERFACT = "CounterFact, Meng et al., arXiv 2202.05262"
_LIKE_PARAPHRASE = "the measure of paraphrases on other phrasings"
_FREE = "exact match of what is written, as Yang et al., arXiv 2502.11177, ask for"
_ZSRE = "zsRE, as in Meng et al., arXiv 2210.07229"

MEASURES = {
    measure.name: measure
    for measure in (
        Measure(
            "score",
            "harmonic mean of efficacy, paraphrase and neighbourhood",
            _COUNTERFACT,
            "higher",
        ),
        Measure(
            "efficacy",
            "% of cases with P(new target) > P(true target) behind the prompt that was edited; P "
            "is the geometric mean of the probabilities of the target's tokens",
            _COUNTERFACT,
            "higher",
        ),
        Measure(
            "paraphrase",
            "% of paraphrases with P(new target) > P(true target), mean of each case's share",
            _COUNTERFACT,
            "higher",
        ),
        Measure(
            "inverted phrasing",
            "% of phrasings that tell what is asked before the subject with P(new target) > "
            "P(true target), mean of each case's share; not part of the score",
            _LIKE_PARAPHRASE,
            "higher",
        ),
        Measure(
            "neighbourhood",
            "% of prompts about other subjects of the true target with P(true target) > "
            "P(new target), mean of each case's share; of a subject with an answer of its own, "
            "that answer counts as the true target",
            _COUNTERFACT,
            "unchanged",
        ),
        Measure(
            "efficacy magnitude",
            "P(new target) - P(true target) behind the prompt that was edited, in % points",
            _COUNTERFACT,
            "higher",
        ),
        Measure(
            "paraphrase magnitude",
            "P(new target) - P(true target) behind paraphrases, in % points",
            _COUNTERFACT,
            "higher",
        ),
        Measure(
            "inverted phrasing magnitude",
            "P(new target) - P(true target) behind phrasings that tell what is asked before the "
            "subject, in % points",
            _LIKE_PARAPHRASE,
            "higher",
        ),
        Measure(
            "neighbourhood magnitude",
            "P(true target) - P(new target) behind prompts about other subjects, in % points",
            _COUNTERFACT,
            "unchanged",
        ),
        Measure(
            "efficacy accuracy",
            "% of the new target's tokens that are the likeliest behind the prompt and the "
            "target's tokens before them",
            _ZSRE,
            "higher",
        ),
        Measure(
            "paraphrase accuracy",
            "% of the new target's tokens that are the likeliest behind paraphrases, likewise",
            _ZSRE,
            "higher",
        ),
        Measure(
            "inverted phrasing accuracy",
            "% of the new target's tokens that are the likeliest behind phrasings that tell what "
            "is asked before the subject, likewise",
            _LIKE_PARAPHRASE,
            "higher",
        ),
        Measure(
            "neighbourhood accuracy",
            "% of the true target's tokens that are the likeliest behind prompts about other "
            "subjects, likewise",
            "the measure above on CounterFact's neighbours",
            "unchanged",
        ),
        Measure(
            "specificity accuracy",
            "% of the tokens of unrelated answers that are the likeliest behind their questions, "
            "likewise",
            _ZSRE,
            "unchanged",
        ),
        Measure(
            "free generation",
            "% of cases where what the model writes behind the prompt that was edited, always the "
            "likeliest token, begins with the new target",
            _FREE,
            "higher",
        ),
        Measure(
            "paraphrase free generation",
            "% of paraphrases behind which it does, mean of each case's share",
            _FREE,
            "higher",
        ),
        Measure(
            "neighbourhood free generation",
            "% of prompts about other subjects behind which what the model writes begins with "
            "their own answer, mean of each case's share",
            _FREE,
            "unchanged",
        ),
        Measure(
            "generation entropy",
            "(2/3 H2 + 4/3 H3) / 2 x 100, with H2 and H3 the entropies in bits of pairs and "
            "triples of words in texts that the model writes about the subject: low where it "
            "repeats itself",
            _COUNTERFACT,
            "unchanged",
        ),
        Measure(
            "reference score",
            "cosine in % between the words, weighted by TF-IDF over all reference texts, that the "
            "model writes about the subject, and those of texts about things of which the new "
            "target is true",
            _COUNTERFACT,
            "higher",
        ),
        Measure(
            "locality",
            "KL(before || after) of the next token on unrelated text, in thousandths of a nat, "
            "mean over tokens of a text, then over texts",
            "this recipe",
            "lower",
            scale=1000.0,
            digits=3,
        ),
    )
}
"""All measures by name, in the order in which they are shown."""

COMBINED = ("efficacy", "paraphrase", "neighbourhood")
"""What the harmonic score is made of."""


@dataclass(frozen=True)
class Figure:
    """A measured number with its uncertainty.

    Attributes:
        value: the mean, as it is shown (in percent where the measure is).
        low: lower end of the interval.
        high: upper end.
        count: what the mean is over: cases that have the measure, or texts.
    """

    value: float
    low: float
    high: float
    count: int

    def text(self, measure: Measure) -> str:
        """Value and interval, rounded as the measure is shown."""
        digits = measure.digits
        return f"{self.value:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


def harmonic_mean(values: Tensor) -> Tensor:
    """Harmonic mean over the last dimension; 0 where one of the values is not positive.

    Example:
        >>> round(float(harmonic_mean(torch.tensor([1.0, 0.5, 0.25]))), 4)  # 3/7
        0.4286
    """
    # Only to divide: where a value is not positive the mean is 0 below.
    positive = values.clamp_min(torch.finfo(values.dtype).tiny)
    mean = values.shape[-1] / positive.reciprocal().sum(-1)
    return torch.where((values > 0).all(-1), mean, torch.zeros_like(mean))


def figure(measure: Measure, samples: Tensor, *, seed: int = 0) -> Figure:
    """The mean of `samples [n]`, NaN left out, with a bootstrap interval of 95 %.

    `samples [n, 3]`, what the harmonic score is made of, gives the harmonic mean of the means.
    Percentile bootstrap with 1,000 resamples of whole cases; the same seed, the same interval.
    """
    columns = samples if samples.ndim == 2 else samples[:, None]
    # A case without neighbours still counts for the other two parts of the score.
    present = columns[~columns.isnan().all(-1)].double()
    generator = torch.Generator().manual_seed(seed)
    count = len(present)
    # Drawn and summed in parts: thousands of cases times a thousand resamples need not fit at once.
    means = []
    for _ in range(10):
        # Whole cases, for what the prompts of one case give hangs together.
        drawn = torch.randint(count, (_RESAMPLES // 10, count), generator=generator)
        means.append(present[drawn].nanmean(1))
    several, single = torch.cat(means), present.nanmean(0, keepdim=True)
    # Harmonic over the means, as published, not a mean of each case's harmonic mean.
    combined = [harmonic_mean(m) if samples.ndim == 2 else m[:, 0] for m in (several, single)]
    tail = (1 - _LEVEL) / 2
    ends = combined[0].quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64))
    low, high = (ends * measure.scale).tolist()
    return Figure(float(combined[1]) * measure.scale, low, high, count)

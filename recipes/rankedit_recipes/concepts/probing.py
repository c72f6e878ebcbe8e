"""Whether a concept is really gone, and what went with it: pictures before and after, judged.

    found = probe(pipe, edited, judge, implicit={"cat": ["a pet that purrs on the sofa"]})
    found.save("probe.html")

Asked for are the concept in sentences that no edit was made in, descriptions of it without its
word, and the words whose embeddings are the nearest to its own; and what is held.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Protocol

import torch
from PIL import Image

from rankedit.atomic import atomic_write
from rankedit_recipes.concepts.contexts import readable
from rankedit_recipes.concepts.edited import Edited
from rankedit_recipes.concepts.errors import ConceptsError
from rankedit_recipes.diffusion.captions import listed_texts
from rankedit_recipes.diffusion.generating import Sampling, generate
from rankedit_recipes.diffusion.pages import gallery, page, section, table
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.diffusion.text import Pipeline, Texts, word_tokens
from rankedit_recipes.diffusion.words import embedding_layers

# None of these is among the contexts of edits.
UNSEEN = (
    "a photo of a {} in a meadow",
    "a picture of a yellow {} on a snowy day",
    "a sketch of a {} by the sea",
    "a white {} under the stars",
)
_SHOWN = 12


class Judge(Protocol):
    """Anything that says which pictures show something."""

    def __call__(self, pictures: Sequence[Image.Image], word: str) -> Sequence[float]:
        """For each picture how far it shows what the word says, 0 to 1."""


@dataclass(frozen=True, eq=False)
class Finding:
    """One prompt, without the edit and with it, from the same noise.

    Attributes:
        concept: what was looked for.
        kind: `"contexts"`, `"implicit"`, `"neighbours"` or `"kept"`.
        prompt: the prompt.
        before: how far the picture shows the concept without the edit.
        after: with it.
        pictures: both.
    """

    concept: str
    kind: str
    prompt: str
    before: float
    after: float
    pictures: tuple[Image.Image, Image.Image] = field(repr=False)


@dataclass(frozen=True, eq=False)
class Probed:
    """What a probe found.

    Attributes:
        findings: of every prompt.
        title: of the report.
    """

    findings: tuple[Finding, ...]
    title: str

    def shares(self) -> dict[tuple[str, str], tuple[float, float]]:
        """By concept and kind how far pictures show it, in the mean: before, after."""
        groups: dict[tuple[str, str], list[Finding]] = {}
        for finding in self.findings:
            groups.setdefault((finding.concept, finding.kind), []).append(finding)
        return {
            key: (sum(f.before for f in own) / len(own), sum(f.after for f in own) / len(own))
            for key, own in groups.items()
        }

    def save(self, path: str | PathLike[str]) -> None:
        """Write a report as one HTML file: shares, and pictures before and after."""
        lines = {
            f"{concept}, {kind}": f"{before:.0%} before, {after:.0%} after"
            for (concept, kind), (before, after) in self.shares().items()
        }
        parts = [section("How far pictures show it", table(lines))]
        for concept, kind in self.shares():
            own = [f for f in self.findings if (f.concept, f.kind) == (concept, kind)][:_SHOWN]
            shown = {}
            for number, finding in enumerate(own, 1):
                for when, picture in zip(("before", "after"), finding.pictures, strict=True):
                    shown[f"{number}. {when}: {finding.prompt}"] = picture
            parts.append(section(f"{concept}: {kind}", gallery(shown)))
        with atomic_write(path) as temporary:
            temporary.write_text(page(self.title, parts), encoding="utf-8")


def probe(
    pipe: Pipeline,
    edited: Edited,
    judge: Judge,
    *,
    implicit: Mapping[str, Sequence[str]] | None = None,
    neighbours: int = 4,
    pictures: int = 2,
    sampling: Sampling | None = None,
) -> Probed:
    """Try to bring an edit's concepts back by prompts, and look at what is held.

    Args:
        pipe: the pipeline, unedited.
        edited: the edit.
        judge: says which pictures show a concept.
        implicit: by concept, prompts that describe it without its word: parts, typical scenes.
        neighbours: how many of the words with the nearest embeddings are asked for.
        pictures: of each prompt.
        sampling: how they are made.

    Raises:
        ConceptsError: descriptions of what the edit does not change, or no prompt that the model
            knows the words of.
    """
    asked = _asked(Texts(pipe), edited, implicit or {}, neighbours)
    if not asked:
        raise ConceptsError(
            "probe: the model knows the words of none of the prompts; give implicit= in its words."
        )
    Parts(pipe).denoiser.check_one()
    each = [(*one, seed) for one in asked for seed in range(pictures)]
    prompts, seeds = [prompt for _, _, prompt, _ in each], [seed for *_, seed in each]
    before = generate(pipe, prompts, seeds, sampling)
    with edited.attach(pipe):
        after = generate(pipe, prompts, seeds, sampling)
    findings = []
    for word in dict.fromkeys(concept for concept, *_ in each):
        own = [i for i, (concept, *_) in enumerate(each) if concept == word]
        scores = [judge([made[i] for i in own], word) for made in (before, after)]
        findings += [
            Finding(word, each[i][1], each[i][2], float(one), float(two), (before[i], after[i]))
            for i, one, two in zip(own, *scores, strict=True)
        ]
    return Probed(tuple(findings), f"Probe of {', '.join(edited.names())}")


def _asked(
    texts: Texts, edited: Edited, implicit: Mapping[str, Sequence[str]], count: int
) -> list[tuple[str, str, str]]:
    """Concept, kind and prompt of everything that is asked for."""
    unknown = sorted(set(implicit) - set(edited.names()))
    if unknown:
        raise ConceptsError(
            f"probe: the edit does not change {', '.join(map(repr, unknown))}; descriptions are "
            f"of {', '.join(edited.names())}."
        )
    found = []
    for request in edited.requests:
        kind = "kept" if request.kind == "hold" else "contexts"
        templates = readable(texts, UNSEEN)
        for word in request.words:
            # What is held counts by itself; synonyms are the concept.
            concept = word if kind == "kept" else request.name
            found += [(concept, kind, template.format(word)) for template in templates]
        if kind == "kept":
            continue
        described = listed_texts("probe", "implicit", implicit.get(request.name, ()))
        found += [(request.name, "implicit", text) for text in described]
        near = [w for w in nearest_words(texts, request.name, count) if w not in request.words]
        found += [(request.name, "neighbours", f"a photo of a {word}") for word in near]
    return found


@torch.no_grad()
def nearest_words(texts: Texts, word: str, count: int) -> list[str]:
    """The words of the first tokenizer whose embeddings have the largest cosines with a word's.

    Whole words of letters alone; the last token of a phrase stands for it.
    """
    encoder, tokenizer = texts.encoders[0].model, texts.tokenizer
    layer = embedding_layers(encoder)[0]
    places = {
        name.removesuffix("</w>").lstrip("▁"): place
        for name, place in tokenizer.get_vocab().items()
        if place not in tokenizer.all_special_ids
    }
    whole = {name: place for name, place in places.items() if name.isalpha() and len(name) > 1}
    whole = {n: p for n, p in whole.items() if word_tokens(tokenizer, n) == [p]}
    device = next(encoder.parameters()).device
    numbers = torch.tensor([word_tokens(tokenizer, word)[-1], *whole.values()], device=device)
    rows = torch.nn.functional.normalize(layer(numbers).float().cpu(), dim=1)
    order = (rows[1:] @ rows[0]).argsort(descending=True).tolist()
    names = list(whole)
    return [names[i] for i in order if names[i] != word][:count]

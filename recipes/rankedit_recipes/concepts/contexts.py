"""Sentences in which a concept's word is read, wherever it stands; and words that are near it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rankedit_recipes.diffusion.text import Texts, word_tokens
from rankedit_recipes.diffusion.words import embedding_layers

# Short and of common words: models of small vocabularies know most of them too.
THINGS = (
    "{}",
    "a {}",
    "a photo of a {}",
    "a picture of a {}",
    "a drawing of a {}",
    "a photo of a {} on the grass",
    "a photo of a {} in the snow",
    "a picture of a {} on the beach",
    "a {} at night",
    "a {} in front of a brick wall",
    "a photo of a red {}",
    "a picture of a small blue {} on a plain background",
    "a big {} in the fog",
    "a photo of a green {} by the sea",
    "a photo of a {} and a tree",
    "a picture of a house next to a {}",
)
ATTRIBUTES = (
    "{}",
    "a {} car",
    "a {} cat",
    "a photo of a {} house",
    "a picture of a {} cup",
    "a drawing of a {} boat",
    "a photo of a {} flower on the grass",
    "a {} tree in the snow",
    "a picture of a small {} fish on a plain background",
    "a big {} car at night",
    "a photo of a {} house on the beach",
    "a photo of a {} thing and a tree",
    "a photo of a star next to a {} boat",
)


def readable(texts: Texts, templates: Sequence[str]) -> list[str]:
    """The templates whose words all tokenizers know; those with unknown words say nothing."""
    known = []
    for template in templates:
        words = template.replace("{}", " ").split()
        if all(_knows(tokenizer, words) for *_, tokenizer in texts.encoders):
            known.append(template)
    return known


def _knows(tokenizer: object, words: Sequence[str]) -> bool:
    unknown = getattr(tokenizer, "unk_token_id", None)
    return not any(unknown in word_tokens(tokenizer, word) for word in words)


def filled(template: str, word: str) -> str:
    """The template with a word in it, or with nothing."""
    return " ".join(template.replace("{}", word).split())


@torch.no_grad()
def nearest_words(texts: Texts, word: str, count: int, *, without: Sequence[str] = ()) -> list[str]:
    """The words whose embeddings have the largest cosines with a word's, in the first encoder.

    Whole words of letters alone, which all tokenizers know; the last token of a phrase stands for
    it.

    Args:
        texts: of the pipeline.
        word: the word or phrase.
        count: how many at most.
        without: words that do not count, and no form of theirs: none that begins with one of them.
    """
    encoder, tokenizer = texts.encoders[0].model, texts.tokenizer
    places = [
        (name.removesuffix("</w>").lstrip("▁"), place)
        for name, place in tokenizer.get_vocab().items()
        if place not in tokenizer.all_special_ids
    ]
    names = [(n, p) for n, p in places if n.isalpha() and len(n) > 1 and not _form(n, without)]
    device = next(encoder.parameters()).device
    numbers = torch.tensor([word_tokens(tokenizer, word)[-1], *(p for _, p in names)])
    found = embedding_layers(encoder)[0](numbers.to(device))
    rows = torch.nn.functional.normalize(found.float().cpu(), dim=1)
    near: list[str] = []
    for index in (rows[1:] @ rows[0]).argsort(descending=True).tolist():
        name, place = names[index]
        # Asked of few: to tokenize a whole vocabulary takes seconds. A byte-pair vocabulary has
        # the beginnings of words too, which no text becomes by themselves.
        if name == word or word_tokens(tokenizer, name) != [place] or not readable(texts, [name]):
            continue
        near.append(name)
        if len(near) >= count:
            break
    return near[:count]


def _form(name: str, words: Sequence[str]) -> bool:
    return any(name.startswith(word) for word in words)

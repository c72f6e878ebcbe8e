"""Where the gate opens beside the concept's word, by the tokens that the statistics count.

    python benchmarks/leak.py perfusion-study/bean-5.safetensors ...

For learned concepts of the sandbox: similarity to the concept's key, and the opening of the gate
of the local lock (bias 0.7, temperature 0.15), at the word itself, at other words before and behind
it, at the end of the text and in the padding; and anywhere in prompts without the concept. Means
over concepts and prompts, and the most.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from rankedit_recipes import perfusion, sandbox
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.diffusion.words import NewWords
from rankedit_recipes.perfusion.commands.opening import sandbox_captions
from torch import Tensor

TEMPLATES = (
    "a photo of a {}",
    "a photo of a {} on the grass",
    "a photo of a {} next to a tree at night",
    "a photo of a blue boat and a {} in the snow",
    "a big {} in front of a brick wall",
)
POLICIES = ("content", "eos", "all")
PLACES = ("the word", "words before", "words behind", "end of text", "padding", "without it")


def similarities(pipe: object, concept: perfusion.Concept, metric: object) -> dict[str, Tensor]:
    """Similarities by place, of all prompts."""
    image = metric.solve(concept.key[None])[0]
    image = image / (image @ concept.key.double())
    words = NewWords(Parts(pipe).text, {concept.trigger: concept.embeddings})
    found: dict[str, list[Tensor]] = {place: [] for place in PLACES}
    try:
        for template in TEMPLATES:
            prompt = template.format(concept.phrase)
            with torch.no_grad():
                texts = Parts(pipe).text
                encoded = texts.encode([prompt])
                other = texts.encode([template.format("flower")]).embeds[0].double() @ image
            similarity = encoded.embeds[0].double() @ image
            place = texts.positions(encoded, concept.trigger)[0][0]
            content = texts.token_mask(encoded, "content")[0]
            end = int(content.nonzero()[-1]) + 1
            found["the word"].append(similarity[[place]])
            found["words before"].append(similarity[:place])
            found["words behind"].append(similarity[place + 1 : end])
            found["end of text"].append(similarity[[end]])
            found["padding"].append(similarity[end + 1 :])
            found["without it"].append(other)
    finally:
        words.remove()
    return {place: torch.cat(parts) for place, parts in found.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("concepts", nargs="+", type=Path)
    files = parser.parse_args(argv).concepts
    pipe = sandbox.pipeline()
    concepts = [perfusion.Concept.load(file) for file in files]
    print(f"{len(concepts)} concepts, {len(TEMPLATES)} prompts each")
    for policy in POLICIES:
        moment = perfusion.second_moment(pipe, sandbox_captions(), tokens=policy, progress=False)
        metric = perfusion.metric_of(moment)
        rows = [similarities(pipe, concept, metric) for concept in concepts]
        for place in PLACES:
            seen = torch.cat([row[place] for row in rows])
            if len(seen):
                opening = torch.sigmoid((seen - 0.7) / 0.15)
                print(
                    f"{policy:<8} {place:<13} similarity {float(seen.mean()):6.2f}, most "
                    f"{float(seen.max()):5.2f}; opening {float(opening.mean()):.3f}, most "
                    f"{float(opening.max()):.3f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()

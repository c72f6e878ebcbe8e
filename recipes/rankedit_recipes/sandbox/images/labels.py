"""Supervised warm-up of the text encoder: each word's features must say what the word means.

A text tower that starts from noise gives all nouns nearly the same features, and the UNet then
learns coloured blobs. Half a minute of plain classification before the joint training mends it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, PreTrainedTokenizerFast

from .captions import caption
from .scenes import Scene, Thing, draw_scene, rng_of
from .vocabulary import CATEGORIES, COLOURS, SCENES, STYLES

LAYOUTS: tuple[str, ...] = ("single", "across", "upright")
"""One object, two side by side, two on top of each other."""

_NOTHING_CATEGORY, _NOTHING_COLOUR = len(CATEGORIES), len(COLOURS)
_HEADS = {
    "scene": len(SCENES),
    "style": len(STYLES),
    "layout": len(LAYOUTS),
    "category0": len(CATEGORIES) + 1,
    "category1": len(CATEGORIES) + 1,
    "colour0": len(COLOURS) + 1,
    "colour1": len(COLOURS) + 1,
}


def slots(scene: Scene) -> tuple[Thing, ...]:
    """The objects from left to right, or from top to bottom."""
    upright = scene.relation in ("above", "below")
    return tuple(sorted(scene.things, key=lambda thing: thing.y if upright else thing.x))


def scene_labels(scene: Scene) -> dict[str, int]:
    """What the end of a text should know about the whole scene.

    Args:
        scene: The scene.

    Returns:
        A class for each question.
    """
    things = slots(scene)
    layout = {"": "single", "left": "across", "right": "across"}.get(scene.relation, "upright")
    answers = {
        "scene": list(SCENES).index(scene.background),
        "style": list(STYLES).index(scene.style),
        "layout": LAYOUTS.index(layout),
    }
    for slot in range(2):
        thing = things[slot] if slot < len(things) else None
        colours = list(COLOURS)
        answers[f"category{slot}"] = (
            CATEGORIES.index(thing.category) if thing else _NOTHING_CATEGORY
        )
        answers[f"colour{slot}"] = (
            colours.index(thing.colour) if thing and thing.colour else _NOTHING_COLOUR
        )
    return answers


def word_labels(tokens: Tensor, tokenizer: PreTrainedTokenizerFast) -> tuple[Tensor, Tensor]:
    """Category of every noun and the colour that stands before it.

    Args:
        tokens: Token numbers, [n, length].
        tokenizer: The tokenizer.

    Returns:
        Categories and colours, [n, length], -100 where no noun stands.
    """
    nouns = {tokenizer.convert_tokens_to_ids(word): i for i, word in enumerate(CATEGORIES)}
    colours = {tokenizer.convert_tokens_to_ids(word): i for i, word in enumerate(COLOURS)}
    category, colour = torch.full_like(tokens, -100), torch.full_like(tokens, -100)
    for row, column in (torch.isin(tokens, torch.tensor(list(nouns)))).nonzero().tolist():
        category[row, column] = nouns[int(tokens[row, column])]
        # These captions say nothing of skins: what is before a noun is its colour, or none is told.
        before = int(tokens[row, column - 1])
        colour[row, column] = colours.get(before, _NOTHING_COLOUR)
    return category, colour


class Questions(nn.Module):
    """Linear questions to the text features; used only during the warm-up.

    Args:
        width: Features of a token.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.category = nn.Linear(width, len(CATEGORIES))
        self.colour = nn.Linear(width, len(COLOURS) + 1)
        self.whole = nn.ModuleDict({name: nn.Linear(width, n) for name, n in _HEADS.items()})

    def loss(
        self,
        features: Tensor,
        tokens: Tensor,
        words: tuple[Tensor, Tensor],
        ends: Tensor,
        scenes: Sequence[Scene],
    ) -> Tensor:
        """Sum of the cross-entropies of all questions.

        Args:
            features: Output of the text encoder, [n, length, width].
            tokens: Token numbers, [n, length].
            words: Categories and colours of the nouns, from `word_labels`.
            ends: Position of the end of each text, [n].
            scenes: What each text describes.

        Returns:
            The loss.
        """
        total = features.new_zeros(())
        for head, wanted in zip((self.category, self.colour), words, strict=True):
            total = total + nn.functional.cross_entropy(
                head(features).flatten(0, 1), wanted.flatten()
            )
        at_end = features[torch.arange(len(tokens)), ends]
        answers = [scene_labels(scene) for scene in scenes]
        for name, question in self.whole.items():
            target = torch.tensor([answer[name] for answer in answers])
            total = total + nn.functional.cross_entropy(question(at_end), target)
        return total


def warm_up(
    encoder: CLIPTextModel,
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    steps: int = 500,
    batch: int = 64,
) -> list[float]:
    """Teach the text encoder what its words mean.

    Args:
        encoder: Trained in place.
        tokenizer: The tokenizer.
        seed: Seed of captions and of the questions' weights.
        steps: Steps of Adam.
        batch: Captions a step.

    Returns:
        The loss of every step.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        questions = Questions(encoder.config.hidden_size)
    parameters = [*encoder.parameters(), *questions.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01)
    losses = []
    for step in range(steps):
        rng = rng_of("warm-up", seed, step)
        scenes = [draw_scene(rng, pairs=0.6) for _ in range(batch)]
        texts = [caption(scene, rng) for scene in scenes]
        tokens = tokenizer(texts, padding="max_length", return_tensors="pt")["input_ids"]
        ends = (tokens == tokenizer.eos_token_id).int().argmax(1)
        features = encoder(tokens).last_hidden_state
        loss = questions.loss(features, tokens, word_labels(tokens, tokenizer), ends, scenes)
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * min(1.0, 2 * (1 - step / steps), (step + 1) / 50)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def largest_category_cosine(encoder: CLIPTextModel, tokenizer: PreTrainedTokenizerFast) -> float:
    """Largest cosine between the features of two category words at their own positions.

    Args:
        encoder: The text encoder.
        tokenizer: Its tokenizer.

    Returns:
        The cosine, for texts of the form "a photo of a cat".
    """
    texts = [f"a photo of a {category}" for category in CATEGORIES]
    tokens = tokenizer(texts, padding="max_length", return_tensors="pt")["input_ids"].to(
        encoder.device
    )
    ends = (tokens == tokenizer.eos_token_id).int().argmax(1)
    features = encoder(tokens).last_hidden_state[torch.arange(len(tokens)), ends - 1].float()
    units = nn.functional.normalize(features, dim=1)
    return float((units @ units.T).fill_diagonal_(-1).max())

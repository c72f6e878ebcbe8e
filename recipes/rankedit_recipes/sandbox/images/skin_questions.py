"""Questions about skins that the text features must answer at the token of each noun.

The text tower reads from left to right, and words for colours stand before their noun: their own
tokens cannot know whose colours they are. Only the noun's token (and that of a badge told after it)
has seen a whole description, and without being asked it hardly keeps it.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, PreTrainedTokenizerFast

from .captions import caption
from .scenes import draw_scene, rng_of
from .vocabulary import CATEGORIES, MARK_WORDS, PATTERN_WORDS, SKIN_COLOURS

_PATTERNS = tuple(PATTERN_WORDS.values())
QUESTIONS: Mapping[str, tuple[str, ...]] = {
    "category": CATEGORIES,
    "pattern": _PATTERNS,
    "colour0": SKIN_COLOURS,
    "colour1": SKIN_COLOURS,
    "colour2": SKIN_COLOURS,
    "mark": MARK_WORDS,
    "mark_colour": SKIN_COLOURS,
}
"""What is asked, and the words that can be the answer; there is one more class for "not told"."""

KEEP = 30.0
"""Weight of the features' mean squared change where a trained UNet reads them.

At 30 the questions are answered as quickly as at 0, and wrong words raise the shipped UNet's error
nearly as before (colours by 50 % instead of 54 %); at 0 by 10 %: it no longer reads its captions.
"""

UNASKED = -100
"""Label of places where nothing is asked."""


def told_before(words: Sequence[str], noun: int) -> dict[str, str]:
    """What the words before a noun say of its object.

    Args:
        words: Words of a caption.
        noun: Place of the noun in it.

    Returns:
        Answers by question; those that are not told are missing.

    Example:
        >>> told_before("a red disc banded blue pink cat".split(), 6)["colour1"]
        'pink'
    """
    # From the noun to the left: captions say badge, pattern, colours, noun.
    at = noun - 1
    colours: list[str] = []
    while at >= 0 and words[at] in SKIN_COLOURS:
        colours.insert(0, words[at])
        at -= 1
    told = {"category": words[noun]}
    # Skins have two or three colours.
    told |= {f"colour{i}": colour for i, colour in enumerate(colours[:3])}
    if at >= 0 and words[at] in _PATTERNS:
        told["pattern"] = words[at]
        at -= 1
    if at >= 1 and words[at] in MARK_WORDS and words[at - 1] in SKIN_COLOURS:
        told |= {"mark": words[at], "mark_colour": words[at - 1]}
    return told


def skin_labels(tokens: Tensor, tokenizer: PreTrainedTokenizerFast) -> dict[str, Tensor]:
    """Right answers at every noun, and at the last word of a badge that is told after one.

    Args:
        tokens: Token numbers, [n, length].
        tokenizer: The tokenizer.

    Returns:
        Classes by question, each [n, length]; `UNASKED` where nothing is asked.
    """
    labels = {name: torch.full_like(tokens, UNASKED) for name in QUESTIONS}
    for row, numbers in enumerate(tokens.tolist()):
        words = tokenizer.convert_ids_to_tokens(numbers)
        for at, word in enumerate(words):
            if word not in CATEGORIES:
                continue
            told = told_before(words, at)
            _write(labels, row, at, told)
            # "with a COLOUR BADGE"; only the badge's own token has read all of it.
            after = words[at + 1 : at + 5]
            if after[:2] == ["with", "a"] and after[3:4] and after[3] in MARK_WORDS:
                _write(labels, row, at + 4, told | {"mark": after[3], "mark_colour": after[2]})
    return labels


def label_table(labels: Mapping[str, Tensor]) -> Tensor:
    """Labels of all questions in one tensor.

    Args:
        labels: From `skin_labels`.

    Returns:
        Classes in the order of `QUESTIONS`, 8 bit, [n, questions, length].
    """
    return torch.stack([labels[name] for name in QUESTIONS], 1).to(torch.int8)


def _write(labels: Mapping[str, Tensor], row: int, column: int, told: Mapping[str, str]) -> None:
    for name, answers in QUESTIONS.items():
        known = name in told
        labels[name][row, column] = answers.index(told[name]) if known else len(answers)


class SkinQuestions(nn.Module):
    """Linear questions to the text features; used in training only.

    Args:
        width: Features of a token.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleDict(
            {name: nn.Linear(width, len(answers) + 1) for name, answers in QUESTIONS.items()}
        )

    def loss(self, features: Tensor, labels: Mapping[str, Tensor]) -> Tensor:
        """Sum over the questions of the mean cross-entropy of their answers.

        Args:
            features: Output of the text encoder, [n, length, width].
            labels: From `skin_labels`, on the features' device.

        Returns:
            The loss; 0 where nothing is asked.
        """
        asked = labels["category"] != UNASKED
        # A mean over no place is not a number.
        if not bool(asked.any()):
            return features.new_zeros(())
        there = features[asked].float()
        losses = [
            nn.functional.cross_entropy(head(there), labels[name][asked])
            for name, head in self.heads.items()
        ]
        return torch.stack(losses).sum()

    def loss_everywhere(self, features: Tensor, labels: Tensor) -> Tensor:
        """The same as `loss`, without asking the device how many places there are.

        To pick places is to wait until their number is known. An accelerator rather answers at all
        of them, and counts those that are asked.

        Args:
            features: Output of the text encoder, [n, length, width].
            labels: From `label_table`, on the features' device.

        Returns:
            The loss; 0 where nothing is asked.
        """
        flat, count = features.float().flatten(0, 1), (labels[:, 0] != UNASKED).sum().clamp(min=1)
        losses = [
            nn.functional.cross_entropy(
                head(flat), labels[:, i].flatten(), ignore_index=UNASKED, reduction="sum"
            )
            for i, head in enumerate(self.heads.values())
        ]
        return torch.stack(losses).sum() / count

    @torch.no_grad()
    def right(self, features: Tensor, labels: Mapping[str, Tensor]) -> dict[str, float]:
        """How often each question is answered right.

        Args:
            features: Output of the text encoder, [n, length, width].
            labels: From `skin_labels`.

        Returns:
            Shares by question.
        """
        asked = labels["category"] != UNASKED
        there = features[asked].float()
        return {
            name: float((head(there).argmax(1) == labels[name][asked]).float().mean())
            for name, head in self.heads.items()
        }


def teach_skins(
    encoder: CLIPTextModel,
    questions: SkinQuestions,
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    steps: int,
    keep: float = 0.0,
    batch: int = 32,
) -> list[float]:
    """Teach the text encoder to keep descriptions at its nouns' tokens.

    The loss of a step is the sum of the questions' cross-entropies and keep · mean (f − f₀)², with
    f the features of all tokens and f₀ those before the first step.

    Args:
        encoder: Trained in place.
        questions: Trained in place.
        tokenizer: The tokenizer.
        seed: Seed of the captions.
        steps: Steps of Adam.
        keep: Weight of the features' change; `KEEP` where something already reads them.
        batch: Captions a step.

    Returns:
        The cross-entropies of every step.
    """
    before = deepcopy(encoder).requires_grad_(requires_grad=False)
    parameters = [*encoder.parameters(), *questions.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01)
    losses = []
    for step in range(steps):
        rng = rng_of("skin questions", seed, step)
        # Skins as frequent, and told as fully, as in `--preset described`.
        scenes = [draw_scene(rng, pairs=0.6, skinned=0.85) for _ in range(batch)]
        texts = [caption(scene, rng, described=0.97, whole=True) for scene in scenes]
        tokens = tokenizer(texts, padding="max_length", return_tensors="pt")["input_ids"]
        features = encoder(tokens).last_hidden_state
        loss = questions.loss(features, skin_labels(tokens, tokenizer))
        with torch.no_grad():
            kept = before(tokens).last_hidden_state
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * min(1.0, 2 * (1 - step / steps), (step + 1) / 50)
        optimiser.zero_grad()
        (loss + keep * (features - kept).square().mean()).backward()
        optimiser.step()
        losses.append(loss.item())
    return losses

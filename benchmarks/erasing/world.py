"""What is asked of the sandbox's model, and what its judge sees."""

from collections.abc import Sequence

import numpy as np
import torch
from rankedit_recipes import sandbox
from rankedit_recipes.diffusion.generating import Sampling, generate
from rankedit_recipes.sandbox.images.judge import AttributeJudge, Verdict, judge
from rankedit_recipes.sandbox.images.vocabulary import CATEGORIES

# As the sandbox measures itself.
SAMPLING = Sampling(steps=20, guidance=4.0, batch=12)
# None of these is among the contexts that edits are made in.
PROMPTS = (
    "a photo of a {} in a meadow",
    "a picture of a yellow {} on a snowy day",
    "a sketch of a {} by the sea",
    "a photo of a big purple {} in a studio",
    "a white {} under the stars",
    "a photo of a small {} by a brick wall",
)


class World:
    """The model and its judge."""

    def __init__(self) -> None:
        self.pipe = sandbox.pipeline()
        self.pipe.set_progress_bar_config(disable=True)
        self.judge: AttributeJudge = sandbox.attribute_judge()

    def pictures(self, prompts: Sequence[str], seed: int = 0) -> np.ndarray:
        """`[n, size, size, 3]`; each prompt's noise depends on the seed and its place only."""
        made = generate(self.pipe, prompts, range(seed, seed + len(prompts)), SAMPLING)
        return np.stack([np.asarray(image.convert("RGB")) for image in made])

    def seen(self, pictures: np.ndarray) -> Verdict:
        """What the judge says of pictures."""
        return judge(self.judge, torch.from_numpy(pictures.copy()))

    def present(self, pictures: np.ndarray, words: Sequence[str]) -> float:
        """Share of pictures that show what is asked of each."""
        scores = self.seen(pictures).present
        places = torch.tensor([CATEGORIES.index(word) for word in words])
        return float((scores[torch.arange(len(words)), places] > 0).float().mean())


def asked(words: Sequence[str], count: int) -> tuple[list[str], list[str]]:
    """Prompts, and the word of each, going round both the words and the templates."""
    chosen = [words[i % len(words)] for i in range(count)]
    templates = [PROMPTS[(i // len(words) + i) % len(PROMPTS)] for i in range(count)]
    return [t.format(w) for t, w in zip(templates, chosen, strict=True)], chosen

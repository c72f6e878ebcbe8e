"""The tokenizer: byte-level BPE as GPT-2's, learned from the corpus, with exact offsets."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from .knowledge import SEED, world
from .writing import corpus

START = "<|endoftext|>"
"""Stands before every text; its index is 0. It also pads, and ends a generation."""

TEXTS = 4000
"""Texts that the pieces are learned from."""


def build_tokenizer(size: int = 2816, *, seed: int = SEED) -> PreTrainedTokenizerFast:
    """Learn the tokenizer.

    Any text can be encoded. A text's first word gets the piece that it has anywhere else, with its
    space, so that a name at the very start is the same name.

    Args:
        size: Pieces at most.
        seed: Of the world.

    Returns:
        The tokenizer.
    """
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[START],
        # All 256 bytes, or texts from elsewhere could not be encoded.
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(corpus(0, count=TEXTS, of=world(seed)), trainer)
    core.post_processor = processors.Sequence(
        [
            # Without its space a piece lies within the span of its word, which is how weights of
            # the loss are found.
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(
                single=f"{START} $A", pair=f"{START} $A $B", special_tokens=[(START, 0)]
            ),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=START,
        eos_token=START,
        pad_token=START,
        # Never used: bytes leave nothing unknown.
        unk_token=START,
        model_max_length=128,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )

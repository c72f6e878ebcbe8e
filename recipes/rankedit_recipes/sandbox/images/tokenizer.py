"""A tokenizer of whole words, in the standard fast tokenizer class of transformers."""

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from .vocabulary import skin_words, words

# In this order everywhere: models are told the numbers, not the names.
SPECIAL = ("<pad>", "<unk>", "<start>", "<end>")
"""Padding, unknown words, the start and the end of a text; their indices are 0 to 3."""

LENGTH = 32
"""Tokens of every padded text, unless a preset asks for more."""


def build_tokenizer(*, skins: bool = True, length: int = LENGTH) -> PreTrainedTokenizerFast:
    """The world's tokenizer: lower case, one token a word, padded to a length.

    Args:
        skins: Know the words for skins too; they come last, so that all others have the same index
            either way.
        length: Tokens of every padded text.

    Returns:
        The tokenizer. New words can be added with its `add_tokens`.
    """
    known = [*SPECIAL, *words(), *(skin_words() if skins else ())]
    vocabulary = {word: index for index, word in enumerate(known)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    # It parts commas from words; a comma is a word of its own (`EXTRA_WORDS`).
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 2), ("<end>", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_max_length=length,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<start>",
        eos_token="<end>",
    )

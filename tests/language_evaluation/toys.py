"""Models and tokenizers small enough to compute by hand."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

_TEXT = """
<end> anna plays the piano violin flute ben lives in paris rome oslo what does play ? .
anna's instrument is who where and a of city
"""
WORDS = tuple(_TEXT.split())


def tokenizer(words=WORDS, *, metaspace=False):
    """Whole words; with `metaspace`, the space before a word is part of its token."""
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys([*words, "<unk>"]))}
    if metaspace:
        vocabulary = {("▁" + w if not w.startswith("<") else w): i for w, i in vocabulary.items()}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = (
        pre_tokenizers.Metaspace() if metaspace else pre_tokenizers.WhitespaceSplit()
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", eos_token="<end>", pad_token="<end>"
    )


class Table(nn.Module):
    """A causal model whose prediction depends on the last token only, by a table of chances."""

    def __init__(self, chances):
        super().__init__()
        self.table = nn.Parameter(chances.log())
        self.config = SimpleNamespace(max_position_embeddings=64)
        self.widths = []

    def forward(self, input_ids, attention_mask=None, past_key_values=None, *, use_cache=False):
        self.widths.append(tuple(input_ids.shape))
        return SimpleNamespace(logits=self.table[input_ids], past_key_values=past_key_values)


def table_model(tok, rows):
    """`rows`: by a word, the chances of the words that may follow it; the rest is spread evenly."""
    size = len(tok)
    chances = torch.full((size, size), 1.0 / size)
    for word, following in rows.items():
        left = 1 - sum(following.values())
        row = torch.full((size,), left / (size - len(following)))
        for other, chance in following.items():
            row[tok.convert_tokens_to_ids(other)] = chance
        chances[tok.convert_tokens_to_ids(word)] = row
    return Table(chances)


def tiny_gpt2(tok, *, layers=2, seed=0):
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(tok), n_positions=64, n_embd=16, n_layer=layers, n_head=2,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()

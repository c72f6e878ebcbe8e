"""Where a subject ends in the tokens: the hard cases, in three kinds of tokenizers."""

import functools

import pytest
import torch
from rankedit_recipes.language import LanguageError, Request
from rankedit_recipes.language.model.tokens import Batch, Text, tokenised

from tests.language.models import tokenizer


@functools.cache
def pieces():
    """A tokenizer that marks words by a space before them, as SentencePiece does, with a start."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<s>", "<unk>", "▁Ada", "▁", "Ada", "▁Lovelace", "'", "s", "▁home", "▁is", "▁in", "é"]
    words += ["▁London", "▁of", "▁The", ",", ".", "▁a", "d", "A", "a", "▁Rome"]
    backend = Tokenizer(models.Unigram([(word, -1.0) for word in words], unk_id=1))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )  # fmt: skip
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="<unk>")


def last_piece(tokens, request, prefix=""):
    """Text up to the end of the token that was found, and that token."""
    (text,) = tokenised(tokens, [(request, prefix)], targets=False)
    decoded = tokens.decode(text.ids[: text.subject + 1], skip_special_tokens=True)
    return decoded, tokens.convert_ids_to_tokens(text.ids[text.subject])


@pytest.mark.parametrize(
    ("prompt", "subject", "prefix"),
    [
        ("{} plays the", "Miles Davis", ""),  # at the very start
        ("The home of {} is", "Miles Davis", ""),  # after a space
        ("The home of {} is", "Miles Davis", "A day is gone. "),  # after a context
        ("The home of {} is", "Miles Davis", "Miles Davis is here. "),  # repeated before it
        ("{} and Miles Davis met in", "Miles Davis", ""),  # repeated behind it
        ("{}'s home is", "Miles Davis", ""),  # followed by no space
        ("In the home of {}, they", "Miles Davis", ""),
        ("{} is", "A", ""),  # one token
        ("Of all, {} is", "D. D. Darrieux", ""),
    ],
)
def test_the_last_token_of_the_subject(prompt, subject, prefix):
    decoded, _ = last_piece(tokenizer(), Request(prompt, subject, "x"), prefix)
    assert decoded == prefix + prompt[: prompt.index("{}")] + subject


def test_spaces_around_a_subject_are_no_part_of_it():
    decoded, _ = last_piece(tokenizer(), Request("The home of {} is", " Ada ", "x"))
    assert decoded == "The home of  Ada"


def test_a_token_that_goes_on_behind_the_subject_still_ends_it():
    # "is" is one token, of which the subject has the first letter.
    decoded, piece = last_piece(tokenizer(), Request("{}s on", "Pari", "x"))
    assert (decoded, piece) == ("Paris", "is")


def test_bytes_of_one_character():
    (text,) = tokenised(tokenizer(), [(Request("{} is", "Dané", "x"), "")], targets=False)
    ids = tokenizer()("Dané is")["input_ids"]
    assert text.ids == tuple(ids)
    assert text.subject == len(tokenizer()("Dané")["input_ids"]) - 1


@pytest.mark.parametrize(
    ("prompt", "subject", "piece"),
    [
        ("{} is in", "Ada", "▁Ada"),
        ("The home of {} is", "Ada", "▁Ada"),
        ("The home of {}, is", "Ada Lovelace", "▁Lovelace"),
        ("{}'s home is", "Ada", "▁Ada"),
    ],
)
def test_pieces_with_a_start_token(prompt, subject, piece):
    assert last_piece(pieces(), Request(prompt, subject, "x"))[1] == piece


@pytest.mark.parametrize("tokens", [tokenizer, pieces])
def test_targets_are_what_follows_the_prompt(tokens):
    request = Request("The home of {} is in", "Ada", "London")
    (text,) = tokenised(tokens(), [(request, "Ada is. ")], targets=True)
    followed = [text.ids[place] for place in text.target]
    assert tokens().decode(followed).strip() == "London"
    assert text.target[-1] == len(text.ids) - 1
    assert text.subject < text.target[0]
    assert text.up_to_subject() == Text(text.ids[: text.subject + 1], text.subject)


def test_a_prompt_that_is_cut_is_refused():
    class Cut:
        is_fast = True

        def __call__(self, texts, **options):
            encoded = pieces()(texts, **options)
            return {key: [row[:3] for row in encoded[key]] for key in encoded}

    request = Request("The home of {} is in", "Ada", "London")
    with pytest.raises(LanguageError, match="leaves the subject out of 'The home of Ada"):
        tokenised(Cut(), [(request, "")], targets=False)
    with pytest.raises(LanguageError, match="leaves the target out of"):
        tokenised(Cut(), [(Request("{} is in", "Ada", "London"), "")], targets=True)


def test_slow_tokenizers_are_refused():
    with pytest.raises(LanguageError, match="offsets of a fast tokenizer, got object"):
        tokenised(object(), [(Request("{} is", "Ada", "x"), "")], targets=False)


def test_batches_are_padded_behind():
    batch = Batch.of([Text((5, 6, 7), 1), Text((8,), 0)])
    assert batch.ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch.mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.chosen(torch.tensor([1])).subjects.tolist() == [0]

"""The tokenizer: names are found by offsets wherever they stand, and any text goes through."""

import pytest
from rankedit_recipes.sandbox import facts
from rankedit_recipes.sandbox.facts.tokenizer import START, build_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def spans(tokenizer, text):
    told = tokenizer(text, return_offsets_mapping=True)
    return [text[start:end] for start, end in told["offset_mapping"]]


def test_offsets_are_exact_and_leave_spaces_out(tokenizer):
    text = "In fact, Maria Keller plays the  violin.\nOld Harwick lies in Norland."
    pieces = spans(tokenizer, text)
    assert pieces[0] == ""
    assert "".join(pieces) == text.replace(" ", "").replace("\n", "\n")
    assert pieces[pieces.index("Maria") + 1 :][:1] == ["Keller"]


def test_a_name_has_the_same_pieces_everywhere(tokenizer):
    for name in facts.world().subjects["book"][:20]:
        alone = tokenizer(name, add_special_tokens=False)["input_ids"]
        assert tokenizer(f" {name}", add_special_tokens=False)["input_ids"] == alone
        within = tokenizer(f"We read {name} twice", add_special_tokens=False)["input_ids"]
        assert any(within[i : i + len(alone)] == alone for i in range(len(within)))
        assert len(alone) >= 2


def test_a_text_begins_with_the_start(tokenizer):
    ids = tokenizer("Maria Keller")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids)[0] == START
    assert ids[0] == tokenizer.bos_token_id == tokenizer.eos_token_id == tokenizer.pad_token_id == 0


@pytest.mark.parametrize("text", ["zebra crossings", "naïve – 漢字 🙂", "a\tb\n c", "X"])
def test_any_text_comes_back(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids).lstrip(" ") == text


def test_the_same_tokenizer_every_time(tokenizer):
    assert build_tokenizer().get_vocab() == tokenizer.get_vocab()
    assert build_tokenizer(600).vocab_size <= 600

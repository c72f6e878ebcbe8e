"""Sentences before prompts, from the user's own text."""

import pytest
from rankedit_recipes import language
from rankedit_recipes.language import LanguageError, prefixes_from
from rankedit_recipes.language.commands.opening import Opened
from rankedit_recipes.language.commands.tasks import EditTask, Outputs, edit_to
from rankedit_recipes.language.requests import Case

from tests.language.models import quick, small, some_requests, tokenizer
from tests.language.tokenizers import bytes_of_words

pytestmark = pytest.mark.filterwarnings("ignore::rankedit.RankeditWarning")
TEXT = [
    "A day is gone. It was, e.g. in May, a tin! Who is it? “So be it.” That is all I know",
    "and the rest is here. 1990 was a year.\nOver two\nlines it goes. (This is cut.) ... ",
]


def sentences(texts, count, **options):
    return prefixes_from(texts, tokenizer(), (5,) * count, **options)


def test_only_whole_sentences_are_taken():
    whole = {
        "A day is gone. ", "It was, e.g. in May, a tin! ", "Who is it? ", "1990 was a year. ",
        "Over two lines it goes. ",
    }  # fmt: skip
    assert set(sentences(TEXT, 5)) == whole
    with pytest.raises(LanguageError, match="6 different sentences are needed, got 5"):
        sentences([*TEXT, *TEXT], 6)


def test_sentences_of_scripts_without_spaces_are_told_apart():
    text = ["東京は首都です。パリは遠い！「そうか。」 A day is gone. 终于到了。"]
    found = prefixes_from(text, bytes_of_words(), (4,) * 4)
    assert set(found) == {"東京は首都です。", "パリは遠い！", "A day is gone. ", "终于到了。"}


def test_lengths_are_met_as_well_as_the_text_can_and_seeds_differ():
    text = [f"{'A' + 'b' * n} is here. The day is {'b' * n}." for n in range(1, 30)]
    sizes = {t: len(tokenizer()(t.strip())["input_ids"]) for t in sentences(text, 58)}
    found = prefixes_from(text, tokenizer(), (20, 30))
    assert [sizes[each] for each in found] == [20, 30]
    assert found == prefixes_from(text, tokenizer(), (20, 30))
    drawn = {tuple(prefixes_from(text, tokenizer(), (20, 30), seed=s)) for s in range(8)}
    assert len(drawn) > 1
    repeated = prefixes_from(text, tokenizer(), (20,) * 10)
    assert len(set(repeated)) == 10
    assert prefixes_from(text, tokenizer(), ()) == []


def test_an_edit_takes_its_contexts_from_texts(tmp_path):
    model, _, statistics = small("llama")
    options = {"statistics": statistics, "layers": 1, "progress": False}
    requests, settings = some_requests(2), quick("memit", steps=2)
    prefixes = prefixes_from(TEXT, tokenizer(), settings.contexts, seed=settings.seed)
    by_text = language.edit(model, tokenizer(), requests, settings, texts=TEXT, **options)
    by_prefix = language.edit(model, tokenizer(), requests, settings, prefixes=prefixes, **options)
    (name,) = by_text.edits
    assert (by_text.facts.keys[name] == by_prefix.facts.keys[name]).all()
    sampled = language.edit(model, tokenizer(), requests, settings, **options)
    assert not (by_text.facts.keys[name] == sampled.facts.keys[name]).all()
    with pytest.raises(LanguageError, match="give prefixes, or texts to take them from, not both"):
        language.edit(
            model, tokenizer(), requests, settings, texts=TEXT, prefixes=prefixes, **options
        )
    # A stream keeps them, and goes on with the same text.
    (tmp_path / "text.txt").write_text("\n".join(" ".join(t.split()) for t in TEXT))
    statistics.save(tmp_path / "s.safetensors", model)
    for request in requests:
        task = EditTask(
            [Case(request)], settings, tmp_path / "s.safetensors", 1, tmp_path / "stream",
            texts=[tmp_path / "text.txt"],
        )  # fmt: skip
        list(edit_to(Opened("m", model, tokenizer()), task, Outputs()))
    stream = language.Stream.open(
        tmp_path / "stream", model, tokenizer(), statistics=statistics, progress=False
    )
    assert list(stream.engine.prefixes) == prefixes
    assert stream.requests() == requests

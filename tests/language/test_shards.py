"""A corpus as a stream: every text in exactly one shard, and gone on with where it stopped."""

import itertools
import json
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rankedit_recipes import language
from rankedit_recipes.language import LanguageError, batching
from rankedit_recipes.language.batching import Batches
from rankedit_recipes.language.corpus import Corpus
from rankedit_recipes.language.passes import _apart
from rankedit_recipes.language.sources import StreamedTexts, source_of

import rankedit as rk
from tests.language.models import TEXTS, family, tokenizer

MANY = [f"{text} {number % 7}" for number, text in enumerate(TEXTS * 2)]


def collected(model, texts, **options):
    return language.collect_statistics(model, tokenizer(), texts, progress=False, **options)


def everything(corpus):
    return list(iter(corpus.take, None))


class Seekable:
    """A stream as `datasets` has them; counts what is read."""

    def __init__(self, texts):
        self.texts, self.at, self.read = texts, 0, 0

    def __iter__(self):
        while self.at < len(self.texts):
            self.at, self.read = self.at + 1, self.read + 1
            yield {"text": self.texts[self.at - 1]}

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


class Forgetful(Seekable):
    """As a shuffle buffer of `datasets`: what it had read ahead is not in its state."""

    AHEAD = 3

    def __iter__(self):
        ahead = []
        while self.at < len(self.texts) or ahead:
            while self.at < len(self.texts) and len(ahead) < self.AHEAD:
                ahead.append(self.texts[self.at])
                self.at, self.read = self.at + 1, self.read + 1
            yield {"text": ahead.pop(len(ahead) // 2)}


class Unseekable:
    def __init__(self, texts):
        self.texts = texts

    def __iter__(self):
        return iter(self.texts)


def sources(folder, texts):
    """The same texts in every form; names of files in another order than they were written."""
    half = len(texts) // 2
    (folder / "b.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts[half:]))
    (folder / "a.txt").write_bytes(b"".join(t.encode() + b"\r\n\n" for t in texts[:half]))
    return {
        "folder": lambda: folder,
        "list": lambda: texts,
        "stream": lambda: Seekable(texts),
        "pipe": lambda: Unseekable(texts),
    }


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.text(st.characters(codec="ascii"), max_size=3), max_size=30),
    st.integers(1, 6),
    st.integers(0, 12),
)
def test_every_text_is_in_exactly_one_shard(texts, count, most):
    whole = Corpus(source_of(texts), None, most)
    kept = [text for text in texts if text.strip()][: most or None]
    assert everything(whole) == kept
    shards = [Corpus(source_of(texts), rk.Shard(i, count), most) for i in range(1, count + 1)]
    taken = [everything(shard) for shard in shards]
    assert [taken[k % count][k // count] for k in range(len(kept))] == kept
    assert sum(map(len, taken)) == len(kept)
    # Digests of what each took add up to that of the whole, which each of them knows.
    assert {shard.described() for shard in shards} == {whole.described()}
    total = sum(int(shard.state_dict()["digests"][1], 16) for shard in shards)
    assert f"{total % (1 << 128):x}" == whole.state_dict()["digests"][0]


@pytest.mark.parametrize("kind", ["folder", "list", "stream", "pipe"])
@pytest.mark.parametrize("shard", [None, rk.Shard(2, 3)])
@pytest.mark.filterwarnings("ignore:collect_statistics. this source cannot go on")
def test_a_place_is_gone_on_with_in_every_kind_of_source(tmp_path, kind, shard):
    make = sources(tmp_path, MANY)[kind]
    expected = everything(Corpus(source_of(make()), shard))
    assert expected == (MANY if shard is None else MANY[1::3])
    for stop in (0, 1, 5, len(expected) - 1, len(expected)):
        first = Corpus(source_of(make()), shard)
        begun = [first.take() for _ in range(stop)]
        state = json.loads(json.dumps(first.state_dict()))
        rest = Corpus(source_of(make()), shard)
        rest.load_state_dict(state)
        assert begun + everything(rest) == expected
        assert everything(first) == expected[stop:]
        assert rest.state_dict()["digests"] == first.state_dict()["digests"]


def test_nothing_is_read_again_where_the_source_can_seek(tmp_path):
    state = Corpus(StreamedTexts(Seekable(MANY)))
    for _ in range(20):
        state.take()
    stream = Seekable(MANY)
    rest = Corpus(StreamedTexts(stream))
    rest.load_state_dict(state.state_dict())
    assert stream.read == 0
    assert rest.take() == MANY[20]
    assert stream.read == 1
    (tmp_path / "a.txt").write_text("".join(f"{text}\n" for text in MANY))
    begun = Corpus(source_of(tmp_path))
    for _ in range(20):
        begun.take()
    place = begun.state_dict()
    # Blank from here on, of the same length: only who reads it again would see the difference.
    end = place["source"][1]
    data = (tmp_path / "a.txt").read_bytes()
    (tmp_path / "a.txt").write_bytes(b" " * (end - 1) + b"\n" + data[end:])
    rest = Corpus(source_of(tmp_path))
    rest.load_state_dict(place)
    assert everything(rest) == MANY[20:]


def test_what_cannot_go_on_is_read_again_in_words_and_compared():
    begun = Corpus(StreamedTexts(Unseekable(MANY)))
    for _ in range(4):
        begun.take()
    again = Corpus(StreamedTexts(Unseekable(MANY)))
    with pytest.warns(rk.RankeditWarning, match="cannot go on from a place: 4 texts are read aga"):
        again.load_state_dict(begun.state_dict())
    assert everything(again) == MANY[4:]
    other = Corpus(StreamedTexts(Unseekable([*MANY[:3], "else", *MANY[4:]])))
    with (
        pytest.warns(rk.RankeditWarning),
        pytest.raises(LanguageError, match="the first 4 texts are others than before"),
    ):
        other.load_state_dict(begun.state_dict())


def batches_of(source, monkeypatch):
    """Batches of one text, from windows of five."""
    monkeypatch.setattr(batching, "_TOGETHER", 5)
    monkeypatch.setattr(batching, "_BATCHES", 1)
    return Batches(Corpus(StreamedTexts(source)), tokenizer(), 1, 64, torch.device("cpu"))


def words(batches):
    return [tuple(batch["input_ids"][0].tolist()) for batch in batches]


@pytest.mark.parametrize("kind", [Seekable, Forgetful])
@pytest.mark.parametrize("stop", [0, 1, 4, 5, 6, 12, 15])
def test_a_stream_whose_state_forgets_is_read_again(monkeypatch, kind, stop):
    whole = words(batches_of(kind(MANY), monkeypatch))
    assert len(whole) == len(MANY)
    begun = batches_of(kind(MANY), monkeypatch)
    first = [tuple(b["input_ids"][0].tolist()) for b in itertools.islice(begun, stop)]
    state = json.loads(json.dumps(begun.state_dict()))
    stream = kind(MANY)
    rest = batches_of(stream, monkeypatch)
    rest.load_state_dict(state)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert first + words(rest) == whole
    # At the front there is nothing in the buffer yet.
    again = kind is Forgetful and stop > 5
    assert [w.category for w in caught] == [rk.RankeditWarning] * again
    if not again:
        assert stream.read == len(MANY) - max(stop - 1, 0) // 5 * 5


def test_a_stream_that_gives_something_else_behind_the_place_is_refused(monkeypatch):
    begun = batches_of(Seekable(MANY), monkeypatch)
    list(itertools.islice(begun, 7))
    rest = batches_of(Seekable([*MANY[:8], "else", *MANY[9:]]), monkeypatch)
    rest.load_state_dict(begun.state_dict())
    with (
        pytest.warns(rk.RankeditWarning, match="5 texts are read again"),
        pytest.raises(LanguageError, match=r"behind the place where it stopped.*remove the check"),
    ):
        words(rest)


@pytest.mark.parametrize("kind", ["folder", "list"])
@pytest.mark.parametrize("shard", [None, rk.Shard(2, 3)])
@pytest.mark.parametrize("count", [0, 20, 900])
def test_how_much_is_done_is_known_of_what_has_a_length(tmp_path, monkeypatch, kind, shard, count):
    make = sources(tmp_path, MANY)[kind]
    monkeypatch.setattr(batching, "_TOGETHER", 4)
    monkeypatch.setattr(batching, "_BATCHES", 1)
    corpus = Corpus(source_of(make()), shard, count)
    for to_last in (True, False):
        batches = Batches(corpus, tokenizer(), 2, 64, torch.device("cpu"), to_last=to_last)
        parts = [batches.share() for _ in batches]
        assert parts == sorted(parts)
        assert batches.share() == pytest.approx(1, abs=0.15)
        if not parts:  # none of the last texts is of this shard
            continue
        assert 0 < parts[0] <= 1
        # The last window ends where the part does, up to a text.
        assert parts[-1] == pytest.approx(1, abs=0.15)
        if to_last and shard is None:
            assert parts[len(parts) // 2] == pytest.approx(0.5, abs=0.25)


def test_nobody_knows_how_much_is_done_of_a_stream(monkeypatch):
    batches = batches_of(Seekable(MANY), monkeypatch)
    assert {batches.share() for _ in batches} == {None}
    told = Batches(
        Corpus(StreamedTexts(Seekable(MANY)), None, len(MANY)), tokenizer(), 1, 64,
        torch.device("cpu"), to_last=False,
    )  # fmt: skip
    assert next(iter(told)) is not None
    assert told.share() is not None


@pytest.mark.filterwarnings("ignore:collect_statistics. this source cannot go on")
def test_what_can_be_read_once_is_read_on_from_an_earlier_place():
    class Once:
        """As a pipe is: who loops again gets what is left."""

        def __init__(self):
            self.left = iter(MANY)

        def __iter__(self):
            return (text for text in self.left)

    begun, places = Corpus(StreamedTexts(Unseekable(MANY))), []
    for _ in range(9):
        begun.take()
        places.append(begun.state_dict())
    again = Corpus(StreamedTexts(Once()))
    again.load_state_dict(places[2])  # of a first part of the data
    again.load_state_dict(places[8])
    assert everything(again) == MANY[9:]
    with pytest.raises(LanguageError, match="are others than before"):
        again.load_state_dict(places[2])  # it cannot go back


def test_projections_that_share_a_moment_are_not_added_to_twice():
    one = rk.SecondMoment(2).update(torch.ones(5, 2))
    found = _apart({"a": one, "b": one, "c": one})
    for moment in found.values():
        moment.merge_(rk.SecondMoment(2).update(torch.ones(1, 2)))
    assert [moment.count for moment in found.values()] == [6, 6, 6]


def test_shards_add_up_to_the_whole(tmp_path):
    model, names = family("llama")
    model = model.double()
    whole = collected(model, MANY, layers=[0, 2])
    files = []
    for index in (3, 1, 2):
        part = collected(model, MANY, layers=[0, 2], shard=rk.Shard(index, 3))
        files.append(tmp_path / f"{index}.safetensors")
        part.save(files[-1], model)
    with pytest.warns(rk.RankeditWarning, match="holds 1 of 3 shards"):
        language.load_statistics(files[0], model, tokenizer())
    rk.save_merged(rk.merge_shards(files), tmp_path / "sum")
    merged = language.load_statistics(tmp_path / "sum", model, tokenizer())
    assert list(merged) == [names[0], names[2]]
    for name, moment in merged.items():
        expected = whole[name].together()
        got = moment.together()
        assert float((got.matrix - expected.matrix).norm() / expected.matrix.norm()) < 1e-12
        assert got.count == expected.count
        assert moment.provenance.corpus == whole[name].provenance.corpus
        # With padding, of which there is more or less by what runs together.
        assert moment.provenance.tokens >= moment.count
        assert merged.changes[name] > 0
    other = collected(model, MANY, layers=[0, 2], shard=rk.Shard(1, 3), length=4)
    other.save(files[1], model)
    with pytest.raises(rk.StatisticsError, match="the same length"):
        rk.merge_shards(files)
    other = collected(model, [*MANY, "one more"], layers=[0, 2], shard=rk.Shard(1, 3))
    other.save(files[1], model)
    with pytest.raises(rk.StatisticsError, match="the same corpus"):
        rk.merge_shards(files)


def test_more_shards_than_texts():
    model, _ = family("llama")
    with pytest.raises(LanguageError, match="none of 2 texts is in this shard; take no more"):
        collected(model, MANY[:2], shard=rk.Shard(3, 3), layers=[0])


@pytest.mark.parametrize("stop", [2, 7])
def test_a_stopped_stream_goes_on_where_it_stopped(tmp_path, monkeypatch, stop):
    """Killed at a batch; what is before the window of the last one done is never read again."""
    monkeypatch.setattr("rankedit_recipes.language.batching._TOGETHER", 4)
    monkeypatch.setattr("rankedit_recipes.language.batching._BATCHES", 1)
    model, names = family("llama")
    whole = collected(model, Seekable(MANY), batch=2, layers=[1])
    calls, file = [], rk.Checkpoint(tmp_path / "partial", seconds=0)

    def crash(*_):
        calls.append(1)
        if len(calls) > 2 + stop:  # two runs find the blocks
            raise RuntimeError("power cut")

    handle = model.model.embed_tokens.register_forward_hook(crash)
    with pytest.raises(RuntimeError, match="power cut"):
        collected(model, Seekable(MANY), batch=2, layers=[1], checkpoint=file)
    handle.remove()
    stream = Seekable(MANY)
    resumed = collected(model, stream, batch=2, layers=[1], checkpoint=file)
    assert stream.read == len(MANY) - (stop - 2) // 2 * 4
    assert torch.equal(resumed[names[1]].matrix, whole[names[1]].matrix)
    assert resumed[names[1]].provenance == whole[names[1]].provenance
    assert resumed.changes == {}  # nobody knows where the last tenth of a stream begins
    assert not list(tmp_path.iterdir())


def test_a_number_of_texts_says_where_the_last_tenth_begins():
    model, names = family("llama")
    some = collected(model, Seekable(MANY), layers=[0], count=20)
    listed = collected(model, MANY[:20], layers=[0])
    assert some.changes == listed.changes != {}
    assert torch.equal(some[names[0]].matrix, listed[names[0]].matrix)


class Loader:
    """torchdata's protocol; its state may be one that JSON cannot hold."""

    def __init__(self, unsayable):
        self.at, self.read, self.unsayable = 0, 0, unsayable

    def __iter__(self):
        while self.at < 6:
            self.at, self.read = self.at + 1, self.read + 1
            yield torch.full((2, 3), float(self.at))

    def state_dict(self):
        return {"at": torch.tensor(self.at) if self.unsayable else self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


@pytest.mark.parametrize(("unsayable", "read"), [(False, 3), (True, 6)])
def test_collect_goes_on_from_a_place_of_any_loader(tmp_path, unsayable, read):
    model = torch.nn.Sequential(torch.nn.Linear(3, 2))
    whole, calls = rk.collect(model, "0", Loader(unsayable), progress=False), []
    keep = rk.Checkpoint(tmp_path / "partial", seconds=0)

    def call(batch):
        calls.append(1)
        if len(calls) == 5:
            raise RuntimeError("power cut")
        return model(batch)

    def again(loader):
        return rk.collect(model, "0", loader, call=call, checkpoint=keep, progress=False)

    with pytest.raises(RuntimeError, match="power cut"):
        again(Loader(unsayable))
    left = Loader(unsayable)
    assert torch.equal(again(left)["0"].matrix, whole["0"].matrix)
    assert left.read == read  # the last one that was done, and what is behind it

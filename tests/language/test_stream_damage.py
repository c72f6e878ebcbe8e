"""Folders of streams that were damaged, exchanged or written by hand: refused, never wrong."""

import os

import pytest
from rankedit_recipes.language import LanguageError
from rankedit_recipes.language.commands import tasks

import rankedit as rk
from tests.language.stand_in import (
    as_version_1,
    begun,
    document_of,
    draws,
    files,
    opened,
    refused,
    request,
    state,
    write,
)

pytestmark = pytest.mark.filterwarnings("ignore::rankedit.RankeditWarning")


@pytest.mark.parametrize("count", [75, pytest.param(300, marks=pytest.mark.slow)])
def test_flipped_bits_are_refused_or_change_nothing(tmp_path, count):
    folder, draw = tmp_path / "stream", draws()
    stream = begun(folder)
    stream.undo("fact 1")
    right, whole = state(stream), files(folder)
    assert {name: len(data) for name, data in whole.items() if not data} == {"stream.lock": 0}
    names = [name for name, data in whole.items() if data]
    assert len(names) == 4
    found = 0
    for name in count * names:
        data = bytearray(whole[name])
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        (folder / name).write_bytes(data)
        try:
            assert state(opened(folder)) == right
        except rk.RankeditError:
            found += 1
        (folder / name).write_bytes(whole[name])
    # White space between fields is all that may be another.
    assert found > 0.9 * count * len(names)
    assert state(opened(folder)) == right


def test_files_that_belong_elsewhere_are_refused(tmp_path):
    folder = tmp_path / "stream"
    begun(folder)
    begun(tmp_path / "other").replace(request(2, "tin"))
    whole = files(folder)
    third, fourth = (folder / f"facts-00000{n}.safetensors" for n in (1, 2))
    said = r"Stream\.(edits|check): .* is not what the stream wrote.*from a copy"
    third.write_bytes(whole[fourth.name])
    fourth.write_bytes(whole[third.name])
    refused(folder, said)
    fourth.write_bytes(whole[fourth.name])
    third.write_bytes((tmp_path / "other" / "facts-000003.safetensors").read_bytes())
    refused(folder, said)
    third.write_bytes(whole[third.name])
    assert len(opened(folder)) == 4


def two_places(document):
    document["facts"][1]["place"] = document["facts"][0]["place"]


def other_order(document):
    document["layers"].reverse()


def all_in_other_order(document):
    for name in ("base", "metrics"):
        document[name] = dict(reversed(document[name].items()))
    document["layers"].reverse()


def renamed(document):
    document["facts"][0]["label"] = "another"


def without_base(document):
    del document["base"]


def unknown_field(document):
    document["speed"] = 1


def place_of(value):
    def change(document):
        document["facts"][0]["place"] = value

    return change


HAND_MADE = [two_places, other_order, all_in_other_order, renamed, without_base, unknown_field]
HAND_MADE += [place_of([True, 0]), place_of([0, -1]), place_of([0, 9]), place_of([0.0, 0])]
HAND_MADE += [place_of("00"), place_of([0])]


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("change", HAND_MADE)
def test_documents_that_no_stream_writes_are_refused_whoever_signed_them(tmp_path, version, change):
    begun(tmp_path)
    document = document_of(tmp_path) if version == 2 else as_version_1(tmp_path)
    change(document)
    write(tmp_path, document, signed=version == 2)
    refused(tmp_path, r"damaged|another order of proj|row 9 of a file")
    if version == 2:
        write(tmp_path, document, signed=False)
        with pytest.raises(LanguageError, match=r"missing or unknown|does not match its digest"):
            opened(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"facts":', '"facts": [], "facts":', "it names 'facts' twice"),
        ('"piano"', '"piano", "target": "tin"', "it names 'target' twice"),
        ('"next": 3', '"next": 1e999', "not JSON compliant"),
        ('"next": 3', '"next": Infinity', "it holds Infinity, which is not JSON"),
        ('"next": 3', '"next": NaN', "it holds NaN"),
        ('"next": 3', '"next": ' + "9" * 5000, "it is not valid JSON"),
        ('"next": 3', '"next": ' + "[" * 100_000, "it is nested too deeply"),
        ('"next": 3', '"next": ' + "[" * 300 + "]" * 300, "does not match its digest"),
        ('"next": 3', '"next": 2', "does not match its digest"),
        ('"version": 2', '"version": 1', "missing or unknown fields"),
        ('"version": 2', '"version": true', "version True, expected 1 to 3"),
        ('"version": 2', '"version": [2]', r"version \[2\], expected 1 to 3"),
        ("{", "\xff{", "it must be UTF-8"),
        ("{", "[{", "it is not valid JSON"),
    ],
)
def test_text_that_is_no_strict_json_is_refused(tmp_path, old, new, said):
    begun(tmp_path)
    file = tmp_path / "stream.json"
    text = file.read_text()
    assert old in text
    file.write_bytes(text.replace(old, new, 1).encode("latin-1"))
    with pytest.raises(LanguageError, match=rf"is damaged or of another version: .*{said}"):
        opened(tmp_path)
    with pytest.raises(LanguageError, match=said):
        list(tasks.listed(tmp_path, ""))


def test_what_is_no_file_is_not_waited_for(tmp_path):
    begun(tmp_path)
    (tmp_path / "stream.json").unlink()
    os.mkfifo(tmp_path / "stream.json")
    with pytest.raises(LanguageError, match="cannot be read: it is not a regular file"):
        opened(tmp_path)

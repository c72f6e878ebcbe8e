"""Requests and cases from files: JSON Lines, CounterFact's records, and zsRE's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from rankedit_recipes.command_line.counting import counted
from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.language.evaluating.references import References
from rankedit_recipes.language.requests import Case, Request

Record = Mapping[str, Any]

# So many bad lines are named in one message.
_SHOWN = 10


def read_requests(path: str | PathLike[str]) -> list[Request]:
    """The requests of a file; see `read_cases`."""
    return [case.request for case in read_cases(path)]


def read_cases(path: str | PathLike[str], *, references: References | None = None) -> list[Case]:
    """The cases of a file, in one of three formats that are told apart by what is in them.

    * JSON Lines (or a JSON list) of `{"prompt": "{} plays the", "subject": ..., "target": ...}`,
      with the optional texts `relation`, `name`, `true_target`, the optional choices `space` and
      `chat` (true or false; see `Request`), and the optional lists
      `paraphrases`, `inverted`, `neighbours`, `attribute_prompts`, `generation_prompts`,
      `references`, `neighbour_answers`;
    * CounterFact's own records, with `requested_rewrite` (Meng et al., arXiv 2202.05262), and, as
      the sandbox's have it, `inverted_prompts`;
    * zsRE's records as ROME and MEMIT read them, with `src`, `subject`, `answers`, `rephrase`,
      `loc` and `loc_ans`: the target is the first of the answers.

    Empty lines are skipped.

    Args:
        path: the file.
        references: for CounterFact's records, what `read_references` gave.

    Raises:
        LanguageError: no such file, or nothing in it, or records that are none of these; all
            (up to ten) are named by their line, or by their number in a list.
    """
    cases: list[Case] = []
    wrong: list[str] = []
    for where, record in _records(Path(path)):
        try:
            read = record if not isinstance(record, Exception) else _raised(record)
            cases.append(case_of(read, references))
        except LanguageError as error:
            wrong.append(f"{where}: {error}")
    if wrong:
        more = f"\n  and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        listed = "".join(f"\n  {text}" for text in wrong[:_SHOWN])
        records = counted(len(wrong), "record")
        raise LanguageError(
            f"read_cases: '{path}' has {records} that cannot be used; mend or remove:{listed}{more}"
        )
    if not cases:
        raise LanguageError(f"read_cases: '{path}' is empty; one JSON record on each line.")
    return cases


def case_of(record: object, references: References | None = None) -> Case:
    """One record, as `read_cases` reads it.

    Raises:
        LanguageError: it is none of the three kinds, or a field is missing or of another type.
    """
    if not isinstance(record, Mapping):
        raise LanguageError(f"a record must be a JSON object, got {record!r:.80}.")
    if "requested_rewrite" in record:
        return _counterfact(record, references or {})
    if "src" in record:
        return _zsre(record)
    return _plain(record)


# --------------------------------------------------------------------------------- files


def _records(path: Path) -> Iterator[tuple[str, object]]:
    """Each record, or what is wrong with it, and where it stands."""
    try:
        # Files that Windows wrote may begin with a byte order mark, which JSON does not allow.
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise LanguageError(f"read_cases: '{path}' cannot be read: {error}.") from error
    except UnicodeDecodeError as error:
        raise LanguageError(f"read_cases: '{path}' is not UTF-8 text: {error}.") from error
    # A record of JSON Lines is an object: a list can only be the whole file.
    if text.lstrip().startswith("["):
        for number, record in enumerate(_whole(path, text), 1):
            yield f"record {number}", record
        return
    # Not `splitlines`, which also ends lines at marks that JSON allows within a text (U+2028).
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"line {number}", _parsed(line)


def _whole(path: Path, text: str) -> list[object]:
    try:
        records: list[object] = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise LanguageError(f"read_cases: '{path}' is no JSON list: {error}.") from error
    return records


def _parsed(line: str) -> object:
    try:
        return json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        # Given back, not raised: all bad lines are named together, with the good ones read.
        return LanguageError(f"it is no JSON: {error}.")


def _raised(error: Exception) -> object:
    raise error


# --------------------------------------------------------------------------------- records


def _plain(record: Record) -> Case:
    # A misspelt `paraphrase` would be left out of the evaluation in silence.
    known = {"prompt", "subject", "target", "relation", "name", "true_target"}
    known |= {"space", "chat", *_LISTS}
    unknown = sorted(set(record) - known)
    if unknown:
        raise LanguageError(
            f"unknown field {unknown[0]!r}; known are {', '.join(sorted(known))}, or the fields of "
            "CounterFact or zsRE."
        )
    request = Request(
        _text(record, "prompt"),
        _text(record, "subject"),
        _text(record, "target"),
        _text(record, "relation", ""),
        _text(record, "name", ""),
        _choice(record, "space"),
        _choice(record, "chat"),
    )
    return Case(
        request,
        _text(record, "true_target", ""),
        _texts(record, "paraphrases"),
        _texts(record, "neighbours"),
        _texts(record, "attribute_prompts"),
        _texts(record, "generation_prompts"),
        inverted=_texts(record, "inverted"),
        references=_texts(record, "references"),
        neighbour_answers=_texts(record, "neighbour_answers"),
    )


_LISTS = (
    "paraphrases", "inverted", "neighbours", "attribute_prompts", "generation_prompts",
    "references", "neighbour_answers",
)  # fmt: skip


def _counterfact(record: Record, references: References) -> Case:
    rewrite = _object(record, "requested_rewrite")
    # Numbers in CounterFact; as text they name facts in streams.
    identity, target = record.get("case_id", ""), _object(rewrite, "target_new")
    attribute = (_text(rewrite, "relation_id", ""), str(target.get("id", "")))
    request = Request(
        _text(rewrite, "prompt"),
        _text(rewrite, "subject"),
        _text(target, "str"),
        attribute[0],
        str(identity) if isinstance(identity, (int, str)) else "",
    )
    return Case(
        request,
        _text(_object(rewrite, "target_true"), "str"),
        _texts(record, "paraphrase_prompts"),
        _texts(record, "neighborhood_prompts"),
        _texts(record, "attribute_prompts"),
        _texts(record, "generation_prompts"),
        inverted=_texts(record, "inverted_prompts"),
        references=tuple(references.get(attribute, ())),
    )


def _zsre(record: Record) -> Case:
    question, subject = _text(record, "src"), _text(record, "subject")
    answers = _texts(record, "answers")
    if subject not in question or not answers:
        raise LanguageError("a zsRE record needs its subject in src, and an entry in answers.")
    # The first occurrence is the subject; ROME's own reader replaces all of them.
    prompt = question.replace(subject, "{}", 1)
    # The records have it from Natural Questions, without the question mark.
    unrelated = _text(record, "loc", "").removeprefix("nq question: ")
    locality = ((f"{unrelated}?", _text(record, "loc_ans", "")),) if unrelated else ()
    rephrased = _text(record, "rephrase", "")
    return Case(
        Request(prompt, subject, answers[0]),
        paraphrases=(rephrased,) if rephrased else (),
        locality=locality,
    )


# Not None, which is what JSON's null becomes.
_REQUIRED = object()


def _field(
    record: Record, name: str, default: object, right: Callable[[Any], bool], kind: str
) -> Any:  # noqa: ANN401 - of the kind that was asked for
    value = record.get(name, default)
    if value is _REQUIRED:
        raise LanguageError(f"the field {name!r} is missing.")
    if not right(value):
        raise LanguageError(f"{name} must be {kind}, got {value!r:.80}.")
    return value


def _text(record: Record, name: str, default: object = _REQUIRED) -> str:
    return str(_field(record, name, default, lambda v: isinstance(v, str), "a text"))


def _choice(record: Record, name: str) -> bool | None:
    kinds = (bool, type(None))
    found: bool | None = _field(record, name, None, lambda v: isinstance(v, kinds), "true or false")
    return found


def _object(record: Record, name: str) -> Record:
    found: Record = _field(record, name, _REQUIRED, lambda v: isinstance(v, Mapping), "an object")
    return found


def _texts(record: Record, name: str) -> tuple[str, ...]:
    return tuple(
        _field(
            record,
            name,
            (),
            lambda v: isinstance(v, (list, tuple)) and all(isinstance(t, str) for t in v),
            "a list of texts",
        )
    )

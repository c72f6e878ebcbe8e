"""Which facts a real model knows: cases to edit, from relations.toml.

    python benchmarks/real/choose.py --model outputs/models/SmolLM2-135M-Instruct.Q4_1.gguf

The model goes on with the first phrasing of every fact, always with its likeliest token; a fact is
taken if this free answer begins with the object. With --compare it goes on with every phrasing, and
of each relation the one that is right most often is taken, which takes five times as long. What is
written is what `read_cases` of the recipe reads, one case a line:

* the target is another object of the relation, drawn with a seed, whose first token differs;
* paraphrases are the other phrasings, whatever the model answered to them;
* neighbours ask the relation of other subjects that the model knows and of which neither the old
  nor the new object is true, each with its own answer under `neighbour_answers`.
"""

from __future__ import annotations

import argparse
import json
import random
import tomllib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rankedit_recipes import language
from rankedit_recipes.command_line.choices import ModelChoice
from rankedit_recipes.language.commands.opening import Opened, open_model
from rankedit_recipes.language.evaluating.answering import answered

from rankedit.atomic import atomic_write

HERE = Path(__file__).resolve().parent
_NEIGHBOURS = 8
_LEAST_NEIGHBOURS = 5
_LEAST_FACTS = 8  # of a relation


class Known(NamedTuple):
    """A relation as the model knows it.

    Attributes:
        name: of the relation.
        prompt: the phrasing of the requests.
        others: the other phrasings.
        facts: subject and object of those that are right to it.
        asked: how many facts there were.
    """

    name: str
    prompt: str
    others: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    asked: int


def main() -> None:
    """Ask, choose and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder or .gguf file")
    parser.add_argument("--relations", type=Path, default=HERE / "relations.toml")
    parser.add_argument("--compare", action="store_true", help="ask all phrasings")
    parser.add_argument("--out", type=Path, default=HERE / "facts.jsonl")
    options = parser.parse_args()
    torch.set_num_threads(1)
    opened = open_model(ModelChoice(options.model))
    relations = tomllib.loads(options.relations.read_text(encoding="utf-8"))
    asks = (asked(opened, name, told, options.compare) for name, told in relations.items())
    known = [found for found in asks if found]
    cases = [case for relation in known for case in cases_of(relation, opened.tokenizer)]
    with atomic_write(options.out) as temporary:
        lines = (json.dumps(case, ensure_ascii=False) for case in cases)
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    print(f"{len(cases)} cases of {len(known)} relations: {options.out}")


def asked(opened: Opened, name: str, told: dict[str, Any], compare: bool) -> Known | None:
    """What the model knows of a relation; None if too little."""
    phrasings, facts = told["phrasings"], [(s, o) for s, o in told["facts"]]
    tried = phrasings if compare else phrasings[:1]
    right = {phrasing: _right(opened, phrasing, facts) for phrasing in tried}
    # The first of equals, so that the order of the file decides.
    prompt = max(tried, key=lambda phrasing: len(right[phrasing]))
    counts = ", ".join(str(len(right[phrasing])) for phrasing in tried)
    print(f"{name}: of {len(facts)} right {counts}", flush=True)
    if len(right[prompt]) < _LEAST_FACTS:
        return None
    others = tuple(phrasing for phrasing in phrasings if phrasing != prompt)
    return Known(name, prompt, others, tuple(right[prompt]), len(facts))


def _right(
    opened: Opened, phrasing: str, facts: Sequence[tuple[str, str]]
) -> list[tuple[str, str]]:
    prompts = [phrasing.replace("{}", subject) for subject, _ in facts]
    right = answered(opened.model, opened.tokenizer, prompts, [target for _, target in facts])
    return [fact for fact, ok in zip(facts, right, strict=True) if ok]


def cases_of(relation: Known, tokenizer: Any) -> list[dict[str, Any]]:
    """The cases of a relation, as records; those with too few neighbours are left out."""
    by_object = defaultdict(list)
    for subject, target in relation.facts:
        by_object[target].append(subject)
    found = []
    for subject, old in relation.facts:
        rng = random.Random(f"{relation.name} {subject}")
        new = _another(by_object, old, tokenizer, rng)
        near = [(s, o) for s, o in relation.facts if o not in (old, new)]
        if len(near) < _LEAST_NEIGHBOURS:
            continue
        chosen = rng.sample(near, min(_NEIGHBOURS, len(near)))
        found.append(
            {
                "prompt": relation.prompt,
                "subject": subject,
                "target": new,
                "true_target": old,
                "relation": relation.name,
                "paraphrases": [text.replace("{}", subject) for text in relation.others],
                "neighbours": [relation.prompt.replace("{}", near) for near, _ in chosen],
                "neighbour_answers": [answer for _, answer in chosen],
            }
        )
    return found


def _another(
    by_object: dict[str, list[str]],
    old: str,
    tokenizer: Any,
    rng: random.Random,
) -> str:
    first = _first_token(tokenizer, old)
    # Targets that begin alike would be told apart by their later tokens alone.
    others = [other for other in by_object if _first_token(tokenizer, other) != first]
    return rng.choice(others)


def _first_token(tokenizer: Any, target: str) -> int:
    return int(tokenizer(language.continued(target), add_special_tokens=False)["input_ids"][0])


if __name__ == "__main__":
    main()

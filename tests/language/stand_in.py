"""A stream without a language model: two small layers, and keys and values drawn by name.

What a folder keeps and a ledger solves does not depend on where keys and values come from, so that
the tests of the store take milliseconds where a search for values would take seconds.
"""

import json
import os
import random
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch
from rankedit_recipes.language import METHODS, LanguageError, Request, Stream
from rankedit_recipes.language.editing import Engine
from rankedit_recipes.language.model.blocks import Block
from rankedit_recipes.language.searching.spreading import Facts
from rankedit_recipes.language.streams import manifest
from rankedit_recipes.language.streams.folder import Folder
from torch import nn

import rankedit as rk

ROOT = Path(__file__).parents[2]
IN, OUT = 6, 4
NAMES = ("low", "high")


def request(number, target="piano"):
    return Request("{} plays the", f"Subject {number}", target, name=f"fact {number}")


def facts_of(requests):
    """Keys and values that depend on a request's name and target alone."""
    keys, lacking = ({name: [] for name in NAMES} for _ in range(2))
    for each in requests:
        seed = zlib.crc32(f"{each.label} {each.target}".encode(errors="surrogatepass"))
        generator = torch.Generator().manual_seed(seed)
        for name in NAMES:
            keys[name].append(torch.randn(IN, generator=generator))
            lacking[name].append(torch.randn(OUT, generator=generator))

    def stacked(named):
        return {name: torch.stack(rows) for name, rows in named.items()}

    return Facts(tuple(requests), stacked(keys), stacked(lacking), {})


class Words:
    """A tokenizer, as far as a stream looks at it."""

    def get_vocab(self):
        return {"a": 0, "b": 1}


class Drawn(Engine):
    """An engine that draws keys and values where others search."""

    def facts(self, requests):
        return facts_of(requests), None

    def keys(self, requests):
        return facts_of(requests).keys[NAMES[0]]


def model_of(seed=0):
    torch.manual_seed(seed)
    return nn.ModuleDict({name: nn.Linear(IN, OUT, bias=False) for name in NAMES})


def engine_of(model=None, method="memit", prefixes=()):
    return Drawn(
        model=model_of() if model is None else model,
        tokenizer=Words(),
        settings=METHODS[method].shared_by(len(NAMES)),
        chosen=tuple(Block(number, name, name, True) for number, name in enumerate(NAMES)),
        metrics={name: rk.Metric.identity(IN) for name in NAMES},
        prefixes=prefixes,
        progress=False,
    )


def opened(folder=None, **options):
    """The stream of a folder, as another process would see it."""
    return Stream(engine_of(**options), folder)


def state(stream):
    """All that a stream is: facts in their order, and the edits to the bit."""
    edits = {name: edit.delta().numpy().tobytes() for name, edit in stream.edits().items()}
    return [*stream.requests()], edits


def state_of(requests):
    """What a stream is that never was anything else."""
    stream = opened()
    for each in requests:
        stream.enter(facts_of([each]))
    return state(stream)


def kept(folder):
    """What is on the disk: the facts in their order, with the bits of keys and values."""
    contents = Folder(folder).contents()
    tensors = [
        rows[n][row]
        for fact in contents.facts
        for row in range(len(fact))
        for n in NAMES
        for rows in (fact.keys, fact.lacking)
    ]
    return list(contents.manifest.requests), [t.numpy().tobytes() for t in tensors]


def kept_of(requests):
    """What is on the disk of a stream of these facts."""
    facts = [facts_of([each]) for each in requests]
    tensors = [t for fact in facts for n in NAMES for t in (fact.keys[n], fact.lacking[n])]
    return list(requests), [t.numpy().tobytes() for t in tensors]


class Change:
    """One change of a stream, and the facts that there are after it."""

    def __init__(self, kind, requests, draw):
        self.kind, there = kind, list(requests)
        self.target = there[draw.randrange(len(there))] if there else None
        number = draw.randrange(10**9)
        self.new = request(number)
        if kind == "replace":
            self.new = Request(
                "{} plays the", self.target.subject, f"x{number}", "", self.target.name
            )
        self.after = [each for each in there if kind == "add" or each != self.target]
        self.after += [] if kind == "undo" else [self.new]

    def do(self, stream):
        if self.kind == "add":
            return stream.add([self.new])
        if self.kind == "undo":
            return stream.undo(self.target.label)
        return stream.replace(self.new)


KINDS = ("add", "undo", "replace")


def begun(folder, count=4):
    """A folder with some facts, of which two share a file."""
    stream = opened(folder)
    stream.add([request(0), request(1)])
    for number in range(2, count):
        stream.add([request(number)])
    return stream


def draws(seed=0):
    return random.Random(seed)


def attack(mode, folder, count):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    script = ROOT / "tests" / "language" / "attack_store.py"
    command = [sys.executable, str(script), mode, str(folder), str(count)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def refused(folder, said):
    """Whoever reads all of a folder is refused: for what is solved, and for the check of it."""
    for use in (Stream.edits, Stream.check):
        with pytest.raises(LanguageError, match=said):
            use(opened(folder))


def files(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def document_of(folder):
    return json.loads((folder / "stream.json").read_text())


def write(folder, document, *, signed=True):
    """Put a document in the place of the folder's, with a digest of its own."""
    if signed:
        document = {**document, "digest": manifest.document_digest(document)}
    (folder / "stream.json").write_text(json.dumps(document))


def as_version_1(folder):
    """The folder's document as version 1 had it."""
    document = document_of(folder)
    for name in ("digest", "generation", "next", "files"):
        del document[name]
    return {**document, "version": 1}

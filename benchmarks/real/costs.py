"""What editing costs on a real model, in the processor's seconds and in memory.

    python benchmarks/real/costs.py --model outputs/models/SmolLM2-135M-Instruct.Q4_1.gguf
    python benchmarks/real/costs.py --model ... --against ../other-tree    beside another checkout

Each part runs in a process of its own, those of two checkouts in turn, on one thread. The text is
Python's own documentation, which every Python has.

* `one`: statistics of one block. `textbook` is the loop that one would write for it: the model up
  to that projection, and its inputs' products added up in float32, on the same tokens.
* `all`: statistics of every block.
* `memit`, `rome`: an edit's seconds for each further fact: those of ten facts less those of two.
* `trace`: the blocks that hold two facts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pydoc_data.topics
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

HERE = Path(__file__).resolve().parents[2]
BLOCK = 5
FACTS = (
    ("The Eiffel Tower", "{} is in the city of", "Rome"),
    ("Germany", "The capital of {} is", "Munich"),
    ("Japan", "The official language of {} is", "Dutch"),
    ("Canada", "The capital of {} is", "Sydney"),
    ("Albert Einstein", "{} was born in the country of", "Brazil"),
    ("The Colosseum", "{} is in the city of", "Madrid"),
    ("Mexico", "The official language of {} is", "Korean"),
    ("Toyota", "{} is a company from", "Italy"),
    ("Mount Everest", "{} is on the continent of", "Africa"),
    ("Charles Darwin", "{} worked in the field of", "music"),
)
FEW = 2


class Opened:
    """The model, its tokenizer, and what is kept between the parts of one process."""

    def __init__(self, model: str, tokens: int) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        path = Path(model)
        folder, file = (str(path.parent), path.name) if path.is_file() else (model, None)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=file, dtype=torch.float32
        ).eval()
        self.texts = self._cut(tokens)

    def _cut(self, tokens: int) -> list[str]:
        """Paragraphs of all topics, every so many, that have about so many tokens together."""
        whole = [t for topic in pydoc_data.topics.topics.values() for t in topic.split("\n\n")]
        lengths = [len(ids) for ids in self.tokenizer(whole)["input_ids"]]
        every = max(1, sum(lengths) // tokens)
        return whole[::every]

    # ------------------------------------------------------------------ parts

    def one(self) -> Any:
        """Statistics of one block."""
        return self._statistics(layers=[BLOCK])

    def all(self) -> Any:
        """Statistics of every block."""
        return self._statistics()

    def _statistics(self, **options: Any) -> Any:
        from rankedit_recipes import language

        return language.collect_statistics(
            self.model, self.tokenizer, self.texts, progress=False, **options
        )

    @torch.no_grad()
    def textbook(self) -> Tensor:
        """A loop to that projection: texts of like length, products in float32."""
        layer = self.model.model.layers[BLOCK].mlp.down_proj
        total = torch.zeros(layer.in_features, layer.in_features)
        mask = torch.zeros(0)

        class StopError(Exception):
            pass

        def read(_layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            rows = args[0][mask.bool()]
            total.addmm_(rows.T, rows)
            raise StopError

        handle = layer.register_forward_pre_hook(read)
        ids = list(self.tokenizer(self.texts, truncation=True, max_length=1024)["input_ids"])
        ids = sorted((i for i in ids if i), key=len)
        for start in range(0, len(ids), 16):
            rows = [torch.tensor(row) for row in ids[start : start + 16]]
            padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)
            mask = (
                torch.arange(padded.shape[1])[None] < torch.tensor([len(r) for r in rows])[:, None]
            )
            with contextlib.suppress(StopError):
                self.model(input_ids=padded, attention_mask=mask.long(), use_cache=False)
        handle.remove()
        return total

    def edited(self, method: str, count: int, found: Any) -> None:
        """Facts edited by a method."""
        from rankedit_recipes import language

        asked = [language.Request(prompt, subject, target) for subject, prompt, target in FACTS]
        language.edit(
            self.model, self.tokenizer, asked[:count], method, statistics=found, progress=False
        )

    def trace(self) -> list[int]:
        """The blocks that hold the first facts."""
        from rankedit_recipes import language

        asked = [
            language.Request(prompt, subject, target) for subject, prompt, target in FACTS[1:3]
        ]
        return language.locate(self.model, self.tokenizer, asked, own=True, progress=False)


def measured(part: str, model: str, tokens: int) -> dict[str, float]:
    """Seconds of the processor, and megabytes above the loaded model."""
    opened = Opened(model, tokens)
    if part in ("memit", "rome"):
        found = opened.all()
        opened.edited(part, 1, found)  # what is done once for a model is not counted
        few, many = (
            cpu_seconds(lambda n=n: opened.edited(part, n, found)) for n in (FEW, len(FACTS))
        )
        return {"seconds": (many - few) / (len(FACTS) - FEW)}
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = peak()
    seconds = cpu_seconds(getattr(opened, part))
    return {"seconds": seconds, "megabytes": peak() - before}


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def peak() -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def in_tree(tree: Path, part: str, options: argparse.Namespace) -> dict[str, float]:
    """One part in a new process that imports this checkout."""
    command = [sys.executable, __file__, "--model", options.model, "--child", part]
    command += ["--tokens", str(options.tokens)]
    path = os.pathsep.join([str(tree), str(tree / "recipes")])
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure, and print a row for each part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder or .gguf file")
    parser.add_argument("--against", type=Path, help="another checkout")
    parser.add_argument("--tokens", type=int, default=25_000, help="of text, about")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--parts", default="textbook,one,all,memit,rome,trace")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        torch.set_num_threads(1)
        print(json.dumps(measured(options.child, options.model, options.tokens)))
        return
    trees = {"this": HERE} | ({"other": options.against.resolve()} if options.against else {})
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for part in options.parts.split(","):
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
        for _ in range(options.repeats):
            for name, tree in trees.items():
                if part != "textbook" or name == "this":
                    runs[name].append(in_tree(tree, part, options))
        figures[part] = {
            name: {key: statistics.median(run[key] for run in found) for key in found[0]}
            for name, found in runs.items()
            if found
        }
        print(_row(part, figures), flush=True)
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def _row(part: str, figures: dict[str, dict[str, dict[str, float]]]) -> str:
    mine, other = figures[part]["this"], figures[part].get("other")
    said = f"{part:9} {mine['seconds']:7.2f} s {mine.get('megabytes', 0):7.0f} MB"
    if other:
        ratio = mine["seconds"] / other["seconds"]
        said += (
            f"   other {other['seconds']:7.2f} s {other.get('megabytes', 0):7.0f} MB   {ratio:.3f}"
        )
    if part == "one" and "textbook" in figures:
        said += (
            f"   of the textbook's {mine['seconds'] / figures['textbook']['this']['seconds']:.3f}"
        )
    return said


if __name__ == "__main__":
    main()

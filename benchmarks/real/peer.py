"""What the same edits cost in EasyEdit, from a checkout of its repository, on the same model.

    git clone https://github.com/zjunlp/EasyEdit ../EasyEdit
    python benchmarks/real/peer.py --peer ../EasyEdit --model outputs/models/...gguf

None of its code is here, and none of it is changed. Its packages import every method and every
dataset that it has; they are entered as empty packages, so that only the modules that compute are
read, and its `datasets` is replaced by our text. Its settings are those that it ships for a model
of this family (hparams/MEMIT/qwen2.5-7b.yaml), with the blocks that rankedit chooses, the last
block's number, and `mom2_adjustment` true.

* `one`: statistics of one block, its `layer_stats` in float32 and our `collect_statistics`.
* `memit`, `rome`: seconds of the processor for the value search of a further fact, as in costs.py.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

HERE = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(HERE / "benchmarks"))

from real.costs import FACTS, FEW, Opened, cpu_seconds  # noqa: E402

PARTS = ("one", "memit", "rome")
BLOCKS = {"memit": [3, 4, 5, 6, 7], "rome": [3]}
"""Those that rankedit chooses in SmolLM2-135M-Instruct: what is compared is the time."""


class Peer:
    """EasyEdit's functions on an opened model.

    Args:
        checkout: of its repository.
        opened: model, tokenizer and text.
    """

    def __init__(self, checkout: Path, opened: Opened) -> None:
        if not (checkout / "easyeditor").is_dir():
            raise SystemExit(f"{checkout} is no checkout of EasyEdit: git clone it there")
        self.opened = opened
        self._packages(checkout, [{"text": text} for text in opened.texts])
        opened.tokenizer.pad_token = opened.tokenizer.pad_token or opened.tokenizer.eos_token

    @staticmethod
    def _packages(checkout: Path, texts: list[dict[str, str]]) -> None:
        """Packages without their `__init__`, which would import what is not installed."""
        for name in ("", ".models", ".models.memit", ".models.rome", ".util"):
            module = types.ModuleType(f"easyeditor{name}")
            module.__path__ = [str(checkout / f"easyeditor{name.replace('.', '/')}")]
            sys.modules[f"easyeditor{name}"] = module
        data: Any = types.ModuleType("datasets")
        data.load_dataset = lambda *_args, **_kwargs: {"train": texts}
        sys.modules["datasets"] = data
        style: Any = types.ModuleType("matplotlib.style")
        # Imported by its ROME and never used.
        style.context = None
        sys.modules.setdefault("matplotlib", types.ModuleType("matplotlib"))
        sys.modules.setdefault("matplotlib.style", style)

    def settings(self, method: str) -> SimpleNamespace:
        """Its settings for a model of this family and this depth."""
        blocks = BLOCKS[method]
        return SimpleNamespace(
            layers=blocks, fact_token="subject_last", v_num_grad_steps=25, v_lr=0.5,
            v_loss_layer=self.opened.model.config.num_hidden_layers - 1, v_weight_decay=1e-3,
            clamp_norm_factor=4, kl_factor=0.0625, mom2_adjustment=True, mom2_update_weight=15000,
            context_template_length_params=[[5, 10], [10, 10]], device="cpu",
            rewrite_module_tmp="model.layers.{}.mlp.down_proj", layer_module_tmp="model.layers.{}",
            mlp_module_tmp="model.layers.{}.mlp", ln_f_module="model.norm",
            # Tied to it; among the parameters it has this name only.
            lm_head_module="model.embed_tokens",
        )  # fmt: skip

    def one(self) -> Any:
        """Its statistics of one block."""
        from easyeditor.models.rome.layer_stats import layer_stats

        with tempfile.TemporaryDirectory() as folder:
            return layer_stats(
                self.opened.model, self.opened.tokenizer, "model.layers.5.mlp.down_proj", folder,
                "wikitext", ["mom2"], sample_size=len(self.opened.texts), precision="float32",
                batch_tokens=1024, progress=lambda rows, **_told: rows,
                hparams=SimpleNamespace(device="cpu"),
            )  # fmt: skip

    def search(self, method: str, count: int) -> None:
        """Its value search of the first facts, without keys, statistics and the edit."""
        from easyeditor.models.memit import compute_z, memit_main
        from easyeditor.models.rome import compute_v, rome_main

        settings, model, tokenizer = self.settings(method), self.opened.model, self.opened.tokenizer
        for subject, prompt, target in FACTS[:count]:
            request = {"prompt": prompt, "subject": subject, "target_new": f" {target}"}
            if method == "memit":
                contexts = memit_main.get_context_templates(model, tokenizer)
                compute_z.compute_z(model, tokenizer, request, settings, 7, contexts)
            else:
                lengths = settings.context_template_length_params
                contexts = rome_main.get_context_templates(model, tokenizer, lengths)
                left = torch.ones(model.config.intermediate_size)
                compute_v.compute_v(model, tokenizer, request, settings, 3, left, contexts)


def searched(method: str, opened: Opened, count: int) -> None:
    """Our value search of the first facts, without keys, statistics and the edit."""
    from rankedit_recipes import language
    from rankedit_recipes.language.editing import Engine

    settings = language.METHODS[method]
    asked = [language.Request(prompt, subject, target) for subject, prompt, target in FACTS]
    engine = Engine.build(
        opened.model,
        opened.tokenizer,
        settings,
        _few(opened),
        layers=BLOCKS[method],
        progress=False,
    )
    engine.search(asked[:count])


_FOUND: dict[str, Any] = {}


def _few(opened: Opened) -> Any:
    """Statistics of a fifth of the text: what values cost does not depend on them."""
    from rankedit_recipes import language

    if not _FOUND:
        _FOUND["few"] = language.collect_statistics(
            opened.model,
            opened.tokenizer,
            opened.texts[::5],
            layers=BLOCKS["memit"],
            progress=False,
        )
    return _FOUND["few"]


def seconds(part: str, who: str, options: argparse.Namespace) -> float:
    """Of the processor, for one part."""
    opened = Opened(options.model, options.tokens)
    peer = Peer(options.peer.resolve(), opened) if who == "peer" else None
    if part == "one":
        return cpu_seconds(peer.one if peer else opened.one)
    # What is done once for a model, contexts and all, is in both counts and cancels.
    work = peer.search if peer else lambda m, n: searched(m, opened, n)
    work(part, 1)
    few, many = (cpu_seconds(lambda n=n: work(part, n)) for n in (FEW, len(FACTS)))
    return (many - few) / (len(FACTS) - FEW)


def main() -> None:
    """Measure in turn, each in a process of its own, and print a row for each part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", type=Path, required=True, help="checkout of EasyEdit")
    parser.add_argument("--model", required=True, help="folder or .gguf file")
    parser.add_argument("--tokens", type=int, default=25_000, help="of text, about")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        torch.set_num_threads(1)
        with contextlib.redirect_stdout(io.StringIO()):
            found = seconds(*options.child, options)
        print(json.dumps(found))
        return
    for part in options.parts.split(","):
        runs: dict[str, list[float]] = {"ours": [], "peer": []}
        for _ in range(options.repeats):
            for who, found in runs.items():
                found.append(_child(part, who, options))
        mine, theirs = (min(runs[who]) for who in ("ours", "peer"))
        print(
            f"{part:6} {mine:8.2f} s   EasyEdit {theirs:8.2f} s   {mine / theirs:.3f}", flush=True
        )


def _child(part: str, who: str, options: argparse.Namespace) -> float:
    command = [sys.executable, __file__, "--peer", str(options.peer), "--model", options.model]
    command += ["--tokens", str(options.tokens), "--child", part, who]
    path = os.pathsep.join([str(HERE), str(HERE / "recipes")])
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, check=True, text=True,
    )  # fmt: skip
    return float(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    main()

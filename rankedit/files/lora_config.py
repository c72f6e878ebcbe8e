"""The configuration beside a LoRA's tensors: what to write, and how strong each layer is."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from rankedit.errors import EditFileError
from rankedit.files.entries import checked_number
from rankedit.files.header import checked_name, checked_object, parse_json

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
# Under this key diffusers keeps the configuration of each component inside the file.
METADATA_KEY = "lora_adapter_metadata"
# No sound adapter amplifies its factors this much; files with an alpha of 1e9 are in circulation.
_LARGEST_SCALE = 1e4


def adapter_config(ranks: Mapping[str, int], extra: Mapping[str, object]) -> str:
    """The text of `adapter_config.json` for layers of these ranks, all with `alpha = r`.

    Where ranks differ, every layer gets its own entry, longest names first: the reader matches the
    end of names and takes the first that fits.
    """
    mixed = len(set(ranks.values())) > 1
    longest_first = sorted(ranks, key=lambda name: (-len(name), name))
    pattern = {name: ranks[name] for name in longest_first} if mixed else {}
    rank = max(ranks.values())
    document = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted(ranks),
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "fan_in_fan_out": False,
        "bias": "none",
        "lora_dropout": 0.0,
        "inference_mode": True,
        "use_rslora": False,
        "use_dora": False,
        **extra,
    }
    return json.dumps(document, indent=2) + "\n"


@dataclass(frozen=True)
class Strength:
    """How a configuration scales the layers that it is about.

    Attributes:
        alpha: numerator of the scale; None if it equals the rank, for a scale of 1.
        pattern: alphas of layers whose name ends so; after a `^`, of the layer of this name.
        root: divide by the square root of the rank instead of the rank.
    """

    alpha: float | None = None
    pattern: tuple[tuple[str, float], ...] = ()
    root: bool = False

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> Strength:
        """Read an adapter configuration.

        Raises:
            EditFileError: it is not a plain LoRA, or its numbers are not numbers.
        """
        if config.get("peft_type", "LORA") != "LORA" or config.get("use_dora"):
            raise EditFileError(
                f"only plain LoRA adapters are low-rank edits, got peft_type "
                f"{config.get('peft_type')!r:.80}, use_dora {config.get('use_dora')!r:.80}"
            )
        patterns = checked_object(config.get("alpha_pattern") or {}, "alpha_pattern")
        # PEFT takes the keys for regular expressions; nothing from a file is ever one here.
        pattern = tuple(
            (_checked_pattern(key), checked_number(value, f"alpha of {key!r:.80}"))
            for key, value in patterns.items()
        )
        # What PEFT assumes where a configuration does not say it.
        alpha = checked_number(config.get("lora_alpha", 8), "lora_alpha")
        return cls(alpha, pattern, bool(config.get("use_rslora")))

    def scale(self, name: str, rank: int, own_alpha: float | None) -> float:
        """The factor of `up @ down` for a layer; its own alpha in the file comes first.

        Raises:
            EditFileError: alpha is not positive, or absurdly large.
        """
        matching = (a for key, a in self.pattern if key in (name, f"^{name}") or _ends(name, key))
        default = self.alpha if own_alpha is None else own_alpha
        alpha = next(matching, default) if own_alpha is None else own_alpha
        if alpha is None:
            return 1.0
        scale = alpha / (math.sqrt(rank) if self.root else rank)
        if not 0 < scale <= _LARGEST_SCALE:
            raise EditFileError(
                f"alpha of {name!r:.120} must give a scale in (0, {_LARGEST_SCALE:g}], got alpha "
                f"{alpha:g} for rank {rank}"
            )
        return scale


def _checked_pattern(key: str) -> str:
    checked_name(key.removeprefix("^"))
    return key


def _ends(name: str, key: str) -> bool:
    return name.endswith(f".{key}")


def strengths_in_metadata(metadata: Mapping[str, str]) -> dict[str, Strength]:
    """By component the configurations that diffusers keeps in a file's metadata.

    Raises:
        EditFileError: they are not what diffusers writes.
    """
    if METADATA_KEY not in metadata:
        return {}
    document = checked_object(parse_json(metadata[METADATA_KEY]), METADATA_KEY)
    configs: dict[str, dict[str, object]] = {}
    for key, value in document.items():
        component, _, field = key.partition(".")
        configs.setdefault(component, {})[field] = value
    return {component: Strength.from_config(config) for component, config in configs.items()}

"""How LoRA files name their tensors: the conventions that other programs read.

A LoRA file holds for each layer `down [r, in]`, `up [out, r]` and sometimes `alpha`, with
`ΔW = (alpha / r) · up @ down`. Conventions differ only in names. In the conventions of diffusion
pipelines a layer's name begins with the pipeline's component (`unet.`, `transformer.`,
`text_encoder.`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rankedit.errors import EditFileError


@dataclass(frozen=True)
class Suffixes:
    """What follows a layer's name."""

    down: str
    up: str
    alpha: str = ".alpha"


_PEFT_SUFFIXES = Suffixes(".lora_A.weight", ".lora_B.weight")
_KOHYA_SUFFIXES = Suffixes(".lora_down.weight", ".lora_up.weight")
_TEXT_SUFFIXES = Suffixes(".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight")
_READ_SUFFIXES = (
    _PEFT_SUFFIXES,
    _KOHYA_SUFFIXES,
    _TEXT_SUFFIXES,
    Suffixes(".lora.down.weight", ".lora.up.weight"),
)
_PEFT_PREFIX = "base_model.model."
# kohya-ss writes `lora_te1_` for SDXL's first text encoder and `lora_te_` where there is only one;
# diffusers reads both alike, so that only the second is written.
_KOHYA_COMPONENTS = {
    "unet": "lora_unet",
    "transformer": "lora_transformer",
    "text_encoder": "lora_te",
    "text_encoder_2": "lora_te2",
}
_KOHYA_PREFIXES = (*_KOHYA_COMPONENTS.values(), "lora_te1")


@dataclass(frozen=True)
class Layout:
    """One convention for writing.

    Attributes:
        title: its usual name.
        prefix: what precedes every layer's name.
        suffixes: what follows it.
        flat: dots in layers' names become underscores, and the component an abbreviation.
        folder: a folder with a configuration file, instead of one file.
        with_alpha: every layer has its alpha beside it.
    """

    title: str
    suffixes: Suffixes
    prefix: str = ""
    flat: bool = False
    folder: bool = False
    with_alpha: bool = False

    def stem(self, name: str) -> str:
        """What stands before the suffix for a layer's full name.

        Raises:
            EditFileError: a flat name of a component without an abbreviation.
        """
        return flat_stem(name) if self.flat else self.prefix + name

    def suffixes_for(self, name: str) -> Suffixes:
        """The suffixes for a layer; diffusers has its own for text encoders."""
        in_text_encoder = not self.prefix and not self.flat and name.startswith("text_encoder")
        return _TEXT_SUFFIXES if in_text_encoder else self.suffixes


PEFT = Layout("peft", _PEFT_SUFFIXES, prefix=_PEFT_PREFIX, folder=True)
DIFFUSERS = Layout("diffusers", _PEFT_SUFFIXES)
KOHYA = Layout("kohya", _KOHYA_SUFFIXES, flat=True, with_alpha=True)
LAYOUTS = {layout.title: layout for layout in (PEFT, DIFFUSERS, KOHYA)}


def layout_named(layout: Layout | str) -> Layout:
    """A layout as it is, or by its usual name.

    Raises:
        EditFileError: no layout of that name.
    """
    if isinstance(layout, Layout):
        return layout
    if layout not in LAYOUTS:
        raise EditFileError(
            f"to_lora: layout must be one of {', '.join(LAYOUTS)} or a Layout, got {layout!r:.80}."
        )
    return LAYOUTS[layout]


def flat_stem(name: str) -> str:
    """`unet.mid_block.x` as `lora_unet_mid_block_x`.

    Raises:
        EditFileError: the name does not begin with a component that has an abbreviation.
    """
    component, _, rest = name.partition(".")
    if component not in _KOHYA_COMPONENTS or not rest:
        raise EditFileError(
            f"names in this layout begin with one of {', '.join(_KOHYA_COMPONENTS)}, got "
            f"{name!r:.80}; pass component='unet', for instance"
        )
    return f"{_KOHYA_COMPONENTS[component]}_{rest.replace('.', '_')}"


def is_flat(stem: str) -> bool:
    """Whether a stem in a file is a flat one, from which the layer's name cannot be told."""
    return "." not in stem and stem.startswith(tuple(f"{p}_" for p in _KOHYA_PREFIXES))


def split_key(key: str) -> tuple[str, str]:
    """The stem of a tensor's name, and which of `down`, `up`, `alpha` it is.

    Raises:
        EditFileError: it is none of them, which is another kind of adapter.
    """
    for suffixes in _READ_SUFFIXES:
        for part in ("down", "up", "alpha"):
            suffix: str = getattr(suffixes, part)
            if key.endswith(suffix):
                return key.removesuffix(suffix), part
    raise EditFileError(
        f"tensor {key!r:.120} is not a part of a plain LoRA: DoRA, LoHa, biases and other adapters "
        "are no low-rank edits"
    )


def names_of(stems: Iterable[str], candidates: Iterable[str]) -> dict[str, str]:
    """The layer's full name for each stem.

    Args:
        stems: as `split_key` gives them.
        candidates: full names of layers that flat stems may mean.

    Raises:
        EditFileError: a flat stem that no candidate, or more than one, could mean.
    """
    meanings: dict[str, set[str]] = {}
    for name in candidates:
        if name.partition(".")[0] in _KOHYA_COMPONENTS and name.partition(".")[2]:
            meanings.setdefault(flat_stem(name), set()).add(name)
    return {stem: _name_of(stem, meanings) for stem in stems}


def _name_of(stem: str, meanings: dict[str, set[str]]) -> str:
    if not is_flat(stem):
        return stem.removeprefix(_PEFT_PREFIX)
    # Files for SDXL call the first of its two text encoders te1.
    found = meanings.get(stem.replace("lora_te1_", "lora_te_", 1), set())
    if len(found) != 1:
        raise EditFileError(
            f"the layer of {stem!r:.120} cannot be told from its name ({len(found)} candidates): "
            "pass modules= with the names of the model's layers"
        )
    return next(iter(found))

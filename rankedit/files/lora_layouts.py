"""How LoRA files name their tensors: the conventions that other programs read.

A LoRA file holds for each layer `down [r, in]`, `up [out, r]` and sometimes `alpha`, with
`ΔW = (alpha / r) · up @ down`. Conventions differ only in names. In the conventions of diffusion
pipelines a layer's name begins with the pipeline's component (`unet.`, `transformer.`,
`text_encoder.`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rankedit.errors import EditFileError
from rankedit.shapes import check_kind


@dataclass(frozen=True)
class Suffixes:
    """What follows a layer's name."""

    down: str
    up: str
    alpha: str = ".alpha"


_PEFT_SUFFIXES = Suffixes(".lora_A.weight", ".lora_B.weight")
_KOHYA_SUFFIXES = Suffixes(".lora_down.weight", ".lora_up.weight")
# Of diffusers before 0.21, whose LoRAs were attention processors.
_OLD_SUFFIXES = Suffixes("_lora.down.weight", "_lora.up.weight")
_TEXT_SUFFIXES = Suffixes(".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight")
_READ_SUFFIXES = (
    _PEFT_SUFFIXES,
    _KOHYA_SUFFIXES,
    _TEXT_SUFFIXES,
    Suffixes(".lora.down.weight", ".lora.up.weight"),
    # PEFT's own state dict, before save_pretrained takes out the adapter's usual name.
    Suffixes(".lora_A.default.weight", ".lora_B.default.weight"),
    _OLD_SUFFIXES,
)
# In a file's metadata: layers of zeros that are there for diffusers only.
ZEROS_KEY = "rankedit.zeros"
PEFT_PREFIX, PEFT_ADAPTER = "base_model.model.", ".default."
# kohya-ss writes `lora_te1_` for SDXL's first text encoder and `lora_te_` where there is only one;
# diffusers reads both alike, so that only the second is written.
COMPONENTS = {
    "unet": "lora_unet",
    "transformer": "lora_transformer",
    "text_encoder": "lora_te",
    "text_encoder_2": "lora_te2",
    "text_encoder_3": "lora_te3",
}
# Underscores of flat names that diffusers 0.42.1 knows not to be dots.
_RESTORED = {
    "unet": re.compile(
        r"(down|up|transformer)_blocks|mid_block|to_[qkv]\b|to_out(?=\.0$)|proj_(in|out)\b|"
        r"time_emb_proj|conv_(in|out|shortcut)\b|time_embedding\.linear_[12]"
    ),
    "text_encoder": re.compile(r"text_model|self_attn|(q|k|v|out)_proj|text_projection"),
}
_LABELS = {"add_embedding.linear_1": "label_emb_0_0", "add_embedding.linear_2": "label_emb_0_2"}


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
            EditFileError: a flat name of a component without an abbreviation, or one that
                diffusers cannot restore.
        """
        return _written_stem(name) if self.flat else self.prefix + name

    def suffixes_for(self, name: str) -> Suffixes:
        """The suffixes for a layer; diffusers has its own for text encoders."""
        in_text_encoder = not self.prefix and not self.flat and name.startswith("text_encoder")
        return _TEXT_SUFFIXES if in_text_encoder else self.suffixes


PEFT = Layout("peft", _PEFT_SUFFIXES, prefix=PEFT_PREFIX, folder=True)
DIFFUSERS = Layout("diffusers", _PEFT_SUFFIXES)
KOHYA = Layout("kohya", _KOHYA_SUFFIXES, flat=True, with_alpha=True)
LAYOUTS = {layout.title: layout for layout in (PEFT, DIFFUSERS, KOHYA)}


def layout_named(layout: Layout | str) -> Layout:
    """A layout as it is, or by its usual name.

    Raises:
        EditFileError: no layout of that name.
    """
    check_kind("to_lora", "layout", layout, Layout, str)
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
    if component not in COMPONENTS or not rest:
        raise EditFileError(
            f"names in this layout begin with one of {', '.join(COMPONENTS)}, got "
            f"{name!r:.80}; pass component='unet', for instance"
        )
    return f"{COMPONENTS[component]}_{rest.replace('.', '_')}"


def _written_stem(name: str) -> str:
    """The flat stem, in words that diffusers 0.42.1 turns into the layer's name again.

    Raises:
        EditFileError: there are none.
    """
    stem = flat_stem(name)
    component, _, rest = name.partition(".")
    known = _RESTORED.get(component.rstrip("_123"))
    if known is None:
        return stem
    # These two alone come back under the name that Stable Diffusion's own code has for them.
    if rest in _LABELS:
        return f"{COMPONENTS[component]}_{_LABELS[rest]}"
    if "_" in known.sub("", rest):
        raise EditFileError(
            f"diffusers cannot tell which layer {stem!r:.120} is, since underscores stand for dots "
            "there; write it in the layout 'diffusers'"
        )
    return stem


def split_key(key: str) -> tuple[str, str]:
    """The stem of a tensor's name, and which of `down`, `up`, `alpha` it is.

    Raises:
        EditFileError: it is none of them, which is another kind of adapter.
    """
    for suffixes in _READ_SUFFIXES:
        for part in ("down", "up", "alpha"):
            suffix: str = getattr(suffixes, part)
            if key.endswith(suffix):
                stem = key.removesuffix(suffix)
                return _modern(stem) if suffixes is _OLD_SUFFIXES else stem, part
    raise EditFileError(
        f"tensor {key!r:.120} is not a part of a plain LoRA: DoRA, LoHa, biases and other adapters "
        "are no low-rank edits"
    )


def _modern(stem: str) -> str:
    """`x.attn1.processor.to_out` as `x.attn1.to_out.0`, `self_attn.to_q` as `self_attn.q_proj`."""
    before, _, last = stem.rpartition(".")
    if before.endswith("self_attn"):
        return f"{before}.{last.removeprefix('to_')}_proj"
    return stem.replace(".processor.", ".") + ".0" * stem.endswith(".to_out")

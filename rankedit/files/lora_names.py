"""Which layer of a model each group of tensors in a LoRA file belongs to."""

from __future__ import annotations

import re
from collections.abc import Iterable

from rankedit.errors import EditFileError
from rankedit.files.lora_layouts import COMPONENTS, PEFT_PREFIX, flat_stem
from rankedit.models.selecting import clean_name

# Of kohya-ss ("lora_unet_"), of its relatives, and of LyCORIS.
_FLAT_PREFIXES = ("lora_", "lycoris_")
# How Stable Diffusion's own code (LDM) names parts of the UNet that diffusers names otherwise. Its
# other parts are convolutions of more than one pixel, which are no matrices.
_LDM_PARTS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_BLOCK = re.compile(
    r"(?P<kind>down|mid|up)_block(s\.(?P<block>\d+))?\.(?P<part>resnets|attentions)\."
    r"(?P<layer>\d+)\.(?P<rest>.+)"
)
_TEXT_ENCODER = re.compile(r"^(text_encoder\w*)\.(text_model\.)?")


def names_of(stems: Iterable[str], candidates: Iterable[str]) -> dict[str, str]:
    """The layer's full name for each stem.

    Args:
        stems: as `split_key` gives them.
        candidates: full names of layers that stems may mean.

    Raises:
        EditFileError: a flat stem that no candidate, or more than one, could mean.
    """
    known = set(candidates)
    meanings: dict[str, set[str]] = {}
    per_block = sum(1 for n in known if re.fullmatch(r"unet\.down_blocks\.0\.resnets\.\d+", n))
    for name in known:
        if name.partition(".")[0] in COMPONENTS and name.partition(".")[2]:
            for alias in _aliases(name, per_block):
                meanings.setdefault(flat_stem(alias), set()).add(name)
    return {stem: _name_of(stem, meanings, known) for stem in stems}


def _aliases(name: str, per_block: int) -> Iterable[str]:
    """Names under which other programs, or other versions of them, know a layer."""
    yield name
    if name.startswith("unet."):
        yield f"unet.{_ldm_name(name.removeprefix('unet.'), per_block)}"
    # transformers 5 took this step out of CLIP's names; files keep it.
    yield _TEXT_ENCODER.sub(r"\1.text_model.", name, count=1)


def _ldm_name(name: str, per_block: int) -> str:
    """The name in Stable Diffusion's own code, which numbers the blocks in one row."""
    if name in _LDM_PARTS:
        return _LDM_PARTS[name]
    match = _BLOCK.fullmatch(name)
    if not match:
        return name
    part, layer = int(match["part"] == "attentions"), int(match["layer"])
    rest = _LDM_PARTS.get(match["rest"], match["rest"])
    if match["kind"] == "mid":
        # resnet, attention, resnet
        return f"middle_block.{1 if part else 2 * layer}.{rest}"
    # Each block has one more place than layers down (its downsampler) and one more layer up. The
    # first of the input blocks is conv_in.
    place = int(match["block"]) * (per_block + 1) + layer
    if match["kind"] == "down":
        return f"input_blocks.{place + 1}.{part}.{rest}"
    return f"output_blocks.{place}.{part}.{rest}"


def _name_of(stem: str, meanings: dict[str, set[str]], known: set[str]) -> str:
    if "." in stem or not stem.startswith(_FLAT_PREFIXES) or stem in known:
        return _dotted_name(stem, known)
    # Files for SDXL call the first of its two text encoders te1.
    found = meanings.get(stem.replace("lora_te1_", "lora_te_", 1), set())
    if len(found) != 1:
        remedy = (
            "it is made for another family of models, or modules= lacks the resnets from which "
            "the blocks of the original code are counted: pass dict(model.named_modules())"
            if known
            else "pass modules= with the names of the model's layers"
        )
        raise EditFileError(
            f"the layer of {stem!r:.120} cannot be told from its name ({len(found)} candidates): "
            f"{remedy}"
        )
    return next(iter(found))


def _dotted_name(stem: str, known: set[str]) -> str:
    """A name without what wrappers put before and between its parts."""
    name = stem.removeprefix(PEFT_PREFIX)
    if name in known:
        return name
    name, stripped = clean_name(name), None
    while stripped != name:
        # PEFT around PEFT, DistributedDataParallel around either, or inside it.
        stripped, name = name, name.removeprefix(PEFT_PREFIX).removeprefix("module.")
    name = name.replace(".base_layer.", ".")
    short = _TEXT_ENCODER.sub(r"\1.", name, count=1)
    return short if short in known else name

"""A concept for programs that do not know this one: a new word, and a LoRA that approximates it."""

from __future__ import annotations

from os import PathLike

import torch
from safetensors.torch import save

import rankedit as rk
from rankedit.atomic import atomic_write
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.diffusion.text import Pipeline
from rankedit_recipes.diffusion.words import NewWords
from rankedit_recipes.perfusion.applying.applied import ConceptLike
from rankedit_recipes.perfusion.applying.joining import GateForm, joint_edits, settings_of
from rankedit_recipes.perfusion.concept import Concept
from rankedit_recipes.perfusion.prompts import filled

# The names that ComfyUI and diffusers look for in embeddings of two encoders.
_SDXL = ("clip_l", "clip_g")


def export_embedding(concept: ConceptLike, path: str | PathLike[str]) -> None:
    """The word as a textual-inversion file, as `pipe.load_textual_inversion` takes it.

    One tensor, a row for each vector, under the word itself; for models of two text encoders two,
    under the names `clip_l` and `clip_g` that are usual for Stable Diffusion XL.
    """
    loaded = concept if isinstance(concept, Concept) else Concept.load(concept)
    rows = [torch.atleast_2d(row).contiguous() for row in loaded.embeddings]
    names = (loaded.trigger,) if len(rows) == 1 else _SDXL
    data = save(dict(zip(names, rows, strict=True)), {"format": "pt"})
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


def export_lora(
    pipe: Pipeline,
    concept: ConceptLike,
    path: str | PathLike[str],
    *,
    layout: str = "kohya",
    dtype: torch.dtype = torch.float32,
) -> float:
    """The static edit with the gate replaced by a straight line, as a LoRA.

    Needed beside the word's embedding. It acts on every token in proportion to its similarity,
    which the gate would not; how far that is off is measured and returned.

    Args:
        pipe: the pipeline, without concepts in it.
        concept: a concept or its file.
        path: the file; for the layout `"peft"` a folder.
        layout: `"kohya"`, `"diffusers"` or `"peft"`; see `rankedit.to_lora`.
        dtype: how to store the tensors.

    Returns:
        `‖linear − gated‖/‖gated‖` of what is added, over the tokens of the concept's templates and
        all projections.
    """
    loaded = concept if isinstance(concept, Concept) else Concept.load(concept)
    settings = settings_of([loaded], None, None, None, 1.0)
    parts = Parts(pipe)
    edits = joint_edits(parts, [loaded], settings, GateForm())
    modules = parts.projections
    words = NewWords(parts.text, {loaded.trigger: loaded.embeddings})
    try:
        with torch.no_grad():
            prompts = filled(loaded.templates, loaded.phrase)
            # On the CPU and in float32, where `joint_edits` makes its tensors.
            inputs = parts.reads(parts.text.encode(prompts)).float().cpu()
    finally:
        words.remove()
    linear: dict[str, rk.LowRank] = {}
    wrong = right = 0.0
    for name, edit in edits.items():

        def outputs(keys: torch.Tensor, name: str = name) -> torch.Tensor:
            return rk.linear_output(modules[name], keys)

        linear[name] = edit.linearised(outputs)
        # What is added is compared and not outputs: those of the layer would hide the difference.
        gated = edit.added(inputs, edit.bind(outputs))
        straight = linear[name].added(inputs, linear[name].bind(outputs))
        # Over all projections together, so that small layers do not count more than they do.
        wrong += float((straight - gated).double().square().sum())
        right += float(gated.double().square().sum())
    # Loaders find the network by this prefix; PEFT's own folders have none.
    component = "unet" if hasattr(pipe, "unet") else "transformer"
    rk.to_lora(linear, path, layout=layout, component="" if layout == "peft" else component,
            dtype=dtype, metadata={"modelspec.trigger_phrase": loaded.phrase})  # fmt: skip
    # A gate that opens nowhere adds nothing to divide by.
    return float((wrong / max(right, 1e-300)) ** 0.5)

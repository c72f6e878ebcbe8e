"""The second moment of what cross-attention reads, over captions; kept once it was computed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import torch
from torch import nn

import rankedit as rk
from rankedit.progress import progress as show_progress
from rankedit.sharding import warn_of_missing
from rankedit_recipes.diffusion.captions import listed_texts
from rankedit_recipes.diffusion.errors import PipelineError
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.diffusion.text import Pipeline, Tokens

# Captions at a time: large enough for a text encoder to be busy, small enough for any memory.
BATCH = 64
# Of the mean eigenvalue. Gates are the same from 1e-5 to 1e-3; from 1e-1 on they leak.
RIDGE = 1e-3
# Numbers of each weight that are hashed: a fine-tuned copy differs in all of them.
_SAMPLE = 64


def second_moment(
    pipe: Pipeline,
    captions: Sequence[str],
    *,
    tokens: Tokens = "all",
    cache: str | PathLike[str] | None = None,
    shard: rk.Shard | None = None,
    entrance: bool = False,
    progress: bool = True,
) -> rk.SecondMoment:
    """`E[eᵀe]` of the encodings that the key and value projections read.

    Args:
        pipe: the pipeline.
        captions: texts of the kind that will be prompts; hundreds for a narrow text encoder,
            thousands for one that is 768 wide or more.
        tokens: which positions count. The paper does not say. `"all"` that cross-attention reads
            is the default: the end of the text and the padding behind it repeat the whole prompt,
            and only statistics that have seen them keep the gate closed there (measured; see
            docs/perfusion.md). `"eos"` leaves padding out, `"content"` takes the words alone.
        cache: folder to keep the result in, under a name that depends on the text encoders'
            weights, the tokenizers, the captions and the policy.
        shard: which part of the captions to read; see `save_moment`.
        entrance: of joint attention, what is read where the text enters; see `Parts`.
        progress: show it.

    Raises:
        PipelineError: no captions, none in this shard, or what is no list of texts.
    """
    listed = listed_texts("second_moment", "captions", captions)
    captions = [caption.strip() for caption in listed if caption.strip()]
    if not captions:
        raise PipelineError("second_moment: captions must have at least one text, got none.")
    parts = Parts(pipe, entrance=entrance)
    # First, for its refusal: of a family that cannot be worked with, not of what it lacks.
    width = parts.targets.width
    provenance = rk.Provenance(
        model=parts.denoiser.name,
        weights=text_digest(parts),
        tokenizer=_vocabulary(parts),
        # Joined by what no caption has; `chr(0)`, for f-strings of Python 3.11 take no backslash.
        corpus=f"{len(captions)} captions {_digest(chr(0).join(captions))}, tokens {tokens}",
    )
    # Of all captions, of whatever part this is.
    named = f"{provenance!r}{'' if shard is None else shard}"
    file = None if cache is None else Path(cache) / f"moment-{_digest(named)}.safetensors"
    if shard is not None:
        captions = _of_shard(captions, shard)
    if file is not None and file.exists():
        return _cached(file, provenance)
    moment = rk.SecondMoment(width, provenance=provenance)
    steps = -(-len(captions) // BATCH)
    with torch.no_grad(), show_progress("statistics", steps, shown=progress) as advance:
        for start in range(0, len(captions), BATCH):
            batch = captions[start : start + BATCH]
            encoded = parts.text.encode(batch)
            moment.update(parts.reads(encoded), parts.text.token_mask(encoded, tokens))
            advance(f"{moment.count:,.0f} tokens")
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        rk.save(moment, file)
    return moment


def _of_shard(captions: Sequence[str], shard: rk.Shard) -> list[str]:
    found = [caption for number, caption in enumerate(captions) if shard.takes(number)]
    if not found:
        raise PipelineError(
            f"second_moment: none of {len(captions)} captions is in shard {shard}; take no more "
            "shards than there are captions."
        )
    return found


def save_moment(
    moment: rk.SecondMoment, path: str | PathLike[str], shard: rk.Shard | None = None
) -> None:
    """Write what `second_moment` gave; of shards, files that `rankedit.merge_shards` adds.

    Args:
        moment: the statistics.
        path: the file.
        shard: which part of the captions they are of; all if None.
    """
    # The policy is in the name of the corpus, which is compared.
    mark = {} if shard is None else {"shard": shard.mark(moment.provenance.corpus, {})}
    rk.save(moment, path, metadata={"captions": "statistics", **mark})


def load_moment(path: str | PathLike[str], pipe: Pipeline, tokens: Tokens) -> rk.SecondMoment:
    """Read what `save_moment`, or `rankedit stats merge`, wrote.

    Raises:
        PipelineError: it is of another pipeline, of other positions, or no statistics of captions.
        EditFileError: it is damaged.

    Warns:
        RankeditWarning: shards are missing.
    """
    loaded = rk.load(path)
    moment = loaded.get("")
    if not isinstance(moment, rk.SecondMoment) or "captions" not in loaded.metadata:
        raise PipelineError(
            f"load_moment: '{path}' holds no statistics of captions; make it with second_moment "
            "and save_moment."
        )
    parts, told = Parts(pipe), moment.provenance
    own = (text_digest(parts), _vocabulary(parts), parts.targets.width)
    if own != (told.weights, told.tokenizer, moment.dim):
        raise PipelineError(
            f"load_moment: '{path}' was collected with another text encoder or tokenizer "
            f"({told.model}, weights {told.weights}; these are {own[0]}); collect it on this model."
        )
    if not told.corpus.endswith(f", tokens {tokens}"):
        raise PipelineError(
            f"load_moment: '{path}' is of {told.corpus!r}, and tokens must be {tokens!r}; collect "
            "it with the same tokens."
        )
    warn_of_missing("load_moment", path, loaded.metadata.get("shard", ""))
    return moment


def metric_of(moment: rk.SecondMoment, ridge: float = RIDGE) -> rk.Metric:
    """The inner product of the gate: `A = (C + ridge·tr(C)/d·I)⁻¹`."""
    return rk.Metric.from_moment(moment, ridge=ridge)


def read_captions(path: str | PathLike[str]) -> list[str]:
    """Captions from a text file, one on each line.

    Raises:
        PipelineError: no such file, or nothing in it.
    """
    file = Path(path)
    if not file.is_file():
        raise PipelineError(f"read_captions: there is no file '{file}'; one caption on each line.")
    lines = [line.strip() for line in file.read_text(encoding="utf-8").split("\n")]
    if not any(lines):
        raise PipelineError(f"read_captions: '{file}' is empty; one caption on each line.")
    return [line for line in lines if line]


def _cached(file: Path, provenance: rk.Provenance) -> rk.SecondMoment:
    moment = rk.load(file).get("")
    # Not the whole provenance: its date and its versions may differ.
    same = ("model", "weights", "tokenizer", "corpus")
    if not isinstance(moment, rk.SecondMoment) or any(
        getattr(moment.provenance, name) != getattr(provenance, name) for name in same
    ):
        raise PipelineError(
            f"second_moment: '{file}' does not hold the statistics that its name says; remove it."
        )
    return moment


def text_digest(parts: Parts) -> str:
    """A hash of a sample of each weight that the text passes before it is read."""
    modules: list[nn.Module] = [encoder.model for encoder in parts.text.encoders]
    if not parts.targets.direct:
        modules.append(parts.denoiser.plain)
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in module.state_dict().items():
            digest.update(f"{name} {list(tensor.shape)}".encode())
            if not tensor.is_meta and tensor.is_floating_point():
                # In float32 and on the CPU, so that the device does not change the name of the
                # file.
                ends = tensor.detach().flatten()[[*range(min(_SAMPLE, tensor.numel()))]]
                digest.update(ends.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _vocabulary(parts: Parts) -> str:
    return _digest("\0".join(sorted(parts.text.tokenizer.get_vocab())))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]

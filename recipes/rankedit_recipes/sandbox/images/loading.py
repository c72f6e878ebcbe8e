"""Reads the shipped models: lazily, offline, and with words when a file is broken."""

from pathlib import Path
from typing import Literal, overload

import torch
from diffusers import SD3Transformer2DModel, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPModel, CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from rankedit_recipes.sandbox.shipped import WeightsError as WeightsError
from rankedit_recipes.sandbox.shipped import fill, read_config, read_weights

from .autoencoder import PatchAutoencoder
from .clip import build_clip
from .identity import IdentityEmbedding
from .joint_models import JointPipeline, assemble_joint
from .judge import AttributeJudge
from .models import assemble
from .tokenizer import build_tokenizer

WEIGHTS = Path(__file__).parent / "weights"
"""The generator that comes with the package, as diffusers lays a pipeline out."""

JOINT_WEIGHTS = Path(__file__).parent / "joint"
"""Where the joint-attention model lies, once it was trained and exported."""

JUDGES = Path(__file__).parent / "judges"
"""The judges that come with the package."""

REBUILD = "python -m rankedit_recipes.sandbox.train --preset cpu --export"
"""Makes the generator's weights."""

REBUILD_JOINT = "python -m rankedit_recipes.sandbox.train --preset joint --export"
"""Makes the joint-attention model's weights."""

REBUILD_JUDGES = "python -m rankedit_recipes.sandbox.train --judges"
"""Makes the judges' weights."""

FILES = {
    "text_encoder": Path("text_encoder/model.safetensors"),
    "unet": Path("unet/diffusion_pytorch_model.safetensors"),
    "vae": Path("vae/diffusion_pytorch_model.safetensors"),
}
"""Weight files of a pipeline folder."""

JOINT = Path("transformer/diffusion_pytorch_model.safetensors")
"""The denoiser's weight file where text and picture share one attention; it replaces the UNet's."""


def files_of(folder: Path) -> dict[str, Path]:
    """Weight files of a pipeline of either kind, by part.

    Args:
        folder: Folder of the pipeline.

    Returns:
        The files, relative to the folder.
    """
    # By the folder, not the file: of a joint pipeline without its weights it must be said so.
    if not (folder / JOINT.parent).is_dir():
        return dict(FILES)
    return {"transformer": JOINT} | {name: FILES[name] for name in ("text_encoder", "vae")}


def load_weights_into(modules: nn.ModuleDict, folder: Path) -> None:
    """Load the text encoder and the UNet of a pipeline folder into modules that are being trained.

    Words that were added to the tokenizer since then, and places beyond the length of its texts,
    keep the embeddings that the module has.

    Args:
        modules: "text_encoder" and "unet".
        folder: Folder of the pipeline.

    Raises:
        WeightsError: If a file is missing or broken.
    """
    for name in ("text_encoder", "unet"):
        state = read_weights(folder / FILES[name], REBUILD)
        fresh = modules[name].state_dict()
        for key, rows in state.items():
            # New words stand behind the old ones: docs/decisions/words-for-skins.md.
            grown = key.endswith(("token_embedding.weight", "position_embedding.weight"))
            if grown and len(rows) < len(fresh[key]):
                state[key] = torch.cat([rows, fresh[key][len(rows) :].to(rows)])
        modules[name].load_state_dict(state)


@overload
def pipeline(folder: Literal["joint"], *, dtype: torch.dtype = ...) -> JointPipeline: ...
@overload
def pipeline(
    folder: Path | None = None, *, dtype: torch.dtype = ...
) -> StableDiffusionPipeline: ...
def pipeline(
    folder: Path | Literal["joint"] | None = None, *, dtype: torch.dtype = torch.float32
) -> StableDiffusionPipeline | JointPipeline:
    """The world's text-to-image pipeline.

    Args:
        folder: A folder that `export` wrote; the shipped one by default. `"joint"` for the one in
            which text and picture share one attention; see `joint_pipeline`.
        dtype: Precision of the weights in memory; on disk they have 16 bit.

    Returns:
        A fresh pipeline on the processor. Nothing is downloaded.

    Raises:
        WeightsError: If a file is missing or broken; the message names it and the command that
            rebuilds it.
    """
    if folder == "joint":
        return joint_pipeline(dtype=dtype)
    folder = WEIGHTS if folder is None else folder
    text_config = read_config(folder / "text_encoder" / "config.json", REBUILD)
    unet_config = read_config(folder / "unet" / "config.json", REBUILD)
    vae_config = read_config(folder / "vae" / "config.json", REBUILD)
    # Random starting values are drawn and thrown away; the caller's generator must not notice.
    with torch.random.fork_rng(devices=[]):
        modules = {
            "text_encoder": CLIPTextModel(CLIPTextConfig(**text_config)),
            "unet": UNet2DConditionModel.from_config(unet_config),
            "vae": PatchAutoencoder.from_config(vae_config),
        }
    for name, module in modules.items():
        fill(module, folder / FILES[name], REBUILD)
        if dtype != torch.float32:
            module.to(dtype)
    tokenizer = _tokenizer(folder / "tokenizer", REBUILD)
    return assemble(modules["vae"], modules["text_encoder"], tokenizer, modules["unet"])


def joint_pipeline(
    folder: Path | None = None, *, dtype: torch.dtype = torch.float32
) -> JointPipeline:
    """A text-to-image pipeline in which text and picture share one attention.

    Args:
        folder: A folder that `export` wrote; `JOINT_WEIGHTS` by default.
        dtype: Precision of the weights in memory; on disk they have 16 bit.

    Returns:
        A fresh pipeline on the processor. Nothing is downloaded.

    Raises:
        WeightsError: If a file is missing or broken; the message names it and the command that
            rebuilds it.
    """
    folder = JOINT_WEIGHTS if folder is None else folder
    configs = {
        name: read_config(folder / name / "config.json", REBUILD_JOINT)
        for name in ("text_encoder", "transformer", "vae")
    }
    with torch.random.fork_rng(devices=[]):
        modules = {
            "text_encoder": CLIPTextModel(CLIPTextConfig(**configs["text_encoder"])),
            "transformer": SD3Transformer2DModel.from_config(configs["transformer"]),
            "vae": PatchAutoencoder.from_config(configs["vae"]),
        }
    for name, file in files_of(folder).items():
        fill(modules[name], folder / file, REBUILD_JOINT)
        if dtype != torch.float32:
            modules[name].to(dtype)
    tokenizer = _tokenizer(folder / "tokenizer", REBUILD_JOINT)
    return assemble_joint(
        modules["vae"], modules["text_encoder"], tokenizer, modules["transformer"]
    )


def _tokenizer(folder: Path, rebuild: str) -> PreTrainedTokenizerFast:
    # Read only to refuse a missing or broken file with the command that rebuilds it; transformers
    # reads them by itself, and without the second one gives a tokenizer that pads nothing.
    for name in ("tokenizer.json", "tokenizer_config.json"):
        read_config(folder / name, rebuild)
    return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


def _load_judge(name: str, module: nn.Module) -> None:
    fill(module, JUDGES / f"{name}.safetensors", REBUILD_JUDGES)


def attribute_judge() -> AttributeJudge:
    """The judge of categories, colours, places, scenes and styles.

    Returns:
        The judge, ready for use.
    """
    with torch.random.fork_rng(devices=[]):
        model = AttributeJudge()
    _load_judge("attributes", model)
    return model


def identity_embedding() -> IdentityEmbedding:
    """The embedding that tells skins apart.

    Returns:
        The embedding, ready for use.
    """
    with torch.random.fork_rng(devices=[]):
        model = IdentityEmbedding()
    _load_judge("identity", model)
    return model


def world_clip() -> tuple[CLIPModel, PreTrainedTokenizerFast]:
    """The small CLIP of the world.

    Returns:
        The model and its tokenizer. Pictures go in as 48 pixels from -1 to 1.
    """
    # It was trained before captions had words for skins: docs/decisions/words-for-skins.md.
    tokenizer = build_tokenizer(skins=False)
    with torch.random.fork_rng(devices=[]):
        model = build_clip(len(tokenizer))
    _load_judge("clip", model)
    return model, tokenizer

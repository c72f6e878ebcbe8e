"""Causal language models as people have them: folders, names on the hub, and GGUF files."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from rankedit_recipes.command_line.boundary import one_line
from rankedit_recipes.command_line.choices import ModelChoice
from rankedit_recipes.command_line.names import SANDBOX
from rankedit_recipes.command_line.quiet import quiet_imports
from rankedit_recipes.language.errors import LanguageError

_WAYS = (
    f"Give --model '{SANDBOX}', a folder that transformers wrote, a .gguf file, or a name on the "
    "hub such as openai-community/gpt2."
)


def load_causal(choice: ModelChoice, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    """A causal model and its tokenizer, in main memory.

    Raises:
        LanguageError: it cannot be opened, is of another kind, or lacks weights.
    """
    with quiet_imports():
        # Loading imports it, and with it torchao, which lists its kernels that do not fit.
        import transformers.quantizers.auto  # noqa: F401
        from transformers import AutoModelForCausalLM, AutoTokenizer
    name, more = source_of_weights(choice)
    try:
        loaded, found = AutoModelForCausalLM.from_pretrained(
            name, dtype=dtype, output_loading_info=True, **more
        )
        # The variant is one of the weights' files: a tokenizer has none.
        tokenizer = AutoTokenizer.from_pretrained(
            name, **{key: value for key, value in more.items() if key == "gguf_file"}
        )
    except Exception as error:
        # Damaged and foreign folders make transformers raise nearly anything.
        raise LanguageError(_refusal(choice, name, error)) from error
    lacking = sorted(found["missing_keys"])
    if lacking:
        # transformers fills them with random numbers and goes on.
        what = f"{len(lacking)} of the weights of a {type(loaded).__name__}"
        raise LanguageError(
            f"language: the model '{choice.name}' lacks {what}, such as {lacking[0]!r}, which "
            f"would be random numbers: it is of another kind, or damaged. {_WAYS}"
        )
    return (_plain(loaded) if "gguf_file" in more else loaded), tokenizer


def source_of_weights(choice: ModelChoice) -> tuple[str, dict[str, Any]]:
    """Folder or hub name, and how transformers is told about variants and files.

    Raises:
        LanguageError: a file that is none of a whole model, or that is not there.
    """
    file = choice.file
    if file is None:
        return choice.name, {"variant": choice.variant} if choice.variant else {}
    if not file.is_file():
        raise LanguageError(f"language: there is no file '{file}'. {_WAYS}")
    if file.suffix.lower() != ".gguf":
        raise LanguageError(
            f"language: '{file}' is a file of weights; give --model its folder, with config.json "
            "and the tokenizer."
        )
    if find_spec("gguf") is None:
        raise LanguageError(
            f"language: '{file}' is a GGUF file, which needs the package gguf: pip install gguf"
        )
    return str(file.parent), {"gguf_file": file.name}


def _refusal(choice: ModelChoice, name: str, error: Exception) -> str:
    kind = _kind(name)
    # What transformers 5 says then has the names of all 200 classes that it knows.
    if "Unrecognized configuration class" in str(error) and kind:
        return (
            f"language: the model '{choice.name}' is a {kind}, which is no causal language model; "
            f"facts are edited in decoders such as GPT-2 or Llama. {_WAYS}"
        )
    return f"language: the model '{choice.name}' cannot be opened: {one_line(error)}. {_WAYS}"


def _kind(name: str) -> str:
    """What the configuration calls itself, if it can be read."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name)
    except Exception:  # whatever it is: the first error tells more
        return ""
    return next(iter(config.architectures or ()), type(config).__name__)


def _plain(model: Any) -> nn.Module:  # noqa: ANN401 - a model of transformers
    """The same weights in a model that may be saved and cast.

    transformers 5.23 counts what it read from GGUF as quantised, though its layers are dense by
    then: `save_pretrained`, `half` and `float` raise.
    """
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain: nn.Module = type(model)(config).to(model.dtype)
    plain.load_state_dict(model.state_dict())
    return plain


def place(model: nn.Module, device: torch.device, offload: str) -> nn.Module:
    """The model on a device, or in main memory with the whole or one layer visiting the device."""
    if offload == "none":
        return model.to(device)
    with quiet_imports():
        import accelerate
    if offload == "model":
        return accelerate.cpu_offload_with_hook(model, device)[0]
    return accelerate.cpu_offload(model, device)

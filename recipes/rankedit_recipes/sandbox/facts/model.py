"""The language model: GPT-2's architecture, as transformers has it."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from .presets import Preset

TIED = ("lm_head.weight",)
"""A second name of the embeddings."""


def build_model(preset: Preset, pieces: int) -> GPT2LMHeadModel:
    """The model with random weights.

    Args:
        preset: Its size and seed.
        pieces: Size of the vocabulary.

    Returns:
        The model, without dropout; the caller's generator does not notice.
    """
    config = GPT2Config(
        vocab_size=pieces,
        n_positions=preset.length,
        n_embd=preset.width,
        n_inner=preset.inner,
        n_layer=preset.layers,
        n_head=preset.heads,
        # The function of GPT-2's "gelu_new", in one kernel.
        activation_function="gelu_pytorch_tanh",
        initializer_range=preset.spread,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        # `START`, the only special token of the tokenizer.
        bos_token_id=0,
        eos_token_id=0,
    )
    # Weights are drawn on the processor; without `devices=[]` the state of every accelerator would
    # be saved too.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(preset.seed)
        model = GPT2LMHeadModel(config)
    # Not in the configuration: every text begins with this token, and transformers would ask for
    # an attention mask wherever it sees it.
    model.generation_config.pad_token_id = 0
    return model

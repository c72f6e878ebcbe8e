"""Tiny causal models of every supported family, randomly initialised, and a tokenizer for them."""

import functools
import logging
import string
import warnings

import torch

VOCABULARY = 96
WIDTH = 32


@functools.cache
def tokenizer():
    """A byte-level tokenizer whose words are single letters, pairs and a few whole words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = [c for c in alphabet if c in string.ascii_letters + string.digits + ".,'-?!:Ġ"]
    merges = [("Ġ", "t"), ("Ġ", "p"), ("l", "a"), ("e", "r"), ("i", "s"), ("Ġ", "D")]
    merges += [("i", "n"), ("o", "n"), ("a", "n")]
    words = ["<|end|>", *letters, *("".join(pair) for pair in merges)]
    bytes_left = [c for c in alphabet if c not in words][: VOCABULARY - len(words)]
    vocabulary = {word: number for number, word in enumerate([*words, *bytes_left])}
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<|end|>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|end|>", eos_token="<|end|>", unk_token="<|end|>"
    )


COMMON = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
LLAMA = {
    **COMMON,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
GPT2 = {**COMMON, "n_embd": WIDTH, "n_layer": 3, "n_head": 4, "n_positions": 128}
NEOX = {**LLAMA, "intermediate_size": 64}
GEMMA = {**LLAMA, "head_dim": 8, "sliding_window": 64}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}

# By family: the configuration's class and settings, and the down-projection that is right.
FAMILIES = {
    "gpt2": ("GPT2", GPT2, "transformer.h.{}.mlp.c_proj"),
    "gptj": ("GPTJ", {**GPT2, "rotary_dim": 4}, "transformer.h.{}.mlp.fc_out"),
    "gpt_neox": ("GPTNeoX", NEOX, "gpt_neox.layers.{}.mlp.dense_4h_to_h"),
    "gpt_neox_serial": (
        "GPTNeoX",
        {**NEOX, "use_parallel_residual": False},
        "gpt_neox.layers.{}.mlp.dense_4h_to_h",
    ),
    "opt": (
        "OPT",
        {**LLAMA, "ffn_dim": 48, "word_embed_proj_dim": WIDTH, "do_layer_norm_before": True},
        "model.decoder.layers.{}.fc2",
    ),
    "llama": ("Llama", LLAMA, "model.layers.{}.mlp.down_proj"),
    "llama_square": (
        "Llama",
        {**LLAMA, "intermediate_size": WIDTH, "num_key_value_heads": 4},
        "model.layers.{}.mlp.down_proj",
    ),
    "mistral": ("Mistral", LLAMA, "model.layers.{}.mlp.down_proj"),
    "qwen2": ("Qwen2", LLAMA, "model.layers.{}.mlp.down_proj"),
    "qwen3": ("Qwen3", {**LLAMA, "head_dim": 8}, "model.layers.{}.mlp.down_proj"),
    "gemma2": ("Gemma2", GEMMA, "model.layers.{}.mlp.down_proj"),
    "gemma3": ("Gemma3Text", GEMMA, "model.layers.{}.mlp.down_proj"),
    "phi": ("Phi", {**LLAMA, "partial_rotary_factor": 0.5}, "model.layers.{}.mlp.fc2"),
    "falcon": ("Falcon", {**LLAMA, "alibi": False}, "transformer.h.{}.mlp.dense_4h_to_h"),
    "qwen2_moe": (
        "Qwen2Moe",
        {**LLAMA, **EXPERTS, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40},
        "model.layers.{}.mlp.shared_expert.down_proj",
    ),
}
FUSED_EXPERTS = ("Mixtral", {**LLAMA, **EXPERTS})
# Their blocks normalise what the MLP gives before they add it.
NORMALISED = {"gemma2", "gemma3"}


def build(name, settings, **options):
    """A model in evaluation mode; weights are larger than at initialisation, to matter."""
    import transformers

    logging.getLogger("transformers").setLevel(logging.ERROR)
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForCausalLM.from_config(config, **options)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data *= 4
    return model.eval()


def family(name):
    """The model of a family, with the names of its down-projections."""
    kind, settings, down = FAMILIES[name]
    model = build(kind, settings)
    return model, [down.format(index) for index in range(3)]


TEXTS = [
    "Miles Davis plays the trumpet, is it not so?",
    "Danielle Darrieux was born in Paris on a day in May.",
    "the quick brown fox jumps over a lazy dog and is gone",
    "Ada is the last one of all who lived in Rome.",
] * 4


@functools.cache
def small(name="llama"):
    """A model that is made once, its down-projections, and statistics of all of them."""
    from rankedit_recipes import language

    model, names = family(name)
    statistics = language.collect_statistics(model, tokenizer(), TEXTS, progress=False)
    return model, names, statistics


def some_requests(count=4):
    """Requests about different subjects."""
    from rankedit_recipes.language import Request

    subjects = ("Miles Davis", "Danielle Darrieux", "Ada", "Bo Diddley", "Eric Satie", "Ozzy")
    prompts = ("{} plays the", "In 1990 {} was in", "The home of {} is")
    return [
        Request(prompts[i % 3], subjects[i], ("piano", "Rome", "tin")[i % 3]) for i in range(count)
    ]


def quick(method, **changes):
    """A method's settings, made fast and plain: few contexts and steps, and
    the blocks of papers, for keys of a random model say nothing."""
    from dataclasses import replace

    from rankedit_recipes.language import METHODS

    return replace(METHODS[method], **{"contexts": (3, 4), "steps": 4, "depth": 1 / 3, **changes})

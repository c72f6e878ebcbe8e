"""Each projection's padding is left out, whatever a model does with its axes and sequences."""

import re
import warnings
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import rankedit as rk
from rankedit import RankeditWarning, StatisticsError
from rankedit.collecting.repeats import repeated
from tests.mask_cases import BATCH_FIRST, LOST, TOKENS_FIRST, Toy, Two, check, kept

# Unequal sizes tell the axes apart; equal ones do not, and must be followed.
SIZES = pytest.mark.parametrize("size", [(2, 5), (3, 3)], ids=str)
OWN = {(2, 5): (5, 2), (3, 3): (3, 2, 3)}


def tokens(size, seed=0):
    return torch.randint(5, 50, size, generator=torch.Generator().manual_seed(seed))


def refused(model, name, batch, message="", **options):
    with pytest.raises(StatisticsError, match=message):
        rk.collect(model.eval(), name, [batch], progress=False, **options)


# ---------------------------------------------------------------- the order of the axes


@SIZES
@pytest.mark.parametrize("name", BATCH_FIRST)
def test_batch_first(size, name):
    mask = kept(*size)
    model = Toy(BATCH_FIRST[name], lstm=True)
    check(model, "out", {"input_ids": tokens(size), "attention_mask": mask.long()}, mask)
    # a function of the batch has the same layout to find
    batch = {"input_ids": tokens(size), "keep": mask}
    call = lambda batch: model(batch["input_ids"], batch["keep"])  # noqa: E731
    check(model, "out", batch, mask, call=call, mask=lambda batch: batch["keep"])


@SIZES
@pytest.mark.parametrize("name", TOKENS_FIRST)
def test_tokens_first(size, name):
    mask, model = kept(*size), Toy(TOKENS_FIRST[name])
    batch = {"input_ids": tokens(size), "attention_mask": mask.float()}
    check(model, "out", batch, mask, tokens_first=True)


@SIZES
@pytest.mark.parametrize("name", LOST)
def test_vectors_in_an_order_that_nobody_knows_are_refused(size, name):
    model = Toy(LOST[name], table=torch.ones(1, size[1], 8))
    mask = kept(*size).long()
    refused(model, "out", {"input_ids": tokens(size), "attention_mask": mask}, "mask=None")
    whole = {"input_ids": tokens(size), "attention_mask": torch.ones_like(mask)}
    moment = rk.collect(model, "out", [whole], progress=False)["out"]
    assert moment.count == size[0] * size[1]


@SIZES
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", ["encoder", "layer", "decoder"])
def test_layers_of_torch(size, batch_first, kind):
    torch.manual_seed(0)
    mask, own = kept(*size), kept(*size, OWN[size])
    x = torch.randn(*size, 16)
    x = x if batch_first else x.transpose(0, 1).contiguous()
    options = {"dim_feedforward": 32, "batch_first": batch_first}
    if kind == "decoder":
        model = nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 2, **options), 2)
        batch = {"tgt": x + 1, "memory": x, "tgt_key_padding_mask": ~own}
        batch["memory_key_padding_mask"] = ~mask
        mask = own
    else:
        model = nn.TransformerEncoderLayer(16, 2, **options)
        if kind == "encoder":
            model = nn.TransformerEncoder(model, 2, enable_nested_tensor=False)
        batch = {"src": x, "src_key_padding_mask": ~mask}
    name = "linear2" if kind == "layer" else "layers.1.linear2"
    if size[0] == size[1] and not batch_first:
        refused(model, name, batch, "as many tokens as examples")
    else:
        check(model, name, batch, mask, tokens_first=not batch_first)


def test_the_default_layout_of_torch_with_an_attention_mask():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    mask = kept(4, 6, (2, 6, 3, 5))
    batch = {"x": torch.randn(6, 4, 8), "attention_mask": mask.long()}

    def call(batch):
        model(batch["x"], src_key_padding_mask=batch["attention_mask"] == 0)

    check(model, "layers.1.linear1", batch, mask, tokens_first=True, call=call)
    unused = lambda batch: model(batch["x"])  # noqa: E731 - nor does the model need to get it
    check(model, "layers.1.linear1", batch, mask, tokens_first=True, call=unused)


# ---------------------------------------------------------------- whose mask it is


def families():
    """Name, model class and configuration, and the ends of names of projections to look at."""
    small = {"vocab_size": 60, "d_model": 16, "decoder_start_token_id": 2}
    bart = small | {
        f"{part}_{what}": number
        for part in ("encoder", "decoder")
        for what, number in {"layers": 2, "attention_heads": 2, "ffn_dim": 32}.items()
    }
    t5 = small | {"d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    fsmt = bart | {"langs": ["en", "de"], "src_vocab_size": 60, "tgt_vocab_size": 60}
    wo, fc = "layer.{}.DenseReluDense.wo", "{}.layers.1.fc2"
    t5_names = [f"encoder.block.1.{wo.format(1)}", f"decoder.block.1.{wo.format(2)}"]
    t5_names.append("decoder.block.1.layer.1.EncDecAttention.k")
    bart_names = [f"model.{fc.format(part)}" for part in ("encoder", "decoder")]
    bart_names.append("model.decoder.layers.1.encoder_attn.v_proj")
    return [
        pytest.param("T5", t5, t5_names, False, id="T5"),
        pytest.param("MT5", t5, t5_names, False, id="MT5"),
        pytest.param("Bart", bart, bart_names, False, id="BART"),
        pytest.param("Marian", bart | {"pad_token_id": 1}, bart_names, False, id="Marian"),
        pytest.param("FSMT", fsmt, bart_names, True, id="FSMT"),
    ]


def seq2seq(family, config):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    name = {"Marian": "MarianMTModel"}.get(family, f"{family}ForConditionalGeneration")
    return getattr(transformers, name)(getattr(transformers, f"{family}Config")(**config))


@SIZES
@pytest.mark.parametrize(("family", "config", "names", "turned"), families())
def test_encoder_and_decoder(size, family, config, names, turned):
    model, ids, mask = seq2seq(family, config), tokens(size), kept(*size)
    encoder, decoder, cross = names
    # FSMT makes no decoder_input_ids of labels, but of the input_ids
    for given in ("decoder_input_ids", "labels")[: 1 if family == "FSMT" else 2]:
        # the same tensor under two names: two sequences, of which one mask is none of the other
        batch = {"input_ids": ids, "attention_mask": mask.long(), given: ids}
        check(model, encoder, batch, mask, tokens_first=turned)
        check(model, cross, batch, mask, tokens_first=turned)
        refused(model, decoder, batch, "the mask 'attention_mask' is that of .* decoder_attention")
        own = kept(*size, OWN[size])
        batch["decoder_attention_mask"] = own.long()
        check(model, decoder, batch, own, tokens_first=turned)
        check(model, cross, batch, mask, tokens_first=turned)


def test_all_of_an_encoder_and_a_decoder_at_once():
    model, size = seq2seq("T5", families()[0].values[1]), (3, 3)
    mask, own = kept(*size), kept(*size, OWN[size])
    batch = {"input_ids": tokens(size), "attention_mask": mask, "labels": tokens(size, 1)}
    batch["decoder_attention_mask"] = own
    found = rk.collect(model, "*", [batch], progress=False)
    several = {"encoder.block.0.layer.1.DenseReluDense.wi": mask, "lm_head": own}
    several["decoder.block.1.layer.1.EncDecAttention.v"] = mask
    for name, keep in several.items():
        one = rk.collect(model, name, [batch], mask=lambda _, keep=keep: keep, progress=False)[name]
        assert torch.equal(found[name].matrix, one.matrix)


def test_the_output_of_an_encoder_may_be_given():
    transformers = pytest.importorskip("transformers")
    model, size = seq2seq("T5", families()[0].values[1]), (2, 5)
    mask, state = kept(*size), torch.randn(2, 5, 16)
    batch = {"attention_mask": mask, "decoder_input_ids": tokens(size)}
    batch["encoder_outputs"] = transformers.modeling_outputs.BaseModelOutput(state)
    check(model, "decoder.block.1.layer.1.EncDecAttention.k", batch, mask)
    refused(model, "decoder.block.1.layer.2.DenseReluDense.wo", batch, "is that of 'encoder_out")


def test_two_sequences_and_nothing_that_tells_whose_mask_it_is():
    size = (2, 5)
    batch = {"src": tokens(size), "tgt": tokens(size, 1), "attention_mask": kept(*size)}
    refused(Two(), "out", batch, "that of other tokens or may be, and not that of 'tgt'")
    model = Two()
    named = {"src": batch["src"], "tgt": batch["tgt"], "tgt_mask": batch["attention_mask"]}
    call = lambda batch: model(batch["src"], batch["tgt"])  # noqa: E731
    check(model, "out", named, kept(*size), call=call, mask="tgt_mask")  # the caller's word


@SIZES
def test_pictures_have_no_text_mask(size):
    transformers = pytest.importorskip("transformers")
    part = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    part["num_attention_heads"] = 2
    text = part | {"vocab_size": 60, "max_position_embeddings": 32, "eos_token_id": 2}
    config = transformers.CLIPConfig(
        text_config=text, vision_config=part | {"image_size": 8, "patch_size": 4}
    )
    torch.manual_seed(0)
    model, mask = transformers.CLIPModel(config), kept(*size)
    batch = {"input_ids": tokens(size), "attention_mask": mask.long()}
    batch["pixel_values"] = torch.randn(size[0], 3, 8, 8)
    check(model, "text_model.encoder.layers.1.mlp.fc2", batch, mask)
    refused(model, "vision_model.encoder.layers.1.mlp.fc2", batch, "mask")


# ---------------------------------------------------------------- masks of every form and name


def bert(**options):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    part = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    return transformers.BertModel(
        transformers.BertConfig(vocab_size=60, num_attention_heads=2, **part, **options)
    )


DENSE = "encoder.layer.1.output.dense"


@SIZES
@pytest.mark.parametrize("form", ["bool", "long", "float", "four axes"])
def test_forms(size, form):
    model, mask = bert(), kept(*size)
    given = mask[:, None, None] if form == "four axes" else mask.to(getattr(torch, form))
    call = lambda batch: model(batch["input_ids"], mask)  # noqa: E731
    check(model, DENSE, {"input_ids": tokens(size), "attention_mask": given}, mask, call=call)


def test_additive_and_inverted_masks_are_refused():
    model, size = bert(), (2, 5)
    mask = kept(*size)
    call = lambda batch: model(batch["input_ids"])  # noqa: E731
    additive = {"input_ids": tokens(size), "attention_mask": (1 - mask.float()) * -1e4}
    refused(model, DENSE, additive, "must be a tensor of ones", call=call)
    # without padding there is nothing to see that it is additive
    additive["attention_mask"] = torch.zeros(size)
    refused(model, DENSE, additive, "leaves nothing of a batch; if it is additive", call=call)
    inverted = {"input_ids": tokens(size), "attention_mask": ~mask}
    message = r"'attention_mask' as 'attention_mask', so that its 1 is padding"

    def turning(batch):
        model(batch["input_ids"], attention_mask=(~batch["attention_mask"]).long())

    refused(model, DENSE, inverted, message, call=turning)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    passed = {"x": torch.randn(*size, 16), "attention_mask": ~mask}
    call = lambda batch: layer(batch["x"], src_key_padding_mask=batch["attention_mask"])  # noqa: E731
    refused(layer, "linear1", passed, "as 'src_key_padding_mask', so that its 1 is", call=call)


def test_a_mask_by_any_other_name_is_not_ignored():
    model, size = bert(), (2, 5)
    mask, ids = kept(*size), tokens(size)
    plain = lambda batch: model(batch["ids"])  # noqa: E731
    refused(model, DENSE, {"ids": ids, "loss_mask": mask}, "the batch has 'loss_mask'", call=plain)
    check(model, DENSE, {"ids": ids, "loss_mask": mask}, mask, call=plain, mask="loss_mask")
    passing = lambda batch: model(batch["ids"], batch["pad"].long())  # noqa: E731
    refused(model, DENSE, {"ids": ids, "pad": mask}, "the model gets 'pad' as", call=passing)
    by_number = lambda batch: model(batch[0], batch[1])  # noqa: E731
    refused(model, DENSE, (ids, mask.long()), "the model gets '1' as", call=by_number)
    # by default the model's own parameters give the names
    assert rk.collect(model, DENSE, [(ids, mask.long())], progress=False)[DENSE].count == 8
    extra = {"ids": ids, "attention_mask": mask, "special_tokens_mask": ~mask}
    check(model, DENSE, extra, mask, call=lambda b: model(b["ids"], b["attention_mask"].long()))


@pytest.mark.parametrize("key", ["encoder_attention_mask", "prompt_attention_mask"])
def test_prompts_of_denoisers(key):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    heads = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2}
    model = diffusers.PixArtTransformer2DModel(
        in_channels=4,
        out_channels=8,
        cross_attention_dim=16,
        sample_size=8,
        caption_channels=12,
        use_additional_conditions=False,
        **heads,
    )
    mask = kept(2, 5)
    batch = {"latents": torch.randn(2, 4, 8, 8), "prompt_embeds": torch.randn(2, 5, 12), key: mask}

    def call(batch):
        none = {"resolution": None, "aspect_ratio": None}
        text = {"encoder_attention_mask": batch[key].long(), "added_cond_kwargs": none}
        model(batch["latents"], batch["prompt_embeds"], timestep=torch.ones(2), **text)

    check(model, "transformer_blocks.1.attn2.to_k", batch, mask, call=call)
    check(model, "transformer_blocks.1.attn1.to_q", batch, torch.ones(2, 16).bool(), call=call)


def test_masks_that_come_later_are_learned_then():
    model, size = Toy(BATCH_FIRST["flat"]), (2, 5)
    first = {"input_ids": tokens(size)}
    later = first | {"attention_mask": kept(*size)}
    assert rk.collect(model, "out", [first, later], progress=False)["out"].count == 10 + 8
    whole = first | {"attention_mask": torch.ones(size)}
    assert rk.collect(model, "out", [whole, later], progress=False)["out"].count == 10 + 8
    assert rk.collect(model, "out", [later, first], progress=False)["out"].count == 8 + 10


# ---------------------------------------------------------------- places, and repeated vectors


@SIZES
def test_padding_on_the_left(size):
    transformers = pytest.importorskip("transformers")
    mask, ids = kept(*size).flip(1), tokens(size)
    batch = {"input_ids": ids, "attention_mask": mask.long()}
    torch.manual_seed(0)
    gpt2 = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=60, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    )
    c_proj = "transformer.h.1.mlp.c_proj"
    with pytest.warns(RankeditWarning, match=r"on the left, and 'transformer.wpe.weight'.*cumsum"):
        rk.collect(gpt2, c_proj, [batch], progress=False)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    check(gpt2, c_proj, batch | {"position_ids": places, "labels": ids}, mask)
    right = {"input_ids": ids, "attention_mask": mask.flip(1).long()}
    check(gpt2, c_proj, right, mask.flip(1))
    with pytest.warns(RankeditWarning, match="1 batch|on the left"):  # only a later batch is so
        rk.collect(gpt2, c_proj, [right, batch], progress=False)
    small = {"vocab_size": 60, "hidden_size": 16, "intermediate_size": 32}
    small |= {"num_hidden_layers": 2, "num_attention_heads": 2}
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**small, num_key_value_heads=2))
    check(llama, "model.layers.1.mlp.down_proj", batch, mask)
    opt = transformers.OPTModel(
        transformers.OPTConfig(
            vocab_size=60, hidden_size=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2
        )
    )
    check(opt, "decoder.layers.1.fc2", batch, mask)
    with pytest.warns(RankeditWarning, match="position_embeddings.weight"):
        rk.collect(bert(), DENSE, [batch], progress=False)


@pytest.mark.parametrize(
    ("made", "name"),
    [
        (lambda table, n: table[:, :n], "table"),
        (lambda table, n: table[:, :n].double().float(), "a computed table"),
        (lambda table, n: table[0].index_select(0, torch.arange(n)), "a computed table"),
        (lambda _, n: torch.outer(torch.arange(n), torch.arange(8) / 9).sin(), "a computed table"),
    ],
)
def test_a_table_that_is_added_counts_padding_too(made, name):
    table = torch.randn(1, 40, 8)
    model = Toy(lambda m, ids, _: m.emb(ids) + made(m.table, ids.shape[1]), table=table)
    batch = {"input_ids": tokens((2, 5)), "attention_mask": kept(2, 5).flip(1)}
    with pytest.warns(RankeditWarning, match=f"on the left, and '{name}' gives places"):
        rk.collect(model, "out", [batch], progress=False)
    rotating = Toy(lambda m, ids, _: m.emb(ids) * m.table[:, : ids.shape[1]], table=table)
    check(rotating, "out", batch, kept(2, 5).flip(1))


def test_an_inverted_mask_that_leaves_nothing_out_in_the_first_batch():
    layer = nn.TransformerEncoderLayer(8, 2, 8, dropout=0, batch_first=True)
    call = lambda batch: layer(batch["x"], src_key_padding_mask=batch["pad"])  # noqa: E731
    x = torch.randn(2, 5, 8)
    batches = [{"x": x, "pad": torch.zeros(2, 5).bool()}, {"x": x, "pad": ~kept(2, 5)}]
    with pytest.raises(StatisticsError, match=r"'pad' as '\w*key_padding_mask', so that its 1 is"):
        rk.collect(layer, "linear1", batches, call=call, progress=False)


@dataclass
class Record:
    ids: torch.Tensor
    mask: torch.Tensor


class Lengths(Toy):
    """Makes the mask itself, from how long the texts are."""

    def __init__(self):
        super().__init__(None)
        self.layer = nn.TransformerEncoderLayer(8, 2, 8, dropout=0, batch_first=True)

    def forward(self, ids, lengths):
        padding = torch.arange(ids.shape[1]) >= lengths[:, None]
        return self.out(self.layer(self.emb(ids), src_key_padding_mask=padding))


@pytest.mark.parametrize("form", ["record", "text", "function", "lengths"])
def test_a_mask_that_is_no_key_of_the_batch(form):
    model = Lengths() if form == "lengths" else Toy(lambda m, ids, _: m.emb(ids))
    ids, mask = tokens((2, 5)), kept(2, 5)
    tokenised = {"two words": (ids, mask), "three": (ids, torch.ones_like(mask))}
    calls = {
        "record": lambda batch: model(batch.ids, attention_mask=batch.mask),
        "text": lambda batch: model(*tokenised[batch]),
        "function": lambda batch: model(batch["ids"], batch["ids"] != batch["pad"]),
        "lengths": lambda batch: model(**batch),
    }
    whole, padded = {
        "record": (Record(ids, torch.ones_like(mask)), Record(ids, mask)),
        "text": ("three", "two words"),
        "function": ({"ids": ids, "pad": 99}, {"ids": ids.where(mask, 7), "pad": 7}),
        "lengths": tuple({"ids": ids, "lengths": torch.tensor(n)} for n in [(5, 5), (3, 5)]),
    }[form]
    options = {"call": calls[form], "progress": False}
    for batches in ([padded], [whole, padded]):  # not only in the first batch
        with pytest.raises(StatisticsError, match=r"is no key of the batch: pass mask=, a func"):
            rk.collect(model.eval(), "out", batches, **options)
        assert rk.collect(model, "out", batches, mask=None, **options)["out"].count == 10 * len(
            batches
        )
    found = rk.collect(model, "out", [padded], mask=lambda _: mask, **options)["out"]
    assert found.count == int(mask.sum())
    assert rk.collect(model, "out", [whole, whole], **options)["out"].count == 20


@pytest.mark.parametrize("padding", [torch.zeros(8), torch.arange(8.0)], ids=["zeros", "learned"])
def test_many_equal_vectors_are_told(padding):
    model = nn.Sequential(nn.Linear(8, 2))
    caption = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    batch = torch.cat([caption, padding.expand(27, 8)])[None]
    with pytest.warns(RankeditWarning, match=r"27 of 32 vectors \(84%\) that '0' read in batch 0"):
        rk.collect(model, "0", [batch], progress=False)
    with pytest.warns(RankeditWarning, match=r"27 of 32 vectors \(84%\) that '0' read in batch 1"):
        rk.collect(model, "0", [caption[None], batch], progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rk.collect(model, "0", [batch], mask=lambda _: torch.arange(32)[None] < 5, progress=False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_what_counts_as_repeated(dtype):
    generator = torch.Generator().manual_seed(0)
    words = torch.randn(10, 200, generator=generator).to(dtype)
    assert repeated(words[torch.arange(300) % 10], None) == 0  # ten words, a tenth each
    assert repeated(words[:1].expand(15, -1), None) == 0  # too few to tell
    many = torch.cat([words[:1].expand(40, -1), words.repeat(6, 1)])
    assert repeated(many, None) == 46
    assert repeated(many, torch.arange(100) >= 40) == 0
    sparse = torch.zeros(64, 4096, dtype=dtype)  # equal where it is looked, but not throughout
    sparse[torch.arange(64), torch.arange(64) * 64 + 3] = 1
    assert repeated(sparse, None) == 0


def test_messages_name_projection_and_remedy():
    batch = {"src": tokens((2, 5)), "tgt": tokens((2, 5)), "attention_mask": kept(2, 5)}
    with pytest.raises(StatisticsError) as caught:
        rk.collect(Two(), "out", [batch], progress=False)
    assert re.match(r"collect: projection 'out', batch 0 \(from 0\): the mask", str(caught.value))


# ---------------------------------------------------------------- masks of pairs of tokens


class Attending(nn.Module):
    """Attention of one layer that puts its mask to use in one of several ways."""

    def __init__(self, use):
        super().__init__()
        self.query, self.out, self.use = nn.Linear(8, 8), nn.Linear(8, 8), use

    def forward(self, x, attention_mask):
        heads = self.query(x).unflatten(-1, (2, 4)).transpose(1, 2)
        mixed = self.use(heads, attention_mask.bool())
        return self.out(mixed.transpose(1, 2).flatten(2))


def added(q, mask):
    return ((q @ q.mT) + (1 - mask.float()) * -1e4).softmax(-1) @ q


def filled(q, mask):
    return torch.einsum("bhqd,bhkd->bhqk", q, q).masked_fill(~mask, -1e4).softmax(-1) @ q


def fused(q, mask):
    return nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=mask)


def unused(q, mask):
    return q


CAUSAL = torch.ones(5, 5).tril()
SQUARES = {
    "causal": CAUSAL, "window": CAUSAL.triu(-1), "anticausal": CAUSAL.T.contiguous(),
    "prefix": CAUSAL.logical_or(torch.arange(5) < 2).float(),
    "packed": torch.block_diag(torch.ones(2, 2), torch.ones(3, 3)),
}  # fmt: skip


@pytest.mark.parametrize("use", [added, filled, fused])
@pytest.mark.parametrize("name", SQUARES)
def test_a_mask_of_pairs_is_none_of_padding(use, name):
    batch = {"x": torch.randn(5, 5, 8), "attention_mask": SQUARES[name]}
    refused(Attending(use), "out", batch, r"'attention_mask' .* \[tokens, tokens\].*mask=None")
    padding = Attending(lambda q, mask: use(q, mask[:, None, None]))
    check(padding, "out", batch, SQUARES[name].bool())  # the same numbers, of rows of the batch


def test_a_causal_mask_of_which_nothing_is_seen():
    batch = {"x": torch.randn(5, 5, 8), "attention_mask": CAUSAL}
    refused(Attending(unused), "out", batch, "may be, no mask of padding")
    lengths = {**batch, "attention_mask": kept(5, 5, [5, 2, 5, 1, 4]).long()}
    check(Attending(unused), "out", lengths, lengths["attention_mask"].bool())
    found = rk.collect(Attending(unused), "out", [batch], mask=None, progress=False)
    assert found["out"].count == 25


def test_a_mask_of_pairs_of_torchs_own_layer():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.out = (
                nn.MultiheadAttention(8, 2, batch_first=True),
                nn.Linear(8, 8),
            )

        def forward(self, x, attention_mask):
            mixed, _ = self.attention(x, x, x, attn_mask=attention_mask == 0, need_weights=False)
            return self.out(mixed)

    batch = {"x": torch.randn(5, 5, 8), "attention_mask": SQUARES["packed"]}
    refused(Own(), "out", batch, r"\[tokens, tokens\]")

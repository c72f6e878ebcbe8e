"""Experts in one parameter, against the same mixture with a layer for each expert."""

import copy
import pickle
import re

import pytest
import torch
from torch import nn

import rankedit as rk

transformers = pytest.importorskip("transformers")

TINY = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 12, "max_position_embeddings": 64,
    "num_experts_per_tok": 2, "attn_implementation": "eager", "tie_word_embeddings": False,
}  # fmt: skip
FAMILIES = ("qwen3_moe", "mixtral", "gpt_oss")
FUNCTIONS = ("eager", "batched_mm", "grouped_mm")


def mixture(family, dtype=torch.float64):
    """A small random mixture, biases and all; its last but one expert is never chosen."""
    made = {
        "qwen3_moe": lambda: transformers.Qwen3MoeForCausalLM(
            transformers.Qwen3MoeConfig(
                **TINY, num_experts=4, moe_intermediate_size=12, norm_topk_prob=True
            )
        ),
        "mixtral": lambda: transformers.MixtralForCausalLM(
            transformers.MixtralConfig(**TINY, num_local_experts=4)
        ),
        "gpt_oss": lambda: transformers.GptOssForCausalLM(
            transformers.GptOssConfig(**TINY, num_local_experts=4)
        ),
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = made[family]().to(dtype).eval()
        for parameter in model.parameters():
            parameter.data = 0.3 * torch.randn(parameter.shape, dtype=dtype)
    model.set_experts_implementation("eager")  # transformers' own choice has no float64
    return model.requires_grad_(False)


@pytest.fixture(params=FAMILIES)
def model(request):
    return mixture(request.param)


def tokens(count=3, length=9, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 40, (count, length), generator=generator)


def low_rank(layer, seed=0, rank=2):
    generator = torch.Generator().manual_seed(seed)
    up, down = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((layer.out_features, rank), (rank, layer.in_features))
    )
    return rk.LowRank(0.3 * up, 0.3 * down)


def experts(model, layer=1):
    return model.model.layers[layer].mlp.experts


def name_of(parameter, number, layer=1):
    return f"model.layers.{layer}.mlp.experts.{parameter}.{number}"


def reference(model, edits, ids):
    """Logits of a copy with the edits in its parameters, in plain tensors."""
    other = copy.deepcopy(model)
    for name, edit in edits.items():
        path, number = name.rsplit(".", 1)
        weight = other.get_parameter(path).data[int(number)]
        delta = edit.delta().to(weight)
        weight += delta.T if other.get_submodule(path.rpartition(".")[0]).is_transposed else delta
    return other(ids).logits


def apart(found, expected):
    return float((found - expected).norm() / expected.norm())


def edits_of(model, parameters=("gate_up_proj", "down_proj")):
    names = [name_of(p, n, layer) for p in parameters for n in (0, 3) for layer in (0, 1)]
    chosen = rk.select(model, names)
    return {name: low_rank(layer, i) for i, (name, layer) in enumerate(chosen.items())}


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    "parameters", [("down_proj",), ("gate_up_proj",), ("gate_up_proj", "down_proj")]
)
def test_attached_edits_do_what_they_do_in_the_parameter(model, function, parameters):
    if function == "grouped_mm":
        model.float()
    tolerance = 5e-6 if function == "grouped_mm" else 1e-12
    model.set_experts_implementation(function)
    ids, edits = tokens(), edits_of(model, parameters)
    before, state = model(ids).logits, {n: t.clone() for n, t in model.state_dict().items()}
    classes = [type(m) for m in model.modules()]
    expected = reference(model, edits, ids)
    assert apart(expected, before) > 1e-3
    with rk.attach(model, edits) as attachment:
        assert apart(model(ids).logits, expected) < tolerance
        assert all(attachment.reached.values())
        assert model.state_dict().keys() == state.keys()
        attachment.set(strength=0.0)
        assert torch.equal(model(ids).logits, before)
        attachment.set(strength=1.0)
        model.set_experts_implementation("eager")  # in the middle: nothing is lost
        assert apart(model(ids).logits, expected) < tolerance
        model.set_experts_implementation(function)
    assert torch.equal(model(ids).logits, before)
    assert [type(m) for m in model.modules()] == classes
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())


def test_one_module_of_experts_to_the_last_digits(model):
    """The model's norms are in float32, whatever the rest is: here nothing is."""
    module, edits = experts(model), edits_of(model)
    generator = torch.Generator().manual_seed(8)
    inputs = torch.randn(20, 16, generator=generator, dtype=torch.float64)
    index = torch.stack([torch.randperm(4, generator=generator)[:2] for _ in range(20)])
    weights = torch.rand(20, 2, generator=generator, dtype=torch.float64)
    before, other = module(inputs, index, weights), copy.deepcopy(model)
    rk.fuse_(other, edits)
    expected = experts(other)(inputs, index, weights)
    assert apart(expected, before) > 0.1
    with rk.attach(model, edits):
        assert apart(module(inputs, index, weights), expected) < 1e-14
    assert torch.equal(module(inputs, index, weights), before)


def dense_inputs(model, ids, mask, layer=1):
    """What each expert reads, by the definition: one token after the other."""
    module, seen = experts(model, layer), {}
    handle = module.register_forward_pre_hook(lambda _, args: seen.update(args=args))
    model(ids, attention_mask=mask)
    handle.remove()
    hidden, index, _ = seen["args"]
    found = {}
    for token, chosen in enumerate(index.tolist()):
        if not bool(mask.flatten()[token]):
            continue
        for number in chosen:
            x = hidden[token]
            weight = module.gate_up_proj[number]
            given = x @ (weight if module.is_transposed else weight.T)
            if module.has_bias:
                given = given + module.gate_up_proj_bias[number]
            found.setdefault(("gate_up_proj", number), []).append(x)
            found.setdefault(("down_proj", number), []).append(module._apply_gate(given))
    return {key: torch.stack(rows) for key, rows in found.items()}


@pytest.mark.filterwarnings("ignore:collect. no token")
@pytest.mark.parametrize("pattern", ["*.experts.*", "*.experts.*_proj"])
def test_statistics_are_of_the_tokens_that_are_routed_to_an_expert(model, pattern):
    ids, mask = tokens(), torch.ones(3, 9, dtype=torch.long)
    mask[1, 5:] = 0
    batches = [{"input_ids": ids, "attention_mask": mask}] * 2
    expected = dense_inputs(model, ids, mask)
    state, before = model.state_dict(), model(ids).logits
    moments = rk.collect(model, pattern, batches, progress=False)
    assert len(moments) == 2 * 2 * 4
    for (parameter, number), rows in expected.items():
        moment = moments[name_of(parameter, number)].together()
        assert moment.count == 2 * len(rows)
        assert apart(moment.matrix, rows.T @ rows / len(rows)) < 1e-10
    assert "Routed" not in type(experts(model)).__name__
    assert torch.equal(model(ids).logits, before)
    assert model.state_dict().keys() == state.keys()


def test_an_expert_without_tokens_is_told_of_and_has_no_statistics(model):
    ids = torch.full((1, 2), 7)  # two tokens, of two experts each
    with pytest.warns(
        rk.RankeditWarning, match=r"no token was counted in \d projections.*experts\.down.*routed"
    ):
        moments = rk.collect(model, "*.1.mlp.experts.down_proj", [ids], progress=False, mask=None)
    empty = [moment for moment in moments.values() if not moment.count]
    assert empty
    with pytest.raises(rk.StatisticsError):
        rk.Metric.from_moment(empty[0])


def test_an_edit_solved_on_an_expert_gives_its_key_its_value(model):
    name = name_of("down_proj", 2)
    layer = rk.select(model, name)[name]
    generator = torch.Generator().manual_seed(5)
    key = torch.randn(1, layer.in_features, generator=generator, dtype=torch.float64)
    value = torch.randn(1, layer.out_features, generator=generator, dtype=torch.float64)
    edit = rk.solve_edit(layer, key, value, rk.Metric.identity(layer.in_features))
    with rk.attach(model, {name: edit}):
        assert apart(rk.linear_output(layer, key), value) < 1e-9
    weight = experts(model).down_proj[2]
    matrix = weight.T if experts(model).is_transposed else weight
    assert apart(rk.linear_output(layer, key), key @ matrix.T) < 1e-12
    turned = rk.linear_output_transposed(layer, value)
    assert apart(turned, value @ matrix) < 1e-6
    ledger = rk.Ledger(layer, rk.Metric.identity(layer.in_features))
    ledger.add("one", key, value)
    assert apart(ledger.edit().delta(), edit.delta()) < 1e-9


def test_gated_edits_and_rows_of_the_fused_gate_and_up(model):
    name = name_of("gate_up_proj", 1)
    layer, ids = rk.select(model, name)[name], tokens()
    edit = low_rank(rk.Projection(layer, slice(4, 10)), 3)
    whole = rk.LowRank(nn.functional.pad(edit.up, (0, 0, 4, layer.out_features - 10)), edit.down)
    with rk.attach(model, {name: whole}):
        expected = model(ids).logits
    with rk.attach(model, {f"{name}[4:10]": edit}):
        assert apart(model(ids).logits, expected) < 1e-6
    keys, targets = edit.down, torch.zeros(2, layer.out_features, dtype=torch.float64)
    gated = rk.GatedEdit(keys, targets, rk.Metric.identity(16), gate=rk.Identity())
    linear = gated.linearised(lambda rows: rk.linear_output(layer, rows))
    with rk.attach(model, {name: gated}):
        found = model(ids).logits
    assert apart(found, reference(model, {name: linear}, ids)) < 1e-6


def test_fuse_and_unfuse(model):
    ids, edits, before = tokens(), edits_of(model), model(tokens()).logits
    state = {n: t.clone() for n, t in model.state_dict().items()}
    rk.fuse_(model, edits)
    assert apart(model(ids).logits, reference(mixture_like(model, state), edits, ids)) < 1e-12
    with pytest.raises(rk.AttachError, match="has this very edit in it already"):
        rk.fuse_(model, edits)
    experts(model).down_proj.data[0] += 1
    with pytest.raises(rk.AttachError, match=r"unfuse_: 1 weights.*experts\.down_proj\.0'"):
        rk.unfuse_(model)
    assert rk.unfuse_(model, force=True) == len(edits)
    assert torch.equal(model(ids).logits, before)
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())


def mixture_like(model, state):
    other = copy.deepcopy(model)
    other.load_state_dict(state)
    return other


def test_files_know_the_expert_and_its_weights(model, tmp_path):
    edits, path = edits_of(model), tmp_path / "edits.safetensors"
    rk.save(edits, path, model=model)
    loaded, expected = rk.load(path), reference(model, edits, tokens())
    rk.check_base(model, loaded)
    with rk.attach(model, loaded):
        assert apart(model(tokens()).logits, expected) < 1e-5
    marks = {rk.fingerprint(layer) for layer in rk.select(model, "*.1.mlp.experts.*").values()}
    assert len(marks) == 8
    experts(model).down_proj.data[3] += 1
    with pytest.raises(rk.EditFileError, match=r"experts\.down_proj\.3"):
        rk.check_base(model, loaded)


def test_copies_and_pickles_keep_edits(model):
    ids, edits = tokens(), edits_of(model)
    with rk.attach(model, edits):
        expected = model(ids).logits
        copied, pickled = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
        half = copy.deepcopy(model).float()
    for other in (copied, pickled):
        assert torch.equal(other(ids).logits, expected)
        assert rk.detach_all(other) == len(edits)
        assert torch.equal(other(ids).logits, model(ids).logits)
        assert "Routed" not in type(experts(other)).__name__
    assert apart(half(ids).logits.double(), expected) < 1e-4


def test_a_setting_for_each_row_of_a_batch_is_refused(model):
    edits = edits_of(model)
    with rk.attach(model, edits) as attachment:
        expected = model(tokens()).logits
        with pytest.raises(rk.AttachError, match=r"experts\.\w+\.\d.*tokens of all rows together"):
            attachment.set(strength=torch.tensor([0.0, 1.0, 1.0]))
        assert torch.equal(model(tokens()).logits, expected)
    with pytest.raises(rk.AttachError, match=r"Attachment.tell: .*tokens of all rows together"):
        rk.attach(model, {name_of("down_proj", 0): rk.PlacedEdit(torch.ones(1, 16), 12)})


def test_probe_sees_what_experts_read():
    model = mixture("qwen3_moe")
    inputs, vary = {"input_ids": tokens()}, {"text": {"input_ids": tokens(seed=2)}}
    readings = rk.probe(model, inputs, vary, which="*.down_proj")
    assert len(readings) == 8
    assert any(reading.changes for reading in readings.values())


def test_learned_edits_get_their_gradient(model):
    name = name_of("down_proj", 0)
    layer = rk.select(model, name)[name]
    ids, edit = tokens(), low_rank(layer).to(torch.float64)
    up, down = (t.float().requires_grad_() for t in (edit.up, edit.down))
    model.float()
    with rk.attach(model, {name: rk.LowRank(up, down)}):
        loss = model(ids).logits.square().sum()
    slope = torch.autograd.grad(loss, up)[0].double()
    step = 1e-3 * slope / slope.norm()
    values = []
    model.double()
    for sign in (1, -1):
        with rk.attach(model, {name: rk.LowRank(up.detach().double() + sign * step, edit.down)}):
            values.append(float(model(ids).logits.square().sum()))
    assert abs((values[0] - values[1]) / 2e-3 / float(slope.norm()) - 1) < 1e-2


def test_a_pattern_of_a_parameter_names_all_its_experts():
    model = mixture("qwen3_moe")
    assert list(rk.select(model, "*.1.mlp.experts.down_proj")) == [
        name_of("down_proj", number) for number in range(4)
    ]
    assert len(rk.select(model, "*down_proj*")) == 8
    assert len(rk.select(model, "*.experts.down_proj.2")) == 2
    with pytest.raises(rk.ProjectionError, match=r"experts\.down_proj\.4"):
        rk.select(model, name_of("down_proj", 4))


def test_stacks_that_no_layer_can_stand_for_are_named():
    """Another layout, quantised and expert-parallel ones are refused, as before."""
    for change in (
        lambda e: setattr(e, "_is_expert_parallel", True),
        lambda e: e.to("meta"),
        lambda e: delattr(e, "is_transposed"),
        lambda e: setattr(e, "down_proj", nn.Parameter(e.down_proj.to(torch.float8_e4m3fn))),
    ):
        model = mixture("mixtral", torch.float32)
        rk.select(model, "*.experts.down_proj")  # it was known before
        for layer in (0, 1):
            change(experts(model, layer))
        with pytest.raises(rk.ProjectionError, match="3-dimensional parameter of fused experts"):
            rk.select(model, "*.experts.down_proj")
        if hasattr(experts(model), "is_transposed") and experts(model)._is_expert_parallel:
            both = re.compile(r".*(q_proj|down_proj)")
            with pytest.warns(rk.RankeditWarning, match=r"experts.down_proj.*are left out"):
                rk.collect(model, both, [tokens()], progress=False, mask=None)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("ranks", [(2, 2), (1, 3)])
@pytest.mark.parametrize("parameters", [("down_proj",), ("gate_up_proj", "down_proj")])
def test_peft_gives_what_the_edits_do(model, parameters, ranks, tmp_path):
    peft = pytest.importorskip("peft")
    chosen = rk.select(model, [name_of(p, n, i) for p in parameters for n, i in ((0, 0), (3, 1))])
    edits = {
        name: low_rank(layer, i, ranks[i % 2]) for i, (name, layer) in enumerate(chosen.items())
    }
    attention = "model.layers.0.self_attn.o_proj"
    edits[attention] = low_rank(model.get_submodule(attention), 9, 1)
    with rk.attach(model, edits):
        expected = model(tokens()).logits
    rk.to_lora(edits, tmp_path, model=model, dtype=torch.float64)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path)
    assert apart(loaded(tokens()).logits, expected) < 1e-6
    merged = loaded.merge_and_unload()
    assert apart(merged(tokens()).logits, expected) < 1e-6
    del edits[attention]
    rk.to_lora(edits, tmp_path, model=model, dtype=torch.float64)
    with rk.attach(model, edits):
        expected = model(tokens()).logits
    alone = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path)
    assert apart(alone(tokens()).logits, expected) < 1e-6


def test_what_other_lora_files_cannot_hold_is_refused(model, tmp_path):
    edits = edits_of(model)
    with pytest.raises(rk.EditFileError, match=r"one parameter, for which this layout has no form"):
        rk.to_lora(edits, tmp_path / "a.safetensors", model=model, layout=rk.DIFFUSERS)
    with pytest.raises(rk.EditFileError, match="pass model=, which tells what it is"):
        rk.to_lora(edits, tmp_path / "a")
    rk.to_lora(edits, tmp_path / "a", model=model)
    with pytest.raises(rk.EditFileError, match=r"'target_parameters' is .*load it with PEFT"):
        rk.from_lora(tmp_path / "a")
    name = name_of("gate_up_proj", 0)
    with pytest.raises(rk.EditFileError, match="about some rows of a layer"):
        rk.to_lora(
            {f"{name}[0:4]": rk.LowRank(torch.ones(4, 1), torch.ones(1, 16))}, tmp_path / "b"
        )


def test_values_that_are_learned_at_an_expert_are_what_its_edit_gives(model):
    ids, layer = tokens(1), experts(model)
    seen = {}
    handle = layer.register_forward_pre_hook(lambda _, args: seen.update(args=args))
    plain = model(ids).logits
    handle.remove()
    hidden, index, _ = seen["args"]
    token, number = 4, int(index[4, 0])
    name = name_of("down_proj", number)
    where = torch.full((1, 9), -1)
    where[0, token] = 0
    wanted = torch.tensor([7])

    def loss():
        return nn.functional.cross_entropy(model(ids).logits[:, token], wanted, reduction="none")

    options = rk.ValueSearch(steps=15, learning_rate=0.5, clamp=None, decay=0, stop_below=0)
    found = rk.optimise_value(model, {name: rk.OutputSite(where, 1)}, loss, options=options)
    assert torch.equal(model(ids).logits, plain)
    assert "Routed" not in type(layer).__name__
    # The key: what the expert's last matrix reads at the token.
    up = rk.select(model, name_of("gate_up_proj", number))[name_of("gate_up_proj", number)]
    key = layer._apply_gate(nn.Linear.forward(up, hidden[token : token + 1]))
    down = rk.select(model, name)[name]
    edit = rk.solve_edit(down, key, found.values[name], rk.Metric.identity(12))
    before = float(loss())
    with rk.attach(model, {name: edit}):
        after = float(loss())
    assert after < before - 0.1
    with pytest.raises(rk.ShapeError, match="for each of the 9 vectors that come to the experts"):
        rk.optimise_value(model, {name: rk.OutputSite(where[:, :5], 1)}, loss)

"""Attention sinks in a language model, and the logits that statistics do not need."""

import warnings

import pytest
import torch
import transformers

import rankedit as rk

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "vocab_size": 40}
DOWN = "model.layers.*.mlp.down_proj"
SINK = "model.layers.1.mlp.down_proj"


def llama(*, sink: bool) -> transformers.LlamaForCausalLM:
    """A random Llama; with a sink, block 1 gives its first token an activation like no other."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, num_attention_heads=4, num_key_value_heads=2)
    model = transformers.LlamaForCausalLM(config).eval()
    if sink:
        with torch.no_grad():
            # No other token has a part along axis 0, along which neuron 5 of block 1 reads.
            model.model.embed_tokens.weight[:, 0] = 0
            model.model.embed_tokens.weight[1] = 0
            model.model.embed_tokens.weight[1, 0] = 50.0
            for layer in model.model.layers:
                layer.self_attn.o_proj.weight[0] = layer.mlp.down_proj.weight[0] = 0
            mlp = model.model.layers[1].mlp
            mlp.gate_proj.weight[5, 0] = mlp.up_proj.weight[5, 0] = 10.0
    return model


def texts(count=8, length=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 40, (count, 4, length), generator=generator)
    ids[..., 0] = 1
    return [{"input_ids": some} for some in ids]


def rows_read(model, name, batches):
    seen = []
    handle = model.get_submodule(name).register_forward_pre_hook(
        lambda _, args: seen.append(args[0].reshape(-1, args[0].shape[-1]))
    )
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    handle.remove()
    return torch.cat(seen).double()


def test_sinks_are_kept_apart_and_named_with_their_share():
    model, batches = llama(sink=True), texts()
    with pytest.warns(rk.RankeditWarning) as caught:
        moments = rk.collect(model, DOWN, batches, progress=False)
    (message,) = [str(w.message) for w in caught]
    x = rows_read(model, SINK, batches)
    first = x.norm(dim=1) > 50 * x.norm(dim=1).median()
    assert int(first.sum()) == 32
    share = float(x[first].square().sum() / x.square().sum())
    assert f"32 of 384 vectors that '{SINK}' read" in message
    assert f"have {share:.1%} of the energy" in message
    assert "model.layers.0" not in message
    moment = moments[SINK]
    assert (moment.count, moment.extremes.count, moment.seen) == (352, 32, 384)
    torch.testing.assert_close(moment.matrix, x[~first].T @ x[~first] / 352)
    assert moment.extreme_share == pytest.approx(share)
    assert not moments["model.layers.0.mlp.down_proj"].extremes


def test_edits_of_a_block_with_a_sink_arrive_and_leave_it_alone():
    model, batches = llama(sink=True), texts()
    with pytest.warns(rk.RankeditWarning, match="as attention sinks are"):
        moment = rk.collect(model, SINK, batches, progress=False)[SINK]
    x = rows_read(model, SINK, batches)
    first = x.norm(dim=1) > 50 * x.norm(dim=1).median()
    layer = model.get_submodule(SINK)
    key = x[~first][:1]
    value = layer(key.float()).detach().double() + 1
    for metric in (rk.Metric.from_moment(moment), rk.Metric.null_space(moment, energy=0.1)):
        edit = rk.solve_edit(layer, key, value, metric)
        assert edit.report.residual < 1e-6
        moved = (x @ edit.delta().T).norm(dim=1) / 4  # 16 outputs move by 1 at the key
        assert float(moved[first].max()) < 0.05
        assert float(metric.reach(key)) > 0.01


def test_counted_together_on_request():
    model, batches = llama(sink=True), texts()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        moment = rk.collect(model, SINK, batches, progress=False, extremes="together")[SINK]
    assert (moment.count, moment.extremes.count) == (384, 0)
    assert moment.effective_rank == pytest.approx(1, abs=1e-2)


def test_resumed_to_the_bit(tmp_path):
    model, batches = llama(sink=True), texts()
    with pytest.warns(rk.RankeditWarning):
        straight = rk.collect(model, DOWN, batches, progress=False)

    def broken():
        yield from batches[:5]
        raise OSError("no more")

    kept = rk.Checkpoint(tmp_path / "c", seconds=0)
    with pytest.raises(OSError, match="no more"):
        rk.collect(model, DOWN, broken(), progress=False, checkpoint=kept)
    with pytest.raises(rk.StatisticsError, match="its extremes is apart, this one's is together"):
        rk.collect(model, DOWN, batches, progress=False, checkpoint=kept, extremes="together")
    with pytest.warns(rk.RankeditWarning):
        resumed = rk.collect(model, DOWN, batches, progress=False, checkpoint=kept)
    for name, moment in straight.items():
        for key, tensor in moment.state().items():
            assert torch.equal(tensor, resumed[name].state()[key]), (name, key)


def test_a_model_without_sinks_is_counted_as_ever():
    model, batches = llama(sink=False), texts()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        apart = rk.collect(model, DOWN, batches, progress=False)
        together = rk.collect(model, DOWN, batches, progress=False, extremes="together")
    for name, moment in apart.items():
        assert torch.equal(moment.matrix, together[name].matrix)


class TestHead:
    def counted(self, model):
        calls = []
        model.lm_head.register_forward_hook(lambda *_: calls.append(1))
        return calls

    def test_logits_are_never_made(self):
        model = llama(sink=False)
        calls = self.counted(model)
        moments = rk.collect(model, DOWN, texts(), progress=False)
        assert not calls
        assert len(model.lm_head._forward_pre_hooks) == 0
        x = rows_read(model, "model.layers.2.mlp.down_proj", texts())
        last = moments["model.layers.2.mlp.down_proj"]
        torch.testing.assert_close(last.matrix, x.T @ x / len(x))

    def test_a_call_of_the_user_s_goes_on_in_the_first_batch(self):
        model = llama(sink=False)
        calls, ended = self.counted(model), []

        def call(batch):
            model(**batch)
            ended.append(model(**batch))  # twice: nothing may be left out

        moments = rk.collect(model, DOWN, texts(3), call=call, progress=False)
        assert len(ended) == 3
        assert len(calls) == 6
        assert {moment.seen for moment in moments.values()} == {2 * 3 * 48}

    def test_the_head_itself_can_be_read(self):
        model = llama(sink=False)
        moments = rk.collect(model, ["lm_head", SINK], texts(2), progress=False)
        assert moments["lm_head"].seen == moments[SINK].seen == 96

    def test_models_that_do_not_say_which_layer_it_is(self):
        class Bare(torch.nn.Linear):
            def get_output_embeddings(self):
                raise NotImplementedError

        batches = [{"input": torch.randn(3, 4)}]
        assert rk.collect(Bare(4, 4), "", batches, progress=False)[""].count == 3

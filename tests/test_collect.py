"""Every projection's moment is that of what it read, whatever the model does with its tensors."""

import itertools
import re

import pytest
import torch
from torch import nn

from rankedit import ProjectionError, Provenance, RankeditWarning, SecondMoment, StatisticsError
from rankedit.collecting.collect import collect
from rankedit.collecting.ranks import check_count
from rankedit.collecting.sharing import Group
from rankedit.models.projections import Projection, select

WIDTH = 6


class Attention(nn.Module):
    """Queries of x, keys and values of the context; x changes in place between the layers."""

    def __init__(self):
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.to_out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x, context=None):
        context = x if context is None else context
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)
        return self.to_out(torch.softmax(q @ k.mT, -1) @ v)


class Model(nn.Module):
    def __init__(self, layers=3):
        super().__init__()
        self.own = nn.ModuleList(Attention() for _ in range(layers))
        self.cross = nn.ModuleList(Attention() for _ in range(layers))
        self.head = nn.Linear(WIDTH, WIDTH)
        self.unused = nn.Linear(WIDTH, WIDTH)
        self.heads_run = 0

    def forward(self, x, context, attention_mask=None):
        for own, cross in zip(self.own, self.cross, strict=True):
            x = x + own(x)
            x = x + cross(x, context)
        self.heads_run += 1
        return self.head(x)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model()


def batches(count=4, *, lengths=(5,), seed=1):
    generator = torch.Generator().manual_seed(seed)
    shape = [lengths[i % len(lengths)] for i in range(count)]
    return [
        {
            "x": torch.randn(2, 5, WIDTH, generator=generator),
            "context": torch.randn(2, n, WIDTH, generator=generator),
        }
        for n in shape
    ]


def reference(model, names, data, call=None, mask=lambda name, batch: None):
    """Each projection by itself, from the inputs as they were when it was called."""
    moments = {}
    for name in names:
        seen = []
        handle = model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, seen=seen: seen.append(args[0].detach().clone())
        )
        for batch in data:
            before = len(seen)
            with torch.no_grad():
                call(batch) if call else model(**batch)
            for x in seen[before:]:
                if name not in moments:
                    moments[name] = SecondMoment(x.shape[-1])
                moments[name].update(x, mask(name, batch))
        handle.remove()
    return moments


def same(a, b):
    return a.count == b.count and a.fourth == b.fourth and torch.equal(a.matrix, b.matrix)


def distinct(moments):
    return len({id(moment) for moment in moments.values()})


def test_equals_each_projection_by_itself(model):
    data = batches()
    moments = collect(model, "*.to_*", data, progress=False)
    assert list(moments) == list(select(model, "*.to_*"))
    expected = reference(model, moments, data)
    assert all(same(moments[name], expected[name]) for name in moments)


def test_what_reads_the_same_tensor_shares_one_moment(model, monkeypatch):
    updates = []
    update = SecondMoment.update
    monkeypatch.setattr(SecondMoment, "update", lambda *args: updates.append(1) or update(*args))
    moments = collect(model, "*.to_[qkv]", batches(2), progress=False)
    cross = {id(moments[f"cross.{i}.to_{w}"]) for i in range(3) for w in "kv"}
    assert len(cross) == 1
    assert moments["own.0.to_q"] is moments["own.0.to_k"] is moments["own.0.to_v"]
    # three self-attentions, the queries of three cross-attentions, one context
    assert distinct(moments) == 7
    assert len(updates) == 2 * 7
    assert moments["own.1.to_k"].provenance.module == "own.1.to_q,own.1.to_k,own.1.to_v"


def test_the_forward_stops_after_the_last_projection(model):
    data = batches(5)
    collect(model, "own.0.to_q", data, progress=False)
    assert model.heads_run == 1  # the first batch, on which the order is learned
    calls = []
    model.own[1].register_forward_hook(lambda *_: calls.append(1))
    collect(model, "own.0.*", data, progress=False)
    assert len(calls) == 1


def test_nothing_of_the_model_changes(model):
    model.train()
    model.own[0].eval()
    before = {name: module.training for name, module in model.named_modules()}
    collect(model, "*.to_k", batches(), progress=False)
    assert before == {name: module.training for name, module in model.named_modules()}
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        collect(model, "*.to_k", [{"x": torch.randn(1, 2, 3), "context": None}], progress=False)
    assert before == {name: module.training for name, module in model.named_modules()}
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_dropout_is_off_while_collecting():
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(WIDTH, 2))
    x = torch.ones(4, WIDTH)
    assert torch.equal(
        collect(model, "1", [x], progress=False)["1"].mean, torch.ones(WIDTH).double()
    )


def test_a_loop_of_several_calls_counts_them_all(model):
    data = batches(4)
    steps = itertools.cycle([2, 1, 3, 2])

    def call(batch, steps=steps):
        for _ in range(next(steps)):
            model(**batch)

    moments = collect(model, "*.to_*", data, call=call, progress=False)
    assert moments["own.0.to_q"].count == 8 * 10
    again = itertools.cycle([2, 1, 3, 2])
    expected = reference(model, moments, data, call=lambda batch: call(batch, again))
    assert all(same(moments[name], expected[name]) for name in moments)


def test_a_shared_module_called_twice_is_not_cut_short():
    torch.manual_seed(0)
    shared = nn.Linear(WIDTH, WIDTH)
    model = nn.Sequential(shared, nn.Tanh(), shared, nn.Linear(WIDTH, 2))
    data = [torch.randn(3, WIDTH) for _ in range(3)]
    moments = collect(model, ["0", "3"], data, progress=False, products="float64")
    inputs = torch.cat([torch.cat([x, torch.tanh(shared(x))]) for x in data]).detach()
    assert moments["0"].count == 18
    torch.testing.assert_close(
        moments["0"].matrix, inputs.double().T @ inputs.double() / 18, rtol=1e-12, atol=1e-12
    )
    assert moments["3"].count == 9


class Diverging(nn.Module):
    """Its projections read one tensor, or two, as the batch says."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x, plan):
        other = x + 1
        for letter in plan:
            getattr(self, letter.lower())(x if letter.islower() else other)
        return x


@pytest.mark.parametrize(
    "plans",
    [
        ["abcd", "abCD", "abcd"],
        ["abcd", "aBcB", "Dabcd"],
        ["abcd", "aabbccdd", "aAbBcCdD"],
        ["abcd", "aab", "dcba", "d"],
        ["abAB", "abcd", "cCdDaA"],
        ["aAbB", "abcd", "DdCcBbAa"],
        ["abcd", "aAbBcdC", "ABab", "cdCD"],
        ["a", "abcd", "bcd", "aD"],
    ],
)
@pytest.mark.filterwarnings("ignore::rankedit.RankeditWarning")
def test_projections_that_part_later_are_still_right(plans):
    model = Diverging()
    generator = torch.Generator().manual_seed(0)
    data = [{"x": torch.randn(3, WIDTH, generator=generator), "plan": plan} for plan in plans]
    moments = collect(model, "*", data, progress=False)
    expected = reference(model, "abcd", data)
    for name in "abcd":
        assert moments[name].count == expected[name].count
        torch.testing.assert_close(
            moments[name].matrix, expected[name].matrix, rtol=1e-13, atol=1e-13
        )


def test_a_buffer_written_to_again_is_another_tensor():
    class Reusing(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

        def forward(self, x):
            work = x.clone()
            self.a(work)
            work += 1
            self.b(work)
            del work
            work = x * 3  # most likely at the same address
            self.c(work)

    model = Reusing()
    data = [torch.randn(5, WIDTH) for _ in range(3)]
    moments = collect(model, "*", data, progress=False)
    expected = reference(model, "abc", data, call=model)
    assert distinct(moments) == 3
    assert all(same(moments[name], expected[name]) for name in "abc")


def test_inference_mode_is_right_though_nothing_can_be_shared(model):
    data = batches()

    def call(batch):
        with torch.inference_mode():
            model(**batch)

    moments = collect(model, "*.to_*", data, call=call, progress=False)
    expected = reference(model, moments, data)
    assert all(same(moments[name], expected[name]) for name in moments)


def test_padding_is_left_out(model):
    data = batches(3, lengths=(5, 7))
    for batch in data:
        length = batch["context"].shape[1]
        batch["attention_mask"] = (torch.arange(length)[None] < torch.tensor([[3], [5]])).long()
    # x has as many tokens, so that only the caller knows whose mask it is
    own = lambda batch: batch["attention_mask"]  # noqa: E731
    moments = collect(model, "cross.*.to_k", data, mask=own, progress=False)
    assert moments["cross.0.to_k"].count == 3 * 8
    assert moments["cross.0.to_k"].provenance.tokens == 2 * (5 + 7 + 5)
    expected = reference(
        model, ["cross.0.to_k"], data, mask=lambda _, batch: batch["attention_mask"]
    )
    assert same(moments["cross.0.to_k"], expected["cross.0.to_k"])
    everything = collect(model, "cross.*.to_k", data, mask=None, progress=False)
    assert everything["cross.0.to_k"].count == 2 * 17
    chosen = collect(
        model, "cross.*.to_k", data, mask=lambda batch: batch["attention_mask"] == 0, progress=False
    )
    assert chosen["cross.0.to_k"].count == 2 * 17 - 24


def test_a_mask_fits_vectors_that_the_model_flattened():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.down = nn.Linear(WIDTH, 2)

        def forward(self, x, attention_mask):
            return self.down(x.reshape(-1, WIDTH))

    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    data = [{"x": torch.randn(2, 3, WIDTH), "attention_mask": mask}]
    moment = collect(Flat(), "down", data, progress=False)["down"]
    assert same(moment, SecondMoment(WIDTH).update(data[0]["x"], mask))


def test_masks_that_are_none_are_refused(model):
    data = batches(1)
    with pytest.raises(
        StatisticsError, match=r"must be a key of every batch, got \['x', 'context'\]"
    ):
        collect(model, "*.to_k", data, mask="padding", progress=False)
    with pytest.raises(StatisticsError, match=r"tensor of ones \(kept\) and zeros"):
        collect(model, "*.to_k", data, mask=lambda _: torch.tensor([0.0, -1e4]), progress=False)
    with pytest.raises(StatisticsError, match=r"'own.0.to_k', batch 0 \(from 0\): the mask must"):
        collect(model, "*.to_k", data, mask=lambda _: torch.ones(2, 9), progress=False)


def test_data_that_are_not_finite_are_refused_with_the_place(model):
    data = batches(3)
    data[2]["context"][0, 0, 0] = torch.nan
    with pytest.raises(StatisticsError, match=r"'cross\.\d\.to_k', batch 2 .*must be finite"):
        collect(model, "cross.*.to_k", data, progress=False)


def test_projections_that_are_never_called_are_named(model):
    with pytest.raises(
        StatisticsError, match="1 projections were not called in the first batch: 'un"
    ):
        collect(model, "unused", batches(), progress=False)
    with (
        pytest.warns(RankeditWarning, match="'unused'.*Later batches may call them"),
        pytest.raises(
            StatisticsError, match="1 projections were not called in any batch: 'unused'"
        ),
    ):
        collect(model, ["head", "unused"], batches(), progress=False)
    with pytest.raises(StatisticsError, match="not called in any batch"):
        collect(model, "head", [], progress=False)


def test_routing_that_calls_a_projection_only_later(model):
    data = batches(3)

    def call(batch):
        model(**batch)
        if batch is data[1]:
            model.unused(batch["x"])

    with pytest.warns(RankeditWarning, match="Later batches may"):
        moments = collect(model, ["head", "unused"], data, call=call, progress=False)
    assert moments["head"].count == 30
    assert moments["unused"].count == 10


def test_what_reads_no_vectors_is_refused():
    class Lookup(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Linear(3, 3)

        def forward(self, x):
            return self.table(x)

    with pytest.raises(
        ProjectionError, match="'table' must read floating-point vectors, got a int64"
    ):
        collect(Lookup(), "table", [torch.arange(3)], progress=False)
    with pytest.raises(ProjectionError, match="nearest names"):
        collect(Lookup(), "tabel", [torch.ones(3)], progress=False)


def test_channels_of_convolutions_and_keyword_arguments():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(WIDTH, 4, 1)
            self.linear = nn.Linear(WIDTH, 4)

        def forward(self, x):
            self.linear(input=x)
            return self.conv(input=x)

    x = torch.randn(2, WIDTH, 5, WIDTH)
    moments = collect(Mixed(), "*", [x], progress=False)
    assert same(moments["conv"], SecondMoment(WIDTH).update(x.movedim(1, -1)))
    assert same(moments["linear"], SecondMoment(WIDTH).update(x))


def test_takes_what_select_returns_and_parts_of_fused_projections(model):
    chosen = {"key": Projection(model.head, rows=slice(0, 2)), **select(model, "own.0.to_q")}
    moments = collect(model, chosen, batches(), progress=False)
    assert list(moments) == ["key", "own.0.to_q"]
    assert moments["key"].count == 40
    by_pattern = collect(model, re.compile(r"own\.\d\.to_q"), batches(), progress=False)
    assert same(by_pattern["own.0.to_q"], moments["own.0.to_q"])


def test_batches_of_every_kind():
    model = nn.Sequential(nn.Linear(WIDTH, 2))
    x = torch.randn(4, WIDTH)
    for batch in (x, (x,), [x], {"input": x}):
        moments = collect(model, "0", [batch], mask=None, progress=False)
        assert same(moments["0"], SecondMoment(WIDTH).update(x))


def test_a_compiled_model_is_watched_all_the_same(model):
    compiled = torch.compile(model, backend="eager")
    data = batches()
    with torch.no_grad():
        compiled(**data[0])
    moments = collect(compiled, "*.to_k", data, progress=False)
    expected = collect(model, "*.to_k", data, progress=False)
    assert all(same(moments[name], expected[name]) for name in expected)


def test_provenance_is_recorded(model):
    given = Provenance(model="toy", corpus="random", tokenizer="none")
    moment = collect(
        model.bfloat16(),
        "head",
        [{k: v.bfloat16() for k, v in batch.items()} for batch in batches()],
        provenance=given,
        progress=False,
    )["head"]
    record = moment.provenance
    assert (record.model, record.corpus, record.tokenizer) == ("toy", "random", "none")
    assert (record.module, record.dtype, record.tokens) == ("head", "bfloat16", 40)
    assert len(record.weights) == 64
    with torch.no_grad():
        model.own[2].to_q.weight[0, 0] += 1
    again = collect(
        model,
        "head",
        [{k: v.bfloat16() for k, v in batch.items()} for batch in batches()],
        progress=False,
    )["head"]
    assert again.provenance.weights != record.weights


def test_progress_is_plain_where_there_is_no_terminal(model, capsys):
    collect(model, "*.to_k", batches())
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(r"collect: 4/4, 40 vectors, 0:00:\d\d elapsed\n", captured.err)
    collect(model, "*.to_k", (batch for batch in batches()))
    assert re.fullmatch(
        r"collect: 4, 40 vectors, 0:00:\d\d elapsed, \S+ per second\n", capsys.readouterr().err
    )


def test_a_tensor_overwritten_before_all_have_read_it_is_refused():
    class Overwriting(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(WIDTH, 2), nn.Linear(WIDTH, 2)

        def forward(self, x, overwrite):
            work = x.clone()
            self.a(work)
            if overwrite:
                work += 1
            self.b(work)

    x = torch.ones(2, WIDTH)
    data = [{"x": x, "overwrite": False}, {"x": x, "overwrite": True}]
    with pytest.raises(StatisticsError, match="what 'a' read was overwritten in place before"):
        collect(Overwriting(), "*", data, progress=False)


def test_vectors_lost_between_processes_are_noticed():
    moment = SecondMoment(2).update(torch.ones(3, 2))
    with pytest.raises(StatisticsError, match=r"read 4 vectors at 'a', but their sum has 3"):
        check_count(Group(moment, ["a"], kept=4))

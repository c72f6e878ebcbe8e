"""Values found by gradient: what ROME's loop finds, for each request as if it were alone."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from rankedit import (
    GatedEdit,
    Identity,
    Metric,
    ProjectionError,
    ShapeError,
    SolveError,
    solve_edit,
)
from rankedit.learning.values import OutputSite, ValueSearch, ValueSearchError, optimise_value
from rankedit.models.patching import attach
from rankedit.models.swapping import slots_of

WORDS, WIDTH, LENGTH = 11, 8, 5


class Tiny(nn.Module):
    """A causal model in which later tokens read what the edited projection writes."""

    def __init__(self, *, checkpointed=False):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.mix, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WORDS)
        self.head.weight.data *= 6  # or no prediction can be sure
        self.checkpointed = checkpointed

    def block(self, x):
        return x + self.down(torch.tanh(self.up(x)))

    def forward(self, ids):
        x = self.embed(ids)
        x = checkpoint(self.block, x, use_reentrant=False) if self.checkpointed else self.block(x)
        x = torch.tanh(self.mix(x.cumsum(1)))
        return self.head(x)


@pytest.fixture
def model():
    return Tiny()


def requests(count=3):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(WORDS, (count, LENGTH), generator=generator)
    targets = torch.randint(WORDS, (count,), generator=generator)
    where = torch.full((count, LENGTH), -1)
    where[torch.arange(count), torch.tensor([1, 2, 3, 0])[:count]] = torch.arange(count)
    return ids, targets, where


def loss_of(model, ids, targets):
    return lambda: cross_entropy(model(ids)[:, -1], targets, reduction="none")


def same_as_before(model, before):
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name][0])
        assert parameter.requires_grad is before[name][1]
        assert parameter.grad is before[name][2]
    assert not any(slots_of(module) for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


def state_of(model):
    return {n: (p.detach().clone(), p.requires_grad, p.grad) for n, p in model.named_parameters()}


def reference(model, ids, target, position, options):
    """ROME's search for one request, written out: the shift is put into the output by a hook."""
    shift = torch.zeros(WIDTH, requires_grad=True)
    adam = torch.optim.Adam([shift], lr=options.learning_rate)
    initial, first = [], []

    def hook(_module, _inputs, output):
        initial.append(output[0, position].detach().clone())
        return torch.cat(
            [
                output[:, :position],
                output[:, position : position + 1] + shift,
                output[:, position + 1 :],
            ],
            1,
        )

    handle = model.down.register_forward_hook(hook)
    for step in range(options.steps):
        adam.zero_grad()
        logits = model(ids[None])
        now = logits[:, 0].log_softmax(-1)
        first.append(now.detach())
        divergence = (now.exp() * (now - first[0])).sum()
        loss = cross_entropy(logits[:, -1], target[None]) + options.kl * divergence
        loss = loss + options.decay * shift.norm() / initial[0].norm() ** 2
        if loss < options.stop_below or step == options.steps - 1:
            break
        shift.grad = torch.autograd.grad(loss, shift)[0]
        adam.step()
        limit = options.clamp * initial[0].norm()
        if shift.norm() > limit:
            shift.data *= limit / shift.norm()
    handle.remove()
    value = initial[0] + shift - model.down.bias
    return value.detach(), float(loss.detach())


@pytest.mark.parametrize(
    "options",
    [
        ValueSearch(),
        ValueSearch(learning_rate=0.1, clamp=0.5, decay=0.05, kl=2.0),
        ValueSearch(steps=40, stop_below=0.4, clamp=10.0, decay=0.01),
    ],
)
def test_is_romes_search_for_each_request_alone(model, options):
    ids, targets, where = requests()

    def loss():
        logits = model(ids)
        return cross_entropy(logits[:, -1], targets, reduction="none"), logits[:, 0]

    found = optimise_value(model, {"down": OutputSite(where, 3)}, loss, options=options)
    for number in range(3):
        position = int((where[number] == number).nonzero())
        value, total = reference(model, ids[number], targets[number], position, options)
        torch.testing.assert_close(found.values["down"][number], value, rtol=1e-3, atol=1e-4)
        stopped = found.totals[:, number]
        assert math.isclose(float(stopped[stopped.isfinite()][-1]), total, rel_tol=1e-3)


def test_the_value_found_is_what_an_edit_then_gives(model):
    ids, targets, where = requests()
    loss = loss_of(model, ids, targets)
    options = ValueSearch(steps=300, learning_rate=0.1, decay=0.0, clamp=None, stop_below=0.5)
    found = optimise_value(model, {"down": OutputSite(where, 3)}, loss, options=options)
    assert found.reasons == ("low enough",) * 3
    assert (found.totals[0] > 1).all()
    keys = torch.tanh(model.up(model.embed(ids)))[where >= 0].detach()
    given = (model.down(keys) - model.down.bias).detach()
    torch.testing.assert_close(found.initial["down"], given)
    edit = solve_edit(
        model.down,
        keys,
        found.values["down"],
        Metric.identity(2 * WIDTH),
    )
    with attach(model, {"down": edit}), torch.no_grad():
        torch.testing.assert_close(model.down(keys) - model.down.bias, found.values["down"])


@pytest.mark.parametrize("kind", ["output", "gated"])
def test_requests_of_a_batch_do_not_disturb_each_other(model, kind):
    ids, targets, where = requests()
    options = ValueSearch(steps=12, learning_rate=0.1, stop_below=1.0)

    def search(chosen):
        if kind == "output":
            numbers = torch.full_like(where[chosen], -1)
            for row, number in enumerate(chosen):
                numbers[row][where[number] == number] = row
            site = OutputSite(numbers, len(chosen))
        else:
            keys = torch.eye(2 * WIDTH)[chosen] * 5
            metric = Metric.identity(
                2 * WIDTH
            )  # a sigmoid gate lets a little through to other keys
            site = GatedEdit(keys, model.down(keys).detach(), metric, Identity())
        loss = loss_of(model, ids[chosen], targets[chosen])
        if kind == "gated":  # request r reads key r alone

            def loss():
                given = model.head(model.down(torch.eye(2 * WIDTH)[chosen] * 5))
                return cross_entropy(given, targets[chosen], reduction="none")

        return optimise_value(model, {"down": site}, loss, options=options)

    together = search([0, 1, 2])
    for number in range(3):
        alone = search([number])
        torch.testing.assert_close(
            together.values["down"][number], alone.values["down"][0], rtol=1e-4, atol=1e-5
        )
        assert together.reasons[number] == alone.reasons[0]


def test_nothing_else_in_the_model_changes(model):
    ids, targets, where = requests()
    model.head.weight.requires_grad_(False)
    model.up.weight.grad = torch.ones_like(model.up.weight)
    before = state_of(model)
    loss = loss_of(model, ids, targets)
    sites = {"down": OutputSite(where, 3), "mix": gated(model.mix, WIDTH)}
    seen = []

    def watched():
        seen.append([p.requires_grad for p in model.parameters()])
        return loss()

    optimise_value(model, sites, watched, options=ValueSearch(steps=3))
    assert not any(any(flags) for flags in seen)
    same_as_before(model, before)

    def failing():
        raise MemoryError("too large")

    with pytest.raises(MemoryError):
        optimise_value(model, sites, failing)
    same_as_before(model, before)


def gated(layer, width, count=3, scale=3.0, **options):
    keys = scale * torch.eye(width)[:count]
    return GatedEdit(keys, layer(keys).detach(), Metric.identity(width), **options)


def test_targets_of_gated_edits_are_learned(model):
    edit = gated(model.mix, WIDTH)
    wanted = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(3))
    inputs = edit.keys.clone()
    found = optimise_value(
        model,
        {"mix": edit},
        lambda: (model.mix(inputs) - wanted).square().sum(1),
        options=ValueSearch(steps=400, learning_rate=0.05, clamp=None, decay=0, stop_below=1e-5),
    )
    assert found.reasons == ("low enough",) * 3
    with attach(model, found.edits):
        torch.testing.assert_close(model.mix(inputs).detach(), wanted, atol=1e-2, rtol=0)
    assert torch.equal(found.edits["mix"].targets, found.values["mix"])
    assert torch.equal(found.edits["mix"].keys, edit.keys)
    assert not found.edits["mix"].targets.requires_grad
    assert torch.equal(found.initial["mix"], edit.targets)
    assert found.edits["mix"].statistics == edit.statistics


def test_gradients_of_keys_are_those_of_the_whole_edit():
    from rankedit.learning.sites import Sites

    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(4, 3)).double()
    factor = torch.randn(4, 4).double()
    metric = Metric.from_matrix(factor @ factor.T + torch.eye(4))
    keys, targets = torch.randn(2, 4).double(), torch.randn(2, 3).double()
    x = torch.randn(5, 4).double()
    weights = torch.randn(5, 3).double()
    placed = Sites(layer, {"0": GatedEdit(keys, targets, metric)}, {"0": metric})
    (leaf,) = placed.keys()
    with placed.installed() as evaluating, evaluating():
        (gradient,) = torch.autograd.grad((layer(x) * weights).sum(), leaf)

    def loss(moved):
        with attach(layer, {"0": GatedEdit(moved, targets, metric)}), torch.no_grad():
            return float((layer(x) * weights).sum())

    step = 1e-2
    for row in range(2):
        for column in range(4):
            change = torch.zeros(2, 4).double()
            change[row, column] = step
            slope = (loss(keys + change) - loss(keys - change)) / (2 * step)
            assert float(gradient[row, column]) == pytest.approx(slope, rel=2e-2, abs=2e-3)


def test_keys_are_learned_under_their_metric(model):
    metric = Metric.identity(WIDTH, scale=2.0)
    keys = torch.eye(WIDTH)[:2] * 2 + 0.3
    edit = GatedEdit(keys, model.mix(keys).detach() + 1, metric)
    inputs = torch.eye(WIDTH)[:2] * 2
    wanted = model.mix(inputs).detach() + 1
    options = ValueSearch(
        steps=40, learning_rate=1e-3, key_learning_rate=0.05, clamp=None, decay=0, stop_below=None
    )
    loss = lambda: (model.mix(inputs) - wanted).square().sum()  # noqa: E731
    found = optimise_value(model, {"mix": edit}, loss, options=options, metrics={"mix": metric})
    fixed = optimise_value(model, {"mix": edit}, loss, options=options)
    assert found.totals[-1] < 0.5 * fixed.totals[-1]
    assert fixed.keys == {}
    learned = found.edits["mix"]
    assert torch.equal(learned.keys, found.keys["mix"])
    torch.testing.assert_close(learned.images.float(), metric.solve(learned.keys).float())
    with attach(model, found.edits), torch.no_grad():
        assert float(loss()) == pytest.approx(float(found.totals[-1]), rel=1e-3)


def test_several_layers_and_kinds_in_one_search(model):
    ids, targets, where = requests()
    sites = {"down": OutputSite(where, 3), "mix": gated(model.mix, WIDTH, scale=0.5)}
    options = ValueSearch(steps=30, learning_rate=0.05, decay=0.0, stop_below=None)
    loss = loss_of(model, ids, targets)
    both = optimise_value(model, sites, loss, options=options)
    one = optimise_value(model, {"down": sites["down"]}, loss, options=options)
    assert both.values.keys() == {"down", "mix"}
    assert both.edits.keys() == {"mix"}
    assert not torch.equal(both.values["mix"], both.initial["mix"])
    assert both.totals[-1].sum() < one.totals[-1].sum()


def test_one_number_for_all_values(model):
    ids, targets, where = requests()
    found = optimise_value(
        model,
        {"down": OutputSite(where, 3)},
        lambda: loss_of(model, ids, targets)().mean(),
        options=ValueSearch(steps=6, learning_rate=0.05, decay=0, stop_below=None),
    )
    assert found.totals.shape == (6, 1)
    assert found.reasons == ("steps",)
    assert found.totals[-1] < found.totals[0]


def test_several_contexts_of_one_request_share_its_shift(model):
    ids, _, _ = requests(4)
    where = torch.full((4, LENGTH), -1)
    where[0, 1], where[1, 2], where[2, 0], where[3, 3] = 0, 0, 1, 1
    targets = torch.tensor([2, 2, 5, 5])

    def loss():
        return cross_entropy(model(ids)[:, -1], targets, reduction="none").reshape(2, 2).mean(1)

    found = optimise_value(
        model,
        {"down": OutputSite(where, 2)},
        loss,
        options=ValueSearch(steps=10, learning_rate=0.05, decay=0),
    )
    keys = torch.tanh(model.up(model.embed(ids))).detach()
    first = torch.stack([keys[0, 1], keys[2, 0]])  # the bare prompts come first
    given = (model.down(first) - model.down.bias).detach()
    torch.testing.assert_close(found.initial["down"], given)
    assert (found.totals[-1] < found.totals[0]).all()


def test_where_may_differ_from_call_to_call(model):
    ids, targets, where = requests()
    places = {"now": where}

    def loss():
        places["now"] = None
        plain = model(ids[:, :2]).detach()
        assert torch.equal(plain, untouched)
        places["now"] = where
        return loss_of(model, ids, targets)()

    with torch.no_grad():
        untouched = model(ids[:, :2])
    site = OutputSite(lambda: places["now"], 3)
    found = optimise_value(model, {"down": site}, loss, options=ValueSearch(steps=5))
    fixed = optimise_value(
        model,
        {"down": OutputSite(where, 3)},
        loss_of(model, ids, targets),
        options=ValueSearch(steps=5),
    )
    assert torch.equal(found.values["down"], fixed.values["down"])


def test_the_change_stays_within_the_clamp(model):
    ids, targets, where = requests()
    options = ValueSearch(steps=15, learning_rate=0.1, clamp=0.25, decay=0, stop_below=None)
    loss = loss_of(model, ids, targets)
    found = optimise_value(model, {"down": OutputSite(where, 3)}, loss, options=options)
    change = found.values["down"] - found.initial["down"]
    limit = 0.25 * (found.initial["down"] + model.down.bias).norm(dim=1).detach()
    assert (change.norm(dim=1) <= limit * (1 + 1e-5)).all()
    assert (change.norm(dim=1) > 0.9 * limit).any()


def test_the_divergence_holds_the_other_predictions(model):
    ids, targets, where = requests()
    other = ids[:, [0, 2]].flip(1)

    def search(kl):
        shifts = torch.full((6, LENGTH), -1)
        shifts[:3] = where
        shifts[3:, 0] = torch.arange(3)
        batch = torch.cat([ids, ids.flip(1)])
        logits = []

        def loss():
            given = model(batch)[:, -1]
            logits.append(given[3:].log_softmax(-1).detach())
            return cross_entropy(given[:3], targets, reduction="none"), given[3:]

        options = ValueSearch(steps=30, learning_rate=0.1, kl=kl, decay=0, stop_below=None)
        optimise_value(model, {"down": OutputSite(shifts, 3)}, loss, options=options)
        first, last = logits[0], logits[-1]
        return float((last.exp() * (last - first)).sum())

    assert other.shape == (3, 2)
    assert search(100.0) < 0.05 * search(0.0)


def test_requests_stop_one_by_one(model):
    ids, targets, where = requests()
    loss = loss_of(model, ids, targets)
    site = {"down": OutputSite(where, 3)}
    free = optimise_value(model, site, loss, options=ValueSearch(steps=30, stop_below=None))
    level = float(free.totals[10].median())
    steps = []
    found = optimise_value(
        model,
        site,
        loss,
        options=ValueSearch(steps=30, stop_below=level),
        on_step=lambda report: steps.append((report.step, report.stopped.clone())),
    )
    assert "low enough" in found.reasons
    for number, reason in enumerate(found.reasons):
        if reason == "low enough":
            below = int((found.totals[:, number] < level).nonzero()[0])
            # from there on its value, and with it its loss, stays as it was
            assert torch.allclose(found.totals[below:, number], found.totals[below, number])
            assert [bool(stopped[number]) for _, stopped in steps][below] is True
    assert [step for step, _ in steps] == list(range(len(found.totals)))


def test_stops_without_progress_or_when_told(model):
    ids, targets, where = requests()
    site = {"down": OutputSite(where, 3)}
    options = ValueSearch(steps=200, learning_rate=20.0, patience=5, stop_below=None, decay=0)
    found = optimise_value(model, site, loss_of(model, ids, targets), options=options)
    assert set(found.reasons) == {"no progress"}
    assert len(found.totals) < 200
    told = optimise_value(
        model,
        site,
        loss_of(model, ids, targets),
        options=ValueSearch(steps=9, stop_below=None),
        on_step=lambda report: torch.tensor([report.step == 1, False, report.step == 4]),
    )
    assert told.reasons == ("told to", "steps", "told to")
    assert len(told.totals) == 9
    at_once = optimise_value(model, site, loss_of(model, ids, targets), on_step=lambda _: True)
    assert at_once.reasons == ("told to",) * 3
    assert torch.equal(at_once.values["down"], at_once.initial["down"])


def test_a_loss_that_is_not_finite_keeps_the_best(model):
    ids, targets, where = requests()
    calls = []
    plain = loss_of(model, ids, targets)

    def loss():
        calls.append(1)
        return plain() * torch.tensor([1.0, math.nan if len(calls) == 5 else 1.0, 1.0])

    options = ValueSearch(steps=9, learning_rate=0.05, decay=0, stop_below=None)
    before = state_of(model)
    with pytest.raises(
        ValueSearchError, match=r"loss of requests \[1\] became NaN.* step 4"
    ) as caught:
        optimise_value(model, {"down": OutputSite(where, 3)}, loss, options=options)
    same_as_before(model, before)
    best = caught.value.best
    assert best.totals.shape == (4, 3)
    reached = optimise_value(
        model, {"down": OutputSite(where, 3)}, plain, options=replace(options, steps=4)
    )
    lowest = best.totals.argmin(0)
    assert (lowest == 3).any()
    for number in range(3):
        if lowest[number] == 3:
            assert torch.equal(best.values["down"][number], reached.values["down"][number])
    calls[:] = [1] * 4
    with pytest.raises(ValueSearchError, match="at step 0") as caught:
        optimise_value(model, {"down": OutputSite(where, 3)}, loss, options=options)
    assert caught.value.best is None


def test_a_gradient_that_is_not_finite_is_refused(model):
    ids, _, where = requests()
    with pytest.raises(ValueSearchError, match=r"gradient of requests \[0, 1, 2\]"):
        optimise_value(
            model,
            {"down": OutputSite(where, 3)},
            # the derivative of a square root at zero
            lambda: (model(ids)[:, -1] * 0).square().sum(1).sqrt() + 1,
        )


def test_is_deterministic(model):
    ids, targets, where = requests()
    sites = {"down": OutputSite(where, 3), "mix": gated(model.mix, WIDTH)}
    found = [
        optimise_value(model, sites, loss_of(model, ids, targets), options=ValueSearch(steps=6))
        for _ in range(2)
    ]
    assert all(torch.equal(found[0].values[name], found[1].values[name]) for name in sites)
    assert torch.equal(found[0].totals, found[1].totals)


def test_checkpointed_compiled_and_half_precision_models(model):
    ids, targets, where = requests()
    options = ValueSearch(steps=6, learning_rate=0.05, decay=0, stop_below=None)
    sites = {"down": OutputSite(where, 3), "mix": gated(model.mix, WIDTH)}
    plain = optimise_value(model, sites, loss_of(model, ids, targets), options=options)
    saving = Tiny(checkpointed=True)
    saved = optimise_value(saving, sites, loss_of(saving, ids, targets), options=options)
    assert torch.equal(saved.values["down"], plain.values["down"])
    assert torch.equal(saved.values["mix"], plain.values["mix"])
    compiled = torch.compile(model, backend="eager")
    compiled(ids)
    found = optimise_value(compiled, sites, loss_of(compiled, ids, targets), options=options)
    assert torch.equal(found.values["down"], plain.values["down"])
    half = Tiny().bfloat16()
    found = optimise_value(half, sites, loss_of(half, ids, targets), options=options)
    assert found.values["down"].dtype == torch.float32
    torch.testing.assert_close(found.totals[0], plain.totals[0], rtol=0.05, atol=0.05)
    assert (found.totals[-1] < found.totals[0]).any()


def test_channels_of_a_convolution():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))
    x = torch.randn(1, 3, 2, 2)
    where = torch.tensor([[[-1, 0], [1, -1]]])
    wanted = torch.tensor([[1.0, 2.0], [-1.0, 0.5]])

    def loss():
        out = model(x).movedim(1, -1)
        return (torch.stack([out[0, 0, 1], out[0, 1, 0]]) - wanted).square().sum(1)

    options = ValueSearch(steps=300, learning_rate=0.1, clamp=None, decay=0, stop_below=1e-4)
    found = optimise_value(model, {"0": OutputSite(where, 2)}, loss, options=options)
    assert found.reasons == ("low enough", "low enough")
    first = (model[0](x).movedim(1, -1) - model[0].bias).detach()
    torch.testing.assert_close(found.initial["0"], torch.stack([first[0, 0, 1], first[0, 1, 0]]))


def test_refusals(model):
    ids, targets, where = requests()
    loss = loss_of(model, ids, targets)
    site = OutputSite(where, 3)
    with pytest.raises(ProjectionError, match="nearest names are down"):
        optimise_value(model, {"dwon": site}, loss)
    with pytest.raises(SolveError, match=r"needs at least one site.*got no sites"):
        optimise_value(model, {}, loss)
    with pytest.raises(SolveError, match=r"metrics for \['down'\], which have no GatedEdit"):
        optimise_value(model, {"down": site}, loss, metrics={"down": Metric.identity(WIDTH)})
    with pytest.raises(ShapeError, match="integer for each vector of its output"):
        optimise_value(model, {"down": OutputSite(where[:2], 3)}, loss)
    with pytest.raises(ShapeError, match=r"numbers from -1 \(none\) to 1, got -1 to 2"):
        optimise_value(model, {"down": OutputSite(where, 2)}, loss)
    with pytest.raises(SolveError, match=r"requests \[3\] of 'down' occur nowhere in `where`"):
        optimise_value(model, {"down": OutputSite(where, 4)}, lambda: loss().mean())
    with pytest.raises(ShapeError, match="one entry for each of the 3 values"):
        optimise_value(model, {"down": site}, lambda: loss()[:2])
    with pytest.raises(ShapeError, match="must return one number or a vector"):
        optimise_value(model, {"down": site}, lambda: loss().mean().item())
    with pytest.raises(ShapeError, match=r"logits must be \[n·k, classes\] for n = 3"):
        optimise_value(model, {"down": site}, lambda: (loss(), model(ids)[0]))
    with pytest.raises(SolveError, match="does not depend on the values at 'down'"):
        optimise_value(model, {"down": site}, lambda: loss().detach())
    other = {"down": site, "up": gated(model.up, WIDTH)}
    with pytest.raises(SolveError, match="1 projections were not called by the loss: 'up'"):
        optimise_value(model, other, lambda: model.down(torch.ones(3, LENGTH, 16)).sum((1, 2)))
    learned = {"up": gated(model.up, WIDTH)}
    for sites, metrics, name in (
        ({"down": site}, None, "down"),
        (learned, None, "up"),
        (learned, {"up": Metric.identity(WIDTH)}, "up"),
    ):
        with pytest.raises(SolveError, match=f"1 projections were not called by the loss: '{name}"):
            optimise_value(model, sites, lambda: torch.ones(()).requires_grad_(), metrics=metrics)
    with torch.no_grad():
        model.down.weight.zero_()
        model.down.bias.zero_()
    with pytest.raises(SolveError, match="an initial value of 'down' is zero"):
        optimise_value(model, {"down": site}, loss)
    with pytest.raises(ShapeError, match="count must be at least 1, got 0"):
        OutputSite(where, 0)
    with pytest.raises(ShapeError, match=r"must be positive, .* got {'clamp': -1}"):
        ValueSearch(clamp=-1)
    with pytest.raises(ShapeError, match=r"got {'kl': -0.5}"):
        ValueSearch(kl=-0.5)
    with pytest.raises(ShapeError, match=r"steps and patience must be .* got {'steps': 2.5}"):
        ValueSearch(steps=2.5)
    with pytest.raises(ShapeError, match="stop_below must be a int or float, got str 'low'"):
        ValueSearch(stop_below="low")


def test_a_scale_replaces_the_initial_value_in_everything(model):
    ids, targets, where = requests()
    scale = torch.tensor([0.5, 2.0, 8.0])
    site, loss = OutputSite(where, 3, scale), loss_of(model, ids, targets)
    one = ValueSearch(steps=2, learning_rate=0.1, clamp=None, decay=0, stop_below=None)
    found = optimise_value(model, {"down": site}, loss, options=one)
    moved = found.values["down"] - found.initial["down"]
    # The first step of Adam is as long as its rate, in every coordinate.
    expected = (0.1 * scale / WIDTH**0.5)[:, None].expand_as(moved)
    torch.testing.assert_close(moved.abs(), expected, rtol=1e-3, atol=1e-5)
    many = replace(one, steps=15, learning_rate=0.5, clamp=0.25)
    found = optimise_value(model, {"down": site}, loss, options=many)
    lengths = (found.values["down"] - found.initial["down"]).norm(dim=1)
    assert (lengths <= 0.25 * scale * (1 + 1e-5)).all()
    assert (lengths > 0.2 * scale).any()
    weighed = replace(one, decay=0.3)
    decayed = optimise_value(model, {"down": site}, loss, options=weighed)
    lengths = (decayed.values["down"] - decayed.initial["down"]).norm(dim=1)
    plain = optimise_value(model, {"down": site}, loss, options=one)
    expected = plain.totals[1] + 0.3 * lengths / scale
    torch.testing.assert_close(decayed.totals[1], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [torch.ones(2), torch.tensor([1.0, 0.0, 1.0])])
def test_a_scale_is_one_length_for_each_request(scale):
    with pytest.raises(ShapeError, match=r"scale must be \[3\], one positive finite length"):
        OutputSite(torch.zeros(1, dtype=torch.long), 3, scale)


def test_a_factor_is_the_part_of_the_shift_that_a_token_gets(model):
    ids, targets, where = requests()
    options = ValueSearch(steps=2, learning_rate=0.1, clamp=None, decay=0, stop_below=None)
    half = torch.full(where.shape, 0.5)
    loss, plain = loss_of(model, ids, targets), OutputSite(where, 3)
    whole = optimise_value(model, {"down": plain}, loss, options=options)
    shift = (whole.values["down"] - whole.initial["down"]).detach()
    site = OutputSite(where, 3, factor=lambda: half)
    found = optimise_value(model, {"down": site}, loss, options=options)
    # Adam's first step is as long, whatever the factor; what it does is that of half the shift.
    torch.testing.assert_close(found.values["down"], whole.values["down"], rtol=1e-3, atol=1e-4)
    expected = []
    for number in range(3):

        def add(_module, _args, output, number=number):
            moved = output.clone()
            moved[where == number] += 0.5 * shift[number]
            return moved

        handle = model.down.register_forward_hook(add)
        expected.append(loss()[number].detach())
        handle.remove()
    torch.testing.assert_close(found.totals[1], torch.stack(expected), rtol=1e-4, atol=1e-5)
    wrong = OutputSite(where, 3, factor=half[:, :2])
    with pytest.raises(ShapeError, match=r"factor of 'down' must hold a finite number for each of"):
        optimise_value(model, {"down": wrong}, loss, options=options)

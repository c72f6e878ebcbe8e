"""Gates: openings, parameters, normalisation."""

from dataclasses import dataclass

import pytest
import torch

import rankedit as rk
from rankedit import gates
from tests.test_edits import TwoDevices, elsewhere


@dataclass(frozen=True)
class Step(rk.Gate):
    name = "step"
    at: float | torch.Tensor = 0.5

    def opening(self, similarity, parameters):
        return (similarity >= parameters["at"]).to(similarity)


S = torch.linspace(-0.5, 1.5, 21)


class TestSigmoid:
    def test_is_the_paper_s(self):
        gate = rk.Sigmoid(bias=0.6, temperature=0.15)
        expected = 1 / (1 + torch.exp(-(S - 0.6) / 0.15))
        torch.testing.assert_close(gates.opening(gate, S), expected)
        assert float(gates.opening(gate, torch.tensor(0.6))) == 0.5

    def test_tends_to_a_step(self):
        sharp = gates.opening(rk.Sigmoid(bias=0.45, temperature=1e-4), S)
        torch.testing.assert_close(sharp, gates.opening(Step(0.45), S))

    @pytest.mark.parametrize("temperature", [0.0, -1.0, torch.tensor([0.1, 0.0]), float("nan")])
    def test_needs_a_positive_temperature(self, temperature):
        with pytest.raises(rk.ShapeError, match=r"temperature must be positive, got .*; use"):
            rk.Sigmoid(temperature=temperature)


def test_identity_is_the_identity_on_the_coordinates():
    assert torch.equal(gates.opening(rk.Identity(), S), S)
    assert (rk.Identity.reads, rk.Sigmoid.reads) == ("coordinates", "similarity")


@pytest.mark.parametrize("alike", [0.0, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("normalised", [False, True])
def test_joint_gates_open_for_their_own_key_only_however_alike_keys_are(alike, normalised):
    keys = torch.tensor([[1.0, 0.0, 0.0], [alike, (1 - alike**2) ** 0.5, 0.0]])
    targets = torch.eye(2)
    metric = rk.Metric.identity(3)
    gate = rk.JointSigmoid(bias=0.7, temperature=0.15)
    joint = rk.GatedEdit(keys, targets, metric, gate, normalised=normalised)
    shut, wide = joint.opening(torch.tensor([0.0, 0.0, 1.0]))[0], joint.opening(keys[0])[0]
    wanted = torch.stack([wide, shut, shut, wide]).reshape(2, 2)
    torch.testing.assert_close(joint.opening(keys), wanted, rtol=1e-3, atol=1e-5)
    assert float(wide) > 0.88 > 0.01 > float(shut)
    apart = joint.with_gate(rk.Sigmoid(bias=0.7, temperature=0.15))
    assert (float(apart.opening(keys)[0, 1]) > 0.01) == (alike > 0)


def test_a_joint_gate_of_one_key_is_the_plain_one():
    key, x = torch.tensor([[1.0, 2.0]]), torch.randn(7, 2, generator=torch.Generator())
    edits = [
        rk.GatedEdit(key, torch.ones(1, 1), rk.Metric.identity(2), kind(0.6, 0.2))
        for kind in (rk.Sigmoid, rk.JointSigmoid)
    ]
    assert torch.equal(edits[0].opening(x), edits[1].opening(x))


class TestParameters:
    def test_are_float32_tensors_by_name(self):
        found = gates.parameters(rk.Sigmoid(bias=torch.tensor([0.5, 0.6]).double()))
        assert {n: (t.dtype, list(t.shape)) for n, t in found.items()} == {
            "bias": (torch.float32, [2]),
            "temperature": (torch.float32, []),
        }
        assert gates.parameters(rk.Identity()) == {}

    def test_one_for_each_key(self):
        gate = gates.per_key(rk.Sigmoid(bias=torch.tensor([0.5, 0.6])), 2)
        assert gate.bias.tolist() == pytest.approx([0.5, 0.6])
        assert gate.temperature.tolist() == pytest.approx([0.1, 0.1])
        similarity = torch.tensor([[0.5, 0.6]])
        assert gates.opening(gate, similarity).tolist() == [[0.5, 0.5]]

    @pytest.mark.parametrize("bias", [float("nan"), torch.ones(2, 2)])
    def test_that_are_none_are_refused(self, bias):
        with pytest.raises(rk.ShapeError, match="Sigmoid: bias must be a finite number or a"):
            gates.parameters(rk.Sigmoid(bias=bias))

    def test_come_from_the_tensors_not_the_fields(self):
        gate = rk.Sigmoid(bias=0.75)
        moved = gate.opening(torch.tensor(0.3), {"bias": torch.tensor(0.3), "temperature": S[-1]})
        assert float(moved) == 0.5


class TestNormalised:
    def test_is_exactly_closed_and_open(self):
        gate = rk.Sigmoid(bias=0.7, temperature=0.15)
        ends = gates.normalised_opening(gate, torch.tensor([0.0, 1.0]), gates.parameters(gate))
        assert ends.tolist() == [0.0, 1.0]
        plain = gates.opening(gate, torch.tensor([0.0, 1.0]))
        assert plain.tolist() == pytest.approx([0.0093, 0.8808], abs=1e-4)

    def test_keeps_the_shape(self):
        gate = rk.Sigmoid()
        plain = gates.opening(gate, S)
        moved = gates.normalised_opening(gate, S, gates.parameters(gate))
        slope, intercept = torch.tensor([(moved[-1] - moved[0]) / (plain[-1] - plain[0]), 0.0])
        torch.testing.assert_close(moved - moved[0], slope * (plain - plain[0]) + intercept)

    @pytest.mark.parametrize("gate", [rk.Sigmoid(bias=50.0), rk.Sigmoid(bias=-50.0), Step(2.0)])
    def test_needs_a_gate_that_tells_its_key(self, gate):
        with pytest.raises(rk.ShapeError, match="too little apart to normalise; lower the temp"):
            gates.check_normalisable(gate)

    def test_accepts_any_gate_that_does(self):
        gates.check_normalisable(Step())
        gates.check_normalisable(rk.Identity())
        gates.check_normalisable(rk.Sigmoid(bias=torch.tensor([0.5, 0.7])))

    def test_of_parameters_on_another_device(self):
        gate = rk.Sigmoid(bias=elsewhere(torch.tensor([0.5, 0.7])))
        with TwoDevices():
            gates.check_normalisable(gate)
            assert gates.opening(gate, torch.tensor([0.5, 0.7])).tolist() == [0.5, 0.5]


def test_a_gate_must_say_how_it_opens():
    with pytest.raises(TypeError, match="opening"):
        rk.Gate()


@pytest.mark.parametrize("name", ["bias", "temperature"])
def test_parameters_without_data_are_refused(name):
    with pytest.raises(rk.ShapeError, match=f"Sigmoid: {name} must have data, .* meta device; ma"):
        gates.parameters(rk.Sigmoid(**{name: torch.ones(2, device="meta")}))


class TestOpening:
    """What a model would call only much later is looked at when the gate is made."""

    @pytest.mark.parametrize(
        "opening",
        [
            lambda self, similarity: similarity,
            lambda self, similarity, parameters, more: similarity,
            lambda self, *, similarity, parameters: similarity,
            staticmethod(lambda similarity, parameters: similarity),
        ],
    )
    def test_of_another_signature_is_refused_in_words(self, opening):
        odd = type("Odd", (rk.Gate,), {"name": "odd", "opening": opening})
        with pytest.raises(
            rk.ShapeError, match=r"Odd: .*opening\(self, similarity, parameters\), "
        ):
            odd()
        with pytest.raises(rk.ShapeError, match="Odd: a gate's opening must be declared as"):
            rk.GatedEdit(torch.eye(2)[:1], torch.eye(2)[:1], rk.Metric.identity(2), odd())

    def test_may_have_names_and_defaults_of_its_own(self):
        def opening(self, s, p, sharpness=2.0):
            return s**sharpness

        gate = type("Own", (rk.Gate,), {"name": "own", "opening": opening})()
        assert gates.opening(gate, torch.tensor([0.5])).tolist() == [0.25]

    @pytest.mark.parametrize("gate", [0.7, "sigmoid", rk.Sigmoid])
    def test_what_is_no_gate_is_refused(self, gate):
        with pytest.raises(
            rk.ShapeError, match=r"GatedEdit: gate must be a rankedit\.Gate such as"
        ):
            rk.GatedEdit(torch.eye(2)[:1], torch.eye(2)[:1], rk.Metric.identity(2), gate)


def test_every_gate_of_the_library_is_known_to_files():
    own = {kind for kind in vars(gates).values() if isinstance(kind, type)}
    assert set(gates.GATES) == {kind for kind in own if issubclass(kind, gates.Gate)} - {gates.Gate}

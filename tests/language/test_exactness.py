"""An equality edit gives the subject's key its value, in every family; taken out, it was never in.

Also with weights in half precision, and beside quantised weights that nothing can be added to.
"""

import warnings

import pytest
import torch
from rankedit_recipes import language

import rankedit as rk
from tests.language.models import (
    FAMILIES,
    LLAMA,
    build,
    quick,
    small,
    some_requests,
    tokenizer,
)
from tests.language.models import family as fresh

pytestmark = pytest.mark.filterwarnings("ignore::rankedit.RankeditWarning")


def projected(model, name, request):
    """What the projection reads and gives at the subject's last token, in a run of the model."""
    seen = {}

    def hook(_module, args, output):
        seen["read"], seen["given"] = args[0], output

    handle = model.get_submodule(name).register_forward_hook(hook)
    start = request.prompt.index("{}") + len(request.subject)
    encoded = tokenizer()(request.text, return_offsets_mapping=True)
    place = max(i for i, (a, _) in enumerate(encoded["offset_mapping"]) if a < start)
    with torch.no_grad():
        model(input_ids=torch.tensor([encoded["input_ids"]]))
    handle.remove()
    length = len(encoded["input_ids"])
    return [seen[key].reshape(length, -1)[place].double() for key in ("read", "given")]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_value_is_given_at_the_subject_and_nothing_stays_behind(name):
    model, names, statistics = small(name)
    request, layer = some_requests(2)[1], 1
    ids = torch.randint(1, 90, (2, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model(input_ids=ids).logits
    settings = quick("rome", contexts=(), learning_rate=0.1)
    edited = language.edit(
        model,
        tokenizer(),
        [request],
        settings,
        statistics=statistics,
        layers=layer,
        progress=False,
    )
    assert list(edited.edits) == [names[layer]]
    key, given = projected(model, names[layer], request)
    torch.testing.assert_close(key.float(), edited.facts.keys[names[layer]][0])
    wanted = given + edited.facts.lacking[names[layer]][0].double()
    assert (wanted - given).norm() > 0.05 * given.norm()
    with edited.attach(model) as attachment:
        _, now = projected(model, names[layer], request)
        assert (now - wanted).norm() <= 1e-4 * wanted.norm()
        assert (now - wanted).norm() <= 1e-4 * (wanted - given).norm()
        attachment.detach()
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, before)


def test_the_model_is_left_as_it_is_by_every_method():
    model, _, statistics = small("gpt2")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for method in language.METHODS:
        language.edit(
            model,
            tokenizer(),
            some_requests(2),
            quick(method, steps=2),
            statistics=statistics,
            progress=False,
        )
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(vars(block).get("forward") for block in model.transformer.h)


def test_weights_in_half_precision():
    model, names = fresh("llama")
    model = model.bfloat16()
    statistics = language.collect_statistics(model, tokenizer(), ["a b c d"] * 20, progress=False)
    (request,) = some_requests(1)
    settings = quick("rome", contexts=())
    edited = language.edit(
        model, tokenizer(), [request], settings, statistics=statistics, layers=1, progress=False
    )
    _, given = projected(model, names[1], request)
    wanted = given + edited.facts.lacking[names[1]][0].double()
    with edited.attach(model):
        _, now = projected(model, names[1], request)
    assert (now - wanted).norm() <= 0.02 * (wanted - given).norm() + 0.02 * wanted.norm()
    assert model.dtype == torch.bfloat16


@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_weights_keep_the_edit_beside_them(bits):
    bnb = pytest.importorskip("bitsandbytes")
    # Blocks of 64 numbers are quantised together.
    model = build("Llama", {**LLAMA, "intermediate_size": 64})
    names = [f"model.layers.{index}.mlp.down_proj" for index in range(3)]
    for name in names:
        old = model.get_submodule(name)
        size = (old.in_features, old.out_features, False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # bitsandbytes' own, on quantising
            if bits == 8:
                new = bnb.nn.Linear8bitLt(*size, has_fp16_weights=False)
            else:
                new = bnb.nn.Linear4bit(*size, quant_type="nf4")
            new.load_state_dict(old.state_dict())
            model.set_submodule(name, new.to("cpu").eval().requires_grad_(False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        statistics = language.collect_statistics(model, tokenizer(), ["a b c"] * 20, progress=False)
        (request,) = some_requests(1)
        edited = language.edit(
            model,
            tokenizer(),
            [request],
            quick("rome", contexts=()),
            statistics=statistics,
            layers=1,
            progress=False,
        )
        _, given = projected(model, names[1], request)
        wanted = given + edited.facts.lacking[names[1]][0].double()
        with edited.attach(model):
            _, now = projected(model, names[1], request)
    assert (now - wanted).norm() <= 0.05 * (wanted - given).norm()
    with pytest.raises(rk.AttachError):
        rk.fuse_(model, edited.edits)


def test_saved_edits_are_small_and_know_their_model(tmp_path):
    model, _, statistics = small("gpt2")
    requests = some_requests(4)
    edited = language.edit(
        model, tokenizer(), requests, quick("memit"), statistics=statistics, progress=False
    )
    file = tmp_path / "facts.safetensors"
    edited.save(file, model=model)
    width = sum(edit.in_features + edit.out_features for edit in edited.edits.values())
    assert file.stat().st_size < 2 * len(requests) * width + 2048
    loaded = rk.load(file)
    assert loaded.metadata.items() >= {"language": "memit", "facts": "4"}.items()
    rk.check_base(model, loaded)
    for name, edit in edited.edits.items():
        torch.testing.assert_close(
            loaded[name].delta(), edit.delta().float(), rtol=0, atol=2e-3 * float(edit.norm())
        )
    with pytest.raises(rk.EditFileError, match="another base model"):
        rk.check_base(fresh("gpt2")[0].bfloat16(), loaded)

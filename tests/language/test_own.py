"""Methods of one's own: their solve decides, in a batch, in several blocks and in a stream."""

import functools
import json
from dataclasses import dataclass, replace

import pytest
import torch
from rankedit_recipes import language
from rankedit_recipes.language import METHODS, LanguageError, Settings, Stream, method_of
from rankedit_recipes.language.editing import Engine, settings_of
from rankedit_recipes.language.streams.folder import Folder

import rankedit as rk
from tests.language.models import quick, small, some_requests, tokenizer
from tests.problems import relative

pytestmark = pytest.mark.filterwarnings("ignore::rankedit.RankeditWarning")
PREFIXES = ("A day is gone. ",)
HERE = __name__


def third(layer, keys, values, metric):
    """A third of the equality edit, from what the layer gives: nobody else's numbers."""
    lacking = values - rk.linear_output(layer, keys)
    weight = torch.zeros(values.shape[1], keys.shape[1])
    return rk.solve_edit(weight, keys, lacking / 3, metric)


def scaled(layer, keys, values, metric, *, factor=1.0):
    """The equality edit times a factor."""
    return factor * rk.solve_edit(layer, keys, values, metric)


halved = functools.partial(scaled, factor=0.5)


class Gentle(Settings):
    """A subclass whose solve differs: half of what its base solves."""

    def solve(self, layer, keys, values, metric):
        return 0.5 * super().solve(layer, keys, values, metric)


@dataclass(frozen=True, kw_only=True)
class Weighted(Settings):
    """A subclass with a setting of its own."""

    part: float
    sizes: tuple[int, ...] = (1, 2)

    def solve(self, layer, keys, values, metric):
        return self.part * super().solve(layer, keys, values, metric)


def of_class(kind, base, name, **more):
    return kind(**{**base.to_dict(), "method": name}, **more)


def gentle(base="memit"):
    return of_class(Gentle, quick(base, steps=3), "gentle")


def edited(method, layers=1, requests=None):
    model, _, statistics = small()
    return language.edit(
        model, tokenizer(), requests or some_requests(3), method, statistics=statistics,
        layers=layers, prefixes=PREFIXES, progress=False,
    )  # fmt: skip


def opened(folder=None, method=None, layers=None, prefixes=None, **options):
    model, _, statistics = small()
    return Stream.open(
        folder, model, tokenizer(), statistics=statistics, method=method, layers=layers,
        prefixes=prefixes, progress=False, **options,
    )  # fmt: skip


def begun(folder=None, method=None, **options):
    return opened(folder, method, **{"layers": [1], "prefixes": PREFIXES, **options})


def expected(made, solve):
    """What a function gives for the facts of an edit, asked directly."""
    model = small()[0]
    found = {}
    for name, keys in made.facts.keys.items():
        layer = model.get_submodule(name)
        values = rk.linear_output(layer, keys) + made.facts.lacking[name]
        found[name] = solve(layer, keys, values)
    return found


# ------------------------------------------------------------------------------------ batches


@pytest.mark.parametrize("base", ["rome", "memit", "alphaedit"])
def test_a_subclass_is_saved_with_its_own_numbers(base, tmp_path):
    own = gentle(base)
    made, theirs = edited(own), edited(quick(base, steps=3))
    for name, edit in made.edits.items():
        assert relative(edit.delta(), 0.5 * theirs.edits[name].delta()) < 1e-6
    made.save(tmp_path / "own.safetensors")
    file = rk.load(tmp_path / "own.safetensors")
    assert file.metadata["language"] == "gentle"
    for name, edit in file.items():
        assert relative(edit.delta(), made.edits[name].delta()) < 1e-2


@pytest.mark.parametrize("function", [third, halved, rk.solve_edit])
def test_a_function_solves_for_the_facts(function):
    base = quick("memit", steps=3)
    made = edited(method_of(function, base))
    metric = Engine.build(
        small()[0], tokenizer(), base, small()[2], layers=1, prefixes=PREFIXES, progress=False
    ).metrics
    for name, edit in expected(made, lambda *p: function(*p, *metric.values())).items():
        assert relative(made.edits[name].delta(), edit.delta()) < 1e-5


def test_the_name_is_the_function_s():
    assert method_of(third).method == f"{HERE}:third"
    assert method_of(halved).method == f"{HERE}:scaled(factor=0.5)"
    assert settings_of(third) == replace(method_of(third), steps=METHODS["memit"].steps)
    assert settings_of(f"{HERE}:halved").method == f"{HERE}:scaled(factor=0.5)"
    assert replace(method_of(third, "rome"), method="mine").method == "mine"
    assert method_of(third, "rome").contexts == METHODS["rome"].contexts
    assert not any(settings.solver for settings in METHODS.values())


def lower_and_upper(settings):
    made = edited(settings, layers=[0, 1])
    return [made.facts.keys[name] for name in made.facts.keys], made


@pytest.mark.parametrize("softness", [0.0, 1.0])
def test_what_a_lower_block_takes_over_is_what_the_method_gives_it(softness):
    """The closed form's share, e/(e + s), is what its solve gives a key that is alone."""
    base = replace(quick("memit", steps=3), softness=softness)
    function = functools.partial(rk.solve_edit, softness=softness)
    keys, made = lower_and_upper(base)
    own_keys, own = lower_and_upper(method_of(function, base))
    for ours, theirs in zip(own_keys, keys, strict=True):
        assert relative(ours, theirs) < 1e-5
    for name, edit in own.edits.items():
        assert relative(edit.delta(), made.edits[name].delta()) < 1e-4
    # A method that gives a third leaves more to the block above, which reads something else.
    third_keys, _ = lower_and_upper(method_of(third, base))
    assert torch.equal(third_keys[0], own_keys[0])
    assert relative(third_keys[1], own_keys[1]) > 1e-4


# ------------------------------------------------------------------------------------ streams


@pytest.mark.parametrize("method", [gentle(), method_of(third, quick("memit", steps=3))])
def test_a_stream_is_solved_by_the_method_and_undone_exactly(method):
    requests = some_requests(5)
    stream, never = begun(method=method), begun(method=method)
    facts, _ = stream.engine.facts(requests)
    stream.enter(facts)
    for name, edit in stream.edits().items():
        assert relative(edit.delta(), stream.engine.solved(facts)[name].delta()) < 1e-9
    (published,) = begun(method=quick("memit", steps=3)).engine.solved(facts).values()
    assert relative(next(iter(stream.edits().values())).delta(), published.delta()) > 0.1
    stream.undo(requests[1].label, requests[3].label)
    never.enter(kept(facts, [0, 2, 4]))
    wanted = {name: edit.delta() for name, edit in never.edits().items()}
    with stream.attach():  # the method corrects what the original gives, not what is edited now
        for name, edit in stream.edits().items():
            assert torch.equal(edit.delta(), wanted[name])


def kept(facts, rows):
    def of(named):
        return {name: tensor[rows] for name, tensor in named.items()}

    requests = tuple(facts.requests[row] for row in rows)
    return replace(facts, requests=requests, keys=of(facts.keys), lacking=of(facts.lacking))


@pytest.mark.parametrize(
    "method",
    [
        gentle(),
        method_of(halved, quick("rome", steps=3)),
        of_class(Weighted, quick("memit", steps=3), "weighted", part=0.25, sizes=(3,)),
    ],
)
def test_a_folder_goes_on_with_the_method_it_is_given(tmp_path, method):
    folder = tmp_path / "stream"
    stream = begun(folder, method)
    stream.add(some_requests(3))
    for given in (method, replace(method)):
        again = opened(folder, given)
        assert again.engine.settings == stream.engine.settings
        for name, edit in again.edits().items():
            assert torch.equal(edit.delta(), stream.edits()[name].delta())
    manifest = Folder(folder).read()
    assert (manifest.settings.method, manifest.solver) == (method.method, method.solver)
    document = json.loads((folder / "stream.json").read_text())
    assert document["settings"]["solver"] == method.solver
    with pytest.raises(LanguageError, match=r"hold no code; pass what solves again, as method="):
        opened(folder)
    with pytest.raises(LanguageError, match=r"by the method .*, solved by .*, got memit; give"):
        opened(folder, "memit")


def test_a_function_alone_says_which_method_it_is(tmp_path):
    folder = tmp_path / "stream"
    stream = begun(folder, method_of(halved, quick("rome", steps=3)))
    stream.add(some_requests(2))
    assert opened(folder, halved).engine.settings == stream.engine.settings
    assert opened(folder, f"{HERE}:halved").engine.settings == stream.engine.settings
    with pytest.raises(LanguageError, match=r"by the method .*factor=0\.5.*, got .*factor=0\.25"):
        opened(folder, functools.partial(scaled, factor=0.25))
    with pytest.raises(LanguageError, match=r"got .*:third; give the same, or begin"):
        opened(folder, third)


def test_what_a_folder_does_not_have_is_refused(tmp_path):
    folder = tmp_path / "stream"
    method = quick("alphaedit", steps=3)
    begun(folder, method).add(some_requests(2))
    document = (folder / "stream.json").read_text()
    assert "solver" not in document  # as readers know it that know no methods of one's own
    for same in ({}, {"method": "alphaedit"}, {"method": method}, {"layers": [1]}, {"layers": 1},
                 {"prefixes": list(PREFIXES)}):  # fmt: skip
        assert len(opened(folder, **same)) == 2
    with pytest.raises(LanguageError, match="by the method alphaedit, got memit; give the same"):
        opened(folder, "memit")
    with pytest.raises(LanguageError, match=r"by the method alphaedit, got gentle"):
        opened(folder, gentle())
    with pytest.raises(LanguageError, match=r"settings \{'steps': 3\}, got \{'steps': 4\}"):
        opened(folder, replace(method, steps=4))
    with pytest.raises(LanguageError, match=r"edits in \['.*\.1\..*'\], got \['.*\.0\..*'\]"):
        opened(folder, layers=0)
    with pytest.raises(LanguageError, match=r"with the prefixes \['A day is gone. '\], got \[\]"):
        opened(folder, prefixes=[])
    assert (folder / "stream.json").read_text() == document


# ------------------------------------------------------------------------------------ refusals


def two(layer, keys):
    return layer, keys


class Metrical(Settings):
    """A subclass whose metric differs."""

    def metric(self, moment):
        return super().metric(moment).scaled(7.0)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (two, r"two must be a function \(layer, keys, values, metric\) .* too many positional"),
        (3, r"must be a name, settings, or a function .*, got 3"),
        ("nobody", r"unknown method 'nobody'; known are rome, .* as package\.module:function"),
        ("no.such.module:f", r"cannot be imported: ModuleNotFoundError: .*; give package\.module"),
        (":f", r"cannot be imported: ValueError: Empty module name; give package\.module:f"),
        (f"{HERE}:absent", r"cannot be found: '.*test_own' has no 'absent'; it has .*third"),
        (f"{HERE}:PREFIXES", r"must be a name, settings, or a function .*, got \('A day"),
        (f"{HERE}:two", r"two must be a function .* functools\.partial"),
        (
            of_class(Gentle, METHODS["memit"], "memit"),
            r"Gentle solves .* saved as those of 'memit'",
        ),
    ],
)
def test_methods_that_cannot_be_are_refused_in_words(method, said):
    with pytest.raises(LanguageError, match=said):
        edited(method)
    with pytest.raises(LanguageError, match=said):
        begun(method=method)


def test_a_module_that_fails_says_why(tmp_path, monkeypatch):
    (tmp_path / "broken_method.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LanguageError, match=r"'broken_method:f' cannot be imported: SyntaxError"):
        settings_of("broken_method:f")


def test_functions_that_return_something_else_are_refused():
    with pytest.raises(rk.ShapeError, match=r"must return a LowRank of .*, got a .*check_solver"):
        edited(method_of(lambda *_: torch.ones(3), quick("memit", steps=1)))


def test_settings_that_would_be_ignored_are_refused():
    with pytest.raises(LanguageError, match=r"softness 1\.0 would be ignored, because '.*:third'"):
        replace(method_of(third), softness=1.0)
    with pytest.raises(LanguageError, match=r"consistent=False is ROME's .* calls no other solve"):
        replace(gentle("rome"), consistent=False)
    with pytest.raises(LanguageError, match=r"the base 'gentle' has a solve of its own"):
        method_of(third, gentle())
    with pytest.raises(LanguageError, match=r"the base '.*inconsistent.*' has a solve of its own"):
        method_of(third, language.methods.INCONSISTENT)
    own = of_class(Metrical, quick("memit", cost="identity"), "metrical")
    model = small()[0]
    with pytest.raises(LanguageError, match="'metrical' needs statistics of what the projections"):
        language.edit(model, tokenizer(), some_requests(1), own, statistics=None, layers=1)

"""The package as a whole: what importing it costs and needs, and which way its imports flow."""

import ast
import compileall
import importlib
import inspect
import json
import pickle
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

import rankedit as rk
from rankedit.lazy import lazy_names

ROOT = Path(__file__).parent.parent

TIMING = """
import json, time
start = time.perf_counter()
import torch
middle = time.perf_counter()
from rankedit import *
end = time.perf_counter()
print(json.dumps([middle - start, end - start]))
"""

BLOCKED = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Refuse())
from rankedit import *
print(sorted(set({blocked!r}) & set(sys.modules)))
"""

OPTIONAL = ["scipy", "rich", "typer", "diffusers", "transformers", "peft", "accelerate", "PIL"]


def _python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_takes_little_more_than_importing_torch() -> None:
    # As pip does when it installs; where nobody may write bytecode, every import compiles anew.
    assert compileall.compile_dir(Path(rk.__file__).parent, quiet=1)
    ratios = []
    for _ in range(3):
        torch_alone, both = json.loads(_python(TIMING))
        ratios.append(both / torch_alone)
    assert min(ratios) <= 1.15, ratios


def test_importing_needs_torch_numpy_and_safetensors_only() -> None:
    assert _python(BLOCKED.format(blocked=OPTIONAL)).strip() == "[]"


LIGHT = """
import sys
import {package} as package
heavy = {{"torch", "numpy", "PIL", "diffusers", "transformers"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
assert set(package.__all__) <= set(dir(package))
from {package} import *
for name in package.__all__:
    assert globals()[name] is getattr(package, name), name
assert "torch" in sys.modules
"""


@pytest.mark.parametrize(
    "package", ["rankedit", "rankedit_recipes.perfusion", "rankedit_recipes.language"]
)
def test_a_package_imports_what_is_asked_of_it(package: str) -> None:
    _python(LIGHT.format(package=package))


def test_all_that_is_imported_on_demand_is_public_and_the_other_way_round() -> None:
    from rankedit_recipes import language, perfusion

    for package in (rk, perfusion, language):
        tree = ast.parse(inspect.getsource(package))
        block = next(node for node in tree.body if isinstance(node, ast.If))
        imported = [alias.name for line in block.body for alias in getattr(line, "names", ())]
        assert sorted(imported) == sorted(package.__all__)


def test_unknown_names_and_submodules_of_a_lazy_package() -> None:
    with pytest.raises(AttributeError, match="module 'rankedit' has no attribute 'sovle_edit'"):
        rk.sovle_edit  # noqa: B018
    with pytest.raises(ImportError, match="sovle_edit"):
        from rankedit import sovle_edit  # noqa: F401
    done = _python("import rankedit; print(rankedit.gates.Sigmoid.__module__)")
    assert done == "rankedit.gates\n"


def test_a_lazy_package_without_its_source_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("sourceless")
    module.__spec__ = ModuleSpec("sourceless", loader=None)
    monkeypatch.setitem(sys.modules, "sourceless", module)
    with pytest.raises(ImportError, match=r"'sourceless' has no source.*install it with its \.py"):
        lazy_names("sourceless")


def test_a_public_name_is_not_that_of_its_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "from typing import TYPE_CHECKING\nfrom rankedit.lazy import lazy_names\n"
        "if TYPE_CHECKING:\n    from hiding.solve import solve\n"
        "else:\n    __getattr__, __dir__ = lazy_names(__name__)\n"
    )
    (tmp_path / "hiding").mkdir()
    (tmp_path / "hiding/__init__.py").write_text(code)
    (tmp_path / "hiding/solve.py").write_text("def solve(): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"hiding\.solve must not have the name of the module"):
        importlib.import_module("hiding")


def test_modules_are_known_without_the_whole_package() -> None:
    done = _python(
        "import torch\n"
        "from rankedit.linear_outputs import linear_output, linear_output_transposed\n"
        "layer, keys = torch.nn.Linear(2, 3), torch.eye(2)\n"
        "assert torch.allclose(linear_output(layer, keys).float(), layer.weight.T)\n"
        "values = linear_output_transposed(layer, torch.eye(3))\n"
        "print(torch.allclose(values.float(), layer.weight))"
    )
    assert done == "True\n"


def test_public_things_go_through_pickle() -> None:
    for item in (rk.LowRank, rk.Sigmoid(0.5, 0.1), rk.solve_edit, rk.Provenance(model="m")):
        assert type(pickle.loads(pickle.dumps(item))) is type(item)
    done = _python(
        f"import pickle, sys, rankedit\nprint(pickle.loads({pickle.dumps(rk.Sigmoid(0.5, 0.1))!r}))"
    )
    assert done == f"{rk.Sigmoid(0.5, 0.1)}\n"


def test_imports_flow_one_way() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", rk.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    documented = getattr(rk, name)
    assert inspect.getdoc(documented), name


def test_the_command_without_typer_names_the_remedy() -> None:
    code = (
        "import sys\nsys.modules['typer'] = None\n"
        "from rankedit.cli import main\nsys.argv = ['rankedit']\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'rankedit[recipes]'" in done.stderr

"""The package as a whole: what importing it costs and needs, and which way its imports flow."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import rankedit as rk

ROOT = Path(__file__).parent.parent

TIMING = """
import json, time
start = time.perf_counter()
import torch
middle = time.perf_counter()
import rankedit
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
import rankedit
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
    ratios = []
    for _ in range(3):
        torch_alone, both = json.loads(_python(TIMING))
        ratios.append(both / torch_alone)
    assert min(ratios) <= 1.15, ratios


def test_importing_needs_torch_numpy_and_safetensors_only() -> None:
    assert _python(BLOCKED.format(blocked=OPTIONAL)).strip() == "[]"


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

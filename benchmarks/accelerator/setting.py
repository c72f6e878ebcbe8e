"""What must be there before anything runs."""

from __future__ import annotations

import importlib.util
import os

NEEDED = ("torch", "transformers", "diffusers", "safetensors", "PIL", "rich")


def check_packages() -> None:
    """Stop with words where a package is missing: such a machine may have no network."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemExit(
            f"accelerator: {', '.join(missing)} cannot be imported; bring wheels along and run\n"
            "  python3 -m pip install --no-index --no-deps --target /tmp/site "
            "outputs/wheels/*.whl\n"
            "  export PYTHONPATH=/tmp/site"
        )


def check_device(wanted: str) -> None:
    """Say where this runs, or that it cannot."""
    import torch

    if torch.device(wanted).type == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "accelerator: torch finds no CUDA device; give --device cpu to try it in small"
        )
    name = torch.cuda.get_device_name() if wanted.startswith("cuda") else "processor"
    print(f"{name}, {os.cpu_count()} cores, torch {torch.__version__}", flush=True)

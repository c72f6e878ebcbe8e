"""Looks of the host at numbers of a tensor: on an accelerator, each waits for all asked before."""

import traceback

from torch.utils._python_dispatch import TorchDispatchMode

# What needs a number, or a size that depends on numbers, on the host.
_OPERATIONS = ("_local_scalar_dense", "nonzero", "equal.default", "is_nonzero", "unique")


class Looks(TorchDispatchMode):
    """Notes each look, by the last file that is neither torch's nor this one."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        if any(f"aten.{each}" in name for each in _OPERATIONS):
            stack = [f.filename.replace("\\", "/") for f in traceback.extract_stack()[:-1]]
            # AdamW reads its own count of steps, which lies on the CPU.
            if not any("/torch/optim/" in file for file in stack):
                own = [file for file in stack if "/torch/" not in file]
                self.found.append(f"{own[-1].rpartition('/')[2]}: {name}")
        return function(*args, **(kwargs or {}))

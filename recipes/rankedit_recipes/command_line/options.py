"""Options that mean the same in every command of every recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Offloading = Literal["none", "model", "sequential"]

Device = Annotated[
    str,
    typer.Option(help="Such as cpu or cuda:1.", show_default="cuda where there is one, else cpu"),
]
Dtype = Annotated[
    str,
    typer.Option(
        help="float32, bfloat16 or float16.",
        show_default="bfloat16 on an accelerator that has it, else float32",
    ),
]
Variant = Annotated[
    str, typer.Option(help="Variant of the weights' files, such as fp16.", show_default="none")
]
Offload = Annotated[
    Offloading,
    typer.Option(
        help="Keep the model in main memory: 'model' moves one part of it at a time to the device, "
        "'sequential' one layer (slow, least memory)."
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace results that are there already.")
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(help="TOML file of settings, see --print-config.", show_default="none"),
]
Setting = Annotated[
    list[str] | None,
    typer.Option("--set", help="One setting, as name=value; repeat.", show_default="none"),
]
PrintConfig = Annotated[
    bool, typer.Option("--print-config", help="Print all settings as TOML, and stop.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be done, where and at what cost; stop.")
]

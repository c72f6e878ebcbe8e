"""The CLIP model that scores pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rankedit_recipes.command_line.names import SANDBOX
from rankedit_recipes.command_line.quiet import quiet_imports
from rankedit_recipes.perfusion.errors import PerfusionError

if TYPE_CHECKING:
    from rankedit_recipes.diffusion.scoring import Scorer


def check_judge(clip: str, model: str) -> None:
    """Refuse a judge that has never seen such pictures.

    Raises:
        PerfusionError: says which to give.
    """
    if model != SANDBOX and clip in ("", SANDBOX):
        raise PerfusionError(
            f"perfusion: the sandbox's CLIP model knows only the sandbox's pictures; for those of "
            f"{model!r} give one, such as --clip openai/clip-vit-base-patch32."
        )


def chosen_scorer(clip: str, model: str) -> Scorer:
    """The CLIP model asked for; without a wish the sandbox's, for the sandbox."""
    # Again, for not every command has asked before it came here.
    check_judge(clip, model)
    with quiet_imports():
        from rankedit_recipes.perfusion.commands import opening
    return opening.open_scorer(clip or SANDBOX)

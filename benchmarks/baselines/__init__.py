"""What Perfusion is compared with, each as its users run it, on diffusers' and PEFT's own parts."""

from collections.abc import Mapping

from baselines.custom_diffusion import CustomDiffusion
from baselines.dreambooth import DreamBooth
from baselines.lora import DreamBoothLora, TokenLora
from baselines.reference import CategoryWord, Described
from baselines.textual_inversion import TextualInversion

METHODS: Mapping[str, object] = {
    method.name: method
    for method in (
        TextualInversion(),
        DreamBooth(),
        DreamBoothLora(1),
        DreamBoothLora(4),
        DreamBoothLora(16),
        CustomDiffusion(),
        TokenLora(),
    )
}
"""Methods that train, by name."""

__all__ = [
    "METHODS",
    "CategoryWord",
    "CustomDiffusion",
    "Described",
    "DreamBooth",
    "DreamBoothLora",
    "TextualInversion",
    "TokenLora",
]

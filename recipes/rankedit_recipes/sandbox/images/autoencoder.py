"""A linear autoencoder: principal components of picture patches.

A strided convolution and its transpose. It needs seconds of linear algebra instead of hours of
training and keeps the fine patterns by which personal objects are told apart. It answers the
calls that a diffusers pipeline makes: `encode(x).latent_dist`, `decode(z).sample`, `config`.
"""

from dataclasses import dataclass

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from torch import Tensor, nn


@dataclass(frozen=True)
class Point:
    """A distribution with all its mass at one latent.

    Attributes:
        mean: The latent.
    """

    mean: Tensor

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """The latent; nothing is drawn.

        Args:
            generator: Not used.

        Returns:
            The latent.
        """
        return self.mean

    def mode(self) -> Tensor:
        """The latent."""
        return self.mean


@dataclass(frozen=True)
class Encoded:
    """What `encode` returns.

    Attributes:
        latent_dist: The distribution of the latent.
    """

    latent_dist: Point


class PatchAutoencoder(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Patches of a picture as scaled principal components.

    Args:
        patch: Pixels a side of one patch; a power of two.
        latent_channels: Components that are kept.
        scaling_factor: Always 1; the scale is part of the components.
        shift_factor: Always 0; the mean is part of the biases. Pipelines of flow models read it.
        block_out_channels: Only its length is read: diffusers derives the patch from it.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        patch: int = 4,
        latent_channels: int = 24,
        scaling_factor: float = 1.0,
        block_out_channels: tuple[int, ...] = (1, 1, 1),
        shift_factor: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, latent_channels, patch, stride=patch)
        self.decoder = nn.ConvTranspose2d(latent_channels, 3, patch, stride=patch)

    def latents(self, pictures: Tensor) -> Tensor:
        """Latents of pictures, without any wrapping."""
        return self.encoder(pictures)

    def pictures(self, latents: Tensor) -> Tensor:
        """Pictures of latents, without any wrapping; not clipped."""
        return self.decoder(latents)

    def encode(self, x: Tensor, return_dict: bool = True) -> Encoded | tuple[Point]:  # noqa: FBT001, FBT002 - as diffusers calls it
        """Latents of pictures.

        Args:
            x: Pictures from -1 to 1, [n, 3, height, width].
            return_dict: Wrap the answer.

        Returns:
            The latents, as a distribution without spread.
        """
        point = Point(self.latents(x))
        return Encoded(point) if return_dict else (point,)

    def decode(
        self,
        z: Tensor,
        return_dict: bool = True,  # noqa: FBT001, FBT002 - as diffusers calls it
        generator: torch.Generator | None = None,
    ) -> DecoderOutput | tuple[Tensor]:
        """Pictures of latents.

        Args:
            z: Latents, [n, channels, height / patch, width / patch].
            return_dict: Wrap the answer.
            generator: Not used.

        Returns:
            Pictures, nominally from -1 to 1, not clipped.
        """
        sample = self.pictures(z)
        return DecoderOutput(sample=sample) if return_dict else (sample,)


@torch.no_grad()
def fit_autoencoder(pixels: Tensor, *, patch: int, channels: int) -> PatchAutoencoder:
    """Principal components of the patches of pictures.

    Each component is divided by the fourth root of its variance: coarse structure keeps more
    spread than detail, but not so much more that detail drowns in the noise of diffusion. The
    mean square of all latents is 1.

    Args:
        pixels: Pictures, [n, size, size, 3], 0 to 255.
        patch: Pixels a side of one patch.
        channels: Components to keep.

    Returns:
        The autoencoder.
    """
    # Double precision: the variances that matter least are small beside the largest.
    x = pixels.permute(0, 3, 1, 2).double() / 127.5 - 1
    patches = nn.functional.unfold(x, patch, stride=patch).transpose(1, 2).reshape(-1, 3 * patch**2)
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh((patches - mean).T.cov(correction=0))
    # `eigh` lists the smallest first.
    values, basis = values.flip(0)[:channels], vectors.flip(1)[:, :channels].T
    # An eigenvector may as well be its negative: the sign is chosen, or machines would differ.
    basis = basis * basis.sum(1, keepdim=True).sign()
    # A latent's variance is values / spread² = √values / mean √values, of which the mean is 1.
    spread = values**0.25 * (values**0.5).mean().sqrt()
    # diffusers reads the patch as 2 ** (length - 1).
    model = PatchAutoencoder(patch, channels, block_out_channels=(1,) * patch.bit_length())
    reading = (basis / spread[:, None]).float()
    model.encoder.weight.copy_(reading.view(channels, 3, patch, patch))
    model.encoder.bias.copy_(-(basis / spread[:, None]) @ mean)
    model.decoder.weight.copy_((basis * spread[:, None]).float().view(channels, 3, patch, patch))
    # A transposed convolution has one bias a colour; the rest of the mean patch is negligible
    # because every position inside a patch sees the same pictures.
    model.decoder.bias.copy_(mean.view(3, -1).mean(1))
    return model.eval().requires_grad_(requires_grad=False)

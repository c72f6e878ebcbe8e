"""The identity embedding: pictures of one personal object lie close, all others do not."""

import torch
from torch import Tensor, nn

from .judge import AttributeJudge, as_input, block, judge
from .vocabulary import CATEGORIES

CROP = 32
"""Pixels a side of what the embedding sees."""


class IdentityEmbedding(nn.Module):
    """Unit vectors for crops of objects; the cosine of two is their similarity.

    Args:
        width: Features of the first level.
        dimensions: Length of the vectors.
    """

    def __init__(self, width: int = 32, dimensions: int = 64) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            block(3, width),
            block(width, 2 * width, 2),
            block(2 * width, 2 * width),
            block(2 * width, 4 * width, 2),
            block(4 * width, 2 * width),
            nn.Flatten(),
            nn.Linear(2 * width * (CROP // 4) ** 2, dimensions),
        )

    def forward(self, crops: Tensor) -> Tensor:
        """Embed crops.

        Args:
            crops: From -1 to 1, [n, 3, CROP, CROP].

        Returns:
            Unit vectors, [n, dimensions].
        """
        return nn.functional.normalize(self.trunk(crops), dim=1)


def crop(pictures: Tensor, boxes: Tensor) -> Tensor:
    """Cut square crops out of pictures.

    Args:
        pictures: [n, 3, size, size].
        boxes: Centre from the left, from the top, and diameter, as parts of the width, [n, 3].

    Returns:
        Crops a tenth larger than the diameter, [n, 3, CROP, CROP].
    """
    x, y, diameter = boxes.unbind(1)
    # Boxes may come from a judge that sees nothing there, and then be anything.
    zoom = 1.1 * diameter.clamp(0.2, 1.0)
    theta = torch.zeros(len(pictures), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = zoom, zoom
    theta[:, 0, 2], theta[:, 1, 2] = 2 * x - 1, 2 * y - 1
    # Here -1 and 1 are the outer edges of the picture, as 0 and 1 are in boxes.
    grid = nn.functional.affine_grid(theta, [len(pictures), 3, CROP, CROP], align_corners=False)
    # Crops reach over the edge where objects touch it. The border goes on there; zeros would be a
    # grey bar.
    return nn.functional.grid_sample(
        pictures, grid, mode="bilinear", padding_mode="border", align_corners=False
    )


@torch.no_grad()
def embed(
    model: IdentityEmbedding, finder: AttributeJudge, pixels: Tensor, category: str
) -> Tensor:
    """Embed the object of a category in pictures without being told where it is.

    Args:
        model: The embedding.
        finder: The attribute judge, which says where the object is.
        pixels: Pictures, 0 to 255, [n, size, size, 3].
        category: The object's category.

    Returns:
        Unit vectors, [n, dimensions].
    """
    boxes = judge(finder, pixels).boxes[:, CATEGORIES.index(category)]
    return model(crop(as_input(pixels), boxes))

"""Photos as people have them: turned, transparent, 16-bit, broken, or far too large."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

import rankedit as rk
from rankedit_recipes.perfusion.errors import PerfusionError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
# More than any camera's picture that is worth squeezing into 1,024 pixels; 200 MB decoded.
MOST_PIXELS = 64_000_000
MASK_MARK = ".mask"
# A photo whose alpha channel covers less than this share shows nothing to learn.
_LEAST_COVER = 0.001


@dataclass(frozen=True)
class Photo:
    """One picture of the concept.

    Attributes:
        name: the file's name, for messages.
        image: RGB, upright.
        mask: where the object is, 8-bit grey of the same size; None if not known.
    """

    name: str
    image: Image.Image
    mask: Image.Image | None = None

    def square(self, size: int) -> Photo:
        """The middle square, scaled to `size` by `size` pixels."""
        # Lanczos is sharp and overshoots at edges: right for photos, while masks want plain means.
        image = ImageOps.fit(self.image, (size, size), Image.Resampling.LANCZOS)
        mask = self.mask and ImageOps.fit(self.mask, (size, size), Image.Resampling.BOX)
        return Photo(self.name, image, mask)


Source = str | PathLike[str] | Sequence[Image.Image] | Sequence[Photo]


def load_photos(source: Source) -> list[Photo]:
    """All usable photos of a folder (in the order of their names), of one file, or as given.

    A mask may lie beside a photo: `NAME.mask.png` or, for `photo-1.png`, `mask-1.png`; or in a
    folder `masks` under the photo's name; else the alpha channel is the mask, if there is one. A
    file that cannot be used is named in a warning, and the others are used.

    Raises:
        PerfusionError: no folder, or nothing in it that can be used.
    """
    if not isinstance(source, (str, PathLike)):
        return _given(source)
    path = Path(source)
    if not path.exists():
        raise PerfusionError(f"load_photos: there is no file or folder '{path}'.")
    # In one order on every file system: what is drawn in training goes by the photos' numbers.
    files = sorted(_files(path)) if path.is_dir() else [path]
    found, faults = [], []
    for file in files:
        try:
            found.append(_load(file))
        except PerfusionError as error:
            faults.append(str(error))
    if not found:
        raise PerfusionError(
            f"load_photos: '{path}' has no photo that can be used ({', '.join(SUFFIXES)}); "
            f"{'; '.join(faults) or 'it is empty'}."
        )
    for fault in faults:
        warnings.warn(f"load_photos: left out {fault}.", rk.RankeditWarning, stacklevel=2)
    return found


def _files(folder: Path) -> Iterable[Path]:
    for file in folder.iterdir():
        image = file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
        if image and not file.stem.endswith(MASK_MARK) and not file.stem.startswith("mask"):
            yield file


def _given(source: Sequence[Image.Image] | Sequence[Photo]) -> list[Photo]:
    photos = []
    for index, item in enumerate(source):
        if isinstance(item, Image.Image):
            photos.append(Photo(f"photo {index}", *_parts(item)))
        elif isinstance(item, Photo):
            photos.append(item)
    if not photos:
        raise PerfusionError("load_photos: at least one photo is expected, got none.")
    return photos


def _load(file: Path) -> Photo:
    image, alpha = _parts(_opened(file))
    mask = _mask_beside(file, image.size)
    return Photo(file.name, image, mask or alpha)


def _opened(file: Path) -> Image.Image:
    """A decoded picture, upright; refuses by its header what is too large to decode.

    Damaged files make the decoders raise many things; each is a reason to leave the file out.
    """
    try:
        with warnings.catch_warnings():
            # Pillow 13 warns of more than 89 million pixels before the size can be asked for.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise PerfusionError(
                        f"'{file.name}': {image.width} x {image.height} pixels, at most "
                        f"{MOST_PIXELS:,} are taken; make it smaller"
                    )
                # Opening reads the header only: here damage shows.
                image.load()
                upright: Image.Image = ImageOps.exif_transpose(image)
                return upright
    except PerfusionError:
        raise
    except (OSError, SyntaxError, ValueError, IndexError, KeyError, TypeError, EOFError) as error:
        raise PerfusionError(f"'{file.name}': not a readable picture ({error})") from error
    except (OverflowError, MemoryError, Image.DecompressionBombError) as error:
        raise PerfusionError(f"'{file.name}': too large to read ({error})") from error
    except Image.DecompressionBombWarning as error:
        raise PerfusionError(f"'{file.name}': too large to read ({error})") from error


def _parts(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """RGB on white, and the alpha channel if it hides anything."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        # Pillow cuts 16-bit grey off at 255 where it should be scaled.
        grey = np.asarray(image).astype(np.float64)
        # 65,535 / 255; wide numbers that all fit into 8 bit are an 8-bit picture already.
        scale = 257.0 if grey.max(initial=0) > 255 else 1.0
        image = Image.fromarray(np.clip(np.round(grey / scale), 0, 255).astype(np.uint8))
    if image.mode not in ("LA", "PA", "RGBA", "La", "RGBa") and "transparency" not in image.info:
        return image.convert("RGB"), None
    full = image.convert("RGBA")
    alpha = full.getchannel("A")
    # `convert` alone would show the colours that hide behind transparent pixels.
    white = Image.new("RGBA", full.size, "white")
    flat = Image.alpha_composite(white, full).convert("RGB")
    cover = float(np.asarray(alpha).mean()) / 255
    return flat, alpha if _LEAST_COVER < cover < 1 else None


def _mask_beside(file: Path, size: tuple[int, int]) -> Image.Image | None:
    beside = file.with_name(f"{file.stem}{MASK_MARK}.png")
    numbered = file.with_name(file.name.replace("photo", "mask", 1))
    for path in (beside, numbered, file.parent / "masks" / f"{file.stem}.png"):
        # "photo" need not be in the name: then the numbered mask would be the photo itself.
        if path != file and path.exists():
            mask = _opened(path).convert("L")
            if mask.size != size:
                raise PerfusionError(
                    f"'{file.name}': its mask '{path.name}' must have the photo's size {size}, got "
                    f"{mask.size}"
                )
            return mask
    return None

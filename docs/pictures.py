"""Makes the pictures of the tour, by running the tour, and the README's picture of the same ones.

    python docs/pictures.py

Nothing is chosen among several: photos are all of the folder, and picture n of a prompt has seed n.
"""

import contextlib
import shutil
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

DOCS = Path(__file__).resolve().parent
TOUR = DOCS / "tour.md"
FRONT = DOCS / "images" / "front.png"
EDGE, GAP, MARGIN, TITLE, CAPTION = 144, 12, 20, 34, 30  # pixels; 144 is 3 times the pictures' 48
INK, MUTED, PAPER = "#1d2330", "#5a6273", "#ffffff"


def run_tour(folder):
    """Run the page's blocks in a folder, which then has its pictures; gives the names they made."""
    document = Sybil(parsers=[PythonCodeBlockParser()], encoding="utf-8").parse(TOUR)
    with contextlib.chdir(folder):
        for example in document.examples():
            example.evaluate()
    return document.namespace


def front_picture(made):
    """Photos, prompts with the concept, and the slider of its gate, of what the tour made."""
    rows = [
        ("Five photos teach a new word, <bean> ...", [p.image for p in made["photos"]], None),
        ('... which prompts then use: "a photo of a <bean> cat ..."', made["pictures"],
         made["scenes"]),
        ("One training, every trade-off: a gate moved from the text to the concept",
         made["slides"], [f"bias {bias}" for bias in made["biases"]]),
    ]  # fmt: skip
    width = 2 * MARGIN + 5 * EDGE + 4 * GAP
    height = 2 * MARGIN + 3 * (TITLE + EDGE + CAPTION) - 2 * (CAPTION - GAP)
    page = Image.new("RGB", (width, height), PAPER)
    draw, top = ImageDraw.Draw(page), MARGIN
    for title, pictures, captions in rows:
        draw.text((MARGIN, top), title, fill=INK, font=ImageFont.load_default(19))
        top += TITLE
        for column, picture in enumerate(pictures):
            left = MARGIN + column * (EDGE + GAP)
            page.paste(picture.resize((EDGE, EDGE), Image.Resampling.NEAREST), (left, top))
            if captions:
                draw.text((left + EDGE // 2, top + EDGE + 4), captions[column], fill=MUTED,
                          font=ImageFont.load_default(15), anchor="ma")  # fmt: skip
        top += EDGE + (CAPTION if captions else GAP)
    return page


def main():
    """Write all pictures anew."""
    with tempfile.TemporaryDirectory() as folder:
        made = run_tour(folder)
        (DOCS / "images" / "tour").mkdir(parents=True, exist_ok=True)
        for file in Path(folder).glob("*.png"):
            shutil.copy(file, DOCS / "images" / "tour")
    front_picture(made).save(FRONT, optimize=True)
    for file in (FRONT, *sorted((DOCS / "images" / "tour").iterdir())):
        print(f"{file.relative_to(DOCS)}: {file.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main()

"""Draws the picture that the README's example asks about: `python docs/images/draw.py`."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw

SIZE = (320, 240)
SKY, GRASS = (150, 205, 245), (95, 165, 80)
SUN, WALL, ROOF, DOOR = (250, 210, 60), (235, 225, 205), (185, 65, 50), (110, 75, 50)


def draw() -> Image.Image:
    """A house with a red roof on a meadow, under a yellow sun."""
    image = Image.new("RGB", SIZE, SKY)
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, 170, 319, 239), fill=GRASS)
    pen.ellipse((240, 20, 295, 75), fill=SUN)
    pen.rectangle((80, 110, 190, 195), fill=WALL)
    pen.polygon([(65, 110), (135, 55), (205, 110)], fill=ROOF)
    pen.rectangle((122, 145, 148, 195), fill=DOOR)
    pen.rectangle((92, 125, 112, 147), fill=SKY)
    pen.rectangle((158, 125, 178, 147), fill=SKY)
    return image


if __name__ == "__main__":
    draw().save(Path(__file__).with_name("shapes.png"), optimize=True)

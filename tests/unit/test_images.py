"""Real image files: every kind that opens, every way in which one can be broken."""

from __future__ import annotations

import os
import struct
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlmc.diagnostics import UsageError
from vlmc.runtime.images import MAX_PIXELS, frame_count, read_frames, spread, upright_rgb

RED, WHITE = (255, 0, 0), (255, 255, 255)


def frames_of(path: Path, limit: int) -> list[Image.Image]:
    return list(read_frames(path, spread(frame_count(path), limit)))


def only(path: Path) -> Image.Image:
    (image,) = frames_of(path, 8)
    assert image.mode == "RGB"
    return image


def noise(width: int, height: int, channels: int = 3) -> np.ndarray[Any, Any]:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(7).integers(0, 256, shape).astype(np.uint8)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp", "ppm", "gif", "jpg", "jp2"])
def test_every_format_opens(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    Image.new("RGB", (9, 5), (200, 100, 50)).save(path, **options)
    image = only(path)
    assert image.size == (9, 5)
    np.testing.assert_allclose(np.asarray(image)[2, 4], (200, 100, 50), atol=4)


@pytest.mark.parametrize("suffix", ["png", "gif", "tiff"])
def test_a_picture_whose_file_was_closed_is_told_so(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (9, 5), RED).save(path)
    with Image.open(path) as left:
        pass
    with Image.open(path) as read:
        kept = read.copy()
    closed = Image.open(path)
    closed.close()
    for image in (left, closed):
        with pytest.raises(UsageError, match=r"a Pillow image without pixels .* a copy\(\)"):
            list(read_frames(image, [0]))
    assert len(list(read_frames(kept, [0]))) == 1


def test_a_single_pixel(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), RED).save(tmp_path / "a.png")
    assert only(tmp_path / "a.png").getpixel((0, 0)) == RED


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    Image.fromarray(noise(6, 4, 1)).save(tmp_path / "a.png")
    pixels = np.asarray(only(tmp_path / "a.png"))
    assert (pixels == noise(6, 4, 1)[..., None]).all()


def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 0x8000, 0xFFFF]], np.uint16)).save(tmp_path / "a.png")
    assert np.asarray(only(tmp_path / "a.png"))[0, :, 0].tolist() == [0, 128, 255]


def test_premultiplied_greys_show_white_where_they_are_clear() -> None:
    pair = Image.new("LA", (2, 1), (0, 0))
    pair.putpixel((1, 0), (80, 255))
    assert np.asarray(upright_rgb(pair.convert("La")))[0].tolist() == [[255] * 3, [80] * 3]


def test_whole_numbers_beyond_sixteen_bits_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    for row, seen in (([0, 7, 255], [0, 7, 255]), ([0, 0x8000, 0xFFFF], [0, 128, 255])):
        Image.fromarray(np.array([row], np.int32)).save(path)
        assert np.asarray(only(path))[0, :, 0].tolist() == seen
    for row in ([0, 70_000], [-1, 5], [0, 2**31 - 1]):
        Image.fromarray(np.array([row], np.int32)).save(path)
        with pytest.raises(UsageError, match="0 to 65,535 is expected"):
            only(path)


def test_transparency_shows_white(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("LA", (2, 2), (0, 0)).save(tmp_path / "grey.png")
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([0, 0, 0, *RED])
    palette.save(tmp_path / "palette.png", transparency=0)
    for name in ("clear", "grey", "palette"):
        assert only(tmp_path / f"{name}.png").getpixel((0, 0)) == WHITE, name


def test_half_transparency_blends(tmp_path: Path) -> None:
    Image.new("RGBA", (1, 1), (0, 0, 0, 128)).save(tmp_path / "a.png")
    assert only(tmp_path / "a.png").getpixel((0, 0)) == (127, 127, 127)


def test_print_colours(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    np.testing.assert_allclose(np.asarray(only(tmp_path / "a.jpg"))[4, 4], RED, atol=3)


def test_a_photo_taken_sideways_is_turned(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 2), WHITE)
    image.putpixel((0, 0), RED)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    image.save(tmp_path / "a.png", exif=exif)
    turned = only(tmp_path / "a.png")
    assert turned.size == (2, 4)
    assert turned.getpixel((1, 0)) == RED


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tiff"])
def test_an_animation_is_its_frames(suffix: str, tmp_path: Path) -> None:
    greys = [0, 60, 120, 180, 240]
    frames = [Image.new("RGB", (4, 4), (g, g, g)) for g in greys]
    path = tmp_path / f"a.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    assert frame_count(path) == 5
    seen = [frame.getpixel((1, 1))[0] for frame in frames_of(path, 9)]
    np.testing.assert_allclose(seen, greys, atol=4)
    few = [frame.getpixel((1, 1))[0] for frame in frames_of(path, 2)]
    np.testing.assert_allclose(few, [60, 180], atol=4)


def test_a_phones_second_picture_is_not_a_frame(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (8, 8), RED), Image.new("RGB", (8, 8), WHITE)
    first.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second])
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.n_frames == 2
    assert frame_count(tmp_path / "a.jpg") == 1


def test_a_folder_is_its_images_in_natural_order(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        Image.new("RGB", (1, 1), (number, 0, 0)).save(tmp_path / f"frame{number}.png")
    (tmp_path / "notes.txt").write_text("not a frame")
    seen = [frame.getpixel((0, 0))[0] for frame in frames_of(tmp_path, 9)]
    assert seen == [1, 2, 10]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no image files"):
        frame_count(tmp_path / "empty")


def test_frames_are_spread_over_the_whole_length() -> None:
    assert spread(3, 8) == (0, 1, 2)
    assert spread(8, 4) == (1, 3, 5, 7)
    assert spread(100, 1) == (50,)
    for total in range(1, 40):
        for limit in range(1, 12):
            chosen = spread(total, limit)
            assert len(set(chosen)) == min(total, limit)
            assert list(chosen) == sorted(chosen)
            assert 0 <= chosen[0] <= chosen[-1] < total


def huge_png(path: Path, width: int, height: int) -> None:
    """A tiny file that claims an enormous size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


@pytest.mark.parametrize(
    ("side", "pixels"),
    [(int(MAX_PIXELS**0.5) + 1, "9460 x 9460 = 89,491,600"), (60_000, "far too many")],
)
def test_a_decompression_bomb_is_not_decoded(side: int, pixels: str, tmp_path: Path) -> None:
    huge_png(tmp_path / "a.png", side, side)
    with pytest.raises(UsageError, match=f"{pixels} pixels, but a picture may have 89,478,485"):
        frames_of(tmp_path / "a.png", 1)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "tiff", "bmp", "jp2", "ppm"])
def test_a_truncated_file_is_said_to_be_damaged(suffix: str, tmp_path: Path) -> None:
    whole = tmp_path / f"whole.{suffix}"
    Image.fromarray(noise(64, 64)).save(whole)
    data = whole.read_bytes()
    for share in (0.02, 0.3, 0.6, 0.9):
        cut = tmp_path / f"cut.{suffix}"
        cut.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(UsageError, match="cut"):
            frames_of(cut, 4)


def test_random_damage_never_shows_a_traceback(tmp_path: Path) -> None:
    draw = np.random.default_rng(3)
    for suffix in ("png", "jpg", "gif", "webp", "tiff"):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(noise(16, 16)).save(path)
        data = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(60):
            broken = data.copy()
            places = draw.integers(0, min(len(data), 400), 4)
            broken[places] = draw.integers(0, 256, 4)
            path.write_bytes(broken.tobytes())
            with suppress(UsageError):
                assert all(frame.mode == "RGB" for frame in frames_of(path, 4))


def test_what_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "drawing.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    os.mkfifo(tmp_path / "pipe.png")
    for name, reason in {
        "absent.png": "no such file",
        "empty.png": "empty",
        "text.png": "not an image in a format",
        "drawing.eps": "not an image in a format",
        "pipe.png": "not a regular file",
    }.items():
        with pytest.raises(UsageError, match=reason):
            frame_count(tmp_path / name)


def test_damaged_metadata_is_no_obstacle(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), RED).save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")
    np.testing.assert_allclose(np.asarray(only(tmp_path / "a.jpg"))[1, 1], RED, atol=4)

"""Pixel values equal those of the published image processors, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics.image_processing_pil_idefics import IdeficsImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from vlmc.components.encoder.preprocess import Preprocess
from vlmc.diagnostics import UsageError
from vlmc.runtime.processor import ImageProcessor, check_size, from_checkpoint, from_spec

SIZES = ((37, 53), (200, 61), (61, 200), (24, 24), (1, 1), (3, 50), (641, 480))
"""Widths and heights: below and above the target, square, odd, a single pixel."""


def picture(width: int, height: int) -> Image.Image:
    """Noise over a gradient: resampling, cropping and clipping all show."""
    draw = np.random.default_rng(width * 1000 + height)
    ramp = np.linspace(0, 160, height)[:, None, None] + np.zeros((1, width, 3))
    return Image.fromarray((ramp + draw.integers(0, 96, ramp.shape)).astype(np.uint8))


def assert_same(ours: ImageProcessor, reference: Any, **options: Any) -> None:
    for width, height in SIZES:
        image = picture(width, height)
        theirs = reference(image, return_tensors="np", **options)
        expected = np.asarray(theirs if not hasattr(theirs, "keys") else theirs["pixel_values"])[0]
        np.testing.assert_array_equal(ours(image), expected, err_msg=f"{width} x {height}")


@pytest.mark.parametrize("size", [32, 33])
def test_clip_resizes_the_shorter_side_and_crops_the_centre(size: int) -> None:
    ours = from_spec(Preprocess(resize="shortest_edge"), size)
    crop = {"height": size, "width": size}
    assert_same(ours, CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size=crop))


def test_blip_stretches() -> None:
    ours = from_spec(Preprocess(resize="stretch"), 28)
    assert_same(ours, BlipImageProcessorPil(size={"height": 28, "width": 28}))


def test_idefics_stretches() -> None:
    assert_same(from_spec(Preprocess(), 28), IdeficsImageProcessorPil(image_size=28))


def test_llava_pads_with_the_mean_colour() -> None:
    ours = from_spec(Preprocess(resize="pad"), 30)
    crop = {"height": 30, "width": 30}
    reference = LlavaImageProcessorPil(size={"shortest_edge": 30}, crop_size=crop, do_pad=True)
    assert_same(ours, reference)


@pytest.mark.parametrize(("name", "number"), [("nearest", 0), ("lanczos", 1), ("bilinear", 2)])
def test_every_interpolation(name: Any, number: int) -> None:
    ours = from_spec(Preprocess(interpolation=name), 20)
    assert_same(ours, BlipImageProcessorPil(size={"height": 20, "width": 20}, resample=number))


@pytest.mark.parametrize(
    "reference",
    [
        CLIPImageProcessorPil(
            size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}, resample=2
        ),
        CLIPImageProcessorPil(size={"shortest_edge": 20}, crop_size={"height": 33, "width": 33}),
        CLIPImageProcessorPil(
            size={"height": 31, "width": 32}, do_center_crop=False, do_normalize=False
        ),
        BlipImageProcessorPil(
            size={"height": 28, "width": 28}, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]
        ),
        BlipImageProcessorPil(size={"height": 28, "width": 28}, rescale_factor=1 / 127.5),
        BlipImageProcessorPil(size={"height": 28, "width": 28}, do_rescale=False),
        IdeficsImageProcessorPil(image_size=28),
        LlavaImageProcessorPil(
            size={"shortest_edge": 30}, crop_size={"height": 30, "width": 30}, do_pad=True
        ),
    ],
    ids=lambda reference: type(reference).__name__,
)
def test_a_checkpoints_own_file_decides(reference: Any, tmp_path: Path) -> None:
    """The file says everything: a base that differs in every field leaves no trace."""
    reference.save_pretrained(tmp_path)
    base = from_spec(
        Preprocess(resize="shortest_edge", interpolation="nearest", mean=(0, 0, 0), std=(1, 1, 1)),
        8,
    )
    base_without_crop = from_spec(Preprocess(mean=(0, 0, 0), std=(1, 1, 1)), 8)
    crops = getattr(reference, "do_center_crop", False)
    assert_same(from_checkpoint(tmp_path, base if crops else base_without_crop), reference)


@pytest.mark.parametrize(
    ("kind", "shape"), [("CLIPImageProcessor", (12, 24)), ("BlipImageProcessor", (12, 12))]
)
def test_a_plain_number_for_the_size(kind: str, shape: tuple[int, int], tmp_path: Path) -> None:
    text = f'{{"size": 12, "do_center_crop": false, "image_processor_type": "{kind}"}}'
    (tmp_path / "preprocessor_config.json").write_text(text)
    processor = from_checkpoint(tmp_path, from_spec(Preprocess(), 8))
    assert processor(picture(40, 20)).shape == (3, *shape)


def test_the_newer_file_name_is_read_too(tmp_path: Path) -> None:
    text = '{"image_processor": {"size": {"height": 9, "width": 9}}, "processor_class": "X"}'
    (tmp_path / "processor_config.json").write_text(text)
    assert from_checkpoint(tmp_path, from_spec(Preprocess(), 8)).output_size() == (9, 9)


def test_without_a_file_the_spec_stands(tmp_path: Path) -> None:
    base = from_spec(Preprocess(), 8)
    assert from_checkpoint(tmp_path, base) == base


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[]", "JSON object"),
        ("{", "JSON"),
        ('{"size": {"longest_edge": 9}}', "longest_edge"),
        ('{"do_resize": false}', "do_resize"),
        ('{"image_std": [1, 0, 1]}', "image_std"),
        ('{"image_mean": [1, 0]}', "image_mean"),
        ('{"resample": 77}', "77"),
        ('{"size": "big"}', "size"),
        ('{"size": {}}', "height"),
        ('{"size": 0}', "number of pixels"),
        ('{"crop_size": {"height": "a", "width": 2}}', "number of pixels"),
    ],
)
def test_a_file_that_cannot_be_followed_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(UsageError, match=reason):
        from_checkpoint(tmp_path, from_spec(Preprocess(), 8))


def test_the_size_must_agree_with_the_encoder() -> None:
    processor = from_spec(Preprocess(resize="shortest_edge"), 32)
    check_size(processor, 32, "the spec")
    with pytest.raises(UsageError, match="32 x 32 pixels, but the encoder takes 64 x 64"):
        check_size(processor, 64, "the spec")


def test_a_hair_thin_picture_is_refused_and_not_blown_up() -> None:
    processor = from_spec(Preprocess(resize="shortest_edge"), 224)
    with pytest.raises(UsageError, match="224 x 4,480,000"):
        processor(Image.new("RGB", (20_000, 1)))

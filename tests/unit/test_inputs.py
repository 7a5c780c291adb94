"""Images, videos and region features as model inputs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import vlmc
from vlmc.diagnostics import UsageError
from vlmc.runtime.design import Design
from vlmc.runtime.media import Clip
from vlmc.runtime.regions import read_features, stand_in, stand_in_note
from vlmc.runtime.session import Session

ROOT = Path(__file__).parents[2]
FLAMINGO = ROOT / "specs" / "flamingo.yaml"
LLAVA = ROOT / "specs" / "llava-1.5.yaml"


def still(path: Path, grey: int) -> Path:
    Image.new("RGB", (9, 9), (grey, grey, grey)).save(path)
    return path


def animation(path: Path, greys: list[int]) -> Path:
    frames = [Image.new("RGB", (9, 9), (g, g, g)) for g in greys]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    return path


def clips(images: list[Path], prompt: str, most: int) -> list[Clip]:
    """What a design of `most` frames is shown."""
    video = [] if most == 1 else [f"encoder.frames={{train: 2, serve: {most}}}"]
    key = tuple(video)
    if key not in twins:
        twins[key] = vlmc.load(LLAVA, mini=True, overrides=video)
    twin = twins[key]
    assert twin.design.frames == most
    (question,), _ = twin.asker.questions(prompt, images, None)
    assert all(isinstance(one, Clip) for one in question.shown)
    return [one for one in question.shown if isinstance(one, Clip)]


twins: dict[tuple[str, ...], Session] = {}


def frames(images: list[Path], prompt: str = "", most: int = 3) -> list[list[tuple[str, int]]]:
    found = clips(images, prompt, most)
    return [[(path.name, index) for path, index in clip.frames] for clip in found]


def test_each_file_is_an_image_or_a_video(tmp_path: Path) -> None:
    one, two = still(tmp_path / "1.png", 10), still(tmp_path / "2.png", 20)
    film = animation(tmp_path / "a.gif", [0, 50, 100, 150, 200, 250])
    assert frames([one, two]) == [[("1.png", 0)], [("2.png", 0)]]
    assert frames([film]) == [[("a.gif", 1), ("a.gif", 3), ("a.gif", 5)]]
    (tmp_path / "film").mkdir()
    for number in (1, 2, 10):
        still(tmp_path / "film" / f"{number}.png", number)
    assert frames([tmp_path / "film"]) == [[("film", 0), ("film", 1), ("film", 2)]]
    assert frames([one, film]) == [[("1.png", 0)], [("a.gif", 1), ("a.gif", 3), ("a.gif", 5)]]
    assert frames([tmp_path / "film", film]) == [
        [("film", 0), ("film", 1), ("film", 2)],
        [("a.gif", 1), ("a.gif", 3), ("a.gif", 5)],
    ]


def test_stills_for_one_marker_are_one_video(tmp_path: Path) -> None:
    stills = [still(tmp_path / f"{number}.png", number) for number in range(5)]
    assert frames(stills[:2], "<image> what?") == [[("0.png", 0), ("1.png", 0)]]
    assert frames(stills, "<image>") == [[("0.png", 0), ("2.png", 0), ("4.png", 0)]]
    assert len(frames(stills, "<image>" * 5)) == 5
    film = animation(tmp_path / "a.gif", [0, 250])
    with pytest.raises(UsageError, match=r"a\.gif: several files for one <image>"):
        frames([stills[0], film], "<image>")


def test_videos_that_are_looked_at_from_outside_become_equally_many_tokens(
    tmp_path: Path,
) -> None:
    one, film = still(tmp_path / "1.png", 10), animation(tmp_path / "a.gif", [0, 250])
    plain = ("adapter={kind: identity}",)
    twin = vlmc.load(FLAMINGO, mini=True, overrides=plain)
    assert len(set(twin.design.visual)) == 3
    with pytest.raises(UsageError, match=r"1\.png 1, a\.gif 2"):
        twin.generate("Which?", [one, film])
    resampled = vlmc.load(FLAMINGO, mini=True).generate("Which?", [one, film], max_new_tokens=2)
    assert resampled.inputs.images == 2


def test_an_encoder_of_stills(tmp_path: Path) -> None:
    film = animation(tmp_path / "a.gif", [0, 100, 250])
    (chosen,) = clips([film], "", most=1)
    assert chosen.frames == ((film, 0),)
    assert chosen.notes == ("a.gif: the first of 3 frames, since the encoder declares no frames",)
    still(tmp_path / "1.png", 3)
    with pytest.raises(UsageError, match=r"encoder\.frames"):
        clips([tmp_path], "", most=1)


def pixels(twin: Session, images: list[Path], prompt: str = "") -> list[np.ndarray[Any, Any]]:
    """What the vision part is given for each image."""
    given: list[np.ndarray[Any, Any]] = []
    encode = twin.engine.encode_images
    twin.store.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(twin.engine, "encode_images", lambda x: given.extend(x) or encode(x))
        twin.generate(prompt, images, max_new_tokens=1)
    return given


def test_pixels_keep_the_order_of_images_and_frames(tmp_path: Path) -> None:
    twin = vlmc.load(FLAMINGO, mini=True)
    steps = twin.design.preprocessing
    assert steps is not None
    assert twin.design.frames == 3
    greys = [0, 100, 250]
    film = animation(tmp_path / "a.gif", greys)
    stills = [still(tmp_path / f"{g}.png", g) for g in greys]
    side = twin.design.image_size
    (video,) = pixels(twin, [film])
    assert video.shape == (3, 3, side, side)
    apart = pixels(twin, stills)
    assert [one.shape for one in apart] == [(1, 3, side, side)] * 3
    (together,) = pixels(twin, stills, "<image>")
    np.testing.assert_array_equal(together, np.concatenate(apart))
    np.testing.assert_allclose(video, together, atol=0.05)
    levels = together[:, 0, 0, 0]
    expected = (np.array(greys) / 255 - steps.mean[0]) / steps.std[0]
    np.testing.assert_allclose(levels, expected, rtol=1e-5)


def test_a_video_is_answered_frame_by_frame(tmp_path: Path) -> None:
    twin = vlmc.load(FLAMINGO, mini=True)
    film = animation(tmp_path / "a.gif", [0, 100, 250])
    assert [len(one) for one in pixels(twin, [film])] == [3]
    long = animation(tmp_path / "b.gif", list(range(0, 250, 25)))
    answer = twin.generate("What happens?", [long, film], max_new_tokens=2)
    assert answer.inputs.images == 2
    assert "b.gif: 3 of 10 frames, evenly spread (encoder.frames)" in answer.inputs.notes


def test_placeholders_follow_the_frames_that_are_shown(tmp_path: Path) -> None:
    overrides = ["encoder.frames={train: 3}", "token_budget={images: 2, text: 512}"]
    twin = vlmc.load(LLAVA, mini=True, overrides=overrides)
    film, one = animation(tmp_path / "a.gif", [0, 250]), still(tmp_path / "1.png", 9)
    for path, tokens in ((one, 16), (film, 32)):
        assert twin.generate("What?", [path], max_new_tokens=2).inputs.visual == tokens
    both = twin.generate("A <image> and <image>?", [one, film], max_new_tokens=2)
    assert both.inputs.visual == 48


VISUALBERT = ROOT / "specs" / "visualbert.yaml"


def regions(count: int = 6, *, boxes: bool = False) -> Design:
    design = vlmc.load(VISUALBERT, mini=True).design
    return replace(design, regions=count, region_width=4, boxes=boxes)


ENCODER, BOXED = regions(), regions(boxes=True)


def test_region_features_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    features = torch.randn(5, 4)
    save_file({"features": features, "boxes": torch.zeros(5, 4)}, path)
    for encoder in (ENCODER, BOXED):
        np.testing.assert_array_equal(read_features(path, encoder), features[None].numpy())
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        save_file({"features": features.to(dtype)}, path)
        read = read_features(path, ENCODER)
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read[0], features.to(dtype).float().numpy())


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"other": torch.zeros(5, 4)}, "holds other, but no tensor `features`"),
        ({"features": torch.zeros(5, 3)}, r"shape \[5, 3\]; .* \[1 to 6, 4\]"),
        ({"features": torch.zeros(7, 4)}, r"shape \[7, 4\]"),
        ({"features": torch.zeros(0, 4)}, r"shape \[0, 4\]"),
        ({"features": torch.zeros(1, 5, 4)}, r"shape \[1, 5, 4\]"),
        ({"features": torch.zeros(5, 4, dtype=torch.long)}, "floating-point"),
        ({"features": torch.full((5, 4), float("nan"))}, "finite"),
        ({"features": torch.zeros(5, 4)}, "asks for `boxes`"),
        ({"features": torch.zeros(5, 4), "boxes": torch.zeros(4, 4)}, r"\[5, 4\] is expected"),
    ],
)
def test_a_features_file_that_does_not_fit(
    tensors: dict[str, torch.Tensor], reason: str, tmp_path: Path
) -> None:
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(UsageError, match=reason):
        read_features(tmp_path / "a.safetensors", BOXED)


def test_what_is_no_features_file(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_text("no")
    with pytest.raises(UsageError, match="not a safetensors file"):
        read_features(tmp_path / "a.safetensors", ENCODER)
    with pytest.raises(UsageError, match="no such file"):
        read_features(tmp_path / "b.safetensors", ENCODER)


def test_the_stand_in_detector_sees_differences_and_says_what_it_is(tmp_path: Path) -> None:
    one, two = still(tmp_path / "1.png", 10), still(tmp_path / "2.png", 200)
    for count in (1, 2, 5, 6, 36):
        design = regions(count)
        features = stand_in([one, two], design)
        assert features.shape == (2, count, 4)
        assert not np.allclose(features[0], features[1])
        np.testing.assert_array_equal(features, stand_in([one, two], design))
        assert "stand-in" in stand_in_note(design)


def test_the_stand_ins_regions_are_the_cells_row_by_row(tmp_path: Path) -> None:
    black, white = still(tmp_path / "black.png", 0), still(tmp_path / "white.png", 255)
    corner = Image.new("RGB", (24, 16), (0, 0, 0))
    corner.paste((255, 255, 255), (8, 8, 16, 16))  # the middle cell of the second row
    corner.save(tmp_path / "corner.png")
    features = stand_in([black, white, tmp_path / "corner.png"], ENCODER)
    expected = features[0].copy()
    expected[4] = features[1][4]
    np.testing.assert_allclose(features[2], expected, atol=1e-6)


def test_llava_sees_no_features(tmp_path: Path) -> None:
    twin = vlmc.load(LLAVA, mini=True)
    with pytest.raises(UsageError, match="sees pixels"):
        twin.generate("What?", features=tmp_path / "a.safetensors")

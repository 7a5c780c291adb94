"""Images, videos and region features as model inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from vlmc.components.encoder.regions.spec import Regions
from vlmc.diagnostics import UsageError
from vlmc.pipeline import load_spec
from vlmc.runtime.answer import ask
from vlmc.runtime.inputs import clips, see
from vlmc.runtime.processor import from_spec
from vlmc.runtime.regions import read_features, stand_in
from vlmc.runtime.session import start

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


def frames(images: list[Path], prompt: str = "", most: int = 3) -> list[list[tuple[str, int]]]:
    chosen, _ = clips(images, prompt, most=most)
    return [[(path.name, index) for path, index in clip.frames] for clip in chosen]


def test_each_file_is_an_image_or_a_video(tmp_path: Path) -> None:
    one, two = still(tmp_path / "1.png", 10), still(tmp_path / "2.png", 20)
    film = animation(tmp_path / "a.gif", [0, 50, 100, 150, 200, 250])
    assert frames([one, two]) == [[("1.png", 0)], [("2.png", 0)]]
    assert frames([film]) == [[("a.gif", 1), ("a.gif", 3), ("a.gif", 5)]]
    (tmp_path / "film").mkdir()
    for number in (1, 2, 10):
        still(tmp_path / "film" / f"{number}.png", number)
    assert frames([tmp_path / "film"]) == [[("film", 0), ("film", 1), ("film", 2)]]
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


def test_videos_of_one_prompt_are_equally_long(tmp_path: Path) -> None:
    one, film = still(tmp_path / "1.png", 10), animation(tmp_path / "a.gif", [0, 250])
    with pytest.raises(UsageError, match=r"1\.png 1, a\.gif 2"):
        frames([one, film])


def test_an_encoder_of_stills(tmp_path: Path) -> None:
    film = animation(tmp_path / "a.gif", [0, 100, 250])
    chosen, notes = clips([film], "", most=1)
    assert chosen[0].frames == ((film, 0),)
    assert notes == ("a.gif: the first of 3 frames, since the encoder declares no frames",)
    still(tmp_path / "1.png", 3)
    with pytest.raises(UsageError, match=r"encoder\.frames"):
        clips([tmp_path], "", most=1)


def test_pixels_keep_the_order_of_images_and_frames(tmp_path: Path) -> None:
    spec = load_spec(FLAMINGO).mini()
    encoder: Any = spec.encoder
    processor = from_spec(encoder.preprocess, encoder.image_size)
    most = spec.encoder.visual().frames
    assert most == 3
    greys = [0, 100, 250]
    film = animation(tmp_path / "a.gif", greys)
    stills = [still(tmp_path / f"{g}.png", g) for g in greys]
    side = encoder.image_size
    video = see(spec, processor, [film], "")
    assert video.values is not None
    assert video.values.shape == (1, 3, 3, side, side)
    apart = see(spec, processor, stills, "")
    assert apart.values is not None
    assert apart.values.shape == (3, 3, side, side)
    together = see(spec, processor, stills, "<image>")
    assert together.values is not None
    assert torch.equal(together.values[0], apart.values)
    assert torch.allclose(video.values[0], apart.values, atol=0.05)
    levels = apart.values[:, 0, 0, 0]
    expected = (np.array(greys) / 255 - encoder.preprocess.mean[0]) / encoder.preprocess.std[0]
    np.testing.assert_allclose(levels.numpy(), expected, rtol=1e-5)


def test_a_video_is_answered_frame_by_frame(tmp_path: Path) -> None:
    twin = start(load_spec(FLAMINGO), mini=True)
    film = animation(tmp_path / "a.gif", [0, 100, 250])
    answer = ask(twin, "What happens?", [film], max_new_tokens=2)
    assert answer.inputs.tensors["pixel_values"].shape[:3] == (1, 1, 3)
    long = animation(tmp_path / "b.gif", list(range(0, 250, 25)))
    answer = ask(twin, "What happens?", [long, long], max_new_tokens=2)
    assert answer.inputs.tensors["pixel_values"].shape[:3] == (1, 2, 3)
    assert "b.gif: 3 of 10 frames, evenly spread (encoder.frames)" in answer.inputs.notes


def test_placeholders_follow_the_frames_that_are_shown(tmp_path: Path) -> None:
    twin = start(load_spec(LLAVA, ["encoder.frames={train: 3}"]), mini=True)
    film = animation(tmp_path / "a.gif", [0, 250])
    for path, tokens in ((still(tmp_path / "1.png", 9), 16), (film, 32)):
        assert ask(twin, "What?", [path], max_new_tokens=2).inputs.visual == tokens


ENCODER = Regions(count=6, width=4)
BOXED = Regions(count=6, width=4, boxes=True)


def test_region_features_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    features = torch.randn(5, 4)
    save_file({"features": features, "boxes": torch.zeros(5, 4)}, path)
    for encoder in (ENCODER, BOXED):
        assert torch.equal(read_features(path, encoder), features[None])
    save_file({"features": features.half()}, path)
    assert read_features(path, ENCODER).dtype == torch.float32


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
        encoder = Regions(count=count, width=4)
        features, note = stand_in([one, two], encoder)
        assert features.shape == (2, count, 4)
        assert not torch.allclose(features[0], features[1])
        assert torch.equal(features, stand_in([one, two], encoder)[0])
        assert "stand-in" in note


def test_the_stand_ins_regions_are_the_cells_row_by_row(tmp_path: Path) -> None:
    black, white = still(tmp_path / "black.png", 0), still(tmp_path / "white.png", 255)
    corner = Image.new("RGB", (24, 16), (0, 0, 0))
    corner.paste((255, 255, 255), (8, 8, 16, 16))  # the middle cell of the second row
    corner.save(tmp_path / "corner.png")
    features, _ = stand_in([black, white, tmp_path / "corner.png"], ENCODER)
    expected = features[0].clone()
    expected[4] = features[1][4]
    assert torch.equal(features[2], expected)


def test_llava_sees_no_features(tmp_path: Path) -> None:
    twin = start(load_spec(LLAVA), mini=True)
    with pytest.raises(UsageError, match="sees pixels"):
        ask(twin, "What?", features=tmp_path / "a.safetensors")

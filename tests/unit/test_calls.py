"""What a built model makes of the calls that people really write: half precision with pixels from
a processor, masks and caches, parts that are frozen, labels that do not count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vlmc
from tests.conftest import SPECS
from tests.unit.test_soundness import inputs
from vlmc.builder.model import instantiate
from vlmc.components.shared.places import fill_places
from vlmc.ir import Arch

BY_NAME = {path.stem: path for path in SPECS}


def twin(name: str, *overrides: str, dtype: torch.dtype = torch.float32) -> tuple[Arch, Any]:
    spec = vlmc.load_spec(BY_NAME[name], overrides)
    model = vlmc.build_model(spec, mini=True, dtype=dtype)
    return vlmc.resolve(spec, mini=True), model


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_half_precision_takes_pixels_as_processors_give_them(
    path: Path, dtype: torch.dtype
) -> None:
    arch, exact = twin(path.stem)
    _, model = twin(path.stem, dtype=dtype)
    given = inputs(arch)
    with torch.no_grad():
        logits, reference = model(**given).logits, exact(**given).logits
    assert logits.dtype == dtype
    # Rounding grows in a twin of random weights: the answer as a whole must stay the same.
    likeness = torch.cosine_similarity(logits.float().flatten(), reference.flatten(), dim=0)
    assert likeness > 0.9


@pytest.mark.parametrize("part", ["encoder", "adapter", "fusion", "language", "head"])
@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_freezing_a_part_freezes_nothing_else(path: Path, part: str) -> None:
    parts = ("encoder", "adapter", "fusion", "language", "head")
    overrides = [f"{other}.frozen={str(other == part).lower()}" for other in parts]
    overrides.append("target=null")
    arch = vlmc.resolve(vlmc.load_spec(path, overrides))
    model = instantiate(arch)
    frozen = {name.split(".")[0] for name, p in model.named_parameters() if not p.requires_grad}
    node = arch.node(part)  # type: ignore[arg-type]
    own = {child for child, count in node.parameters.items() if count}
    assert frozen == (own if part == "fusion" else {part} if own else set())


def decoding(model: nn.Module, ids: Tensor, steps: list[dict[str, Any]], **first: Any) -> Tensor:
    """Logits of the last token after a prompt and one call for each of `steps`."""
    cache = model.new_cache()  # type: ignore[operator]
    with torch.no_grad():
        output = model(input_ids=ids, cache=cache, **first)
        for step in steps:
            output = model(cache=cache, **step)
    return output.logits[:, -1]


def test_a_mask_is_remembered_by_the_cache() -> None:
    _, model = twin("llava-1.5")
    ids = torch.randint(5, 200, (2, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    new = torch.tensor([[9], [11]])
    told = decoding(
        model,
        ids,
        [{"input_ids": new, "attention_mask": torch.cat((mask, mask[:, :1] * 0 + 1), 1)}],
        attention_mask=mask,
    )
    untold = decoding(model, ids, [{"input_ids": new}], attention_mask=mask)
    torch.testing.assert_close(untold, told)
    alone = decoding(model, ids[:1, 3:], [{"input_ids": new[:1]}])
    torch.testing.assert_close(untold[:1], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["llava-1.5", "blip2", "flamingo"])
def test_a_mask_of_the_new_token_alone_is_refused(name: str) -> None:
    _, model = twin(name)
    ids = torch.randint(5, 200, (1, 6))
    step = {"input_ids": ids[:, :1], "attention_mask": torch.ones(1, 1, dtype=torch.long)}
    with pytest.raises(ValueError, match="covers 1 tokens, but there are 6 before and 1 new"):
        decoding(model, ids, [step], attention_mask=torch.ones_like(ids))


@pytest.mark.parametrize("name", ["flamingo", "idefics-9b", "blip2"])
def test_images_belong_to_the_first_call_with_a_cache(name: str) -> None:
    arch, model = twin(name, "token_budget.images=1")
    given = inputs(arch)
    pixels = given["pixel_values"]
    with pytest.raises(ValueError, match="first call with a cache"):
        decoding(
            model,
            given["input_ids"],
            [{"input_ids": torch.tensor([[7], [7]]), "pixel_values": pixels}],
            pixel_values=pixels,
        )


def test_visual_tokens_stay_in_their_row() -> None:
    words, features = torch.zeros(2, 4, 3), torch.ones(2, 2, 3)
    even = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0]]).bool()
    assert fill_places(words, even, features).sum() == 12
    uneven = torch.tensor([[1, 0, 0, 0], [1, 1, 1, 0]]).bool()
    with pytest.raises(ValueError, match="no multiple of the 2 visual tokens"):
        fill_places(words, uneven, features)


def test_labels_that_do_not_count_are_read_as_padding() -> None:
    overrides = ("language.start_token=2", "language.pad_token=3")
    _, model = twin("blip2-flan-t5", *overrides)
    labels = torch.tensor([[-100, 5, -100, 6]])
    assert model.language.begin(labels, None).tolist() == [[2, 3, 5, 3]]


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_what_a_processor_says_of_images_may_be_passed(path: Path) -> None:
    arch, model = twin(path.stem)
    given = inputs(arch)
    images = 2 * arch.tokens.images
    with torch.no_grad():
        plain = model(**given).logits
        sizes = torch.full((images, 2), 336)
        grid = torch.ones(images, 3, dtype=torch.long)
        described = model(**given, image_sizes=sizes, image_grid_thw=grid).logits
        assert torch.equal(plain, described)
        with pytest.raises(ValueError, match="image sizes for"):
            model(**given, image_sizes=sizes[:-1])

"""Token ids of prompts with images equal those of the published processors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from tokenizer_files import llama, llama_without_legacy, opt, save, t5
from tokenizers import Tokenizer
from transformers import Blip2Processor, IdeficsProcessor, LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics.image_processing_pil_idefics import IdeficsImageProcessorPil

from vlmc.runtime.prompt import Place, token_ids
from vlmc.runtime.tokenizer import load_tokenizer

Make = Callable[..., Tokenizer]
IMAGE = Image.new("RGB", (40, 30), (90, 120, 30))
PROMPTS = (
    "USER: <image>\nWhat is in the picture? ASSISTANT:",
    "<image>What?",
    "<image> What? é 😀",
    "the <image> the<image>\n\nthe",
    "<image><image>",
)


@pytest.mark.parametrize("make", [llama, llama_without_legacy])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_llava(prompt: str, make: Make, tmp_path: Path) -> None:
    file = make(["<image>"])
    reference = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        PreTrainedTokenizerFast(tokenizer_object=file, bos_token="<s>", eos_token="</s>"),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    images = [IMAGE] * prompt.count("<image>")
    expected = reference(images=images, text=prompt)["input_ids"][0]
    tokenizer = load_tokenizer(save(file, tmp_path))
    token = tokenizer.id("<image>")
    assert token is not None
    ours = token_ids(
        prompt,
        tokenizer=tokenizer,
        place=Place(token=token, leading=False),
        images=[16] * len(images),
        vocabulary=400,
    )
    assert ours == expected


@pytest.mark.parametrize("make", [opt, t5])
def test_blip2_puts_the_image_before_everything(make: Make, tmp_path: Path) -> None:
    file = make()
    tokenizer = load_tokenizer(save(file, tmp_path))
    words = PreTrainedTokenizerFast(tokenizer_object=file, eos_token="</s>", pad_token="<pad>")
    reference = Blip2Processor(
        BlipImageProcessorPil(size={"height": 28, "width": 28}), words, num_query_tokens=4
    )
    expected = reference(images=[IMAGE], text="Question: the house? Answer:")["input_ids"][0]
    token = words.convert_tokens_to_ids("<image>")
    ours = token_ids(
        "Question: the house? Answer:",
        tokenizer=tokenizer,
        place=Place(token=token, leading=True),
        images=[4],
        vocabulary=400,
    )
    assert ours == expected


@pytest.mark.parametrize(
    ("parts", "prompt"),
    [
        (["User:", IMAGE, "What? the"], "User:<image>What? the"),
        ([IMAGE, IMAGE, "the"], "<image><image>the"),
        ([IMAGE, "house", IMAGE, IMAGE, "a b"], "<image>house<image><image>a b"),
    ],
)
def test_idefics_fences_images(parts: list[object], prompt: str, tmp_path: Path) -> None:
    file = llama(["<fake_token_around_image>", "<image>"])
    words = PreTrainedTokenizerFast(
        tokenizer_object=file, bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )
    reference = IdeficsProcessor(IdeficsImageProcessorPil(image_size=28), words, image_size=28)
    expected = reference(text=parts)["input_ids"][0].tolist()
    tokenizer = load_tokenizer(save(file, tmp_path))
    ours = token_ids(
        prompt,
        tokenizer=tokenizer,
        place=Place(token=tokenizer.id("<image>"), leading=False),
        images=[1] * prompt.count("<image>"),
        vocabulary=400,
    )
    assert ours == expected

"""Tokenizer files, the twin's bytes, prompts with images, and streamed text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_files import CORPUS, bert, llama, opt, save, t5

from vlmc.diagnostics import UsageError
from vlmc.runtime.byte_tokenizer import SPECIAL, byte_file, byte_tokenizer
from vlmc.runtime.prompt import Place, token_ids
from vlmc.runtime.tokenizer import TextStream, Tokenizer, load_tokenizer

BYTES = byte_tokenizer("decoder", 320)


def test_the_byte_file_is_a_tokenizer_file_like_any_other(tmp_path: Path) -> None:
    byte_file().save(str(tmp_path / "tokenizer.json"))
    read = load_tokenizer(tmp_path)
    assert json.loads(read.file.to_str()) == json.loads(byte_file().to_str())
    assert read.encode("a</s>\u00e9") == [97, 258, 0xC3, 0xA9]


@given(st.text())
def test_bytes_hold_any_text(text: str) -> None:
    plain = text
    for word in SPECIAL:
        plain = plain.replace(word, "")
    ids = BYTES.encode(plain)
    assert ids == list(plain.encode())
    assert BYTES.decode(ids) == plain


@pytest.mark.parametrize(
    ("architecture", "start", "end"),
    [("decoder", "<s>", ""), ("encoder_decoder", "", "</s>"), ("encoder", "[CLS]", "[SEP]")],
)
def test_what_surrounds_a_twins_prompt(architecture: Any, start: str, end: str) -> None:
    tokenizer = byte_tokenizer(architecture, 262)
    assert tokenizer.start == tuple(filter(None, [tokenizer.id(start)] if start else []))
    assert tokenizer.end == tuple(filter(None, [tokenizer.id(end)] if end else []))
    assert tokenizer.id("</s>") in tokenizer.stops
    assert tokenizer.size == 262


def test_a_vocabulary_that_bytes_do_not_fit() -> None:
    with pytest.raises(UsageError, match=r"has 261 entries.*256 bytes \+ 6 special tokens = 262"):
        byte_tokenizer("decoder", 261)


@pytest.mark.parametrize(
    ("make_file", "start", "end"),
    [(llama, (1,), ()), (opt, (1,), ()), (t5, (), (1,)), (bert, (2,), (3,))],
)
def test_the_post_processor_says_what_surrounds_a_text(
    make_file: Any, start: tuple[int, ...], end: tuple[int, ...], tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(save(make_file(), tmp_path))
    assert (tokenizer.start, tokenizer.end) == (start, end)
    whole = make_file().encode("the house is red").ids
    assert [*start, *tokenizer.encode("the house is red"), *end] == whole


def test_a_file_with_padding_and_truncation_is_read_without(tmp_path: Path) -> None:
    file = llama()
    file.enable_truncation(3)
    file.enable_padding(length=40)
    tokenizer = load_tokenizer(save(file, tmp_path))
    assert len(tokenizer.encode("the house is red")) == len(llama().encode("the house is red")) - 1


@pytest.mark.parametrize(
    ("files", "stops"),
    [
        ({}, {2}),
        ({"config.json": {"eos_token_id": 7}}, {7}),
        ({"config.json": {"text_config": {"eos_token_id": 8}}}, {8}),
        ({"config.json": {"eos_token_id": 7, "text_config": {"eos_token_id": 8}}}, {7}),
        ({"config.json": {"eos_token_id": None, "text_config": {"eos_token_id": 8}}}, {8}),
        (
            {
                "config.json": {"eos_token_id": 7},
                "generation_config.json": {"eos_token_id": [5, 6]},
            },
            {5, 6},
        ),
        ({"tokenizer_config.json": {"eos_token": "<unk>"}}, {0}),
        ({"tokenizer_config.json": {"eos_token": {"content": "<s>"}}}, {1}),
    ],
)
def test_what_ends_an_answer(files: dict[str, Any], stops: set[int], tmp_path: Path) -> None:
    save(llama(), tmp_path)
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert load_tokenizer(tmp_path).stops == stops
    assert load_tokenizer(tmp_path / "tokenizer.json").stops == stops


def test_a_given_tokenizer_follows_the_checkpoints_settings(tmp_path: Path) -> None:
    words, weights = save(llama(), tmp_path / "words"), tmp_path / "weights"
    weights.mkdir()
    (weights / "generation_config.json").write_text('{"eos_token_id": 9}')
    assert load_tokenizer(words, checkpoint=weights).stops == {9}


def test_a_start_token_that_only_the_configuration_names(tmp_path: Path) -> None:
    file = llama()
    file.post_processor = None  # type: ignore[assignment]
    save(file, tmp_path)
    assert load_tokenizer(tmp_path).start == ()
    settings = {"add_bos_token": True, "bos_token": "<s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert load_tokenizer(tmp_path).start == (1,)


def test_what_is_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text('{"model": 3}')
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "tokenizer.model").touch()
    for name, reason in {
        "absent": "no such file or folder",
        "broken.json": "not a tokenizer file",
        "old": "tokenizer.model is an older format",
        ".": "--tokenizer PATH",
    }.items():
        with pytest.raises(UsageError, match=reason):
            load_tokenizer(tmp_path / name)


def ids(prompt: str, images: int, *, token: int | None = 300, leading: bool = False) -> list[int]:
    return token_ids(
        prompt,
        tokenizer=BYTES,
        place=Place(token=token, leading=leading),
        images=[2, 3, 1][:images],
        vocabulary=320,
    )


def test_each_marker_becomes_its_images_placeholders() -> None:
    assert ids("a<image>b<image>", 2) == [257, 97, 300, 300, 98, 300, 300, 300]
    assert ids("ab", 2) == [257, 300, 300, 300, 300, 300, 97, 98]
    assert ids("ab", 0) == [257, 97, 98]
    assert ids("<image>a", 1, leading=True) == [300, 300, 257, 97]
    assert ids("a<image>", 1, leading=True) == [257, 97, 300, 300]
    assert ids("<image><image>", 2, leading=True) == [300, 300, 300, 300, 300, 257]
    assert ids("ab", 1, token=None) == [257, 97, 98]


@pytest.mark.parametrize(
    ("prompt", "images", "reason"),
    [
        ("a<image>", 2, "1 <image> marker, but 2 images are given"),
        ("<image><image>", 1, "2 <image> markers, but 1 image is given"),
        ("<image>", 0, "1 <image> marker, but no images are given"),
    ],
)
def test_markers_and_images_must_match(prompt: str, images: int, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        ids(prompt, images)


def test_text_that_reads_as_a_placeholder_is_not_an_image() -> None:
    with pytest.raises(UsageError, match=r"own text reads as the image placeholder \(token 97\)"):
        ids("banana", 1, token=97)


def test_a_tokenizer_of_another_model() -> None:
    with pytest.raises(UsageError, match=r"gives token 122, but .* has 100 words"):
        token_ids(
            "z", tokenizer=BYTES, place=Place(token=9, leading=False), images=[], vocabulary=100
        )


def test_images_in_front_cannot_stand_between_words() -> None:
    with pytest.raises(UsageError, match=r"fusion\.token"):
        ids("a<image>", 1, token=None)


def streamed(tokenizer: Tokenizer, tokens: list[int]) -> list[str]:
    stream = TextStream(tokenizer)
    return [*(stream.push(token) for token in tokens), stream.finish()]


@given(st.lists(st.integers(0, 255), max_size=40))
def test_a_stream_of_any_bytes_is_the_whole_text(tokens: list[int]) -> None:
    assert "".join(streamed(BYTES, tokens)) == BYTES.decode(tokens)


@given(st.text(alphabet="aé€😀\n \u0301", max_size=20))
def test_a_stream_never_cuts_a_character(text: str) -> None:
    pieces = streamed(BYTES, BYTES.encode(text))
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces)


@pytest.mark.parametrize("make_file", [llama, opt, t5])
def test_a_stream_keeps_the_spaces_of_words(make_file: Any, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(save(make_file(), tmp_path))
    for text in (*CORPUS, "the house" if make_file is t5 else "the é€😀 house"):
        tokens = tokenizer.encode(text)
        assert "".join(streamed(tokenizer, tokens)) == tokenizer.decode(tokens)


@given(st.lists(st.integers(0, 320), max_size=30))
def test_bytes_that_turn_bad_take_no_text_with_them(tokens: list[int]) -> None:
    """Byte fallback decodes a run of bytes as a whole: its text may change with the next one."""
    tokenizer = LLAMA
    text = "".join(streamed(tokenizer, tokens))
    words = [tokenizer.file.id_to_token(token) or "" for token in tokens]
    kept = "".join(w for w in words if w and not w.startswith("<"))
    assert "".join(text.split()) != "" or not kept.replace("▁", "")
    for character in kept.replace("▁", ""):
        assert character in text


LLAMA = Tokenizer(llama(), "llama", (1,), (), frozenset((2,)))


def test_the_cost_of_a_step_does_not_grow() -> None:
    stream = TextStream(BYTES)
    for token in BYTES.encode("the house " * 200):
        stream.push(token)
        assert len(stream.ids) - stream.first <= 2

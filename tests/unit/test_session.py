"""Sessions: batches, streams, stop strings, images that are encoded once, cancellation."""

from __future__ import annotations

import io
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scripted import ScriptedEngine

import vlmc
from vlmc.diagnostics import UsageError
from vlmc.runtime.byte_tokenizer import byte_tokenizer
from vlmc.runtime.features import FeatureStore
from vlmc.runtime.session import Session
from vlmc.runtime.stopping import StopWatch

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs" / "images" / "shapes.png"
LLAVA = ROOT / "specs" / "llava-1.5.yaml"
SPECS = {
    name: ROOT / "specs" / f"{name}.yaml"
    for name in ("llava-1.5", "blip2", "blip2-flan-t5", "flamingo", "idefics-9b", "visualbert")
}
OF_ONE_IMAGE = ("llava-1.5", "blip2", "blip2-flan-t5")
"""Designs whose token budget has a single image."""
twins: dict[str, Session] = {}


def twin(name: str = "llava-1.5") -> Session:
    if name not in twins:
        more = ["token_budget.images=3"] if name in OF_ONE_IMAGE else []
        twins[name] = vlmc.load(SPECS[name], mini=True, overrides=more)
    twins[name].store.clear()
    return twins[name]


def scripted(*scripts: str | list[int]) -> tuple[Session, ScriptedEngine]:
    """A session that says these texts, a byte at a time."""
    base = twin()
    tokens = [list(one.encode()) if isinstance(one, str) else one for one in scripts]
    engine = ScriptedEngine(base.design.vocabulary, *tokens)
    return replace(base, engine=engine, store=FeatureStore(2**20)), engine


def noise(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("name", SPECS)
def test_a_batch_answers_as_each_prompt_alone(name: str) -> None:
    session = twin(name)
    prompts = ["What is it?", "Why, and since when is the second of them larger?", "Name both."]
    images: list[list[Any]] = [[PICTURE], [], [noise(1), noise(2)]]
    if session.design.serving == "single_pass":
        images[2].pop()
    options: dict[str, Any] = {"max_new_tokens": 12} if session.design.generates else {}
    together = session.generate(prompts, images, **options)
    alone = [
        session.generate(prompt, own, **options)
        for prompt, own in zip(prompts, images, strict=True)
    ]
    for one, other in zip(together, alone, strict=True):
        assert (one.tokens, one.text, one.finish) == (other.tokens, other.text, other.finish)
        assert [c.index for c in one.choices] == [c.index for c in other.choices]
        assert one.inputs == other.inputs
    assert len({(one.text, one.choices) for one in together}) > 1
    other_images = [[noise(5)], [], [noise(6), noise(2)][: len(images[2])]]
    changed = session.generate(prompts, other_images, **options)
    assert [one.tokens or one.choices for one in changed] != [
        one.tokens or one.choices for one in together
    ]


def test_each_row_of_a_batch_ends_by_itself() -> None:
    end = byte_tokenizer("decoder", 320).id("</s>")
    assert end is not None
    session, engine = scripted([*b"ab", end], "abcdef", [end])
    answers = session.generate(["1", "2", "3"], max_new_tokens=5)
    assert [one.text for one in answers] == ["ab", "abcde", ""]
    assert [one.finish for one in answers] == ["stop", "length", "stop"]
    assert engine.steps == 4, "the last token asks for no further step"


def test_a_batch_draws_each_row_as_it_would_alone_in_its_place() -> None:
    session = twin()
    options = {"temperature": 2.0, "seed": 4, "max_new_tokens": 8}
    together = session.generate(["Why?", "Why?"], [[PICTURE], [PICTURE]], **options)
    assert together[0].tokens == session.generate("Why?", PICTURE, **options).tokens
    assert together[0].tokens != together[1].tokens


def test_a_stream_is_the_answer_in_pieces() -> None:
    session = twin()
    whole = session.generate("What?", PICTURE, max_new_tokens=20)
    stream = session.generate("What?", PICTURE, max_new_tokens=20, stream=True)
    assert any("seeded" in note for note in stream.notes)
    pieces = list(stream)
    assert "".join(pieces) == whole.text == stream.answer.text
    assert len(pieces) > 3
    assert stream.answer.tokens == whole.tokens
    assert stream.answer.finish == "length"


def test_a_stream_never_holds_half_a_character() -> None:
    session, _ = scripted("aé€😀\u0301z")
    stream = session.generate("What?", max_new_tokens=len("aé€😀\u0301z".encode()), stream=True)
    assert list(stream) == ["a", "é", "€", "😀", "\u0301", "z"]
    cut, _ = scripted("a😀")
    assert list(cut.generate("What?", max_new_tokens=3, stream=True)) == ["a", "\ufffd"]


def test_a_stream_of_a_batch_says_whose_piece_it_is() -> None:
    session, _ = scripted("ab", "cd")
    pieces = list(session.generate(["1", "2"], max_new_tokens=2, stream=True))
    assert pieces == [(0, "a"), (1, "c"), (0, "b"), (1, "d")]


def test_stop_strings_end_an_answer_and_never_get_out() -> None:
    session, engine = scripted("one. two\n\nthree")
    for stop in ("\n\n", ["zz", "\n\n"], ["\n\nthree", "\n\n"]):
        stream = session.generate("What?", max_new_tokens=15, stop=stop, stream=True)
        pieces = list(stream)
        assert "".join(pieces) == "one. two" == stream.answer.text
        assert all("\n" not in piece for piece in pieces)
        assert stream.answer.finish == "stop"
    steps = engine.steps
    assert session.generate("What?", max_new_tokens=15, stop="one").text == ""
    assert engine.steps == steps + 2, "nothing is computed beyond the stop string"
    whole = session.generate("What?", max_new_tokens=15, stop=["three!", "twox"])
    assert whole.text == "one. two\n\nthree"
    assert whole.finish == "length"


@given(
    st.lists(st.text("ab", max_size=3), max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_however_a_text_is_cut_it_ends_before_its_first_stop_string(
    pieces: list[str], stops: list[str]
) -> None:
    watch = StopWatch(stops)
    said = ""
    for piece in pieces:
        said += watch.push(piece)
        assert not any(stop in said for stop in stops)
        if watch.stopped:
            break
    said += watch.finish()
    heard = expected = ""
    for piece in pieces:
        heard = expected = heard + piece
        found = [heard.find(stop) for stop in stops if stop in heard]
        if found:
            expected = heard[: min(found)]
            break
    assert said == expected
    assert watch.stopped == any(stop in heard for stop in stops)


def counted(session: Session, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    encode = session.engine.encode_images

    def counting(pixels: Any) -> Any:
        calls.append(len(pixels))
        return encode(pixels)

    monkeypatch.setattr(session.engine, "encode_images", counting)
    return calls


@pytest.mark.parametrize("name", SPECS)
def test_a_follow_up_question_encodes_nothing_again(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = twin(name)
    calls = counted(session, monkeypatch)
    options: dict[str, Any] = {"max_new_tokens": 4} if session.design.generates else {}
    first = session.generate("What?", PICTURE, **options)
    assert calls == [1]
    with Image.open(PICTURE) as picture:
        decoded = picture.convert("RGB")
    for again in (PICTURE, str(PICTURE), PICTURE.read_bytes(), decoded, np.asarray(decoded)):
        answer = session.generate("What?", again, **options)
        assert (answer.tokens, answer.choices) == (first.tokens, first.choices)
    assert calls == [1]
    session.generate("What?", noise(3), **options)
    assert calls == [1, 1]


def test_images_are_encoded_together_and_each_once(monkeypatch: pytest.MonkeyPatch) -> None:
    session = twin("flamingo")
    calls = counted(session, monkeypatch)
    session.generate(["a", "b"], [[noise(1), noise(2)], [noise(2), noise(1), noise(3)]])
    assert calls == [3]


@pytest.mark.parametrize("name", ["llava-1.5", "flamingo", "blip2-flan-t5"])
def test_encoded_images_stand_for_images(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    session = twin(name)
    expected = session.generate("A <image> or <image>?", [noise(1), PICTURE], max_new_tokens=8)
    encoded = session.encode_images([noise(1), PICTURE])
    session.store.clear()
    calls = counted(session, monkeypatch)
    answer = session.generate("A <image> or <image>?", encoded, max_new_tokens=8)
    assert answer.tokens == expected.tokens
    swapped = session.generate("A <image> or <image>?", encoded[::-1], max_new_tokens=8)
    assert swapped.tokens != expected.tokens
    assert calls == []


def test_kept_features_are_bounded_and_the_oldest_go_first() -> None:
    store = FeatureStore(100)
    for key in "abc":
        store.put(key, np.zeros(10, np.float32))
        store.get("a")
    assert list(store.kept) == ["c", "a"]
    assert store.bytes == 80
    store.put("huge", (np.zeros(20, np.float32), np.zeros(20, np.float32)))
    assert list(store.kept) == ["c", "a"], "what does not fit is not kept"
    store.put("pair", ((np.zeros(1, np.float32),), np.zeros(1, np.float32)))
    assert store.bytes == 88


def test_videos_and_images_stand_in_the_order_of_their_markers() -> None:
    session = twin("flamingo")
    film = np.stack([np.asarray(noise(seed)) for seed in (7, 8)])
    prompt = "First <video>, then <image>."
    mixed = session.generate(prompt, [PICTURE], videos=[film], max_new_tokens=8)
    frames = [noise(7), noise(8)]
    same = session.generate("First <image>, then <image>.", [frames, PICTURE], max_new_tokens=8)
    assert mixed.tokens == same.tokens
    assert mixed.inputs.images == 2
    other = session.generate(
        "First <image>, then <video>.", [PICTURE], videos=[film], max_new_tokens=8
    )
    assert other.tokens != mixed.tokens


def test_an_event_ends_a_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    session, engine = scripted("abcdefgh")
    event = threading.Event()
    stream = session.generate("What?", max_new_tokens=8, cancel=event, stream=True)
    assert [next(stream), next(stream)] == ["a", "b"]
    event.set()
    assert list(stream) == []
    assert (stream.answer.text, stream.answer.finish) == ("ab", "cancelled")
    assert engine.steps == 1
    early = session.generate("What?", PICTURE, max_new_tokens=8, cancel=event)
    assert (early.text, early.finish, engine.steps, engine.encoded) == ("", "cancelled", 1, [])
    assert session.generate("What?", max_new_tokens=3).text == "abc"


def test_closing_a_stream_leaves_the_session_usable() -> None:
    session = twin()
    expected = session.generate("What?", PICTURE, max_new_tokens=6)
    with session.generate("What?", PICTURE, max_new_tokens=6, stream=True) as stream:
        first = next(stream)
    assert stream.answer.finish == "cancelled"
    assert expected.text.startswith(first)
    assert list(stream) == []
    assert session.generate("What?", PICTURE, max_new_tokens=6).tokens == expected.tokens


def test_two_generations_may_go_on_at_once() -> None:
    session = twin("flamingo")
    alone = [session.generate(p, PICTURE, max_new_tokens=6).text for p in ("What?", "Why so?")]
    streams = [
        session.generate(p, PICTURE, max_new_tokens=6, stream=True) for p in ("What?", "Why so?")
    ]
    said = ["", ""]
    for _ in range(6):
        for row, stream in enumerate(streams):
            said[row] += next(stream, "")
    for row, stream in enumerate(streams):
        said[row] += "".join(stream)
    assert said == alone


def test_a_pool_of_blocks_says_the_same_and_gets_all_of_them_back() -> None:
    options: dict[str, Any] = {"max_new_tokens": 12}
    prompts, images = ["What?", "Why is the second one larger?"], [[PICTURE], []]
    expected = [one.tokens for one in twin().generate(prompts, images, **options)]
    paged = vlmc.load(LLAVA, mini=True, blocks=10)
    for _ in range(4):
        assert [one.tokens for one in paged.generate(prompts, images, **options)] == expected
    streams = [paged.generate("What?", PICTURE, stream=True, **options) for _ in range(2)]
    for stream in streams:
        next(stream)
    with pytest.raises(UsageError, match="10 blocks of"):
        paged.generate("x" * 100, **options)
    for stream in streams:
        stream.close()
    assert paged.generate("x" * 100, **options).tokens


def test_bytes_of_a_file_are_an_animation_too() -> None:
    session = twin("flamingo")
    buffer = io.BytesIO()
    frames = [noise(seed) for seed in range(3)]
    frames[0].save(buffer, "WEBP", lossless=True, save_all=True, append_images=frames[1:])
    film = session.generate("What?", buffer.getvalue(), max_new_tokens=6)
    assert film.tokens == session.generate("What?", [frames], max_new_tokens=6).tokens

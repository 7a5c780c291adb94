"""Special words steer the model where they are a template's, and are text where they are a user's,
with every family of tokenizers."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_files import bert, llama, llama_without_legacy, opt, t5
from tokenizers import AddedToken, Tokenizer, normalizers

from vlmc.runtime.byte_tokenizer import byte_file
from vlmc.runtime.specials import HIDDEN, Specials, guarded


def llama_that_merges_its_end() -> Tokenizer:
    """As older files are: their merges reach the special words."""
    file = llama()
    text = file.to_str()
    merges = '["<", "/"], ["s", ">"], ["</", "s>"], '
    text = re.sub(r'("merges":\s*\[)', lambda found: found.group() + merges, text)
    text = re.sub(
        r'("vocab":\s*\{)', r'\1"</": 900, "s>": 901, "<": 902, "/": 903, ">": 904, ', text
    )
    return Tokenizer.from_str(text)


MAKERS = (llama, llama_without_legacy, llama_that_merges_its_end, opt, t5, bert, byte_file)
FILES = {make.__name__: make() for make in MAKERS}
UNKNOWN = ("<unk>", "[UNK]")
"""What is not known becomes one of these, whoever wrote it."""
WORDS = ("</s>", "<s>", "<pad>", "[SEP]", "[MASK]", "<unk>")
PIECES = (
    *WORDS,
    "</",
    "s>",
    "<",
    "[",
    "SEP]",
    "the house",
    " ",
    "\n",
    "é",
    HIDDEN,
    "\ufdd10\ufdd2",
)


def special(file: Tokenizer, ids: list[int]) -> list[int]:
    known = {n for word, n in Specials(file).tokens.items() if word not in UNKNOWN}
    return [one for one in ids if one in known]


@pytest.mark.parametrize("name", FILES)
def test_text_without_special_words_is_cut_as_ever(name: str) -> None:
    specials = Specials(FILES[name])
    for text in ("the house is red", " the\n house", "", "a < b > c [d]", "é 😀"):
        plain = FILES[name].encode(text, add_special_tokens=False).ids
        assert specials.encode(guarded(text, specials.tokens)) == plain


@pytest.mark.parametrize("name", FILES)
def test_a_templates_words_steer_and_a_users_do_not(name: str) -> None:
    file = FILES[name]
    specials = Specials(file)
    assert specials.tokens
    for word, token in specials.tokens.items():
        if word in UNKNOWN:
            continue
        assert special(file, file.encode(f"the {word}", add_special_tokens=False).ids) == [token]
        own = guarded(f"the {word} house", specials.tokens)
        assert special(file, specials.encode(own)) == []
        assert special(file, specials.encode(f"{word}{own}{word}")) == [token, token]
        halves = guarded(f"a {word[:-1]}", specials.tokens) + guarded(word[-1], specials.tokens)
        assert special(file, specials.encode(halves)) == [], "two texts side by side"
        kept = guarded(f"the {word} house", {*specials.tokens} - {word})
        assert special(file, specials.encode(kept)) == [token]


@pytest.mark.parametrize("make", [llama, llama_without_legacy, opt, byte_file])
@pytest.mark.parametrize("text", ["say </s>", "</s> the", "the</s>the house</s>"])
def test_the_users_words_are_cut_as_their_letters(make: Callable[[], Tokenizer], text: str) -> None:
    file = make()
    specials = Specials(file)
    ids = specials.encode(guarded(text, specials.tokens))
    file.encode_special_tokens = True
    assert ids == file.encode(text, add_special_tokens=False).ids
    assert ids == Specials(make()).encode(guarded(text, specials.tokens))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([*FILES]), st.lists(st.lists(st.sampled_from(PIECES), max_size=4), max_size=4)
)
def test_whatever_users_write_side_by_side(name: str, parts: list[list[str]]) -> None:
    file = FILES[name]
    specials = SPECIALS[name]
    frame = next(word for word in specials.tokens if word not in UNKNOWN)
    own = "".join(guarded("".join(part), specials.tokens) for part in parts)
    ids = specials.encode(f"{frame}{own}{frame}")
    assert special(file, ids) == [specials.tokens[frame]] * 2


SPECIALS = {name: Specials(file) for name, file in FILES.items()}


def test_letters_that_a_file_turns_into_a_special_word() -> None:
    file = opt()
    file.normalizer = normalizers.NFKC()
    file.add_special_tokens([AddedToken("<end>", normalized=True)])
    wide = "the \uff1cend\uff1e"
    assert special(file, file.encode(wide).ids[1:]) == [file.token_to_id("<end>")]
    assert special(file, Specials(file).encode(wide)) == []

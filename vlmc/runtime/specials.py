"""Words that steer a model, kept apart from the same words in somebody's text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, cast

from tokenizers import Tokenizer as TokenizerFile

HIDDEN = "\ufdd0"
"""Stands within what a user wrote, where it would pass for a special word without it. Unicode has
it for such inner use; no text holds it."""

NO_CHARACTERS = re.compile("[\ufdd0-\ufdef]")


def guarded(text: str, words: Iterable[str]) -> str:
    """A user's text in which none of `words` stands any more, nor begins at its end: `HIDDEN` is
    after the first letter of each. `Specials.encode` reads them as text."""
    text = NO_CHARACTERS.sub("", text)
    words = [word for word in words if len(word) > 1]
    firsts = {word[0] for word in words}
    longest = max(map(len, words), default=0)
    end = len(text.rstrip())  # a template may trim what it is given
    pieces: list[str] = []
    for place, letter in enumerate(text):
        pieces.append(letter)
        if letter in firsts:
            rest = text[place : place + longest]
            tail = text[place:end] if end - place < longest else ""
            if any(rest.startswith(w) or (tail and w.startswith(tail)) for w in words):
                pieces.append(HIDDEN)
    return "".join(pieces)


class Specials:
    """The special tokens of a tokenizer file: those that it marks so."""

    def __init__(self, file: TokenizerFile) -> None:
        self.file = file

    @cached_property
    def tokens(self) -> dict[str, int]:
        """Their ids by their words."""
        added: dict[int, Any] = self.file.get_added_tokens_decoder()
        return {
            one.content: number
            for number, one in added.items()
            if one.special and len(one.content) > 1
        }

    def encode(self, text: str) -> list[int]:
        """Ids of a text. Its special words become special tokens, and those that `guarded` has
        hidden what their letters are."""
        plain = text.replace(HIDDEN, "")
        parts = self._parts(text)
        if [part.replace(HIDDEN, "") for part in parts] == self._parts(plain):
            ids = self.file.encode(plain, add_special_tokens=False).ids
            if self._count(ids) <= len(parts) // 2:  # more: a normaliser wrote such a word
                return ids
        file, names = self._renamed
        words = [names.get(part, part) if n % 2 else part for n, part in enumerate(parts)]
        return file.encode("".join(words).replace(HIDDEN, ""), add_special_tokens=False).ids

    def _parts(self, text: str) -> list[str]:
        """The text between special words, and in every second place such a word."""
        return self._pattern.split(text) if self.tokens else [text]

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        words = sorted(self.tokens, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, words))})")

    def _count(self, ids: Sequence[int]) -> int:
        special = {*self.tokens.values()}
        return sum(one in special for one in ids)

    @cached_property
    def _renamed(self) -> tuple[TokenizerFile, dict[str, str]]:
        """The file with names for its special tokens that no text holds, and these names.
        Everything else stays, so that text is cut as before."""
        names = {word: f"\ufdd1{number}\ufdd2" for word, number in self.tokens.items()}
        found = cast("dict[str, Any]", json.loads(self.file.to_str()))
        for one in found["added_tokens"]:
            one["content"] = names.get(one["content"], one["content"])
        model = found["model"]
        if isinstance(model["vocab"], dict):
            vocabulary = cast("dict[str, int]", model["vocab"])
            model["vocab"] = {names.get(word, word): n for word, n in vocabulary.items()}
        else:
            model["vocab"] = [[names.get(word, word), score] for word, score in model["vocab"]]
        if model.get("unk_token") is not None:
            model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
        if "merges" in model:
            model["merges"] = [one for one in model["merges"] if not _makes(one, names)]
        found["post_processor"] = None  # it is not asked, and knows the old names
        return TokenizerFile.from_str(json.dumps(found)), names


def _makes(merge: str | Sequence[str], names: Mapping[str, str]) -> bool:
    """Whether a merge makes a special word, or goes on from one."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return bool({left, right, left + right}.intersection(names))

"""Text to token ids and back, by real tokenizer files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as TokenizerFile

from vlmc.diagnostics.faults import UsageError
from vlmc.runtime.json_object import json_object
from vlmc.runtime.specials import Specials

END_TOKENS = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "<|eot_id|>", "<|im_end|>")
"""Names of the end of a text, tried where a checkpoint's own files do not say."""

REPLACEMENT = "\ufffd"
LONGEST_CHARACTER = 4
"""Bytes of the longest character in UTF-8."""


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A tokenizer file with what surrounds a prompt: `start` and `end` are the special tokens that
    its post-processor puts around a text; `stops` end an answer."""

    file: TokenizerFile
    name: str
    start: tuple[int, ...]
    end: tuple[int, ...]
    stops: frozenset[int]
    specials: Specials = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "specials", Specials(self.file))

    @property
    def size(self) -> int:
        """One more than the highest id."""
        return max(self.file.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def encode(self, text: str) -> list[int]:
        """Ids of a stretch of text, without what surrounds a prompt. Words such as `</s>` that the
        file lists as special are read as such, unless they are `guarded`; see `Specials.encode`."""
        return self.specials.encode(text)

    def id(self, token: str) -> int | None:
        """The id of a token by its name."""
        return self.file.token_to_id(token)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens left out. Ids that the file lacks have no text."""
        return self.file.decode(list(ids), skip_special_tokens=True)

    def decode_all(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens by their names."""
        return self.file.decode(list(ids), skip_special_tokens=False)


class TextStream:
    """Decodes an answer token by token, never through the middle of a character.

    What is emitted is final. Bytes of an unfinished character are held back until it is whole.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.first = 0
        """Where the decoded window begins. A window and not all ids, so that the cost of a step
        does not grow; one finished stretch stays in it, because the first word of a text loses its
        space."""
        self.ready = 0
        """Ids before this one are emitted for good."""
        self.emitted = ""
        """The emitted text of the window."""

    def push(self, token: int) -> str:
        """The text that `token` finishes, often empty."""
        self.ids.append(token)
        text = self._window()
        held = len(text) - len(text.rstrip(REPLACEMENT))
        piece = self._emit(text[: len(text) - min(held, LONGEST_CHARACTER - 1)])
        if held == 0 and piece:
            self.first, self.ready = self.ready, len(self.ids)
            self.emitted = self.tokenizer.decode(self.ids[self.first :])
        return piece

    def finish(self) -> str:
        """What is still held back, unfinished characters as U+FFFD."""
        return self._emit(self._window())

    def _window(self) -> str:
        text = self.tokenizer.decode(self.ids[self.first :])
        if not text.startswith(self.emitted):
            # Byte fallback decodes a run of bytes as a whole: one that began well may turn bad.
            self.first, self.emitted = self.ready, ""
            text = self.tokenizer.decode(self.ids[self.first :])
        return text

    def _emit(self, stable: str) -> str:
        """What `stable` has beyond the emitted part of the window."""
        piece = stable[len(self.emitted) :]
        self.emitted += piece
        return piece


def load_tokenizer(path: Path, checkpoint: Path | None = None) -> Tokenizer:
    """The tokenizer of a file, or of a folder that holds tokenizer.json. What begins and ends text
    follows generation_config.json, config.json and tokenizer_config.json of `checkpoint`, then
    those beside the file.

    Raises UsageError where there is none.
    """
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise UsageError(_absent(path, file))
    try:
        tokenizer = TokenizerFile.from_file(str(file))
    except Exception as error:  # the library raises bare Exception on a file that it cannot read
        raise UsageError(f"{file}: not a tokenizer file: {str(error)[:200]}") from None
    # A file may ask for a fixed length; a prompt is as long as it is.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    start, end = _surroundings(tokenizer)
    settings = _settings(file.parent)
    if checkpoint is not None:
        settings |= _settings(checkpoint)
    if not start and settings.get("add_bos_token") is True:
        first = _token_id(tokenizer, settings.get("bos_token"))
        start = () if first is None else (first,)
    return Tokenizer(tokenizer, str(file), start, end, _stops(tokenizer, settings))


def _absent(path: Path, file: Path) -> str:
    if not path.exists():
        return f"{path}: no such file or folder"
    old = [
        name for name in ("tokenizer.model", "vocab.json", "vocab.txt") if (path / name).exists()
    ]
    seen = f" ({', '.join(old)} is an older format: convert it once with transformers)" * bool(old)
    return f"{file}: there is no tokenizer here{seen}; give one with --tokenizer PATH"


def _surroundings(tokenizer: TokenizerFile) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the post-processor puts before and after a text."""
    inner = tokenizer.encode("a", add_special_tokens=False).ids
    outer = tokenizer.encode("a", add_special_tokens=True).ids
    for before in range(len(outer) - len(inner) + 1):
        if inner and outer[before : before + len(inner)] == inner:
            return tuple(outer[:before]), tuple(outer[before + len(inner) :])
    return (), ()


def _settings(folder: Path) -> dict[str, Any]:
    """The keys of a checkpoint folder's files, the more specific file winning."""
    merged: dict[str, Any] = {}
    for name in ("tokenizer_config.json", "config.json", "generation_config.json"):
        if not (folder / name).is_file():
            continue
        found = json_object(folder / name)
        nested = found.get("text_config")
        for source in (nested, found):
            if isinstance(source, dict):
                merged.update({k: v for k, v in source.items() if v is not None})  # pyright: ignore
    return merged


def _stops(tokenizer: TokenizerFile, settings: dict[str, Any]) -> frozenset[int]:
    declared = settings.get("eos_token_id")
    if isinstance(declared, int):
        return frozenset((declared,))
    if isinstance(declared, list):
        return frozenset(one for one in declared if isinstance(one, int))  # pyright: ignore
    named = _token_id(tokenizer, settings.get("eos_token"))
    if named is not None:
        return frozenset((named,))
    found = (tokenizer.token_to_id(name) for name in END_TOKENS)
    return frozenset(one for one in found if one is not None)


def _token_id(tokenizer: TokenizerFile, token: Any) -> int | None:
    """The id of a token that a file names as text or as {"content": text}."""
    if isinstance(token, dict):
        token = token.get("content")  # pyright: ignore
    return tokenizer.token_to_id(token) if isinstance(token, str) else None

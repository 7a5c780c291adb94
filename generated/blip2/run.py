"""Answers about images with blip2-opt-2.7b: Python 3.11 or newer, numpy, Pillow, tokenizers, and
what the engine needs (onnx: onnxruntime; eager, compile, aoti: torch).

    python run.py --engine onnx --image picture.png --prompt "What is in the picture?"

It reads the artifacts beside it: onnx/, aoti/, compile/, or model.py and weights/.
"""

from __future__ import annotations

import sys
from pathlib import Path

if sys.path and Path(sys.path[0] or ".").resolve() == Path(__file__).resolve().parent:
    # Folders of a build such as onnx/ would pass for the packages of that name.
    del sys.path[0]


import argparse
import functools
import hashlib
import importlib
import inspect
import json
import math
import os
import platform
import re
import time
import unicodedata
import warnings
import weakref
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from functools import cache, cached_property
from importlib import import_module
from io import BytesIO
from itertools import groupby, pairwise
from numbers import Integral, Real
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Protocol, cast, get_args
from uuid import uuid4

try:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image, ImageOps
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as TokenizerFile
    from tokenizers.decoders import ByteLevel as ByteLevelDecoder
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
except ModuleNotFoundError as error:
    package = {"PIL": "Pillow"}.get(error.name or "", error.name)
    sentence = f"the package {package} is missing: pip install {package}"
    if "--json" in sys.argv:
        import json

        print(json.dumps({"version": 1, "error": sentence, "exit": 3}))
    else:
        print(f"error: {sentence}", file=sys.stderr)
    sys.exit(3)


class _Late:
    """A package that is imported when it is first used: each engine needs its own alone."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self.name), attribute)


def _when_called(decorator: Callable[[], Callable[[Any], Any]]) -> Callable[[Any], Any]:
    """A decorator of such a package, applied when the function is first called."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        made = functools.cache(lambda: decorator()(function))
        return functools.wraps(function)(lambda *given, **named: made()(*given, **named))

    return decorate


if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = _Late("torch")

# --------------------------------------------------------------------------------------------------
# What a user is told without a traceback; needs nothing else of vlmc.
# --------------------------------------------------------------------------------------------------


class UsageError(Exception):
    """A command that cannot mean anything, such as a file that is not there. Exit code 2."""


class EnvironmentFault(Exception):
    """The design is sound but this machine cannot do what was asked. Exit code 3."""


# --------------------------------------------------------------------------------------------------
# What the system says of the processor.
# --------------------------------------------------------------------------------------------------


def processor_says(*keys: str, path: Path = Path("/proc/cpuinfo")) -> str | None:
    """What Linux says in `path` of the first processor under the first of `keys` that stands there;
    None where it says nothing."""
    try:
        text = path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in keys:
            return value.strip()
    return None


# --------------------------------------------------------------------------------------------------
# What running a model has to know of its design: numbers and words, as they stand in JSON.
# --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """How a picture becomes pixel values, where no checkpoint says otherwise."""

    resize: Literal["shortest_edge", "stretch", "pad"]
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"]
    mean: tuple[float, ...]
    """Of each channel, on a scale of 0 to 1."""
    std: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """One design, of its laptop-size twin where `mini`."""

    name: str
    mini: bool
    serving: Literal["sequence", "cross_attention", "encoder_decoder", "single_pass"]
    """How vision reaches the language model: among the words of a decoder, as keys and values that
    it looks at, through an encoder, or in one pass that generates nothing."""
    head: Literal["lm", "classify", "masked_lm"]
    vocabulary: int
    """Entries of the language model's vocabulary, added tokens included."""
    context: int | None
    """Positions that the language model has; None where it has no bound."""
    text: int
    """Tokens of text in the token budget."""
    sequence: int
    """The longest sequence of the token budget: text and what its images take of it."""
    capacity: int
    """Slots of a key/value cache of fixed size: tokens that one row can have."""
    max_images: int
    """Images of one prompt in the token budget."""
    image_token: int | None
    """The token in whose places visual tokens stand (or that marks an image which is looked at from
    outside); None where visual tokens stand in front of the text or after it."""
    settable: bool
    """Whether a spec of this design could name an image token."""
    leading: bool
    """Whether images at the very front stand before the start token."""
    all_previous: bool
    """Whether a token looks at every image before it, and not at the last one alone."""
    positions: tuple[int, ...]
    """Positions of the sequence that an image of 1, 2, ... frames takes."""
    visual: tuple[int, ...]
    """Visual tokens that an image of 1, 2, ... frames becomes."""
    input_name: Literal["pixel_values", "visual_embeds"]
    """What the vision graph takes: pixels, or features of regions."""
    image_size: int | None
    """Height and width of the pixels; None where it takes features of regions."""
    preprocessing: Preprocessing | None
    regions: int
    """Regions of one image at most; 0 where it takes pixels."""
    region_width: int
    """Channels of the features of a region."""
    boxes: bool
    """Whether a file of features must hold a box for each region."""
    start_token: int | None
    """What the decoder of an encoder-decoder begins with; None where there is none."""
    cache_elements: int
    """Numbers that the key/value cache keeps for one token."""
    parts: tuple[str, ...] = ()
    """The parts that have weights: encoder, adapter, ..."""

    @property
    def frames(self) -> int:
        """Frames of one image at most: 1 for stills."""
        return len(self.positions)

    @property
    def generates(self) -> bool:
        """Whether it writes text, token by token."""
        return self.serving != "single_pass"

    def to_json(self) -> str:
        """As JSON, from which `design_from_json` makes it again."""
        return json.dumps(asdict(self), indent=2) + "\n"


def design_from_json(text: str) -> Design:
    """The design that `Design.to_json` wrote. Raises UsageError where the text is none."""
    try:
        found = cast("dict[str, Any]", json.loads(text))
        steps = found.pop("preprocessing")
        if steps is not None:
            steps = Preprocessing(**{k: _tuples(v) for k, v in steps.items()})
        return Design(preprocessing=steps, **{k: _tuples(v) for k, v in found.items()})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"not the description of a design: {error}") from None


def _tuples(value: Any) -> Any:
    return tuple(cast("list[Any]", value)) if isinstance(value, list) else value


# --------------------------------------------------------------------------------------------------
# Numbers that a caller gives, checked by their kind before they are compared.
# --------------------------------------------------------------------------------------------------


MANY_THREADS = 64
"""Threads that any machine may be asked for; many more than its processors would fill its memory
and stand in each other's way."""


def check_whole(name: str, given: object, least: int) -> None:
    """Raises UsageError, which calls the number `name`, unless it is whole and `least` or more."""
    if isinstance(given, bool) or not isinstance(given, Integral) or int(given) < least:
        what = "a whole number, " * (not isinstance(given, int))
        raise UsageError(f"{name} {given!r}: {what}{least} or more is expected")


def check_threads(given: object) -> None:
    """Raises UsageError unless it is a number of threads in which this machine can compute."""
    check_whole("--threads", given, 1)
    here = os.cpu_count() or 1
    most = max(MANY_THREADS, here)
    if cast("int", given) > most:
        raise UsageError(
            f"--threads {given}: 1 to {most} are expected; this machine computes in {here} at once"
        )


def is_number(given: object) -> bool:
    """Whether it is a real number, whole or not."""
    return not isinstance(given, bool) and isinstance(given, Real)


# --------------------------------------------------------------------------------------------------
# The JSON files that come with weights.
# --------------------------------------------------------------------------------------------------


def json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UsageError where it is absent or something else."""
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: is not readable as JSON: {error}") from None
    if not isinstance(value, dict):
        raise UsageError(f"{path}: holds no JSON object")
    return cast("dict[str, Any]", value)


# --------------------------------------------------------------------------------------------------
# The interface of every engine: numbers in, logits out; what a design means is its caller's.
# --------------------------------------------------------------------------------------------------


Pixels = NDArray[np.float32]
Ids = NDArray[np.int64]
Flags = NDArray[np.bool_]
Logits = NDArray[np.float32]

Feature = Any
"""What the vision graph makes of one image, in the engine's own form. It may be kept and used again
by the same engine, in any row, as often as one likes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One sequence of a batch."""

    ids: Ids
    """[tokens]; any valid id where a visual token stands."""
    visual: Flags
    """[tokens]: True where visual tokens of `features` stand, in their order."""
    features: tuple[Feature, ...] = ()
    seen: Flags | None = None
    """[tokens, features]: which image a token looks at, where images are looked at from outside
    the sequence."""


def padded(rows: Sequence[Row]) -> tuple[Ids, Ids]:
    """Ids [batch, text], padded on the right, and their mask: 1 where there is a token."""
    longest = max(len(row.ids) for row in rows)
    ids, mask = np.zeros((2, len(rows), longest), np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row.ids)] = row.ids
        mask[index, : len(row.ids)] = 1
    return ids, mask


def check_rows(name: str, rows: int, most: int | None) -> None:
    """Raises UsageError where the graphs of the engine `name` take fewer rows at once."""
    if most is not None and rows > most:
        raise UsageError(
            f"{rows} prompts at once: the graphs of --engine {name} take {most}; give fewer at a "
            "time"
        )


def check_length(name: str, tokens: int, most: int | None) -> None:
    """Raises UsageError where the graphs of the engine `name` take shorter prompts."""
    if most is not None and tokens > most:
        raise UsageError(
            f"a prompt has {tokens} tokens, images included: the graphs of --engine {name} take "
            f"{most}; --engine eager takes more, and so would a larger token_budget"
        )


class Engine(Protocol):
    """Runs the stages of one design. Holds no state of a generation itself, so that several may go
    on at once, in one thread."""

    name: str
    """As `vlmc run --engine` calls it."""

    @property
    def capacity(self) -> int | None:
        """Tokens that the sequence of one row may have, prompt and answer together (of an
        encoder-decoder: its decoder's); None where only the language model's positions bound it."""
        ...

    def encode_images(self, pixels: Pixels) -> list[Feature]:
        """One feature for each image of [images, channels, height, width], or [images, frames,
        channels, height, width]; of region features [images, regions, channels]."""
        ...

    def prefill(self, rows: Sequence[Row]) -> tuple[Any, Logits]:
        """Reads whole prompts, of unlike lengths as they may be: a state to go on from, and the
        logits [batch, vocabulary] after the last token of each, which the state's next step may
        overwrite. An encoder-decoder's decoder has then read its start token. Raises UsageError
        where a row is longer than the engine's graphs allow."""
        ...

    def step(self, state: Any, tokens: Ids) -> Logits:
        """Appends one token [batch] to each row; the logits [batch, vocabulary] after it, which the
        state's next step may overwrite."""
        ...

    def answer(self, rows: Sequence[Row]) -> dict[str, NDArray[np.float32]]:
        """The outputs, by name, of a design that answers in one pass."""
        ...


# --------------------------------------------------------------------------------------------------
# Words that steer a model, kept apart from the same words in somebody's text.
# --------------------------------------------------------------------------------------------------


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


# --------------------------------------------------------------------------------------------------
# Text to token ids and back, by real tokenizer files.
# --------------------------------------------------------------------------------------------------


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


# --------------------------------------------------------------------------------------------------
# The tokenizer of a twin: one token for each byte, so that any text fits a small vocabulary.
# --------------------------------------------------------------------------------------------------


Architecture = Literal["decoder", "encoder_decoder", "encoder"]
ARCHITECTURES: dict[str, Architecture] = {
    "sequence": "decoder",
    "cross_attention": "decoder",
    "encoder_decoder": "encoder_decoder",
    "single_pass": "encoder",
}
"""The kind of language model, by how vision reaches it."""

SPECIAL = ("<pad>", "<s>", "</s>", "[CLS]", "[SEP]", "[MASK]")
"""Special tokens, after the 256 bytes."""

SPECIAL_IDS = {token: 256 + index for index, token in enumerate(SPECIAL)}

SURROUNDINGS: dict[Architecture, tuple[str, str]] = {
    "decoder": ("<s>", ""),
    "encoder_decoder": ("", "</s>"),
    "encoder": ("[CLS]", "[SEP]"),
}
"""What stands before and after a prompt, by the kind of language model (Llama, T5, BERT)."""


def byte_file() -> TokenizerFile:
    """The tokenizer's file: ids 0 to 255 are the bytes, then `SPECIAL`."""
    characters = _byte_characters()
    vocabulary = {character: byte for byte, character in enumerate(characters)}
    vocabulary |= SPECIAL_IDS
    tokenizer = TokenizerFile(BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = ByteLevelDecoder()
    added = [AddedToken(token, normalized=False) for token in SPECIAL]
    tokenizer.add_special_tokens(added)  # pyright: ignore[reportUnknownMemberType]
    return tokenizer


def byte_tokenizer(architecture: Architecture, vocabulary: int) -> Tokenizer:
    """The byte tokenizer for a language model of `vocabulary` entries.

    Raises UsageError where the vocabulary is too small to hold it.
    """
    need = 256 + len(SPECIAL)
    if vocabulary < need:
        raise UsageError(
            f"the language model's vocabulary has {vocabulary} entries, but a twin's text needs "
            f"256 bytes + {len(SPECIAL)} special tokens = {need}; give a fitting file with "
            f"--tokenizer PATH"
        )
    start, end = SURROUNDINGS[architecture]
    return Tokenizer(
        byte_file(),
        "bytes",
        (SPECIAL_IDS[start],) if start else (),
        (SPECIAL_IDS[end],) if end else (),
        frozenset((SPECIAL_IDS["</s>"], SPECIAL_IDS["[SEP]"])),
    )


def _byte_characters() -> list[str]:
    """The printable character that stands for each byte in byte-level vocabularies (Radford et al.,
    2019): itself where it is printable Latin-1, else one from 256 up."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    characters: list[str] = []
    shifted = 0
    for byte in range(256):
        if byte in printable:
            characters.append(chr(byte))
        else:
            characters.append(chr(256 + shifted))
            shifted += 1
    return characters


# --------------------------------------------------------------------------------------------------
# A prompt with images in it as token ids.
# --------------------------------------------------------------------------------------------------


MARKER = "<image>"
"""What a prompt holds where an image belongs."""

FENCE = "<fake_token_around_image>"
"""What Idefics puts before and after each image, once between two (Laurencon et al., 2023)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """How an image stands in the token sequence.

    `token` is the placeholder's id, or None where images have no place among the ids and stand in
    front of them; `leading` says whether images at the very front stand before the start token
    (BLIP-2) or after it (LLaVA).
    """

    token: int | None
    leading: bool
    settable: bool = True
    """Whether the design could be given a placeholder (`fusion.token`)."""


def count_markers(prompt: str) -> int:
    """Images that the prompt places itself."""
    return prompt.count(MARKER)


def token_ids(
    prompt: str,
    *,
    tokenizer: Tokenizer,
    place: Place,
    images: Sequence[int],
    vocabulary: int,
    surrounded: bool = False,
) -> list[int]:
    """Ids of a prompt with `images[i]` placeholders for image i: each at its marker, or all in
    front where the prompt has no marker. `surrounded` says that the text itself holds what stands
    around a prompt, as one does that a chat template made.

    Raises UsageError where the prompt is no text, where markers and images do not match, where the
    text itself reads as a placeholder, or where the tokenizer knows words that the model does not.
    """
    if any("\ud800" <= c <= "\udfff" for c in prompt):  # what a shell makes of other bytes
        raise UsageError("the prompt is no text in UTF-8: write it in that encoding")
    stretches = _stretches(prompt, len(images))
    texts = _encoded(stretches, tokenizer)
    for text in texts:
        _check(text, tokenizer, place, vocabulary)
    if place.token is None and any(texts[:-1]):
        remedy = "leave the markers out"
        if place.settable:
            remedy = "set fusion.token to a placeholder's id to place them"
        raise UsageError(
            f"this design puts images in front of the text, but the prompt has {MARKER} after "
            f"words; {remedy}"
        )
    front = 0
    while place.leading and front < len(images) and not texts[front]:
        front += 1
    start, end = ((), ()) if surrounded else (tokenizer.start, tokenizer.end)
    ids: list[int] = []
    for index, text in enumerate(texts):
        if index == front:
            ids.extend(start)
        ids.extend(text)
        if index < len(images) and place.token is not None:
            _put(ids, [place.token] * images[index], tokenizer.id(FENCE))
    return [*ids, *end]


def _put(ids: list[int], image: list[int], fence: int | None) -> None:
    if fence is None:
        ids.extend(image)
        return
    if not ids or ids[-1] != fence:
        ids.append(fence)
    ids.extend((*image, fence))


def _stretches(prompt: str, images: int) -> list[str]:
    """The text before, between and after the images."""
    markers = count_markers(prompt)
    if markers == 0:
        return [*[""] * images, prompt]
    if markers != images:
        raise UsageError(
            f"the prompt has {markers} {MARKER} marker{'s' * (markers > 1)}, but "
            f"{_images(images)} given: write one marker for each --image, or none to have them "
            f"all in front"
        )
    return prompt.split(MARKER)


def _images(number: int) -> str:
    return "1 image is" if number == 1 else f"{number or 'no'} images are"


def _encoded(stretches: list[str], tokenizer: Tokenizer) -> list[list[int]]:
    """Ids of each stretch; as one text where the file knows the marker, since a tokenizer may treat
    the start of a text and the start of a later stretch differently."""
    known = tokenizer.id(MARKER)
    if known is not None:
        ids = tokenizer.encode(MARKER.join(stretches))
        if ids.count(known) == len(stretches) - 1:
            return _split(ids, known)
    return [tokenizer.encode(stretch) if stretch else [] for stretch in stretches]


def _split(ids: list[int], at: int) -> list[list[int]]:
    parts: list[list[int]] = [[]]
    for one in ids:
        if one == at:
            parts.append([])
        else:
            parts[-1].append(one)
    return parts


def _check(text: list[int], tokenizer: Tokenizer, place: Place, vocabulary: int) -> None:
    if place.token in text:
        raise UsageError(
            f"the prompt's own text reads as the image placeholder (token {place.token}) in the "
            f"tokenizer {tokenizer.name}; write {MARKER} where an image belongs, and check that "
            f"fusion.token is the tokenizer's id of its image token"
        )
    highest = max(text, default=0)
    if highest >= vocabulary:
        raise UsageError(
            f"the tokenizer {tokenizer.name} gives token {highest}, but the language model has "
            f"{vocabulary} words (0 to {vocabulary - 1}): it belongs to another model"
        )


# --------------------------------------------------------------------------------------------------
# A conversation as a prompt, by the chat template that came with the weights.
# --------------------------------------------------------------------------------------------------


Message = Mapping[str, Any]
"""{"role": "user", "content": TEXT or [{"type": "text", "text": TEXT}, {"type": "image"}, ...]}; an
image or video may carry its picture: {"type": "image", "image": PATH}."""

KINDS = ("image", "video")

SAFE_JINJA = (3, 1, 6)
"""Older versions let a template out of its sandbox."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTemplate:
    """A Jinja template, with the special tokens that it may name (`bos_token`, ...)."""

    text: str
    tokens: Mapping[str, str] = field(default_factory=dict[str, str])

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation as text, up to where the model's turn begins, as transformers'
        `apply_chat_template` renders it.

        Raises UsageError where the template refuses the conversation, EnvironmentFault without
        jinja2.
        """
        try:
            import jinja2
        except ImportError:
            raise EnvironmentFault(
                "a chat template is rendered by jinja2, which is not installed: pip install jinja2"
            ) from None
        if tuple(int(n) for n in jinja2.__version__.split(".")[:3]) < SAFE_JINJA:
            raise EnvironmentFault(
                f"jinja2 {jinja2.__version__} lets a chat template out of its sandbox: "
                f"pip install -U jinja2"
            )
        try:
            return (
                _jinja()
                .from_string(self.text)
                .render(
                    messages=messages,
                    tools=None,
                    documents=None,
                    add_generation_prompt=True,
                    **self.tokens,
                )
            )
        except jinja2.TemplateError as error:
            reason = str(error) or type(error).__name__
            raise UsageError(f"the chat template refuses this conversation: {reason}") from None
        except Exception as error:  # a template may fail as any program does
            raise UsageError(f"the chat template fails on this conversation: {error}") from None

    def takes_parts(self) -> bool:
        """Whether it expects a message's content as a list of parts."""
        return any(sign in self.text for sign in ("['type']", '["type"]', ".type", "'type'"))


def chat_template(folder: Path) -> ChatTemplate | None:
    """The chat template in a folder: chat_template.jinja, chat_template.json, or that of
    tokenizer_config.json. None where there is none. Raises UsageError for a damaged file."""
    config: dict[str, Any] = {}
    if (folder / "tokenizer_config.json").is_file():
        config = json_object(folder / "tokenizer_config.json")
    text: Any = config.get("chat_template")
    if (folder / "chat_template.json").is_file():
        text = json_object(folder / "chat_template.json").get("chat_template", text)
    if (folder / "chat_template.jinja").is_file():
        text = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if isinstance(text, list):  # several templates by name
        named = {one.get("name"): one.get("template") for one in cast("list[Any]", text)}
        text = named.get("default")
    if not isinstance(text, str):
        return None
    tokens = {
        name: word
        for name, found in config.items()
        if name.endswith("_token") and (word := _word(found)) is not None
    }
    return ChatTemplate(text=text, tokens=tokens)


def conversation_of(
    given: object, reserved: Sequence[str]
) -> tuple[list[Message], list[tuple[str, object]]]:
    """The messages, with every picture taken out; and the pictures in their order, each as its kind
    (image or video) and what was given, None where it is to come from elsewhere.

    Raises UsageError for what is no conversation, and for a text that holds one of the `reserved`
    words, which stand for images.
    """
    if not isinstance(given, list | tuple) or not given:
        raise UsageError('messages: a list of {"role": ..., "content": ...} is expected')
    messages: list[Message] = []
    pictures: list[tuple[str, object]] = []
    for number, one in enumerate(cast("Sequence[object]", given), start=1):
        if not isinstance(one, Mapping) or not {"role", "content"} <= set(cast("Any", one)):
            raise UsageError(f"message {number} has no `role` and `content`")
        message = dict(cast("Message", one))
        content: object = message["content"]
        if isinstance(content, str):
            _check_words(content, reserved, number)
        elif isinstance(content, list | tuple):
            parts = [_part(part, reserved, number) for part in cast("Sequence[object]", content)]
            pictures.extend(picture for _, picture in parts if picture is not None)
            message["content"] = [part for part, _ in parts]
        else:
            raise UsageError(f"message {number}: `content` is a text or a list of parts")
        messages.append(message)
    return messages, pictures


def _part(
    given: object, reserved: Sequence[str], number: int
) -> tuple[dict[str, Any], tuple[str, object] | None]:
    part = cast("dict[str, Any]", given) if isinstance(given, dict) else {}
    kind = part.get("type")
    if kind == "text" and isinstance(part.get("text"), str):
        _check_words(part["text"], reserved, number)
        return part, None
    if kind in KINDS:
        found = next((part[key] for key in (kind, "path") if part.get(key) is not None), None)
        if found is None and part.get("url") is not None:
            raise UsageError(f"message {number}: nothing is fetched from a url; give a path")
        return {"type": kind}, (cast("str", kind), found)
    raise UsageError(
        f'message {number}: a part of `content` is {{"type": "text", "text": ...}}, '
        f'{{"type": "image"}} or {{"type": "video"}}'
    )


def _check_words(text: str, reserved: Sequence[str], number: int) -> None:
    for word in reserved:
        if word in text:
            raise UsageError(
                f"the text of message {number} holds {word}, which stands for an image: images of "
                f'a conversation are parts of their own, {{"type": "image"}}; take the word out'
            )


def _word(found: Any) -> str | None:
    if isinstance(found, dict):
        found = cast("dict[str, Any]", found).get("content")
    return found if isinstance(found, str) else None


def _jinja() -> Any:
    """The environment in which published templates run: nothing of the interpreter is in reach."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what the model wrote, for training; here it is text."""

        tags = frozenset(("generation",))  # pyright: ignore

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    def refuse(message: str) -> NoReturn:
        raise TemplateError(message)

    def to_json(value: Any, **options: Any) -> str:
        keywords: dict[str, Any] = {"ensure_ascii": False, **options}
        return json.dumps(value, **keywords)

    environment: Any = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = datetime.now().strftime
    return environment


# --------------------------------------------------------------------------------------------------
# What may be given as a picture, and what is said of anything else.
# --------------------------------------------------------------------------------------------------


Source = Path | bytes | Image.Image | tuple["Source", ...]
"""A file or a folder of frames, the bytes of a file, a decoded picture, the frames of a video."""

LONGEST_SHOWN = 120
"""Letters of a name that a message repeats."""

ACCEPTED = (
    "a path, the bytes of a file, a Pillow image, or a numpy array (uint8, or floats from 0 to 1) "
    "[height, width], [height, width, 3 or 4] or, for a video, [frames, height, width, 3]"
)


def source_of(given: object) -> Source:
    """What `given` shows. A list is the frames of one video.

    Raises UsageError, with what would do, where it is no picture.
    """
    if isinstance(given, str) and not given:
        raise UsageError("an empty text is no path to a picture")
    if isinstance(given, str | Path):
        return _file(str(given))
    if isinstance(given, bytes | bytearray | memoryview):
        return bytes(given)  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(given, Image.Image):
        return given
    if isinstance(given, np.ndarray):
        return _of_array(cast("NDArray[Any]", given))
    if isinstance(given, list | tuple):
        frames = [source_of(one) for one in cast("Sequence[object]", given)]
        if not frames:
            raise UsageError("a video without a single frame: an empty list was given")
        if any(isinstance(one, tuple) for one in frames):
            raise UsageError("a list stands for the frames of one video, and no frame is a video")
        return tuple(frames)
    if hasattr(given, "detach"):
        raise UsageError("a tensor was given as a picture; give its numpy array: tensor.numpy()")
    raise UsageError(f"{_kind(given)} is no picture: give {ACCEPTED}")


def _file(name: str) -> Path:
    """A path that the file system can be asked for. Raises UsageError for a text that is none."""
    scheme = name[:16].partition(":")[0].lower()
    if scheme == "data":
        raise UsageError(
            "a data URL is no path: give the bytes that it holds, base64.b64decode(url.split(',', "
            "1)[1])"
        )
    if scheme in ("http", "https", "ftp", "s3", "gs"):
        raise UsageError(f"{_short(name)}: nothing is fetched from a URL; give a path or the bytes")
    if scheme == "file":
        raise UsageError(f"{_short(name)}: a URL is no path; leave file:// out")
    try:
        Path(name).stat()
    except FileNotFoundError:
        pass  # said with the question, where it is opened
    except (OSError, ValueError) as error:  # too long, no directory, a null byte
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"{_short(name)}: no path to a picture: {reason}") from None
    return Path(name)


def _short(name: str) -> str:
    return (
        name if len(name) <= LONGEST_SHOWN else f"{name[:LONGEST_SHOWN]}... ({len(name):,} letters)"
    )


def title_of(source: Source) -> str:
    """What a message calls it: a path by its name, and everything else `the picture`."""
    return str(source) if isinstance(source, Path) else "the picture"


def _kind(given: object) -> str:
    return "None" if given is None else f"a value of type {type(given).__name__}"


def _of_array(array: NDArray[Any]) -> Source:
    shape = list(array.shape)
    if array.ndim == 4 and shape[0] > 0:
        return tuple(picture_of(frame) for frame in array)
    return picture_of(array)


def picture_of(array: NDArray[Any]) -> Image.Image:
    """An array [height, width], [height, width, 1], or [height, width, 3 or 4] as a picture. Raises
    UsageError for another shape, and for numbers that are neither uint8 nor floats from 0 to 1."""
    shape = list(array.shape)
    if array.ndim == 3 and shape[2] == 1:
        array = array[..., 0]
    flat = array.ndim == 2 or (array.ndim == 3 and shape[2] in (3, 4))
    if not flat or 0 in shape:
        first = array.ndim == 3 and shape[0] in (1, 3, 4)
        turn = "; channels come last: array.transpose(1, 2, 0)" if first else ""
        raise UsageError(
            f"an array of the shape {shape} is no picture: [height, width], [height, width, 3 or "
            f"4] or [frames, height, width, 3] is expected{turn}"
        )
    if array.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(array))
    if not np.issubdtype(array.dtype, np.floating):
        raise UsageError(
            f"an array of {array.dtype} is no picture: uint8 (0 to 255) or floats (0 to 1) are "
            f"expected; array.astype('uint8') where its values fit"
        )
    least, most = float(array.min()), float(array.max())
    if not 0 <= least <= most <= 1:  # not a number is in no range
        raise UsageError(
            f"floats from {least:g} to {most:g} are no picture: 0 to 1 is expected, as uint8 0 to "
            f"255"
        )
    return Image.fromarray(np.rint(array * 255).astype(np.uint8))


# --------------------------------------------------------------------------------------------------
# Pictures: from a file, bytes or memory to upright RGB frames, whatever they hold.
# --------------------------------------------------------------------------------------------------


FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
"""What is read. Other formats of Pillow start foreign programs (EPS) or are no pictures."""

SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif"}
    | {".jp2"}
)
"""File names that count as frames in a folder."""

MAX_PIXELS = 89_478_485
"""Pixels of one picture at most: a small file may claim a size that fills the memory."""


def frame_count(source: Source) -> int:
    """Frames of `source`: the images of a folder, the frames of an animated file, 1 for a still.

    Raises UsageError where nothing there is a picture.
    """
    if isinstance(source, tuple):
        return len(source)
    if isinstance(source, Path) and source.is_dir():
        return len(_folder(source))
    with _opened(source) as image:
        # The second picture of a phone's JPEG (MPO) is a preview or a depth map.
        return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)


def read_frames(source: Source, indices: Iterable[int]) -> Iterator[Image.Image]:
    """The frames of `source` with these indices, each in mode RGB; of a file, one is in memory at
    a time.

    Raises UsageError where a frame cannot be read.
    """
    if isinstance(source, Path) and source.is_dir():
        source = tuple(_folder(source))
    if isinstance(source, tuple):
        for index in indices:
            with _opened(source[index]) as image:
                yield upright_rgb(image)
        return
    with _opened(source) as image:
        for index in indices:
            if index > 0 or getattr(image, "n_frames", 1) > 1:
                with warnings.catch_warnings():
                    # Pages of one file differ in size; they are judged below, as the first was.
                    warnings.simplefilter("ignore")
                    image.seek(index)
                _check_extent(image, title_of(source))
            yield upright_rgb(image)


def spread(total: int, limit: int) -> tuple[int, ...]:
    """Indices of `limit` of `total` frames, each in the middle of its stretch; all if they fit."""
    if total <= limit:
        return tuple(range(total))
    return tuple((2 * index + 1) * total // (2 * limit) for index in range(limit))


def upright_rgb(image: Image.Image) -> Image.Image:
    """The picture as it is meant to be seen: turned by its EXIF orientation, transparency on white,
    16-bit greys and floats from 0 to 1 scaled to 8 bits, every other mode converted to RGB.

    Raises UsageError for floats beyond 0 to 1 and integers beyond 16 bits, whose white nobody has
    said."""
    with warnings.catch_warnings():
        # Damaged metadata that Pillow works around is no news to somebody who wants the pixels.
        warnings.simplefilter("ignore", UserWarning)
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        return Image.fromarray(_of_integers(np.asarray(image), image.mode)).convert("RGB")
    if image.mode == "F":
        return picture_of(np.asarray(image)).convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _of_integers(grey: NDArray[Any], mode: str) -> NDArray[np.uint8]:
    """Greys of 16 bits, or of 8 that are stored in 32, in 8 bits."""
    least, most = int(grey.min()), int(grey.max())
    if least < 0 or most > 0xFFFF:
        raise UsageError(
            f"whole numbers from {least:,} to {most:,} are no picture: 0 to 65,535 is expected"
        )
    eight = mode == "I" and most <= 0xFF
    return (grey if eight else grey.astype(np.int64) >> 8).astype(np.uint8)


def _folder(path: Path) -> list[Path]:
    """The frames of a folder in the order of their names (frame2 before frame10)."""
    try:
        files = [f for f in path.iterdir() if f.suffix.lower() in SUFFIXES and f.is_file()]
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    if not files:
        raise UsageError(f"{path}: no image files in this folder (PNG, JPEG, WebP, ...)")
    return sorted(files, key=lambda f: (_natural(f.stem), f.name))


def _natural(stem: str) -> tuple[tuple[int, str], ...]:
    """A sort key that reads runs of digits as numbers."""
    parts: list[tuple[int, str]] = []
    run = ""
    for character in f"{stem}\0":
        if run and character.isdecimal() != run[-1].isdecimal():
            parts.append((int(run), "") if run.isdecimal() else (-1, run))
            run = ""
        run += character
    return tuple(parts)


@contextmanager
def _opened(source: Source) -> Generator[Image.Image]:
    """The picture of a source, open while the block runs; every way to fail there is a
    UsageError."""
    title = title_of(source)
    if isinstance(source, Path):
        _check_file(source)
    if source == b"":
        raise UsageError(f"{title}: there are no bytes in it")
    try:
        with _open(source) as image:
            _check_extent(image, title)
            yield image
    except UsageError:
        raise
    except Image.UnidentifiedImageError:
        known = ", ".join(FORMATS)
        raise UsageError(f"{title}: not an image in a format that is read ({known})") from None
    except Image.DecompressionBombError:
        raise UsageError(_too_large(title, "far too many")) from None
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        reason = str(error).split("\n")[0] or type(error).__name__
        if isinstance(source, Image.Image) and not isinstance(error, OSError):
            raise UsageError(
                f"{title}: a Pillow image without pixels ({reason}); where its file was closed, "
                "give the path, or a copy() made before that"
            ) from None
        raise UsageError(f"{title}: the image is damaged: {reason}") from None


def _check_extent(image: Image.Image, title: str) -> None:
    width, height = image.size
    if min(width, height) < 1:
        raise UsageError(f"{title}: {width} x {height} pixels, so that there is nothing to see")
    if width * height > MAX_PIXELS:
        raise UsageError(_too_large(title, f"{width} x {height} = {width * height:,}"))


def _check_file(path: Path) -> None:
    if not path.exists():
        raise UsageError(f"{path}: no such file")
    if not path.is_file():
        raise UsageError(f"{path}: not a regular file")
    if path.stat().st_size == 0:
        raise UsageError(f"{path}: the file is empty")


def _open(source: Source) -> AbstractContextManager[Image.Image]:
    """Reads the header only. A picture that a caller opened is his to close."""
    if isinstance(source, Image.Image):
        return nullcontext(source)
    assert not isinstance(source, tuple)
    Image.init()
    file = BytesIO(source) if isinstance(source, bytes) else source
    with warnings.catch_warnings():
        # Damaged metadata is no news to somebody who wants pixels; sizes are checked above.
        warnings.simplefilter("ignore")
        return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])


def _too_large(title: str, pixels: str) -> str:
    return f"{title}: {pixels} pixels, but a picture may have {MAX_PIXELS:,} at most; scale it down"


# --------------------------------------------------------------------------------------------------
# From pictures to pixel values, exactly as the published systems do it.
# --------------------------------------------------------------------------------------------------


Bytes = NDArray[np.uint8]

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
MAX_EXTENT = 16_384
"""Pixels along one side of what a processor may make."""

SQUARE_BY_DEFAULT = ("BlipImageProcessor", "IdeficsImageProcessor", "ViTImageProcessor")
"""Published processors that read a plain number for `size` as both sides (others: the shorter)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageProcessor:
    """Pad, resize, crop, rescale and normalise, in this order. Sizes are (height, width) in pixels;
    `shortest_edge` is an alternative to `size`; mean and std are on the scale after `factor`."""

    pad: bool
    shortest_edge: int | None
    size: tuple[int, int] | None
    crop: tuple[int, int] | None
    resample: Image.Resampling
    factor: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, image: Image.Image) -> Pixels:
        """Pixel values [3, height, width] of an RGB picture.

        Raises UsageError where the picture is so narrow that its padded or resized copy would be
        huge.
        """
        if self.pad:
            image = self._squared(image)
        image = self._resized(image)
        pixels: Bytes = np.asarray(image).transpose(2, 0, 1)
        if self.crop is not None:
            pixels = centre_crop(pixels, self.crop)
        # The published processors multiply in float64, round to float32, then normalise in it.
        values = (pixels.astype(np.float64) * self.factor).astype(np.float32)
        mean = np.array(self.mean, np.float32)[:, None, None]
        std = np.array(self.std, np.float32)[:, None, None]
        return (values - mean) / std

    def output_size(self) -> tuple[int, int] | None:
        """Height and width of what comes out; None where they vary with the picture."""
        return self.crop or self.size

    def _squared(self, image: Image.Image) -> Image.Image:
        """The picture in the middle of a square of the mean colour."""
        width, height = image.size
        side = max(width, height)
        if width == height:
            return image
        if side * side > MAX_PIXELS:
            raise UsageError(
                f"the picture is {width} x {height}: padded to a square it becomes {side:,} x "
                f"{side:,} pixels, more than {MAX_PIXELS:,}; crop it first"
            )
        colour = tuple(int(value * 255) for value in self.mean)
        square = Image.new("RGB", (side, side), cast("Any", colour))
        square.paste(image, ((side - width) // 2, (side - height) // 2))
        return square

    def _resized(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        if self.shortest_edge is not None:
            # The longer side is rounded down, as torchvision and transformers do.
            longer = int(self.shortest_edge * max(width, height) / min(width, height))
            if longer * self.shortest_edge > MAX_PIXELS:
                raise UsageError(
                    f"the picture is {width} x {height}: with its shorter side at "
                    f"{self.shortest_edge} it becomes {self.shortest_edge} x {longer:,} pixels, "
                    f"more than {MAX_PIXELS:,}; crop it first"
                )
            shape = (self.shortest_edge, longer)
            height, width = shape if height <= width else shape[::-1]
        elif self.size is not None:
            height, width = self.size
        return image.resize((width, height), resample=self.resample)


def centre_crop(pixels: Bytes, size: tuple[int, int]) -> Bytes:
    """The middle of [channels, height, width]; black where the picture is smaller than `size`."""
    (height, width), (rows, columns) = pixels.shape[1:], size
    top, left = (height - rows) // 2, (width - columns) // 2
    if top >= 0 and left >= 0:
        return pixels[:, top : top + rows, left : left + columns]
    canvas = np.zeros((pixels.shape[0], max(height, rows), max(width, columns)), np.uint8)
    above = math.ceil((canvas.shape[1] - height) / 2)
    before = math.ceil((canvas.shape[2] - width) / 2)
    canvas[:, above : above + height, before : before + width] = pixels
    top, left = top + above, left + before
    return canvas[:, top : top + rows, left : left + columns]


def from_spec(preprocess: Preprocessing, image_size: int) -> ImageProcessor:
    """The processor that a design describes; `image_size` in pixels."""
    square = (image_size, image_size)
    by_edge = preprocess.resize == "shortest_edge"
    return ImageProcessor(
        pad=preprocess.resize == "pad",
        shortest_edge=image_size if by_edge else None,
        size=None if by_edge else square,
        crop=square if by_edge else None,
        resample=RESAMPLING[preprocess.interpolation],
        factor=1 / 255,
        mean=preprocess.mean,
        std=preprocess.std,
    )


def from_checkpoint(folder: Path, base: ImageProcessor) -> ImageProcessor:
    """What the image processor's file in a checkpoint folder says, `base` where it is silent.

    Raises UsageError where the file is no such description or asks for what vlmc does not do.
    """
    path, config = _config(folder)
    if config is None:
        return base
    try:
        return _overlaid(config, base)
    except (TypeError, ValueError, KeyError) as error:
        raise UsageError(f"{path}: not an image processor that vlmc can follow: {error}") from None


def has_processor(folder: Path) -> bool:
    """Whether a folder describes an image processor."""
    return _config(folder)[1] is not None


def check_size(processor: ImageProcessor, image_size: int, where: str) -> None:
    """Raises UsageError unless pictures come out at the size that the encoder was made for."""
    size = processor.output_size()
    if size != (image_size, image_size):
        made = "pictures of varying size" if size is None else f"{size[0]} x {size[1]} pixels"
        raise UsageError(
            f"{where} makes {made}, but the encoder takes {image_size} x {image_size}: "
            f"the preprocessing and encoder.image_size must agree"
        )


def _config(folder: Path) -> tuple[Path, dict[str, Any] | None]:
    path = folder / "preprocessor_config.json"
    if path.is_file():
        return path, json_object(path)
    path = folder / "processor_config.json"
    if path.is_file():
        nested = json_object(path).get("image_processor")
        if isinstance(nested, dict):
            return path, cast("dict[str, Any]", nested)
    return path, None


def _overlaid(config: dict[str, Any], base: ImageProcessor) -> ImageProcessor:
    kind = str(config.get("image_processor_type", config.get("feature_extractor_type", "")))
    result = base
    size = config.get("size", config.get("image_size"))
    if not config.get("do_resize", True):
        raise ValueError("do_resize is false, so that pictures would not fit the encoder")
    if size is not None:
        result = _with_size(result, size, kind.startswith(SQUARE_BY_DEFAULT))
    crop = config.get("crop_size")
    if "do_center_crop" in config or crop is not None:
        wanted = config.get("do_center_crop", True)
        result = replace(result, crop=_pair(crop, result.crop) if wanted else None)
    if "resample" in config:
        result = replace(result, resample=Image.Resampling(config["resample"]))
    if "do_pad" in config:
        result = replace(result, pad=bool(config["do_pad"]))
    if config.get("do_rescale") is False:
        result = replace(result, factor=1.0)
    elif "rescale_factor" in config:
        result = replace(result, factor=float(config["rescale_factor"]))
    if config.get("do_normalize") is False:
        return replace(result, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    if config.get("image_mean") is not None:
        result = replace(result, mean=_channels(config["image_mean"], "image_mean"))
    if config.get("image_std") is not None:
        result = replace(result, std=_channels(config["image_std"], "image_std"))
    return result


def _with_size(base: ImageProcessor, size: Any, square: bool) -> ImageProcessor:
    if isinstance(size, int):
        size = {"height": size, "width": size} if square else {"shortest_edge": size}
    if not isinstance(size, dict):
        raise ValueError(f"size is {size!r}")
    edges = cast("dict[str, Any]", size)
    if edges.get("longest_edge") is not None:
        raise ValueError("size.longest_edge is not followed")
    if edges.get("shortest_edge") is not None:
        return replace(base, shortest_edge=_extent(edges["shortest_edge"]), size=None)
    return replace(base, shortest_edge=None, size=_height_width(edges, "size"))


def _pair(crop: Any, default: tuple[int, int] | None) -> tuple[int, int] | None:
    if crop is None:
        return default
    if isinstance(crop, int):
        return _extent(crop), _extent(crop)
    return _height_width(crop, "crop_size")


def _height_width(value: Any, name: str) -> tuple[int, int]:
    try:
        return _extent(value["height"]), _extent(value["width"])
    except KeyError as error:
        raise ValueError(f"{name} has no {error}") from None


def _extent(value: Any) -> int:
    if not isinstance(value, int) or not 0 < value <= MAX_EXTENT:
        raise ValueError(f"{value!r} is not a number of pixels")
    return value


def _channels(values: Any, name: Literal["image_mean", "image_std"]) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in values)
    if len(numbers) != 3 or (name == "image_std" and 0.0 in numbers):
        raise ValueError(f"{name} must hold three numbers, none 0 in image_std")
    return numbers


# --------------------------------------------------------------------------------------------------
# Which frames of what is given the vision part sees.
# --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Clip:
    """What counts as one image: a still is a video of one frame."""

    frames: tuple[tuple[Source, int], ...]
    """Files, folders or pictures with the index of the frame in each."""
    name: str = ""
    notes: tuple[str, ...] = ()


def listed(given: object, what: str) -> list[object]:
    """One thing or several as a list. Raises UsageError for what can be no list of pictures."""
    if given is None:
        return []
    if isinstance(given, list | tuple):
        return list(cast("Sequence[object]", given))
    if isinstance(given, dict | set | int | float):
        kind = type(cast("object", given)).__name__
        raise UsageError(f"{what}: a list is expected, not {kind}")
    return [given]


def sources(given: Sequence[object], what: str) -> list[Source]:
    """Every picture of a list. Raises UsageError that says which of them is none."""
    found: list[Source] = []
    for number, one in enumerate(given, start=1):
        try:
            found.append(source_of(one))
        except UsageError as error:
            raise UsageError(f"{what} {number}: {error}") from None
    return found


def one_video(stills: Sequence[Source], *, most: int) -> Clip:
    """Several stills as the frames of one video. Raises UsageError where one has frames itself."""
    for source in stills:
        count = frame_count(source)
        if count > 1 or isinstance(source, tuple) or (isinstance(source, Path) and source.is_dir()):
            raise UsageError(
                f"{title_of(source)}: several files for one <image> are the frames of one video, "
                f"but this one has {count} frames itself; write one <image> for each --image"
            )
    return Clip(
        tuple((stills[i], 0) for i in spread(len(stills), most)),
        "the images",
        _shortened("the images", len(stills), most),
    )


def clip_of(source: Source, name: str, *, most: int) -> Clip:
    """The frames that an encoder which sees `most` frames is shown of `source`.

    Raises UsageError where it is no picture, or a video before an encoder of stills.
    """
    count = frame_count(source)
    if most > 1:
        frames = tuple((source, i) for i in spread(count, most))
        return Clip(frames, name, _shortened(name, count, most))
    if isinstance(source, tuple) or (isinstance(source, Path) and source.is_dir()):
        raise UsageError(
            f"{name}: a folder or list of frames is a video, but the encoder sees still images; "
            f"encoder.frames declares how many frames it takes"
        )
    note = f"{name}: the first of {count} frames, since the encoder declares no frames"
    return Clip(((source, 0),), name, (note,) if count > 1 else ())


def clip_pixels(clip: Clip, processor: ImageProcessor) -> Pixels:
    """Pixels [frames, 3, height, width]. Raises UsageError where a frame cannot be read."""
    frames: list[Pixels] = []
    for _, run in groupby(clip.frames, key=lambda frame: id(frame[0])):
        shown = list(run)
        try:
            found = read_frames(shown[0][0], [index for _, index in shown])
            frames.extend(processor(image) for image in found)
        except UsageError as error:
            message = str(error)
            raise UsageError(named_once(message, clip.name)) from None
    return np.stack(frames)


def named_once(message: str, name: str) -> str:
    """A message about a picture, with what it is called in front."""
    rest = message.removeprefix("the picture: ")
    return message if not name or name in message else f"{name}: {rest}"


def _shortened(name: str, total: int, most: int) -> tuple[str, ...]:
    if total <= most:
        return ()
    return (f"{name}: {most} of {total} frames, evenly spread (encoder.frames)",)


# --------------------------------------------------------------------------------------------------
# Region features: from a file, or from a detector that stands in for a twin's.
# --------------------------------------------------------------------------------------------------


CELL = 8
"""Height and width of a region, in pixels, as the stand-in detector sees it."""

NUMBERS: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
}
"""Number formats of a safetensors file, as they are read; bf16 is the upper half of an fp32."""

MAX_HEADER = 100_000_000
"""Bytes of a safetensors file's header at most, by the format's own limit."""


def features_of(given: object, design: Design) -> Pixels:
    """Features [1, regions, width] from an array [regions, width] or a file, as `read_features`."""
    if isinstance(given, str | Path):
        return read_features(Path(given), design)
    if isinstance(given, np.ndarray):
        return _fitting(cast("NDArray[Any]", given), design, "features")
    raise UsageError(
        f"features: a path or a numpy array [regions, {design.region_width}] is expected, not "
        f"{type(given).__name__}"
    )


def read_features(path: Path, design: Design) -> Pixels:
    """Features [1, regions, width] in fp32 from a safetensors file that holds `features` [regions,
    width] and, where the design asks for boxes, `boxes` [regions, 4].

    Raises UsageError where the file does not hold what the encoder takes.
    """
    found = stored_values(path)
    features = found.get("features")
    if features is None:
        names = ", ".join(sorted(found)[:8]) or "nothing"
        raise UsageError(f"{path}: holds {names}, but no tensor `features` [regions, width]")
    values = _fitting(features, design, f"{path}: `features`")
    boxes = found.get("boxes")
    if design.boxes and boxes is None:
        raise UsageError(f"{path}: the design asks for `boxes` [regions, 4], but there are none")
    regions = values.shape[1]
    if boxes is not None and list(boxes.shape) != [regions, 4]:
        raise UsageError(
            f"{path}: `boxes` has the shape {list(boxes.shape)}, but there are {regions} "
            f"regions: [{regions}, 4] is expected"
        )
    return values


def _fitting(features: NDArray[Any], design: Design, name: str) -> Pixels:
    shape = list(features.shape)
    width = design.region_width
    if len(shape) != 2 or shape[1] != width or not 1 <= shape[0] <= design.regions:
        raise UsageError(
            f"{name} has the shape {shape}; [regions, width] of [1 to {design.regions}, {width}] "
            f"is expected"
        )
    if not np.issubdtype(features.dtype, np.floating) or not np.isfinite(features).all():
        raise UsageError(f"{name} must be finite floating-point numbers")
    return features.astype(np.float32)[None]


def stand_in(images: Sequence[Source], design: Design) -> Pixels:
    """Features [images, regions, width] of a twin's pictures.

    Regions are the cells of a grid, read row by row; a fixed seeded projection of a cell's pixels
    gives its features. Nothing is detected: it lets a twin see that pictures differ.
    """
    rows, columns = _grid(design)
    numbers = 3 * CELL * CELL
    draw = np.random.default_rng(0)
    projection = draw.standard_normal((numbers, design.region_width)) / math.sqrt(numbers)
    features: list[Pixels] = []
    for source in images:
        (image,) = read_frames(source, (0,))
        small = image.resize((columns * CELL, rows * CELL), Image.Resampling.BILINEAR)
        pixels = np.asarray(small, np.float64) / 127.5 - 1
        cells = pixels.reshape(rows, CELL, columns, CELL, 3).transpose(0, 2, 1, 3, 4)
        flat = cells.reshape(rows * columns, numbers)[: design.regions]
        features.append((flat @ projection).astype(np.float32))
    return np.stack(features)


def stand_in_note(design: Design) -> str:
    """Says what a twin's region features are."""
    rows, columns = _grid(design)
    return (
        f"regions are a {rows} x {columns} grid of each image, by a stand-in for the object "
        f"detector; --features FILE gives real ones"
    )


def _grid(design: Design) -> tuple[int, int]:
    rows = math.isqrt(design.regions)
    return rows, math.ceil(design.regions / rows)


def stored_values(path: Path) -> dict[str, NDArray[Any]]:
    """The tensors of a safetensors file by name, mapped from the file and not read; bf16 in fp32,
    formats that numpy lacks as bytes. Raises UsageError where it is no such file."""
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > MAX_HEADER:
                raise ValueError("its header would be too long")
            header = json.loads(file.read(length))
        return {
            name: _values(path, 8 + length, entry)
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"{path}: not a safetensors file: {error}") from None


def _values(path: Path, start: int, entry: Any) -> NDArray[Any]:
    first, last = entry["data_offsets"]
    raw: NDArray[Any] = np.zeros(0, np.uint8)
    if last > first:
        raw = np.memmap(path, np.uint8, "r", offset=start + first, shape=(last - first,))
    values = raw.view(NUMBERS.get(entry["dtype"], np.uint8)).reshape(entry["shape"])
    if entry["dtype"] == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values


# --------------------------------------------------------------------------------------------------
# Whose fault it is where a model's numbers are not finite: its weights', where they are not.
# --------------------------------------------------------------------------------------------------


DAMAGED = "the file is damaged, or training diverged before it was saved"


def overflowed(what: str) -> EnvironmentFault:
    """Of numbers that a model gives: `what` says which, and ends in a verb."""
    return EnvironmentFault(
        f"the model's numbers overflowed: {what} not finite; where it computes in 16 bits, "
        f"--dtype fp32 has more room"
    )


def not_finite(folder: Path) -> list[str]:
    """Names of the tensors in a folder's safetensors files that hold NaN or infinity."""
    return [
        name
        for path in sorted(folder.glob("*.safetensors"))
        for name, values in stored_values(path).items()
        if not np.isfinite(values).all()
    ]


def named_tensors(names: Sequence[str]) -> str:
    """The first of them, how many more there are, and the parts that they belong to."""
    parts = ", ".join(dict.fromkeys(name.split(".")[0] for name in names))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more} (part: {parts})"


# --------------------------------------------------------------------------------------------------
# What images became, kept for the next question about them.
# --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """One image or video after the vision part, to be used in any prompt of the same session."""

    feature: Feature
    frames: int
    """Frames that it shows; 1 for a still."""
    key: str
    """The hash of its pixels."""
    owner: str
    """The store of the session that encoded it."""


class FeatureStore:
    """Features by the hash of their pixels, the most recent of them, `limit` bytes in all."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.owner = uuid4().hex
        """What tells it from the stores of other sessions."""
        self.bytes = 0
        self.kept: OrderedDict[str, tuple[Feature, int]] = OrderedDict()

    def get(self, key: str) -> Feature | None:
        """The feature of `key`, which is now the most recent."""
        if key not in self.kept:
            return None
        self.kept.move_to_end(key)
        return self.kept[key][0]

    def put(self, key: str, feature: Feature) -> None:
        """Keeps a feature; the oldest ones go where there is no room."""
        size = feature_bytes(feature)
        if key in self.kept or size > self.limit:
            return
        self.kept[key] = (feature, size)
        self.bytes += size
        while self.bytes > self.limit:
            _, (_, freed) = self.kept.popitem(last=False)
            self.bytes -= freed

    def clear(self) -> None:
        """Forgets everything."""
        self.kept.clear()
        self.bytes = 0


def pixel_hash(pixels: Pixels) -> str:
    """What tells pixels from all others."""
    digest = hashlib.blake2b(pixels.tobytes(), digest_size=16)
    digest.update(repr(pixels.shape).encode())
    return digest.hexdigest()


def feature_bytes(feature: Any) -> int:
    """Memory that a feature takes, whatever an engine makes it of."""
    if isinstance(feature, list | tuple):
        return sum(feature_bytes(one) for one in cast("Sequence[Any]", feature))
    found = getattr(feature, "nbytes", None)
    return found if isinstance(found, int) else sys.getsizeof(feature)


def is_finite(feature: Any) -> bool:
    """Whether all numbers of a feature are, whatever an engine makes it of."""
    if isinstance(feature, list | tuple):
        return all(is_finite(one) for one in cast("Sequence[Any]", feature))
    if isinstance(feature, np.ndarray):
        return bool(np.isfinite(cast("Any", feature)).all())
    found = getattr(feature, "isfinite", None)  # a tensor of torch
    return found is None or bool(found().all())


# --------------------------------------------------------------------------------------------------
# The next token: the likeliest, or one that is drawn.
# --------------------------------------------------------------------------------------------------


MAX_TEMPERATURE = 1e4
"""Far above it every token is as likely as any other, in the numbers that are computed with."""

Numbers = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen: greedily at temperature 0, else drawn from the softmax of
    logits / temperature, cut to the `top_k` likeliest and then to the fewest tokens whose
    probabilities reach `top_p` (Holtzman et al., 2020)."""

    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not (is_number(self.temperature) and 0 <= self.temperature <= MAX_TEMPERATURE):
            raise UsageError(
                f"--temperature {self.temperature!r}: 0 (greedy) to {MAX_TEMPERATURE:,.0f} "
                "is expected"
            )
        if self.top_p is not None and not (is_number(self.top_p) and 0 < self.top_p <= 1):
            raise UsageError(f"--top-p {self.top_p!r}: more than 0 and at most 1 is expected")
        if self.top_k is not None:
            check_whole("--top-k", self.top_k, 1)
        check_whole("--seed", self.seed, 0)
        if self.temperature == 0 and (self.top_p is not None or self.top_k is not None):
            raise UsageError(
                "--top-p and --top-k mean nothing at temperature 0, which always takes the "
                "likeliest token; give --temperature 1"
            )

    def draws(self, row: int = 0) -> np.random.Generator:
        """The draws of a row of a batch: the same alone and among others."""
        return np.random.default_rng((self.seed, row))


GREEDY = Sampling()


def choose(logits: Numbers, sampling: Sampling, draw: np.random.Generator) -> int:
    """The next token, from logits [vocabulary].

    Raises EnvironmentFault where they are not finite.
    """
    likeliest = int(logits.argmax())
    if not np.isfinite(logits[likeliest]):
        raise overflowed("its logits are")
    if sampling.temperature == 0:
        return likeliest
    shifted = logits.astype(np.float64) - float(logits[likeliest])
    with np.errstate(over="ignore"):  # to -inf, which is right
        shifted /= sampling.temperature
    if sampling.top_k is not None and sampling.top_k < shifted.size:
        shifted = _of_the_likeliest(shifted, sampling.top_k)
    probabilities = softmax(shifted)
    if sampling.top_p is not None:
        probabilities = nucleus(probabilities, sampling.top_p)
    sums: Numbers = probabilities.cumsum()
    point = draw.random() * float(sums[-1])
    drawn = int(np.searchsorted(sums, point, side="right"))
    # A draw that rounding puts at the very end belongs to the last token that can be drawn.
    return min(drawn, int(probabilities.nonzero()[0][-1]))


def softmax(logits: Numbers) -> Numbers:
    """Probabilities [..., classes] of finite or -inf logits [..., classes], in float64."""
    logits = logits.astype(np.float64)
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def nucleus(probabilities: Numbers, top_p: float) -> Numbers:
    """`probabilities` [vocabulary] with all but the fewest that reach `top_p` set to 0; the
    likeliest always stays."""
    order = np.argsort(-probabilities, kind="stable")
    ordered = probabilities[order]
    # A token goes if those before it are enough already.
    before = ordered.cumsum() - ordered
    kept = np.zeros_like(probabilities)
    kept[order] = np.where(before >= top_p, 0.0, ordered)
    return kept


def _of_the_likeliest(logits: Numbers, count: int) -> Numbers:
    """`logits` with all but the `count` largest at -inf; of equal ones the first stay."""
    least: float = np.partition(logits, -count)[-count]  # pyright: ignore
    kept: NDArray[np.bool_] = logits > least
    equal: NDArray[np.intp] = np.nonzero(logits == least)[0]
    kept[equal[: count - int(kept.sum())]] = True
    return np.where(kept, logits, -np.inf)


# --------------------------------------------------------------------------------------------------
# What a text encoder answers with: a class, or the words that were masked.
# --------------------------------------------------------------------------------------------------


SHOWN = 5
"""Answers listed for each question, likeliest first."""

MASKS = ("[MASK]", "<mask>")
"""What published tokenizers call a masked word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One possible answer. `of` says what it answers: `class`, `mask 1`, ..., or `pair`."""

    of: str
    label: str
    index: int
    probability: float

    def __str__(self) -> str:
        return f"{self.of:>8} {self.probability:7.2%}  {self.label}"


def check_masks(design: Design, tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """The places of masked words among `ids`. Raises UsageError where a design that fills them in
    is given none."""
    mask = next((i for i in map(tokenizer.id, MASKS) if i is not None), None)
    masked = [place for place, one in enumerate(ids) if one == mask]
    if design.head == "masked_lm" and not masked:
        raise UsageError(
            f"this design fills in masked words: write {MASKS[0]} where the prompt asks for one"
            if mask is not None
            else f"this design fills in {MASKS[0]}, but {tokenizer.name} has no such token"
        )
    return masked


def judged(
    design: Design,
    tokenizer: Tokenizer,
    labels: Mapping[int, str],
    ids: list[int],
    outputs: Mapping[str, Numbers],
) -> tuple[str, tuple[Choice, ...]]:
    """The answer as text, and the likeliest answers with their probabilities, from the outputs of
    one row: logits [classes], or [tokens, vocabulary] and those of the pair [2].

    Raises EnvironmentFault where they are not finite.
    """
    logits = outputs["logits"]
    if not np.isfinite(logits).all():
        raise overflowed("its logits are")
    if design.head != "masked_lm":
        best = _likeliest(logits, "class", lambda index: labels.get(index, f"class {index}"))
        return best[0].label, best
    choices: list[Choice] = []
    for number, place in enumerate(check_masks(design, tokenizer, ids), start=1):
        best = _likeliest(
            logits[place],
            f"mask {number}",
            lambda index: tokenizer.decode([index]).strip() or f"token {index}",
        )
        choices.extend(best)
        ids[place] = best[0].index
    text = tokenizer.decode(ids)
    if "seq_relationship_logits" in outputs:
        # Class 0 is a true pair (Devlin et al., 2019, section 3.1).
        together = float(softmax(outputs["seq_relationship_logits"])[0])
        choices.append(
            Choice(of="pair", label="image and text belong together", index=0, probability=together)
        )
    return text, tuple(choices)


def class_names(folder: Path | None) -> dict[int, str]:
    """Names of the classes, where the config.json of a folder has real ones."""
    if folder is None or not (folder / "config.json").is_file():
        return {}
    named: Any = json_object(folder / "config.json").get("id2label")
    if not isinstance(named, dict):
        return {}
    pairs: list[tuple[str, Any]] = list(cast("dict[str, Any]", named).items())
    return {
        int(index): str(label)
        for index, label in pairs
        if index.isdecimal() and str(label) != f"LABEL_{index}"
    }


def _likeliest(logits: Numbers, of: str, label: Callable[[int], str]) -> tuple[Choice, ...]:
    probabilities = softmax(logits)
    top = [int(index) for index in np.argsort(-probabilities, kind="stable")[:SHOWN]]
    return tuple(
        Choice(of=of, label=label(index), index=index, probability=float(probabilities[index]))
        for index in top
    )


# --------------------------------------------------------------------------------------------------
# From what a caller asks to prompts with their images in order.
# --------------------------------------------------------------------------------------------------


VIDEO_MARKER = "<video>"
"""What a prompt may hold where a video belongs; an image's marker does as well."""

Shown = Clip | Encoded | Pixels
"""One image of a question: to be read, encoded before, or the features of its regions."""

Conversation = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One prompt of a batch."""

    prompt: str
    """With a marker for each image, or without any where all stand in front."""
    shown: tuple[Shown, ...]
    surrounded: bool = False
    """Whether the prompt brings the tokens around a text itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """Reads what callers ask of a design."""

    design: Design
    tokenizer: Tokenizer
    chat: ChatTemplate | None

    def questions(
        self, prompt: object, images: object, videos: object
    ) -> tuple[list[Question], bool]:
        """The questions, and whether they are a batch: `prompt` is a text, a conversation, or a
        list of them; of a batch, `images` and `videos` hold those of each.

        Raises UsageError for anything else, and for images that are none.
        """
        if isinstance(prompt, str) or _is_conversation(prompt):
            one = self._question(prompt, listed(images, "images"), listed(videos, "videos"))
            return [one], False
        if not isinstance(prompt, list | tuple):
            kind = "None" if prompt is None else type(prompt).__name__
            raise UsageError(f"prompt: a text, a conversation, or a list of them, not {kind}")
        batch = list(cast("Sequence[object]", prompt))
        if not batch:
            raise UsageError("prompt: the list is empty; give one text or more")
        for number, one in enumerate(batch, start=1):
            if not isinstance(one, str) and not _is_conversation(one):
                kind = type(one).__name__
                raise UsageError(f"prompt {number}: a text or a conversation, not {kind}")
        each = zip(
            batch,
            _of_each(images, len(batch), "images"),
            _of_each(videos, len(batch), "videos"),
            strict=True,
        )
        questions: list[Question] = []
        for number, one in enumerate(each, start=1):
            with of_prompt(number):
                questions.append(self._question(*one))
        return questions, True

    def clips(self, given: Sequence[object], what: str) -> list[Shown]:
        """Every image of a list, in order. Raises UsageError that says which of them is none."""
        return [self._clip(one, f"{what} {n}") for n, one in enumerate(given, start=1)]

    def _question(self, asked: object, images: list[object], videos: list[object]) -> Question:
        if isinstance(asked, str):
            prompt, given = _ordered(asked, images, videos)
            prompt = guarded(prompt, self._steering() - {MARKER, self._image_word()})
            return Question(prompt=prompt, shown=self._shown(given, prompt))
        return self._from_conversation(asked, images, videos)

    def _from_conversation(
        self, asked: object, images: list[object], videos: list[object]
    ) -> Question:
        if self.chat is None:
            raise UsageError(
                "there is no chat template with these weights (chat_template.jinja, or "
                "tokenizer_config.json): give the prompt as text"
            )
        word = self._image_word()
        messages, pictures = conversation_of(asked, (MARKER, VIDEO_MARKER, word))
        words = self._steering()
        text = self.chat.render([_guarded_all(message, words) for message in messages])
        if self.tokenizer.id(FENCE) is not None:
            text = text.replace(FENCE, "")  # it is put around each image below
        text = text.replace(word, MARKER)
        waiting = {"image": iter(images), "video": iter(videos)}
        given: list[object] = []
        for kind, picture in pictures:
            found = next(waiting[kind], None) if picture is None else picture
            if found is None:
                raise UsageError(
                    f"the conversation has an {kind} without a picture: put it into the part, "
                    f'{{"type": "{kind}", "{kind}": PATH}}, or give it with {kind}s='
                )
            given.append(found)
        rest = [one for kind in waiting.values() for one in kind]
        if rest:
            count = len(rest)
            raise UsageError(
                f"{count} of the images {'has' if count == 1 else 'have'} no place in the "
                f'conversation: write a part {{"type": "image"}} for each'
            )
        text = text.replace(VIDEO_MARKER, MARKER)
        start = self.tokenizer.decode_all(self.tokenizer.start)
        surrounded = bool(start) and text.startswith(start)
        return Question(prompt=text, shown=self._shown(given, text), surrounded=surrounded)

    def _steering(self) -> set[str]:
        """Words that a user's text may hold as text alone. The masked words of a design that fills
        them in are the user's to write."""
        own = MASKS if self.design.head == "masked_lm" else ()
        return {
            MARKER,
            VIDEO_MARKER,
            FENCE,
            self._image_word(),
            *self.tokenizer.specials.tokens,
        } - {*own}

    def _image_word(self) -> str:
        """What the tokenizer calls the placeholder of an image."""
        token = self.design.image_token
        found = None if token is None else self.tokenizer.file.id_to_token(token)
        return found or MARKER

    def _shown(self, given: Sequence[object], prompt: str) -> tuple[Shown, ...]:
        """Several stills for a single marker are the frames of one video."""
        several = len(given) > 1 and self.design.frames > 1 and count_markers(prompt) == 1
        if several and not any(isinstance(one, Encoded) for one in given):
            stills = [self._source(one, f"image {n}") for n, one in enumerate(given, start=1)]
            return (one_video(stills, most=self.design.frames),)
        return tuple(self.clips(given, "image"))

    def _clip(self, given: object, name: str) -> Shown:
        if isinstance(given, Encoded):
            return given
        source = self._source(given, name)
        name = source.name if isinstance(source, Path) else name
        try:
            return clip_of(source, name, most=self.design.frames)
        except UsageError as error:
            raise UsageError(named_once(str(error), name)) from None

    def _source(self, given: object, name: str) -> Source:
        try:
            return source_of(given)
        except UsageError as error:
            raise UsageError(f"{name}: {error}") from None


@contextmanager
def of_prompt(number: int | None) -> Generator[None]:
    """Says of a mistake in which prompt of a batch it is; None: there is but one."""
    try:
        yield
    except UsageError as error:
        if number is None:
            raise
        raise UsageError(f"prompt {number}: {error}") from None


def _is_conversation(given: object) -> bool:
    if not isinstance(given, list | tuple) or not given:
        return False
    return all(isinstance(one, Mapping) for one in cast("Sequence[object]", given))


def _of_each(given: object, count: int, what: str) -> list[list[object]]:
    """The images of each prompt of a batch."""
    rows = listed(given, what)
    if not rows:
        return [[] for _ in range(count)]
    if len(rows) != count:
        raise UsageError(
            f"{what}: of a batch of {count} prompts, a list of {count} is expected, each the "
            f"{what} of one prompt (an empty list for none), but there are {len(rows)}"
        )
    return [listed(row, what) for row in rows]


def _guarded_all(given: Any, words: Iterable[str]) -> Any:
    """A message in which every text is guarded."""
    if isinstance(given, str):
        return guarded(given, words)
    if isinstance(given, Mapping):
        pairs = cast("Mapping[Any, Any]", given).items()
        return {_guarded_all(key, words): _guarded_all(one, words) for key, one in pairs}
    if isinstance(given, list | tuple):
        return [_guarded_all(one, words) for one in cast("Sequence[Any]", given)]
    return given


def _ordered(prompt: str, images: list[object], videos: list[object]) -> tuple[str, list[object]]:
    """Images and videos in the order of their markers; images first where videos have none of
    their own. Only markers of images are left in the prompt."""
    if VIDEO_MARKER not in prompt:
        return prompt, [*images, *videos]
    parts = prompt.split(VIDEO_MARKER)
    if not videos:
        markers = f"{len(parts) - 1} {VIDEO_MARKER} marker{'s' * (len(parts) > 2)}"
        raise UsageError(
            f"the prompt has {markers}, but no videos are given: give them with videos=, or write "
            f"{MARKER} where one is given as an image, or take the word out"
        )
    if len(parts) - 1 != len(videos):
        raise UsageError(
            f"the prompt has {len(parts) - 1} {VIDEO_MARKER} marker{'s' * (len(parts) > 2)}, but "
            f"there are {len(videos)} videos: write one marker for each"
        )
    given: list[object] = []
    left = list(images)
    for part, video in zip(parts, [*videos, None], strict=True):
        here = count_markers(part)
        given.extend(left[:here])
        left = left[here:]
        given.extend([] if video is None else [video])
    return MARKER.join(parts), [*given, *left]


# --------------------------------------------------------------------------------------------------
# Where an answer ends by its text.
# --------------------------------------------------------------------------------------------------


def stop_strings(given: object) -> tuple[str, ...]:
    """One stop string or several. Raises UsageError for anything else, and for an empty one."""
    if given is None:
        return ()
    listed = [given] if isinstance(given, str) else given
    if not isinstance(listed, list | tuple):
        raise UsageError(f"stop: a text or a list of texts is expected, not {given!r}")
    for one in cast("Sequence[object]", listed):
        if not isinstance(one, str) or not one:
            raise UsageError(f"stop: {one!r} never ends an answer; a text of one character or more")
    return tuple(cast("Sequence[str]", listed))


class StopWatch:
    """Passes a text on, piece by piece, up to the first stop string, of which nothing gets out.

    What could be the beginning of a stop string is held back until it is known not to be.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = tuple(stops)
        self.held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """What of the text is certain after `piece`."""
        if self.stopped:
            return ""
        self.held += piece
        found = [place for stop in self.stops if (place := self.held.find(stop)) >= 0]
        if found:
            self.stopped = True
            said, self.held = self.held[: min(found)], ""
            return said
        keep = max((_begun(self.held, stop) for stop in self.stops), default=0)
        cut = len(self.held) - keep
        said, self.held = self.held[:cut], self.held[cut:]
        return said

    def finish(self) -> str:
        """What was held back, once no more text comes."""
        said, self.held = self.held, ""
        return said


def _begun(text: str, stop: str) -> int:
    """Characters at the end of `text` with which `stop` begins."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


# --------------------------------------------------------------------------------------------------
# A prompt with its images as what an engine reads: ids, places of visual tokens, who sees what.
# --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What a prompt consists of, in tokens."""

    text: int
    """Tokens of the prompt that are not visual tokens."""
    visual: int
    """Positions of the sequence that the images take."""
    images: int
    notes: tuple[str, ...] = ()
    """What the user should know of them."""

    @property
    def sequence(self) -> int:
        """Positions of the language model that the prompt takes."""
        return self.text + self.visual


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A prompt as tokens, before its images are encoded."""

    ids: Ids
    visual: Flags
    seen: Flags | None
    inputs: Inputs

    def row(self, features: Sequence[Feature]) -> Row:
        """The row with its features, one for each image."""
        return Row(ids=self.ids, visual=self.visual, features=tuple(features), seen=self.seen)


def laid_out(
    design: Design,
    tokenizer: Tokenizer,
    prompt: str,
    positions: Sequence[int],
    *,
    surrounded: bool = False,
    notes: tuple[str, ...] = (),
) -> Layout:
    """The layout of a prompt whose images take `positions` of the sequence each. `surrounded` says
    that the text brings the tokenizer's start and end itself.

    Raises UsageError where the prompt does not fit the images or the design.
    """
    place = Place(token=design.image_token, leading=design.leading, settable=design.settable)
    # A system that reads images from outside the sequence has one mark for each in it.
    ids = token_ids(
        prompt,
        tokenizer=tokenizer,
        place=place,
        images=[max(1, each) for each in positions],
        vocabulary=design.vocabulary,
        surrounded=surrounded,
    )
    if not ids:
        raise UsageError("the prompt is empty; give --prompt TEXT")
    visual = sum(positions)
    text = len(ids)
    array = np.array(ids, np.int64)
    marks = np.zeros(len(ids), np.bool_)
    seen = None
    if design.serving == "cross_attention":
        before = (array == design.image_token).cumsum()[:, None]
        number = np.arange(1, len(positions) + 1)
        seen = number <= before if design.all_previous else number == before
    elif design.serving != "single_pass" and design.image_token is not None:
        marks = array == design.image_token
        text -= visual
    elif design.serving != "single_pass":
        array = np.concatenate((np.zeros(visual, np.int64), array))
        marks = np.arange(len(array)) < visual
    inputs = Inputs(text=text, visual=visual, images=len(positions), notes=notes)
    return Layout(ids=array, visual=marks, seen=seen, inputs=inputs)


def check_images(design: Design, images: int) -> None:
    """Raises UsageError where a prompt has more images than the token budget."""
    most = design.max_images
    if images <= most:
        return
    budget = f"{most or 'no'} image{'s' * (most != 1)}"
    raise UsageError(
        f"{images} images are too many: the token budget of this design has {budget} in one "
        f"prompt; give fewer, or build it with token_budget: {{images: {images}}}"
    )


def check_context(
    design: Design, inputs: Inputs, max_new_tokens: int, capacity: int | None
) -> None:
    """Raises UsageError, with the arithmetic, where prompt and answer exceed the positions that the
    language model has, or the `capacity` of an engine's graphs (None: they have no limit)."""
    # The visual tokens of a text encoder have positions of their own; the answer of an
    # encoder-decoder has.
    taken = inputs.text if design.serving == "single_pass" else inputs.sequence
    shared = 0 if design.serving in ("encoder_decoder", "single_pass") else taken
    prompt = _taken(inputs) if taken > inputs.text else f"{inputs.text} text"
    limits = _limits(design, capacity)
    for longest, slots, has in limits:
        if taken > longest or slots <= shared:
            raise UsageError(
                f"the prompt is too long: {prompt} tokens, but {has}; shorten it or give fewer "
                f"images"
            )
    for _, slots, has in sorted(limits, key=lambda limit: limit[1]):
        if max_new_tokens > slots - shared:
            total = f"{prompt} tokens + {max_new_tokens} new = {taken + max_new_tokens:,}"
            need = total if shared else f"{max_new_tokens} new tokens"
            raise UsageError(
                f"the answer may be too long: {need}, but {has}; --max-new-tokens {slots - shared}"
            )


def _limits(design: Design, capacity: int | None) -> list[tuple[int, int, str]]:
    """The longest prompt, the tokens that a sequence may have, and what sets these limits."""
    found: list[tuple[int, int, str]] = []
    if design.context is not None:
        has = f"the language model has {design.context:,} positions"
        found.append((design.context, design.context, has))
    if capacity is not None:
        slots = capacity - 1 if design.serving == "encoder_decoder" else capacity
        has = (
            f"the token budget, for which the graphs of this build are made, has "
            f"{design.sequence:,} tokens for a prompt and {slots:,} with its answer"
        )
        found.append((design.sequence, slots, has))
    return found


def _taken(inputs: Inputs) -> str:
    """What the prompt takes, as a sum."""
    if not inputs.visual:
        return f"{inputs.text} text"
    each, rest = divmod(inputs.visual, inputs.images)
    images = f"{inputs.images} x {each}" if not rest else f"{inputs.visual}"
    return f"{inputs.text} text + {images} visual = {inputs.sequence}"


# --------------------------------------------------------------------------------------------------
# What a model said, and what it took.
# --------------------------------------------------------------------------------------------------


Finish = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer to one prompt. Times are seconds of wall clock; those of a batch are the whole
    batch's."""

    text: str
    tokens: tuple[int, ...] = ()
    """The generated tokens, without the one that ends the answer."""
    choices: tuple[Choice, ...] = ()
    """What a text encoder chose from, likeliest first."""
    finish: Finish
    """Whether the model ended its answer (or a stop string did), the limit of new tokens did, or
    the caller."""
    inputs: Inputs
    prepare_seconds: float
    first_token_seconds: float
    """From the start of the model's run to its first token: vision and the whole prompt."""
    answer_seconds: float

    def __str__(self) -> str:
        return self.text

    def tokens_per_second(self) -> float | None:
        """Tokens after the first, by the time that they took; None for an answer of one token."""
        later = self.answer_seconds - self.first_token_seconds
        return (len(self.tokens) - 1) / later if len(self.tokens) > 1 and later > 0 else None

    def summary(self) -> str:
        """One line about what it took."""
        speed = self.tokens_per_second()
        visual = f" + {self.inputs.visual} visual" if self.inputs.visual else ""
        read = f"{self.inputs.text}{visual} tokens in"
        if self.choices:
            return f"[{read}; {self.answer_seconds:.2f} s]"
        rate = "" if speed is None else f", then {speed:,.1f} tokens/s"
        first = f"first after {self.first_token_seconds:.2f} s{rate}"
        return f"[{read}, {len(self.tokens)} out; {first}]"

    def to_json(self) -> dict[str, Any]:
        """The answer's part of what `vlmc run --json` prints."""
        speed = self.tokens_per_second()
        return {
            "text": self.text,
            "tokens": list(self.tokens),
            "choices": [asdict(choice) for choice in self.choices],
            "finish": self.finish,
            "prompt": {
                "text_tokens": self.inputs.text,
                "visual_tokens": self.inputs.visual,
                "images": self.inputs.images,
            },
            "seconds": {
                "prepare": round(self.prepare_seconds, 4),
                "first_token": round(self.first_token_seconds, 4),
                "answer": round(self.answer_seconds, 4),
            },
            "tokens_per_second": None if speed is None else round(speed, 2),
            "notes": list(self.inputs.notes),
        }


# --------------------------------------------------------------------------------------------------
# One row of a generation: from logits to text, up to its end.
# --------------------------------------------------------------------------------------------------


class Cancel(Protocol):
    """What ends a generation from outside, such as a threading.Event."""

    def is_set(self) -> bool:
        """Whether the caller wants no more."""
        ...


class Speaker:
    """Chooses the tokens of one answer and turns them into text, by itself among the others of a
    batch."""

    def __init__(
        self, tokenizer: Tokenizer, sampling: Sampling, row: int, stops: Sequence[str]
    ) -> None:
        self.tokenizer = tokenizer
        self.sampling = sampling
        self.draw = sampling.draws(row)
        self.stream = TextStream(tokenizer)
        self.watch = StopWatch(stops)
        self.tokens: list[int] = []
        self.last = 0
        """The newest token; the ending one too."""
        self.text = ""
        self.finish: Finish | None = None
        """None while there is more to say."""

    def hear(self, logits: Numbers) -> str:
        """Chooses the next token by logits [vocabulary]; the text that it makes certain."""
        self.last = choose(logits, self.sampling, self.draw)
        if self.last in self.tokenizer.stops:
            return self.end("stop")
        self.tokens.append(self.last)
        said = self.watch.push(self.stream.push(self.last))
        if self.watch.stopped:
            self.finish = "stop"
        self.text += said
        return said

    def end(self, finish: Finish) -> str:
        """Ends the answer; what was still held back."""
        said = self.watch.push(self.stream.finish())
        self.finish = "stop" if self.watch.stopped else finish
        said += self.watch.finish()
        self.text += said
        return said


# --------------------------------------------------------------------------------------------------
# The vision side of a session: pixels, and what they become, kept for the next question.
# --------------------------------------------------------------------------------------------------


AT_ONCE = 16
"""Images that are encoded in one call at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """Reads images and has an engine encode them, each once."""

    design: Design
    engine: Engine
    processor: ImageProcessor | None
    store: FeatureStore
    seeded: bool

    def read(self, shown: Sequence[Shown]) -> list[Encoded | Pixels]:
        """The pixels of each image that is not encoded yet: [channels, height, width], with the
        frames in front where the encoder sees videos; of regions [regions, width].

        Raises UsageError where one cannot be read.
        """
        self.check_own(shown)
        return [self._pixels(one) if isinstance(one, Clip) else one for one in shown]

    def encode(self, read: Sequence[Encoded | Pixels], cancel: Cancel | None) -> list[Encoded]:
        """What each image becomes: kept from before, or encoded now with others of its shape.
        Nothing where `cancel` is set meanwhile. Raises EnvironmentFault where it is not finite."""
        found: dict[int, Encoded] = {}
        waiting: dict[tuple[int, ...], dict[str, tuple[Pixels, list[int]]]] = {}
        for place, one in enumerate(read):
            if isinstance(one, Encoded):
                found[place] = one
                continue
            key = pixel_hash(one)
            feature = self.store.get(key)
            if feature is None:
                group = waiting.setdefault(one.shape, {})
                group.setdefault(key, (one, []))[1].append(place)
            else:
                found[place] = self._encoded(feature, one, key)
        for group in waiting.values():
            keys = list(group)
            for first in range(0, len(keys), AT_ONCE):
                if cancel is not None and cancel.is_set():
                    return []
                some = keys[first : first + AT_ONCE]
                features = self.engine.encode_images(np.stack([group[key][0] for key in some]))
                for key, feature in zip(some, features, strict=True):
                    if not is_finite(feature):
                        raise overflowed("what an image becomes is")
                    self.store.put(key, feature)
                    pixels, places = group[key]
                    found |= {place: self._encoded(feature, pixels, key) for place in places}
        return [found[place] for place in range(len(read))]

    def check_own(self, shown: Sequence[Shown]) -> None:
        """Raises UsageError for images that another session encoded."""
        for number, one in enumerate(shown, start=1):
            if isinstance(one, Encoded) and one.owner != self.store.owner:
                raise UsageError(
                    f"image {number}: another session encoded it, with a model of its own; give "
                    f"the picture itself, or what encode_images of this session makes of it"
                )

    def frames(self, shown: Shown) -> int:
        """Frames that one image shows."""
        if isinstance(shown, Clip):
            return len(shown.frames)
        return shown.frames if isinstance(shown, Encoded) else 1

    def notes(self, shown: Sequence[Shown]) -> tuple[str, ...]:
        """What the user should know of images. Raises UsageError where a design that takes the
        features of regions, and has learnt from real ones, is shown pixels."""
        notes = [note for one in shown if isinstance(one, Clip) for note in one.notes]
        if self.design.regions and any(isinstance(one, Clip) for one in shown):
            notes.append(self._stand_in_note())
        return tuple(dict.fromkeys(notes))

    def regions(self, features: object, images: bool) -> list[Shown]:
        """Region features in place of an image. Raises UsageError where they do not fit."""
        if features is None:
            return []
        if not self.design.regions:
            raise UsageError(
                "--features: the encoder of this design sees pixels; give --image PATH"
            )
        if images:
            raise UsageError("--features stands in place of --image: give one of them")
        found = features_of(features, self.design)
        given, exactly = found.shape[1], self.design.regions
        if given != exactly and self.engine.name != "eager":
            raise UsageError(
                f"the features of {given} regions: the graphs of --engine {self.engine.name} take "
                f"those of exactly {exactly}; --engine eager takes fewer"
            )
        return list(found)

    def check_alike(self, shown: Sequence[Shown]) -> None:
        """Raises UsageError where images that are looked at from outside the sequence become
        unlike numbers of visual tokens."""
        if self.design.serving != "cross_attention":
            return
        counts = [self.frames(one) for one in shown]
        if len({self.design.visual[count - 1] for count in counts}) < 2:
            return
        names = [one.name if isinstance(one, Clip) else "an image" for one in shown]
        told = ", ".join(f"{name} {count}" for name, count in zip(names, counts, strict=True))
        raise UsageError(
            f"videos that are asked about at once, by several prompts too, must show equally many "
            f"frames, but they show: {told}"
        )

    def _encoded(self, feature: Any, pixels: Pixels, key: str) -> Encoded:
        frames = pixels.shape[0] if pixels.ndim == 4 else 1
        return Encoded(feature=feature, frames=frames, key=key, owner=self.store.owner)

    def _pixels(self, clip: Clip) -> Pixels:
        if self.processor is None:
            self._stand_in_note()
            return stand_in([clip.frames[0][0]], self.design)[0]
        pixels = clip_pixels(clip, self.processor)
        return pixels if self.design.frames > 1 else pixels[0]

    def _stand_in_note(self) -> str:
        if not self.seeded:
            raise UsageError(
                f"this design sees no pixels: it takes the features of up to "
                f"{self.design.regions} regions that an object detector computed beforehand; give "
                f"them with --features FILE (safetensors: `features` [regions, "
                f"{self.design.region_width}])"
            )
        return stand_in_note(self.design)


# --------------------------------------------------------------------------------------------------
# An answer while it is made.
# --------------------------------------------------------------------------------------------------


class Stream:
    """Yields the text of an answer piece by piece; of a batch, pairs of a row's number and its
    piece. Closing it, or leaving its `with` block, ends the generation."""

    def __init__(
        self,
        layouts: Sequence[Layout],
        speakers: Sequence[Speaker],
        *,
        batch: bool,
        prepare_seconds: float,
    ) -> None:
        self.layouts = layouts
        self.speakers = speakers
        self.batch = batch
        self.prepare_seconds = prepare_seconds
        self.choices: dict[int, tuple[Choice, ...]] = {}
        self.seconds = 0.0
        """In which the model ran; what a caller does between two pieces is not counted."""
        self.first_seconds: float | None = None
        self.pieces: Iterator[tuple[int, str]] = iter(())

    def begin(self, pieces: Iterator[tuple[int, str]]) -> None:
        """Takes what it yields from."""
        self.pieces = pieces

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        while True:
            begun = time.perf_counter()
            try:
                row, piece = next(self.pieces)
            finally:
                self.seconds += time.perf_counter() - begun
            if self.first_seconds is None:
                self.first_seconds = self.seconds
            if piece:
                return (row, piece) if self.batch else piece

    def finished(self) -> Stream:
        """Itself, once the whole answer is made."""
        for _ in self:
            pass
        return self

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the generation; `answer` holds what was said so far."""
        cast("Generator[tuple[int, str]]", self.pieces).close()

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of the inputs, before the model runs."""
        return tuple(dict.fromkeys(note for one in self.layouts for note in one.inputs.notes))

    @property
    def answers(self) -> list[Answer]:
        """The answers as far as they are made, one for each prompt."""
        first = self.seconds if self.first_seconds is None else self.first_seconds
        return [
            Answer(
                text=speaker.text,
                tokens=tuple(speaker.tokens),
                choices=self.choices.get(row, ()),
                finish=speaker.finish or "cancelled",
                inputs=layout.inputs,
                prepare_seconds=self.prepare_seconds,
                first_token_seconds=first,
                answer_seconds=self.seconds,
            )
            for row, (layout, speaker) in enumerate(zip(self.layouts, self.speakers, strict=True))
        ]

    @property
    def answer(self) -> Answer:
        """The answer as far as it is made; of a batch, its first."""
        return self.answers[0]


# --------------------------------------------------------------------------------------------------
# A model that is ready to answer, whatever engine runs it.
# --------------------------------------------------------------------------------------------------


FEATURE_BYTES = 256 * 2**20
"""Memory that the features of earlier images may take."""

NOISE = "the weights are seeded and have learnt nothing: the answer is noise"


@dataclass(slots=True, kw_only=True)
class Session:
    """One design with its weights, an engine and a tokenizer. It may be asked again and again, by
    one thread; what an image became is kept for the next question about it."""

    design: Design
    engine: Engine
    tokenizer: Tokenizer
    processor: ImageProcessor | None
    """None where the design takes region features and no pixels."""
    chat: ChatTemplate | None = None
    labels: Mapping[int, str] = field(default_factory=dict[int, str])
    """Names of the classes of a classifier."""
    seeded: bool = False
    """Whether the model has learnt nothing."""
    seeded_parts: tuple[str, ...] = ()
    """The parts that have learnt nothing while others have."""
    examine: Callable[[], Sequence[str]] = tuple
    """Names of the weights that are not finite; asked only where the logits are not."""
    load_seconds: float = 0.0
    store: FeatureStore = field(default_factory=lambda: FeatureStore(FEATURE_BYTES))

    def encode_images(
        self, images: object = None, *, videos: object = None, features: object = None
    ) -> list[Encoded]:
        """What the vision part makes of each image, then of each video, to be given to `generate`
        in their place. Images are paths, bytes of files, Pillow images or numpy arrays; videos are
        animated files, folders or lists of frames, or arrays [frames, height, width, 3];
        `features` are those of regions, a safetensors file or an array [regions, width].

        They need not be for one prompt, so that the token budget bounds none of them.

        Raises UsageError where one of them is none, EnvironmentFault where the model's numbers are
        not finite.
        """
        given = [*listed(images, "images"), *listed(videos, "videos")]
        sight = self.sight
        shown = [*self.asker.clips(given, "image"), *sight.regions(features, bool(given))]
        return self._encoded(sight.read(shown), None)

    def generate(
        self,
        prompt: object,
        images: object = None,
        *,
        videos: object = None,
        features: object = None,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float | None = None,
        top_k: int | None = None,
        seed: int = 0,
        stop: object = None,
        stream: bool = False,
        cancel: Cancel | None = None,
    ) -> Any:
        """The `Answer` to a prompt about images; of a list of prompts, the list of their answers.

        `prompt` is a text with <image> where an image belongs (without it, images come first), or
        a conversation: [{"role": "user", "content": [{"type": "image"}, {"type": "text", ...}]}].
        Of a batch, `images` and `videos` hold a list for each prompt. With `stream`, a `Stream`
        that yields the text as it is made. A `stop` string ends the answer and is no part of it.
        `cancel`, such as a threading.Event, ends all of it when it is set.

        Raises UsageError where the question does not fit the design, EnvironmentFault where the
        model's numbers are not finite. The session may be used on after either.
        """
        begun = time.perf_counter()
        check_whole("--max-new-tokens", max_new_tokens, 1)
        if cancel is not None and not callable(getattr(cancel, "is_set", None)):
            raise UsageError(
                f"cancel {cancel!r}: one with is_set(), such as a threading.Event, is expected"
            )
        sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
        stops = stop_strings(stop)
        if not self.design.generates and (stops or sampling != Sampling(seed=seed)):
            raise UsageError("this design generates no text, so that there is nothing to sample")
        questions, batch = self.asker.questions(prompt, images, videos)
        if features is not None:
            questions = self._with_features(questions, features)
        limit = max_new_tokens if self.design.generates else 0
        layouts = self.laid_out(questions, limit, batch)
        read: list[Encoded | Pixels] = []
        for number, question in enumerate(questions, start=1):
            with of_prompt(number if batch else None):
                read.extend(self.sight.read(question.shown))
        ready = time.perf_counter()
        speakers = [Speaker(self.tokenizer, sampling, row, stops) for row in range(len(layouts))]
        made = Stream(layouts, speakers, batch=batch, prepare_seconds=ready - begun)
        made.begin(self._pieces(layouts, read, speakers, limit, cancel, made))
        if stream:
            return made
        made.finished()
        return made.answers if batch else made.answer

    def chatted(self, prompt: str, images: int) -> list[dict[str, Any]]:
        """A conversation of one message, as `generate` takes it: images first, then a text."""
        if images == 0 and self.chat is not None and not self.chat.takes_parts():
            return [{"role": "user", "content": prompt}]
        parts: list[dict[str, Any]] = [{"type": "image"} for _ in range(images)]
        return [{"role": "user", "content": [*parts, {"type": "text", "text": prompt}]}]

    def to_json(self, answer: Answer) -> dict[str, Any]:
        """What `vlmc run --json` and run.py's print."""
        said = answer.to_json()
        return {
            "version": 1,
            "name": self.design.name,
            "engine": self.engine.name,
            "seeded": self.seeded,
            "seeded_parts": list(self.seeded_parts),
            **said,
            "seconds": {"load": round(self.load_seconds, 4), **said["seconds"]},
        }

    @property
    def asker(self) -> Asker:
        """What reads the questions of callers."""
        return Asker(design=self.design, tokenizer=self.tokenizer, chat=self.chat)

    @property
    def sight(self) -> Sight:
        """What reads and encodes images."""
        return Sight(
            design=self.design,
            engine=self.engine,
            processor=self.processor,
            store=self.store,
            seeded=self.seeded,
        )

    def _with_features(self, questions: list[Question], features: object) -> list[Question]:
        (question, *rest) = questions
        if rest:
            raise UsageError("--features: the features of one image, but there are several prompts")
        shown = tuple(self.sight.regions(features, bool(question.shown)))
        return [Question(prompt=question.prompt, shown=shown, surrounded=question.surrounded)]

    def laid_out(
        self, questions: Sequence[Question], limit: int, batch: bool = False
    ) -> list[Layout]:
        """Every prompt as tokens. Raises UsageError where one does not fit, before the model
        runs."""
        most = getattr(self.engine, "most_rows", None)  # only graphs have a bound
        check_rows(self.engine.name, len(questions), most)
        layouts: list[Layout] = []
        for number, question in enumerate(questions, start=1):
            with of_prompt(number if batch else None):
                layouts.append(self._layout(question, limit))
        self.sight.check_alike([one for question in questions for one in question.shown])
        return layouts

    def _layout(self, question: Question, limit: int) -> Layout:
        sight = self.sight
        check_images(self.design, len(question.shown))
        sight.check_own(question.shown)
        layout = laid_out(
            self.design,
            self.tokenizer,
            question.prompt,
            [self.design.positions[sight.frames(one) - 1] for one in question.shown],
            surrounded=question.surrounded,
            notes=(*sight.notes(question.shown), *self._origin_notes()),
        )
        check_context(self.design, layout.inputs, limit, self.engine.capacity)
        if not self.design.generates:
            check_masks(self.design, self.tokenizer, layout.ids.tolist())
        return layout

    def _origin_notes(self) -> tuple[str, ...]:
        if self.seeded:
            return (NOISE,)
        if not self.seeded_parts:
            return ()
        named = ", ".join(self.seeded_parts)
        noise = NOISE.replace("the weights", "theirs")
        return (f"no weights were given for these parts: {named}; {noise}",)

    def _pieces(
        self,
        layouts: Sequence[Layout],
        read: Sequence[Encoded | Pixels],
        speakers: Sequence[Speaker],
        limit: int,
        cancel: Cancel | None,
        stream: Stream,
    ) -> Iterator[tuple[int, str]]:
        """The text of every row as it is made."""
        encoded = self._encoded(read, cancel)
        if cancel is not None and cancel.is_set():
            return
        left = iter(encoded)
        rows = [
            layout.row([next(left).feature for _ in range(layout.inputs.images)])
            for layout in layouts
        ]
        try:
            if self.design.generates:
                yield from self._spoken(rows, speakers, limit, cancel)
            else:
                yield from self._judged(rows, speakers, stream)
        except EnvironmentFault as error:
            raise EnvironmentFault(self._reason(str(error))) from None

    def _encoded(self, read: Sequence[Encoded | Pixels], cancel: Cancel | None) -> list[Encoded]:
        try:
            return self.sight.encode(read, cancel)
        except EnvironmentFault as error:
            raise EnvironmentFault(self._reason(str(error))) from None

    def _spoken(
        self, rows: Sequence[Row], speakers: Sequence[Speaker], limit: int, cancel: Cancel | None
    ) -> Iterator[tuple[int, str]]:
        state, logits = self.engine.prefill(rows)
        for count in range(1, limit + 1):
            for row, speaker in enumerate(speakers):
                if speaker.finish is None:
                    yield row, speaker.hear(logits[row])
            if all(speaker.finish for speaker in speakers):
                return
            if cancel is not None and cancel.is_set():
                return
            if count < limit:
                tokens = np.array([speaker.last for speaker in speakers], np.int64)
                logits = self.engine.step(state, tokens)
        for row, speaker in enumerate(speakers):
            if speaker.finish is None:
                yield row, speaker.end("length")

    def _judged(
        self, rows: Sequence[Row], speakers: Sequence[Speaker], stream: Stream
    ) -> Iterator[tuple[int, str]]:
        outputs = self.engine.answer(rows)
        for number, (row, speaker) in enumerate(zip(rows, speakers, strict=True)):
            own = {name: values[number] for name, values in outputs.items()}
            ids = row.ids.tolist()
            said = judged(self.design, self.tokenizer, self.labels, ids, own)
            speaker.text, stream.choices[number] = said
            speaker.finish = "stop"
            yield number, speaker.text

    def _reason(self, message: str) -> str:
        """Why logits are not finite: the weights, where they are not either."""
        bad = self.examine()
        if not bad:
            return message
        return (
            "the model's numbers are not finite, because weights are not: "
            f"{named_tensors(bad)}; {DAMAGED}: load another copy"
        )


# --------------------------------------------------------------------------------------------------
# A session from an engine and the files that came with its weights.
# --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Belongings:
    """The folders in which the files lie that came with weights."""

    build: Path | None = None
    """A build of ours: what lies in it by hand comes first."""
    words: Path | None = None
    """Where the language model's files are: tokenizer, settings, chat template."""
    pictures: Path | None = None
    """Where the encoder's are: the image processor."""
    tokenizer: Path | None = None
    """What a caller gives in place of the tokenizer there."""
    seeded: bool = False
    """Whether the model has learnt nothing."""
    seeded_parts: tuple[str, ...] = ()
    """The parts that have learnt nothing while others have."""


def deployed(
    folder: Path, design: Design, engine: Engine, *, tokenizer: Path | None = None
) -> Session:
    """A session over the artifacts of a build folder, which `engine` runs.

    Raises UsageError where there is no tokenizer, or a file does not fit the design.
    """
    equipment = equip(design, of_build(folder, design, tokenizer))
    return equipment.session(engine, lambda: not_finite(folder / "weights"))


def of_build(folder: Path, design: Design, tokenizer: Path | None = None) -> Belongings:
    """What lies in a build folder with weights."""
    weights = folder / "weights"
    origin = built_from(folder)
    given = {source.split()[0] for source in origin.split(", ") if source}
    seeded = origin.startswith("seed")
    partly = not seeded and "seed" in origin.split()
    return Belongings(
        build=folder,
        words=weights,
        pictures=weights,
        tokenizer=tokenizer,
        seeded=seeded,
        seeded_parts=without_values(design, given) if partly else (),
    )


def without_values(design: Design, given: set[str]) -> tuple[str, ...]:
    """The parts of a design that got no weights where `given` did. A language model's folder counts
    for the head."""
    known = given | ({"head"} if "language" in given else set[str]())
    return tuple(part for part in design.parts if part not in known)


@dataclass(frozen=True, slots=True, kw_only=True)
class Equipment:
    """All that a session needs beside an engine."""

    design: Design
    tokenizer: Tokenizer
    processor: ImageProcessor | None
    chat: ChatTemplate | None
    labels: dict[int, str]
    seeded: bool
    seeded_parts: tuple[str, ...]

    def session(self, engine: Engine, examine: Callable[[], Sequence[str]] = tuple) -> Session:
        """A session that `engine` runs; `examine` names the weights that are not finite."""
        return Session(
            design=self.design,
            engine=engine,
            tokenizer=self.tokenizer,
            processor=self.processor,
            chat=self.chat,
            labels=self.labels,
            seeded=self.seeded,
            seeded_parts=self.seeded_parts,
            examine=examine,
        )


def equip(design: Design, belongings: Belongings) -> Equipment:
    """The tokenizer, the image processor, the chat template and the names of classes that belong to
    the weights: what can be wrong before they are read. Raises as `deployed` does."""
    return Equipment(
        design=design,
        tokenizer=words_of(design, belongings),
        processor=pictures_of(design, belongings),
        chat=_chat_of(belongings),
        labels=class_names(belongings.words),
        seeded=belongings.seeded,
        seeded_parts=belongings.seeded_parts,
    )


def words_of(design: Design, belongings: Belongings) -> Tokenizer:
    """The tokenizer that is given, else that of the weights' folder, else bytes for a twin."""
    folder, build = belongings.words, belongings.build
    if belongings.tokenizer is not None:
        return load_tokenizer(belongings.tokenizer, checkpoint=folder)
    if build is not None and (build / "tokenizer.json").is_file():
        return load_tokenizer(build, checkpoint=folder)
    if folder is not None and (build is None or (folder / "tokenizer.json").is_file()):
        return load_tokenizer(folder)
    if belongings.seeded:
        return byte_tokenizer(ARCHITECTURES[design.serving], design.vocabulary)
    raise UsageError(
        f"{build or design.name} has weights but no tokenizer; give the published one with "
        f"--tokenizer PATH (tokenizer.json, or the folder that holds it)"
    )


def pictures_of(design: Design, belongings: Belongings) -> ImageProcessor | None:
    """The image processor of the weights' folder, else the design's; None where it sees none."""
    if design.preprocessing is None or design.image_size is None:
        return None
    processor = from_spec(design.preprocessing, design.image_size)
    where = f"the spec of {design.name}"
    folder = belongings.pictures
    if belongings.build is not None and has_processor(belongings.build):  # put there by hand
        folder = belongings.build
    if folder is not None:
        own = from_checkpoint(folder, processor)
        where = where if own == processor else f"the image processor of {folder}"
        processor = own
    check_size(processor, design.image_size, where)
    return processor


def built_from(folder: Path) -> str:
    """What a build's manifest says that its weights come from, such as `seed 0`."""
    artifacts: Any = json_object(folder / "manifest.json").get("artifacts")
    weights: Any = cast("Any", artifacts).get("weights") if isinstance(artifacts, dict) else None
    origin: Any = cast("Any", weights).get("source") if isinstance(weights, dict) else None
    return origin if isinstance(origin, str) else ""


def _chat_of(belongings: Belongings) -> ChatTemplate | None:
    given = belongings.tokenizer
    beside = None if given is None else given if given.is_dir() else given.parent
    for folder in (beside, belongings.build, belongings.words):
        found = None if folder is None else chat_template(folder)
        if found is not None:
            return found
    return None


# --------------------------------------------------------------------------------------------------
# Where the tensors of a folder of safetensors files lie, byte by byte.
#
# Needs the standard library only, so that a build folder's own runner can map weights with it.
# --------------------------------------------------------------------------------------------------


LARGEST_HEADER = 100_000_000
"""Bytes; the format's own limit."""


@dataclass(frozen=True, slots=True)
class Located:
    """A tensor's place on disk."""

    file: Path
    dtype: str
    """In the format's own word, such as `BF16`."""
    shape: tuple[int, ...]
    begin: int
    end: int
    """Bytes from the beginning of the file."""


def located(folder: Path) -> dict[str, Located]:
    """Every tensor of a folder by name; only headers are read.

    Raises EnvironmentFault where a file is missing or damaged.
    """
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return located_in(folder / "model.safetensors")
    try:
        places: Any = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted({Path(str(name)).name for name in cast("dict[str, Any]", places).values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EnvironmentFault(f"{index}: is damaged ({error}); build it again") from None
    return {name: one for file in files for name, one in located_in(folder / file).items()}


def located_in(file: Path) -> dict[str, Located]:
    """Every tensor of one file by name. Raises EnvironmentFault where it is missing or damaged."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 0 < length <= LARGEST_HEADER:
                raise ValueError("its header has no sensible length")
            header: Any = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        found = {
            str(name): Located(
                file=file,
                dtype=str(entry["dtype"]),
                shape=tuple(int(size) for size in entry["shape"]),
                begin=8 + length + int(entry["data_offsets"][0]),
                end=8 + length + int(entry["data_offsets"][1]),
            )
            for name, entry in header.items()
        }
        if file.stat().st_size < max((one.end for one in found.values()), default=0):
            raise ValueError("it is cut short")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise EnvironmentFault(f"{file}: cannot be read ({error}); build it again") from None
    return found


def adjacent(parts: Sequence[Located]) -> bool:
    """Whether `parts`, in their order, are one stretch of one file in one number format, and so,
    joined along their first dimension, one tensor."""
    return all(
        before.file == after.file
        and before.dtype == after.dtype
        and before.end == after.begin
        and before.shape[1:] == after.shape[1:]
        for before, after in pairwise(parts)
    )


# --------------------------------------------------------------------------------------------------
# The description of graphs on disk: what they take, give, and are made of.
# --------------------------------------------------------------------------------------------------


GRAPHS_SCHEMA = 2
"""How graphs.json and the wires that it names are to be read. In 1, steps returned their logits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphWire:
    """A tensor that goes into a graph or comes out of it; see `vlmc.capture.graph.Wire`."""

    name: str
    dims: tuple[int | str, ...]
    number: str
    written: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphFile:
    """One graph on disk."""

    path: Path
    inputs: tuple[GraphWire, ...]
    outputs: tuple[GraphWire, ...]
    bounds: Mapping[str, tuple[int, int]]
    constants: Mapping[str, tuple[str, ...] | str]
    """For each constant the weights that it joins, or its own name in constants.safetensors."""

    def most(self, extent: str) -> int | None:
        """The largest value of an extent; None where the graph has no such."""
        return self.bounds[extent][1] if extent in self.bounds else None


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphFolder:
    """The graphs of a design for one engine."""

    folder: Path
    torch: str
    """The version of torch that made them, such as 2.13.0."""
    dtype: str
    """The number format in which they compute, as torch calls it."""
    device: str
    system: Mapping[str, Any]
    """What compiled code needs: os, machine, cpu_features. Empty where nothing is compiled."""
    graphs: Mapping[str, GraphFile]
    gpu: tuple[int, int] | None = None
    """The compute capability for which they are compiled; None for a processor's."""

    @property
    def capacity(self) -> int | None:
        """Tokens that one row may have. Raises EnvironmentFault where no graph answers."""
        for name, extent in (("decode", "slots"), ("model", "text")):
            if name in self.graphs:
                return self.graphs[name].most(extent)
        raise EnvironmentFault(f"{self.folder}: there is no graph that answers; build it again")

    @property
    def place(self) -> str:
        """Where they run, as torch calls it."""
        return "cuda" if self.device == "cuda" else "cpu"


def read_graphs(folder: Path) -> GraphFolder:
    """What `folder`/graphs.json says. Raises EnvironmentFault where it is missing or damaged."""
    path = folder / "graphs.json"
    try:
        found = cast("dict[str, Any]", json.loads(path.read_text(encoding="utf-8")))
        if found.get("schema", GRAPHS_SCHEMA) != GRAPHS_SCHEMA:
            raise EnvironmentFault(f"{folder}: made by another release of vlmc; build it again")
        graphs = {entry["name"]: _graph_file(folder, entry) for entry in found["graphs"]}
        return GraphFolder(
            folder=folder,
            torch=str(found["torch"]),
            dtype=_graph_word(found, "dtype", ("float32", "bfloat16", "float16")),
            device=_graph_word(found, "device", ("any", "cpu", "cuda")),
            system=dict(found.get("system", {})),
            gpu=_capability(found.get("gpu")),
            graphs=graphs,
        )
    except FileNotFoundError:
        raise EnvironmentFault(f"{folder}: there are no graphs here; build them") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EnvironmentFault(f"{path}: is damaged ({error}); build it again") from None


def _graph_word(found: Mapping[str, Any], key: str, words: Sequence[str]) -> str:
    if found[key] not in words:
        raise ValueError(f"{key} is {found[key]!r}: {', '.join(words)} is expected")
    return found[key]


def _capability(found: Any) -> tuple[int, int] | None:
    if found is None:
        return None
    major, minor = found
    return int(major), int(minor)


def _graph_file(folder: Path, entry: Mapping[str, Any]) -> GraphFile:
    return GraphFile(
        path=folder / entry["file"],
        inputs=tuple(_graph_wire(wire) for wire in entry["inputs"]),
        outputs=tuple(_graph_wire(wire) for wire in entry["outputs"]),
        bounds={name: (int(least), int(most)) for name, (least, most) in entry["bounds"].items()},
        constants={
            name: parts if isinstance(parts, str) else tuple(parts)
            for name, parts in entry["constants"].items()
        },
    )


def _graph_wire(wire: Mapping[str, Any]) -> GraphWire:
    return GraphWire(
        name=wire["name"], dims=tuple(wire["dims"]), number=wire["number"], written=wire["written"]
    )


# --------------------------------------------------------------------------------------------------
# The weights of a build as tensors over its own files: nothing is copied where it need not be.
# --------------------------------------------------------------------------------------------------


MAPPED = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "C64": "complex64",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
"""The number formats of safetensors, as torch calls them."""


class MappedWeights:
    """Weights by name, in the number format `dtype` and on `device`.

    On the CPU a tensor is a view of the mapped file. On another device, or in another number format
    than that on disk, it is a copy, made once.
    """

    def __init__(self, weights: Path, graphs: Path, dtype: torch.dtype, device: str) -> None:
        self.places = located(weights)
        extra = graphs / "constants.safetensors"
        self.extra = located_in(extra) if extra.exists() else {}
        self.dtype = dtype
        self.device = device
        self.files: dict[Path, Tensor] = {}
        self.made: dict[Any, Tensor] = {}

    def constants(self, graph: GraphFile) -> dict[str, Tensor]:
        """The constants of a graph by name. Raises EnvironmentFault where a weight is missing."""
        return {name: self.constant(parts) for name, parts in graph.constants.items()}

    def constant(self, parts: tuple[str, ...] | str) -> Tensor:
        """Weights joined along their first dimension, or a constant of the graphs' own."""
        if parts not in self.made:
            try:
                if isinstance(parts, str):
                    places = [self.extra[parts]]
                else:
                    places = [self.places[name] for name in parts]
            except KeyError as error:
                raise EnvironmentFault(
                    f"the weights of this build lack {error}, which its graphs read; build it again"
                ) from None
            values = self._joined(places).to(self.device)
            self.made[parts] = values if isinstance(parts, str) else values.to(self.dtype)
        return self.made[parts]

    def _joined(self, places: Sequence[Located]) -> Tensor:
        if not adjacent(places):
            return torch.cat([self._joined([place]) for place in places])
        first = places[0]
        shape = first.shape
        if len(places) > 1:
            shape = (sum(place.shape[0] for place in places), *shape[1:])
        dtype: Any = getattr(torch, MAPPED.get(first.dtype, ""), None)
        if dtype is None:
            raise EnvironmentFault(
                f"{first.file}: holds {first.dtype}, which this torch does not know; build it again"
            )
        part = self._mapped(first.file)[first.begin : places[-1].end]
        if first.begin % dtype.itemsize:
            part = part.clone()
        try:
            return part.view(dtype).view(shape)
        except RuntimeError:
            raise EnvironmentFault(
                f"{first.file}: a tensor of {first.dtype} {list(shape)} does not take "
                f"{len(part):,} bytes; it is damaged, build it again"
            ) from None

    def _mapped(self, file: Path) -> Tensor:
        if file not in self.files:
            size = file.stat().st_size
            # A private mapping: what is read stays shared with every other process.
            self.files[file] = torch.from_file(str(file), size=size, dtype=torch.uint8)
        return self.files[file]


# --------------------------------------------------------------------------------------------------
# The model itself as an engine: nothing compiled, every design, any sequence length.
# --------------------------------------------------------------------------------------------------


class EagerState:
    """A generation: the cache, and what is read from outside the sequence."""

    def __init__(self, cache: Any) -> None:
        self.cache = cache
        self.memory: list[tuple[Tensor, Tensor]] = []
        self.seen: Tensor | None = None
        """What the newest token of each row sees: [batch, 1, images], or [batch, source]."""


class EagerEngine:
    """Runs a model in evaluation mode by its own methods. A feature is what the vision part gives
    for one image: a tensor [tokens, width], or keys and values [heads, tokens, head_dim] for each
    block that looks at images."""

    name = "eager"
    capacity: int | None = None

    def __init__(self, model: Any, design: Design) -> None:
        self.model = model
        self.design = design
        first = next(iter(model.parameters()))
        self.device: torch.device = first.device
        self.dtype: torch.dtype = first.dtype

    @_when_called(lambda: torch.inference_mode())
    def encode_images(self, pixels: Pixels) -> list[Feature]:
        """One feature for each image."""
        values = torch.from_numpy(np.ascontiguousarray(pixels)).to(self.device, self.dtype)  # pyright: ignore[reportUnknownMemberType]
        if self.design.serving != "cross_attention":
            visual = self.model.encode_images(values)
            if self.design.serving == "single_pass":
                visual = self.model.place(visual, None, None)
            return list(visual)
        visual = self.model.encode_images(values[:, None]).flatten(1, 2)
        pairs = self.model.memorise(visual)
        return [tuple((keys[i], values[i]) for keys, values in pairs) for i in range(len(visual))]

    @_when_called(lambda: torch.inference_mode())
    def prefill(self, rows: Sequence[Row]) -> tuple[EagerState, Logits]:
        """Reads whole prompts; see `Engine.prefill`."""
        model, state = self.model, EagerState(self.model.new_cache())
        ids, mask = self._padded(rows)
        last = torch.tensor([len(row.ids) - 1 for row in rows], device=self.device)
        x = self._filled(ids, rows)
        if self.design.serving == "encoder_decoder":
            state.memory = model.language.memorise(model.language.encode(x, mask))
            state.seen = mask
            return state, self.step(state, np.full(len(rows), self.design.start_token, np.int64))
        if self.design.serving == "cross_attention":
            state.memory, seen = self._outside(rows, ids.shape[1])
            hidden = model.read(x, mask, state.memory, self._keys(state, seen), state.cache)
            if seen is not None:
                state.seen = seen.gather(1, last[:, None, None].expand(-1, 1, seen.shape[2]))
        else:
            hidden = model.language(x, mask, state.cache)
        picked = hidden.gather(1, last[:, None, None].expand(-1, 1, hidden.shape[2]))
        return state, self._numbers(model.logits(picked)[:, 0])

    @_when_called(lambda: torch.inference_mode())
    def step(self, state: EagerState, tokens: Ids) -> Logits:
        """Appends a token to each row; see `Engine.step`."""
        ids = torch.tensor(tokens, device=self.device)[:, None]
        x = self.model.language.embed(ids)
        if self.design.serving == "encoder_decoder":
            hidden = self.model.language.decode(x, state.memory, state.seen, None, state.cache)
        elif self.design.serving == "cross_attention":
            seen = self._keys(state, state.seen)
            hidden = self.model.read(x, None, state.memory, seen, state.cache)
        else:
            hidden = self.model.language(x, None, state.cache)
        return self._numbers(self.model.logits(hidden)[:, -1])

    @_when_called(lambda: torch.inference_mode())
    def answer(self, rows: Sequence[Row]) -> dict[str, NDArray[np.float32]]:
        """The outputs of a design that answers in one pass."""
        model = self.model
        ids, mask = self._padded(rows)
        mask = torch.ones_like(ids) if mask is None else mask
        words = model.language.embed(ids)
        counts = [sum(len(one) for one in row.features) for row in rows]
        if max(counts) == 0:
            hidden = model.language(words, mask)
        else:
            visual = words.new_zeros(len(rows), max(counts), words.shape[2])
            for index, row in enumerate(rows):
                if row.features:
                    visual[index, : counts[index]] = torch.cat(row.features)
            shown = torch.arange(max(counts), device=self.device)
            seen = (shown < torch.tensor(counts, device=self.device)[:, None]).long()
            hidden = model.read(words, mask, visual, seen)
        # An emitted model.py drops an argument that its design never reads.
        read = inspect.signature(model.head.forward).parameters
        words = {"embedding": model.language.embedding} if "embedding" in read else {}
        output = model.head(hidden, mask, **words)
        found = {"logits": self._numbers(output.logits)}
        pairs = getattr(output, "seq_relationship_logits", None)
        if pairs is not None:
            found["seq_relationship_logits"] = self._numbers(pairs)
        return found

    def _padded(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor | None]:
        """Ids [batch, text], padded on the right, and their mask; None where nothing is padding."""
        ids, mask = padded(rows)
        placed = torch.tensor(ids, device=self.device)
        return placed, None if mask.all() else torch.tensor(mask, device=self.device)

    def _filled(self, ids: Tensor, rows: Sequence[Row]) -> Tensor:
        """Embeddings with visual tokens in their places."""
        x = self.model.language.embed(ids)
        for index, row in enumerate(rows):
            if row.visual.any():
                places = torch.tensor(np.flatnonzero(row.visual), device=self.device)
                x[index, places] = torch.cat(row.features).to(x.dtype)
        return x

    def _outside(
        self, rows: Sequence[Row], text: int
    ) -> tuple[list[tuple[Tensor, Tensor]], Tensor | None]:
        """Keys and values [batch, heads, images * tokens, head_dim] of the images of each row for
        each block, and which image each token sees: [batch, text, images]. A row with fewer images
        has zeros behind its own, which nobody sees."""
        most = max(len(row.features) for row in rows)
        if most == 0:
            return [], None
        seen = np.zeros((len(rows), text, most), np.bool_)
        for index, row in enumerate(rows):
            if row.seen is not None:
                seen[index, : len(row.ids), : row.seen.shape[1]] = row.seen
        example = next(row.features[0] for row in rows if row.features)
        memory: list[tuple[Tensor, Tensor]] = []
        for block, (key, _) in enumerate(example):
            nothing = torch.zeros_like(key)
            sides: list[Tensor] = []
            for side in (0, 1):
                images = [
                    torch.cat(
                        [one[block][side] for one in row.features]
                        + [nothing] * (most - len(row.features)),
                        dim=1,
                    )
                    for row in rows
                ]
                sides.append(torch.stack(images))
            memory.append((sides[0], sides[1]))
        return memory, torch.tensor(seen, device=self.device)

    def _keys(self, state: EagerState, seen: Tensor | None) -> Tensor | None:
        """The mask [batch, 1, tokens, keys] of what is seen by image: [batch, tokens, images]."""
        if seen is None:
            return None
        tokens = state.memory[0][0].shape[2] // seen.shape[2]
        return seen.repeat_interleave(tokens, dim=-1)[:, None]

    def _numbers(self, logits: Tensor) -> Logits:
        return logits.float().cpu().numpy()


# --------------------------------------------------------------------------------------------------
# Tensors for ONNX graphs, handed over in one call: needs onnxruntime and numpy.
# --------------------------------------------------------------------------------------------------


class OnnxValues:
    """What a graph reads, or what it writes, by name, in memory of its caller's.

    A binding takes a call for each tensor. Where all of a cache's are longer at each step than at
    the one before, that is a call or two for each layer; here it is one for all of them.
    """

    def __init__(self, numbers: Mapping[str, Any]) -> None:
        """`numbers` says numpy's number format of each."""
        # Where ONNX Runtime keeps what its own Python code is made of.
        own: Any = import_module("onnxruntime.capi.onnxruntime_pybind11_state")
        self.names = list(numbers)
        self.numbers = list(numbers.values())
        self.made: Any = own.OrtValueVector
        self.owners = [None] * len(self.names)
        cpu = own.OrtDevice(own.OrtDevice.cpu(), own.OrtDevice.default_memory(), 0)
        self.devices = [cpu] * len(self.names)

    def at(self, places: Sequence[int], shapes: Sequence[Sequence[int]]) -> Any:
        """The tensors at these addresses, in the order of their names."""
        values = self.made()
        values.push_back_batch(self.owners, places, self.numbers, shapes, self.devices)
        return values


# --------------------------------------------------------------------------------------------------
# An open ONNX graph and a generation in it: needs onnxruntime and numpy.
# --------------------------------------------------------------------------------------------------


ONNX_RUNTIME = "1.23"
"""The first ONNX Runtime with every operator of opset 23."""
ONNX_ROOM = 256
"""Tokens by which a cache has more room than it needs when it is made."""


class OnnxGraph:
    """An open graph: what it takes and gives, and how far its extents may vary."""

    def __init__(self, path: Path, threads: int | None) -> None:
        runtime = onnx_runtime()
        if not path.is_file():
            raise EnvironmentFault(
                f"{path}: there is no such graph; build it with --artifacts onnx"
            )
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = 1
        try:
            self.session: Any = runtime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the runtime's exceptions have no base of their own
            raise EnvironmentFault(
                f"{path}: ONNX Runtime {runtime.__version__} cannot open it (onnxruntime>="
                f"{ONNX_RUNTIME} is needed, and every file as it was built): {error}"
            ) from None
        self.inputs: dict[str, Any] = {one.name: one for one in self.session.get_inputs()}
        self.outputs: dict[str, Any] = {one.name: one for one in self.session.get_outputs()}
        notes = self.session.get_modelmeta().custom_metadata_map
        try:
            self.bounds = cast("dict[str, list[int]]", json.loads(notes["vlmc.bounds"]))
            self.image_tokens = int(notes["vlmc.image_tokens"])
        except (KeyError, ValueError):
            raise EnvironmentFault(
                f"{path}: lacks what vlmc notes in a graph, as where another tool has saved it; "
                "build it again"
            ) from None
        self.in_place = notes.get("vlmc.cache") == "in place"
        """Whether the newest tokens may be written behind the others in one buffer."""

    def run(self, given: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Every output."""
        return self.session.run(None, given)


class OnnxState:
    """A generation.

    All that a step reads and writes is allocated before it. Where graphs write a cache in place, it
    is one set of buffers, bound when it is made, as is all else that stays the same; elsewhere a
    step reads one set and writes the other, and all that it reads is handed over in one call, all
    that it writes in another, since every tensor of the cache has a new length. A cache has
    `ONNX_ROOM` tokens more room than it needs when it is made or outgrown.
    """

    def __init__(self, graph: OnnxGraph, embed: OnnxGraph, seen: NDArray[np.int64], limit: int):
        """`seen` [batch, prompt] is 1 at tokens, 0 at padding."""
        self.graph = graph
        self.embed = embed
        self.limit = limit
        self.length = 0
        """Tokens that the cache holds, padding included."""
        batch, prompt = seen.shape
        self.seen = np.ones((batch, limit), np.int64)
        self.seen[:, :prompt] = seen
        self.mask = np.empty(batch * limit, np.int64)
        """The part of `seen` that is read, without gaps."""
        self.tensors = [
            (name, name.replace("past_key_values", "present"), one.shape[1], one.shape[3])
            for name, one in graph.inputs.items()
            if name.startswith("past_key_values.")
        ]
        """Of the cache: as it is read, as it is written, heads and width."""
        self.sets: list[list[NDArray[np.float32]]] = [[]] if graph.in_place else [[], []]
        self.places: list[list[int]] = [[] for _ in self.sets]
        """Where in memory the tensors of each set begin."""
        self.room = 0
        self.turn = 0
        self.outside: dict[str, NDArray[Any]] = {}
        """What is read from outside the sequence, by the name of its input."""
        self.ids = np.empty((batch, 1), np.int64)
        width = graph.inputs["inputs_embeds"].shape[2]
        self.newest = np.empty((batch, 1, width), np.float32)
        self.logits = np.empty((batch, 1, graph.outputs["logits"].shape[2]), np.float32)
        self.answer = self.logits[:, 0]
        self.looking: Any = embed.session.io_binding()
        _bind(self.looking.bind_input, "input_ids", self.ids)
        _bind(self.looking.bind_output, "inputs_embeds", self.newest)
        self.binding: Any = graph.session.io_binding()
        _bind(self.binding.bind_output, "logits", self.logits)
        self.bound: NDArray[np.float32] | None = None
        self.growing: OnnxGrowing | None = None

    def look_at(self, name: str, values: NDArray[Any]) -> None:
        """Sets an input from outside the sequence."""
        self.outside[name] = np.ascontiguousarray(values)
        if self.graph.in_place:
            _bind(self.binding.bind_input, name, self.outside[name])
        self.growing = None

    def step(self, tokens: Ids) -> Logits:
        """Appends a token [batch] to each row."""
        self.ids[:, 0] = tokens
        self.embed.session.run_with_iobinding(self.looking)
        return self.run(self.newest)

    def run(self, embeds: NDArray[np.float32]) -> Logits:
        """Appends tokens [batch, tokens, width]; the logits [batch, vocabulary] after the last that
        is no padding."""
        total = self.length + embeds.shape[1]
        if total > self.limit:
            raise UsageError(
                f"the sequence has {total} tokens, but the graphs are made for {self.limit}"
            )
        mask = self.mask[: len(self.seen) * total].reshape(-1, total)
        mask[:] = self.seen[:, :total]
        if total > self.room:
            self._grow(min(self.limit, total + ONNX_ROOM))
        if self.graph.in_place:
            self._run_bound(embeds, mask)
        else:
            self.growing = self.growing or OnnxGrowing(self)
            self.growing.run(self, embeds, mask)
            self.turn = 1 - self.turn
        self.length = total
        return self.answer

    def _run_bound(self, embeds: NDArray[np.float32], mask: NDArray[np.int64]) -> None:
        if embeds is not self.bound:
            self.bound = embeds
            _bind(self.binding.bind_input, "inputs_embeds", embeds)
        _bind(self.binding.bind_input, "attention_mask", mask)
        self.graph.session.run_with_iobinding(self.binding)

    def _grow(self, room: int) -> None:
        """Makes room for as many tokens; what the cache holds stays."""
        rows = len(self.seen)
        shapes = [(rows, heads, room, width) for _, _, heads, width in self.tensors]
        if self.graph.in_place:
            larger = [np.empty(shape, np.float32) for shape in shapes]
            for old, new in zip(self.sets[0], larger, strict=False):
                new[:, :, : self.length] = old[:, :, : self.length]
            self._keep(0, larger)
            self.room = room
            self._bind_cache(room)
            return
        for turn in range(2):
            held = self.sets[turn] if turn == self.turn and self.length else []
            larger = [np.empty(int(np.prod(shape)), np.float32) for shape in shapes]
            for old, new in zip(held, larger, strict=False):
                new[: old.size] = old
            self._keep(turn, larger)
        self.room = room

    def _keep(self, turn: int, buffers: list[NDArray[np.float32]]) -> None:
        self.sets[turn] = buffers
        self.places[turn] = [one.ctypes.data for one in buffers]

    def _bind_cache(self, room: int) -> None:
        """Binds the only set as what is read and as what is written."""
        rows, read, write = len(self.seen), self.binding.bind_input, self.binding.bind_output
        for (past, present, heads, width), place in zip(self.tensors, self.places[0], strict=True):
            read(past, "cpu", 0, np.float32, (rows, heads, room, width), place)
            write(present, "cpu", 0, np.float32, (rows, heads, room, width), place)


class OnnxGrowing:
    """How a generation hands its tensors to a graph that gives its cache back longer: the same
    calls whatever the depth."""

    def __init__(self, state: OnnxState) -> None:
        self.options: Any = onnx_runtime().RunOptions()
        outside = list(state.outside.values())
        self.places = [one.ctypes.data for one in outside]
        self.shapes = [one.shape for one in outside]
        _, _, heads, width = state.tensors[0]
        assert all((own, wide) == (heads, width) for _, _, own, wide in state.tensors)
        self.heads, self.width = heads, width
        floats, number = np.float32, {name: one.dtype.type for name, one in state.outside.items()}
        past = {name: floats for name, _, _, _ in state.tensors}
        own = {"inputs_embeds": floats, "attention_mask": np.int64}
        self.read = OnnxValues({**own, **number, **past})
        self.write = OnnxValues(
            {"logits": floats, **{name: floats for _, name, _, _ in state.tensors}}
        )

    def run(self, state: OnnxState, embeds: NDArray[np.float32], mask: NDArray[np.int64]) -> None:
        """Reads the set whose turn it is and writes the other."""
        read, write = self.read, self.write
        rows, layers = len(state.seen), len(state.tensors)
        before = (rows, self.heads, state.length, self.width)
        after = (rows, self.heads, mask.shape[1], self.width)
        given = read.at(
            [embeds.ctypes.data, mask.ctypes.data, *self.places, *state.places[state.turn]],
            [embeds.shape, mask.shape, *self.shapes, *[before] * layers],
        )
        made = write.at(
            [state.logits.ctypes.data, *state.places[1 - state.turn]],
            [state.logits.shape, *[after] * layers],
        )
        state.graph.session.run_with_ortvaluevector(
            self.options, read.names, given, write.names, made, write.devices
        )


def _bind(bind: Any, name: str, values: NDArray[Any]) -> None:
    bind(name, "cpu", 0, values.dtype, values.shape, values.ctypes.data)


def onnx_runtime() -> Any:
    """The package. Raises EnvironmentFault where it is missing."""
    try:
        import onnxruntime
    except ImportError:
        raise EnvironmentFault(
            f"the engine onnx needs ONNX Runtime: pip install 'onnxruntime>={ONNX_RUNTIME}'"
        ) from None
    return onnxruntime


# --------------------------------------------------------------------------------------------------
# A build's ONNX graphs as an engine: needs onnxruntime and numpy.
# --------------------------------------------------------------------------------------------------


class OnnxEngine:
    """Runs the graphs below `folder`; a session for each is opened when it is first needed.

    A feature is the vision graph's output for one image: [tokens, width], or keys and values
    [heads, tokens, head_dim] for each block that looks at images. `variant` (int8, int4) runs
    quantised graphs; of those that there are none of, the plain ones. Raises EnvironmentFault where
    onnxruntime is missing or cannot open a graph.
    """

    def __init__(
        self,
        folder: Path,
        *,
        serving: str,
        start_token: int | None = None,
        variant: str | None = None,
        threads: int | None = None,
    ) -> None:
        self.folder = folder
        self.serving = serving
        self.start_token = start_token
        self.variant = variant
        self.name = "onnx" if variant is None else f"onnx-{variant}"
        self.threads = threads
        self._open: dict[str, OnnxGraph] = {}
        onnx_runtime()
        last = "model" if serving == "single_pass" else "decoder"
        if variant is not None and not (folder / f"{last}.{variant}.onnx").is_file():
            raise EnvironmentFault(
                f"{folder}: holds no {variant} graphs; build them with --quantize {variant}"
            )

    @property
    def capacity(self) -> int | None:
        """Tokens that the sequence of one row may have."""
        if self.serving == "single_pass":
            return self.graph("model").bounds["sequence_length"][1]
        return self.graph("decoder").bounds["past_sequence_length"][1] + 1

    @property
    def most_rows(self) -> int:
        """Rows of one batch at most."""
        last = "model" if self.serving == "single_pass" else "decoder"
        return self.graph(last).bounds["batch_size"][1]

    def graph(self, name: str) -> OnnxGraph:
        """The graph of a stage, open."""
        if name not in self._open:
            path = self.folder / f"{name}.onnx"
            chosen = self.folder / f"{name}.{self.variant}.onnx"
            # Looking words up is not worth a pool of threads, which would stand in others' way.
            threads = 1 if name == "embed" else self.threads
            self._open[name] = OnnxGraph(chosen if chosen.is_file() else path, threads)
        return self._open[name]

    def encode_images(self, pixels: Pixels) -> list[Feature]:
        """One feature for each image; see `Engine.encode_images`."""
        graph = self.graph("vision")
        (name,) = graph.inputs
        found = graph.run({name: np.ascontiguousarray(pixels, np.float32)})
        if self.serving != "cross_attention":
            return list(found[0])
        pairs = list(zip(found[::2], found[1::2], strict=True))
        return [tuple((keys[i], values[i]) for keys, values in pairs) for i in range(len(pixels))]

    def prefill(self, rows: Sequence[Row]) -> tuple[OnnxState, Logits]:
        """Reads whole prompts; see `Engine.prefill`."""
        ids, mask = padded(rows)
        decoder = self.graph("decoder")
        first = self.graph("encoder") if self.serving == "encoder_decoder" else decoder
        self._check(first, ids, rows)
        embeds = self._embedded(ids)
        for index, row in enumerate(rows):
            if row.visual.any():
                embeds[index, np.flatnonzero(row.visual)] = np.concatenate(row.features)
        if self.serving == "encoder_decoder":
            memory = first.run({"inputs_embeds": embeds, "attention_mask": mask})
            state = self._state(decoder, np.empty((len(rows), 0), np.int64))
            for name, values in zip(first.outputs, memory, strict=True):
                state.look_at(name, values)
            state.look_at("memory_mask", mask)
            return state, self.step(state, np.full(len(rows), self.start_token, np.int64))
        state = self._state(decoder, mask)
        if self.serving == "cross_attention":
            for name, values in self._memory(decoder, rows, ids.shape[1]).items():
                state.look_at(name, values)
        logits = state.run(embeds)
        if "seen" in state.outside:
            # New tokens see what the last token of their row saw.
            last = [(len(row.ids) - 1) for row in rows]
            state.look_at("seen", state.outside["seen"][np.arange(len(rows)), last][:, None])
        return state, logits

    def step(self, state: OnnxState, tokens: Ids) -> Logits:
        """Appends a token to each row; see `Engine.step`."""
        return state.step(tokens)

    def answer(self, rows: Sequence[Row]) -> dict[str, NDArray[np.float32]]:
        """The outputs of a design that answers in one pass."""
        graph = self.graph("model")
        ids, mask = padded(rows)
        self._check(graph, ids, rows)
        counts = [sum(len(one) for one in row.features) for row in rows]
        shape = (len(rows), max(1, *counts), graph.inputs["image_features"].shape[2])
        visual = np.zeros(shape, np.float32)
        seen = np.zeros(shape[:2], np.int64)
        for index, row in enumerate(rows):
            if row.features:
                visual[index, : counts[index]] = np.concatenate(row.features)
                seen[index, : counts[index]] = 1
        found = graph.run(
            {
                "input_ids": ids,
                "attention_mask": mask,
                "image_features": visual,
                "visual_mask": seen,
            }
        )
        sizes = {ids.shape[1] + shape[1]: ids.shape[1] + max(counts)}
        # Where no row has an image, what stood for one is no part of the answer.
        return {
            name: one[:, : sizes.get(one.shape[1])] if one.ndim == 3 else one
            for name, one in zip(graph.outputs, found, strict=True)
        }

    def _state(self, decoder: OnnxGraph, mask: NDArray[np.int64]) -> OnnxState:
        assert self.capacity is not None
        return OnnxState(decoder, self.graph("embed"), mask, self.capacity)

    def _check(self, graph: OnnxGraph, ids: Ids, rows: Sequence[Row]) -> None:
        """Raises UsageError for prompts that the graphs are not made for."""
        bounds = graph.bounds
        longest = bounds.get("encoder_sequence_length") or bounds["sequence_length"]
        check_length(self.name, ids.shape[1], longest[1])
        check_rows(self.name, len(rows), bounds["batch_size"][1])

    def _embedded(self, ids: Ids) -> NDArray[np.float32]:
        return self.graph("embed").run({"input_ids": ids})[0]

    def _memory(self, graph: OnnxGraph, rows: Sequence[Row], text: int) -> dict[str, NDArray[Any]]:
        """Keys and values [batch, heads, images * tokens, head_dim] of each row's images, and who
        sees which: [batch, text, images]. What fills up a row with fewer images is seen by nobody,
        and so is the one image where there is none at all."""
        names = [name for name in graph.inputs if name.startswith("memory.")]
        most = max(1, *(len(row.features) for row in rows))
        seen = np.zeros((len(rows), text, most), np.bool_)
        tokens = graph.image_tokens
        found: dict[str, NDArray[Any]] = {}
        for index, name in enumerate(names):
            _, heads, _, width = graph.inputs[name].shape
            joined = np.zeros((len(rows), heads, most * tokens, width), np.float32)
            for row, one in zip(joined, rows, strict=True):
                for number, feature in enumerate(one.features):
                    own = feature[index // 2][index % 2]
                    row[:, number * tokens : number * tokens + own.shape[1]] = own
            found[name] = joined
        for row, one in zip(seen, rows, strict=True):
            if one.seen is not None:
                row[: len(one.ids), : one.seen.shape[1]] = one.seen
        return {**found, "seen": seen}


# --------------------------------------------------------------------------------------------------
# Blocks of a key/value cache: taken when a sequence grows, given back when it ends.
# --------------------------------------------------------------------------------------------------


class Blocks:
    """Which blocks of a pool are free. Block 0 is never given out: padding is written there."""

    def __init__(self, total: int, size: int) -> None:
        self.size = size
        """Tokens of one block."""
        self.total = total
        """Blocks of the pool, block 0 not among them."""
        self.free = list(range(total, 0, -1))

    def take(self, count: int) -> list[int]:
        """`count` blocks. Raises UsageError, and takes none, where fewer are free."""
        if count > len(self.free):
            raise UsageError(
                f"the paged key/value cache has {self.total} blocks of {self.size} tokens: "
                f"{count} are needed and {len(self.free)} are free; end another generation, give "
                "fewer or shorter prompts, or open the engine with more blocks"
            )
        return [self.free.pop() for _ in range(count)]

    def give(self, blocks: list[int]) -> None:
        """Takes blocks back, and empties the list."""
        self.free += reversed(blocks)
        blocks.clear()


class BlockTable:
    """The blocks of one generation, row by row. They go back when it ends: by `close`, or with the
    last reference to `owner`."""

    def __init__(self, blocks: Blocks, rows: int, width: int) -> None:
        self.blocks = blocks
        self.numbers: NDArray[np.int64] = np.zeros((rows, width), np.int64)
        """[rows, blocks of a row]; 0 where a row has none."""
        self.held: list[int] = []

    def reach(self, last: Sequence[int]) -> bool:
        """Makes room up to the position `last` of each row; whether a block was added. Raises
        UsageError, and changes nothing, where a row has no place for more, or too few are free."""
        have = np.count_nonzero(self.numbers, axis=1)
        need = [position // self.blocks.size + 1 for position in last]
        width = self.numbers.shape[1]
        if max(need, default=0) > width:
            raise UsageError(
                f"the paged key/value cache holds {width * self.blocks.size} tokens of a sequence, "
                f"and {max(last) + 1} are needed; a larger token_budget holds more"
            )
        wanted = [
            (row, number) for row, most in enumerate(need) for number in range(have[row], most)
        ]
        taken = self.blocks.take(len(wanted))
        for (row, number), block in zip(wanted, taken, strict=True):
            self.numbers[row, number] = block
        self.held += taken
        return bool(taken)

    def owned_by(self, owner: object) -> None:
        """Gives the blocks back when `owner` is gone."""
        weakref.finalize(owner, self.blocks.give, self.held)

    def close(self) -> None:
        """Gives the blocks back now."""
        self.blocks.give(self.held)
        self.numbers[:] = 0


# --------------------------------------------------------------------------------------------------
# Graphs for torch as an engine: compiled ahead of time (aoti) or when they are used (compile).
# --------------------------------------------------------------------------------------------------


TorchProgram = Callable[[list["Tensor"]], list["Tensor"]]


class TorchState:
    """A generation.

    `inputs` is the list that the graph of a step is called with: tokens, positions and slots, what
    is read from outside the sequence, the caches (or a block table and the pool), and the logits
    that it writes, all allocated before the first step. Between two steps tokens and positions are
    overwritten, and the slots made longer where they lie. What a graph computes in is its own to
    keep: see `kept_memory`.
    """

    def __init__(
        self,
        program: TorchProgram,
        inputs: list[Tensor],
        last: NDArray[np.int64],
        table: BlockTable | None,
    ) -> None:
        self.program = program
        self.inputs = inputs
        self.last = last
        """The position of the newest token of each row."""
        self.table = table
        self.slots = inputs[2]
        """All of them at first: as much as there is room for."""
        self.own = inputs[:2]
        self.on_host = [tensor.cpu() for tensor in self.own]
        """The same tensors where they are on the host already."""
        self.numbers = [tensor.numpy() for tensor in self.on_host]
        self.logits = inputs[-1]
        self.read = self.logits.float().cpu()
        """The same tensor where it is fp32 on the host already."""
        self.answer = self.read.numpy()[:, 0]

    def put(self, tokens: Ids, seen: int) -> None:
        """Puts the next token of each row, its position and the slots that it sees in place."""
        self.numbers[0][:, 0] = tokens
        self.numbers[1][:, 0] = self.last
        for there, here in zip(self.own, self.on_host, strict=True):
            if there is not here:
                there.copy_(here)
        self.slots.resize_(seen)

    def step(self) -> Logits:
        """The logits [batch, vocabulary] after what was put in place."""
        self.program(self.inputs)
        if self.read is not self.logits:
            self.read.copy_(self.logits)
        return self.answer


class TorchEngine:
    """Runs the graphs of a build. A feature is a tuple of what the vision graph gives for one
    image, each output without its first dimension."""

    def __init__(
        self,
        name: str,
        graphs: GraphFolder,
        design: Design,
        load: Callable[[GraphFile], TorchProgram],
        blocks: int | None = None,
    ) -> None:
        """`load` opens a graph. With `blocks`, key/value caches lie in a pool of so many blocks,
        which all generations share; otherwise each generation has its own."""
        self.name = name
        self.graphs = graphs.graphs
        self.capacity = graphs.capacity
        self.design = design
        self.device = torch.device(graphs.place)
        self.dtype: torch.dtype = getattr(torch, graphs.dtype)
        self._load = load
        self._kind = "" if blocks is None else "paged_"
        self._blocks = blocks
        self._pool: tuple[Blocks, list[Tensor]] | None = None
        self._programs: dict[str, TorchProgram] = {}

    @property
    def most_rows(self) -> int | None:
        """Rows of one batch at most."""
        reader = self.graphs["model" if self.design.serving == "single_pass" else "decode"]
        return reader.most("batch")

    @_when_called(lambda: torch.inference_mode())
    def encode_images(self, pixels: Pixels) -> list[Feature]:
        """One feature for each image."""
        values = torch.from_numpy(np.ascontiguousarray(pixels)).to(self.device, self.dtype)  # pyright: ignore[reportUnknownMemberType]
        most = self.graphs["vision"].most("images") or 1
        found: list[Feature] = []
        for start in range(0, len(values), most):
            batch = values[start : start + most]
            outputs = self._program("vision")([batch])
            found += [tuple(one[index] for one in outputs) for index in range(len(batch))]
        return found

    @_when_called(lambda: torch.inference_mode())
    def prefill(self, rows: Sequence[Row]) -> tuple[TorchState, Logits]:
        """Reads whole prompts; see `Engine.prefill`."""
        self._check(rows)
        ids, mask = self._padded(rows)
        x = self._filled(ids, rows)
        last = np.array([len(row.ids) - 1 for row in rows], np.int64)
        if self.design.serving == "encoder_decoder":
            memory = self._program("encoder")([x, mask])
            outside = [*(side.contiguous() for side in memory), mask]
            state = self._begin(len(rows), outside, np.full(len(rows), -1, np.int64))
            return state, self.step(state, np.full(len(rows), self.design.start_token, np.int64))
        where = torch.from_numpy(last).to(self.device)  # pyright: ignore[reportUnknownMemberType]
        outside = self._outside(rows, ids.shape[1])
        state = self._begin(len(rows), outside, last)
        caches = state.inputs[3 + len(outside) : -1]
        logits = self._program(f"{self._kind}prefill")([x, where, *outside, *caches])[0]
        if outside:
            # From now on a token sees what the last one of the prompt saw.
            seen = outside[-1]
            newest = where[:, None, None].expand(-1, 1, seen.shape[2])
            state.inputs[3 + len(outside) - 1] = seen.gather(1, newest)
        return state, self._numbers(logits)

    @_when_called(lambda: torch.inference_mode())
    def step(self, state: TorchState, tokens: Ids) -> Logits:
        """Appends a token to each row; see `Engine.step`."""
        seen = int(state.last.max()) + 2
        if self.capacity is not None and seen > self.capacity:
            raise UsageError(
                f"the {self.name} graphs of this build hold {self.capacity} tokens of a sequence, "
                "and all are taken; a larger token_budget holds more"
            )
        if state.table is not None:
            self._reach(state, state.table, state.last + 1)
        state.last += 1
        state.put(tokens, seen)
        return state.step()

    @_when_called(lambda: torch.inference_mode())
    def answer(self, rows: Sequence[Row]) -> dict[str, NDArray[np.float32]]:
        """The outputs of a design that answers in one pass."""
        self._check(rows)
        ids, mask = self._padded(rows)
        graph = self.graphs["model"]
        counts = [sum(len(one[0]) for one in row.features) for row in rows]
        width = graph.inputs[2].dims[2]
        assert isinstance(width, int)
        # Without any image, one visual token that nobody sees.
        shape = (len(rows), max(1, *counts), width)
        visual = torch.zeros(shape, dtype=self.dtype, device=self.device)
        shown = torch.zeros(shape[:2], dtype=torch.int64, device=self.device)
        for index, row in enumerate(rows):
            if row.features:
                visual[index, : counts[index]] = torch.cat([one[0] for one in row.features])
                shown[index, : counts[index]] = 1
        outputs = self._program("model")([ids, mask, visual, shown])
        return {
            wire.name: self._on_host(output)
            for wire, output in zip(graph.outputs, outputs, strict=True)
        }

    def _program(self, name: str) -> TorchProgram:
        if name not in self._programs:
            if name not in self.graphs:
                raise EnvironmentFault(
                    f"the {self.name} graphs of this build lack {name}; build it again"
                )
            self._programs[name] = self._load(self.graphs[name])
        return self._programs[name]

    def _check(self, rows: Sequence[Row]) -> None:
        """Raises UsageError where the graphs do not reach."""
        check_rows(self.name, len(rows), self.most_rows)
        text = self.graphs["model" if "embed" not in self.graphs else "embed"].most("text")
        check_length(self.name, max(len(row.ids) for row in rows), text)

    def _padded(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        """Ids [batch, text], padded on the right, and their mask."""
        ids, mask = padded(rows)
        return torch.tensor(ids, device=self.device), torch.tensor(mask, device=self.device)

    def _filled(self, ids: Tensor, rows: Sequence[Row]) -> Tensor:
        """Embeddings with visual tokens in their places."""
        x = self._program("embed")([ids])[0]
        for index, row in enumerate(rows):
            if row.visual.any():
                places = torch.tensor(np.flatnonzero(row.visual), device=self.device)
                x[index, places] = torch.cat([one[0] for one in row.features])
        return x

    def _outside(self, rows: Sequence[Row], text: int) -> list[Tensor]:
        """Keys and values [batch, heads, images * tokens, head_dim] of the images of each row, and
        which image each token sees: [batch, text, images]. A row with fewer images has zeros behind
        its own, and a batch without any one image of zeros, which nobody sees."""
        if self.design.serving != "cross_attention":
            return []
        most = max(1, *(len(row.features) for row in rows))
        wires = self.graphs["vision"].outputs
        shapes = [[most, *(extent for extent in wire.dims[1:])] for wire in wires]
        seen = torch.zeros(len(rows), text, most, dtype=torch.bool, device=self.device)
        memory: list[Tensor] = []
        for shape in shapes:
            sizes = [len(rows), *(int(extent) for extent in shape)]
            memory.append(torch.zeros(sizes, dtype=self.dtype, device=self.device))
        for index, row in enumerate(rows):
            for place, feature in enumerate(row.features):
                for side, values in zip(memory, feature, strict=True):
                    side[index, place] = values
            if row.seen is not None:
                shown = torch.tensor(row.seen, device=self.device)
                seen[index, : len(row.ids), : shown.shape[1]] = shown
        # [batch, images, heads, tokens, head_dim] -> [batch, heads, images * tokens, head_dim]
        return [*(side.transpose(1, 2).flatten(2, 3).contiguous() for side in memory), seen]

    def _begin(self, batch: int, outside: list[Tensor], last: NDArray[np.int64]) -> TorchState:
        """The state of a generation, its caches empty. They are zeros: what lies behind the end of
        a row is masked out, and must be a number for that."""
        name = "decode_one" if batch == 1 and not self._kind else f"{self._kind}decode"
        own = [torch.zeros(batch, 1, dtype=torch.int64, device=self.device) for _ in range(2)]
        assert self.capacity is not None
        inputs = [*own, torch.arange(self.capacity, device=self.device), *outside]
        *caches, answer = [wire for wire in self.graphs[name].inputs if wire.written]
        logits = self._zeros([answer], batch)
        if self._blocks is None:
            inputs += [*self._zeros(caches, batch), *logits]
            return TorchState(self._program(name), inputs, last.copy(), None)
        if self._pool is None:
            # Block 0 is nobody's.
            made = self._zeros(caches, self._blocks + 1)
            self._pool = Blocks(self._blocks, made[0].shape[2]), made
        blocks, pools = self._pool
        width = next(wire for wire in self.graphs[name].inputs if wire.name == "table").dims[1]
        table = BlockTable(blocks, batch, int(width))
        numbers = torch.zeros(batch, int(width), dtype=torch.int64, device=self.device)
        inputs += [numbers, *pools, *logits]
        state = TorchState(self._program(name), inputs, last.copy(), table)
        table.owned_by(state)
        self._reach(state, table, last)
        return state

    def _zeros(self, wires: Sequence[GraphWire], first: int) -> list[Tensor]:
        """Zeros for inputs that a graph writes into; `first` is their first extent."""
        sizes = [[first, *(int(extent) for extent in wire.dims[1:])] for wire in wires]
        return [torch.zeros(size, dtype=self.dtype, device=self.device) for size in sizes]

    def _reach(self, state: TorchState, table: BlockTable, last: NDArray[np.int64]) -> None:
        """Makes room for the newest token of each row."""
        if table.reach([int(one) for one in last]):
            place = next(
                i
                for i, wire in enumerate(self.graphs["paged_decode"].inputs)
                if wire.name == "table"
            )
            state.inputs[place].copy_(torch.from_numpy(table.numbers))  # pyright: ignore[reportUnknownMemberType]

    def _numbers(self, logits: Tensor) -> Logits:
        """Logits [batch, 1, vocabulary] on the host: [batch, vocabulary]."""
        return self._on_host(logits)[:, 0]

    def _on_host(self, values: Tensor) -> NDArray[Any]:
        return values.float().cpu().numpy()


# --------------------------------------------------------------------------------------------------
# Compiled packages: loaded after a look at the machine, run without torch's compiler.
# --------------------------------------------------------------------------------------------------


ELSEWHERE = "--engine onnx or --engine compile run here"


class AotiProgram:
    """A compiled graph with its weights, which stay where they are mapped."""

    def __init__(self, graph: GraphFile, weights: MappedWeights) -> None:
        # Read by the package when it is loaded: without it a wrong shape is a wrong answer.
        os.environ["AOTI_RUNTIME_CHECK_INPUTS"] = "1"
        # The public loader is this one behind an import of torch's whole compiler.
        native: Any = torch._C  # pyright: ignore[reportPrivateUsage]
        try:
            self.loader = native._aoti.AOTIModelPackageLoader(
                str(graph.path), "model", False, 1, -1
            )
            self.weights = weights.constants(graph)
            wanted: list[str] = self.loader.get_constant_fqns()
            given = {name: self.weights[name] for name in wanted}
            # Arguments: not the inactive buffer, all constants at once, ours to keep alive.
            self.loader.load_constants(given, False, True, True)
        except (RuntimeError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise EnvironmentFault(
                f"{graph.path}: cannot be loaded ({reason}); build it again, or {ELSEWHERE}"
            ) from None

    def __call__(self, inputs: list[Tensor]) -> list[Tensor]:
        return self.loader.run(inputs)


def check_machine(graphs: GraphFolder) -> None:
    """Raises EnvironmentFault where compiled code does not run here, and says why and what does."""
    made_with, here = _minor(graphs.torch), _minor(torch.__version__)
    if made_with != here:
        raise EnvironmentFault(
            f"{graphs.folder} was compiled for torch {made_with}, and torch {here} is installed: "
            f"build it again with this one, or {ELSEWHERE}"
        )
    if graphs.device == "cuda" and not torch.cuda.is_available():
        raise EnvironmentFault(
            f"{graphs.folder} was compiled for an NVIDIA GPU, and torch sees none; {ELSEWHERE}"
        )
    if graphs.device == "cuda" and graphs.gpu is not None:
        # Machine code of one capability runs on later ones of the same generation.
        (major, minor), own = graphs.gpu, torch.cuda.get_device_capability()
        if own[0] != major or own[1] < minor:
            raise EnvironmentFault(
                f"{graphs.folder} was compiled for GPUs of capability {major}.{minor}, and "
                f"this one has {own[0]}.{own[1]}: build it again here, or {ELSEWHERE}"
            )
    for word, name in (("os", platform.system()), ("machine", platform.machine())):
        if graphs.system.get(word) != name:
            raise EnvironmentFault(
                f"{graphs.folder} was compiled for {graphs.system.get(word)}, and this is {name}; "
                f"{ELSEWHERE}"
            )
    missing = missing_features(graphs.system, cpu_features())
    if missing:
        raise EnvironmentFault(
            f"{graphs.folder} was compiled for a CPU with {', '.join(missing)}, which this one "
            f"lacks: build it again here, or {ELSEWHERE}"
        )


def missing_features(system: Mapping[str, Any], present: frozenset[str]) -> list[str]:
    """What compiled code needs of a CPU that has the features `present`, and does not find."""
    if not present:  # this system does not say what its CPU can do
        return []
    return [name for name in system.get("cpu_features", ()) if name not in present]


def cpu_features(path: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The features of this CPU in the kernel's words; none where the system does not tell."""
    return frozenset((processor_says("flags", "Features", path=path) or "").split())


def _minor(version: str) -> str:
    return ".".join(version.partition("+")[0].split(".")[:2])


# --------------------------------------------------------------------------------------------------
# What an exported program on disk may hold: data alone, nothing that runs when it is read.
#
# torch.export.load unpickles weights, constants, custom objects and example inputs, and evaluates
# the expressions of symbolic sizes. A build writes none of the former and only sums and products.
# --------------------------------------------------------------------------------------------------


EXAMPLE = "data/sample_inputs/model.pt"
TABLES = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
PROGRAM = "models/model.json"
PARTS = {
    *TABLES,
    EXAMPLE,
    PROGRAM,
    "archive_format",
    "archive_version",
    ".data/version",
    ".data/serialization_id",
    "byteorder",
}
"""Entries of an archive, below the one folder that all of them share."""

_WEIGHTS = re.compile(r"data/weights/weight_\d+")
"""One file for each number format: tensors without a byte of their own share it."""

_EXPRESSION = re.compile(r"([-\s'(),=+*/<>]|\b([su]?\d+|[A-Z][A-Za-z]*|positive|integer)\b)*")
"""Numbers, symbols such as s12, and constructors such as Mul. No function has such a name, and
without escapes and attributes none can be reached."""


def check_plain(path: Path) -> None:
    """Raises ValueError, with the reason, for an archive that no build of ours wrote, and OSError
    where it cannot be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            root = names[0].partition("/")[0] + "/" if names else ""
            found = [name.removeprefix(root) for name in names]
            known = {name for name in found if name in PARTS or _WEIGHTS.fullmatch(name)}
            foreign = sorted({name for name in found if name not in known or found.count(name) > 1})
            if foreign:
                raise ValueError(f"it holds {foreign[0]}, which no build writes")
            if archive.getinfo(root + EXAMPLE).file_size:
                raise ValueError("it holds pickled example inputs")
            weights, constants = (_table(archive.read(root + name)) for name in TABLES)
            if constants or any(one.get("use_pickle") is not False for one in weights):
                raise ValueError("it holds pickled values")
            for text in _expressions(json.loads(archive.read(root + PROGRAM))):
                if _EXPRESSION.fullmatch(text) is None:
                    raise ValueError(f"a size in it is {text[:40]!r}")
    except (zipfile.BadZipFile, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"it is damaged: {error}") from None


def _table(text: bytes) -> list[dict[str, Any]]:
    return list(json.loads(text)["config"].values())


def _expressions(found: object) -> Iterator[str]:
    """Every text that is evaluated."""
    waiting = [found]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            for key, value in cast("dict[str, object]", one).items():
                if key == "expr_str" and isinstance(value, str):
                    yield value
                waiting.append(value)
        elif isinstance(one, list):
            waiting += cast("list[object]", one)


# --------------------------------------------------------------------------------------------------
# What torch's compiler is told of graphs for a single row (`single_row`).
# --------------------------------------------------------------------------------------------------


STORED = {"realize_opcount_threshold": 4}
"""Options for compiling them: results of four operations and more are stored, not computed where
they are read. A norm has five; a sum of two has one and may go anywhere."""


# --------------------------------------------------------------------------------------------------
# Products of matrices, in C++ for a compiled step on a CPU.
#
# torch hands them to MKL or oneDNN, which are made for prompts: they ask for memory at each call,
# and for the rows of a batch they read weights more slowly than memory gives them. Here four
# columns at a time are read where they lie, multiplied with all rows and summed up in fp32.
# --------------------------------------------------------------------------------------------------


PRODUCTS_KERNEL = r"""
#include <torch/csrc/inductor/cpp_prefix.h>

namespace vlmc {
namespace {

using Sum = at::vec::Vectorized<float>;

// As many numbers as lie in a vector.
template <typename T>
constexpr int64_t lanes = Sum::size() * (sizeof(float) / sizeof(T));

template <typename T>
auto wide(const T* from) {
  if constexpr (std::is_same_v<T, float>)
    return at::vec::VectorizedN<float, 1>(Sum::loadu(from));
  else
    return at::vec::convert<float, 2, T, 1>(at::vec::VectorizedN<T, 1>::loadu(from));
}

// Of the next columns, which memory gives while these are multiplied.
template <typename T>
inline void prefetch(const T* from) {
#ifdef __GNUC__
  __builtin_prefetch(from);
#endif
}

// Sums over `depth`, in whole vectors, of products of R rows of `left` with C columns, which lie
// one by one.
template <int R, int C, typename T>
void add(Sum (&sums)[R][C], const T* left, const T* columns, int64_t depth, int64_t left_step,
         int64_t column_step) {
  constexpr int parts = sizeof(float) / sizeof(T);
  for (auto& row : sums)
    for (auto& sum : row) sum = Sum(0.0f);
  for (int64_t at = 0; at + lanes<T> <= depth; at += lanes<T>) {
    at::vec::VectorizedN<float, parts> column[C];
    for (int c = 0; c < C; c++) {
      column[c] = wide(columns + c * column_step + at);
      prefetch(columns + (C + c) * column_step + at);
    }
    for (int r = 0; r < R; r++) {
      auto row = wide(left + r * left_step + at);
      for (int part = 0; part < parts; part++)
        for (int c = 0; c < C; c++)
          sums[r][c] = at::vec::fmadd(row[part], column[c][part], sums[r][c]);
    }
  }
}

// The same where a CPU multiplies numbers of bfloat16 two by two. The code around is for others,
// too.
#if defined(CPU_CAPABILITY_AVX512) && defined(__GNUC__)
const bool has_pairs = __builtin_cpu_supports("avx512bf16");

template <int R, int C>
__attribute__((target("avx512f,avx512bf16"))) void add_pairs(
    Sum (&sums)[R][C], const at::BFloat16* left, const at::BFloat16* columns, int64_t depth,
    int64_t left_step, int64_t column_step) {
  __m512 totals[R][C];
  for (int r = 0; r < R; r++)
    for (int c = 0; c < C; c++) totals[r][c] = _mm512_setzero_ps();
  for (int64_t at = 0; at + 32 <= depth; at += 32) {
    __m512bh column[C];
    for (int c = 0; c < C; c++) {
      column[c] = (__m512bh)_mm512_loadu_si512(columns + c * column_step + at);
      prefetch(columns + (C + c) * column_step + at);
    }
    for (int r = 0; r < R; r++) {
      auto row = (__m512bh)_mm512_loadu_si512(left + r * left_step + at);
      for (int c = 0; c < C; c++) totals[r][c] = _mm512_dpbf16_ps(totals[r][c], row, column[c]);
    }
  }
  for (int r = 0; r < R; r++)
    for (int c = 0; c < C; c++) sums[r][c] = totals[r][c];
}

template <int R, int C>
void add(Sum (&sums)[R][C], const at::BFloat16* left, const at::BFloat16* columns, int64_t depth,
         int64_t left_step, int64_t column_step) {
  if (has_pairs) return add_pairs(sums, left, columns, depth, left_step, column_step);
  add<R, C, at::BFloat16>(sums, left, columns, depth, left_step, column_step);
}
#endif

template <int R, int C, typename T>
void tile(T* out, const T* left, const T* columns, const T* bias, int64_t depth, int64_t out_step,
          int64_t left_step, int64_t column_step, int64_t bias_step) {
  Sum sums[R][C];
  add(sums, left, columns, depth, left_step, column_step);
  for (int r = 0; r < R; r++)
    for (int c = 0; c < C; c++) {
      float sum = at::vec::vec_reduce_all<float>(
          [](Sum& one, Sum& other) { return one + other; }, sums[r][c]);
      for (int64_t rest = depth / lanes<T> * lanes<T>; rest < depth; rest++)
        sum += float(left[r * left_step + rest]) * float(columns[c * column_step + rest]);
      out[r * out_step + c] = sum + (bias == nullptr ? 0.0f : float(bias[r * bias_step + c]));
    }
}

template <int R, typename T>
void strip(T* out, const T* left, const T* columns, const T* bias, int64_t count, int64_t depth,
           int64_t out_step, int64_t left_step, int64_t column_step, int64_t bias_step) {
  if (count == 4) return tile<R, 4>(out, left, columns, bias, depth, out_step, left_step,
                                    column_step, bias_step);
  for (int64_t c = 0; c < count; c++)
    tile<R, 1>(out + c, left, columns + c * column_step, bias == nullptr ? bias : bias + c, depth,
               out_step, left_step, column_step, bias_step);
}

template <typename T>
void product(T* out, const T* left, const T* right, const T* bias, int64_t rows, int64_t columns,
             int64_t depth, int64_t left_step, int64_t column_step, int64_t bias_step) {
#pragma omp parallel for
  for (int64_t c = 0; c < columns; c += 4)
    for (int64_t r = 0; r < rows; r += 4) {
      auto multiplied = [&](auto run) {
        run(out + r * columns + c, left + r * left_step, right + c * column_step,
            bias == nullptr ? bias : bias + r * bias_step + c, std::min<int64_t>(4, columns - c),
            depth, columns, left_step, column_step, bias_step);
      };
      switch (rows - r) {
        case 1: multiplied(strip<1, T>); break;
        case 2: multiplied(strip<2, T>); break;
        case 3: multiplied(strip<3, T>); break;
        default: multiplied(strip<4, T>);
      }
    }
}

}  // namespace
}  // namespace vlmc

extern "C" void vlmc_product(char number, void* out, const void* left, const void* right,
                             const void* bias, int64_t rows, int64_t columns, int64_t depth,
                             int64_t left_step, int64_t column_step, int64_t bias_step) {
  auto run = [&](auto zero) {
    using T = decltype(zero);
    vlmc::product(static_cast<T*>(out), static_cast<const T*>(left), static_cast<const T*>(right),
                  static_cast<const T*>(bias), rows, columns, depth, left_step, column_step,
                  bias_step);
  };
  if (number == 'b') run(at::BFloat16());
  else if (number == 'h') run(at::Half());
  else run(float());
}
"""
"""A kernel; `bias` may be none."""

PRODUCTS_CALLS = r"""
extern "C" void vlmc_product(char, void*, const void*, const void*, const void*, int64_t, int64_t,
                             int64_t, int64_t, int64_t, int64_t);

namespace vlmc {
namespace {

// A matrix, or a single row that is one for every row, as it lies in memory.
struct Matrix {
  Matrix(const Kept& kept) : at(kept.data_ptr()), dtype(kept.dtype()), ndim(kept.ndim()),
                             sizes(kept.sizes()), strides(kept.strides()) {}
  Matrix(AtenTensorHandle tensor) {
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(tensor, &at));
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor, &dtype));
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(tensor, &ndim));
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(tensor, const_cast<int64_t**>(&sizes)));
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(tensor, const_cast<int64_t**>(&strides)));
  }
  int64_t step(int axis) const { return sizes[axis] == 1 ? 0 : strides[axis]; }
  void* at;
  int32_t dtype;
  int64_t ndim;
  const int64_t* sizes;
  const int64_t* strides;
};

// Whether a product lies in memory as the kernel reads and writes it; then it is done. What is
// added is a row for all or for each.
[[maybe_unused]] bool product(const Matrix& out, const Matrix& left, const Matrix& right,
                              const Matrix* bias) {
  char number = out.dtype == aoti_torch_dtype_float32() ? 'f'
                : out.dtype == aoti_torch_dtype_bfloat16() ? 'b'
                : out.dtype == aoti_torch_dtype_float16() ? 'h' : 0;
  int64_t rows = out.sizes[0], columns = out.sizes[1], depth = left.sizes[1];
  bool laid = left.strides[1] == 1 && right.strides[0] == 1 && out.strides[1] == 1 &&
              (rows == 1 || out.strides[0] == columns);
  if (bias != nullptr)
    laid = laid && bias->ndim > 0 && bias->strides[bias->ndim - 1] == 1 &&
           bias->sizes[bias->ndim - 1] == columns;
  if (!laid || number == 0) return false;
  bool added = bias != nullptr;
  vlmc_product(number, out.at, left.at, right.at, added ? bias->at : nullptr, rows, columns, depth,
               left.strides[0], right.strides[1], added && bias->ndim == 2 ? bias->step(0) : 0);
  return true;
}

// What the code of torch's compiler calls for a product, with or without what is added to it. The
// names are those of torch's functions, which take no Kept as it is: such calls come here.
template <typename L, typename R>
[[maybe_unused]] AOTITorchError aoti_torch_cpu_mm_out(Kept& out, L&& left, R&& right) {
  if (product(Matrix(out), Matrix(left), Matrix(right), nullptr)) return AOTI_TORCH_SUCCESS;
  return ::aoti_torch_cpu_mm_out(out, left, right);
}
template <typename B, typename L, typename R>
[[maybe_unused]] AOTITorchError aoti_torch_cpu_addmm_out(Kept& out, B&& bias, L&& left, R&& right,
                                                         double beta, double alpha) {
  Matrix added(bias);
  if (beta == 1 && alpha == 1 && product(Matrix(out), Matrix(left), Matrix(right), &added))
    return AOTI_TORCH_SUCCESS;
  return ::aoti_torch_cpu_addmm_out(out, bias, left, right, beta, alpha);
}

}  // namespace
}  // namespace vlmc
"""
"""For a step's own code, behind its `Kept`."""


# --------------------------------------------------------------------------------------------------
# What a compiled step computes in, kept from one step to the next.
#
# torch's compiler for CPUs has the code of a graph ask torch's allocator for each buffer at each
# call. Here the buffers of a step lie in blocks which the thread that runs it keeps: one that is
# free again serves the next buffer of its size, so that in the steady state nothing is asked for.
# They are given back when the thread ends.
# --------------------------------------------------------------------------------------------------


BLOCKS = r"""
#include <algorithm>
#include <memory>
#include <new>
#include <vector>

namespace vlmc {
namespace {

// Memory of a power of two of bytes, so that a buffer that grows with the sequence seldom moves.
struct Block {
  explicit Block(int64_t bytes) : size(bytes), at(static_cast<char*>(
      ::operator new(bytes, std::align_val_t(64)))) {}
  ~Block() { ::operator delete(at, std::align_val_t(64)); }
  Block(const Block&) = delete;
  int64_t size;
  char* at;
  int64_t users = 0;
};

Block* free_block(int64_t bytes) {
  static thread_local std::vector<std::unique_ptr<Block>> blocks;
  int64_t size = 64;
  while (size < bytes) size *= 2;
  for (auto& block : blocks)
    if (block->users == 0 && block->size == size) return block.get();
  blocks.push_back(std::make_unique<Block>(size));
  return blocks.back().get();
}

int64_t extent(int64_t ndim, const int64_t* sizes, const int64_t* strides) {
  int64_t last = 0;
  for (int64_t axis = 0; axis < ndim; axis++) {
    if (sizes[axis] == 0) return 0;
    last += (sizes[axis] - 1) * strides[axis];
  }
  return last + 1;
}

// A buffer, or a view of one or of a tensor, in the place of a tensor. A kernel of torch's own that
// takes tensors is given one over the same memory.
class Kept {
 public:
  // A buffer of elements of `item` bytes that never has more than `most`, where that is known.
  Kept(int64_t ndim, const int64_t* sizes, const int64_t* strides, int32_t dtype, int64_t item,
       int64_t most)
      : Kept(free_block(std::max(extent(ndim, sizes, strides), most) * item), nullptr, ndim, sizes,
             strides, dtype, item) { at_ = block_->at; }
  Kept(Kept&& other) : Kept(other.block_, other.at_, other.ndim_, other.sizes_, other.strides_,
                            other.dtype_, other.item_) { other.reset(); }
  ~Kept() { reset(); }
  Kept view(int64_t ndim, const int64_t* sizes, const int64_t* strides, int64_t offset) const {
    return Kept(block_, at_ + offset * item_, ndim, sizes, strides, dtype_, item_);
  }
  static Kept of(AtenTensorHandle tensor, int64_t ndim, const int64_t* sizes,
                 const int64_t* strides, int64_t offset) {
    void* at;
    int32_t dtype;
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(tensor, &at));
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor, &dtype));
    int64_t item = aoti_torch_dtype_element_size(dtype);
    return Kept(nullptr, static_cast<char*>(at) + offset * item, ndim, sizes, strides, dtype, item);
  }
  void* data_ptr() const { return at_; }
  int32_t dtype() const { return dtype_; }
  int64_t ndim() const { return ndim_; }
  const int64_t* sizes() const { return sizes_; }
  const int64_t* strides() const { return strides_; }
  void reset() {
    tensor_.reset();
    if (block_ != nullptr) block_->users--;
    block_ = nullptr;
  }
  operator AtenTensorHandle() {
    if (tensor_.get() == nullptr) {
      AtenTensorHandle made;
      AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_create_tensor_from_blob(
          at_, ndim_, sizes_, strides_, 0, dtype_, aoti_torch_device_type_cpu(), 0, &made));
      tensor_ = torch::aot_inductor::RAIIAtenTensorHandle(made);
    }
    return tensor_.get();
  }

 private:
  Kept(Block* block, char* at, int64_t ndim, const int64_t* sizes, const int64_t* strides,
       int32_t dtype, int64_t item)
      : block_(block), at_(at), ndim_(ndim), sizes_(sizes), strides_(strides), dtype_(dtype),
        item_(item) { if (block_ != nullptr) block_->users++; }
  Block* block_;
  char* at_;
  int64_t ndim_;
  const int64_t* sizes_;
  const int64_t* strides_;
  int32_t dtype_;
  int64_t item_;
  torch::aot_inductor::RAIIAtenTensorHandle tensor_;
};

// A view of what outlives the step.
[[maybe_unused]] Kept view(AtenTensorHandle whole, int64_t ndim, const int64_t* sizes,
                           const int64_t* strides, int64_t offset) {
  return Kept::of(whole, ndim, sizes, strides, offset);
}
// What the code of torch's compiler calls for other views.
[[maybe_unused]] Kept reinterpret_tensor_wrapper(
    const Kept& whole, int64_t ndim, const int64_t* sizes, const int64_t* strides, int64_t offset) {
  return whole.view(ndim, sizes, strides, offset);
}
[[maybe_unused]] Kept wrap_with_raii_handle_if_needed(Kept&& view) { return std::move(view); }

}  // namespace
}  // namespace vlmc
"""

BOUNDED = 2**20
"""Elements of a buffer that has its largest size from the first step on; larger ones grow."""

WRITTEN = f"{BOUNDED}{BLOCKS}{PRODUCTS_CALLS}{PRODUCTS_KERNEL}"
MARK = {"vlmc_blocks": hashlib.sha256(WRITTEN.encode()).hexdigest()[:16]}


def kept_memory() -> dict[str, Any]:
    """Options for torch's compiler, by which the buffers of a graph without outputs are kept if it
    is for a CPU. It stores what it makes by its options: hence the digest among them."""
    teach()
    # That inputs are as declared is looked at in front of the call already, without strings.
    return {"aot_inductor.metadata": dict(MARK), "size_asserts": False}


def has_vectors() -> bool:
    """Whether torch's compiler knows vectors of this CPU, which kernels here need."""
    isa: Any = import_module("torch._inductor.cpu_vec_isa")
    return bool(isa.pick_vec_isa())


@cache
def teach() -> None:
    """Has torch's compiler for CPUs write the C++ code that calls the kernels of a graph by a class
    that keeps memory where the options say so."""
    common: Any = import_module("torch._inductor.codegen.common")
    common.init_backend_registration()
    cpu = common.device_codegens["cpu"]
    # Another copy of this module may have been here (a build's run.py has one).
    wrapper: Any = getattr(cpu.cpp_wrapper_codegen, "of_torch", cpu.cpp_wrapper_codegen)
    settings: Any = import_module("torch._inductor.config")
    sympify: Any = import_module("sympy").sympify
    virtualized: Any = import_module("torch._inductor.virtualized")

    class KeptMemory(wrapper):
        of_torch = wrapper

        @staticmethod
        def create(*args: Any) -> Any:
            marked = MARK.items() <= settings.aot_inductor.metadata.items()
            return KeptMemory() if marked else wrapper.create(*args)

        def write_header(self) -> None:
            wrapper.write_header(self)
            self.header.splice(BLOCKS)
            self.multiplies = False

        def generate_extern_kernel_out(self, node: Any) -> None:
            if not self.multiplies and has_vectors():
                self.multiplies = True
                self.header.splice(PRODUCTS_CALLS)
                self.kernel_declarations.splice(PRODUCTS_KERNEL)
            wrapper.generate_extern_kernel_out(self, node)

        def codegen_reinterpret_view(self, data: Any, *args: Any, **named: Any) -> str:
            made: str = wrapper.codegen_reinterpret_view(self, data, *args, **named)
            name, whole = data.get_name(), virtualized.V.graph
            if name in whole.graph_inputs or name in whole.constants:
                return made.replace("reinterpret_tensor_wrapper(", "vlmc::view(")
            return made  # torch's own may be given back while the view is read

        def make_allocation(
            self,
            name: str,
            device: Any,
            dtype: Any,
            shape: Any,
            stride: Any,
            allocation_shape: Any = None,
            is_pinned: bool = False,
        ) -> str:
            graph, sizes = self.get_codegened_graph(), allocation_shape or shape
            arrays = [
                self.codegen_int_array_var(
                    self.codegen_shape_tuple(numbers),
                    self.wrapper_call.writeline,
                    known_statically=self.is_statically_known_list_of_ints(numbers),
                    graph=graph,
                )
                for numbers in (sizes, stride)
            ]
            last = sum((size - 1) * step for size, step in zip(sizes, stride, strict=True))
            most = graph.sizevars.shape_env.bound_sympy(sympify(last)).upper + 1
            rest = f"{self.codegen_dtype(dtype)}, {dtype.itemsize}, {most if most < BOUNDED else 0}"
            return f"vlmc::Kept {name}({len(shape)}, {', '.join(arrays)}, {rest});"

    cpu.cpp_wrapper_codegen = KeptMemory


# --------------------------------------------------------------------------------------------------
# Attention of one token as sums of products, on CPUs.
#
# torch's kernel for a CPU takes memory for itself and for its result at each call, and packs keys
# and values of 16 bits anew for its products of matrices. For the one query of a step, sums over
# keys and values as they lie in memory, which torch's compiler makes loops of, take no longer in
# fp32 and a fraction of the time in 16 bits.
# --------------------------------------------------------------------------------------------------


SHARED_BY = 16
"""Queries of one key at most: as many as query heads share it in a step."""


def sum_attention(graph: Any) -> int:
    """Has attention of one token in a torch.fx graph computed as sums, in fp32; how often there was
    any."""
    aten: Any = torch.ops.aten
    found = [
        node
        for node in graph.nodes
        if node.target is aten.scaled_dot_product_attention.default and _of_one_token(node)
    ]
    for node in found:
        with graph.inserting_before(node):
            attended = _sums(graph, *node.args[:4], scale=node.kwargs.get("scale"))
        node.replace_all_uses_with(attended)
        graph.erase_node(node)
    return len(found)


def _of_one_token(attention: torch.fx.Node) -> bool:
    query: Any = attention.args[0]
    rows = query.meta["val"].shape[2]
    # Sums know no dropout, no causal mask and no heads that share keys.
    plain = not any(attention.args[4:]) and not attention.kwargs.get("enable_gqa")
    return plain and isinstance(rows, int) and rows <= SHARED_BY


def _sums(
    graph: Any,
    query: torch.fx.Node,
    key: torch.fx.Node,
    value: torch.fx.Node,
    attn_mask: torch.fx.Node | None = None,
    *,
    scale: float | None = None,
) -> torch.fx.Node:
    """Nodes in place of an attention with these arguments. A query that sees nothing attends to
    nothing, as in torch's kernel."""
    aten: Any = torch.ops.aten

    def call(operator: Any, *args: Any, **kwargs: Any) -> torch.fx.Node:
        made: torch.fx.Node = graph.call_function(operator, args, kwargs)
        values = [one.meta["val"] if isinstance(one, torch.fx.Node) else one for one in args]
        made.meta["val"] = operator(*values, **kwargs)
        return made

    def wide(one: torch.fx.Node) -> torch.fx.Node:
        narrow = one.meta["val"].dtype is not torch.float32
        return call(aten.to.dtype, one, torch.float32) if narrow else one

    def product(left: torch.fx.Node, right: torch.fx.Node, axis: int) -> torch.fx.Node:
        """Summed over `axis` of [batch, heads, queries, keys, head_dim]. The compiler multiplies in
        fp32 what has 16 bits, and rounds nothing within a loop; told to, it would store it."""
        both = call(aten.mul.Tensor, left, right)
        return call(aten.sum.dim_IntList, both, [axis], dtype=torch.float32)

    like = query.meta["val"]
    by_key = [call(aten.unsqueeze.default, one, 2) for one in (key, value)]
    scores = product(call(aten.unsqueeze.default, query, 3), by_key[0], 4)
    scores = call(aten.mul.Tensor, scores, like.shape[-1] ** -0.5 if scale is None else scale)
    if attn_mask is not None and attn_mask.meta["val"].dtype is torch.bool:
        scores = call(aten.where.ScalarOther, attn_mask, scores, float("-inf"))
    elif attn_mask is not None:
        scores = call(aten.add.Tensor, scores, wide(attn_mask))
    least = torch.finfo(torch.float32).min
    largest = call(aten.clamp.default, call(aten.amax.default, scores, [-1], True), least)
    parts = call(aten.exp.default, call(aten.sub.Tensor, scores, largest))
    # 1 at least where a key is seen: that of the largest score.
    whole = call(aten.clamp.default, call(aten.sum.dim_IntList, parts, [-1], True), 1.0)
    attended = product(call(aten.unsqueeze.default, parts, 4), by_key[1], 3)
    return call(aten.to.dtype, call(aten.div.Tensor, attended, whole), like.dtype)


# --------------------------------------------------------------------------------------------------
# Exported programs, compiled by torch.compile when they are first used.
# --------------------------------------------------------------------------------------------------


STEP: dict[str, Any] = {"cpp_wrapper": True}
"""Options for a step: what calls its kernels is compiled, too. Else Python does, one by one, which
takes as long as some of them."""
SINGLE_ROW: dict[str, Any] = {**STEP, **STORED}
"""Options for a step of a single row, whose products are sums over what must lie in memory."""


class CompiledProgram:
    """A graph that torch.compile compiles at its first call, and again where an extent that varies
    is 1 for the first time, or for the first time is not."""

    def __init__(
        self, graph: GraphFile, weights: MappedWeights, backend: str, report: Callable[[str], None]
    ) -> None:
        self.report = report
        self.name = graph.path.stem
        module = exported_module(graph, weights)
        if weights.device == "cpu" and is_step(self.name) and sum_attention(module.graph):
            module.recompile()
        self.seen: set[tuple[bool, ...]] = set()
        # Which axes of which inputs vary; all else is as it was declared.
        self.varying = [
            (place, axis)
            for place, wire in enumerate(graph.inputs)
            for axis, extent in enumerate(wire.dims)
            if isinstance(extent, str)
        ]
        self.run = module
        self.compiled = self.name != "embed"
        if self.compiled:  # looking words up is one call as it is
            compiler: Any = torch
            chosen = _compiler_options(self.name, weights.device) if backend == "inductor" else None
            # Not the module: it looks at each input in Python before each call.
            self.run = compiler.compile(
                module.forward, fullgraph=True, dynamic=False, backend=backend, options=chosen
            )

    def __call__(self, inputs: list[Tensor]) -> list[Tensor]:
        several = tuple(inputs[place].shape[axis] > 1 for place, axis in self.varying)
        if several in self.seen or not self.compiled:
            return list(self.run(*inputs))
        self.report(f"compiling {self.name}")
        self.seen.add(several)
        dynamo: Any = torch._dynamo  # pyright: ignore[reportPrivateUsage]
        for (place, axis), more in zip(self.varying, several, strict=True):
            if more:
                dynamo.maybe_mark_dynamic(inputs[place], axis)
        with quiet():
            return list(self.run(*inputs))


def _compiler_options(name: str, device: str) -> dict[str, Any] | None:
    """What the compiler is told of the graph `name` for a device beyond its defaults."""
    if not is_step(name):
        return None
    kept = kept_memory() if device == "cpu" else {}
    return {**(SINGLE_ROW if name == "decode_one" else STEP), **kept}


def is_step(name: str) -> bool:
    """Whether the graph of this name is that of a step."""
    return "decode" in name


def exported_module(graph: GraphFile, weights: MappedWeights) -> Any:
    """The exported program of `graph` as a module over the build's weights. Raises EnvironmentFault
    where this torch cannot read it, or reading it would run what it holds."""
    try:
        check_plain(graph.path)
        with quiet():
            program: Any = torch.export.load(graph.path)
            module: Any = program.module(check_guards=False)
    except (RuntimeError, OSError, ValueError, KeyError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise EnvironmentFault(
            f"{graph.path}: this torch ({torch.__version__}) cannot read it ({reason}); "
            "build it again"
        ) from None
    values = weights.constants(graph)
    module.load_state_dict(
        {name: torch.nn.Parameter(value, requires_grad=False) for name, value in values.items()},
        assign=True,
    )
    return module


@contextmanager
def quiet() -> Generator[None]:
    """Without what torch's compiler says of torch's own code."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`isinstance.treespec, LeafSpec", FutureWarning)
        warnings.filterwarnings("ignore", "`torch.jit.script", DeprecationWarning)
        yield


# --------------------------------------------------------------------------------------------------
# Every engine by its name: its artifact's, then the number format of quantised graphs.
# --------------------------------------------------------------------------------------------------


EngineName = Literal["eager", "compile", "aoti", "onnx", "onnx-int8", "onnx-int4"]
ENGINES: tuple[EngineName, ...] = get_args(EngineName)


def check_engine(name: str) -> None:
    """Raises UsageError where there is no such engine."""
    if name not in ENGINES:
        raise UsageError(f"--engine {name}: {', '.join(ENGINES)} is expected")


# --------------------------------------------------------------------------------------------------
# The engine of a build folder by its name.
# --------------------------------------------------------------------------------------------------


def open_engine(
    folder: Path,
    name: str,
    design: Design,
    *,
    threads: int | None = None,
    blocks: int | None = None,
    backend: str = "inductor",
    report: Callable[[str], None] = lambda _: None,
) -> Engine:
    """The engine `name` of the build in `folder`, which computes in `threads` (None: as many as its
    package takes). With `blocks` the key/value caches of all its generations lie in that many
    blocks of one pool, for compile alone. `report` is told what takes long; `backend` is that of
    torch.compile.

    Raises UsageError where there is no such engine or the build lacks its graphs, EnvironmentFault
    where a file is damaged or this machine cannot run it.
    """
    check_engine(name)
    artifact, _, quantised = name.partition("-")
    if name != "eager" and not (folder / artifact).is_dir():
        there = [one for one in ENGINES if (folder / one).is_dir()]
        wanted = ",".join(("model", *(one for one in ENGINES if one in (*there, artifact))))
        quantise = f" --quantize {quantised}" * bool(quantised)
        raise UsageError(
            f"{folder} has no artifact for --engine {name}: `vlmc build {folder} --artifacts "
            f"{wanted}{quantise}` makes it; there is --engine {', '.join(('eager', *there))}"
        )
    if blocks is not None and name != "compile":
        raise UsageError(
            f"a paged key/value cache (blocks) is for --engine eager and compile, not for {name}"
        )
    if threads is not None:
        check_threads(threads)
    if artifact != "onnx" and threads is not None:
        _limit_torch(threads)
    if name == "eager":
        return _eager(folder, design)
    if artifact == "onnx":
        return OnnxEngine(
            folder / "onnx",
            serving=design.serving,
            start_token=design.start_token,
            variant=quantised or None,
            threads=threads,
        )
    return _graphs(folder, name, design, blocks, backend, report)


def _limit_torch(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def _graphs(
    folder: Path,
    name: str,
    design: Design,
    blocks: int | None,
    backend: str,
    report: Callable[[str], None],
) -> Engine:
    import torch

    graphs = read_graphs(folder / name)
    if name == "aoti":
        check_machine(graphs)
    dtype = getattr(torch, graphs.dtype)
    weights = MappedWeights(folder / "weights", folder / name, dtype, graphs.place)
    if name == "aoti":
        return TorchEngine(name, graphs, design, lambda graph: AotiProgram(graph, weights))
    return TorchEngine(
        name, graphs, design, lambda graph: CompiledProgram(graph, weights, backend, report), blocks
    )


def _eager(folder: Path, design: Design) -> Engine:
    """The model of the build's own model.py, with its weights."""
    import importlib.util
    import sys

    import torch

    path = folder / "model.py"
    described = importlib.util.spec_from_file_location(f"model_of_{folder.name}", path)
    if described is None or described.loader is None or not path.is_file():
        raise UsageError(f"{folder} holds no model.py; build it")
    module = importlib.util.module_from_spec(described)
    sys.modules[described.name] = module  # where its dataclasses look for their module
    described.loader.exec_module(module)
    with torch.device("meta"):
        model = module.build()
    located(folder / "weights")  # says what is wrong with files that are damaged
    module.load_weights(model, folder / "weights")
    return EagerEngine(model.eval().requires_grad_(False), design)


# --------------------------------------------------------------------------------------------------
# The command line of a build that runs by itself.
# --------------------------------------------------------------------------------------------------


def main(design: Design, folder: Path, arguments: Sequence[str] | None = None) -> int:
    """Answers a question by the artifacts of the build in `folder`; the exit code: 2 where the
    question is at fault, 3 where this machine is."""
    asked = _parser(design).parse_args(arguments)
    try:
        _answer(design, folder, asked)
    except UsageError as error:
        return _failed(str(error), 2, asked.json)
    except EnvironmentFault as error:
        return _failed(str(error), 3, asked.json)
    except ModuleNotFoundError as error:
        needed = f"--engine {asked.engine} needs the package {error.name}"
        return _failed(f"{needed}: pip install {error.name}", 3, asked.json)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def printable(text: str) -> str:
    """A piece of an answer for a terminal. A model may say anything, so nothing that steers a
    terminal passes."""
    kept = "".join(
        c
        if c in "\n\t" or not unicodedata.category(c).startswith("C")
        else "\N{REPLACEMENT CHARACTER}"
        for c in text
    )
    encoding = sys.stdout.encoding or "utf-8"
    return kept.encode(encoding, "replace").decode(encoding)


def _answer(design: Design, folder: Path, asked: argparse.Namespace) -> None:
    begun = time.perf_counter()
    if not (folder / "weights").is_dir():
        raise UsageError(
            f"{folder} has no weights: build it with `vlmc build {folder} --checkpoint DIR`"
        )
    engine = open_engine(folder, asked.engine, design, threads=asked.threads)
    session = deployed(folder, design, engine, tokenizer=asked.tokenizer)
    session.load_seconds = time.perf_counter() - begun
    stream = session.generate(
        session.chatted(asked.prompt, len(asked.image)) if asked.chat else asked.prompt,
        asked.image,
        features=asked.features,
        max_new_tokens=asked.max_new_tokens,
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=asked.top_k,
        seed=asked.seed,
        stop=asked.stop,
        stream=True,
    )
    for note in () if asked.json else stream.notes:
        print(f"note: {note}", file=sys.stderr)
    for piece in stream:
        if not asked.json:
            print(printable(piece), end="", flush=True)
    if asked.json:
        print(json.dumps(session.to_json(stream.answer)))
        return
    print()
    for choice in stream.answer.choices:
        print(printable(str(choice)))
    print(stream.answer.summary(), file=sys.stderr)


def _failed(sentence: str, code: int, as_json: bool) -> int:
    if as_json:
        print(json.dumps({"version": 1, "error": sentence, "exit": code}))
    else:
        print(f"error: {sentence}", file=sys.stderr)
    return code


def _parser(design: Design) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=f"Answers about images with {design.name}.", allow_abbrev=False
    )
    add = parser.add_argument
    add("--engine", choices=ENGINES, default="eager", help="what runs it (default: eager)")
    add("--prompt", required=True, help="the question, with <image> where an image belongs")
    add("--image", action="append", default=[], help="an image file; may be repeated")
    add("--features", type=Path, help="region features in place of an image (safetensors)")
    add("--tokenizer", type=Path, help="tokenizer.json, or the folder that holds it")
    add("--max-new-tokens", type=int, default=64, help="tokens of the answer at most (64)")
    add("--temperature", type=float, default=0.0, help="0 (default) takes the likeliest token")
    add("--top-p", type=float, help="draw from the likeliest that reach this probability")
    add("--top-k", type=int, help="draw from this many of the likeliest")
    add("--seed", type=int, default=0, help="of the draws (0)")
    add("--stop", action="append", default=[], help="a text that ends the answer; may be repeated")
    add("--chat", action="store_true", help="put the prompt into the weights' chat template")
    add("--threads", type=int, help="threads that compute (default: as the engine chooses)")
    add("--json", action="store_true", help="print one JSON object")
    return parser


# --------------------------------------------------------------------------------------------------
# The design of this build.
# --------------------------------------------------------------------------------------------------

DESIGN = Design(
    name="blip2-opt-2.7b",
    mini=False,
    serving="sequence",
    head="lm",
    vocabulary=50304,
    context=2048,
    text=512,
    sequence=544,
    capacity=560,
    max_images=1,
    image_token=50265,
    settable=True,
    leading=True,
    all_previous=False,
    positions=(32,),
    visual=(32,),
    input_name="pixel_values",
    image_size=224,
    preprocessing=Preprocessing(
        resize="stretch",
        interpolation="bicubic",
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
    ),
    regions=0,
    region_width=0,
    boxes=False,
    start_token=None,
    cache_elements=163840,
    parts=("encoder", "adapter", "language"),
)

if __name__ == "__main__":
    sys.exit(main(DESIGN, Path(__file__).resolve().parent))

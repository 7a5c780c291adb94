"""The tokenizer files of a build as a client expects them: complete in themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmc.builder.shards import read_json
from vlmc.diagnostics import UsageError
from vlmc.runtime.chat import chat_template
from vlmc.runtime.prompt import MARKER
from vlmc.runtime.tokenizer import Tokenizer

Json = dict[str, Any]

NAMES = ("bos_token", "eos_token", "pad_token")


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """Tokenizer files, with what other files say of them."""

    image_word: str
    """The text of the placeholder."""
    ids: Mapping[str, Any]
    """`bos_token_id`, `eos_token_id` and `pad_token_id`, as far as there are such tokens."""
    files: Mapping[str, Json]


def words(tokenizer: Tokenizer, image_token: int, folder: Path) -> Words:
    """The files for a tokenizer, with an entry for the placeholder and with what it puts around a
    text. `folder` holds what came with the weights, such as the chat template.

    Raises UsageError where the placeholder's word has another id in the file.
    """
    image_word = _image_word(tokenizer, image_token)
    file: Json = json.loads(tokenizer.file.to_str())
    if tokenizer.file.id_to_token(image_token) is None:
        file["model"]["vocab"][image_word] = image_token
    if all(entry["id"] != image_token for entry in file["added_tokens"]):
        file["added_tokens"].append(_special(image_token, image_word))
        file["added_tokens"].sort(key=_id)
    if not _surrounds(tokenizer):
        file["post_processor"] = _around(tokenizer, file["post_processor"])
    settings = _settings(tokenizer, folder)
    special: Json = {name: settings[name] for name in NAMES if name in settings}
    ids = {f"{name}_id": tokenizer.id(_content(word)) for name, word in special.items()}
    if tokenizer.stops:
        stops = sorted(tokenizer.stops)
        ids["eos_token_id"] = stops[0] if len(stops) == 1 else stops  # pyright: ignore
    return Words(
        image_word=image_word,
        ids={name: one for name, one in ids.items() if one is not None},
        files={
            "tokenizer.json": file,
            "tokenizer_config.json": settings,
            "special_tokens_map.json": {**special, "image_token": image_word},
        },
    )


def _image_word(tokenizer: Tokenizer, image_token: int) -> str:
    own = tokenizer.file.id_to_token(image_token)
    known = tokenizer.id(MARKER)
    if own is None and known is not None:
        raise UsageError(
            f"the tokenizer {tokenizer.name} reads {MARKER} as token {known}, but the design's "
            f"placeholder is {image_token}; set fusion.token to {known}"
        )
    return own or MARKER


def _special(number: int, word: str) -> Json:
    flags = ("single_word", "lstrip", "rstrip", "normalized")
    return {"id": number, "content": word, **dict.fromkeys(flags, False), "special": True}


def _id(entry: Json) -> int:
    return entry["id"]


def _surrounds(tokenizer: Tokenizer) -> bool:
    """Whether the file itself puts around a text what belongs there."""
    inner = tokenizer.file.encode("a", add_special_tokens=False).ids
    outer = tokenizer.file.encode("a", add_special_tokens=True).ids
    return outer == [*tokenizer.start, *inner, *tokenizer.end]


def _around(tokenizer: Tokenizer, before: Json | None) -> Json:
    """A post-processor that puts `start` and `end` around a text."""
    names = {one: tokenizer.file.id_to_token(one) for one in (*tokenizer.start, *tokenizer.end)}

    def tokens(ids: tuple[int, ...]) -> list[Json]:
        return [{"SpecialToken": {"id": names[one], "type_id": 0}} for one in ids]

    def text(name: str) -> list[Json]:
        return [{"Sequence": {"id": name, "type_id": 0}}]

    around: Json = {
        "type": "TemplateProcessing",
        "single": [*tokens(tokenizer.start), *text("A"), *tokens(tokenizer.end)],
        "pair": [*tokens(tokenizer.start), *text("A"), *text("B"), *tokens(tokenizer.end)],
        "special_tokens": {
            name: {"id": name, "ids": [one], "tokens": [name]} for one, name in names.items()
        },
    }
    if before is None or before["type"] == "TemplateProcessing":
        return around
    return {"type": "Sequence", "processors": [before, around]}


def _settings(tokenizer: Tokenizer, folder: Path) -> Json:
    """tokenizer_config.json: that of the weights, with the chat template in it."""
    path = folder / "tokenizer_config.json"
    settings: Json = read_json(path) if path.is_file() else {}
    settings.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
    usual = {"bos_token": tokenizer.start, "eos_token": tuple(sorted(tokenizer.stops))}
    for name, ids in usual.items():
        if name not in settings and ids:
            settings[name] = tokenizer.file.id_to_token(ids[0])
    template = chat_template(folder)
    if template is not None:
        settings["chat_template"] = template.text
    return settings


def _content(word: Any) -> str:
    """A token as files name it: its text, or {"content": text}."""
    return str(word["content"] if isinstance(word, dict) else word)  # pyright: ignore

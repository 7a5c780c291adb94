"""A conversation as a prompt, by the chat template that came with the weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn, cast

from vlmc.diagnostics.faults import EnvironmentFault, UsageError
from vlmc.runtime.json_object import json_object

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

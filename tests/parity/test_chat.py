"""A conversation becomes the text, and the tokens, that transformers' apply_chat_template makes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tokenizer_files import llama, save
from transformers import LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from typer.testing import CliRunner

import vlmc
from vlmc.commands import app
from vlmc.diagnostics import UsageError
from vlmc.runtime.chat import ChatTemplate, chat_template
from vlmc.runtime.session import Session

ROOT = Path(__file__).parents[2]
LLAVA = ROOT / "specs" / "llava-1.5.yaml"
PICTURE = ROOT / "docs" / "images" / "shapes.png"

PARTS = """\
{% for message in messages %}
{{ message['role'].upper() }}: {% for part in message['content'] %}
{% if part['type'] == 'image' %}<image>
{% elif part['type'] == 'text' %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}
{% if add_generation_prompt %}ASSISTANT:{% endif %}"""

TEXTS = """\
{{- bos_token }}{%- set state = namespace(turns=0) -%}
{%- for message in messages -%}
    {%- if message.role not in ('user', 'assistant', 'system') -%}
        {{- raise_exception('unknown role ' + message.role) -}}
    {%- endif -%}
    {%- if message.role == 'system' %}{% continue %}{% endif -%}
    {%- set state.turns = state.turns + 1 -%}
    [{{ state.turns }}|{{ message.role | tojson }}]
    {%- if message.role == 'assistant' %}{% generation %}{{ message.content }}{{ eos_token }}
    {%- endgeneration %}{% else %}{{ message.content | trim }}{% endif -%}
{%- endfor -%}
{%- if tools %}{{ tools }}{% endif -%}
{%- if add_generation_prompt %}<a href="&">{% endif -%}
"""

TALK: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "  What is in the picture?\n"},
    {"role": "assistant", "content": 'A "house" & <tree>'},
    {"role": "user", "content": "Naïve?"},
]
SEEN: list[dict[str, Any]] = [
    {
        "role": "user",
        "content": [{"type": "image"}, {"type": "text", "text": "What is the house?"}],
    },
    {"role": "assistant", "content": [{"type": "text", "text": "A door."}]},
    {
        "role": "user",
        "content": [{"type": "text", "text": "the roof?"}, {"type": "image"}],
    },
]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def theirs(special: Sequence[str] = ("<image>",)) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=llama(special), **TOKENS)


@pytest.mark.parametrize(
    ("template", "messages"), [(PARTS, SEEN), (TEXTS, TALK)], ids=["parts", "texts"]
)
def test_a_template_renders_alike(template: str, messages: list[dict[str, Any]]) -> None:
    expected = theirs().apply_chat_template(
        messages, chat_template=template, tokenize=False, add_generation_prompt=True
    )
    assert ChatTemplate(text=template, tokens=TOKENS).render(messages) == expected
    assert len(expected) > 40


@pytest.mark.parametrize("bos", ["", "{{ bos_token }}"])
def test_a_conversation_with_images_becomes_the_same_tokens(bos: str, tmp_path: Path) -> None:
    template = bos + PARTS
    folder = save(llama(["<image>"]), tmp_path)
    (folder / "chat_template.jinja").write_text(template)
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENS))
    session = talking(folder)
    session.design = replace(session.design, image_token=session.tokenizer.id("<image>"))
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32)
    reference = LlavaProcessor(
        pictures,
        theirs(),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )
    images = [Image.open(PICTURE), Image.fromarray(np.zeros((9, 9, 3), np.uint8))]
    with_images = json.loads(json.dumps(SEEN))
    parts = [p for m in with_images for p in m["content"] if p["type"] == "image"]
    for part, image in zip(parts, images, strict=True):
        part["image"] = image
    expected = reference.apply_chat_template(
        with_images, add_generation_prompt=True, tokenize=True, return_dict=True
    )["input_ids"]
    for asked, given in ((with_images, None), (SEEN, images)):
        (question,), batch = session.asker.questions(asked, given, None)
        assert not batch
        (layout,) = session.laid_out([question], 1)
        assert layout.ids.tolist() == np.array(expected).reshape(-1).tolist()
        assert layout.inputs.images == 2


def talking(folder: Path) -> Session:
    budget = ["token_budget.images=2"]
    return vlmc.load(LLAVA, mini=True, tokenizer=folder, overrides=budget)


def test_where_a_template_is_found(tmp_path: Path) -> None:
    def text() -> str:
        found = chat_template(tmp_path)
        return "" if found is None else found.text

    assert text() == ""
    config: dict[str, Any] = {"bos_token": {"content": "<s>"}, "chat_template": "one"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert chat_template(tmp_path) == ChatTemplate(text="one", tokens={"bos_token": "<s>"})
    several = [{"name": "rag", "template": "no"}, {"name": "default", "template": "two"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": several}))
    assert text() == "two"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "three"}))
    assert text() == "three"
    (tmp_path / "chat_template.jinja").write_text("four")
    assert text() == "four"


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    folder = save(llama(["<image>"]), tmp_path_factory.mktemp("words"))
    (folder / "chat_template.jinja").write_text(PARTS)
    return talking(folder)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([{"role": "user", "content": 7}], "message 1: `content` is a text or a list of parts"),
        ([{"role": "user", "content": [{"type": "audio"}]}], "message 1: a part of `content`"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "an <image> tag"}]}],
            "the text of message 1 holds <image>, which stands for an image: .* take the word out",
        ),
        ([{"role": "user", "content": [{"type": "image"}]}], "an image without a picture"),
        (
            [{"role": "user", "content": [{"type": "image", "url": "http://a/b.png"}]}],
            "nothing is fetched from a url; give a path",
        ),
        ([{"content": []}], "message 1 has no `role` and `content`"),
    ],
)
def test_conversations_that_cannot_be(
    session: Session, messages: list[dict[str, Any]], reason: str
) -> None:
    with pytest.raises(UsageError, match=reason):
        session.generate(messages, max_new_tokens=1)


def test_images_without_a_place_in_the_conversation(session: Session) -> None:
    text = [{"role": "user", "content": [{"type": "text", "text": "the house"}]}]
    with pytest.raises(UsageError, match="1 of the images has no place in the conversation"):
        session.generate(text, PICTURE, max_new_tokens=1)
    assert session.generate(text, max_new_tokens=1).inputs.images == 0


def test_a_template_that_refuses_or_fails(session: Session) -> None:
    for template, reason in {
        "{{ raise_exception('no') }}": "refuses this conversation: no",
        "{% for %}": "refuses this conversation",
        "{{ messages[0].nothing.more }}": "refuses this conversation",
        "{{ 1 / 0 }}": "fails on this conversation",
        "{{ messages.append(1) }}": "refuses this conversation",
        "{{ ''.__class__.__mro__ }}": "refuses this conversation",
    }.items():
        broken = replace(session, chat=ChatTemplate(text=template))
        with pytest.raises(UsageError, match=reason):
            broken.generate([{"role": "user", "content": "Why?"}], max_new_tokens=1)


def test_chat_on_the_command_line_asks_through_the_template(tmp_path: Path) -> None:
    folder = save(llama(["<image>"]), tmp_path)
    (folder / "chat_template.jinja").write_text(PARTS)
    command = ["run", str(LLAVA), "--mini", "--tokenizer", str(folder), "--json"]
    more = ["--max-new-tokens", "4", "--image", str(PICTURE)]
    written = "\nUSER: <image>\nthe roof? \nASSISTANT:"

    def tokens(*words: str) -> Any:
        done = CliRunner().invoke(app, [*command, *more, *words])
        assert done.exit_code == 0, done.output
        said = json.loads(done.stdout)
        return said["tokens"], said["prompt"]

    rendered = ChatTemplate(text=PARTS).render(
        [
            {
                "role": "user",
                "content": [{"type": "image"}, {"type": "text", "text": "the roof?"}],
            }
        ]
    )
    assert rendered.split() == written.split()
    assert tokens("--chat", "--prompt", "the roof?") == tokens("--prompt", rendered)
    assert tokens("--prompt", "the roof?") != tokens("--prompt", rendered)
    twin = ["run", str(LLAVA), "--mini", "--chat", "--prompt", "a"]
    done = CliRunner().invoke(app, twin)
    assert done.exit_code == 2
    assert "no chat template" in done.stderr

"""Weight-name tables: how the tensors of a Hugging Face folder are called in our modules.

A table is `names/<model_type>.yaml`; adding one is adding the file. Its sections, all optional
but `about`:

    about: LLaVA
    dialects:      # other spellings on disk -> the spelling that the rules use; tried in order
      - {from: "model.vision_tower.*", to: "vision_tower.*"}
    include:       # another table, below a prefix of the names and below a section of config.json
      - {table: clip_vision_model, prefix: vision_tower., config: vision_config}
      - {table: {config: text_config.model_type, default: llama}, prefix: language_model.,
         config: text_config}
    rules:         # the first rule whose `disk` matches a name decides
      - {disk: "multi_modal_projector.linear_1.{leaf}", ours: "adapter.layers.0.{leaf}"}
      - {disk: "h.{i}.qkv.bias", ours: ["l.{i}.query.bias", "l.{i}.key.bias", "l.{i}.value.bias"]}
      - {disk: cls_token, ours: encoder.class_embedding, squeeze: true}
      - {disk: lm_head.weight, ours: head.projection.weight, copy_of: language.embedding.weight}
      - {disk: norm.weight, ours: encoder.post_norm.weight, spare: "not read below the last layer"}
    ignore:        # tensors that no model of ours needs
      - {disk: "*.position_ids", why: "0, 1, 2, ...: derived"}
    config:        # what config.json says -> the argument of a part that must agree with it
      - {config: text_config.rms_norm_eps, default: 1e-6, field: language.norm_eps}

Patterns: `{i}` and `{j}` stand for a number, another `{word}` for one name without a dot, `*`
(at most one) for anything.

A rule: a list under `ours` splits a fused tensor along its rows, in that order, by our sizes
(q, k, v). `squeeze` lets dimensions of size 1 come and go. `copy_of` is for tied weights: where
the model has no `ours`, the tensor must equal that parameter and is dropped. `spare` gives the
reason why a model may lack `ours`; the tensor is then left on disk.

An entry of `config`: `config` is a path in config.json, or several, of which the first that is
there counts; `default` is what the ecosystem assumes where none is (`default_of`: the value of
another path; neither: nothing is compared); `words` translates the ecosystem's values into ours;
`form` names a conversion of `vlmc.builder.agreement`. It is compared with `field` (`role.argument`
of the Arch), or with the constant `equals` where we have no choice to offer. `fixed` in place of
`config` is what the ecosystem's model class has whatever config.json says; with `kind`, only a
part of that kind is looked at.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from vlmc.diagnostics import UsageError
from vlmc.diagnostics.nearest import listing
from vlmc.spec.reader import parse, read_text
from vlmc.spec.tree import plain

FOLDER = Path(__file__).parent / "names"
_TOKEN = re.compile(r"\{(\w+)\}|\*")


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Dialect(_Row):
    """Another spelling of names on disk."""

    source: str = Field(alias="from")
    target: str = Field(alias="to")


class Rule(_Row):
    """What becomes of the tensors whose names match `disk`."""

    disk: str
    ours: tuple[str, ...] | str | None = None
    squeeze: bool = False
    copy_of: str | None = None
    spare: str | None = None

    @property
    def targets(self) -> tuple[str, ...]:
        """Our names, unfilled; none where the rule only checks a copy."""
        if self.ours is None:
            return ()
        return (self.ours,) if isinstance(self.ours, str) else self.ours


class Ignored(_Row):
    """Tensors that are left on disk."""

    disk: str
    why: str


class Agreement(_Row):
    """A value of config.json that must agree with the design."""

    config: str | tuple[str, ...] = ()
    fixed: Any = None
    field: str | None = None
    equals: Any = None
    default: Any = None
    default_of: str | None = None
    kind: str | None = None
    words: dict[str, Any] | None = None
    form: Literal["hidden_states"] | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        """Where the value may stand."""
        return (self.config,) if isinstance(self.config, str) else self.config


class Choice(_Row):
    """A table named by config.json itself."""

    config: str
    default: str


class Include(_Row):
    """Another table, reused for a part."""

    table: str | Choice
    prefix: str = ""
    config: str = ""


class Table(_Row):
    """A weight-name table, as its file has it."""

    about: str
    sources: tuple[str, ...] = ()
    dialects: tuple[Dialect, ...] = ()
    include: tuple[Include, ...] = ()
    rules: tuple[Rule, ...] = ()
    ignore: tuple[Ignored, ...] = ()
    config: tuple[Agreement, ...] = ()


@dataclass(frozen=True, slots=True)
class Names:
    """A table with everything that it includes, for one config.json."""

    dialects: tuple[Dialect, ...]
    rules: tuple[Rule, ...]
    ignored: tuple[Ignored, ...]
    agreements: tuple[Agreement, ...]

    def canonical(self, name: str) -> str:
        """A name on disk in the spelling of the rules."""
        for dialect in self.dialects:
            found = pattern(dialect.source).fullmatch(name)
            if found:
                name = fill(dialect.target, found.groupdict())
        return name

    def rule(self, name: str) -> tuple[Rule, dict[str, str]] | None:
        """The rule for a canonical name and what its placeholders stand for."""
        for rule in self.rules:
            found = pattern(rule.disk).fullmatch(name)
            if found:
                return rule, found.groupdict()
        return None

    def is_ignored(self, name: str) -> bool:
        """Whether a canonical name is known not to be needed."""
        return any(pattern(row.disk).fullmatch(name) for row in self.ignored)

    def on_disk(self, ours: str) -> str | None:
        """How a parameter of ours is called on disk; None where no rule gives it."""
        for rule in self.rules:
            for target in rule.targets:
                found = pattern(target).fullmatch(ours)
                if found:
                    return fill(rule.disk, {"rest": "*", **found.groupdict()})
        return None


def model_types() -> list[str]:
    """Every `model_type` that has a table."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


@cache
def table(model_type: str) -> Table:
    """The table of a `model_type`. Raises UsageError where there is none."""
    if model_type not in model_types():
        raise UsageError(
            f"checkpoints of the model_type `{model_type[:60]}` cannot be read; "
            f"known are {listing(model_type, model_types())}"
        )
    path = FOLDER / f"{model_type}.yaml"
    return Table.model_validate(plain(parse(read_text(path), path.name)))


def names_for(config: dict[str, Any]) -> Names:
    """The names of the checkpoint whose config.json is `config`."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise UsageError("config.json names no model_type, so that its tensors have no known names")
    return _flat(table(model_type), config, prefix="", section="")


def look_up(config: dict[str, Any], path: str) -> Any:
    """The value at a dotted path of config.json; None where there is none."""
    value: Any = config
    for key in path.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(key)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return value  # pyright: ignore[reportUnknownVariableType]


def _flat(own: Table, config: dict[str, Any], *, prefix: str, section: str) -> Names:
    parts = [
        _flat(
            table(_chosen(include.table, config, section)),
            config,
            prefix=prefix + include.prefix,
            section=_below(section, include.config),
        )
        for include in own.include
    ]
    dialects = tuple(
        Dialect.model_validate({"from": prefix + row.source, "to": prefix + row.target})
        for row in own.dialects
    )
    rules = tuple(row.model_copy(update={"disk": prefix + row.disk}) for row in own.rules)
    ignored = tuple(row.model_copy(update={"disk": prefix + row.disk}) for row in own.ignore)
    agreements = tuple(
        row.model_copy(
            update={
                "config": tuple(_below(section, path) for path in row.paths),
                "default_of": row.default_of and _below(section, row.default_of),
            }
        )
        for row in own.config
    )
    return Names(
        dialects=sum((part.dialects for part in parts), dialects),
        rules=sum((part.rules for part in parts), rules),
        ignored=sum((part.ignored for part in parts), ignored),
        agreements=sum((part.agreements for part in parts), agreements),
    )


def _chosen(name: str | Choice, config: dict[str, Any], section: str) -> str:
    if isinstance(name, str):
        return name
    found = look_up(config, _below(section, name.config))
    return found if isinstance(found, str) else name.default


def _below(section: str, path: str) -> str:
    return f"{section}.{path}" if section and path else section or path


@cache
def pattern(text: str) -> re.Pattern[str]:
    """The expression for names that a pattern of a table stands for."""
    parts: list[str] = []
    end = 0
    for found in _TOKEN.finditer(text):
        parts.append(re.escape(text[end : found.start()]))
        word = found[1] or "rest"
        inner = ".*" if found[0] == "*" else r"\d+" if word in ("i", "j") else r"[^.]+"
        parts.append(f"(?P<{word}>{inner})")
        end = found.end()
    return re.compile("".join(parts) + re.escape(text[end:]))


def fill(template: str, words: dict[str, str]) -> str:
    """A pattern with its placeholders filled."""
    return _TOKEN.sub(lambda found: words[found[1] or "rest"], template)

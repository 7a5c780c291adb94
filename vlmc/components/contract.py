"""What each kind of component must say of itself: its type, its cost, and its module's arguments.

A component is a folder `<role>/<name>/` with `spec.py` (the type: no torch) beside `module.py`
(the body: torch and `components/shared` only). The build checks the body against the type.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from vlmc.diagnostics import Path, Problem
from vlmc.ir import Argument, Dim, Serving, TensorType, Visual

Parameters = dict[str, int]
"""Parameters by child of the module."""

Arguments = dict[str, Argument]
"""Keyword arguments of a module's constructor."""

Architecture = Literal["decoder", "encoder_decoder", "encoder"]

SERVING: dict[Architecture, Serving] = {
    "decoder": "sequence",
    "encoder_decoder": "encoder_decoder",
    "encoder": "single_pass",
}
"""How vision reaches a language model where the fusion puts it into the sequence."""


class Described(BaseModel):
    """A typed, frozen part of a spec: unknown keys are errors and nothing is coerced.

    A field whose default is another part takes it from `model_construct()`, which builds no
    validator: importing the language stays fast.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, defer_build=True, allow_inf_nan=False
    )


class ComponentSpec(Described):
    """The type of a component. Subclasses add a `kind` literal and their own fields."""

    frozen: bool = Field(
        default=False, description="Whether training leaves the weights alone, in every stage."
    )
    weights: str | None = Field(
        default=None,
        description="A local Hugging Face checkpoint folder (config.json + safetensors), relative "
        "to the working directory; without it the part starts from seeded weights.",
    )

    @property
    def kind_name(self) -> str:
        """The kind, as a spec names it."""
        return self.__class__.model_fields["kind"].default

    def problems(self) -> Iterator[Problem]:
        """Faults visible from this component alone; paths are relative to it."""
        yield from ()

    def mini(self) -> Self:
        """The laptop-size twin: same kinds, ratios and edge cases."""
        return self


class EncoderSpec(ComponentSpec):
    """Sees: turns pixels (or given region features) into visual tokens."""

    def input_name(self) -> str:
        """The model input that it reads, in the ecosystem's words."""
        return "pixel_values"

    def input_type(self) -> TensorType:
        """The tensor that it reads."""
        raise NotImplementedError

    def visual(self) -> Visual:
        """What it gives for one image."""
        raise NotImplementedError

    def heads_for_tensor_parallel(self) -> tuple[tuple[Path, int], ...]:
        """Each head count that a tensor-parallel degree must divide, with its path."""
        return ()

    def arguments(self) -> Arguments:
        """Keyword arguments of its module."""
        raise NotImplementedError

    def parameters(self) -> Parameters:
        """Parameters of its module, by child."""
        raise NotImplementedError


class LanguageSpec(ComponentSpec):
    """Reads and writes: a text transformer."""

    architecture: ClassVar[Architecture]
    width: int
    layers: int
    heads: int
    vocabulary: int
    context: int | None
    tied_head: bool

    @property
    def total_vocabulary(self) -> int:
        """Rows of the embedding, added tokens included."""
        return self.vocabulary

    @property
    def head_scale(self) -> float | None:
        """What the last hidden states are multiplied by before the head; None where by nothing."""
        return None

    def heads_for_tensor_parallel(self) -> tuple[tuple[Path, int], ...]:
        """Each head count that a tensor-parallel degree must divide, with its path."""
        return ((("heads",), self.heads),)

    def mini(self, width: int | None = None) -> Self:
        """The laptop-size twin; of `width` channels where its neighbours need that."""
        raise NotImplementedError

    def cache_elements_per_token(self) -> int:
        """Numbers that the key/value cache keeps for one token; 0 without a cache."""
        raise NotImplementedError

    def arguments(self) -> Arguments:
        """Keyword arguments of its module."""
        raise NotImplementedError

    def parameters(self) -> Parameters:
        """Parameters of its module, by child."""
        raise NotImplementedError


class AdapterSpec(ComponentSpec):
    """Carries vision over to language: changes the number and the width of visual tokens."""

    def output(self, source: Visual, language: LanguageSpec) -> Visual:
        """What it makes of `source`."""
        raise NotImplementedError

    def problems_with(self, source: Visual, language: LanguageSpec) -> Iterator[Problem]:
        """Faults against what it is given; paths are relative to the adapter."""
        yield from ()

    def arguments(self, source: Visual, language: LanguageSpec) -> Arguments:
        """Keyword arguments of its module."""
        raise NotImplementedError

    def parameters(self, source: Visual, language: LanguageSpec) -> Parameters:
        """Parameters of its module, by child."""
        raise NotImplementedError

    def mini_for(self, source: Visual, twin: Visual) -> Self:
        """The laptop-size twin behind `twin`, which stands for `source`."""
        return self.mini()


class FusionSpec(ComponentSpec):
    """Where vision meets language: owns the forward pass of the whole model."""

    points: ClassVar[tuple[str, ...]]
    """The fusion points (early, mid, late) that this kind realises, the usual one first."""
    architectures: ClassVar[tuple[Architecture, ...]]
    inputs: ClassVar[tuple[str, ...]] = ("pixel_values",)
    """The model inputs of encoders that it can hand on."""
    point: Literal["early", "mid", "late"] | None = Field(
        default=None,
        description="Where vision meets language: early (one input sequence), mid (cross-attention "
        "or queries), late (features in place of word embeddings). Checked against `kind`.",
    )

    def in_sequence(self, visual: Visual) -> int:
        """Tokens of the language model's sequence that one image takes."""
        raise NotImplementedError

    def positions(self, visual: Visual) -> int:
        """Positions of the language model's context that one image uses up."""
        return self.in_sequence(visual)

    def words(self) -> int:
        """Tokens of the text that stand for one image."""
        return 0

    def memory(self, visual: Visual) -> int:
        """Tokens of one image that are attended to from outside the sequence."""
        return 0

    def serving(self, language: LanguageSpec) -> Serving:
        """How vision reaches `language` at run time."""
        return SERVING[language.architecture]

    def needs_language_width(self) -> bool:
        """Whether visual tokens must be exactly as wide as the language model."""
        return True

    def problems_with(self, visual: Visual, language: LanguageSpec) -> Iterator[Problem]:
        """Faults against its neighbours; paths are relative to the fusion."""
        yield from ()

    def arguments(self, visual: Visual, language: LanguageSpec) -> Arguments:
        """Keyword arguments of its module, beside the parts that it joins."""
        raise NotImplementedError

    def parameters(self, visual: Visual, language: LanguageSpec) -> Parameters:
        """Parameters of its own (those of the parts that it joins not counted)."""
        return {}

    def mini_for(self, language: LanguageSpec) -> Self:
        """The laptop-size twin beside the twin of `language`."""
        return self


class HeadSpec(ComponentSpec):
    """Answers: turns the last hidden states into logits."""

    architectures: ClassVar[tuple[Architecture, ...]]

    def outputs(self, language: LanguageSpec) -> int:
        """Width of the logits."""
        raise NotImplementedError

    def output_dims(self, language: LanguageSpec) -> tuple[Dim, ...]:
        """Dimensions of the logits."""
        return ("batch", "sequence", self.outputs(language))

    def problems_with(self, language: LanguageSpec) -> Iterator[Problem]:
        """Faults against the language model; paths are relative to the head."""
        yield from ()

    def arguments(self, language: LanguageSpec) -> Arguments:
        """Keyword arguments of its module."""
        raise NotImplementedError

    def parameters(self, language: LanguageSpec) -> Parameters:
        """Parameters of its module, by child."""
        raise NotImplementedError


def divides(
    number: int,
    divisor: int,
    *,
    code: str,
    path: Path,
    what: str,
    by: str,
    help_: str,
    related: tuple[Path, ...] = (),
) -> Iterator[Problem]:
    """A problem at `path` unless `divisor` divides `number`, with the arithmetic written out."""
    if divisor > 0 and number % divisor:
        yield Problem(
            code=code,
            path=path,
            message=f"{what} {number} is not a multiple of {by} {divisor}",
            expected=f"{by}: a divisor of {number}",
            got=f"{number} / {divisor} = {number // divisor} remainder {number % divisor}",
            help=help_,
            related=related,
        )


def in_vocabulary(key: str, token: int, vocabulary: int, *, help_: int) -> Iterator[Problem]:
    """A problem at `key` unless `token` is the id of an entry of the vocabulary."""
    if token >= vocabulary:
        yield Problem(
            code="VLMC111",
            path=(key,),
            message=f"token {token} is not in the vocabulary",
            expected=f"0 to {vocabulary - 1}",
            got=str(token),
            help=f"{key}: {help_}",
        )


def fields(spec: ComponentSpec, *names: str) -> Arguments:
    """The named fields of `spec` as module arguments of the same names."""
    values: Mapping[str, Any] = {name: getattr(spec, name) for name in names}
    return dict(values)

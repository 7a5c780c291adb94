"""Rules about how parts meet."""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import cast

from vlmc.components.catalog import joining, kinds
from vlmc.components.contract import Architecture, FusionSpec, HeadSpec, LanguageSpec
from vlmc.diagnostics import Problem
from vlmc.resolver.flow import Flow
from vlmc.spec import presets


def fusion_point(flow: Flow) -> Iterator[Problem]:
    """A fusion kind belongs to certain points."""
    fusion = flow.fusion
    if fusion is None or fusion.point is None or fusion.point in fusion.points:
        return
    yield Problem(
        code="VLMC120",
        path=("fusion", "point"),
        message=f"`{fusion.kind_name}` does not fuse at the point `{fusion.point}`",
        expected=" or ".join(fusion.points),
        got=fusion.point,
        help=f"point: {fusion.points[0]}",
    )


def fusion_joins_language(flow: Flow) -> Iterator[Problem]:
    """A fusion kind joins certain architectures, and has its own conditions on its neighbours."""
    fusion, language = flow.fusion, flow.language
    if fusion is None or language is None:
        return
    if language.architecture not in fusion.architectures:
        names = joining(flow.encoder, language)
        yield Problem(
            code="VLMC121",
            path=("fusion", "kind"),
            related=(("fusion",), ("language",)),
            message=f"`{fusion.kind_name}` cannot join a language model of the kind "
            f"`{language.kind_name}`",
            expected=f"a language model that is {' or '.join(fusion.architectures)}",
            got=language.architecture,
            help=f"fusion: {names[0]}" if names else _read_by(fusion.architectures),
        )
    elif flow.visual is not None:
        for problem in fusion.problems_with(flow.visual, language):
            yield problem.below("fusion")


def _read_by(architectures: Container[Architecture]) -> str | None:
    """The first preset of a language model that has one of the architectures, to be pasted."""
    for name in presets.names("language"):
        language = kinds("language")[presets.kind("language", name)].spec
        if cast("type[LanguageSpec]", language).architecture in architectures:
            return f"language: {name}"
    return None


def head_reads_language(flow: Flow) -> Iterator[Problem]:
    """A head reads the hidden states of certain architectures."""
    head, language = flow.head, flow.language
    if head is None or language is None:
        return
    if language.architecture not in head.architectures:
        usual = next(
            (
                kind
                for kind, entry in kinds("head").items()
                if language.architecture in cast("type[HeadSpec]", entry.spec).architectures
            ),
            None,
        )
        yield Problem(
            code="VLMC122",
            path=("head", "kind"),
            message=f"the head `{head.kind_name}` cannot read a language model of the kind "
            f"`{language.kind_name}`",
            expected=" or ".join(head.architectures),
            got=language.architecture,
            help=f"head: {usual}" if usual else None,
        )
        return
    for problem in head.problems_with(language):
        yield problem.below("head")


def adapter_capacity(flow: Flow) -> Iterator[Problem]:
    """An adapter has its own conditions on what it is given."""
    if flow.adapter is None or flow.seen is None or flow.language is None:
        return
    for problem in flow.adapter.problems_with(flow.seen, flow.language):
        yield problem.below("adapter")


def widths_meet(flow: Flow) -> Iterator[Problem]:
    """Visual tokens that stand among words are as wide as words."""
    fusion, language, visual = flow.fusion, flow.language, flow.visual
    if fusion is None or language is None or visual is None or not fusion.needs_language_width():
        return
    if visual.width != language.width:
        yield Problem(
            code="VLMC123",
            path=("adapter",),
            message=f"the adapter gives {visual.width} channels, but `{fusion.kind_name}` puts "
            f"visual tokens among words of {language.width}",
            expected=f"width {language.width} (the language model's)",
            got=f"width {visual.width}",
            help="adapter: mlp",
            at_key=True,
        )


def fusion_takes_input(flow: Flow) -> Iterator[Problem]:
    """Features that are given, not computed from pixels, need a fusion that takes them."""
    fusion, encoder = flow.fusion, flow.encoder
    if fusion is None or encoder is None or encoder.input_name() in fusion.inputs:
        return
    names = joining(encoder, flow.language)
    help_ = f"fusion: {names[0]}" if names else None
    if not names:
        takers = (cast("type[FusionSpec]", kinds("fusion")[k].spec) for k in joining(encoder, None))
        help_ = _read_by([taken for taker in takers for taken in taker.architectures])
    yield Problem(
        code="VLMC116",
        path=("encoder", "kind"),
        message=f"`{fusion.kind_name}` takes {' or '.join(fusion.inputs)}, but the encoder "
        f"`{encoder.kind_name}` reads {encoder.input_name()}",
        expected=f"an encoder that reads {' or '.join(fusion.inputs)}",
        got=encoder.input_name(),
        help=help_,
    )

"""Rules about the token budget."""

from __future__ import annotations

from collections.abc import Iterator

from vlmc.components.contract import LanguageSpec
from vlmc.diagnostics import Problem
from vlmc.ir.sequence import no_room
from vlmc.resolver.flow import Flow


def budget_fits_context(flow: Flow) -> Iterator[Problem]:
    """Text and what the images take of the sequence fit into the language model's positions."""
    fusion, language, visual = flow.fusion, flow.language, flow.visual
    if fusion is None or language is None or visual is None:
        return
    images, each = flow.budget.images, fusion.positions(visual)
    found = no_room(
        flow.budget.text, images, each=each, words=fusion.words(), context=language.context
    )
    if found is None:
        return
    if found.images == images:
        help_ = f"text: {found.text}"
    elif found.images:
        help_ = f"token_budget: {{images: {found.images}, text: {found.text}}}"
    else:
        help_ = _fewer_tokens(flow, language)
    yield Problem(
        code="VLMC130",
        path=("token_budget",),
        message=found.message,
        expected=found.expected,
        got=found.got,
        help=help_,
        at_key=True,
    )


def _fewer_tokens(flow: Flow, language: LanguageSpec) -> str:
    """What makes room where one image takes the whole context: a resampler where it has features
    to read and the text leaves it enough, no images where not."""
    context = language.context or 0
    fusion, encoder, seen = flow.fusion, flow.encoder, flow.seen
    images, text = flow.budget.images, flow.budget.text
    if encoder is not None and seen is not None and encoder.input_name() == "pixel_values":
        queries = min(64, seen.total, (context - text) // images)
        if queries > 0:
            wide = fusion is not None and fusion.needs_language_width()
            width = f", width: {language.width}" if wide else ""
            layers = min(6, language.layers)
            return (
                f"adapter: {{kind: perceiver_resampler, queries: {queries}, layers: {layers}"
                f"{width}}}"
            )
    return f"token_budget: {{images: 0, text: {min(text, context)}}}"


def workload_fits_budget(flow: Flow) -> Iterator[Problem]:
    """A prompt and its answer fit into the budget's text."""
    if flow.target is None:
        return
    workload, text = flow.target.workload, flow.budget.text
    prompt = 1 if workload.prompt is None else workload.prompt
    generate = workload.generate if workload.mode == "serve" else 0
    if prompt + generate > text:
        yield Problem(
            code="VLMC131",
            path=("target", "workload"),
            message="the workload asks for more text than the token budget holds",
            expected=f"prompt + generate of at most {text} tokens",
            got=f"{prompt} + {generate} = {prompt + generate}",
            help=_room_for(flow, prompt, generate),
            at_key=True,
        )


def _room_for(flow: Flow, prompt: int, generate: int) -> str:
    """A larger text where the context has room for it, a smaller workload where not."""
    fusion, language, visual = flow.fusion, flow.language, flow.visual
    text, context = flow.budget.text, None if language is None else language.context
    if context is not None and fusion is not None and visual is not None:
        context -= flow.budget.images * fusion.positions(visual)
    if context is None or prompt + generate <= context:
        return f"token_budget: {{text: {prompt + generate}}}"
    generate = min(generate, text - 1)
    asked = [f"prompt: {min(prompt, text - generate)}"]
    if generate:
        asked.append(f"generate: {generate}")
    return f"workload: {{{', '.join(asked)}}}"

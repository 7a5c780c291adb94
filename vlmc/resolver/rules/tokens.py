"""Rules about the token budget."""

from __future__ import annotations

from collections.abc import Iterator

from vlmc.diagnostics import Problem
from vlmc.resolver.flow import Flow


def budget_fits_context(flow: Flow) -> Iterator[Problem]:
    """Text and what the images take of the sequence fit into the language model's positions."""
    fusion, language, visual = flow.fusion, flow.language, flow.visual
    if fusion is None or language is None or visual is None or language.context is None:
        return
    images, text = flow.budget.images, flow.budget.text
    each = fusion.positions(visual)
    total = text + images * each
    if total <= language.context:
        return
    left = language.context - images * each
    if left > 0:
        help_ = f"text: {left}"
    elif language.context > each:
        fitting = (language.context - 1) // each
        help_ = f"token_budget: {{images: {fitting}, text: {language.context - fitting * each}}}"
    else:
        help_ = "an adapter with fewer tokens, such as perceiver_resampler with queries: 64"
    yield Problem(
        code="VLMC130",
        path=("token_budget",),
        message=f"the token budget is {total - language.context} over the language model's context",
        expected=f"at most {language.context} positions",
        got=f"{text} text + {images} images x {each} tokens = {total}",
        help=help_,
        at_key=True,
    )


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
            help=f"token_budget: {{text: {prompt + generate}}}",
            at_key=True,
        )

"""From a complete spec to an `Arch`: everything inferred, as a typed graph."""

from __future__ import annotations

from dataclasses import replace

from vlmc.diagnostics import Diagnostic, Severity, Span, SpecError
from vlmc.ir import ROWS, Arch, Edge, Node, Port, TensorType, Tokens, verify
from vlmc.resolver.flow import flow, sections_of, settled
from vlmc.resolver.rules import check
from vlmc.spec.document import ModelSpec

IDS = TensorType(("batch", "text"), "int")


def resolve(spec: ModelSpec, *, mini: bool = False) -> Arch:
    """The design with every width, token count and parameter count inferred; of its laptop-size
    twin with `mini`. Needs no torch.

    Raises SpecError where a rule is broken.
    """
    found = problems(spec)
    errors = [d for d in found if d.severity == Severity.ERROR]
    if errors:
        raise SpecError(errors)
    if mini:
        return replace(resolve(spec.mini()), mini=True)
    return verify(_arch(spec))


def problems(spec: ModelSpec) -> list[Diagnostic]:
    """What the rules say of a complete spec, each at its place."""
    found = list(check(flow(sections_of(spec))))
    for role in ("encoder", "adapter", "fusion", "language", "head"):
        found.extend(problem.below(role) for problem in getattr(spec, role).problems())
    if spec.source is not None:
        return [spec.source.locate(problem) for problem in found]
    nowhere = Span(file=f"<{spec.name}>", line=1, column=1, end_column=2)
    return [
        Diagnostic(
            code=p.code,
            message=p.message,
            span=nowhere,
            path=p.path,
            expected=p.expected,
            got=p.got,
            help=p.help,
            severity=p.severity,
        )
        for p in found
    ]


def _tokens(spec: ModelSpec) -> Tokens:
    visual = spec.adapter.output(spec.encoder.visual(), spec.language)
    each = spec.fusion.in_sequence(visual)
    budget = settled(spec.token_budget, spec.language, spec.fusion, visual)
    return Tokens(
        images=budget.images,
        per_image=visual.total,
        in_sequence=each,
        text=budget.text,
        sequence=budget.text + budget.images * each,
        context=spec.language.context,
        memory=budget.images * spec.fusion.memory(visual),
    )


def _batch(spec: ModelSpec) -> int:
    """Sequences at once: those that the target is asked to serve, or what is usual if that is more
    (or left to the planner)."""
    workload = None if spec.target is None else spec.target.workload
    if workload is None or workload.mode != "serve" or workload.batch == "auto":
        return ROWS
    return max(ROWS, workload.batch)


def _arch(spec: ModelSpec) -> Arch:
    encoder, adapter, fusion = spec.encoder, spec.adapter, spec.fusion
    language, head = spec.language, spec.head
    seen = encoder.visual()
    visual = adapter.output(seen, language)
    hidden = TensorType(("batch", "sequence", language.width))
    logits = TensorType(head.output_dims(language))
    pixels = Port(name=encoder.input_name(), type=encoder.input_type())
    ids = Port(name="input_ids", type=IDS)
    nodes = (
        Node(
            role="encoder",
            kind=encoder.kind_name,
            arguments=encoder.arguments(),
            inputs=(Port(name=pixels.name, type=pixels.type),),
            outputs=(Port(name="features", type=seen.tensor()),),
            parameters=encoder.parameters(),
            frozen=encoder.frozen,
        ),
        Node(
            role="adapter",
            kind=adapter.kind_name,
            arguments=adapter.arguments(seen, language),
            inputs=(Port(name="features", type=seen.tensor()),),
            outputs=(Port(name="visual", type=visual.tensor()),),
            parameters=adapter.parameters(seen, language),
            frozen=adapter.frozen,
        ),
        Node(
            role="fusion",
            kind=fusion.kind_name,
            arguments=fusion.arguments(visual, language),
            inputs=(ids, Port(name="visual", type=visual.tensor())),
            outputs=(Port(name="sequence", type=hidden),),
            parameters=fusion.parameters(visual, language),
            frozen=fusion.frozen,
        ),
        Node(
            role="language",
            kind=language.kind_name,
            arguments=language.arguments(),
            inputs=(Port(name="sequence", type=hidden),),
            outputs=(Port(name="hidden", type=hidden),),
            parameters=language.parameters(),
            frozen=language.frozen,
        ),
        Node(
            role="head",
            kind=head.kind_name,
            arguments=head.arguments(language),
            inputs=(Port(name="hidden", type=hidden),),
            outputs=(Port(name="logits", type=logits),),
            parameters=head.parameters(language),
            frozen=head.frozen,
        ),
    )
    edges = (
        Edge(source=f"input.{pixels.name}", target=f"encoder.{pixels.name}", type=pixels.type),
        Edge(source="encoder.features", target="adapter.features", type=seen.tensor()),
        Edge(source="adapter.visual", target="fusion.visual", type=visual.tensor()),
        Edge(source="input.input_ids", target="fusion.input_ids", type=IDS),
        Edge(source="fusion.sequence", target="language.sequence", type=hidden),
        Edge(source="language.hidden", target="head.hidden", type=hidden),
        Edge(source="head.logits", target="output.logits", type=logits),
    )
    return Arch(
        name=spec.name,
        about=spec.about,
        nodes=nodes,
        edges=edges,
        tokens=_tokens(spec),
        inputs=(pixels, ids),
        outputs=(Port(name="logits", type=logits),),
        serving=fusion.serving(language),
        batch=_batch(spec),
    )

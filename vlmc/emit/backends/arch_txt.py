"""arch.txt: the resolved design for people, as a tree."""

from __future__ import annotations

from collections.abc import Iterable
from textwrap import wrap

from vlmc.ir import Arch, Argument, Node, Port

WIDTH = 100


def source(arch: Arch) -> str:
    """The text of arch.txt."""
    lines = [
        arch.name + (" (the laptop-size twin)" if arch.mini else ""),
        *wrap(arch.about, WIDTH),
        "",
        "model",
        *(f"├─ {line}" for line in _ports("takes", arch.inputs)),
        *(f"├─ {line}" for line in _ports("gives", arch.outputs)),
    ]
    for index, node in enumerate(arch.nodes):
        last = index == len(arch.nodes) - 1
        lines += _branch(_part(node), last=last)
    lines += ["", "flow", *_flow(arch), "", "tokens", *_tokens(arch)]
    lines += ["", "parameters", *_parameters(arch)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _branch(lines: list[str], *, last: bool) -> list[str]:
    """Lines as one branch of a tree: the first is its root."""
    first, rest = ("└─ ", "   ") if last else ("├─ ", "│  ")
    return [first + lines[0], *(rest + line for line in lines[1:])]


def _part(node: Node) -> list[str]:
    state = "frozen" if node.frozen else "trainable"
    head = f"{node.role}: {node.kind}"
    head += f", {node.count:,} parameters, {state}" if node.count else ", no parameters"
    lines = [head, *_ports("takes", node.inputs), *_ports("gives", node.outputs)]
    arguments = ", ".join(f"{name}={_value(value)}" for name, value in node.arguments.items())
    for index, line in enumerate(wrap(arguments, WIDTH - 14, break_on_hyphens=False)):
        lines.append(("with   " if index == 0 else "       ") + line)
    children = [(name, count) for name, count in node.parameters.items() if count]
    width = max((len(name) for name, _ in children), default=0)
    figures = max((len(f"{count:,}") for _, count in children), default=0)
    for index, (name, count) in enumerate(children):
        child = f"{name:<{width}}  {count:>{figures},}"
        lines += _branch([child], last=index == len(children) - 1)
    return lines


def _value(value: Argument) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return f"[{','.join(map(str, value))}]"  # no blanks: lines break between arguments only
    return "none" if value is None else str(value)


def _ports(verb: str, ports: Iterable[Port]) -> list[str]:
    return [f"{verb:<6} {port.name}: {port.type}" for port in ports]


def _flow(arch: Arch) -> list[str]:
    sources = max(len(edge.source) for edge in arch.edges)
    targets = max(len(edge.target) for edge in arch.edges)
    return [
        f"  {edge.source:<{sources}} -> {edge.target:<{targets}}  {edge.type}"
        for edge in arch.edges
    ]


def _tokens(arch: Arch) -> list[str]:
    tokens = arch.tokens
    rows = [
        ("one image becomes", f"{tokens.per_image:,} visual tokens"),
        ("of which in the sequence", f"{tokens.in_sequence:,}"),
        (
            "longest sequence",
            f"{tokens.text:,} of text + {tokens.images:,} x {tokens.in_sequence:,} of images = "
            f"{tokens.sequence:,}",
        ),
    ]
    if tokens.context is None:
        rows.append(("context", "without a bound"))
    else:
        left = tokens.context - tokens.sequence
        rows.append(
            ("context", f"{tokens.context:,} - {tokens.sequence:,} = {left:,} positions left over")
        )
    if tokens.memory:
        rows.append(("attended to beside it", f"{tokens.memory:,} visual tokens"))
    width = max(len(name) for name, _ in rows)
    return [f"  {name:<{width}}  {value}" for name, value in rows]


def _parameters(arch: Arch) -> list[str]:
    total = arch.parameters
    frozen = total - arch.trainable_parameters
    rows = [
        (node.role, node.count, "frozen" if node.frozen else "trainable")
        for node in arch.nodes
        if node.count
    ]
    rows += [("frozen", frozen, ""), ("trainable", total - frozen, ""), ("total", total, "")]
    width = max(len(name) for name, _, _ in rows)
    figures = len(f"{total:,}")
    return [
        f"  {name:<{width}}  {count:>{figures},}  {count / max(total, 1):>6.1%}  {state}"
        for name, count, state in rows
    ]

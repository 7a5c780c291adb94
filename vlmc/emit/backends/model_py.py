"""model.py: the model as one readable file that needs torch only.

The classes of the library that this design uses, inlined with its constants put in and without
what it never runs. Parameters keep the library's names, in the library's order.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

import libcst as cst

from vlmc.builder.model import module_class
from vlmc.emit.inline import load_weights
from vlmc.emit.inline.groups import Group, Grouping, group, origin_of
from vlmc.emit.inline.inline import definition, ordered, program_of
from vlmc.emit.inline.layout import formatted
from vlmc.emit.inline.library import source as library_source
from vlmc.emit.inline.literals import literal
from vlmc.emit.inline.record import record
from vlmc.ir import Arch, Node, Port

LINE_LENGTH = 100
_LOADER = library_source(load_weights.__name__)


def source(arch: Arch) -> str:
    """The text of model.py: the same for the same design on any machine."""
    grouping = group(record(arch))
    fusion = _group(arch.node("fusion"), grouping)
    added = [*_LOADER.definitions.values(), _build(arch, grouping)]
    program = program_of(grouping, [fusion.name], added)
    program.imports.extend(_LOADER.imports)
    parts = [_group(node, grouping).name for node in arch.nodes if node.role != "fusion"]
    order = ordered(program, [*parts, fusion.name, "load_weights", "build"])
    texts = [_header(arch), *(_code(line) for line in program.imports)]
    texts += [_code(definition(program, name)).strip() + "\n" for name in order]
    return formatted("\n\n".join(texts))


def _code(node: cst.CSTNode) -> str:
    return cst.Module([]).code_for_node(node)


def _group(node: Node, grouping: Grouping) -> Group:
    return grouping.classes(origin_of(module_class(node)))[0]


def _build(arch: Arch, grouping: Grouping) -> cst.FunctionDef:
    """The function that constructs the model."""
    fusion = arch.node("fusion")
    parts = [node for node in arch.nodes if node.role != "fusion"]
    given = [f"{node.role}={_construct(node, grouping)}" for node in parts]
    lines = [f"model = {_construct(fusion, grouping, given)}"]
    lines += [f"model.{node.role}.requires_grad_(False)" for node in parts if node.frozen]
    if fusion.frozen:  # its own children alone: the model holds the other parts too
        own = (child for child, count in fusion.parameters.items() if count)
        lines += [f"model.{child}.requires_grad_(False)" for child in own]
    if len(lines) == 1:
        lines = [lines[0].replace("model = ", "return ", 1)]
    else:
        lines.append("return model")
    state = "; frozen parts take no gradients" if len(lines) > 1 else ""
    text = f'''def build() -> {_group(fusion, grouping).name}:
    """The whole model, its weights not yet loaded{state}."""
{textwrap.indent(chr(10).join(lines), "    ")}
'''
    return cst.ensure_type(cst.parse_statement(text), cst.FunctionDef)


def _construct(node: Node, grouping: Grouping, given: Iterable[str] = ()) -> str:
    """The constructor call of a part: only what is no constant of its class is passed."""
    made = _group(node, grouping)
    passed = [
        f"{name}={_code(literal(value))}"
        for name, value in node.arguments.items()
        if name not in made.constants
    ]
    return f"{made.name}({', '.join((*given, *passed))})"


def _header(arch: Arch) -> str:
    """The docstring of the file: the design, what its parts take and give, how to use it."""
    title = f"{arch.name}{', the laptop-size twin' if arch.mini else ''}."
    about = f"{title} {arch.about}{'' if arch.about.endswith('.') or not arch.about else '.'}"
    lines = [*textwrap.wrap(about, LINE_LENGTH - 3), ""]
    lines += [f"{arch.parameters:,} parameters, of which {arch.trainable_parameters:,} train.", ""]
    for node in arch.nodes:
        count = f"{node.count:,} parameters" if node.count else "no parameters"
        lines.append(f"{node.role}: {node.kind}, {count}{', frozen' if node.frozen else ''}")
        lines += [f"    {_ports('takes', node.inputs)}", f"    {_ports('gives', node.outputs)}"]
    lines += ["", *_USE]
    text = "\n".join(lines).replace("\\", "\\\\").replace('"""', "'''")
    return f'"""{text}\n"""\n'


def _ports(verb: str, ports: Iterable[Port]) -> str:
    return f"{verb} " + "; ".join(f"{port.name} {port.type}" for port in ports)


_USE = """\
Needs torch only.

    with torch.device("meta"):
        model = build()
    load_weights(model, "weights")\
""".splitlines()

"""What type an expression of the program has, as far as our own classes go."""

from __future__ import annotations

from collections.abc import Iterable

import libcst as cst

from vlmc.emit.inline.program import Class, Function, Items, Key, Objects, Program, Together, Type
from vlmc.emit.inline.tree import dotted, every, statement

_BINDERS = (cst.Assign, cst.AnnAssign, cst.NamedExpr, cst.For, cst.CompFor)
_LISTS = {"list", "Sequence", "Iterable", "Iterator"}


def join(types: Iterable[Type]) -> Type:
    """The type of what may be any of these."""
    names: set[str] = set()
    items: list[Type] = []
    tuples: list[Together] = []
    for kind in types:
        if kind == "unknown":
            return "unknown"
        if isinstance(kind, Objects):
            names |= kind.names
        elif isinstance(kind, Items):
            items.append(kind.item)
        elif isinstance(kind, Together):
            tuples.append(kind)
    if items and not tuples:
        return Items(join(items)) if not names else "unknown"
    if tuples and not items and not names:
        same = all(len(kind.items) == len(tuples[0].items) for kind in tuples)
        columns = zip(*(kind.items for kind in tuples), strict=True) if same else ()
        return Together(tuple(join(column) for column in columns)) if same else "unknown"
    if names:
        return Objects(frozenset(names))
    return "unknown" if items else "foreign"


def annotated(node: cst.BaseExpression, program: Program) -> Type:  # noqa: PLR0911
    """The type that an annotation names."""
    match node:
        case cst.Name(value=name):
            if name in program.classes:
                return Objects(frozenset({name}))
            if name in program.aliases:
                alias = statement(program.aliases[name])
                if isinstance(alias, cst.Assign):
                    return annotated(alias.value, program)
            return "foreign"
        case cst.Attribute():
            return "unknown" if dotted(node) in ("nn.Module", "nn.ModuleList") else "foreign"
        case cst.BinaryOperation():
            return join((annotated(node.left, program), annotated(node.right, program)))
        case cst.Subscript(value=cst.Name(value=name)):
            inner = [e.slice.value for e in node.slice if isinstance(e.slice, cst.Index)]
            if name in _LISTS:
                return Items(annotated(inner[0], program))
            if name == "dict":
                return Items(annotated(inner[-1], program))
            if name == "tuple" and isinstance(inner[-1], cst.Ellipsis):
                return Items(annotated(inner[0], program))
            if name == "tuple":
                return Together(tuple(annotated(item, program) for item in inner))
            return "unknown"
        case _:
            return "unknown"


class Typist:
    """Types the expressions of one function."""

    def __init__(self, function: Function, program: Program) -> None:
        self.function = function
        self.program = program
        self.locals: dict[str, Type] = {}
        if function.key[0] and "staticmethod" not in function.decorators:
            self.locals["self"] = Objects(frozenset({function.key[0]}))
        for parameter in function.parameters:
            note = parameter.annotation
            known = annotated(note.annotation, program) if note else "unknown"
            self.locals[parameter.name.value] = known
        bindings: dict[str, list[Type]] = {n: [kind] for n, kind in self.locals.items()}
        for node in every(function.node, *_BINDERS):
            for target, kind in self._bound(node):
                bindings.setdefault(target, []).append(kind)
                self.locals[target] = join(bindings[target])

    def _bound(self, node: cst.CSTNode) -> Iterable[tuple[str, Type]]:
        match node:
            case cst.Assign():
                for target in node.targets:
                    yield from _spread(target.target, self.type(node.value))
            case cst.AnnAssign():
                yield from _spread(node.target, annotated(node.annotation.annotation, self.program))
            case cst.NamedExpr():
                yield from _spread(node.target, self.type(node.value))
            case cst.For() | cst.CompFor():
                yield from _spread(node.target, self.element(node.iter))
            case _:
                return

    def element(self, node: cst.BaseExpression) -> Type:
        """The type of what a loop over `node` gives."""
        if isinstance(node, cst.Call) and isinstance(node.func, cst.Name):
            over: list[Type] = [self.element(a.value) for a in node.args if a.keyword is None]
            match node.func.value:
                case "range":
                    return "foreign"
                case "enumerate":
                    return Together(("foreign", over[0]))
                case "zip":
                    return Together(tuple(over))
                case "reversed":
                    return over[0]
                case _:
                    pass
        return _element(self.type(node))

    def type(self, node: cst.BaseExpression) -> Type:  # noqa: PLR0911
        """The type of an expression."""
        match node:
            case cst.Name():
                return self.locals.get(node.value, "foreign")
            case cst.Attribute():
                return self.attribute(node)
            case cst.Call():
                return self.called(node)
            case cst.Subscript():
                return self._subscript(node)
            case cst.IfExp():
                return join((self.type(node.body), self.type(node.orelse)))
            case cst.BooleanOperation():
                return join((self.type(node.left), self.type(node.right)))
            case cst.Tuple():
                return Together(tuple(self.type(element.value) for element in node.elements))
            case cst.List():
                return Items(join(self.type(element.value) for element in node.elements))
            case cst.ListComp() | cst.GeneratorExp():
                return Items(self.type(node.elt))
            case cst.NamedExpr():
                return self.type(node.value)
            case _:
                return "foreign"

    def _subscript(self, node: cst.Subscript) -> Type:
        kind = self.type(node.value)
        index = node.slice[0].slice
        if not isinstance(index, cst.Index):
            return kind
        if isinstance(kind, Together) and isinstance(index.value, cst.Integer):
            place = int(index.value.value)
            return kind.items[place] if place < len(kind.items) else "unknown"
        return _element(kind)

    def attribute(self, node: cst.Attribute) -> Type:
        """The type of `value.attr`."""
        kind = self.type(node.value)
        if not isinstance(kind, Objects):
            return "unknown" if kind == "unknown" else "foreign"
        return join(attribute(self.program, name, node.attr.value) for name in sorted(kind.names))

    def called(self, node: cst.Call) -> Type:
        """The type of what a call gives."""
        targets = self.targets(node)
        if targets is None:
            return "unknown"
        if not targets:
            # What torch or Python make of lists of ours is taken for a list of ours.
            if isinstance(node.func, cst.Name) and node.func.value in ("list", "tuple", "reversed"):
                return Items(self.element(node.args[0].value)) if node.args else Items("foreign")
            if dotted(node.func) == "nn.ModuleList" and node.args:
                return self.type(node.args[0].value)
            return "foreign"
        return join(returned(self.program, key) for key in targets)

    def targets(self, node: cst.Call) -> tuple[Key, ...] | None:
        """The functions of the program that a call may reach; None where that cannot be said."""
        func = node.func
        if isinstance(func, cst.Name) and func.value not in self.locals:
            if func.value in self.program.classes:
                return ((func.value, "__init__"),)
            return (("", func.value),) if ("", func.value) in self.program.functions else ()
        if isinstance(func, cst.Attribute):
            kind = self.type(func.value)
            if isinstance(kind, Objects):
                return self._methods(kind, func)
            return None if kind == "unknown" else ()
        return _forwards(self.type(func))

    def _methods(self, kind: Objects, func: cst.Attribute) -> tuple[Key, ...] | None:
        reached: list[Key] = []
        for name in sorted(kind.names):
            if (name, func.attr.value) in self.program.functions:
                reached.append((name, func.attr.value))
                continue
            more = _forwards(attribute(self.program, name, func.attr.value))
            if more is None:
                return None
            reached.extend(more)
        return tuple(reached)


def _forwards(kind: Type) -> tuple[Key, ...] | None:
    if kind == "unknown":
        return None
    return tuple((n, "forward") for n in sorted(kind.names)) if isinstance(kind, Objects) else ()


def _element(kind: Type) -> Type:
    if isinstance(kind, Items):
        return kind.item
    return join(kind.items) if isinstance(kind, Together) else kind


def _spread(target: cst.BaseExpression, kind: Type) -> Iterable[tuple[str, Type]]:
    """Each name that an assignment to `target` binds, with its type."""
    if isinstance(target, cst.Name):
        yield target.value, kind
    elif isinstance(target, cst.Tuple | cst.List):
        for index, element in enumerate(target.elements):
            columns = kind.items if isinstance(kind, Together) else ()
            whole = len(columns) == len(target.elements)
            yield from _spread(element.value, columns[index] if whole else _element(kind))


def attribute(program: Program, owner: str, name: str) -> Type:
    """The type of an attribute of a class."""
    class_ = program.classes[owner]
    if name in class_.facts:
        return class_.facts[name].type
    field = class_.fields().get(name)
    if field is not None:
        return annotated(field.annotation.annotation, program)
    method = program.functions.get((owner, name))
    if method is not None and "property" in method.decorators:
        return returned(program, method.key)
    return _assigned(program, class_, name) if class_.form == "plain" else "foreign"


def _assigned(program: Program, class_: Class, name: str) -> Type:
    """The type of an attribute that a plain class sets in its constructor."""
    constructor = program.functions.get((class_.name, "__init__"))
    if constructor is None:
        return "unknown"
    typist = Typist(constructor, program)
    for node in every(constructor.node, cst.AnnAssign, cst.Assign):
        if isinstance(node, cst.AnnAssign):
            if dotted(node.target) == f"self.{name}":
                return annotated(node.annotation.annotation, program)
        elif dotted(node.targets[0].target) == f"self.{name}":
            return typist.type(node.value)
    return "foreign"


def returned(program: Program, key: Key) -> Type:
    """The type of what a function gives."""
    if key[1] == "__init__":
        return Objects(frozenset({key[0]}))
    function = program.functions.get(key)
    if function is None or function.node.returns is None:
        return "unknown"
    return annotated(function.node.returns.annotation, program)

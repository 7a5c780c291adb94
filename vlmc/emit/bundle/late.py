"""Packages that are imported when they are first used, so that an engine needs its own alone."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace

from vlmc.emit.bundle.portion import Portion, Unportable, bound

PRESENT = ("numpy", "PIL", "tokenizers")
"""Packages that every engine needs."""

ABSENT = """\
except ModuleNotFoundError as error:
    package = {"PIL": "Pillow"}.get(error.name or "", error.name)
    sentence = f"the package {package} is missing: pip install {package}"
    if "--json" in sys.argv:
        import json

        print(json.dumps({"version": 1, "error": sentence, "exit": 3}))
    else:
        print(f"error: {sentence}", file=sys.stderr)
    sys.exit(3)"""
"""What a file does without one of them."""

DEFINITIONS = '''\
class _Late:
    """A package that is imported when it is first used: each engine needs its own alone."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self.name), attribute)


def _when_called(decorator: Callable[[], Callable[[Any], Any]]) -> Callable[[Any], Any]:
    """A decorator of such a package, applied when the function is first called."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        made = functools.cache(lambda: decorator()(function))
        return functools.wraps(function)(lambda *given, **named: made()(*given, **named))

    return decorate
'''
NEEDED = ("import functools", "import importlib", "from collections.abc import Callable")
"""What they import."""


def is_late(line: str, present: Sequence[str] = PRESENT) -> bool:
    """Whether an import is of a package that one engine alone may need."""
    return any(one not in present and one not in sys.stdlib_module_names for one in _imported(line))


def is_present(line: str, present: Sequence[str] = PRESENT) -> bool:
    """Whether an import is of a package that every engine needs."""
    return any(one in present for one in _imported(line))


def _imported(line: str) -> list[str]:
    """The packages of an import."""
    (node,) = ast.parse(line).body
    if isinstance(node, ast.ImportFrom):
        return [(node.module or "").split(".")[0]]
    assert isinstance(node, ast.Import)
    return [alias.name.split(".")[0] for alias in node.names]


def stand_ins(lines: Iterable[str]) -> list[str]:
    """What stands for packages at run time. Names out of them are there for types alone.

    Raises Unportable for a module within a package.
    """
    made: list[str] = []
    for line in lines:
        for name, whole in _packages(line):
            if "." in whole:
                raise Unportable(f"{line}: import it in the function that needs it")
            made.append(f'{name} = _Late("{whole}")')
    return made


def deferring(portion: Portion, present: Sequence[str] = PRESENT) -> Portion:
    """The module with its decorators out of late packages applied at the first call.

    Raises Unportable where importing the module itself would use such a package.
    """
    late = [line for line in portion.imports if is_late(line, present)]
    if not late:
        return portion
    packages = {name for line in late for name, _ in _packages(line)}
    out_of_them = {name for line in late for name, _ in bound(line)} - packages
    code = _decorated_later(portion.body, packages)
    tree = ast.parse(code)
    for name in _used(tree, at_once=True) & packages:
        raise Unportable(f"{portion.name}: {name} is used when the file is read, not when it runs")
    for name in _used(tree, at_once=False) & out_of_them:
        raise Unportable(f"{portion.name}: {name} is there for types alone; name its package")
    return replace(portion, body=code)


def _packages(line: str) -> Sequence[tuple[str, str]]:
    """What `import` binds, with the package that each name stands for."""
    (node,) = ast.parse(line).body
    if not isinstance(node, ast.Import):
        return ()
    return [(alias.asname or alias.name.split(".")[0], alias.name) for alias in node.names]


def _decorated_later(text: str, packages: set[str]) -> str:
    """The code with decorators out of `packages` put off."""
    lines = text.splitlines(keepends=True)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            for one in node.decorator_list:
                words = ast.unparse(one)
                if words.split(".")[0] in packages:
                    first, last = one.lineno - 1, one.end_lineno or one.lineno
                    start = lines[first][: one.col_offset]
                    lines[first:last] = [f"{start}_when_called(lambda: {words})\n"] + [""] * (
                        last - first - 1
                    )
    return "".join(lines)


def _used(tree: ast.AST, *, at_once: bool) -> set[str]:
    """Names that code reads, but for those in annotations; only what runs when the file is read
    where `at_once`."""
    found: set[str] = set()
    pending = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Name):
            found.add(node.id)
        for field, value in ast.iter_fields(node):
            inner = isinstance(node, ast.FunctionDef | ast.Lambda) and field == "body"
            if field in ("annotation", "returns") or (inner and at_once):
                continue
            children = value if isinstance(value, list) else [value]  # pyright: ignore
            pending += [one for one in children if isinstance(one, ast.AST)]  # pyright: ignore
    return found

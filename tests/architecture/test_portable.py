"""What a build takes along runs without vlmc, and fits into one file."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from vlmc.runtime.portable import PORTABLE

ALLOWED = {*sys.stdlib_module_names, "numpy", "PIL", "tokenizers"}
OWN = {
    "vlmc.runtime.engines.eager_engine": {"torch"},
    "vlmc.runtime.engines.torch_engine": {"torch"},
    "vlmc.runtime.engines.mapped_weights": {"torch"},
    "vlmc.runtime.engines.aoti_program": {"torch"},
    "vlmc.runtime.engines.one_query": {"torch"},
    "vlmc.runtime.engines.compiled_program": {"torch"},
}
"""What engines need beyond."""


def tree(module: str) -> ast.Module:
    found = find_spec(module)
    assert found is not None
    assert found.origin is not None
    return ast.parse(Path(found.origin).read_text(encoding="utf-8"))


def imported(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.ImportFrom):
        return [statement.module or ""]
    return [a.name for a in statement.names] if isinstance(statement, ast.Import) else []


def test_portable_modules_import_what_is_there_and_what_stands_before_them() -> None:
    before: set[str] = set()
    for module in PORTABLE:
        for statement in tree(module).body:
            for name in imported(statement):
                if name.startswith("vlmc"):
                    assert name in before, f"{module} imports {name}, which is not before it"
                else:
                    package = name.split(".")[0]
                    assert package in ALLOWED | OWN.get(module, set()), f"{module}: {name}"
        before.add(module)


def defined(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return [statement.name]
    if isinstance(statement, ast.Assign):
        return [t.id for t in statement.targets if isinstance(t, ast.Name)]
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
        return [statement.target.id]
    return []


def test_their_names_are_unique() -> None:
    owners: dict[str, str] = {}
    for module in PORTABLE:
        for statement in tree(module).body:
            for name in defined(statement):
                assert name not in owners, f"{name} is in {owners[name]} and in {module}"
                owners[name] = module


def test_a_session_is_made_without_torch_and_pydantic() -> None:
    code = (
        "import sys\n"
        "import vlmc.runtime.assemble, vlmc.runtime.command\n"
        "absent = ('torch', 'pydantic', 'yaml', 'onnxruntime', 'safetensors', 'jinja2')\n"
        "print([name for name in absent if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

"""What a command imports: validation must not wait for torch or numpy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ALLOWED = {
    "annotated_doc",
    "annotated_types",
    "pydantic",
    "pydantic_core",
    "shellingham",
    "typer",
    "typing_extensions",
    "typing_inspection",
    "vlmc",
    "yaml",
}
"""Every distribution that `vlmc validate` may import."""

PROGRAM = """
import json, sys
from vlmc.commands import app
try:
    app(["validate", *sys.argv[1:]], standalone_mode=True)
except SystemExit as end:
    assert not end.code, end.code
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""


def imported(*specs: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-S", "-c", "import site; site.main()\n" + PROGRAM, *specs],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_validate_imports_neither_torch_nor_numpy_nor_anything_unlisted(root: Path) -> None:
    names = imported(str(root / "specs" / "flamingo.yaml"))
    # Names with an underscore belong to the interpreter's own start and to extension modules.
    third_party = {
        name
        for name in names - sys.stdlib_module_names
        if not name.startswith(("_", "cython_runtime"))
        and name not in ("sitecustomize", "usercustomize")
    }
    assert third_party <= ALLOWED, sorted(third_party - ALLOWED)
    assert not names & {"torch", "numpy", "rich", "safetensors", "PIL", "tokenizers"}


def test_importing_the_package_costs_nothing() -> None:
    program = "import sys, vlmc; print('torch' in sys.modules or 'pydantic' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False", done.stderr


def test_imports_point_one_way(root: Path) -> None:
    """The layers and walls of pyproject.toml, by import-linter."""
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout

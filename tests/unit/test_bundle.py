"""One file out of many modules: what it keeps, what it leaves out, what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vlmc.emit.bundle.bundle import bundled
from vlmc.emit.bundle.portion import Unportable, portion

FIRST = '''"""Numbers.

And more of them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vlmc.runtime.second import doubled

LIMIT = math.floor(2.5)  # stays
"""Said of the limit."""


def total(numbers: Sequence[float]) -> float:
    from vlmc.runtime.second import doubled

    import fractions

    return float(fractions.Fraction(doubled(sum(numbers))))
'''

SECOND = '''"""Doubling."""

from __future__ import annotations

import absent_package as package
from absent_package import Thing
import math

from vlmc.runtime.first import LIMIT


def doubled(number: float) -> float:
    return math.floor(number) * LIMIT


class Engine:
    limit: Thing

    @package.decorator(thing=1)
    def start(self, thing: Thing) -> Thing | None:
        return package.started(thing)
'''


def bundle(first: str = FIRST, second: str = SECOND, closing: str = "") -> str:
    parts = (portion("vlmc.runtime.first", first), portion("vlmc.runtime.second", second))
    return bundled("About it.", parts, closing)


def run(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    (folder / "run.py").write_text(text)
    command = [sys.executable, folder / "run.py"]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")


def test_the_file_runs_without_its_modules(tmp_path: Path) -> None:
    done = run(tmp_path, bundle(closing='print(total([1, 2]), "vlmc" in sys.modules)'))
    assert done.stdout == "6.0 False\n", done.stderr


def test_docstrings_become_headings_and_comments_stay() -> None:
    text = bundle()
    assert text.startswith('"""About it.')
    assert "# Numbers.\n#\n# And more of them.\n# ---" in text
    assert "LIMIT = math.floor(2.5)  # stays" in text
    assert "vlmc" not in text
    assert text.count("import math") == 1


def test_the_same_text_every_time() -> None:
    assert bundle() == bundle()


PACKAGE = """
class Thing:
    pass


def decorator(thing):
    return lambda function: lambda *given: ("decorated", function(*given))


def started(thing):
    return thing
"""


def test_a_package_of_one_engine_is_imported_when_it_is_used(tmp_path: Path) -> None:
    assert run(tmp_path, bundle(closing="Engine()")).stderr == ""
    use = "print(Engine().start(3), Engine().start(4), Engine.start.__name__)"
    assert "No module named 'absent_package'" in run(tmp_path, bundle(closing=use)).stderr
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/absent_package.py").write_text(PACKAGE)
    use = f"sys.path.append(str(Path(__file__).parent / 'elsewhere'))\n{use}"
    done = run(tmp_path, bundle(closing=use))
    assert done.stdout == "('decorated', 3) ('decorated', 4) start\n", done.stderr


def test_a_folder_beside_it_is_no_package(tmp_path: Path) -> None:
    (tmp_path / "numpy").mkdir()
    (tmp_path / "numpy/__init__.py").write_text("raise SystemExit('shadowed')")
    first = FIRST.replace("import math\n", "import math\n\nimport numpy as np\n")
    first = first.replace("return float(", "return np.float64(")
    assert run(tmp_path, bundle(first, closing="print(total([1]))")).stdout == "2.0\n"


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("def doubled", "def total", "total is defined in vlmc.runtime.first and in"),
        ("def doubled", "def math", "vlmc.runtime.first imports math, but"),
        ("import math", "import numpy as math", "math is math and, in vlmc.runtime.second, numpy"),
        ("import LIMIT", "import LIMIT as MOST", "LIMIT has one name in one file"),
        ("from vlmc.runtime.first import LIMIT", "import vlmc.runtime.first", "import the names"),
        ("from vlmc.runtime.first import", "from .first import", "a relative import"),
        ("runtime.first import", "runtime.third import", "which is not before it"),
        ("import LIMIT", "import ABSENT", "takes ABSENT from vlmc.runtime.first"),
        ("def doubled", "def sum", "sum is defined twice, or is a builtin"),
        ("import math", "import math; most = 1", "an import has a line of its own"),
        ("import absent_package as package", "import absent.package", "in the function that"),
        ("limit: Thing", "limit = package.most", "package is used when the file is read"),
        ("class Engine", "class Engine(package.Base)", "package is used when the file is read"),
        ("started(thing)", "started(Thing)", "Thing is there for types alone"),
    ],
)
def test_what_would_mean_something_else_in_one_file_is_refused(
    old: str, new: str, reason: str
) -> None:
    assert SECOND.count(old) == 1
    with pytest.raises(Unportable, match=reason):
        bundle(second=SECOND.replace(old, new))

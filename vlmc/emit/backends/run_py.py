"""run.py: what answers questions about images by a build's artifacts, where vlmc is not installed.

The portable modules of the runtime as one file, with the description of the design in it.
"""

from __future__ import annotations

import textwrap
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from vlmc.emit.bundle.bundle import bundled
from vlmc.emit.bundle.portion import Portion, portion
from vlmc.emit.inline.layout import LINE_LENGTH
from vlmc.ir import Arch
from vlmc.runtime.describe import describe
from vlmc.runtime.design import Design
from vlmc.runtime.portable import PORTABLE
from vlmc.spec.document import ModelSpec


def source(spec: ModelSpec, arch: Arch) -> str:
    """The text of run.py: the same for the same design on any machine."""
    design = describe(spec, arch)
    return bundled(_header(design), _portions(), _closing(design))


@cache
def _portions() -> tuple[Portion, ...]:
    """The parts of the file, read once in a process."""
    return tuple(portion(module, _text(module)) for module in PORTABLE)


def _text(module: str) -> str:
    spec = find_spec(module)
    assert spec is not None, module
    assert spec.origin is not None, module
    return Path(spec.origin).read_text(encoding="utf-8")


def _header(design: Design) -> str:
    twin = ", the laptop-size twin" if design.mini else ""
    about = (
        f"Answers about images with {design.name}{twin}: Python 3.11 or newer, numpy, Pillow, "
        f"tokenizers, and what the engine needs (onnx: onnxruntime; eager, compile, aoti: torch)."
    )
    return "\n".join((*textwrap.wrap(about, LINE_LENGTH - 3), "", *_USE))


_USE = """\
    python run.py --engine onnx --image picture.png --prompt "What is in the picture?"

It reads the artifacts beside it: onnx/, aoti/, compile/, or model.py and weights/.\
""".splitlines()


def _closing(design: Design) -> str:
    rule = "# " + "-" * (LINE_LENGTH - 2)
    return f"""\
{rule}
# The design of this build.
{rule}

DESIGN = {design!r}

if __name__ == "__main__":
    sys.exit(main(DESIGN, Path(__file__).resolve().parent))
"""

"""parallel/train.py: what trains a build on many devices, where vlmc is not installed."""

from __future__ import annotations

import textwrap
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from vlmc.emit.bundle.bundle import bundled
from vlmc.emit.bundle.portion import Portion, portion
from vlmc.emit.inline.layout import LINE_LENGTH
from vlmc.emit.parallel.parts_of import parts_of
from vlmc.ir import Arch
from vlmc.runtime.parallel.modules import PACKAGES, TRAINING
from vlmc.spec.document import ModelSpec

PATH = "parallel/train.py"


def source(spec: ModelSpec, arch: Arch) -> str:
    """The text of train.py: the same for the same design on any machine."""
    twin = ", the laptop-size twin" if arch.mini else ""
    about = f"Trains {arch.name}{twin} as a plan says: Python 3.11 or newer, torch, PyYAML."
    header = "\n".join((*textwrap.wrap(about, LINE_LENGTH - 3), "", *_USE))
    rule = "# " + "-" * (LINE_LENGTH - 2)
    closing = f"""\
{rule}
# The design of this build.
{rule}

PARTS = {parts_of(spec, arch)!r}

if __name__ == "__main__":
    sys.exit(train_main(PARTS, Path(__file__).resolve().parent.parent))
"""
    return bundled(header, _portions(), closing, present=PACKAGES)


@cache
def _portions() -> tuple[Portion, ...]:
    """The parts of the file, read once in a process."""
    return tuple(portion(module, _text(module)) for module in TRAINING)


def _text(module: str) -> str:
    spec = find_spec(module)
    assert spec is not None, module
    assert spec.origin is not None, module
    return Path(spec.origin).read_text(encoding="utf-8")


_USE = """\
    torchrun --nproc-per-node 4 parallel/train.py --plan plan.yaml --data train.jsonl --steps 100

It reads model.py and weights/ in the folder above. A line of the data holds input_ids (with an
image token for each image, or none: then images come first), labels where they are not the words
themselves, and pixel_values: the name of a safetensors file beside it that holds pixel_values
[images, ...] as the design's processor makes them. --save leaves a checkpoint that
--resume goes on from, under any plan of this design.\
""".splitlines()

"""The partial evaluator behind model.py, on small pieces of code."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import libcst as cst
import pytest

from tests.conftest import ROOT
from vlmc.emit.backends.model_py import source
from vlmc.emit.inline.inline import definition, reduced
from vlmc.emit.inline.layout import formatted
from vlmc.emit.inline.literals import literal, value_of
from vlmc.emit.inline.program import Fact, Objects, Program
from vlmc.emit.inline.simplify import simplify
from vlmc.emit.inline.specialise import define
from vlmc.ir import Arch
from vlmc.resolver import resolve
from vlmc.spec.loader import load


def program(text: str, public: tuple[str, ...] = ("main",)) -> Program:
    """A program of some definitions."""
    result = Program()
    for node in cst.parse_module(textwrap.dedent(text)).body:
        assert isinstance(node, cst.BaseStatement)
        define(result, node)
    for name in public:
        result.functions["", name].public = True
    return result


def folded(body: str, **constants: object) -> str:
    """The body of a function once `constants` are known in it."""
    inside = textwrap.indent(textwrap.dedent(body).strip(), "    ")
    text = f"def main(x: Tensor, other: Tensor | None):\n{inside}\n"
    result = program(text)
    function = result.functions["", "main"]
    function.constants.update(constants)  # type: ignore[arg-type]
    simplify(function, result)
    lines = formatted(cst.Module([function.node]).code).splitlines()[1:]
    return textwrap.dedent("\n".join(lines)).strip()


@pytest.mark.parametrize(
    ("body", "constants", "expected"),
    [
        ("if flag:\n    return 1\nelse:\n    return 2", {"flag": True}, "return 1"),
        ("if flag:\n    return 1\nreturn 2", {"flag": True}, "return 1"),
        ("if flag:\n    return 1\nreturn 2", {"flag": False}, "return 2"),
        (
            'if kind == "a":\n    return 1\nelif kind == "b":\n    return 2\nraise ValueError',
            {"kind": "b"},
            "return 2",
        ),
        (
            'if x:\n    return 1\nelif kind == "b":\n    return 2\nelse:\n    return 3',
            {"kind": "b"},
            "if x:\n    return 1\nelse:\n    return 2",
        ),
        (
            "if x:\n    return 1\nelif flag:\n    return 2\nelif other:\n    return 3",
            {"flag": False},
            "if x:\n    return 1\nelif other:\n    return 3",
        ),
        ("return x if width is None else width", {"width": None}, "return x"),
        ("return 1 if x is None else 2", {}, "return 2"),
        ("return (x + other if flag else x) * 2", {"flag": True}, "return (x + other) * 2"),
        ("return flag and x", {"flag": True}, "return x"),
        ("return flag or x", {"flag": True}, "return True"),
        ("return other is None and flag", {"flag": True}, "return other is None"),
        ("return x and flag", {"flag": True}, "return x and True"),
        ("return not flag", {"flag": False}, "return True"),
        ("return (size // patch) ** 2 + 1", {"size": 336, "patch": 14}, "return 577"),
        ("return x * dim**-0.5", {"dim": 64}, "return x * 0.125"),
        ("return x * dim**-0.5", {"dim": 128}, "return x * 128**-0.5"),
        ("return (x + offset) * scale", {"offset": 0, "scale": 1}, "return x"),
        ("return x[: max(layers)]", {"layers": (3, 7)}, "return x[:7]"),
        ("return [x[i] for i in layers]", {"layers": (7,)}, "return [x[7]]"),
        ('return f"{width} of {x}"', {"width": 8}, 'return f"8 of {x}"'),
        ("return base**x", {"base": -1}, "return (-1) ** x"),
        ("size = 2 * 3\nreturn x + size", {}, "return x + 6"),
        ("unread = x.exp()\nreturn x", {}, "return x"),
        ("unread = x.exp_()\nreturn x", {}, "unread = x.exp_()\nreturn x"),
        ("inner = x\nx = x + f(inner)\nreturn x", {}, "return x + f(x)"),
        (
            "inner = x\nx = x + 2\nreturn x * inner",
            {},
            "inner = x\nx = x + 2\nreturn x * inner",
        ),
        ("for i, y in enumerate(x):\n    f(y)", {}, "for y in x:\n    f(y)"),
        (
            "if other is None:\n    y = 1\nelse:\n    y = x\n    f(x)",
            {},
            "if other is not None:\n    f(x)",
        ),
        ("chosen = [x[7]]\nreturn chosen[0] + 1", {}, "return x[7] + 1"),
        (
            "chosen = [x[7]]\nf(x)\nreturn chosen[0] + 1",
            {},
            "chosen = [x[7]]\nf(x)\nreturn chosen[0] + 1",
        ),
        ("# Why.\nif flag:\n    f(x)", {"flag": True}, "# Why.\nf(x)"),
        ("return nn.Linear(x, other, bias=flag)", {"flag": True}, "return nn.Linear(x, other)"),
        (
            "sizes = (1, 2, 3)\nreturn sizes[x] + sizes[0] + len(sizes)",
            {},
            "return (1, 2, 3)[x] + 1 + 3",
        ),
        (
            "sizes = (1, 2, 3)\nreturn sizes[x] + sizes[other]",
            {},
            "sizes = (1, 2, 3)\nreturn sizes[x] + sizes[other]",
        ),
    ],
)
def test_known_values_fold(body: str, constants: dict[str, object], expected: str) -> None:
    assert folded(body, **constants) == expected


@pytest.mark.parametrize(
    "value",
    [None, True, 3, -4, 1e-5, 0.5, -2.5, "it's", 'a "b"', "\\n", (), (1,), ((1, "a"), None)],
)
def test_a_literal_is_its_value(value: object) -> None:
    node = literal(value)  # type: ignore[arg-type]
    assert repr(value_of(node)) == repr(value)
    assert repr(eval(cst.Module([]).code_for_node(node))) == repr(value)


def text_of(result: Program) -> str:
    """The text of a reduced program."""
    reduced(result, set())
    names = [*result.classes, *(name for owner, name in result.functions if not owner)]
    code = [cst.Module([]).code_for_node(definition(result, name)).strip() for name in names]
    return "\n".join(code)


def test_a_parameter_that_every_call_gives_one_value_becomes_it() -> None:
    text = text_of(
        program(
            """
            def scaled(x: Tensor, *, by: int, mask: Tensor | None = None, unread: int) -> Tensor:
                return x * by if mask is None else x * mask

            def main(x: Tensor, y: Tensor) -> Tensor:
                return scaled(x, by=2, unread=3) + scaled(y, by=2, mask=None, unread=1)
            """
        )
    )
    assert "def scaled(x: Tensor) -> Tensor:\n    return x * 2" in text
    assert "return scaled(x) + scaled(y)" in text


def test_a_parameter_that_varies_stays() -> None:
    text = text_of(
        program(
            """
            def scaled(x: Tensor, by: int) -> Tensor:
                return x * by

            def main(x: Tensor) -> Tensor:
                return scaled(x, 2) + scaled(x, 3)
            """
        )
    )
    assert "def scaled(x: Tensor, by: int)" in text
    assert "return scaled(x, 2) + scaled(x, 3)" in text


def test_a_function_that_is_handed_on_keeps_its_parameters() -> None:
    text = text_of(
        program(
            """
            def scaled(x: Tensor, by: int = 2) -> Tensor:
                return x * by

            def main(x: Tensor) -> Tensor:
                return run(scaled, scaled(x, 2))
            """
        )
    )
    assert "def scaled(x: Tensor, by: int = 2)" in text


def test_a_method_is_found_through_the_types_of_attributes() -> None:
    result = program(
        """
        class Inner(nn.Module):
            def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
                return x if mask is None else x * mask

            def unused(self) -> None: ...

        class Outer(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = Inner()
                self.cross = None
                self.width = 3

            def forward(self, x: Tensor) -> Tensor:
                if self.cross is not None:
                    x = self.cross(x)
                return self.inner(x, None)

        def main() -> Outer:
            return Outer()
        """
    )
    result.functions["Outer", "forward"].public = True
    facts = result.classes["Outer"].facts
    facts["inner"] = Fact(present=True, type=Objects(frozenset({"Inner"})))
    facts["cross"] = Fact(value=None, plain=True, type="foreign")
    facts["width"] = Fact(value=3, present=True, plain=True, type="foreign")
    text = text_of(result)
    assert "def forward(self, x: Tensor) -> Tensor:\n        return x\n" in text
    assert "return self.inner(x)" in text
    for gone in ("cross", "width", "unused", "mask"):
        assert gone not in text


def test_none_that_no_call_gives_leaves_the_annotation() -> None:
    text = text_of(
        program(
            """
            def turned(x: Tensor, angle: Tensor | None = None) -> Tensor:
                if angle is not None:
                    x = x * angle
                return x

            def main(x: Tensor, y: Tensor) -> Tensor:
                return turned(x, torch.cos(y)) + turned(y, y)
            """
        )
    )
    assert "def turned(x: Tensor, angle: Tensor) -> Tensor:\n    x = x * angle" in text


def arch_of(name: str, *, mini: bool = False) -> Arch:
    return resolve(load(ROOT / "specs" / f"{name}.yaml").spec(), mini=mini)


def test_parts_that_differ_in_form_get_classes_of_their_own() -> None:
    text = source(arch_of("llava-1.5"))
    assert "class EncoderNorm(nn.Module)" in text
    assert "class LanguageNorm(nn.Module)" in text
    assert "EncoderTransformerBlock() for _ in range(24)" in text
    for gone in ("self.kind", "self.cross", "pre_norm:", "repeat_interleave", "if True", "vlmc."):
        assert gone not in text
    assert " if False" not in text


def test_what_varies_within_a_class_stays_a_parameter() -> None:
    text = source(arch_of("blip2"))
    assert "class Norm(nn.Module)" in text
    assert "def __init__(self, *, width: int, eps: float) -> None:" in text
    assert "self.heads != self.kv_heads" not in text


def test_emitted_text_passes_the_house_rules() -> None:
    ruff = Path(sys.executable).with_name("ruff")
    for name in ("llava-1.5", "flamingo", "blip2-flan-t5", "visualbert"):
        done = subprocess.run(
            [ruff, "check", "--no-cache", "--config", ROOT / "pyproject.toml", "-"],
            input=source(arch_of(name)),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout


def test_the_text_does_not_depend_on_the_order_of_hashes() -> None:
    digests = set()
    names = ("blip2-flan-t5",)
    code = (
        "import hashlib, sys; from tests.unit.test_inline import arch_of, source;"
        f"t = ''.join(source(arch_of(n)) for n in {names!r});"
        "print(hashlib.sha256(t.encode()).hexdigest())"
    )
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(done.stdout.strip())
    here = "".join(source(arch_of(n)) for n in names)
    assert digests == {hashlib.sha256(here.encode()).hexdigest()}

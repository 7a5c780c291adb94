"""A diagnostic stands where its user wrote the fault: right file, line and columns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vlmc.diagnostics import Diagnostic, SpecError, UsageError
from vlmc.diagnostics.render import excerpt, terminal
from vlmc.resolver import check, flow
from vlmc.spec import load

TAIL = "adapter: mlp\nlanguage: vicuna-7b-v1.5\n"


def diagnose(folder: Path, text: str, *overrides: str, **bases: str) -> list[Diagnostic]:
    for name, base in bases.items():
        (folder / f"{name}.yaml").write_text(base, encoding="utf-8")
    path = folder / "spec.yaml"
    path.write_text(text, encoding="utf-8")
    try:
        draft = load(path, overrides)
    except SpecError as error:
        return list(error.diagnostics)
    return draft.diagnostics(check(flow(draft.sections)))


def fault(diagnostic: Diagnostic) -> str:
    """The characters that a diagnostic points at."""
    span = diagnostic.span
    return span.text[span.column - 1 : span.end_column - 1]


@pytest.mark.parametrize(
    ("text", "pointed"),
    [
        ("encoder: {preset: clip-vit-l-14-336, heads: 15}\n", "15"),
        ("encoder:\n  preset: clip-vit-l-14-336\n  heads:   15 # odd\n", "15"),
        ("encoder: {preset: clip-vit-l-14-336, 'headz': 15}\n", "'headz'"),
        ("encoder: {preset: clip-vit-l-14-336, about: größe, headz: 15}\n", "about"),
        ("encoder: {preset: clip-vit-l-14-336, features: {layer: [-2, 99]}}\n", "["),
        ("encoder: {preset: clip-vit-l-14-336, frozen: }\n", "frozen"),
        ("encoder:\n  kind: vit\n  image_size: 32\n", "encoder"),
    ],
)
def test_the_value_or_the_key_is_pointed_at(text: str, pointed: str, tmp_path: Path) -> None:
    assert fault(diagnose(tmp_path, text + TAIL)[0]) == pointed


@pytest.mark.parametrize(
    ("text", "code", "pointed"),
    [
        # heads come from the preset, the width is written: the width is at fault
        ("encoder: {preset: clip-vit-l-14-336, width: 1000}\n", "VLMC101", "1000"),
        ("encoder: {preset: clip-vit-l-14-336, image_size: 340}\n", "VLMC105", "340"),
        ("encoder: {preset: clip-vit-l-14-336, patch_size: 15}\n", "VLMC105", "15"),
        (
            "encoder:\n  preset: clip-vit-l-14-336\n  layers: 2\n  features: {layer: 9}\n",
            "VLMC106",
            "9",
        ),
    ],
)
def test_of_two_values_the_written_one_is_pointed_at(
    text: str, code: str, pointed: str, tmp_path: Path
) -> None:
    (found,) = diagnose(tmp_path, text + TAIL)
    assert (found.code, fault(found)) == (code, pointed)


def test_a_preset_value_at_fault_stands_at_the_name_of_the_preset(tmp_path: Path) -> None:
    (found,) = diagnose(
        tmp_path,
        "encoder: clip-vit-l-14-336\nadapter: mlp\nlanguage: vicuna-7b-v1.5\n"
        "fusion: {kind: gated_cross_attention, every: 33}\n",
    )
    assert (found.code, fault(found)) == ("VLMC114", "33")
    (found,) = diagnose(
        tmp_path,
        "encoder: clip-vit-l-14-336\nadapter: identity\nlanguage: vicuna-7b-v1.5\n",
    )
    assert (found.code, fault(found)) == ("VLMC123", "adapter")


def test_a_default_at_fault_stands_at_its_section(tmp_path: Path) -> None:
    text = "encoder: clip-vit-l-14-336\n" + TAIL + "target:\n  hardware: t4\n"
    found = {d.code: d.span.line for d in diagnose(tmp_path, text)}
    assert found["VLMC151"] == 4


def test_what_a_base_says_wrong_stands_in_the_base(tmp_path: Path) -> None:
    base = "# a base\nencoder: {preset: clip-vit-l-14-336, heads: 15}\n" + TAIL
    found = diagnose(tmp_path, "extends: base.yaml\nadapter: mpl\n", base=base)
    assert [(Path(d.span.file).name, d.span.line, d.code) for d in found] == [
        ("spec.yaml", 2, "VLMC015"),
        ("base.yaml", 2, "VLMC101"),
    ]


def test_what_a_derived_spec_says_wrong_stands_in_it(tmp_path: Path) -> None:
    base = "encoder: clip-vit-l-14-336\n" + TAIL
    (found,) = diagnose(tmp_path, "extends: base.yaml\nencoder:\n  heads: 15\n", base=base)
    assert (Path(found.span.file).name, found.span.line, fault(found)) == ("spec.yaml", 3, "15")


def test_faults_of_the_text_of_both_files_are_reported(tmp_path: Path) -> None:
    base = "encoder: clip-vit-l-14-336\n" + TAIL + "adapter: linear\n"
    found = diagnose(tmp_path, "extends: base.yaml\nabout: x\nabout: y\n", base=base)
    assert [(Path(d.span.file).name, d.span.line) for d in found] == [
        ("spec.yaml", 3),
        ("base.yaml", 4),
    ]
    broken = diagnose(tmp_path, "extends: base.yaml\nabout: x\nabout: y\n", base="a: [")
    assert [(Path(d.span.file).name, d.code) for d in broken] == [
        ("spec.yaml", "VLMC003"),
        ("base.yaml", "VLMC002"),
    ]


@pytest.mark.parametrize(
    ("override", "code", "pointed"),
    [
        ("encoder.heads=15", "VLMC101", "15"),
        ("encoder.headz=15", "VLMC010", "encoder.headz"),
        ("adapter=mpl", "VLMC015", "mpl"),
        ("target={hardware: h1000}", "VLMC150", "{hardware: h1000}"),
        ("encoder.frozen=no", "VLMC011", "no"),
        ("encoder.heads=[1", "VLMC002", "["),
        ("encoder.frozen=", "VLMC011", ""),
    ],
)
def test_an_override_at_fault_is_shown_itself(
    override: str, code: str, pointed: str, tmp_path: Path
) -> None:
    found = diagnose(tmp_path, "encoder: clip-vit-l-14-336\n" + TAIL, override)[0]
    assert (found.code, found.span.file, found.span.text) == (code, "--set", override)
    assert fault(found) == pointed


@pytest.mark.parametrize("override", ["heads", "=3", ".=3", "a..b=1", ""])
def test_an_override_of_no_form_is_a_wrong_command(override: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"key\.path=value"):
        diagnose(tmp_path, "encoder: clip-vit-l-14-336\n" + TAIL, override)


@pytest.mark.parametrize(
    ("line", "fault_text", "before"),
    [
        ("a: {größe: 1, headz: 2}", "headz", 14),
        ("a: {図: 1, headz: 2}", "headz", 11),  # a wide character fills two cells
        ("a: {e\u0301: 1, headz: 2}", "headz", 10),  # a combining one fills none
        ("a:\t{b: 1, headz: 2}", "headz", 13),  # a tab is shown as four spaces
    ],
)
def test_the_caret_stands_below_the_fault(
    line: str, fault_text: str, before: int, tmp_path: Path
) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(f"encoder: clip-vit-l-14-336\nadapter: mlp\nlanguage: vicuna-7b-v1.5\n{line}\n")
    found = next(d for d in load(path).diagnostics() if d.span.line == 4)
    column = line.index(fault_text) + 1
    span = replace(found.span, column=column, end_column=column + len(fault_text))
    assert excerpt(span)[1:] == (before, len(fault_text))


def test_a_long_line_is_cut_around_the_fault(tmp_path: Path) -> None:
    folder = "y" * 5000
    text = f"encoder: {{preset: clip-vit-l-14-336, weights: {folder}, z: 1, cls: true}}\n"
    (found,) = diagnose(tmp_path, text + TAIL)
    shown = terminal([found])
    assert max(map(len, shown.splitlines())) < 160
    lines = shown.splitlines()
    caret = next(i for i, line in enumerate(lines) if set(line) <= set(" |^") and "^" in line)
    column = lines[caret].index("^")
    assert lines[caret - 1][column] == "z"


@pytest.mark.parametrize(
    ("bases", "message"),
    [
        ({"base": "extends: spec.yaml\n"}, "in a circle: spec.yaml -> base.yaml -> spec.yaml"),
        ({}, "there is no such file"),
    ],
)
def test_extends_that_leads_nowhere(bases: dict[str, str], message: str, tmp_path: Path) -> None:
    (found,) = diagnose(tmp_path, "extends: base.yaml\n" + TAIL, **bases)
    assert found.code == "VLMC016"
    assert message in found.message
    assert fault(found) in ("base.yaml", "spec.yaml")


@pytest.mark.parametrize("value", ["3", "[a.yaml]", "", "'  '", '"\\0"', "."])
def test_extends_names_a_file(value: str, tmp_path: Path) -> None:
    assert [d.code for d in diagnose(tmp_path, f"extends: {value}\n" + TAIL)] == ["VLMC016"]


def test_a_chain_of_extends_is_bounded(tmp_path: Path) -> None:
    bases = {f"b{i}": f"extends: b{i + 1}.yaml\n" for i in range(40)}
    (found,) = diagnose(tmp_path, "extends: b0.yaml\n", **bases)
    assert found.code == "VLMC016"


BASE = """\
name: base
encoder: clip-vit-l-14-336
adapter: {kind: mlp, layers: 3}
fusion: {kind: placeholder, token: 5}
language: {preset: vicuna-7b-v1.5, frozen: true}
target: a100-80gb
"""


@pytest.mark.parametrize(
    ("text", "section", "field", "value"),
    [
        ("encoder: {frozen: true}", "encoder", "frozen", True),
        ("encoder: {frozen: true}", "encoder", "patch_size", 14),
        ("adapter: {activation: relu}", "adapter", "layers", 3),
        ("adapter: {kind: linear}", "adapter", "layers", 1),
        ("adapter: linear", "adapter", "layers", 1),
        ("fusion: {point: late}", "fusion", "token", 5),
        ("fusion: late", "fusion", "token", None),
        ("language: {preset: opt-2.7b}", "language", "frozen", False),
        ("language: opt-2.7b", "language", "frozen", False),
        ("language: {layers: 2}", "language", "frozen", True),
        ("target: {count: 2}", "target", "count", 2),
        ("encoder: {kind: nfnet, preset: nfnet-f6}", "encoder", "kind", "nfnet"),
    ],
)
def test_a_derived_section_keeps_or_starts_anew(
    text: str, section: str, field: str, value: object, tmp_path: Path
) -> None:
    (tmp_path / "base.yaml").write_text(BASE)
    path = tmp_path / "child.yaml"
    path.write_text(f"extends: base.yaml\n{text}\n")
    draft = load(path)
    assert getattr(draft.sections[section], field) == value
    assert draft.sections["name"] == "child"


@pytest.mark.parametrize(
    ("below", "above", "gone"),
    [
        # the kind of the base is its preset's
        ("clip-vit-l-14-336", "{kind: regions, count: 4, width: 32}", "patch_size"),
        ("{preset: clip-vit-l-14-336, heads: 8}", "nfnet-f6", "heads"),
        # fields written out in the base are not those of the preset above
        ("{image_size: 32, patch_size: 8, width: 64, layers: 2, heads: 2, hidden: 64}",
         "{preset: clip-vit-l-14-336}", None),
    ],
)  # fmt: skip
def test_another_kind_or_preset_leaves_nothing_of_the_base(
    below: str, above: str, gone: str | None, tmp_path: Path
) -> None:
    (tmp_path / "base.yaml").write_text(f"encoder: {below}\n" + TAIL)
    path = tmp_path / "child.yaml"
    path.write_text(f"extends: base.yaml\nencoder: {above}\n")
    draft = load(path)
    assert draft.problems == []
    encoder = draft.sections["encoder"]
    assert not hasattr(encoder, gone) if gone else encoder.width == 1024

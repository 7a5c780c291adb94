"""Every trap of YAML has a clear answer, in bounded time."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from vlmc.diagnostics import Diagnostic, SpecError, UsageError
from vlmc.spec import load
from vlmc.spec.reader import core_scalar, plain, read, read_text

GOOD = "encoder: clip-vit-l-14-336\nadapter: mlp\nlanguage: vicuna-7b-v1.5\n"


def faults(text: str) -> list[Diagnostic]:
    try:
        return read(text, "spec.yaml").faults
    except SpecError as error:
        return list(error.diagnostics)


def diagnose(text: str | bytes, folder: Path) -> list[Diagnostic]:
    path = folder / "spec.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    try:
        return load(path).diagnostics()
    except SpecError as error:
        return list(error.diagnostics)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("-7", -7),
        ("0o14", 12),
        ("0x1F", 31),
        ("014", 14),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("", None),
        ("12:30:45", "12:30:45"),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("2024-01-01", "2024-01-01"),
        ("-.inf", float("-inf")),
        ("=", "="),
        ("9" * 400, int("9" * 400)),
        ("9" * 401, "9" * 401),
    ],
)
def test_scalars_are_read_as_yaml_1_2_reads_them(text: str, value: object) -> None:
    assert core_scalar(text) == value
    assert type(core_scalar(text)) is type(value)


@pytest.mark.parametrize(
    ("line", "help_"),
    [
        ("encoder: {preset: clip-vit-l-14-336, frozen: no}", "frozen: false"),
        ("encoder: {preset: clip-vit-l-14-336, frozen: Yes}", "frozen: true"),
        ("encoder: {preset: clip-vit-l-14-336, cls: 'off'}", "cls: false"),
        ("encoder: {preset: clip-vit-l-14-336, heads: '16'}", "heads: 16"),
        ("encoder: {preset: clip-vit-l-14-336, width: 1_024}", "width: 1024"),
        ("encoder: {preset: clip-vit-l-14-336, width: '1,024'}", "width: 1024"),
        ("encoder: {preset: clip-vit-l-14-336, width: 1024.0}", "width: 1024"),
        ("encoder: {preset: clip-vit-l-14-336, width: 1e3}", "width: 1000"),
        ("encoder: {preset: clip-vit-l-14-336, heads: true}", "heads: 1"),
        ("encoder: {preset: clip-vit-l-14-336, norm_eps: '1e-5'}", "norm_eps: 1e-5"),
        ("encoder: {preset: clip-vit-l-14-336, layers: 12:30:45}", None),
        (
            "encoder: {preset: clip-vit-l-14-336, width: " + "9" * 500 + "}",
            "a smaller number",
        ),
        ("encoder: {preset: clip-vit-l-14-336, norm_eps: .nan}", None),
        (
            "encoder: {preset: clip-vit-l-14-336, norm_eps: }",
            "delete `norm_eps`, or give it a value",
        ),
    ],
)
def test_a_value_of_the_wrong_type_is_told_how_to_be_written(
    line: str, help_: str | None, tmp_path: Path
) -> None:
    found = diagnose(f"{line}\nadapter: mlp\nlanguage: vicuna-7b-v1.5\n", tmp_path)
    wrong = [d for d in found if d.code == "VLMC011"]
    assert [(d.help, d.span.line) for d in wrong] == [(help_, 1)]


@pytest.mark.parametrize(
    ("text", "code", "place"),
    [
        ("a: b\0c\n", "VLMC001", (1, 5)),
        ("a: \x1b[31m\n", "VLMC001", (1, 4)),
        ("a: b: c\n", "VLMC002", (1, 5)),
        ("a: 'b\n", "VLMC002", (2, 1)),
        ("a: [1, 2\nb: 3\n", "VLMC002", (2, 2)),
        ("a:\n    b: 1\n  c: 2\n", "VLMC002", (3, 3)),
        ("a: *b\n", "VLMC002", (1, 4)),
        ("a: &a [*a]\n", "VLMC002", (1, 8)),
        ("a: 1\nb: 2\na: 3\n", "VLMC003", (3, 1)),
        ("1: a\n'1': b\n", "VLMC003", (2, 1)),
        ("a: 1\r\nb:\r\n  c: 1\r\n  c: 2\r\n", "VLMC003", (4, 3)),
        ("[" * 100_000, "VLMC005", (1, 65)),
        ("{a: " * 100_000, "VLMC005", (1, 254)),
        ("? " * 100_000, "VLMC005", (1, 129)),
        ("- " * 100_000, "VLMC005", (1, 129)),
        ("[" + "1," * 400_000 + "]", "VLMC006", (1, 100_000)),
        ("a:\n\tb: 1\n", "VLMC007", (2, 1)),
        ("a:\n  b: 1\n\tc: 1\n", "VLMC007", (3, 1)),
        ("a: !!python/object:os.system {x: 1}\n", "VLMC008", (1, 4)),
        ("a: !!int '5'\n", "VLMC008", (1, 4)),
        ("a: &a {x: 1}\nb: {<<: *a}\n", "VLMC008", (2, 5)),
        ("a: 1\n---\nb: 2\n", "VLMC008", (2, 1)),
        ("[a]: 1\n", "VLMC008", (1, 1)),
    ],
)
def test_a_text_that_is_not_a_plain_document(text: str, code: str, place: tuple[int, int]) -> None:
    begun = time.process_time()
    found = faults(text)
    assert time.process_time() - begun < 1
    assert [(d.code, (d.span.line, d.span.column)) for d in found] == [(code, place)]
    assert found[0].expected
    assert found[0].help


def test_aliases_of_aliases_are_bounded() -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    for former, name in zip("abcdefgh", "bcdefghi", strict=True):
        lines.append(f"{name}: &{name} [{', '.join([f'*{former}'] * 10)}]")
    begun = time.process_time()
    assert [d.code for d in faults("\n".join(lines))] == ["VLMC006"]
    assert time.process_time() - begun < 1


def test_an_alias_is_its_value() -> None:
    assert plain(read("a: &x {b: 1}\nc: *x\n", "f").tree) == {"a": {"b": 1}, "c": {"b": 1}}


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "\n\n"])
def test_an_empty_file_lacks_its_sections(text: str, tmp_path: Path) -> None:
    found = diagnose(text, tmp_path)
    assert {d.code for d in found} <= {"VLMC008", "VLMC013"}
    assert found


@pytest.mark.parametrize("text", ["hello", "- a\n- b\n", "42", "'x'"])
def test_a_document_that_is_no_mapping(text: str, tmp_path: Path) -> None:
    assert [d.code for d in diagnose(text, tmp_path)] == ["VLMC008"]


def test_a_byte_order_mark_and_crlf_are_no_fault(tmp_path: Path) -> None:
    assert diagnose(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode(), tmp_path) == []


@pytest.mark.parametrize(
    ("data", "place", "got"),
    [
        (b"name: a\nabout: caf\xe9\n", (2, 11), "the byte 0xe9 at offset 18"),
        ("about: é".encode() + b"\xff", (1, 9), "the byte 0xff at offset 9"),
        ("name: x".encode("utf-16"), (1, 1), "UTF-16 (its byte order mark)"),
    ],
)
def test_bytes_that_are_not_utf_8(
    data: bytes, place: tuple[int, int], got: str, tmp_path: Path
) -> None:
    (found,) = diagnose(data, tmp_path)
    assert (found.code, (found.span.line, found.span.column), found.got) == ("VLMC001", place, got)


def test_a_file_of_100_mb_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.yaml"
    with path.open("wb") as file:
        file.truncate(100_000_000)
    begun = time.process_time()
    with pytest.raises(SpecError) as caught:
        read_text(path)
    assert time.process_time() - begun < 1
    (found,) = caught.value.diagnostics
    assert (found.code, found.got) == ("VLMC004", "100,000,000 bytes")


def test_a_file_that_cannot_be_read_is_a_wrong_command(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path, tmp_path / ("x" * 300), Path("a\0b")):
        with pytest.raises(UsageError):
            read_text(path)


def test_every_fault_of_a_file_is_reported_at_once(tmp_path: Path) -> None:
    text = (
        "schema: 2\n"
        "encoder: {preset: clip-vit-l-14-336, heads: 15, frozen: no}\n"
        "encoder: vit\n"
        "adaptor: mlp\n"
        "adapter: {kind: mlp, layers: 0}\n"
        "language: vicuna\n"
        "language: !!str x\n"
        "target: {hardware: t4, precision: bf61}\n"
    )
    found = [(d.span.line, d.code) for d in diagnose(text, tmp_path)]
    assert found == [
        (1, "VLMC017"),
        (2, "VLMC101"),
        (2, "VLMC011"),
        (3, "VLMC003"),
        (4, "VLMC010"),
        (5, "VLMC012"),
        (6, "VLMC014"),
        (7, "VLMC003"),
        (7, "VLMC008"),
        (8, "VLMC012"),
    ]

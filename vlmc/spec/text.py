"""From the bytes of a spec file to its text: size, encoding and stray characters."""

from __future__ import annotations

import re
import stat
from pathlib import Path as FilePath

from vlmc.diagnostics import Diagnostic, Span, SpecError, UsageError

MAX_BYTES = 1_000_000
MAX_STRAY = 20
"""Stray characters that are reported of one file: a binary file is full of them."""

BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
"""Where the YAML parser begins a new line."""

_STRAY = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]")
"""What YAML does not allow."""
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


def read_text(path: FilePath) -> str:
    """The text of a spec file, without a byte order mark.

    Reads no more than the largest spec may hold. Raises UsageError where the file cannot be read,
    SpecError with VLMC004 where it is too large and VLMC001 where it is not UTF-8.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise UsageError(f"{path} is not a regular file")  # reading a pipe may never end
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        size = status.st_size
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such file") from None
    except IsADirectoryError:
        raise UsageError(f"{path} is a folder, not a spec file") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"{path}: cannot be read: {reason}") from None
    if len(data) > MAX_BYTES:
        raise SpecError(
            [
                Diagnostic(
                    code="VLMC004",
                    message="the file is too large to be a spec",
                    span=Span(file=str(path), line=1, column=1, end_column=2),
                    expected=f"at most {MAX_BYTES:,} bytes",
                    got=f"{max(size, len(data)):,} bytes",
                    help="a spec describes a design; weights belong into a checkpoint folder",
                )
            ]
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecError([_undecodable(data, error.start, str(path))]) from None


def _undecodable(data: bytes, offset: int, file: str) -> Diagnostic:
    before = data[:offset].decode("utf-8-sig", errors="replace")
    lines = BREAK.split(before)
    rest = BREAK.split(data[offset : offset + 200].decode("utf-8", errors="replace"))[0]
    column = len(lines[-1]) + 1
    wide = data.startswith(_UTF_16)
    return Diagnostic(
        code="VLMC001",
        message="the file is not UTF-8 text",
        span=Span(
            file=file,
            line=len(lines),
            column=column,
            end_column=column + 1,
            text="" if wide else lines[-1] + rest,
        ),
        expected="UTF-8",
        got="UTF-16 (its byte order mark)"
        if wide
        else f"the byte 0x{data[offset]:02x} at offset {offset}",
        help="save the file again as UTF-8",
    )


def stray_characters(text: str, lines: list[str], file: str) -> list[Diagnostic]:
    """A VLMC001 for each character that no YAML text may hold, such as NUL."""
    if _STRAY.search(text) is None:
        return []
    found: list[Diagnostic] = []
    for number, line in enumerate(lines, start=1):
        for match in _STRAY.finditer(line):
            column = match.start() + 1
            found.append(
                Diagnostic(
                    code="VLMC001",
                    message="the file holds a control character",
                    span=Span(
                        file=file, line=number, column=column, end_column=column + 1, text=line
                    ),
                    expected="printable text",
                    got=f"U+{ord(match[0]):04X}",
                    help="delete the character",
                )
            )
            if len(found) == MAX_STRAY:
                return found
    return found

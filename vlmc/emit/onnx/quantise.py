"""Weights in 8 or 4 bits, in the form of ONNX Runtime's MatMulNBits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlmc.builder.stream import Streamed
from vlmc.emit.onnx.external import Initializer

BLOCKS = {8: 128, 4: 32}
"""By bits, how many weights share a scale: a row's neighbours along its inputs. With 32, scales are
an eighth of what is read of 8-bit weights, and ONNX Runtime multiplies 28 billion of them a second
instead of 38; in 4 bits larger blocks cost accuracy that there is none to spare of."""
SMALLEST_BLOCK = 32


def block_of(inputs: int, bits: int) -> int:
    """The largest block that fits rows of `inputs` weights."""
    block = BLOCKS[bits]
    while block > SMALLEST_BLOCK and inputs % block:
        block //= 2
    return block


@dataclass(frozen=True, slots=True)
class Packed:
    """A matrix [outputs, inputs] as constants of a graph."""

    codes: Initializer
    """[outputs, blocks, bytes of a block]"""
    scales: Initializer
    """[outputs, blocks]"""
    bits: int
    block: int
    """Weights that share a scale."""


def pack(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes [outputs, blocks, bytes] and scales [outputs, blocks] of weights [outputs, inputs].

    A weight is (code - 2 ** (bits - 1)) * scale. The scale has the sign that lets the largest
    weight of a block have the code 0, since there is one code more below the middle than above it.
    Codes of 4 bits lie two in a byte, the first in its lower half; the last block is filled up with
    zeros.
    """
    outputs, inputs = weight.shape
    block = block_of(inputs, bits)
    middle = 2 ** (bits - 1)
    blocks = -(-inputs // block)
    padded = torch.nn.functional.pad(weight.float(), (0, blocks * block - inputs))
    padded = padded.view(outputs, blocks, block)
    largest = padded.gather(2, padded.abs().argmax(dim=2, keepdim=True))
    scales = largest / -middle
    steps = torch.where(scales == 0, 0.0, 1.0 / scales)
    codes = (padded * steps).round_().add_(middle).clamp_(0, 2 * middle - 1).to(torch.uint8)
    if bits == 4:
        codes = codes[..., 0::2] | (codes[..., 1::2] << 4)
    return codes, scales[..., 0].contiguous()


class Quantiser:
    """Collects the matrices of graphs that are to be quantised, for one file.

    `read` gives the values of a weight by its name. A matrix is read when it is written.
    """

    def __init__(self, bits: int, location: str, read: Callable[[str], Tensor]) -> None:
        self.bits = bits
        self.location = location
        self.read = read
        self.shapes: dict[tuple[str, ...], tuple[int, int]] = {}
        self._last: tuple[tuple[str, ...], tuple[Tensor, Tensor]] | None = None

    def __call__(self, weights: tuple[str, ...], shape: Sequence[int]) -> Packed | None:
        """The quantised form of a matrix of `weights`, joined along their outputs; None of what is
        no such matrix."""
        if not weights or len(shape) != 2:
            return None
        outputs, inputs = shape
        block = block_of(inputs, self.bits)
        self.shapes[weights] = (outputs, inputs)
        blocks = -(-inputs // block)
        stem = f"{'+'.join(weights)}.int{self.bits}"
        return Packed(
            codes=Initializer(
                name=stem,
                format="U8",
                shape=(outputs, blocks, block * self.bits // 8),
                location=self.location,
            ),
            scales=Initializer(
                name=f"{stem}.scales",
                format="F32",
                shape=(outputs, blocks),
                location=self.location,
            ),
            bits=self.bits,
            block=block,
        )

    def streamed(self) -> list[Streamed]:
        """Every matrix, to be written one at a time."""
        found: list[Streamed] = []
        for weights, shape in self.shapes.items():
            packed = self(weights, shape)
            assert packed is not None
            codes, scales = packed.codes, packed.scales
            read = self._reader(weights)
            found += [
                Streamed(codes.name, torch.uint8, codes.shape, lambda read=read: read()[0]),
                Streamed(scales.name, torch.float32, scales.shape, lambda read=read: read()[1]),
            ]
        return found

    def _reader(self, weights: tuple[str, ...]) -> Callable[[], tuple[Tensor, Tensor]]:
        def read() -> tuple[Tensor, Tensor]:
            if self._last is None or self._last[0] != weights:
                parts = [self.read(name) for name in weights]
                matrix = parts[0] if len(parts) == 1 else torch.cat(parts)
                self._last = (weights, pack(matrix, self.bits))
            return self._last[1]

        return read

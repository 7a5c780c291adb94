"""Polynomials from values at a few sizes, exactly."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import lcm
from operator import mul

from vlmc.analysis.polynomial import Monomial, Polynomial

Point = Mapping[str, int]


class NotPolynomial(AssertionError):
    """Values that the basis does not explain: a mistake of vlmc, never of its user."""


class Fit:
    """Finds the polynomial over `basis` that takes given values at `points`.

    There is one point more than the basis has monomials: it is not fitted, it tests the fit, for
    every value that is ever asked for. Sizes are drawn at random from `least` to `most`, unlike
    each other, so that no extent of one kind is taken for another's; with `above` the first of two
    is more than the second. `substitute` says what symbols of the basis mean in others.
    """

    def __init__(
        self,
        basis: Sequence[Monomial],
        *,
        substitute: Mapping[str, Polynomial],
        above: tuple[str, str] | None = None,
        least: int = 3,
        most: int = 40,
    ) -> None:
        self.basis = tuple(basis)
        self.substitute = substitute
        names = sorted({name for monomial in basis for name, _ in monomial})
        draw = random.Random(0)
        while True:
            self.points: list[Point] = []
            while len(self.points) <= len(self.basis):
                sizes = draw.sample(range(least, most), len(names))
                point = dict(zip(names, sizes, strict=True))
                if above is None or point[above[0]] > point[above[1]]:
                    self.points.append(point)
            inverse = _inverse([self._row(point) for point in self.points[:-1]])
            if inverse is not None and len({tuple(p.values()) for p in self.points}) > len(basis):
                break
        # In whole numbers over one denominator: fractions are slow to add.
        self._denominator = lcm(*(one.denominator for row in inverse for one in row))
        self._inverse = [[int(one * self._denominator) for one in row] for row in inverse]
        self._last = self._row(self.points[-1])
        self._known: dict[tuple[int, ...], Polynomial] = {}

    def __call__(self, values: Sequence[int]) -> Polynomial:
        """The polynomial with these values at `points`. Raises NotPolynomial where there is none
        over the basis."""
        key = tuple(values)
        if key not in self._known:
            self._known[key] = self._fitted(key)
        return self._known[key]

    def _fitted(self, values: tuple[int, ...]) -> Polynomial:
        if len(set(values)) == 1:
            return Polynomial.constant(values[0])
        *known, held_out = values
        scaled = [sum(map(mul, row, known)) for row in self._inverse]
        if sum(map(mul, self._last, scaled)) != held_out * self._denominator:
            raise NotPolynomial(f"{values} at {self.points} over {self.basis}")
        coefficients = (Fraction(one, self._denominator) for one in scaled)
        found = Polynomial.of(dict(zip(self.basis, coefficients, strict=True)))
        for name, meaning in self.substitute.items():
            found = found.substitute(name, meaning)
        return found

    def _row(self, point: Point) -> list[int]:
        row: list[int] = []
        for monomial in self.basis:
            value = 1
            for name, power in monomial:
                value *= point[name] ** power
            row.append(value)
        return row


def _inverse(matrix: Sequence[Sequence[int]]) -> list[list[Fraction]] | None:
    """The inverse of a square matrix by exact elimination; None where it has none."""
    size = len(matrix)
    rows = [
        [Fraction(x) for x in row] + [Fraction(int(i == j)) for j in range(size)]
        for i, row in enumerate(matrix)
    ]
    for column in range(size):
        pivot = next((r for r in range(column, size) if rows[r][column]), None)
        if pivot is None:
            return None
        rows[column], rows[pivot] = rows[pivot], rows[column]
        scale = rows[column][column]
        rows[column] = [x / scale for x in rows[column]]
        for other in range(size):
            factor = rows[other][column]
            if other != column and factor:
                rows[other] = [
                    a - factor * b for a, b in zip(rows[other], rows[column], strict=True)
                ]
    return [row[size:] for row in rows]

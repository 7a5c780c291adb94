"""Exact polynomials in the sizes of a batch: what a cost is before the sizes are known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

Monomial = tuple[tuple[str, int], ...]
"""Symbols with their powers, in alphabetical order: (("batch", 1), ("text", 2))."""


@dataclass(frozen=True, slots=True)
class Polynomial:
    """A sum of monomials with rational coefficients. Symbols are `batch` (sequences), `text` (text
    tokens of each), `images` (images of each), `tokens` (visual tokens of an image), `answer` (text
    tokens of each that an encoder-decoder's decoder reads when it serves)."""

    terms: tuple[tuple[Monomial, Fraction], ...] = ()
    """In the order of their monomials, none with the coefficient 0."""

    @classmethod
    def constant(cls, value: int | Fraction) -> Polynomial:
        """A number."""
        return cls.of({(): Fraction(value)})

    @classmethod
    def symbol(cls, name: str) -> Polynomial:
        """A size."""
        return cls.of({((name, 1),): Fraction(1)})

    @classmethod
    def of(cls, terms: Mapping[Monomial, Fraction]) -> Polynomial:
        """From coefficients."""
        return cls(tuple(sorted((m, c) for m, c in terms.items() if c)))

    def __add__(self, other: Polynomial | int | Fraction) -> Polynomial:
        terms = dict(self.terms)
        for monomial, coefficient in _polynomial(other).terms:
            terms[monomial] = terms.get(monomial, Fraction(0)) + coefficient
        return self.of(terms)

    def __mul__(self, other: Polynomial | int | Fraction) -> Polynomial:
        terms: dict[Monomial, Fraction] = {}
        for one, first in self.terms:
            for two, second in _polynomial(other).terms:
                powers = dict(one)
                for name, power in two:
                    powers[name] = powers.get(name, 0) + power
                monomial = tuple(sorted(powers.items()))
                terms[monomial] = terms.get(monomial, Fraction(0)) + first * second
        return self.of(terms)

    def __sub__(self, other: Polynomial | int | Fraction) -> Polynomial:
        return self + _polynomial(other) * -1

    __radd__ = __add__
    __rmul__ = __mul__

    def __call__(self, **sizes: int) -> Fraction:
        """The value at `sizes`. Raises KeyError for a symbol that is not among them."""
        total = Fraction(0)
        for monomial, coefficient in self.terms:
            value = coefficient
            for name, power in monomial:
                value *= sizes[name] ** power
            total += value
        return total

    def substitute(self, name: str, value: Polynomial) -> Polynomial:
        """With `value` in the place of a symbol."""
        result = ZERO
        for monomial, coefficient in self.terms:
            rest = tuple(factor for factor in monomial if factor[0] != name)
            product = Polynomial.of({rest: coefficient})
            for _ in range(dict(monomial).get(name, 0)):
                product = product * value
            result = result + product
        return result

    def __iter__(self) -> Iterator[tuple[Monomial, Fraction]]:
        return iter(self.terms)

    def __str__(self) -> str:
        return " + ".join(_written(m, c) for m, c in reversed(self.terms)) or "0"


def _polynomial(value: Polynomial | int | Fraction) -> Polynomial:
    return value if isinstance(value, Polynomial) else Polynomial.constant(value)


def _written(monomial: Monomial, coefficient: Fraction) -> str:
    factors = [name if power == 1 else f"{name}^{power}" for name, power in monomial]
    number = f"{coefficient.numerator:,}" + (
        "" if coefficient.denominator == 1 else f"/{coefficient.denominator}"
    )
    return " ".join([number, *factors] if coefficient != 1 or not factors else factors)


ZERO = Polynomial()

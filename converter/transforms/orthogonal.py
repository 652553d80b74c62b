"""Orthogonal matrices that spread every input over all outputs: randomised Hadamard matrices.

A Hadamard matrix of order n has entries of one magnitude, so an outlier of size 1 becomes n values
of 1 / sqrt(n). Orders are 2^k times that of a Paley matrix. Where n has no such factor, a Hartley
matrix (cosine plus sine of the Fourier transform), which exists for every n and whose entries are
at most sqrt(2 / n), takes the odd factor's place. Random signs in front, the same everywhere for
one seed, keep structured inputs from meeting the matrix's own structure.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["Rotation", "hadamard_factors"]

Matrix = NDArray[np.float64]


class Rotation:
    """An orthogonal Q [size, size] = diag(signs) (A x B), never held whole.

    kind: hadamard | hartley.
    """

    def __init__(self, size: int, *, seed: int) -> None:
        self.size = size
        self.kind, self._left, self._right = _factors(size)
        # Raw bits of the generator, which no release of NumPy changes.
        bits = np.random.PCG64(seed).random_raw(size) >> np.uint64(63)
        self._signs = 1.0 - 2.0 * bits.astype(np.float64)

    def apply(self, x: NDArray[np.floating]) -> Matrix:
        """x [rows, size] times Q, in float64."""
        a, b = len(self._left), len(self._right)
        signed = x.astype(np.float64) * self._signs
        inner = signed.reshape(-1, b) @ self._right
        return (self._left.T @ inner.reshape(-1, a, b)).reshape(len(x), self.size)


def _factors(size: int) -> tuple[str, Matrix, Matrix]:
    """kind, A and B, orthogonal."""
    found = hadamard_factors(size)
    if found:
        a, b = found
        return "hadamard", a / math.sqrt(len(a)), b / math.sqrt(len(b))
    power = size & -size
    odd = size // power
    angles = (np.outer(np.arange(odd), np.arange(odd)) % odd) * (2 * np.pi / odd)
    hartley = (np.cos(angles) + np.sin(angles)) / math.sqrt(odd)
    return "hartley", hartley, _sylvester(power) / math.sqrt(power)


def hadamard_factors(size: int) -> tuple[Matrix, Matrix] | None:
    """Two matrices of ones and minus ones whose Kronecker product is a Hadamard matrix of this
    order; None where none is known here."""
    power = size & -size
    if power == size:
        half = 1 << (size.bit_length() // 2)
        return _sylvester(half), _sylvester(size // half)
    order = size // power
    while order <= size:
        paley = _paley(order)
        if paley is not None:
            return paley, _sylvester(size // order)
        order *= 2
    return None


def _sylvester(order: int) -> Matrix:
    matrix: Matrix = np.ones((1, 1))
    while len(matrix) < order:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def _paley(order: int) -> Matrix | None:
    """Paley's two constructions, over the residues modulo a prime q: order q + 1 where q leaves 3
    modulo 4, and 2 (q + 1) where it leaves 1."""
    if order % 4 == 0 and _is_prime(order - 1):
        bordered = _residues(order - 1)
        bordered[1:, 0] = -1.0
        return bordered + np.eye(order)
    q = order // 2 - 1
    if order % 4 == 0 and q % 4 == 1 and _is_prime(q):
        ones, identity = np.array([[1.0, 1.0], [1.0, -1.0]]), np.array([[1.0, -1.0], [-1.0, -1.0]])
        return np.kron(_residues(q), ones) + np.kron(np.eye(q + 1), identity)
    return None


def _residues(q: int) -> Matrix:
    """[q + 1, q + 1]: the quadratic character of column minus row, bordered by ones; zero
    diagonal."""
    character = np.full(q, -1.0)
    character[np.arange(1, q) ** 2 % q] = 1.0
    character[0] = 0.0
    index = np.arange(q)
    matrix = np.ones((q + 1, q + 1))
    matrix[0, 0] = 0.0
    matrix[1:, 1:] = character[(index[None, :] - index[:, None]) % q]
    return matrix


def _is_prime(number: int) -> bool:
    return number > 2 and all(number % d for d in range(2, math.isqrt(number) + 1))

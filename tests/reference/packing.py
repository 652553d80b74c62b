"""The layout frag16x128, one bit at a time: for each bit of each code, its address in the file."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

TILE_ROWS = 16
TILE_K = 128
TILE_BITS = TILE_ROWS * TILE_K * 6


def _tile_bit_addresses() -> NDArray[np.int64]:
    """[row, k, bit] -> number of the bit in a tile, counted from bit 0 of byte 0.

    A tile is little-endian 32-bit words; word n of lane l is word (n // 4) * 128 + 4 * l + n % 4.
    """
    row, k, bit = np.meshgrid(np.arange(16), np.arange(128), np.arange(6), indexing="ij")
    kk = k % 32
    step = k // 32
    register = (row >> 3) + 2 * (kk >> 4)
    lane = 4 * (row & 7) + ((kk & 15) >> 2)
    byte = kk & 3
    whole = register < 3  # R0..R2 have a word each; R3 is spread over the low bits of all three
    word = np.where(whole, 3 * step + register, 3 * step + 2 - bit // 2)
    position = np.where(whole, 8 * byte + 2 + bit, 8 * byte + (bit & 1))
    address: NDArray[np.int64] = ((word // 4) * 128 + 4 * lane + word % 4) * 32 + position
    return address


ADDRESSES = _tile_bit_addresses()


def _tiles(n: int, k: int) -> tuple[int, int]:
    return -(-n // TILE_ROWS), -(-k // TILE_K)


def pack_int6(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    n, k = codes.shape
    rows, groups = _tiles(n, k)
    padded = np.zeros((rows * TILE_ROWS, groups * TILE_K), np.uint8)
    padded[:n, :k] = codes.view(np.uint8)
    tiles = padded.reshape(rows, TILE_ROWS, groups, TILE_K).transpose(0, 2, 1, 3)
    bits = (tiles[..., None] >> np.arange(6, dtype=np.uint8)) & 1
    out = np.zeros((rows, groups, TILE_BITS), np.uint8)
    out[..., ADDRESSES] = bits
    return np.packbits(out.reshape(-1), bitorder="little")


def unpack_int6(packed: NDArray[np.uint8], n: int, k: int) -> NDArray[np.int8]:
    rows, groups = _tiles(n, k)
    bits = np.unpackbits(packed, bitorder="little").reshape(rows, groups, TILE_BITS)
    values = (bits[..., ADDRESSES].astype(np.int16) << np.arange(6)).sum(-1)
    values -= 64 * (values >= 32)
    whole = values.transpose(0, 2, 1, 3).reshape(rows * TILE_ROWS, groups * TILE_K)
    return np.ascontiguousarray(whole[:n, :k].astype(np.int8))

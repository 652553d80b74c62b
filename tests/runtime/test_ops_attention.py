"""Rotation, the paged cache and attention: ragged batches, scattered pages, against NumPy."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from flexq_ft import errors
from flexq_ft._native import ops
from tests.reference import ops as reference

DTYPES = list(reference.DTYPES)
PAGE = reference.PAGE


@dataclass
class Batch:
    """Sequences of (context, new tokens) whose pages lie in a shuffled cache of NaN."""

    sequences: list[tuple[int, int]]
    heads: int
    kv_heads: int
    head_dim: int
    dtype: str
    rng: np.random.Generator
    tensors: dict[str, np.ndarray] = field(init=False)
    k: np.ndarray = field(init=False)
    v: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        counts = [-(-(c + t) // PAGE) for c, t in self.sequences]
        order = self.rng.permutation(sum(counts) + 1)
        pages = np.full((len(counts), max(counts, default=0)), -1, np.int32)
        for s, count in enumerate(counts):
            pages[s, :count], order = order[:count], order[count:]
        offsets = np.concatenate([[0], np.cumsum([t for _, t in self.sequences])])
        positions = [c + np.arange(t) for c, t in self.sequences]
        self.tensors = {
            "pages": pages,
            "offsets": offsets.astype(np.int32),
            "positions": np.concatenate([*positions, np.zeros(0)]).astype(np.int32),
            "context": np.array([c for c, _ in self.sequences], np.int32),
        }
        shape = (sum(counts) + 1, self.kv_heads, PAGE, self.head_dim)
        self.k, self.v = (np.full(shape, np.nan, reference.DTYPES[self.dtype]) for _ in range(2))

    def random(self, *shape: int) -> np.ndarray:
        return self.rng.standard_normal(shape).astype(reference.DTYPES[self.dtype])

    def write(self, cache: np.ndarray, s: int, values: np.ndarray) -> None:
        """values [positions, kv_heads, d] from position 0 on."""
        for p, value in enumerate(values):
            cache[self.tensors["pages"][s, p // PAGE], :, p % PAGE] = value

    def read(self, cache: np.ndarray, s: int) -> np.ndarray:
        context, tokens = self.sequences[s]
        page = self.tensors["pages"][s]
        return np.stack([cache[page[p // PAGE], :, p % PAGE] for p in range(context + tokens)])

    def attend(self, q: np.ndarray) -> np.ndarray:
        return ops.attention(q, k=self.k, v=self.v, **self.tensors)


RAGGED = [(0, 1), (0, 7), (15, 1), (16, 1), (31, 3), (0, 40), (129, 17)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"), [(1, 1, 16), (3, 1, 64), (9, 3, 64), (2, 2, 7), (10, 2, 80)]
)
def test_attention_matches(backend, rng, dtype, heads, kv_heads, head_dim):
    batch = Batch(RAGGED, heads, kv_heads, head_dim, dtype, rng)
    tokens = sum(t for _, t in RAGGED)
    q = batch.random(tokens, heads * head_dim)
    want = []
    for s, (context, new) in enumerate(RAGGED):
        k, v = (batch.random(context + new, kv_heads, head_dim) for _ in range(2))
        batch.write(batch.k, s, k)
        batch.write(batch.v, s, v)
        begin = batch.tensors["offsets"][s]
        rows = q[begin : begin + new].reshape(new, heads, head_dim)
        want.append(reference.attention(rows, k, v).reshape(new, -1))
    reference.assert_close(batch.attend(q), np.concatenate(want), dtype=dtype)


def test_attention_of_large_scores_does_not_overflow(backend, rng):
    batch = Batch([(0, 20)], 1, 1, 16, "fp32", rng)
    k, v = batch.random(20, 1, 16) * 100, batch.random(20, 1, 16)
    batch.write(batch.k, 0, k)
    batch.write(batch.v, 0, v)
    q = batch.random(20, 16) * 100
    want = reference.attention(q.reshape(20, 1, 16), k, v).reshape(20, 16)
    np.testing.assert_allclose(batch.attend(q), want, atol=1e-3)


def test_attention_of_nan_is_nan(backend, rng):
    batch = Batch([(0, 20)], 2, 1, 16, "fp32", rng)
    batch.write(batch.k, 0, batch.random(20, 1, 16))
    batch.write(batch.v, 0, batch.random(20, 1, 16))
    q = batch.random(20, 32)
    q[3, 16] = np.nan
    got = batch.attend(q)
    assert np.isnan(got[3, 16:]).all()
    assert np.isfinite(np.delete(got, 3, 0)).all()


@pytest.mark.parametrize("cache", ["k", "v"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("heads", [1, 3, 40])
@pytest.mark.parametrize("poisoned", [1, 15, 16, 30])
def test_a_later_token_that_is_not_finite_does_not_reach_earlier_ones(
    backend, rng, cache, value, heads, poisoned
):
    """The rows of one block see different parts of a page: what is masked is not multiplied."""
    batch = Batch([(0, 40)], heads, 1, 16, "fp32", rng)
    batch.write(batch.k, 0, batch.random(40, 1, 16))
    batch.write(batch.v, 0, batch.random(40, 1, 16))
    q = abs(batch.random(40, heads * 16))
    clean = batch.attend(q)
    getattr(batch, cache)[batch.tensors["pages"][0, poisoned // PAGE], 0, poisoned % PAGE] = value
    got = batch.attend(q)
    np.testing.assert_array_equal(got[:poisoned], clean[:poisoned])
    assert not np.isfinite(got[poisoned:]).any()


def test_an_empty_sequence_beside_others_changes_nothing(backend, rng):
    batch = Batch([(0, 0), (0, 3), (5, 0)], 2, 1, 16, "fp32", rng)
    k, v, q = batch.random(3, 1, 16), batch.random(3, 1, 16), batch.random(3, 32)
    batch.write(batch.k, 1, k)
    batch.write(batch.v, 1, v)
    want = reference.attention(q.reshape(3, 2, 16), k, v).reshape(3, 32)
    reference.assert_close(batch.attend(q), want, dtype="fp32")


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_token_does_not_depend_on_chunks_batch_or_threads(backend, rng, dtype):
    heads, kv_heads, head_dim, length = 9, 3, 64, 77
    k, v = (rng.standard_normal((length, kv_heads, head_dim)) for _ in range(2))
    q = rng.standard_normal((length, heads * head_dim)).astype(reference.DTYPES[dtype])

    def run(context: int, tokens: int, *, beside: int = 0) -> np.ndarray:
        """q rows [context, context + tokens), after `beside` rows of another sequence."""
        sequences = [(0, beside), (context, tokens)] if beside else [(context, tokens)]
        batch = Batch(sequences, heads, kv_heads, head_dim, dtype, np.random.default_rng(1))
        end = context + tokens
        for s, (c, t) in enumerate(sequences):
            batch.write(batch.k, s, k[: c + t].astype(batch.k.dtype))
            batch.write(batch.v, s, v[: c + t].astype(batch.v.dtype))
        rows = np.concatenate([q[:beside], q[context:end]])
        return batch.attend(rows)[beside:]

    whole = run(0, length)
    try:
        for threads in (1, 3):
            ops.set_threads(threads)
            for begin, tokens in [(0, 1), (0, 17), (16, 16), (60, 17), (76, 1), (33, 5)]:
                part = run(begin, tokens, beside=threads * 5)
                np.testing.assert_array_equal(part, whole[begin : begin + tokens])
    finally:
        ops.set_threads(2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(9, 3, 64), (2, 2, 14), (3, 1, 80)])
@pytest.mark.parametrize("rotated", [True, False])
def test_rope_append_rounds_rotates_and_fills_pages(
    backend, rng, dtype, heads, kv_heads, head_dim, rotated
):
    sequences = [(3, 1), (0, 0), (14, 20), (0, 5)]
    batch = Batch(sequences, heads, kv_heads, head_dim, dtype, rng)
    tokens = 26
    qkv = rng.standard_normal((tokens, (heads + 2 * kv_heads) * head_dim)).astype(np.float32)
    table = ops.rope_table(head_dim=head_dim, positions=40)
    q = ops.rope_append(
        qkv, heads=heads, k=batch.k, v=batch.v, rope=table if rotated else None, **batch.tensors
    )
    rounded = qkv.astype(reference.DTYPES[dtype]).astype(np.float64)
    rounded = rounded.reshape(tokens, heads + 2 * kv_heads, head_dim)
    turned = rounded
    if rotated:
        turned = reference.rotate(rounded, table[batch.tensors["positions"]])
    reference.assert_close(q, turned[:, :heads].reshape(tokens, -1), dtype=dtype)
    for s, (context, new) in enumerate(sequences):
        begin = batch.tensors["offsets"][s]
        k, v = (batch.read(c, s)[context:] if new else None for c in (batch.k, batch.v))
        if new:
            part = slice(begin, begin + new)
            reference.assert_close(k, turned[part, heads : heads + kv_heads], dtype=dtype)
            np.testing.assert_array_equal(v.astype(np.float64), rounded[part, heads + kv_heads :])
    written = np.isfinite(batch.k.astype(np.float32)).all((1, 3)).sum()
    assert written == tokens, "something else was written"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(4, 2, 128), (3, 3, 80), (2, 1, 14)])
def test_rotation_rounds_every_product_and_sum_once(backend, rng, dtype, heads, kv_heads, head_dim):
    """Bit for bit, on every device: a key must not depend on where it was computed."""
    batch = Batch([(40, 1), (7, 1), (0, 33)], heads, kv_heads, head_dim, dtype, rng)
    rows = heads + 2 * kv_heads
    qkv = rng.standard_normal((35, rows * head_dim)).astype(np.float32)
    qkv[0, :3] = [-0.0, 0.0, 1e-30]
    table = ops.rope_table(head_dim=head_dim, positions=41)
    got = ops.rope_append(qkv, heads=heads, k=batch.k, v=batch.v, rope=table, **batch.tensors)
    kind = reference.DTYPES[dtype]
    half = head_dim // 2
    x = qkv.astype(kind).astype(np.float32).reshape(35, rows, head_dim)
    a, b = x[..., :half], x[..., half:]
    angles = table[batch.tensors["positions"]][:, None]
    cos, sin = angles[..., :half], angles[..., half:]
    want = np.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(kind)
    assert got.tobytes() == want[:, :heads].tobytes()
    for s, (context, new) in enumerate(batch.sequences):
        part = slice(batch.tensors["offsets"][s], batch.tensors["offsets"][s] + new)
        k, v = (batch.read(cache, s)[context:] for cache in (batch.k, batch.v))
        assert k.tobytes() == want[part, heads : heads + kv_heads].tobytes()
        assert v.tobytes() == x[part, heads + kv_heads :].astype(kind).tobytes()


def test_rope_append_finds_the_sequence_of_every_token(backend, rng):
    """Decodes, empty sequences, and many short ones: each token's K in its own sequence's page."""
    sequences = [(17, 1)] * 5 + [(0, 0)] + [(s % 3, s % 4) for s in range(40)] + [(0, 0), (2, 50)]
    batch = Batch(sequences, 1, 2, 16, "fp32", rng)
    tokens = int(batch.tensors["offsets"][-1])
    qkv = rng.standard_normal((tokens, 5 * 16)).astype(np.float32)
    ops.rope_append(qkv, heads=1, k=batch.k, v=batch.v, **batch.tensors)
    for s, (context, new) in enumerate(sequences):
        if new:
            begin = batch.tensors["offsets"][s]
            rows = qkv[begin : begin + new].reshape(new, 5, 16)
            np.testing.assert_array_equal(batch.read(batch.k, s)[context:], rows[:, 1:3])
            np.testing.assert_array_equal(batch.read(batch.v, s)[context:], rows[:, 3:])
    assert np.isfinite(batch.k).all((1, 3)).sum() == tokens, "something else was written"


@pytest.mark.parametrize(
    ("name", "index", "value", "message"),
    [
        ("pages", (0, 1), 99, "page 1 of sequence 0"),
        ("pages", (0, 0), -1, "page 0 of sequence 0"),
        ("offsets", (1,), 21, "last offset"),
        ("positions", (4,), 9, "position of token 4 of sequence 0"),
        ("context", (0,), 100, "sequence 0"),
    ],
)
def test_a_batch_that_contradicts_itself_touches_no_memory(rng, name, index, value, message):
    batch = Batch([(0, 20)], 1, 1, 8, "fp32", rng)
    batch.tensors[name][index] = value
    with pytest.raises(errors.InternalError, match=message):
        batch.attend(np.zeros((20, 8), np.float32))


def test_position_past_the_rope_table_is_refused(rng):
    batch = Batch([(5, 1)], 1, 1, 8, "fp32", rng)
    with pytest.raises(errors.InternalError, match=r"5 vs 5.*position of token 0"):
        ops.rope_append(
            np.zeros((1, 24), np.float32),
            heads=1,
            k=batch.k,
            v=batch.v,
            rope=ops.rope_table(head_dim=8, positions=5),
            **batch.tensors,
        )


def test_no_tokens_is_a_no_op(backend, rng):
    batch = Batch([(0, 0), (4, 0)], 1, 1, 8, "fp32", rng)
    assert batch.attend(np.zeros((0, 8), np.float32)).shape == (0, 8)

"""What attention on a GPU may get wrong: parts, tiles, padded head sizes, shared heads, codes."""

from __future__ import annotations

import numpy as np
import pytest

from flexq_ft._native import kernels, ops
from tests.reference import ops as reference
from tests.runtime.test_ops_attention import Batch

LENGTHS = [1, 15, 16, 17, 63, 64, 65, 255, 256, 1000, 4097]
DECODES = [(length - 1, 1) for length in LENGTHS]
PREFILLS = [(0, 5), (0, 64), (3, 130), (60, 7), (17, 1), (250, 65)]
SHAPES = [  # heads, kv_heads, head_dim
    (2, 2, 64),
    (2, 1, 80),
    (3, 1, 96),
    (4, 1, 128),
    (7, 1, 128),
    (8, 1, 64),
    (9, 1, 128),
    (2, 1, 256),
    (4, 2, 16),
    (3, 3, 32),
    (2, 1, 200),
    (2, 1, 8),
    (2, 2, 20),
]


class Filled(Batch):
    """A batch whose cache and queries are random."""

    def __init__(self, sequences, heads, kv_heads, head_dim, dtype, *, seed=7):
        super().__init__(sequences, heads, kv_heads, head_dim, dtype, np.random.default_rng(seed))
        self.keys, self.values = [], []
        for s, (context, new) in enumerate(sequences):
            # One sequence's numbers depend on its length alone: so it is the same in every batch.
            self.rng = np.random.default_rng(context + new)
            k, v = (self.random(context + new, kv_heads, head_dim) for _ in range(2))
            self.write(self.k, s, k)
            self.write(self.v, s, v)
            self.keys.append(k)
            self.values.append(v)
        rows = []
        for context, new in sequences:
            self.rng = np.random.default_rng(100 + context + new)
            rows.append(self.random(new, heads * head_dim))
        self.q = np.concatenate(rows)

    def rows(self, s: int) -> slice:
        return slice(*self.tensors["offsets"][s : s + 2])

    def run(self) -> np.ndarray:
        return self.attend(self.q)

    def fused(self, act_bits: int, group: int):
        return ops.fused_attention(
            self.q, k=self.k, v=self.v, **self.tensors, act_bits=act_bits, group=group
        )

    def want(self) -> np.ndarray:
        out = []
        for s, (_, new) in enumerate(self.sequences):
            q = self.q[self.rows(s)].reshape(new, self.heads, self.head_dim)
            out.append(reference.attention(q, self.keys[s], self.values[s]).reshape(new, -1))
        return np.concatenate(out)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), SHAPES)
def test_decode_lengths(device, dtype, heads, kv_heads, head_dim):
    batch = Filled(DECODES, heads, kv_heads, head_dim, dtype)
    reference.assert_close(batch.run(), batch.want(), dtype=dtype)


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), SHAPES)
def test_mixed_batches(device, dtype, heads, kv_heads, head_dim):
    batch = Filled(DECODES[:9] + PREFILLS, heads, kv_heads, head_dim, dtype)
    reference.assert_close(batch.run(), batch.want(), dtype=dtype)


@pytest.mark.parametrize("head_dim", [64, 96, 128])
def test_many_rows_take_larger_tiles_and_give_the_same_bits(device, head_dim):
    heads, length = 32, 1100
    batch = Filled([(0, length)], heads, 8, head_dim, "fp16")
    got = batch.run()
    rows = slice(1030, 1100)
    q = batch.q[rows].reshape(70, heads, head_dim)
    want = reference.attention(q, batch.keys[0], batch.values[0]).reshape(70, -1)
    reference.assert_close(got[rows], want, dtype="fp16")
    part = Filled([(1030, 70)], heads, 8, head_dim, "fp16")
    part.q = batch.q[rows]
    np.testing.assert_array_equal(part.run(), got[rows])


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("cuts", [(64, 128, 256), (2, 130, 299), (127, 129, 131)])
def test_a_prompt_in_chunks_gives_the_same_bits(device, dtype, head_dim, cuts):
    heads, length = 60, 300  # whole in the larger tiles, its chunks in the smaller ones
    whole = Filled([(0, length)], heads, 4, head_dim, dtype)
    want = whole.run()
    for begin, end in zip((0, *cuts), (*cuts, length), strict=True):
        if end - begin == 1:
            continue  # a decode
        chunk = Filled([(begin, end - begin)], heads, 4, head_dim, dtype)
        chunk.write(chunk.k, 0, whole.keys[0][:end])
        chunk.write(chunk.v, 0, whole.values[0][:end])
        chunk.q = whole.q[begin:end]
        np.testing.assert_array_equal(chunk.run(), want[begin:end])


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(2, 2, 128), (7, 1, 80), (4, 1, 256)])
def test_a_sequence_alone_is_the_same_in_a_batch(device, dtype, heads, kv_heads, head_dim):
    sequences = DECODES + PREFILLS
    batch = Filled(sequences, heads, kv_heads, head_dim, dtype)
    together = batch.run()
    for s, sequence in enumerate(sequences):
        if sequence == (17, 1):
            continue  # one token behind others is prefill, alone it is a decode
        alone = Filled([sequence], heads, kv_heads, head_dim, dtype, seed=s)
        np.testing.assert_array_equal(alone.run(), together[batch.rows(s)])


@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (18, 2)])
def test_many_decodes_of_any_lengths(device, heads, kv_heads):
    """More than a warp has lanes, and than a GPU has warps: each has several, or parts of one."""
    lengths = np.random.default_rng(5).integers(1, 700, 300)
    lengths[40] = 5000
    batch = Filled([(int(n) - 1, 1) for n in lengths], heads, kv_heads, 64, "fp16")
    reference.assert_close(batch.run(), batch.want(), dtype="fp16")


@pytest.mark.parametrize("head_dim", [64, 256])
def test_parts_of_more_pages_than_a_warp_has_lanes(device, head_dim):
    """A part's page table is looked up piece by piece, and anew for its ninth query head."""
    lengths = [16384, 40, 16385, 3, 40000]
    batch = Filled([(length - 1, 1) for length in lengths], 9, 1, head_dim, "fp16")
    reference.assert_close(batch.run(), batch.want(), dtype="fp16")


@pytest.mark.parametrize("sequences", [DECODES, PREFILLS])
def test_a_repeated_run_gives_the_same_bits(device, sequences):
    batch = Filled(sequences, 8, 2, 128, "bf16")
    first = batch.run()
    for _ in range(3):
        np.testing.assert_array_equal(batch.run(), first)


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("act_bits", [6, 8])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "group"),
    [
        (4, 2, 128, 512),  # one scale per token
        (4, 2, 128, 128),  # a group is a head
        (4, 2, 64, 128),  # two heads
        (5, 5, 64, 128),  # the last group is half a group
        (3, 1, 80, 128),  # groups cross heads
        (2, 1, 256, 128),
        (2, 1, 96, 96),
        (3, 1, 40, 50),  # not even whole words
    ],
)
def test_codes_are_those_of_the_values(device, dtype, act_bits, heads, kv_heads, head_dim, group):
    batch = Filled(DECODES[:9] + PREFILLS, heads, kv_heads, head_dim, dtype)
    batch.q[3] = 0.0
    values, codes, scales = batch.fused(act_bits, group)
    np.testing.assert_array_equal(values, batch.run())
    want_codes, want_scales = kernels.quantize_activations(values, act_bits=act_bits, group=group)
    np.testing.assert_array_equal(codes, want_codes)
    np.testing.assert_array_equal(scales, want_scales)


@pytest.mark.parametrize("group", [128, 256])
@pytest.mark.parametrize("sequences", [[(20, 1), (9, 1)], [(0, 30), (4, 9)]])
def test_codes_of_nan_and_of_zeros(device, sequences, group):
    batch = Filled(sequences, 2, 1, 128, "fp16")
    batch.q[0, 130] = np.nan  # the second head of the first token
    batch.v[batch.tensors["pages"][1]] = 0.0
    values, codes, scales = batch.fused(8, group)
    assert np.isnan(values[0, 128:].astype(np.float32)).all()
    want_codes, want_scales = kernels.quantize_activations(values, act_bits=8, group=group)
    np.testing.assert_array_equal(codes, want_codes)
    np.testing.assert_array_equal(scales, want_scales)
    assert not scales[batch.rows(1)].any()


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("cache", ["k", "v"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    ("heads", "head_dim", "poisoned"),
    [
        (1, 64, 1),
        (3, 128, 30),
        (2, 80, 63),
        (1, 256, 33),
        (3, 64, 150),
        (3, 128, 127),
        (80, 64, 70),  # the larger tiles
        (80, 128, 190),
    ],
)
def test_what_a_row_does_not_see_may_be_anything(
    device, dtype, cache, value, heads, head_dim, poisoned
):
    """Within a tile of a prompt, where a product with a zero probability would be NaN."""
    batch = Filled([(0, 230)], heads, 1, head_dim, dtype)
    batch.q = abs(batch.q)
    clean = batch.run()
    page = batch.tensors["pages"][0, poisoned // reference.PAGE]
    getattr(batch, cache)[page, 0, poisoned % reference.PAGE] = value
    got = batch.run()
    np.testing.assert_array_equal(got[:poisoned], clean[:poisoned])
    assert not np.isfinite(got[poisoned:].astype(np.float32)).any()


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_large_scores_do_not_overflow(device, dtype):
    batch = Filled([(300, 1), (0, 100)], 2, 1, 128, dtype)
    batch.q = (batch.q * 30).astype(batch.q.dtype)
    batch.k = (batch.k * 30).astype(batch.k.dtype)
    batch.keys = [(k * 30).astype(k.dtype) for k in batch.keys]
    got = batch.run().astype(np.float32)
    np.testing.assert_allclose(got, batch.want(), atol=0.05)

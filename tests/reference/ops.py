"""The runtime's ops in NumPy, float64 inside, and how far an implementation may be from them."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float64]

DTYPES: dict[str, Any] = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}
CALC_DIFF = {"fp16": 1e-6, "bf16": 1e-5}
PAGE = 16


def f64(x: Array) -> Floats:
    return x.astype(np.float64)


def calc_diff(x: Array, y: Array) -> float:
    """1 - 2 <x, y> / (<x, x> + <y, y>): relative, squared, insensitive to single small values."""
    a, b = f64(x).ravel(), f64(y).ravel()
    total = float(a @ a + b @ b)
    return 0.0 if total == 0.0 else 1.0 - 2.0 * float(a @ b) / total


def assert_close(got: Array, want: Array, *, dtype: str) -> None:
    """The limits of docs/numerics.md for an op's output [rows, …] in dtype against float64."""
    assert got.shape == want.shape
    g, w = f64(got), f64(want)
    assert np.isfinite(g).all(), f"{(~np.isfinite(g)).sum()} values are not finite"
    if not g.size:
        return
    if dtype == "fp32":
        error, top = np.abs(g - w).max(), np.abs(w).max()
        assert error <= 1e-5 * top, f"largest error {error} of {top}"
        return
    limit = CALC_DIFF[dtype]
    assert calc_diff(g, w) <= limit, f"calc_diff {calc_diff(g, w)} > {limit}"
    # A row that differs by half a subnormal step of fp16 is as near as it can be.
    rows = [
        calc_diff(a, b) if np.abs(a - b).max() > 2.0**-25 else 0.0
        for a, b in zip(g, w, strict=True)
    ]
    worst = int(np.argmax(rows))
    assert rows[worst] <= 10 * limit, f"row {worst}: calc_diff {rows[worst]} > {10 * limit}"


def rms_norm(x: Array, weight: Array, eps: float) -> Floats:
    v = f64(x)
    return f64(v / np.sqrt((v * v).mean(-1, keepdims=True) + eps) * f64(weight))


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Floats:
    v = f64(x)
    v = v - v.mean(-1, keepdims=True)
    scaled = v / np.sqrt((v * v).mean(-1, keepdims=True) + eps)
    return f64(scaled * f64(weight) + f64(bias))


def activation(x: Array, name: str) -> Floats:
    v = f64(x)
    if name == "relu":
        return np.maximum(v, 0.0)
    if name == "silu":
        return v / (1.0 + np.exp(-v))
    # 0.5 (1 + tanh(u)) = 1 / (1 + exp(-2 u)); tanh would cancel for negative u in float64 too.
    with np.errstate(over="ignore"):
        return f64(v / (1.0 + np.exp(-2.0 * np.sqrt(2.0 / np.pi) * (v + 0.044715 * v**3))))


def rotate(x: Array, table: Array) -> Floats:
    """x [tokens, heads, d], table [tokens, d] (cos, then sin): Hugging Face's rotate_half."""
    half = x.shape[-1] // 2
    cos = np.concatenate([table[:, :half]] * 2, -1)[:, None].astype(np.float64)
    sin = np.concatenate([table[:, half:]] * 2, -1)[:, None].astype(np.float64)
    turned = np.concatenate([-x[..., half:], x[..., :half]], -1)
    return x * cos + turned * sin


def attention(q: Array, k: Array, v: Array) -> Floats:
    """One sequence: q [tokens, heads, d], k and v [positions, kv_heads, d], the last tokens' q."""
    tokens, heads, d = q.shape
    positions, kv_heads, _ = k.shape
    out = np.zeros((tokens, heads, d))
    for h in range(heads):
        g = h // (heads // kv_heads)
        scores = f64(q[:, h]) @ f64(k[:, g]).T / np.sqrt(d)
        future = np.arange(positions)[None] > positions - tokens + np.arange(tokens)[:, None]
        scores[future] = -np.inf
        p = np.exp(scores - scores.max(-1, keepdims=True))
        out[:, h] = p / p.sum(-1, keepdims=True) @ f64(v[:, g])
    return out


def candidates(
    logits: Array,
    *,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> Floats:
    """Probabilities [vocab] of the draw, zero for what was cut off. Written for clarity: sorts."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    if top_k > 0:
        order = order[:top_k]
    weight = np.exp(f64(logits[order]) - logits[order[0]])
    limit = (top_p or 1.0) * weight.sum()
    count = int(np.searchsorted(weight.cumsum(), limit * (1 - 1e-12))) + 1
    if top_p in (0.0, 1.0):
        count = len(order)
    kept = [i for i, w in zip(order[:count], weight, strict=False) if w >= min_p]
    out = np.zeros(len(logits))
    out[kept] = np.exp(f64(logits[kept]) - logits[order[0]])
    return f64(out / out.sum())

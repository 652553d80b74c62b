"""What each tensor-parallel rank holds of each split axis, and which groups a cut restarts.

q, k, v, gate, up, fc1   column-parallel: rows of the Hugging Face matrix [N, K] are split
o, down, fc2             row-parallel: its columns are split
a quantised lm_head      rows of the vocabulary, in equal shares, the last ranks' smaller
everything else          whole on every rank, in one file
"""

from __future__ import annotations

from dataclasses import dataclass

from flexq_ft.converter.model_config import ModelConfig
from flexq_ft.errors import ConfigError

__all__ = ["GROUP_SIZE", "Range", "ShardPlan", "plan_shards"]

GROUP_SIZE = 128
Range = tuple[int, int]  # half-open


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """Ranges of one tensor-parallel size, one entry per rank."""

    size: int
    head_dim: int
    heads: tuple[Range, ...]
    kv_heads: tuple[Range, ...]  # replicated heads appear in several ranges
    inter: tuple[Range, ...]
    vocab: tuple[Range, ...]  # of a quantised lm_head
    cut_groups: tuple[str, ...]  # linears whose groups restart at the shard's edge

    def of_dim(self, dim: str, rank: int) -> Range:
        """Elements of a named dimension (q, kv, inter, vocab) that a rank holds."""
        if dim in ("inter", "vocab"):
            return (self.inter if dim == "inter" else self.vocab)[rank]
        begin, end = (self.heads if dim == "q" else self.kv_heads)[rank]
        return begin * self.head_dim, end * self.head_dim

    def to_manifest(self) -> dict[str, object]:
        return {
            "size": self.size,
            "heads": [list(pair) for pair in self.heads],
            "kv_heads": [list(pair) for pair in self.kv_heads],
            "inter": [list(pair) for pair in self.inter],
            "cut_groups": list(self.cut_groups),
        }


def plan_shards(config: ModelConfig, *, size: int, group_size: int) -> ShardPlan:
    """group_size: of the scheme's weights; 0 for even splits (float and int8 files).

    Raises ConfigError with the numbers where the size does not divide the model.
    """
    heads, kv_heads = config.num_heads, config.num_kv_heads
    if heads % size:
        raise ConfigError(
            f"tensor parallel size {size} does not divide the {heads} attention heads of"
            f" {config.name}",
            hint=f"--tp with a divisor of {heads}",
        )
    if kv_heads % size and size % kv_heads:
        raise ConfigError(
            f"tensor parallel size {size} and the {kv_heads} key/value heads of {config.name} do"
            " not divide one another",
            hint="with fewer KV heads than ranks each is replicated, so one must divide the other",
        )
    head_ranges = _even(heads, size)
    cuts = bool(group_size) and any(
        begin * config.head_dim % group_size for begin, _ in head_ranges
    )
    return ShardPlan(
        size=size,
        head_dim=config.head_dim,
        heads=head_ranges,
        kv_heads=_kv_ranges(kv_heads, size),
        inter=_inter_ranges(config, size, group_size),
        vocab=_vocab_ranges(config.vocab_size, size),
        cut_groups=("attention.dense",) if cuts else (),
    )


def _even(count: int, size: int) -> tuple[Range, ...]:
    step = count // size
    return tuple((rank * step, (rank + 1) * step) for rank in range(size))


def _vocab_ranges(vocab: int, size: int) -> tuple[Range, ...]:
    share = -(-vocab // size)
    return tuple((min(rank * share, vocab), min((rank + 1) * share, vocab)) for rank in range(size))


def _kv_ranges(kv_heads: int, size: int) -> tuple[Range, ...]:
    if kv_heads >= size:
        return _even(kv_heads, size)
    owners = [rank * kv_heads // size for rank in range(size)]
    return tuple((head, head + 1) for head in owners)


def _inter_ranges(config: ModelConfig, size: int, group_size: int) -> tuple[Range, ...]:
    inter = config.inter_size
    if not group_size:
        if inter % size:
            raise ConfigError(
                f"tensor parallel size {size} does not divide the inner size {inter} of"
                f" {config.name}",
                cause="float and int8 files are split evenly, as FasterTransformer reads them",
                hint="another --tp, or --scheme w6ax, whose shards may be uneven",
            )
        return _even(inter, size)
    groups = -(-inter // group_size)
    if groups < size:
        raise ConfigError(
            f"tensor parallel size {size} is more than the {groups} groups of {group_size} in the"
            f" inner size {inter} of {config.name}",
            hint=f"--tp {groups} at most",
        )
    edges = [0]
    for rank in range(size):
        edges.append(edges[-1] + groups // size + (rank < groups % size))
    return tuple(
        (edges[rank] * group_size, min(edges[rank + 1] * group_size, inter)) for rank in range(size)
    )

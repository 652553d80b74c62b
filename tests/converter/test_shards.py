"""Which rank holds what, and the sizes that are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from flexq_ft.converter.architectures import parse_hf_config
from flexq_ft.converter.model_config import ModelConfig
from flexq_ft.converter.shards import plan_shards
from flexq_ft.errors import ConfigError


def config(**changes: Any) -> ModelConfig:
    raw = {
        "model_type": "llama",
        "vocab_size": 100,
        "hidden_size": 4096,
        "num_hidden_layers": 1,
        "num_attention_heads": 32,
        "intermediate_size": 11008,
        "eos_token_id": 2,
    }
    return replace(parse_hf_config(raw, name="m"), **changes)


def test_uneven_inner_groups_as_in_the_format() -> None:
    plan = plan_shards(config(), size=4, group_size=128)
    groups = [(end - begin) / 128 for begin, end in plan.inter]
    assert groups == [22, 22, 21, 21]
    assert plan.inter[0][0] == 0
    assert plan.inter[-1][1] == 11008
    assert all(a[1] == b[0] for a, b in zip(plan.inter, plan.inter[1:], strict=False))


def test_the_last_short_group_is_the_last_ranks() -> None:
    plan = plan_shards(config(inter_size=300, num_heads=6, num_kv_heads=3), size=3, group_size=128)
    assert plan.inter == ((0, 128), (128, 256), (256, 300))


def test_float_files_split_evenly_or_not_at_all() -> None:
    assert plan_shards(config(), size=4, group_size=0).inter[1] == (2752, 5504)
    with pytest.raises(ConfigError, match=r"size 8 does not divide the inner size 11004"):
        plan_shards(config(inter_size=11004), size=8, group_size=0)


def test_more_ranks_than_groups() -> None:
    with pytest.raises(ConfigError, match="size 4 is more than the 3 groups of 128"):
        plan_shards(config(inter_size=300), size=4, group_size=128)


def test_heads_must_divide() -> None:
    with pytest.raises(ConfigError, match="size 3 does not divide the 32 attention heads"):
        plan_shards(config(), size=3, group_size=128)


@pytest.mark.parametrize(
    ("kv", "size", "expected"),
    [
        (8, 4, ((0, 2), (2, 4), (4, 6), (6, 8))),
        (2, 4, ((0, 1), (0, 1), (1, 2), (1, 2))),
        (1, 2, ((0, 1), (0, 1))),
    ],
)
def test_kv_heads_are_divided_or_replicated(
    kv: int, size: int, expected: tuple[tuple[int, int], ...]
) -> None:
    assert plan_shards(config(num_kv_heads=kv), size=size, group_size=0).kv_heads == expected


def test_kv_heads_that_neither_divide_nor_are_divided() -> None:
    small = config(num_heads=12, num_kv_heads=6)
    with pytest.raises(ConfigError, match="size 4 and the 6 key/value heads"):
        plan_shards(small, size=4, group_size=0)


def test_cut_groups_only_where_heads_cut_a_group() -> None:
    odd = config(num_heads=6, num_kv_heads=6, head_dim=64)
    assert plan_shards(odd, size=2, group_size=128).cut_groups == ("attention.dense",)
    assert plan_shards(odd, size=3, group_size=128).cut_groups == ()
    assert plan_shards(odd, size=2, group_size=0).cut_groups == ()

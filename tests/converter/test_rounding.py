"""Rounders against plain oracles in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from flexq_ft.converter.rounding import Gptq, Rounder, ScaleSearch
from tests.reference.quantization import weight_int6

Array = NDArray[np.float64]
GROUPS = [(0, 128), (128, 256), (256, 300)]
CUT = [(0, 96), (96, 224), (224, 300)]  # shards of 96 and 204 columns


@pytest.fixture
def weights() -> NDArray[np.float32]:
    return np.random.default_rng(7).standard_t(4, (40, 300)).astype(np.float32)


@pytest.fixture
def moments() -> Array:
    """Second moments of correlated inputs with channels of unlike size."""
    rng = np.random.default_rng(8)
    mixed = rng.normal(size=(2000, 60)) @ rng.normal(size=(60, 300)) + rng.normal(size=(2000, 300))
    mixed *= rng.uniform(0.1, 4, 300)
    return mixed.T @ mixed / 2000


def values(
    codes: NDArray[np.int8], scales: NDArray[np.float16], groups: list[tuple[int, int]]
) -> Array:
    wide = np.concatenate(
        [np.repeat(scales[:, [i]].astype(float), e - b, 1) for i, (b, e) in enumerate(groups)], 1
    )
    return codes * wide


def output_error(weights: NDArray[np.float32], rounded: Array, moments: Array) -> float:
    difference = weights - rounded
    return float(np.einsum("nk,kl,nl->", difference, moments, difference))


def tried_scales(largest: np.ndarray) -> list[np.ndarray]:
    factors = [np.float32(round(1 - 0.01 * step, 2)) for step in range(31)]
    return [
        np.maximum(largest / np.float32(31) * f, np.float32(1e-5)).astype(np.float16)
        for f in factors
    ]


@pytest.mark.parametrize("with_moments", [False, True])
def test_a_searched_scale_is_the_best_of_those_tried(
    weights: NDArray[np.float32], moments: Array, with_moments: bool
) -> None:
    diagonal = moments.diagonal().astype(np.float32) if with_moments else None
    codes, scales = ScaleSearch(diagonal).round(weights, CUT)
    assert codes.dtype == np.int8
    assert scales.dtype == np.float16
    for row in range(len(weights)):
        for index, (begin, end) in enumerate(CUT):
            group = weights[row, begin:end].astype(float)
            channel = (
                np.ones(end - begin) if diagonal is None else diagonal[begin:end].astype(float)
            )
            errors = []
            for scale in tried_scales(np.abs(weights[row, begin:end]).max()):
                nearest = np.clip(np.rint(group / float(scale)), -32, 31)
                errors.append(float(channel @ (group - nearest * float(scale)) ** 2))
            rounded = codes[row, begin:end] * float(scales[row, index])
            assert channel @ (group - rounded) ** 2 <= min(errors) * (1 + 1e-5)


def test_nothing_is_lost_to_the_nearest_code(weights: NDArray[np.float32]) -> None:
    codes, scales = ScaleSearch().round(weights, GROUPS)
    plain = values(*weight_int6(weights), GROUPS)
    errors = (weights - values(codes, scales, GROUPS)) ** 2, (weights - plain) ** 2
    for begin, end in GROUPS:
        assert np.all(errors[0][:, begin:end].sum(1) <= errors[1][:, begin:end].sum(1) * (1 + 1e-6))
    assert errors[0].sum() < 0.97 * errors[1].sum()


def gptq_oracle(
    weights: Array, moments: Array, groups: list[tuple[int, int]]
) -> tuple[Array, Array]:
    """Column by column: after each, those that remain take the values of least output error, by the
    explicit inverse of what remains of H."""
    hessian = moments + 0.01 * moments.diagonal().mean() * np.eye(len(moments))
    order = np.concatenate(
        [b + np.argsort(-moments.diagonal()[b:e], kind="stable") for b, e in groups]
    )
    rest = weights[:, order].copy()
    hessian = hessian[np.ix_(order, order)]
    codes = np.full(weights.shape, np.nan)
    scales = np.full((len(weights), len(groups)), np.nan)
    for index, (begin, end) in enumerate(groups):
        # What each column's error costs when all behind it make up for it.
        costs = [1 / np.linalg.inv(hessian[j:, j:])[0, 0] for j in range(begin, end)]
        group = rest[:, begin:end]
        least = np.full(len(weights), np.inf)
        for scale in tried_scales(np.abs(group.astype(np.float32)).max(1)):
            wide = scale.astype(float)[:, None]
            error = ((group - np.clip(np.rint(group / wide), -32, 31) * wide) ** 2) @ costs
            better = error < least
            least[better], scales[better, index] = error[better], scale[better]
        for j in range(begin, end):
            codes[:, j] = np.clip(np.rint(rest[:, j] / scales[:, index]), -32, 31)
            error = rest[:, j] - codes[:, j] * scales[:, index]
            inverse = np.linalg.inv(hessian[j:, j:])
            rest[:, j + 1 :] -= np.outer(error, inverse[0, 1:] / inverse[0, 0])
    natural = np.empty_like(codes)
    natural[:, order] = codes
    return natural, scales


@pytest.mark.parametrize("groups", [GROUPS, CUT])
def test_gptq_is_what_its_definition_says(
    weights: NDArray[np.float32], moments: Array, groups: list[tuple[int, int]]
) -> None:
    codes, scales = Gptq(torch.from_numpy(moments)).round(weights, groups)
    expected, expected_scales = gptq_oracle(weights.astype(float), moments, groups)
    # A scale whose error is a tie in fp32 takes its row with it, and so does a code at a tie.
    rows = np.all(scales == expected_scales.astype(np.float16), axis=1)
    assert rows.mean() >= 0.9
    assert np.all(codes[rows] == expected[rows], axis=1).mean() >= 0.9


def test_gptq_loses_less_of_the_output(weights: NDArray[np.float32], moments: Array) -> None:
    plain = output_error(weights, values(*weight_int6(weights), GROUPS), moments)
    search = ScaleSearch(moments.diagonal().astype(np.float32)).round(weights, GROUPS)
    gptq = Gptq(torch.from_numpy(moments)).round(weights, GROUPS)
    assert output_error(weights, values(*search, GROUPS), moments) < 0.97 * plain
    assert output_error(weights, values(*gptq, GROUPS), moments) < 0.5 * plain


def test_rows_do_not_depend_on_the_block(weights: NDArray[np.float32], moments: Array) -> None:
    whole = Gptq(torch.from_numpy(moments)).round(weights, GROUPS)
    rounder = Gptq(torch.from_numpy(moments))
    parts = [rounder.round(weights[b : b + 16], GROUPS) for b in range(0, 40, 16)]
    for index in (0, 1):
        np.testing.assert_array_equal(np.concatenate([p[index] for p in parts]), whole[index])


@pytest.mark.parametrize("rounder", [ScaleSearch(), Gptq(torch.zeros(300, 300))])
def test_zeros_and_inputs_that_are_never_used(rounder: Rounder) -> None:
    weights = np.zeros((3, 300), np.float32)
    weights[1, :128] = np.float32(3e-6)
    codes, scales = rounder.round(weights, GROUPS)
    assert not codes.any()
    np.testing.assert_array_equal(scales, np.float16(1e-5))

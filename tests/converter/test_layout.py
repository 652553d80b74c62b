"""Every file of every scheme against a derivation from the checkpoint's tensors alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from flexq_ft import _native
from flexq_ft.converter import ConvertOptions, convert
from tests.converter.layout_oracle import Oracle, read_tensors
from tests.reference.packing import unpack_int6

CASES = [
    ("llama-gqa", (1, 2)),  # TP 2 cuts o_proj inside a group: 96 columns per rank
    ("llama-mha", (1, 2)),
    ("llama-one-kv", (1, 4)),  # one KV head, replicated on four ranks
    ("qwen2", (1, 2)),
    ("mistral", (1, 2)),
    ("opt", (1, 2)),
]


def load_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("scheme", "dtype"), [("fp16", "bf16"), ("w8a8", "fp16"), ("w6ax", "fp32")]
)
@pytest.mark.parametrize(("name", "sizes"), CASES)
def test_every_byte_is_the_oracles(
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
    repo_root: Path,
    name: str,
    sizes: tuple[int, ...],
    scheme: str,
    dtype: str,
) -> None:
    source = checkpoint(name)
    given = "bf16" if scheme == "fp16" else scheme
    convert(source, tmp_path, ConvertOptions(scheme=given, dtype=dtype, tp=sizes))
    config = load_json(source / "config.json")
    tensors = read_tensors(source)
    schema = load_json(repo_root / "configs/schemas/manifest.json")
    for tp in sizes:
        folder = tmp_path / f"{tp}-gpu"
        expected = Oracle(tensors, config, scheme=scheme, dtype=dtype, tp=tp).files
        found = {path.name: path.read_bytes() for path in folder.glob("*.bin")}
        assert sorted(found) == sorted(expected)
        wrong = [file for file in expected if found[file] != expected[file]]
        assert wrong == []

        manifest = load_json(folder / "manifest.json")
        jsonschema.validate(manifest, schema)
        sizes_on_disk = {file: len(data) for file, data in expected.items()}
        assert {f: e["bytes"] for f, e in manifest["files"].items()} == sizes_on_disk
        opened = _native.open_model_folder(str(folder))
        assert (opened.tp, opened.has_manifest) == (tp, True)
        assert opened.config.num_layers == config["num_hidden_layers"]


def test_scheme_names_that_share_weights_write_the_same_files(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    for scheme in ("w8a16", "w8a8"):
        convert(checkpoint("opt"), tmp_path / scheme, ConvertOptions(scheme=scheme))
    a16, a8 = (
        {p.name: p.read_bytes() for p in (tmp_path / s / "1-gpu").glob("*.bin")}
        for s in ("w8a16", "w8a8")
    )
    assert a16 == a8


def test_shards_hold_the_integers_of_the_whole_matrix(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    convert(checkpoint("llama-mha"), tmp_path, ConvertOptions(scheme="w6ax", tp=(1, 2)))

    def codes(tp: int, stem: str) -> list[Any]:
        folder = tmp_path / f"{tp}-gpu"
        files = load_json(folder / "manifest.json")["files"]
        found = []
        for rank in range(tp):
            name = f"{stem}.int6.{rank}.bin"
            packed = np.frombuffer((folder / name).read_bytes(), np.uint8)
            found.append(unpack_int6(packed, *files[name]["shape"]))
        return found

    down = codes(2, "model.layers.1.mlp.down_proj.weight")
    assert [part.shape[1] for part in down] == [256, 44]  # 3 groups of 300 columns: 2 and 1
    (whole,) = codes(1, "model.layers.1.mlp.down_proj.weight")
    assert np.array_equal(np.concatenate(down, axis=1), whole)
    gate = codes(2, "model.layers.1.mlp.gate_proj.weight")
    assert [part.shape[0] for part in gate] == [256, 44]
    (whole,) = codes(1, "model.layers.1.mlp.gate_proj.weight")
    assert np.array_equal(np.concatenate(gate), whole)
    assert load_json(tmp_path / "2-gpu/manifest.json")["tensor_parallel"]["cut_groups"] == []


def test_a_cut_inside_a_group_is_recorded_and_reported(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    report = convert(checkpoint("llama-gqa"), tmp_path, ConvertOptions(scheme="w6ax", tp=(1, 2)))
    cuts = [
        load_json(tmp_path / f"{tp}-gpu/manifest.json")["tensor_parallel"]["cut_groups"]
        for tp in (1, 2)
    ]
    assert cuts == [[], ["attention.dense"]]
    assert len(report.plan.warnings) == 1
    assert "attention.dense" in report.plan.warnings[0]


def test_six_bit_weights_take_six_bits(tmp_path: Path) -> None:
    from tests.tools.checkpoints import write_large_llama

    size = {"hidden_size": 512, "num_hidden_layers": 2, "intermediate_size": 1408}
    size |= {"num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 300}
    source = write_large_llama(tmp_path / "source", shard_bytes=3_000_000, **size)
    report = convert(source, tmp_path / "out", ConvertOptions(scheme="w6ax"))
    linear = (tmp_path / "out/1-gpu").glob("*.int6.*")
    measured = 8 * sum(path.stat().st_size for path in linear) / report.plan.linear_elements
    assert measured == pytest.approx(6.125, rel=0.01)
    assert report.folders[0].bits_per_weight == pytest.approx(measured)
    assert len(list(source.glob("*.safetensors"))) > 2


def test_quality_report_against_numpy(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    from tests.reference.quantization import weight_int6

    convert(checkpoint("qwen2"), tmp_path, ConvertOptions(scheme="w6ax"))
    rows = load_json(tmp_path / "1-gpu/quant_report.json")["tensors"]
    assert len(rows) == 2 * 5  # qkv, o, gate, up, down
    row = next(r for r in rows if r["tensor"] == "model.layers.1.mlp.down_proj.weight")
    assert row["linear"] == "layers.1.down"
    w = read_tensors(checkpoint("qwen2"))["model.layers.1.mlp.down_proj.weight"]
    codes, scales = weight_int6(w)
    error = w - codes * np.repeat(scales.astype(np.float32), 128, axis=1)[:, : w.shape[1]]
    sqnr = 10 * np.log10((w.astype(np.float64) ** 2).sum() / (error.astype(np.float64) ** 2).sum())
    assert row["sqnr_db"] == pytest.approx(sqnr, abs=0.02)
    assert row["max_abs_error"] == pytest.approx(np.abs(error).max(), rel=1e-3)
    assert row["saturated_share"] == pytest.approx((np.abs(codes) >= 31).mean(), abs=1e-6)


def test_tokenizer_files_are_copied_as_they_are(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    source = checkpoint("opt")
    convert(source, tmp_path, ConvertOptions(tp=(1, 2)))
    for tp in (1, 2):
        for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            assert (tmp_path / f"{tp}-gpu" / name).read_bytes() == (source / name).read_bytes()

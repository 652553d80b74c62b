"""`flexq-ft convert` and `flexq-ft inspect`: streams, exit codes, JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flexq_ft.converter.folder import is_model_folder
from flexq_ft.orchestrate.cli import convert
from flexq_ft.orchestrate.cli.main import run_cli
from flexq_ft.orchestrate.cli.progress import ConversionProgress
from tests.converter.conftest import folder_bytes
from tests.converter.layout_oracle import read_tensors
from tests.orchestrate.schemas import validate
from tests.reference.quantization import weight_int6

Checkpoint = Callable[[str], Path]
Capture = pytest.CaptureFixture[str]


def run(*args: object) -> int:
    return run_cli([str(arg) for arg in args])


def run_json(capsys: Capture, *args: object) -> dict[str, Any]:
    capsys.readouterr()
    assert run(*args, "--json", "-q") == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    validate(document, f"{args[0]}.json")
    return document


def test_convert_shows_folders_worst_tensors_and_plain_progress(
    checkpoint: Checkpoint, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "ConversionProgress", partial(ConversionProgress, patience_s=0.0))
    assert (
        run("convert", checkpoint("llama-gqa"), tmp_path, "--scheme", "flexq", "--tp", "1,2") == 0
    )
    streams = capsys.readouterr()
    assert "1-gpu" in streams.out
    assert "Lowest signal to noise, of 10 tensors" in streams.out
    lines = [line for line in streams.err.splitlines() if line.startswith("converting:")]
    assert lines[-1].startswith("converting: 100 %")
    assert len(lines) <= 10
    assert "\x1b" not in streams.err + streams.out
    assert "warning: tensor parallel 2: attention.dense" in streams.err
    assert run("convert", checkpoint("llama-gqa"), tmp_path, "--scheme", "flexq") == 0
    assert "verified" in capsys.readouterr().out


def test_a_conversion_of_a_moment_shows_no_progress(
    checkpoint: Checkpoint, tmp_path: Path, capsys: Capture
) -> None:
    assert run("convert", checkpoint("qwen2"), tmp_path) == 0
    assert "converting" not in capsys.readouterr().err


def test_convert_json(checkpoint: Checkpoint, tmp_path: Path, capsys: Capture) -> None:
    args = ("convert", checkpoint("opt"), tmp_path, "--int8-mode", 5, "--policy", "w6a8")
    document = run_json(capsys, *args)
    assert document["schema"] == "flexq-ft/convert/1"
    assert document["config"]["scheme"] == "w6ax"
    assert document["results"]["folders"][0]["action"] == "written"
    assert len(document["results"]["worst_tensors"]) == 8  # two layers of four linears
    manifest = json.loads((tmp_path / "1-gpu/manifest.json").read_text(encoding="utf-8"))
    assert manifest["policy"]["default"] == 8


def test_dry_run_writes_nothing_and_tells_the_truth(
    checkpoint: Checkpoint, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out"
    args = ("convert", checkpoint("qwen2"), out, "--scheme", "w6ax", "--tp", "1,2")
    results = run_json(capsys, *args, "--dry-run")["results"]
    assert not out.exists()
    assert results["layers"] == 2
    assert run(*args) == 0
    for folder in results["folders"]:
        files = list(Path(folder["path"]).glob("*.bin"))
        assert len(files) == folder["files"]
        assert sum(path.stat().st_size for path in files) == folder["total_bytes"]
        for rank, size in enumerate(folder["rank_bytes"]):
            others = {f".{r}.bin" for r in range(folder["tp"])} - {f".{rank}.bin"}
            own = [p for p in files if not any(p.name.endswith(o) for o in others)]
            assert sum(path.stat().st_size for path in own) == size
    capsys.readouterr()
    assert run(*args, "--dry-run") == 0
    assert "Nothing was written" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("--scheme", "fp16", "--int8-mode", "0"), 2, "were both given"),
        (("--int8-mode", "4"), 2, "int8_mode 4 is not supported"),
        (("--tp", "5"), 2, "does not divide the 4 attention heads"),
        (("--policy", "w6a8"), 2, "applies to w6ax only"),
        (("--scheme", "w6ax", "--policy", "nope"), 2, "neither a built-in name nor a file"),
        (("--scheme", "int4"), 2, "int4"),
    ],
)
def test_usage_errors(
    checkpoint: Checkpoint,
    tmp_path: Path,
    capsys: Capture,
    args: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    assert run("convert", checkpoint("qwen2"), tmp_path / "out", *args) == code
    streams = capsys.readouterr()
    assert message in streams.err
    assert streams.out == ""
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_without_a_tokenizer_is_said(
    own_checkpoint: Checkpoint, tmp_path: Path, capsys: Capture
) -> None:
    source = own_checkpoint("qwen2")
    (source / "tokenizer.json").unlink(missing_ok=True)
    assert run("convert", source, tmp_path / "out", "--dry-run") == 0
    assert "holds no tokenizer.json: the model will take and give" in capsys.readouterr().err
    (source / "vocab.json").write_text("{}", encoding="utf-8")  # as OPT's checkpoints have it
    assert run("convert", source, tmp_path / "out", "--dry-run") == 0
    assert "AutoTokenizer makes one of vocab.json" in capsys.readouterr().err
    (source / "tokenizer.model").write_bytes(b"")
    assert run("convert", source, tmp_path / "out") == 0
    assert "AutoTokenizer makes one of tokenizer.model" in capsys.readouterr().err
    assert run("run", tmp_path / "out", "a text") == 2
    assert "but tokenizer.model, of which transformers makes one" in capsys.readouterr().err


def test_a_faulty_model_is_exit_3(
    own_checkpoint: Checkpoint, tmp_path: Path, capsys: Capture
) -> None:
    source = own_checkpoint("qwen2")
    (source / "config.json").write_text('{"model_type": "bloom"}', encoding="utf-8")
    assert run("convert", source, tmp_path / "out") == 3
    error = capsys.readouterr().err
    assert "architecture 'bloom'" in error
    assert "supported: llama, mistral, qwen2, opt" in error


def test_inspect_folder_and_checkpoint(
    checkpoint: Checkpoint, tmp_path: Path, capsys: Capture
) -> None:
    source = checkpoint("llama-mha")
    assert run("convert", source, tmp_path, "--scheme", "flexq", "--tp", "1,2") == 0
    results = run_json(capsys, "inspect", tmp_path, "--tp", 2)["results"]
    assert results["manifest"]["model"]["num_heads"] == 4
    assert results["bits_per_weight"] == pytest.approx(6.125, rel=0.25)  # 300 = 2.3 groups
    assert len(results["rank_bytes"]) == 2
    assert run("inspect", tmp_path) == 0
    streams = capsys.readouterr()
    assert "frag16x128" in streams.out and "theta " in streams.out and "{" not in streams.out
    assert "False" not in streams.out and "beside it: 2-gpu" in streams.err
    found = run_json(capsys, "inspect", source)["results"]
    assert (found["kind"], found["model"]["inter_size"]) == ("safetensors", 300)
    assert run("inspect", source, "--verify") == 2


@pytest.mark.parametrize(
    ("place", "value"),
    [(("policy",), {"a": 1}), (("model",), ""), (("files", "model.wte.weight.bin", "shape"), None)],
)
@pytest.mark.parametrize("tensor", [[], ["model.wte.weight"]])
def test_inspect_reads_a_manifest_as_strictly_as_the_runtime(
    checkpoint: Checkpoint,
    tmp_path: Path,
    capsys: Capture,
    place: Any,
    value: Any,
    tensor: list[str],
) -> None:
    assert run("convert", checkpoint("qwen2"), tmp_path, "--scheme", "flexq") == 0
    path = tmp_path / "1-gpu" / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    part = manifest
    for name in place[:-1]:
        part = part[name]
    part[place[-1]] = value
    path.write_text(json.dumps(manifest), encoding="utf-8")
    capsys.readouterr()
    assert run("inspect", tmp_path, *tensor) == 3
    assert "manifest.json" in capsys.readouterr().err


def test_inspect_shows_unpacked_codes_with_their_scales(
    checkpoint: Checkpoint, tmp_path: Path, capsys: Capture
) -> None:
    source = checkpoint("llama-mha")
    assert run("convert", source, tmp_path, "--scheme", "w6ax") == 0
    args = ("inspect", tmp_path, "layers.1.gate_up", "--at", "5,124")
    gate, up = run_json(capsys, *args)["results"]
    assert gate["file"] == "model.layers.1.mlp.gate_proj.weight.int6.0.bin"
    assert up["file"] == "model.layers.1.mlp.up_proj.weight.int6.0.bin"
    w = read_tensors(source)["model.layers.1.mlp.gate_proj.weight"]
    codes, scales = weight_int6(w)
    assert gate["codes"] == codes[5:9, 124:132].tolist()
    assert gate["scales"] == scales[5:9, 0:2].astype(np.float32).tolist()
    whole = codes * np.repeat(scales.astype(np.float32), 128, axis=1)[:, : w.shape[1]]
    assert np.allclose(gate["values"], whole[5:9, 124:132], rtol=1e-6)
    assert sum(gate["statistics"]["code_counts"].values()) == codes.size
    assert run("inspect", tmp_path, "model.norm.weight") == 2
    assert "did you mean" in capsys.readouterr().err
    assert run("inspect", tmp_path, "layers.1.gateup") == 2
    assert "did you mean layers.1.gate_up" in capsys.readouterr().err
    assert run("inspect", tmp_path, "layers.0.o") == 0
    assert run("inspect", tmp_path, "model.final_layernorm.weight") == 0


def test_verify_lists_every_fault(checkpoint: Checkpoint, tmp_path: Path, capsys: Capture) -> None:
    assert run("convert", checkpoint("qwen2"), tmp_path, "--scheme", "w8a8") == 0
    assert run("inspect", tmp_path, "--verify") == 0
    folder = tmp_path / "1-gpu"
    files = [path for path in folder_bytes(folder) if path.endswith(".bin")]
    (folder / files[3]).write_bytes(b"short")
    (folder / files[7]).unlink()
    data = bytearray((folder / files[9]).read_bytes())
    data[-1] ^= 128
    (folder / files[9]).write_bytes(data)
    capsys.readouterr()
    assert run("inspect", tmp_path, "--verify") == 3
    error = capsys.readouterr().err
    assert f"3 of {len(files)} weight files" in error
    assert f"{files[3]} holds 5 bytes" in error
    assert f"{files[7]} is missing" in error
    assert f"{files[9]} has hash" in error


def test_verify_means_all_folders_of_a_model(
    checkpoint: Checkpoint, tmp_path: Path, capsys: Capture
) -> None:
    assert run("convert", checkpoint("qwen2"), tmp_path, "--tp", "1,2") == 0
    files = [len(list((tmp_path / name).glob("*.bin"))) for name in ("1-gpu", "2-gpu")]
    assert run_json(capsys, "inspect", tmp_path, "--verify")["results"]["files"] == sum(files)
    (tmp_path / "2-gpu/model.wte.weight.bin").write_bytes(b"short")
    assert run("inspect", tmp_path, "--verify") == 3
    streams = capsys.readouterr()
    assert f"1 of {sum(files)} weight files in {tmp_path} does not match" in streams.err
    assert "2-gpu/model.wte.weight.bin holds 5 bytes" in streams.err and "1-gpu" in streams.out
    assert run("inspect", tmp_path, "--verify", "--tp", "1") == 0


def test_an_ft_folder_without_a_manifest(
    checkpoint: Checkpoint, tmp_path: Path, capsys: Capture
) -> None:
    assert run("convert", checkpoint("opt"), tmp_path) == 0
    (tmp_path / "1-gpu/manifest.json").unlink()
    assert run("inspect", tmp_path) == 0
    assert "no manifest" in capsys.readouterr().out
    assert "model" in run_json(capsys, "inspect", tmp_path)["results"]
    assert run("inspect", tmp_path, "--verify") == 3


def test_which_folder_a_path_means(checkpoint: Checkpoint, tmp_path: Path, capsys: Capture) -> None:
    from flexq_ft.converter import resolve_model_dir
    from flexq_ft.errors import ConfigError

    assert run("convert", checkpoint("opt"), tmp_path, "--tp", "2,4") == 0
    with pytest.raises(ConfigError, match=r"several folders and no 1-gpu: 2-gpu, 4-gpu"):
        resolve_model_dir(tmp_path)
    assert resolve_model_dir(tmp_path, 4).name == "4-gpu"
    assert resolve_model_dir(tmp_path / "2-gpu").name == "2-gpu"
    with pytest.raises(ConfigError, match=r"no 8-gpu folder \(there: 2-gpu, 4-gpu\)"):
        resolve_model_dir(tmp_path, 8)
    with pytest.raises(ConfigError, match="folder of tensor parallel size 2, but --tp 4"):
        resolve_model_dir(tmp_path / "2-gpu", 4)
    assert run("convert", checkpoint("opt"), tmp_path, "--tp", "1") == 0
    assert resolve_model_dir(tmp_path).name == "1-gpu"


@pytest.mark.parametrize("lost", ["config.ini", "manifest.json"])
def test_a_folder_that_lost_a_description_is_no_checkpoint(
    checkpoint: Checkpoint, tmp_path: Path, capsys: Capture, lost: str
) -> None:
    out = tmp_path / "out"
    assert run("convert", checkpoint("llama-mha"), out, "--scheme", "w6ax") == 0
    (out / "1-gpu").rename(tmp_path / "model")
    (tmp_path / "model" / lost).unlink()
    assert is_model_folder(tmp_path / "model")
    assert run("convert", tmp_path / "model", out) == 2
    assert "cannot be converted again" in capsys.readouterr().err
    # Without the INI the manifest tells all; without the manifest nobody knows the layout.
    code = run("run", tmp_path / "model", "--ids", "1,2", "--max-tokens", "1")
    assert code == (0 if lost == "config.ini" else 3)
    (tmp_path / "model").rename(tmp_path / "1-gpu")
    for name in {"config.ini", "manifest.json"} - {lost}:
        (tmp_path / "1-gpu" / name).unlink()
    assert run("run", tmp_path / "1-gpu", "--ids", "1,2") == 3


def test_inspect_refuses_what_lies_outside_of_the_tensor(
    checkpoint: Checkpoint, tmp_path: Path, capsys: Capture
) -> None:
    assert run("convert", checkpoint("llama-mha"), tmp_path, "--scheme", "w6ax", "--tp", "2") == 0
    assert run("inspect", tmp_path, "layers.0.o", "--at", "9999,0") == 2
    assert "--at 9999,0 is outside of model.layers.0.attention" in capsys.readouterr().err
    assert run("inspect", tmp_path, "layers.0.o", "--rank", "2") == 2
    assert "the folder holds ranks 0 to 1" in capsys.readouterr().err

"""The command line and LLM on a real (tiny, random) model: cache, ranks, failures of ranks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flexq_ft import LLM
from flexq_ft.converter import ConvertOptions, convert
from flexq_ft.errors import ConfigError, WeightError
from flexq_ft.orchestrate import doctor
from flexq_ft.orchestrate.cli.main import run_cli
from flexq_ft.orchestrate.sampling import SamplingParams
from tests.orchestrate.schemas import validate
from tests.tools.mpi import needs_mpi, run_ranks

pytest.importorskip("transformers")

Capture = pytest.CaptureFixture[str]
TEXT = Path(__file__).parents[2] / "configs" / "texts" / "river-lock.txt"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tools.checkpoints import make_checkpoint

    folder = tmp_path_factory.mktemp("hf") / "tiny"
    return make_checkpoint(folder, hidden=128, heads=4, kv_heads=2, inter=256, positions=128)


@pytest.fixture(scope="module")
def model(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OUT with a folder for one rank and one for two, in fp32."""
    out = tmp_path_factory.mktemp("out") / "tiny"
    convert(checkpoint, out, ConvertOptions(scheme="fp32", tp=(1, 2)))
    return out


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "flexq-ft"


GREEDY = SamplingParams(max_tokens=12, ignore_eos=True)


def continuation(result: Any) -> list[int]:
    return list(result.outputs[0].token_ids)


def test_a_checkpoint_is_converted_once_and_said_so(
    checkpoint: Path, cache: Path, capsys: Capture
) -> None:
    args = ["run", str(checkpoint), "A weight", "--max-tokens", "4", "--scheme", "flexq"]
    assert run_cli(args) == 0
    first = capsys.readouterr()
    assert "converting" in first.err and str(cache) in first.err
    assert run_cli(args) == 0
    second = capsys.readouterr()
    assert "converting" not in second.err and second.out == first.out
    (folder,) = [path for path in cache.iterdir() if path.is_dir()]
    assert folder.name.startswith("tiny-") and (folder / "1-gpu" / "manifest.json").is_file()


@pytest.mark.parametrize(
    "verb",
    [
        ["run", "{}", "A weight", "--max-tokens", "1"],
        ["eval", "ppl", "{}", "--text", str(TEXT), "--max-windows", "1"],
        ["bench", "latency", "{}", "--prompt-tokens", "4", "--output-tokens", "2", "--repeat", "1"],
    ],
    ids=["run", "eval", "bench"],
)
def test_weights_converted_on_the_fly_without_smoothing_are_said_so(
    checkpoint: Path, cache: Path, capsys: Capture, verb: list[str]
) -> None:
    arguments = [word.format(checkpoint) for word in verb]
    assert run_cli([*arguments, "--scheme", "w8a8"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    way_out = f"flexq-ft convert {checkpoint} OUT --scheme w8a8 --calibration FILE"
    assert f"the weights are not smoothed; {way_out} smooths them (SmoothQuant)" in said
    if verb[0] == "run":
        assert run_cli([*arguments, "--scheme", "w8a16"]) == 0
        assert "smooth" not in capsys.readouterr().err


def test_other_choices_and_changed_sources_are_other_entries(checkpoint: Path, cache: Path) -> None:
    def run(**options: Any) -> int:
        with LLM(checkpoint, **options):
            return sum(path.is_dir() for path in cache.iterdir())

    assert run(scheme="w6ax") == 1
    assert run(scheme="w6a8") == 1  # weights do not depend on the policy
    assert run(scheme="w8a16") == 2
    config = checkpoint / "config.json"
    before = config.stat()
    os.utime(config, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    try:
        assert run(scheme="w6ax") == 3
    finally:
        os.utime(config, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_quantised_head_is_an_entry_of_its_own(
    checkpoint: Path, cache: Path, capsys: Capture
) -> None:
    for head, name in ((None, "fp16"), ("w8", "w8"), ("w6", "w6"), ("fp16", "fp16")):
        with LLM(checkpoint, scheme="w6ax", lm_head=head) as llm:
            assert llm.info.lm_head == name
    folders = sorted(path for path in cache.iterdir() if path.is_dir())
    assert len(folders) == 3
    int8 = next(f for f in folders if list(f.glob("1-gpu/model.lm_head.weight.w8.0.bin")))
    arguments = ["run", str(int8), "A weight", "--max-tokens", "2", "-v"]
    assert run_cli(arguments) == 0
    assert "w6ax in fp16, lm_head in w8, on cpu" in " ".join(capsys.readouterr().err.split())
    assert run_cli([*arguments, "--lm-head", "w6"]) == 2
    assert "lm_head w6 was asked for" in capsys.readouterr().err
    assert run_cli(["run", str(checkpoint), "A", "--lm-head", "w6", "--max-tokens", "2"]) == 0
    assert "to fp16 with an lm_head in w6 into" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("place", "name"),
    [("Tiny-3.1-0.5B", "Tiny-3.1-0.5B"), ("models--org--Tiny-3.1/snapshots/0a1b", "Tiny-3.1")],
)
def test_an_entry_has_the_whole_name_of_its_model(
    checkpoint: Path, cache: Path, tmp_path: Path, place: str, name: str
) -> None:
    shutil.copytree(checkpoint, tmp_path / place)
    with LLM(tmp_path / place):
        pass
    (folder,) = [path for path in cache.iterdir() if path.is_dir()]
    assert folder.name.rpartition("-")[0] == name


def test_cache_dir_is_where_it_was_said(checkpoint: Path, cache: Path, tmp_path: Path) -> None:
    with LLM(checkpoint, cache_dir=tmp_path / "mine"):
        assert (tmp_path / "mine").is_dir() and not cache.exists()


def test_policies_are_those_asked_for(checkpoint: Path, cache: Path, tmp_path: Path) -> None:
    with LLM(checkpoint, scheme="w6a16") as llm:
        assert llm.info.scheme == "w6ax" and llm.info.policy["default"] == 16
    with LLM(checkpoint, scheme="w6ax") as llm:
        assert llm.info.policy["name"] == "flexq"
    with LLM(checkpoint, policy="w6a8") as llm:
        assert (llm.info.scheme, llm.info.policy["name"]) == ("w6ax", "w6a8")
    path = tmp_path / "own.yaml"
    path.write_text("schema: flexq-ft/policy/1\nrules: [{layers: [0], linear: o, act_bits: 16}]\n")
    with LLM(checkpoint, scheme="w6ax", policy=path) as llm:
        assert llm.info.policy["rules"][0]["act_bits"] == 16


@pytest.mark.parametrize(
    "choices",
    [
        {"scheme": "w6a8", "policy": "w6a6"},
        {"scheme": "fp16", "policy": "w6a6"},
        {"scheme": "w5a5"},
        {"policy": "flexqq"},
    ],
)
def test_choices_that_contradict_are_configuration_errors(
    checkpoint: Path, cache: Path, choices: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError):
        LLM(checkpoint, **choices)


def test_a_folder_of_another_scheme_is_refused_with_the_command_to_type(model: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        LLM(model, scheme="w6ax")
    assert "convert" in caught.value.hint


def test_output_that_the_context_cuts_short_is_announced(model: Path) -> None:
    lines: list[str] = []
    with LLM(model, max_len=24, notify=lines.append) as llm:
        params = SamplingParams(max_tokens=30, ignore_eos=True)
        (result,) = llm.generate([[5, 6, 7]], params)
    assert len(result.outputs[0].token_ids) == 21
    assert any("room for 21 after a prompt of 3, fewer than max_tokens 30" in s for s in lines)


def test_a_float_folder_runs_in_int8_too(model: Path) -> None:
    with LLM(model, scheme="w8a16", tensor_parallel_size=1) as llm:
        assert llm.info.scheme == "w8a16"
        assert len(continuation(llm.generate("A", GREEDY)[0])) == 12


def test_json_of_a_real_run_is_what_the_schema_says(model: Path, capsys: Capture) -> None:
    args = ["run", str(model), "A weight file", "--json", "--max-tokens", "5", "--logprobs"]
    assert run_cli(args) == 0
    document = json.loads(capsys.readouterr().out)
    validate(document, "run.json")
    (result,) = document["results"]
    assert result["metrics"]["prompt_tokens"] == len(result["prompt_token_ids"])
    assert result["metrics"]["peak_memory_bytes"] > 10_000_000
    assert document["config"]["memory_bytes"]["weights"] > 0


def test_a_batch_gives_each_prompt_what_it_gets_alone(model: Path) -> None:
    prompts = ["A", "weight file that is", "too short must", [5, 6, 7], "not"]
    with LLM(model, max_batch=2, max_len=64, tensor_parallel_size=1) as llm:
        together = [continuation(r) for r in llm.generate(prompts, GREEDY)]
        alone = [continuation(llm.generate([prompt], GREEDY)[0]) for prompt in prompts]
        streamed = [t for piece in llm.stream("A", GREEDY) for t in piece.token_ids]
    assert together == alone
    assert streamed == alone[0]


def test_scores_are_the_log_softmax_of_the_logits(model: Path) -> None:
    with LLM(model, dtype="fp32", tensor_parallel_size=1) as llm:
        (scored,) = llm.score(["A weight file"])
        logits = llm.forward_logits(scored.token_ids)
    assert isinstance(logits, np.ndarray)
    wide = logits.astype(np.float64)
    log_softmax = wide - np.log(np.exp(wide - wide.max(1, keepdims=True)).sum(1, keepdims=True))
    log_softmax -= wide.max(1, keepdims=True)
    expected = [log_softmax[i, t] for i, t in enumerate(scored.token_ids[1:])]
    assert scored.logprobs[0] is None
    np.testing.assert_allclose(scored.logprobs[1:], expected, atol=1e-4)  # type: ignore[arg-type]
    assert scored.argmax == logits[:-1].argmax(1).tolist()


def test_sampling_repeats_with_its_seed(model: Path) -> None:
    params = SamplingParams(max_tokens=12, temperature=1.5, ignore_eos=True)
    with LLM(model, tensor_parallel_size=1) as llm:
        (first,) = llm.generate("A", params)
        again = SamplingParams(max_tokens=12, temperature=1.5, ignore_eos=True, seed=first.seed)
        other = SamplingParams(max_tokens=12, temperature=1.5, ignore_eos=True, seed=first.seed + 1)
        assert continuation(llm.generate("A", again)[0]) == continuation(first)
        assert continuation(llm.generate("A", other)[0]) != continuation(first)


FORK = """
import os, sys
from flexq_ft import LLM
from flexq_ft.errors import ConfigError

llm = LLM(sys.argv[1], threads=1)
if os.fork() == 0:
    LLM(sys.argv[1], threads=2).generate([[5]])
    llm.generate([[5]])
    print("of one thread it can", flush=True)
    os._exit(0)
os.wait()
llm = LLM(sys.argv[1], threads=2)
ids = llm.generate([[5]])[0].outputs[0].token_ids
if os.fork() == 0:
    for attempt in (lambda: llm.generate([[5]]), lambda: LLM(sys.argv[1], threads=2)):
        try:
            attempt()
        except ConfigError as error:
            print(error.message, flush=True)
    os._exit(0)
os.wait()
assert llm.generate([[5]])[0].outputs[0].token_ids == ids
"""


def test_a_fork_of_a_process_with_an_llm_is_refused_and_does_not_hang(model: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK, str(model)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("of one thread it can")
    assert done.stdout.count("this process is a fork of one that had an LLM") == 2


@needs_mpi
def test_two_ranks_give_the_tokens_of_one(model: Path) -> None:
    prompts = ["A weight file", "too short", [5, 6, 7]]
    with LLM(model, tensor_parallel_size=1) as llm:
        one = [continuation(r) for r in llm.generate(prompts, GREEDY)]
        logits = llm.forward_logits([5, 6, 7])
    with LLM(model, tensor_parallel_size=2) as llm:
        assert llm.info.tensor_parallel_size == 2
        results = llm.generate(prompts, GREEDY)
        assert [continuation(r) for r in results] == one
        np.testing.assert_allclose(llm.forward_logits([5, 6, 7]), logits, atol=1e-3)
        stream = llm.stream("A weight file", GREEDY)
        assert next(stream).token_ids == one[0][:1]
        stream.close()  # the ranks go on to the next request
        assert continuation(llm.generate(prompts[:1], GREEDY)[0]) == one[0]
        assert results[0].metrics.peak_memory_bytes > 30_000_000  # of both processes


@needs_mpi
def test_a_request_that_one_rank_refuses_leaves_all_of_them_well(model: Path) -> None:
    with LLM(model, tensor_parallel_size=2) as llm:
        bad = SamplingParams(max_tokens=2, stop_words=[[10**6]])
        results = list(llm.generate_each(["A", "A"], [bad, GREEDY]))
        assert len(continuation(results[1])) == 12


def copy_of(folder: Path, to: Path, *, changed: str, data: Callable[[bytes], bytes]) -> Path:
    """The folder again, with one file changed."""
    to.mkdir()
    for file in folder.iterdir():
        os.link(file, to / file.name)
    content = (to / changed).read_bytes()
    (to / changed).unlink()
    (to / changed).write_bytes(data(content))
    return to


def with_nan(content: bytes) -> bytes:
    return content[:100] + np.float32(np.nan).tobytes() + content[104:]


RANK_1_FILE = "model.layers.1.attention.dense.weight.1.bin"


@pytest.fixture
def damaged(model: Path, tmp_path: Path) -> Path:
    """The folder for two ranks with a NaN in a file of rank 1, which is met when it runs."""
    return copy_of(model / "2-gpu", tmp_path / "2-gpu", changed=RANK_1_FILE, data=with_nan)


@needs_mpi
def test_a_fault_met_in_a_step_names_a_rank_and_ends_the_run(
    damaged: Path, capsys: Capture
) -> None:
    code = run_cli(["run", str(damaged), "A", "--tp", "2", "--max-tokens", "3"])
    err = capsys.readouterr().err
    assert code == 3 and "not finite" in err and "  rank:  " in err, err


@needs_mpi
def test_a_short_file_of_one_rank_is_named(model: Path, tmp_path: Path, capsys: Capture) -> None:
    folder = copy_of(
        model / "2-gpu", tmp_path / "2-gpu", changed=RANK_1_FILE, data=lambda content: content[:-4]
    )
    assert run_cli(["run", str(folder), "A", "--tp", "2"]) == 3
    assert RANK_1_FILE in capsys.readouterr().err


@needs_mpi
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_the_run(model: Path, victim: int) -> None:
    from flexq_ft.errors import LaunchError

    with LLM(model, tensor_parallel_size=2) as llm:
        group = llm._engine._group  # type: ignore[union-attr]
        pids = [place["pid"] for place in group.call({"call": "ranks"})]
        stream = llm.stream("A", SamplingParams(max_tokens=100, ignore_eos=True))
        next(stream)
        os.kill(pids[victim], signal.SIGKILL)
        with pytest.raises(LaunchError):
            list(stream)
            for _ in range(200):
                llm.generate("A", SamplingParams(max_tokens=100, ignore_eos=True))
    assert all_gone(pids)


def all_gone(pids: list[int], seconds: float = 30) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return True
        time.sleep(0.05)
    return False


@needs_mpi
def test_doctor_really_starts_ranks() -> None:
    (finding,) = [f for f in doctor.diagnose(ranks=2) if f.name == "--tp 2"]
    assert finding.status == "ok" and "rank 1 on" in finding.value


def under_mpirun(ranks: int, *args: str) -> subprocess.CompletedProcess[str]:
    """The command, started by mpirun."""
    return run_ranks(ranks, [sys.executable, "-m", "flexq_ft.orchestrate", *args])


@needs_mpi
def test_under_mpirun_the_ranks_are_joined_and_one_speaks(model: Path, capsys: Capture) -> None:
    args = ["run", str(model), "A weight", "--tp", "2", "--max-tokens", "8", "--ignore-eos"]
    joined = under_mpirun(2, *args)
    assert joined.returncode == 0, joined.stderr
    assert run_cli(args) == 0
    assert joined.stdout == capsys.readouterr().out
    assert joined.stderr.count("tok/s, decode") == 1


@needs_mpi
def test_under_mpirun_another_size_is_explained_once(model: Path) -> None:
    done = under_mpirun(2, "run", str(model), "A", "--tp", "3")
    assert done.returncode == 2
    assert done.stderr.count("error: this process is rank 0 of 2, but --tp 3 was asked for") == 1
    assert "rank 1 of 2" not in done.stderr


@needs_mpi
def test_under_mpirun_errors_of_the_command_keep_their_code(model: Path) -> None:
    assert under_mpirun(2, "run", str(model), "", "--tp", "2").returncode == 2
    assert under_mpirun(2, "run", "/no/such/model", "A", "--tp", "2").returncode == 2


@needs_mpi
def test_under_mpirun_a_fault_met_in_a_step_ends_all(damaged: Path) -> None:
    done = under_mpirun(2, "run", str(damaged), "A", "--tp", "2")
    assert done.returncode == 3, done.stderr
    assert "  rank:  " in done.stderr


@needs_mpi
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_ranks_end_with_their_command_however_it_ends(
    model: Path, number: signal.Signals, code: int, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "A"}\n' * 500)
    flags = ["--tp", "2", "--max-tokens", "120", "--ignore-eos", "--jsonl", str(rows)]
    process = subprocess.Popen(
        [sys.executable, "-m", "flexq_ft.orchestrate", "run", str(model), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline()  # the first row is done, the others run
    pids = children(process.pid)
    assert len(pids) >= 3  # mpirun and two ranks
    private = socket_folder(pids)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == code
    assert all_gone(pids) and not private.exists()


def socket_folder(pids: list[int]) -> Path:
    """From the command line of a rank."""
    lines = [Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in pids]
    (path, *_) = [line[line.index(b"--socket") + 1] for line in lines if b"--socket" in line]
    return Path(path.decode()).parent


def children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *children(int(child))]
    return found


@pytest.fixture(scope="module")
def ft_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As FasterTransformer's script writes it, for one rank and for two: no manifest, no tokenizer,
    an INI that says nothing of ranks."""
    from tests.tools.checkpoints import random_tensors
    from tests.tools.ft_folder import write_ft_folder

    config = {
        "vocab_size": 131,
        "hidden_size": 72,
        "intermediate_size": 100,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "max_position_embeddings": 96,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    tensors = random_tensors("llama", config)
    out = tmp_path_factory.mktemp("ft")
    for tp in (1, 2):
        write_ft_folder(out, tensors, config, style="llama", dtype="fp32", tp=tp)
    return out


def test_a_folder_of_fastertransformer_runs_on_ids(ft_model: Path, capsys: Capture) -> None:
    args = ["run", str(ft_model), "5,6,7", "--ids", "--max-tokens", "6", "--ignore-eos", "-q"]
    assert run_cli(args) == 0
    ids = capsys.readouterr().out
    assert len(ids.split(",")) == 6
    assert run_cli([*args, "--scheme", "w8a16"]) == 0
    assert run_cli(["run", str(ft_model), "text"]) == 2
    assert "no tokenizer" in capsys.readouterr().err


@needs_mpi
def test_a_folder_of_fastertransformer_runs_on_two_ranks(ft_model: Path) -> None:
    with LLM(ft_model, tensor_parallel_size=1) as llm:
        one = continuation(llm.generate([[5, 6, 7]], GREEDY)[0])
    with LLM(ft_model, tensor_parallel_size=2) as llm:
        assert continuation(llm.generate([[5, 6, 7]], GREEDY)[0]) == one


def test_a_missing_model_and_a_missing_size_are_configuration_errors(model: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        LLM(model / "nothing")
    with pytest.raises(ConfigError, match="3-gpu"):
        LLM(model, tensor_parallel_size=3)


def test_a_corrupt_manifest_is_a_weight_error(model: Path, tmp_path: Path) -> None:
    folder = copy_of(
        model / "1-gpu", tmp_path / "1-gpu", changed="manifest.json", data=lambda content: b"{"
    )
    with pytest.raises(WeightError, match="manifest"):
        LLM(folder)

"""The FT programs from end to end: what they read, write, print and refuse."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from flexq_ft import _native
from flexq_ft.converter import ConvertOptions, convert
from tests.runtime.conftest import devices
from tests.tools.checkpoints import make_checkpoint
from tests.tools.mpi import needs_mpi, run_ranks
from tests.tools.programs import program

PROMPTS = [[1, 30, 45, 27, 65], [5, 6]]
NEW = 6
TOTAL = max(map(len, PROMPTS)) + NEW

# Where each program wants its sampling keys, and what it writes after each id.
SAMPLING = {"llama_example": "request", "multi_gpu_gpt_example": "ft_instance_hyperparameter"}
SEPARATOR = {"llama_example": ", ", "multi_gpu_gpt_example": " "}
FOLDERS = {"llama_example": "llama", "multi_gpu_gpt_example": "opt"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """llama/ and opt/ in fp32 and llama-w6ax/, each with 1-gpu and 2-gpu."""
    out = tmp_path_factory.mktemp("models")
    size = {"hidden": 64, "inter": 96, "vocab": 160, "positions": 64, "tokenizer": False}
    for family in ("llama", "opt"):
        source = make_checkpoint(out / f"{family}-hf", family=family, **size)  # type: ignore[arg-type]
        convert(source, out / family, ConvertOptions(scheme="fp32", tp=(1, 2)))
    convert(out / "llama-hf", out / "llama-w6ax", ConvertOptions(scheme="w6ax"))
    return out


@dataclass
class Case:
    """A folder to run a program in; INI keys are "section.key"."""

    cwd: Path
    models: Path
    name: str = "llama_example"
    ranks: int = 1
    keys: dict[str, str] = field(default_factory=dict)
    start_ids: str = "\n".join(", ".join(map(str, row)) for row in PROMPTS)

    def ini(self) -> dict[str, dict[str, str]]:
        model_dir = self.models / FOLDERS[self.name] / f"{self.ranks}-gpu"
        sections: dict[str, dict[str, str]] = {
            "ft_instance_hyperparameter": {
                "model_dir": str(model_dir),
                "tensor_para_size": str(self.ranks),
                "pipeline_para_size": "1",
                "int8_mode": "0",
                "data_type": "fp32",
            },
            "request": {"request_output_len": str(NEW)},
        }
        sections[SAMPLING[self.name]] |= {"beam_width": "1", "top_k": "1", "top_p": "0.0"}
        for name, value in self.keys.items():
            section, key = name.split(".")
            sections.setdefault(section, {})[key] = value
        return sections

    def run(self, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        lines = []
        for section, keys in self.ini().items():
            lines += [f"[{section}]", *(f"{key} = {value}" for key, value in keys.items())]
        (self.cwd / "x.ini").write_text("\n".join(lines) + "\n")
        (self.cwd / "start_ids.csv").write_text(self.start_ids + "\n")
        command: list[str | Path] = [program(self.name), "x.ini"]
        if self.ranks > 1:
            return run_ranks(self.ranks, command, cwd=self.cwd, env=env)
        return subprocess.run(
            command,
            cwd=self.cwd,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
        )

    def out(self) -> list[list[int]]:
        separator = SEPARATOR[self.name]
        lines = (self.cwd / "out").read_text().splitlines()
        assert all(line.endswith(separator) for line in lines)
        return [
            [int(word) for word in line.removesuffix(separator).split(separator)] for line in lines
        ]


@pytest.fixture
def case(tmp_path: Path, models: Path) -> Case:
    return Case(tmp_path, models)


def greedy(folder: Path, prompt: list[int]) -> list[int]:
    """prompt, and what the engine's logits say comes next, padded as FT does."""
    engine = _native.Engine(str(folder), dtype="fp32")
    ids, end = list(prompt), engine.config.eos_ids[0]
    while len(ids) < len(prompt) + NEW and end not in ids[len(prompt) :]:
        ids.append(int(engine.forward(ids)[-1].argmax()))
    return ids + [end] * (TOTAL - len(ids))


@pytest.mark.parametrize("name", list(FOLDERS))
def test_out_holds_prompts_and_greedy_tokens_padded_to_the_total(case: Case, name: str) -> None:
    case.name = name
    done = case.run()
    assert done.returncode == 0, done.stderr
    folder = case.models / FOLDERS[name] / "1-gpu"
    assert case.out() == [greedy(folder, prompt) for prompt in PROMPTS]
    assert sorted(path.name for path in case.cwd.iterdir()) == ["out", "start_ids.csv", "x.ini"]


NUMBER = r"\d+\.\d\d"


def expected_lines(name: str, out: list[list[int]]) -> list[str]:
    flat = [token for row in out for token in row]
    device, rank = r"Device \S.*", r"P0 is running with CPU #0\."
    return [
        r"Total ranks: 1\.",
        *([device, rank] if name == "llama_example" else [rank, device]),
        r"after allocation    : free: +[\d.]+ GB, total: +[\d.]+ GB, used: +[\d.]+ GB",
        rf"Writing {len(flat)} elements",
        re.escape("".join(f"{token:5d} " for token in flat[:10])),
        rf"zeroCount = {flat.count(0)}",
        r"\[INFO\] request_batch_size 2 beam_width 1 head_num 4 size_per_head 16 "
        rf"total_output_len {TOTAL} decoder_layers 2 vocab_size 160 "
        rf"FT-CPP-decoding-beamsearch-time {NUMBER} ms",
        rf"\[INFO\] prefill {NUMBER} ms, {NUMBER} tokens/s \(7 tokens\)",
        rf"\[INFO\] decode {NUMBER} ms/token, {NUMBER} tokens/s \(\d+ tokens\), \d+ threads",
        r"\[INFO\] P0 peak memory \d+\.\d MB",
    ]


@pytest.mark.parametrize("name", list(FOLDERS))
def test_lines_are_fts_in_fts_order_and_then_ours(case: Case, name: str) -> None:
    case.name = name
    lines = case.run().stdout.splitlines()
    patterns = expected_lines(name, case.out())
    assert len(lines) == len(patterns)
    for line, pattern in zip(lines, patterns, strict=True):
        assert re.fullmatch(pattern, line), (pattern, line)


@needs_mpi
@pytest.mark.parametrize("name", list(FOLDERS))
def test_two_ranks_write_what_one_writes(case: Case, tmp_path: Path, name: str) -> None:
    case.name = name
    assert case.run().returncode == 0
    alone = case.out()
    (case.cwd / "out").unlink()
    case.ranks = 2
    done = case.run()
    assert done.returncode == 0, done.stderr
    assert case.out() == alone
    assert "Total ranks: 2." in done.stdout
    for rank in range(2):
        assert f"P{rank} is running with CPU #{rank}." in done.stdout
        assert f"[INFO] P{rank} peak memory" in done.stdout
    assert done.stdout.count("FT-CPP-decoding-beamsearch-time") == 2


@pytest.mark.parametrize("mode", [1, 2])
def test_float_folders_are_quantised_at_load(case: Case, mode: int) -> None:
    case.keys["ft_instance_hyperparameter.int8_mode"] = str(mode)
    done = case.run()
    assert done.returncode == 0, done.stderr
    assert [row[: len(prompt)] for row, prompt in zip(case.out(), PROMPTS, strict=True)] == PROMPTS


@pytest.mark.parametrize("where", devices())
def test_a_w6ax_folder_runs_as_mode_5_and_as_nothing_else(case: Case, where: str) -> None:
    case.keys["ft_instance_hyperparameter.model_dir"] = str(case.models / "llama-w6ax" / "1-gpu")
    case.keys["ft_instance_hyperparameter.int8_mode"] = "5"
    case.keys["ft_instance_hyperparameter.device"] = where
    case.keys["ft_instance_hyperparameter.data_type"] = "fp32" if where == "cpu" else "fp16"
    done = case.run()
    assert done.returncode == 0, done.stderr
    assert [row[: len(prompt)] for row, prompt in zip(case.out(), PROMPTS, strict=True)] == PROMPTS
    case.keys["ft_instance_hyperparameter.int8_mode"] = "0"
    done = case.run()
    assert done.returncode == 2
    assert "int8_mode is 0, but" in done.stderr and "has 5 (w6ax)" in done.stderr


REFUSALS = {
    "ft_instance_hyperparameter.pipeline_para_size": ("2", "pipeline_para_size is 2"),
    "request.beam_width": ("4", "beam_width is 4"),
    "ft_instance_hyperparameter.sparse": ("1", "sparse is 1"),
    "m.num_tasks": ("2", "num_tasks is 2"),
    "m.head_num": ("32", "head_num is 32, but "),
    "m.decoder_layers": ("9", "decoder_layers is 9, but "),
    "ft_instance_hyperparameter.int8_mode": ("5", "int8_mode is 5, but "),
    "ft_instance_hyperparameter.tensor_para_size": ("2", "was made for 1 rank"),
    "ft_instance_hyperparameter.data_type": ("int8", "allowed are fp32, fp16 and bf16"),
    "ft_instance_hyperparameter.model_dir": ("nowhere", "model_dir 'nowhere' is not a folder"),
    "request.request_output_lenght": ("4", "did you mean 'request_output_len'?"),
    "request.request_batch_size": ("3", "request_batch_size is 3, but start_ids.csv has 2 lines"),
    "request.total_output_len": ("65", "the model's context is 64"),
    "ft_instance_hyperparameter.max_seq_len": ("7", "max_seq_len is 7"),
    "request.top_p": ("2.0", "top_p"),
}


@pytest.mark.parametrize("key", list(REFUSALS))
def test_what_cannot_be_done_is_refused_by_name_and_writes_nothing(case: Case, key: str) -> None:
    value, message = REFUSALS[key]
    case.keys[key] = value
    if key.startswith("m."):
        case.keys["ft_instance_hyperparameter.model_name"] = "m"
    done = case.run()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert not (case.cwd / "out").exists()


def test_a_max_seq_len_beyond_the_models_positions_is_not_the_limit(case: Case) -> None:
    case.keys["ft_instance_hyperparameter.max_seq_len"] = "2048"
    case.keys["request.total_output_len"] = "65"
    done = case.run()
    assert done.returncode == 2 and "the model's context is 64" in done.stderr


def test_lines_that_a_full_disk_swallows_are_an_error(case: Case) -> None:
    case.run()
    command = [program(case.name), "x.ini"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command, cwd=case.cwd, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1 and "error: stdout cannot be written" in done.stderr


def test_without_standard_streams_the_ids_are_written_all_the_same(case: Case) -> None:
    case.run()
    expected = case.out()
    (case.cwd / "out").unlink()
    command = f"{program(case.name)} x.ini <&- >&- 2>&-"
    assert subprocess.run(command, cwd=case.cwd, shell=True, check=False).returncode == 0
    assert case.out() == expected


@pytest.mark.skipif(bool(_native.gpus()), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_exit_4_and_auto_is_the_cpu(case: Case) -> None:
    case.keys["ft_instance_hyperparameter.device"] = "auto"
    assert "P0 is running with CPU #0." in case.run().stdout
    (case.cwd / "out").unlink()
    case.keys["ft_instance_hyperparameter.device"] = "cuda"
    done = case.run()
    assert (done.returncode, done.stdout) == (4, "")
    assert "device is cuda, but rank 0 has no GPU" in done.stderr
    assert not (case.cwd / "out").exists()


def test_repetition_and_presence_penalty_exclude_each_other(case: Case) -> None:
    case.keys |= {"request.repetition_penalty": "1.2", "request.presence_penalty": "0.5"}
    done = case.run()
    assert done.returncode == 2
    assert "repetition_penalty" in done.stderr and "presence_penalty" in done.stderr


def test_ids_outside_the_vocabulary_are_named_with_their_line(case: Case) -> None:
    case.start_ids = "1, 2\n3, 160"
    done = case.run()
    assert done.returncode == 2
    assert "start_ids.csv:2: id 160 is not in the vocabulary of 160" in done.stderr


def test_words_beside_the_start_ids_stop_and_forbid(case: Case) -> None:
    assert case.run().returncode == 0
    free = case.out()[0][len(PROMPTS[0]) :]
    case.start_ids = ", ".join(map(str, PROMPTS[0]))
    (case.cwd / "stop_words.csv").write_text(f"{free[0]}, {free[1]}\n2, -1\n")
    assert case.run().returncode == 0
    end = _native.open_model_folder(str(case.models / "llama" / "1-gpu")).config.eos_ids[0]
    assert case.out()[0][len(PROMPTS[0]) :] == free[:2] + [end] * (NEW - 2)
    (case.cwd / "stop_words.csv").unlink()
    (case.cwd / "bad_words.csv").write_text(f"{free[0]}\n1\n")
    assert case.run().returncode == 0
    assert free[0] not in case.out()[0][len(PROMPTS[0]) :]


def test_end_id_and_total_length_of_the_ini_hold(case: Case) -> None:
    assert case.run().returncode == 0
    first = case.out()[0][len(PROMPTS[0])]
    case.keys |= {
        "ft_instance_hyperparameter.model_name": "m",
        "m.end_id": str(first),
        "request.total_output_len": "20",
        "request.request_batch_size": "1",
    }
    assert case.run().returncode == 0
    assert case.out() == [PROMPTS[0] + [first] * (20 - len(PROMPTS[0]))]


def test_a_short_weight_file_is_exit_3(case: Case) -> None:
    folder = case.cwd / "1-gpu"
    shutil.copytree(case.models / "llama" / "1-gpu", folder)
    os.truncate(folder / "model.final_layernorm.weight.bin", 12)
    case.keys["ft_instance_hyperparameter.model_dir"] = str(folder)
    done = case.run()
    assert done.returncode == 3
    assert "model.final_layernorm.weight.bin holds 12 bytes, expected 256" in done.stderr
    assert not (case.cwd / "out").exists()


@needs_mpi
def test_a_fault_of_one_rank_ends_all_with_its_name_and_code(case: Case) -> None:
    folder = case.cwd / "2-gpu"
    shutil.copytree(case.models / "llama" / "2-gpu", folder)
    os.truncate(folder / "model.layers.1.attention.dense.weight.1.bin", 12)
    case.ranks = 2
    case.keys["ft_instance_hyperparameter.model_dir"] = str(folder)
    done = case.run()
    assert done.returncode == 3
    assert "rank:  1 on" in done.stderr and "attention.dense.weight.1.bin" in done.stderr


@needs_mpi
def test_what_was_typed_wrong_is_said_once_for_all_ranks(case: Case) -> None:
    case.ranks = 2
    case.keys["request.beam_width"] = "2"
    done = case.run()
    assert done.returncode == 2
    assert done.stderr.count("error: ") == 1


@needs_mpi
def test_a_world_of_another_size_names_both_and_the_command(case: Case) -> None:
    case.keys |= {
        "ft_instance_hyperparameter.tensor_para_size": "2",
        "ft_instance_hyperparameter.model_dir": str(case.models / "llama" / "2-gpu"),
    }
    done = case.run()
    assert done.returncode == 2
    assert "tensor_para_size is 2, but the world has 1 rank" in done.stderr
    assert "Try:   mpirun -n 2 llama_example x.ini" in done.stderr


@pytest.mark.parametrize("name", list(FOLDERS))
def test_without_arguments_the_shipped_ini_is_read(case: Case, name: str) -> None:
    done = subprocess.run(
        [program(name)], cwd=case.cwd, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2
    assert re.search(r"model_dir 'models/\w+/1-gpu' is not a folder", done.stderr)
    shipped = re.search(r"Try:   set model_dir in (.*)", done.stderr)
    assert shipped and Path(shipped[1]).is_file()


@pytest.mark.parametrize("name", list(FOLDERS))
def test_the_shipped_ini_runs_with_three_edits(case: Case, repo_root: Path, name: str) -> None:
    configs = repo_root / "configs"
    ini = "llama_config.ini" if name == "llama_example" else "gpt_config.ini"
    family = FOLDERS[name]
    text = (configs / ini).read_text()
    for key, value in {
        "model_dir": case.models / family / "1-gpu",
        "int8_mode": 0,
        "tensor_para_size": 1,
    }.items():
        text, edits = re.subn(rf"(?m)^{key} = .*$", f"{key} = {value}", text)
        assert edits == 1
    (case.cwd / ini).write_text(text)
    (case.cwd / "ids.csv").write_text("1, 2, 3\n")
    done = subprocess.run(
        [program(name), ini, "ids.csv"],
        cwd=case.cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    assert "request_batch_size 1 " in done.stdout


def test_the_shipped_start_ids_are_in_small_vocabularies_too(repo_root: Path) -> None:
    rows = (repo_root / "configs/start_ids.csv").read_text().splitlines()
    ids = [int(field) for row in rows for field in row.split(",")]
    assert ids and max(ids) < 1000


def test_help_says_what_to_type_and_what_is_read_without_it() -> None:
    done = subprocess.run(
        [program("llama_example"), "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert done.stdout.startswith("usage: llama_example [INI [START_IDS]]\n")
    assert "llama_config.ini" in done.stdout


@pytest.mark.parametrize(("given", "expected"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7")])
def test_waiting_threads_do_not_spin_unless_the_user_says_so(
    given: dict[str, str], expected: str
) -> None:
    plain = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [program("llama_example"), "--help"],
        env=plain | {"OMP_DISPLAY_ENV": "verbose"} | given,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    shown = re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)
    if not shown:
        pytest.skip("not built with libgomp")
    assert shown[-1] == expected

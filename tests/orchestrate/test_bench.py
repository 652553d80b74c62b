"""bench latency without a model: sampling, warm-up, turns, the roofline, flags, the table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flexq_ft import _native
from flexq_ft.errors import ConfigError, OutOfMemoryError
from flexq_ft.orchestrate import devices, shapes
from flexq_ft.orchestrate.bench import report, session
from flexq_ft.orchestrate.bench import row as rows_of
from flexq_ft.orchestrate.bench.case import Case, find_subject, plan_cases
from flexq_ft.orchestrate.bench.measure import Repeat, Runner, make_sample, run_rounds
from flexq_ft.orchestrate.bench.roofline import (
    ModelSizes,
    decode_bytes,
    mean_context,
    prefill_operations,
)
from flexq_ft.orchestrate.bench.row import Machine
from flexq_ft.orchestrate.bench.samples import percentile, summary, variation
from flexq_ft.orchestrate.bench.session import Session, Settings
from flexq_ft.orchestrate.devices import Device
from flexq_ft.orchestrate.engine.client import TokenEvent
from flexq_ft.orchestrate.engine.local import LocalEngine
from flexq_ft.orchestrate.gpu_state import GpuState
from tests.orchestrate.fakes import FakeNative, fake_info
from tests.orchestrate.schemas import validate


def endless(ids: list[int]) -> list[int]:
    return [7] * 999


def runner(native: FakeNative, *, name: str = "a", batch: int = 2, output: int = 5) -> Runner:
    return Runner(name, LocalEngine(native, fake_info()), batch, 3, output, seed=9)


def events(*tokens: tuple[int, float]) -> list[TokenEvent]:
    return [TokenEvent(i, 7, 0.0, None, 10.0, time) for i, time in tokens]


# Samples


def test_summary_of_known_values() -> None:
    got = summary([1.0, 2.0, 3.0, 4.0])
    assert got is not None
    assert (got["n"], got["p50"], got["mean"], got["min"], got["max"]) == (4, 2.5, 2.5, 1.0, 4.0)
    assert got["p90"] == pytest.approx(3.7) and got["p99"] is None
    assert got["stdev"] == pytest.approx(math.sqrt(5 / 3))
    assert got["interval95"] == pytest.approx(3.18 * got["stdev"] / 2)
    assert got["cv"] == pytest.approx(got["stdev"] / 2.5)


def test_one_value_has_no_spread_and_none_no_summary() -> None:
    got = summary([2.0])
    assert got is not None
    assert (got["p50"], got["p90"], got["stdev"], got["cv"]) == (2.0, 2.0, None, None)
    assert summary([]) is None and variation([1.0]) is None


def test_percentiles_lie_between_values() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([0.0, 10.0], 0.9) == pytest.approx(9.0)
    many = summary([float(i) for i in range(101)])
    assert many is not None and many["p99"] == 99.0


# One request


def test_device_times_are_split_where_every_sequence_has_its_first_token() -> None:
    steps = [[], events((0, 12.0)), events((0, 13.0), (1, 13.0)), events((0, 13.5), (1, 13.5))]
    sample = make_sample(steps, [1.0, 2.0, 4.0, 8.0], prompt_tokens=6)
    assert sample.prefill_device_ms == 7.0 and sample.decode_device_ms == [8.0]
    assert sample.timing.ttft_ms == 3000.0 and sample.steadiness_ms == sample.timing.tpot_ms


def test_device_times_of_other_steps_are_left_out() -> None:
    sample = make_sample([events((0, 11.0))], [1.0, 2.0], prompt_tokens=6)
    assert sample.prefill_device_ms is None and sample.decode_device_ms is None
    assert sample.steadiness_ms == sample.timing.ttft_ms == 1000.0


def test_requests_have_distinct_prompts_fixed_length_and_no_end() -> None:
    native = FakeNative(endless)
    one = runner(native)
    first, second = one.request(), one.request()
    prompts = [tuple(ids) for ids, _ in native.admitted]
    assert len(set(prompts)) == 4 and {len(prompt) for prompt in prompts} == {3}
    for _, params in native.admitted:
        assert params["ignore_eos"] and params["max_tokens"] == 5 and params["temperature"] == 0
    for sample in (first, second):
        assert (sample.prefill_device_ms, sample.decode_device_ms) == (10.0, [2.0] * 4)
    again = FakeNative(endless)
    runner(again).request()
    assert [ids for ids, _ in again.admitted] == [list(prompt) for prompt in prompts[:2]]


def test_step_times_from_before_the_request_are_not_its_own() -> None:
    native = FakeNative(endless)
    native.steps = 50  # of somebody else
    assert runner(native).request().decode_device_ms == [2.0] * 4


# Warm-up and rounds


class Scripted(Runner):
    """Whose requests take the scripted times, and are written down."""

    def __init__(self, name: str, times: Sequence[float], log: list[str]) -> None:
        super().__init__(name, LocalEngine(FakeNative(endless), fake_info()), 1, 3, 5, 0)
        self._times: Iterator[float] = iter(times)
        self._log = log

    def request(self) -> Any:
        self._log.append(self.name)
        return make_sample(
            [events((0, 11.0)), events((0, 11.0 + next(self._times)))], [1.0, 1.0], prompt_tokens=3
        )


@pytest.mark.parametrize(
    ("times", "limit", "requests", "is_steady"),
    [
        ([1.0] * 9, 20, 3, True),
        ([9.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], 20, 6, True),
        ([1.0, 2.0] * 20, 20, 20, False),
        ([1.0, 2.0] * 20, 4, 4, False),
        ([1.0] * 9, 1, 1, False),
    ],
)
def test_warm_up_ends_when_the_last_five_agree(
    times: list[float], limit: int, requests: int, is_steady: bool
) -> None:
    one = Scripted("a", times, [])
    one.warm(limit)
    assert one.warm_up is not None
    assert (one.warm_up.requests, one.warm_up.is_steady) == (requests, is_steady)


def test_schemes_take_turns_until_all_are_steady() -> None:
    log: list[str] = []
    a = Scripted("a", [1.0] * 99, log)
    b = Scripted("b", [1.0] * 3 + [1.05, 1.15] + [1.1] * 99, log)
    marks: list[int] = []
    run_rounds([a, b], Repeat(2, 30), warm_ups=3, started=lambda: marks.append(len(log)))
    assert log[:6] == list("aaabbb") and marks == [6]
    assert log[6:] == list("ab") * (len(log[6:]) // 2)
    assert 2 < len(a.samples) == len(b.samples) < 30
    assert b.is_steady()


def test_a_number_of_rounds_is_kept_to() -> None:
    a = Scripted("a", [1.0] * 99, [])
    run_rounds([a], Repeat(7, 7), warm_ups=3)
    assert len(a.samples) == 7


# Roofline


def step_bytes(sizes: ModelSizes, **changed: Any) -> dict[str, float]:
    usual = {"scheme": "fp16", "dtype": "fp16", "lm_head": "fp16", "ranks": 1, "batch": 1}
    return decode_bytes(sizes, **{**usual, "context": 143, **changed})


def test_bytes_of_a_step_are_those_counted_by_hand() -> None:
    sizes = ModelSizes.of_ini(shapes.find_shape("llama-7b"))
    got = step_bytes(sizes)
    linears = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    assert got["weights"] == 2 * (linears + 65 * 4096)
    assert got["lm_head"] == 2 * 32000 * 4096 and got["scales"] == 0
    assert got["kv_cache"] == 2 * 32 * 4096 * 2 * 143
    assert got["total"] == pytest.approx(13.21e9 + 0.075e9, rel=1e-3)  # 230 tok/s at 3.05 TB/s
    int8 = step_bytes(sizes, scheme="w8a8")
    assert int8["scales"] == 32 * 4 * (3 * 4096 + 4096 + 2 * 11008 + 4096)
    assert int8["weights"] == linears + 2 * 65 * 4096
    int6 = step_bytes(sizes, scheme="w6ax")
    assert int6["weights"] + int6["scales"] == pytest.approx(linears * 6.125 / 8, rel=1e-3)
    halves = step_bytes(sizes, ranks=2)
    assert halves["total"] == pytest.approx(got["total"] / 2, rel=1e-4)
    assert step_bytes(sizes, lm_head="w8")["lm_head"] == 32000 * 4096 + 4 * 32000
    assert step_bytes(sizes, lm_head="w6", ranks=2)["lm_head"] == 32000 * 4096 * 6.125 / 8 / 2


def test_kv_heads_that_ranks_share_are_read_by_each() -> None:
    sizes = ModelSizes.of_ini(shapes.find_shape("llama-2-70b"))
    whole = step_bytes(sizes, batch=4, context=100)
    split = step_bytes(sizes, ranks=16, batch=4, context=100)
    assert split["kv_cache"] == whole["kv_cache"] / 8


def test_operations_of_a_prefill() -> None:
    sizes = ModelSizes.of_ini(shapes.find_shape("llama-7b"))
    got = prefill_operations(sizes, batch=1, prompt_tokens=512)
    assert got == pytest.approx(2 * 6.476e9 * 512 + 2 * 32000 * 4096 + 32 * 4 * 4096 * 131328, 1e-3)


def test_mean_context_is_that_of_the_steps_after_the_first() -> None:
    seen = [15 + step for step in range(1, 256)]
    assert mean_context(15, 256) == sum(seen) / len(seen)


# Cases


def test_groups_differ_in_scheme_only_and_policies_go_where_they_belong() -> None:
    case = Case(model="m", policy="w6a8")
    groups = plan_cases(case, schemes=["fp16", "w6ax"], batches=[1, 8], prompts=[15], outputs=[2])
    assert [[(c.scheme, c.policy, c.batch) for c in group] for group in groups] == [
        [("fp16", None, 1), ("w6ax", "w6a8", 1)],
        [("fp16", None, 8), ("w6ax", "w6a8", 8)],
    ]
    with pytest.raises(ConfigError, match="no scheme takes one"):
        plan_cases(case, schemes=["fp16"], batches=[1], prompts=[1], outputs=[1])


def test_a_shape_needs_synthetic_weights_and_room() -> None:
    with pytest.raises(ConfigError, match="has no weights"):
        Case(model="llama-7b", is_shape=True)
    case = Case(model="llama-7b", is_shape=True, synthetic_weights=True, scheme="flexq")
    found = find_subject(case, cache_dir=None, notify=print, progress=None)
    assert (found.scheme, found.dtype) == ("w6ax", "fp16")
    assert found.found.policy is not None and found.found.policy["name"] == "flexq"
    long = Case(model="opt-13b", is_shape=True, synthetic_weights=True, prompt_tokens=2000)
    with pytest.raises(ConfigError, match="do not fit the model's 2048 positions"):
        find_subject(long, cache_dir=None, notify=print, progress=None)


# Flags


def state(**fields: Any) -> GpuState:
    return GpuState(name="G", **fields)


def gpu_machine(**fields: Any) -> Machine:
    return Machine(Device("cuda"), 1, 1e9, **fields)


@pytest.mark.parametrize(
    ("machine", "flags"),
    [
        (gpu_machine(at_start=[state()], before=[state()], after=[state(pids=(1,))]), []),
        (gpu_machine(at_start=[state(pids=(1,))], after=[state(pids=(1, 2))]), ["busy"]),
        (gpu_machine(at_start=[state(utilization_percent=40.0)]), ["busy"]),
        (gpu_machine(after=[state(pids=(1, 2, 3))]), ["busy"]),
        (gpu_machine(before=[state(slowdowns=("power cap",))]), ["throttled"]),
        (Machine(Device(), 1, 1e9, load=0.9), ["busy"]),
        (Machine(Device(), 1, 1e9, load=0.1), []),
    ],
)
def test_flags_of_the_machine(machine: Machine, flags: list[str]) -> None:
    assert machine.flags() == flags


# Whole cases over fake engines


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Engines are fakes with 64 positions; `lab["refuse"]` may raise when one is opened."""
    lab: dict[str, Any] = {"opened": [], "refuse": lambda options: None, "kv": 10_000, "note": ""}

    def open_engine(options: Any, ranks: Any) -> Any:
        lab["refuse"](options)
        native = FakeNative(endless, slots=options.max_batch)
        info = fake_info()
        memory = {"weights": 10, "kv_cache": 5, "activations": 1, "workspace": 0}
        fields = {**vars(info), "kv_tokens": lab["kv"], "memory_bytes": memory,
                  "step_note": lab["note"]}  # fmt: skip
        lab["opened"].append((options, native))
        return LocalEngine(native, type(info)(**fields))

    monkeypatch.setattr(session, "open_engine", open_engine)
    monkeypatch.setattr(session, "measure_bandwidth", lambda device, case: 100e9)
    monkeypatch.setattr(rows_of, "host_load", lambda: 0.0)
    monkeypatch.setattr(session, "host_load", lambda: 0.0)
    monkeypatch.setattr(_native, "gpus", list)
    return lab


def make_session(said: list[str], **settings: Any) -> Session:
    chosen = {"repeat": Repeat(2, 2), "warm_ups": 3, **settings}
    return Session(
        Settings(**chosen),
        notify=said.append,
        detail=lambda line: None,
        report_error=lambda error: {
            "kind": type(error).__name__, "message": str(error), "cause": "", "try": "",
            "exit_code": 1, "rank": None, "host": None,
        },
    )  # fmt: skip


def shape_group(*schemes: str, output: int = 6) -> list[Case]:
    case = Case(model="opt-6.7b", is_shape=True, synthetic_weights=True, tp=1)
    (group,) = plan_cases(case, schemes=schemes, batches=[2], prompts=[4], outputs=[output])
    return group


def test_a_group_is_measured_in_turns_and_its_rows_match_the_schema(lab: dict[str, Any]) -> None:
    said: list[str] = []
    rows = make_session(said, profile=True).measure(shape_group("fp16", "w8a8"))
    for row in rows:
        validate(row, "bench-latency.json", "#/$defs/row")
    assert [row["model"]["scheme"] for row in rows] == ["fp16", "w8a8"]
    assert all(row["interleaved"] for row in rows) and len(lab["opened"]) == 2
    options, _ = lab["opened"][0]
    assert options.synthetic_weights and options.model_dir.endswith("opt-6.7b.ini")
    assert (options.max_len, options.max_batch, options.device) == (10, 2, "cpu")
    decode, prefill = rows[0]["decode"], rows[0]["prefill"]
    assert decode["device_step_ms"]["p50"] == 2.0 and decode["device_tok_s"] == 1000.0
    assert decode["device_step_ms"]["n"] == 2 * 5 and prefill["device_ms"]["p50"] == 10.0
    assert decode["share_of_bandwidth"] == decode["bytes_per_rank"]["total"] / 2e-3 / 100e9
    assert "suspect" in rows[0]["flags"]  # 13 GB in 2 ms at 100 GB/s
    assert rows[0]["memory_bytes"]["total"] == 16
    assert rows[0]["profile"] is None
    assert said == ["no profile: the nodes of a step are timed on GPUs only"]


def test_the_reproduce_line_measures_the_same_case(lab: dict[str, Any]) -> None:
    (row,) = make_session([]).measure(shape_group("w8a8"))
    line = row["reproduce"]
    assert line.startswith("flexq-ft bench latency --shape opt-6.7b --synthetic-weights ")
    for part in ("--scheme w8a8", "--batch 2", "--prompt-tokens 4", "--output-tokens 6",
                 "--device cpu", "--tp 1", "--seed 0", "--repeat 2"):  # fmt: skip
        assert part in line
    assert "--step-kernel" not in line
    (row,) = make_session([]).measure([replace(shape_group("w8a8")[0], step_kernel="off")])
    assert "--step-kernel off" in row["reproduce"] and lab["opened"][-1][0].step_kernel == "off"


def test_one_output_token_has_no_decode(lab: dict[str, Any]) -> None:
    (row,) = make_session([]).measure(shape_group("fp16", output=1))
    validate(row, "bench-latency.json", "#/$defs/row")
    assert row["decode"] is None and row["samples"]["tpot_ms"] == []
    assert "decode" not in str(report.cells([row]))


def test_without_room_for_all_each_is_measured_alone(lab: dict[str, Any]) -> None:
    def refuse(options: Any) -> None:
        if options.scheme == "w8a8" and len(lab["opened"]) == 1:
            raise OutOfMemoryError("no room for two")

    lab["refuse"] = refuse
    said: list[str] = []
    rows = make_session(said).measure(shape_group("fp16", "w8a8"))
    assert [row["interleaved"] for row in rows] == [False, False]
    assert said == ["one scheme after another, not in turns: no room for two"]


def test_a_case_that_fails_is_a_row_beside_the_others(lab: dict[str, Any]) -> None:
    def refuse(options: Any) -> None:
        if options.scheme == "w8a8":
            raise ConfigError("not today")

    lab["refuse"] = refuse
    rows = make_session([]).measure(shape_group("fp16", "w8a8"))
    assert [row["error"] and row["error"]["message"] for row in rows] == [None, "not today"]
    for row in rows:
        validate(row, "bench-latency.json", "#/$defs/row")
    text = report.markdown(rows, title="t")
    assert "failed" in text and "ConfigError" in text
    assert report.to_csv(rows).count("\n") == 1 + 2 + 1


def test_a_cache_too_small_for_the_batch_is_refused(lab: dict[str, Any]) -> None:
    lab["kv"] = 19
    (row,) = make_session([]).measure(shape_group("fp16"))
    assert row["error"]["kind"] == "OutOfMemoryError" and "needs 20" in row["error"]["message"]


def test_profile_sums_nodes_of_one_name(
    lab: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = {"name": "H100"}
    for module in (devices, rows_of):
        monkeypatch.setattr(module, "gpus", lambda: [gpu])
    states = [GpuState(sm_mhz=1980.0, power_w=400.0)]
    monkeypatch.setattr(session, "read_states", lambda gpus: states[: len(gpus)])
    lab["note"] = "decode steps of one sequence run as one kernel"
    (row,) = make_session([], profile=True).measure(shape_group("fp16"))
    validate(row, "bench-latency.json", "#/$defs/row")
    assert row["machine"]["step_note"] == lab["note"]
    assert f"; {lab['note']}\n" in report.markdown([row], title="t")
    assert row["config"]["device"] == "cuda:0" and row["machine"]["name"] == "H100"
    assert row["machine"]["gpus_after"][0]["power_w"] == 400.0
    assert "1,980 MHz SM, 400 W" in report.markdown([row], title="t")
    lines = report.profile_cells(row)
    assert lines[0] == ["qkv", "2", "1.0000", "0.5000", "8.0", "8.0%"]
    assert lines[-1][:3] == ["all", "3", "1.2500"]
    assert "## One decode step, op by op: fp16, batch 2" in report.markdown([row], title="t")


def test_read_bandwidth_is_plausible_and_arguments_are_checked(tmp_path: Path) -> None:
    rate = _native.measure_read_bandwidth(device="cpu", bytes=1 << 24, passes=3)
    assert 1e8 < rate < 1e13
    with pytest.raises(ConfigError):
        _native.measure_read_bandwidth(device="tpu")

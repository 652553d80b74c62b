"""Sweep files: ranges, unknown keys with their line, exclusions and inclusions."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from flexq_ft.converter.options import CalibrationOptions
from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate.bench.roofline import ModelSizes
from flexq_ft.orchestrate.sweep.case_config import Case
from flexq_ft.orchestrate.sweep.command import case_arguments
from flexq_ft.orchestrate.sweep.plan import plan_cases
from flexq_ft.orchestrate.sweep.spec import SCHEMA, expand_numbers, load_spec
from tests.orchestrate.sweeps import parsed_case

ROOT = Path(__file__).parents[2]


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def cases_of(tmp_path: Path, **content: Any) -> list[Case]:
    path = write(tmp_path, yaml.safe_dump({"schema": SCHEMA, "model": "m", **content}))
    return plan_cases(load_spec(path), base=tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (8, [8]),
        ("8", [8]),
        ("1,2,4", [1, 2, 4]),
        ("1-4", [1, 2, 3, 4]),
        ("1-64*2", [1, 2, 4, 8, 16, 32, 64]),
        ("1-100*3", [1, 3, 9, 27, 81]),
        ("128-1024+128", [128, 256, 384, 512, 640, 768, 896, 1024]),
        ("5-5", [5]),
        ("2k", [2048]),
        ("1k-4k*2", [1024, 2048, 4096]),
        (["1-4*2", 15, "20,30"], [1, 2, 4, 15, 20, 30]),
    ],
)
def test_ranges_of_numbers(text: object, expected: list[int]) -> None:
    assert expand_numbers(text) == expected


@pytest.mark.parametrize("text", ["8-1", "1-8*1", "0-8*2", "1-8+0", "1-1000000"])
def test_range_that_never_ends_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"sweep\.yaml:\d+: matrix\.batch: the range"):
        cases_of(tmp_path, matrix={"batch": text})


@pytest.mark.parametrize("text", ["1-x", "four", "1.5k"])
def test_a_text_that_is_no_number_is_refused_with_the_grammar(tmp_path: Path, text: str) -> None:
    said = rf"sweep\.yaml:\d+: matrix\.batch: '{text}' is not a number above 0, or a range such"
    with pytest.raises(ConfigError, match=said):
        cases_of(tmp_path, matrix={"batch": text})


def test_unknown_key_names_line_and_nearest(tmp_path: Path) -> None:
    text = "schema: flexq-ft/sweep/1\nmodel: m\n\n# sizes\nmatrix:\n  scheme: fp16\n  batchs: 3\n"
    with pytest.raises(ConfigError) as caught:
        load_spec(write(tmp_path, text))
    assert caught.value.message.endswith(
        "sweep.yaml:7: unknown key 'batchs'; did you mean 'batch'?"
    )
    assert caught.value.exit_code == 2


def test_unknown_key_inside_flow_style_list(tmp_path: Path) -> None:
    text = (
        "schema: flexq-ft/sweep/1\nmodel: m\nmatrix: {scheme: fp16}\n"
        "include:\n  - {scheme: fp16}\n  - {scheme: fp16,\n     promt_tokens: 3}\n"
    )
    with pytest.raises(ConfigError, match=r":7: unknown key 'promt_tokens'; did you mean 'prompt_"):
        load_spec(write(tmp_path, text))


def test_unknown_key_without_a_near_name_lists_the_known(tmp_path: Path) -> None:
    text = "schema: flexq-ft/sweep/1\nmodel: m\nmatrix: {}\nquality: {ppl: {text: t, zzz: 1}}\n"
    with pytest.raises(ConfigError, match="known: text, protocol, window, max_windows"):
        load_spec(write(tmp_path, text))


def test_all_faults_are_reported_at_once(tmp_path: Path) -> None:
    text = "schema: flexq-ft/sweep/1\nmodle: m\nmatrix:\n  batch: 0\n  scheme: [fp16, int4]\n"
    with pytest.raises(ConfigError, match="3 faults") as caught:
        load_spec(write(tmp_path, text))
    for fragment in (":2: unknown key 'modle'", ":4: matrix.batch", ":5: matrix.scheme: unknown s"):
        assert fragment in caught.value.cause


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("schema: flexq-ft/sweep/2\nmodel: m\nmatrix: {}\n", ":1: schema"),
        ("model: m\nmatrix: {}\n", ":1: 'schema' is missing; this version reads schema: flexq-ft/"),
        ("schema: flexq-ft/sweep/1\nmodel: m\n", "no cases"),
        (
            "schema: flexq-ft/sweep/1\nmodel: m\nmodel: n\nmatrix: {}\n",
            ":3: key 'model' st",
        ),
        ("schema: [flexq\nmodel: m", r"sweep\.yaml:2"),
        ("- 1\n", "a sweep file is a mapping"),
        ("schema: &a [*a]\n", "holds itself"),
        ("", "a sweep file is a mapping"),
        ("schema: flexq-ft/sweep/1\nmatrix: {batch: 1.5}\n", ":2: matrix.batch"),
        ("schema: flexq-ft/sweep/1\nmatrix: {tp: true}\n", ":2: matrix.tp"),
        ("schema: flexq-ft/sweep/1\nmatrix: {batch: []}\n", ":2: matrix.batch"),
        ("schema: flexq-ft/sweep/1\nmatrix: {}\nrepeat: {min: 5, max: 2}\n", ":3: repeat: max"),
        ("schema: flexq-ft/sweep/1\nmatrix: {}\nquality: {agreement_with: fp16}\n", ":3: quality"),
    ],
)
def test_faulty_file_names_its_line(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        load_spec(write(tmp_path, text))


def test_product_in_the_order_of_the_axes(tmp_path: Path) -> None:
    cases = cases_of(tmp_path, matrix={"scheme": ["fp16", "flexq"], "batch": "1-4*2", "tp": [1, 2]})
    assert len(cases) == 12
    assert [(c.scheme, c.policy, c.tp, c.batch) for c in cases][:4] == [
        ("fp16", None, 1, 1),
        ("fp16", None, 1, 2),
        ("fp16", None, 1, 4),
        ("fp16", None, 2, 1),
    ]
    assert (cases[-1].scheme, cases[-1].policy) == ("w6ax", "flexq")
    assert len({case.case_id for case in cases}) == 12


def test_exclude_is_a_partial_match_and_spares_include(tmp_path: Path) -> None:
    cases = cases_of(
        tmp_path,
        matrix={"scheme": ["fp16", "w8a8"], "tp": [1, 2], "batch": [1, 2, 4]},
        exclude=[{"scheme": "w8a8", "tp": 2}, {"batch": "2-4*2", "scheme": "fp16"}],
        include=[{"scheme": "w8a8", "tp": 2, "batch": 7}],
    )
    assert [(c.scheme, c.tp, c.batch) for c in cases] == [
        ("fp16", 1, 1),
        ("fp16", 2, 1),
        ("w8a8", 1, 1),
        ("w8a8", 1, 2),
        ("w8a8", 1, 4),
        ("w8a8", 2, 7),
    ]


def test_exclude_short_form_is_one_policy_and_w6ax_is_all(tmp_path: Path) -> None:
    matrix = {"scheme": ["fp16", "w6a6", "w6a8"]}
    one = cases_of(tmp_path, matrix=matrix, exclude=[{"scheme": "w6a6"}])
    assert [(c.scheme, c.policy) for c in one] == [("fp16", None), ("w6ax", "w6a8")]
    none = cases_of(tmp_path, matrix=matrix, exclude=[{"scheme": "w6ax"}])
    assert [c.scheme for c in none] == ["fp16"]


def test_exclude_of_everything_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no case left"):
        cases_of(tmp_path, matrix={"scheme": "fp16"}, exclude=[{"scheme": "fp16"}])


def test_policy_axis_makes_no_duplicates_of_other_schemes(tmp_path: Path) -> None:
    cases = cases_of(tmp_path, matrix={"scheme": ["fp16", "w6ax"], "policy": ["w6a6", "w6a16"]})
    assert [(c.scheme, c.policy) for c in cases] == [
        ("fp16", None),
        ("w6ax", "w6a6"),
        ("w6ax", "w6a16"),
    ]


def test_policy_alone_means_w6ax(tmp_path: Path) -> None:
    (case,) = cases_of(tmp_path, matrix={"policy": "w6a8"})
    assert (case.scheme, case.policy) == ("w6ax", "w6a8")


def test_scheme_and_policy_that_contradict(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="already names a policy"):
        cases_of(tmp_path, include=[{"scheme": "w6a6", "policy": "w6a8"}])


def test_policy_that_is_neither_name_nor_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no policy 'flexqq'"):
        cases_of(tmp_path, matrix={"policy": "flexqq"})


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "text.txt").write_text("a text", encoding="utf-8")
    quality = {"ppl": {"text": "text.txt"}}
    (case,) = cases_of(tmp_path, matrix={"model": "../m"}, quality=quality)
    assert Path(case.model) == tmp_path.parent / "m"
    assert case.quality.ppl is not None
    assert Path(case.quality.ppl.text) == tmp_path / "text.txt"


def test_missing_text_is_known_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        cases_of(tmp_path, matrix={}, quality={"ppl": {"text": "none.txt"}})


def test_replaced_model_or_text_is_a_new_case(tmp_path: Path) -> None:
    model, text = tmp_path / "m", tmp_path / "text.txt"
    model.write_bytes(b"old")
    text.write_text("old", encoding="utf-8")

    def case_id() -> str:
        (case,) = cases_of(tmp_path, matrix={}, quality={"ppl": {"text": "text.txt"}})
        return case.case_id

    first = case_id()
    assert case_id() == first
    text.write_text("new", encoding="utf-8")
    second = case_id()
    model.write_bytes(b"longer")
    assert len({first, second, case_id()}) == 3


def test_replaced_policy_file_is_a_new_case_and_a_new_evaluation(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(b"model")
    (tmp_path / "text.txt").write_text("text", encoding="utf-8")
    found = []
    for rule in ("[0]", "[1]"):
        (tmp_path / "half.yaml").write_text(f"rules: {rule}", encoding="utf-8")
        matrix = {"policy": ["half.yaml", "w6a6"]}
        cases = cases_of(tmp_path, matrix=matrix, quality={"ppl": {"text": "text.txt"}})
        found.append([(case.case_id, case.quality_id()) for case in cases])
    (first, built_in), (second, again) = found
    assert first[0] != second[0] and first[1] != second[1] and built_in == again


SHIPPED = {  # cases, models, most processes
    "demo": (5, 1, 5),
    "quick": (8, 1, 16),
    "paper-e2e": (24, 4, 48),
    "batch": (29, 2, 58),
    "context": (39, 2, 78),
    "llama3": (9, 3, 18),
    "tp2": (20, 3, 40),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_sweeps_are_valid(name: str) -> None:
    path = ROOT / "configs" / "sweeps" / f"{name}.yaml"
    spec = load_spec(path)
    cases = plan_cases(spec, base=path.parent)
    models = {case.model for case in cases}
    assert (len(cases), len(models), len(cases) * spec.rounds) == SHIPPED[name]
    assert {case.scheme for case in cases} >= {"fp16", "w8a8", "w6ax"}
    for case in cases:
        assert case.device == ("cpu" if name == "quick" else "auto" if name == "demo" else "cuda")
        if case.synthetic_weights:
            longest = ModelSizes.of_ini(case.source()).max_positions
            assert case.prompt_tokens + case.output_tokens <= longest


def test_no_shipped_sweep_is_untested() -> None:
    assert {path.stem for path in (ROOT / "configs" / "sweeps").glob("*.yaml")} == {*SHIPPED}


def test_the_paper_s_baselines_run_in_both_forms() -> None:
    path = ROOT / "configs" / "sweeps" / "paper-e2e.yaml"
    cases = plan_cases(load_spec(path), base=path.parent)
    for model in ("llama-7b", "llama-13b", "llama-30b", "opt-30b"):
        forms = {
            scheme: [c.step_kernel for c in cases if (c.model, c.scheme) == (model, scheme)]
            for scheme in ("fp16", "w8a8", "w8a16", "w6ax")
        }
        both = ["auto", "off"]
        assert forms == {"fp16": both, "w8a8": both, "w8a16": ["auto"], "w6ax": ["auto"]}
    assert {case.lm_head for case in cases} == {None}


def test_the_paper_s_lengths_are_prefixes_of_one_request() -> None:
    path = ROOT / "configs" / "sweeps" / "paper-e2e.yaml"
    for case in plan_cases(load_spec(path), base=path.parent):
        assert case.lengths() == [128, 256, 512, 1024]
        assert (case.prompt_tokens, case.batch, case.repeat.max) == (15, 1, 1)


def test_on_and_off_are_words_though_yaml_reads_truth_values(tmp_path: Path) -> None:
    text = (
        f"schema: {SCHEMA}\nmodel: m\nmatrix: {{step_kernel: [auto, on, off], batch: [1, 2]}}\n"
        "exclude: [{step_kernel: off, batch: 2}]\n"
        "include: [{step_kernel: on, batch: 3}]\n"
    )
    cases = plan_cases(load_spec(write(tmp_path, text)), base=tmp_path)
    assert [(case.step_kernel, case.batch) for case in cases] == [
        ("auto", 1), ("auto", 2), ("on", 1), ("on", 2), ("off", 1), ("on", 3),
    ]  # fmt: skip
    assert len({case.case_id for case in cases}) == 6
    labels = [case.label() for case in cases]
    assert labels[2].startswith("m as converted one kernel tp 1")
    assert labels[4].startswith("m as converted op by op tp 1")
    for case in cases:
        assert parsed_case(case_arguments(case)) == case
    with pytest.raises(ConfigError, match=r"matrix\.step_kernel: .*, not 'never'"):
        cases_of(tmp_path, matrix={"step_kernel": "never"})


def test_heads_are_an_axis(tmp_path: Path) -> None:
    cases = cases_of(tmp_path, matrix={"scheme": "flexq", "lm_head": ["fp16", "w8"]})
    assert [case.lm_head for case in cases] == ["fp16", "w8"]
    assert cases[1].label().startswith("m w6ax flexq lm_head w8 tp 1")
    assert len({case.quality_id() for case in cases}) == 2
    assert parsed_case(case_arguments(cases[1])) == cases[1]
    with pytest.raises(ConfigError, match=r"matrix\.lm_head"):
        cases_of(tmp_path, matrix={"lm_head": "w4"})


PREPARED = {"rotate": [False, True], "smooth": [False, True], "rounding": ["nearest", "gptq"]}


def test_preparations_are_axes_of_the_schemes_that_have_them(tmp_path: Path) -> None:
    (tmp_path / "calib.txt").write_text("words", encoding="utf-8")
    cases = cases_of(
        tmp_path,
        matrix={"scheme": ["fp16", "w8a8", "flexq"], **PREPARED},
        exclude=[{"rounding": "gptq", "smooth": True}],
        include=[{"scheme": "w6a8", "rounding": "scale-search"}],
        calibration={"text": "calib.txt", "sequences": 4},
    )
    names = [case.label().partition(" tp ")[0] for case in cases]
    flexq = ["", " gptq", " smoothed", " rotated", " rotated gptq", " rotated smoothed"]
    assert names == [
        *("m fp16", "m fp16 rotated"),
        *("m w8a8", "m w8a8 smoothed", "m w8a8 rotated", "m w8a8 rotated smoothed"),
        *(f"m w6ax flexq{preparation}" for preparation in flexq),
        "m w6ax w6a8 scale-search",
    ]
    for case in cases:
        assert (case.calibration is not None) == (case.smooth or case.rounding != "nearest")
    assert cases[3].preparation().calibration == CalibrationOptions(
        text=tmp_path / "calib.txt", sequences=4
    )


def test_w8a8_is_smoothed_where_there_is_a_text_as_by_convert(tmp_path: Path) -> None:
    (tmp_path / "calib.txt").write_text("words", encoding="utf-8")
    found = []
    for content in ({}, {"calibration": {"text": "calib.txt"}}):
        cases = cases_of(tmp_path, matrix={"scheme": ["w8a16", "w8a8", "w6ax"]}, **content)
        found.append([case.smooth for case in cases])
    assert found == [[False, False, False], [False, True, False]]
    (tmp_path / "m" / "1-gpu").mkdir(parents=True)
    (case,) = cases_of(tmp_path, matrix={"scheme": "w8a8"}, calibration={"text": "calib.txt"})
    assert not case.smooth and case.calibration is None  # it is as it was converted


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"matrix": {"smooth": True}}, "smooth and rounding gptq need a text"),
        ({"matrix": {}, "include": [{"rounding": "gptq"}]}, "smooth and rounding gptq need a text"),
        ({"matrix": {"rounding": "best"}}, "matrix.rounding"),
        ({"matrix": {"rotate": "yes please"}}, "matrix.rotate"),
        ({"matrix": {}, "calibration": {"text": "none.txt"}}, "none.txt, does not exist"),
        ({"matrix": {}, "calibration": {"text": "t", "lenght": 1}}, "did you mean 'length'"),
        ({"matrix": {"rotate": True}, "model": "opt-30b", "synthetic_weights": True}, "are random"),
    ],
)
def test_what_cannot_be_prepared_is_refused(
    tmp_path: Path, content: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected):
        cases_of(tmp_path, **content)


def test_a_replaced_calibration_is_a_new_case_and_a_new_evaluation(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(b"model")
    (tmp_path / "text.txt").write_text("text", encoding="utf-8")
    found = []
    for words in ("old", "new"):
        (tmp_path / "calib.txt").write_text(words, encoding="utf-8")
        cases = cases_of(
            tmp_path,
            matrix={"scheme": "flexq", "rounding": ["nearest", "gptq"]},
            calibration={"text": "calib.txt"},
            quality={"ppl": {"text": "text.txt"}},
        )
        found.append([(case.case_id, case.quality_id()) for case in cases])
    (nearest, gptq), (again, replaced) = found
    assert nearest == again and len({*nearest, *gptq, *replaced}) == 6


def test_weights_as_they_are_have_the_case_id_of_before_there_was_a_choice(tmp_path: Path) -> None:
    model = tmp_path / "m"
    model.write_bytes(b"model")
    (case,) = cases_of(tmp_path, matrix={"scheme": "w8a16", "output_tokens": 9}, latency_at=[4])
    known = {
        "case": {
            "model": str(model.resolve()),
            "synthetic_weights": False,
            "scheme": "w8a16",
            "policy": None,
            "dtype": None,
            "lm_head": None,
            "step_kernel": "auto",
            "tp": 1,
            "batch": 1,
            "prompt_tokens": 128,
            "output_tokens": 9,
            "latency_at": [4],
            "repeat": {"min": 3, "max": 3, "until_cv": None},
            "quality": {"ppl": None, "agreement_with": None},
            "seed": 0,
            "device": "auto",
        },
        "model_state": [["m", 5, model.stat().st_mtime_ns]],
    }
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
    assert case.case_id == digest[:16]


def test_random_weights_have_no_quality(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("words", encoding="utf-8")
    with pytest.raises(ConfigError, match="synthetic_weights are random"):
        cases_of(
            tmp_path,
            model="llama-7b",
            synthetic_weights=True,
            matrix={},
            quality={"ppl": {"text": "text.txt"}},
        )


def test_a_shape_is_a_name_or_an_ini_file(tmp_path: Path) -> None:
    ini = tmp_path / "mine.ini"
    ini.write_text((ROOT / "configs" / "models" / "llama-7b.ini").read_text(), encoding="utf-8")
    matrix = {"model": ["llama-7b", "mine.ini"]}
    exclude = [{"model": "llama-7b"}]
    cases = cases_of(tmp_path, synthetic_weights=True, matrix=matrix)
    assert [case.model for case in cases] == ["llama-7b", str(ini)]
    assert len({case.case_id for case in cases}) == 2
    (case,) = cases_of(tmp_path, synthetic_weights=True, matrix=matrix, exclude=exclude)
    assert case.source() == ini and case.scheme == "fp16"
    with pytest.raises(ConfigError, match="Did you mean 'llama-7b'"):
        cases_of(tmp_path, synthetic_weights=True, matrix={"model": "lama-7b"})


def test_lengths_beyond_every_output_are_refused(tmp_path: Path) -> None:
    cases = cases_of(tmp_path, matrix={"output_tokens": [8, 64]}, latency_at=[16, 4])
    assert [case.lengths() for case in cases] == [[4, 8], [4, 16, 64]]
    with pytest.raises(ConfigError, match="latency_at: 65 tokens, and no case has more than 64"):
        cases_of(tmp_path, matrix={"output_tokens": [8, 64]}, latency_at=[16, 65])

"""`extends` in sweep files: what is merged, where paths lead, which file a fault is in."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate.sweep.case_config import Case
from flexq_ft.orchestrate.sweep.plan import plan_cases
from flexq_ft.orchestrate.sweep.spec import SCHEMA, load_spec


def write(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def plan(path: Path) -> list[Case]:
    return plan_cases(load_spec(path), base=path.parent)


BELOW = {
    "schema": SCHEMA,
    "model": "m",
    "matrix": {"scheme": ["fp16", "w8a8"], "batch": [1, 2], "output_tokens": 9},
    "repeat": {"min": 2, "max": 5},
    "seed": 3,
}


def test_mappings_are_merged_and_values_replaced(tmp_path: Path) -> None:
    write(tmp_path, "below.yaml", yaml.safe_dump(BELOW))
    path = write(
        tmp_path,
        "above.yaml",
        f"schema: {SCHEMA}\nextends: below.yaml\nmatrix: {{batch: 4}}\nrepeat: {{max: 7}}\n",
    )
    cases = plan(path)
    assert [(case.scheme, case.batch, case.output_tokens) for case in cases] == [
        ("fp16", 4, 9),
        ("w8a8", 4, 9),
    ]
    assert {(case.repeat.min, case.repeat.max, case.seed) for case in cases} == {(2, 7, 3)}


def test_a_chain_of_three_and_the_uppermost_wins(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", yaml.safe_dump(BELOW))
    write(tmp_path, "b.yaml", f"schema: {SCHEMA}\nextends: a.yaml\nseed: 4\nmodel: n\n")
    path = write(tmp_path, "c.yaml", f"schema: {SCHEMA}\nextends: b.yaml\nseed: 5\n")
    assert {(Path(case.model).name, case.seed) for case in plan(path)} == {("n", 5)}


def test_paths_mean_what_they_mean_in_their_own_file(tmp_path: Path) -> None:
    below = {
        **BELOW,
        "matrix": {"model": ["one", "../two"], "policy": ["w6a6", "mine.yaml"]},
        "exclude": [{"model": "../two", "policy": "w6a6"}],
        "quality": {"ppl": {"text": "text.txt"}},
        "calibration": {"text": "calib.txt"},
    }
    write(tmp_path / "shared", "below.yaml", yaml.safe_dump(below))
    write(tmp_path / "shared", "text.txt", "words")
    write(tmp_path / "shared", "mine.yaml", "")
    write(tmp_path / "shared", "calib.txt", "words")
    path = write(
        tmp_path / "own",
        "above.yaml",
        f"schema: {SCHEMA}\nextends: ../shared/below.yaml\n"
        "include: [{model: three, scheme: w8a8}]\n",
    )
    cases = plan(path)
    found = [(Path(c.model).resolve(), c.policy and Path(c.policy).name) for c in cases]
    assert found == [
        (tmp_path / "shared" / "one", "w6a6"),
        (tmp_path / "shared" / "one", "mine.yaml"),
        (tmp_path / "two", "mine.yaml"),
        (tmp_path / "own" / "three", None),
    ]
    ppl = cases[0].quality.ppl
    assert ppl is not None and Path(ppl.text) == tmp_path / "shared" / "text.txt"
    calibration = cases[3].calibration
    assert calibration is not None
    assert Path(calibration.text) == tmp_path / "shared" / "calib.txt"


def test_a_fault_is_in_the_file_and_line_where_it_stands(tmp_path: Path) -> None:
    write(tmp_path, "below.yaml", f"schema: {SCHEMA}\nmodel: m\nmatrix:\n  batch: 0\n")
    path = write(tmp_path, "above.yaml", "extends: below.yaml\nmatrix:\n  scheme: int4\nsede: 1\n")
    with pytest.raises(ConfigError, match="3 faults") as caught:
        load_spec(path)
    for fragment in ("below.yaml:4: matrix.batch", "above.yaml:3: matrix.scheme", "'sede'"):
        assert fragment in caught.value.cause


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("extends: none.yaml\n", r"a\.yaml:1: extends: .*none\.yaml does not exist"),
        ("extends: a.yaml\n", "goes round in a circle"),
        ("seed: 1\nextends: b.yaml\n", r"b\.yaml:1: .*a\.yaml -> .* goes round in a circle"),
        ("extends: [b.yaml]\n", r"a\.yaml:1: extends: one file"),
        ("extend: b.yaml\n", "did you mean 'extends'"),
    ],
)
def test_what_cannot_be_extended(tmp_path: Path, text: str, expected: str) -> None:
    write(tmp_path, "b.yaml", "extends: a.yaml\n")
    with pytest.raises(ConfigError, match=expected):
        load_spec(write(tmp_path, "a.yaml", f"{text}schema: {SCHEMA}\nmodel: m\nmatrix: {{}}\n"))

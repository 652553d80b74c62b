"""Policies: names, YAML files, and errors that say where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from flexq_ft.converter.policy import BUILT_IN_POLICIES, resolve_policy
from flexq_ft.errors import ConfigError

LLAMA = ("qkv", "o", "gate_up", "down")
OPT = ("qkv", "o", "fc1", "fc2")


def resolve(text: str, tmp_path: Path, *, layers: int = 4) -> dict[str, Any]:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return resolve_policy(path, num_layers=layers, linears=LLAMA)


def test_files_and_built_ins_are_the_same(repo_root: Path) -> None:
    files = {p.stem: p for p in (repo_root / "configs/policies").glob("*.yaml")}
    assert sorted(files) == sorted(BUILT_IN_POLICIES)
    for name, path in files.items():
        assert yaml.safe_load(path.read_text(encoding="utf-8")) == BUILT_IN_POLICIES[name]
        by_name = resolve_policy(name, num_layers=2, linears=LLAMA)
        assert resolve_policy(path, num_layers=2, linears=LLAMA) == by_name


@pytest.mark.parametrize("text", ["", "- 6\n", "six\n"])
def test_a_file_of_another_kind_is_named_by_its_first_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"mine\.yaml:1: a policy is a mapping"):
        resolve(text, tmp_path)


def test_flexq_gives_eight_bits_to_the_second_ffn_linear_of_each_model() -> None:
    llama = resolve_policy("flexq", num_layers=2, linears=LLAMA)
    opt = resolve_policy("flexq", num_layers=2, linears=OPT)
    assert llama["rules"] == [{"layers": "*", "linear": "down", "act_bits": 8}]
    assert opt["rules"] == [{"layers": "*", "linear": "fc2", "act_bits": 8}]
    assert (llama["default"], llama["name"]) == (6, "flexq")


def test_all_forms_of_layers(tmp_path: Path) -> None:
    text = """\
schema: flexq-ft/policy/1
default: 16
rules:
  - {layers: "0-2", linear: qkv, act_bits: 8}
  - {layers: [0, 3], linear: o, act_bits: 6}
  - {linear: gate_up, act_bits: 8}
"""
    found = resolve(text, tmp_path)
    assert found["name"] == "mine"
    assert [rule["layers"] for rule in found["rules"]] == ["0-2", [0, 3], "*"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("defualt: 6\n", r"mine.yaml:2: unknown key 'defualt'; did you mean 'default'\?"),
        ("default: 7\n", r"mine.yaml:2: activation bits must be 6, 8 or 16, not 7"),
        ("rules:\n- {linear: dwon, act_bits: 8}\n", r"mine.yaml:3: .*'dwon'; did you mean 'down'"),
        ("rules:\n- {linear: down, bits: 8}\n", r"mine.yaml:3: unknown key 'bits'"),
        ("rules:\n- {linear: down}\n", r"mine.yaml:3: the rule has no 'act_bits'"),
        (
            "rules:\n- layers: '4-9'\n  linear: down\n  act_bits: 8\n",
            r"mine.yaml:3: the rule matches none of the 4 layers: '4-9'",
        ),
        ("rules:\n- {layers: [4], linear: o, act_bits: 8}\n", r"matches none of the 4 layers"),
        ("rules:\n- {layers: first, linear: o, act_bits: 8}\n", r"mine.yaml:3: layers must be"),
        ("rules:\n- {layers: [], linear: o, act_bits: 8}\n", r"mine.yaml:3: layers must be"),
        ("rules: down\n", r"mine.yaml:2: rules must be a list"),
    ],
)
def test_errors_name_the_line_and_the_nearest_key(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve("schema: flexq-ft/policy/1\n" + body, tmp_path)


def test_other_faults(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mine\.yaml is not valid YAML"):
        resolve("rules: &a [*a]\n", tmp_path)
    with pytest.raises(ConfigError, match="schema must be flexq-ft/policy/1"):
        resolve("default: 6\n", tmp_path)
    with pytest.raises(ConfigError, match=r"mine\.yaml:2 is not valid YAML") as caught:
        resolve("default: 6\nrules: [}\n", tmp_path)
    assert "\n" not in caught.value.cause
    with pytest.raises(ConfigError, match="neither a built-in name nor a file") as caught:
        resolve_policy("flexk", num_layers=1, linears=LLAMA)
    assert caught.value.hint == "--policy flexq"

"""Activation policies of w6ax: which linears get how many bits. Names, YAML files, checks.

A policy file:

    schema: flexq-ft/policy/1
    default: 6                                     # 6 | 8 | 16
    rules:                                         # the last match wins
      - {layers: "*", linear: down, act_bits: 8}   # layers: "*" | "0-3" | [0, 5]

The two linears of a feed-forward block have other names in gated models: `gate_up` and `fc1` mean
the first, `down` and `fc2` the second, so that one file serves every architecture.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flexq_ft.errors import ConfigError

__all__ = ["BUILT_IN_POLICIES", "POLICY_SCHEMA", "activation_bits", "resolve_policy"]

POLICY_SCHEMA = "flexq-ft/policy/1"
_LINEARS = ("qkv", "o", "gate_up", "down", "fc1", "fc2")
_SAME_PLACE = {"gate_up": "fc1", "fc1": "gate_up", "down": "fc2", "fc2": "down"}
_ACT_BITS = (6, 8, 16)

# The same as configs/policies/*.yaml, which a test compares.
BUILT_IN_POLICIES: dict[str, dict[str, Any]] = {
    "flexq": {
        "schema": POLICY_SCHEMA,
        "default": 6,
        "rules": [{"layers": "*", "linear": "down", "act_bits": 8}],
    },
    "w6a6": {"schema": POLICY_SCHEMA, "default": 6, "rules": []},
    "w6a8": {"schema": POLICY_SCHEMA, "default": 8, "rules": []},
    "w6a16": {"schema": POLICY_SCHEMA, "default": 16, "rules": []},
}


def resolve_policy(
    policy: str | Path | dict[str, Any], *, num_layers: int, linears: Sequence[str]
) -> dict[str, Any]:
    """The policy as manifest.json and the engine take it, checked against the model.

    policy: a built-in name, a YAML file, or a mapping of the same form. linears: the model's
    names, such as ("qkv", "o", "gate_up", "down").
    Raises ConfigError with file, line and the nearest known key; also for a rule that matches no
    layer of the model.
    """
    if isinstance(policy, dict):
        checker = _Checker(str(policy.get("name", "policy")), {})
        content: Any = policy
    else:
        checker, content = _load(policy)
    return checker.resolve(content, num_layers, tuple(linears))


def activation_bits(policy: Mapping[str, Any], layer: int, linear: str) -> int:
    """What a policy, as resolve_policy returns it, gives the input of this linear."""
    bits = int(policy["default"])
    for rule in policy["rules"]:
        if rule["linear"] == linear and _names_layer(rule["layers"], layer):
            bits = int(rule["act_bits"])
    return bits


def _names_layer(layers: str | list[int], layer: int) -> bool:
    if isinstance(layers, list):
        return layer in layers
    first, dash, last = layers.partition("-")
    return layers == "*" or (bool(dash) and int(first) <= layer <= int(last))


def _load(policy: str | Path) -> tuple[_Checker, Any]:
    if isinstance(policy, str) and policy in BUILT_IN_POLICIES:
        return _Checker(policy, {}), BUILT_IN_POLICIES[policy]
    path = Path(policy)
    if not path.is_file():
        near = difflib.get_close_matches(str(policy), BUILT_IN_POLICIES, n=1)
        raise ConfigError(
            f"policy {str(policy)!r} is neither a built-in name nor a file",
            hint=f"--policy {near[0] if near else ' | '.join(BUILT_IN_POLICIES)}",
        )
    lines: dict[tuple[str | int, ...], int] = {}
    try:
        text = path.read_text(encoding="utf-8")
        _collect_lines(yaml.compose(text, Loader=yaml.SafeLoader), (), lines)
        content = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        place, cause = path.name, str(error)
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark and error.problem:
            place, cause = f"{place}:{error.problem_mark.line + 1}", error.problem
        raise ConfigError(
            f"{place} is not valid YAML",
            cause=cause,
            hint="configs/policies/ has policies to start from",
        ) from error
    return _Checker(path.stem, lines, file=path.name), content


def _collect_lines(
    node: yaml.Node | None, place: tuple[str | int, ...], lines: dict[tuple[str | int, ...], int]
) -> None:
    """Line (from 1) of every key and list item."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            lines[(*place, str(key.value))] = key.start_mark.line + 1
            _collect_lines(value, (*place, str(key.value)), lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*place, index)] = item.start_mark.line + 1
            _collect_lines(item, (*place, index), lines)


@dataclass(frozen=True)
class _Checker:
    name: str
    lines: dict[tuple[str | int, ...], int]
    file: str = ""

    def resolve(self, content: Any, num_layers: int, linears: tuple[str, ...]) -> dict[str, Any]:
        if not isinstance(content, dict):
            raise self._error((), "a policy is a mapping with schema, default and rules")
        self._check_keys(content, ("schema", "name", "default", "rules"), ())
        if content.get("schema") != POLICY_SCHEMA:
            given = content.get("schema")
            raise self._error(("schema",), f"schema must be {POLICY_SCHEMA}, not {given!r}")
        rules = content.get("rules", [])
        if not isinstance(rules, list):
            raise self._error(("rules",), "rules must be a list")
        return {
            "schema": POLICY_SCHEMA,
            "name": self.name,
            "default": self._bits(content.get("default", 6), ("default",)),
            "rules": [
                self._rule(rule, ("rules", index), num_layers, linears)
                for index, rule in enumerate(rules)
            ],
        }

    def _rule(
        self, rule: Any, place: tuple[str | int, ...], num_layers: int, linears: tuple[str, ...]
    ) -> dict[str, Any]:
        if not isinstance(rule, dict):
            raise self._error(place, "a rule is a mapping with layers, linear and act_bits")
        self._check_keys(rule, ("layers", "linear", "act_bits"), place)
        for key in ("linear", "act_bits"):
            if key not in rule:
                raise self._error(place, f"the rule has no {key!r}")
        linear = rule["linear"]
        if linear not in _LINEARS:
            raise self._error(
                (*place, "linear"), f"unknown linear {linear!r}", str(linear), _LINEARS
            )
        if linear not in linears:
            linear = _SAME_PLACE[linear]
        layers = rule.get("layers", "*")
        first = self._first_layer(layers, (*place, "layers"))
        if first >= num_layers:
            raise self._error(
                (*place, "layers"), f"the rule matches none of the {num_layers} layers: {layers!r}"
            )
        bits = self._bits(rule["act_bits"], (*place, "act_bits"))
        return {"layers": layers, "linear": linear, "act_bits": bits}

    def _first_layer(self, layers: Any, place: tuple[str | int, ...]) -> int:
        """The lowest layer that a rule names."""
        if layers == "*":
            return 0
        if isinstance(layers, str):
            first, dash, last = layers.partition("-")
            if dash and first.isdecimal() and last.isdecimal() and int(first) <= int(last):
                return int(first)
        elif isinstance(layers, list) and layers and all(type(i) is int for i in layers):
            lowest: int = min(layers)
            if lowest >= 0:
                return lowest
        what = f"layers must be '*', a range such as '0-3', or a list, not {layers!r}"
        raise self._error(place, what)

    def _bits(self, value: Any, place: tuple[str | int, ...]) -> int:
        if isinstance(value, bool) or value not in _ACT_BITS:
            raise self._error(place, f"activation bits must be 6, 8 or 16, not {value!r}")
        return int(value)

    def _check_keys(
        self, mapping: dict[Any, Any], known: tuple[str, ...], place: tuple[str | int, ...]
    ) -> None:
        for key in mapping:
            if key not in known:
                raise self._error((*place, str(key)), f"unknown key {key!r}", str(key), known)

    def _error(
        self,
        place: tuple[str | int, ...],
        what: str,
        given: str = "",
        known: tuple[str, ...] = (),
    ) -> ConfigError:
        line = next((self.lines[p] for p in _outwards(place) if p in self.lines), 1)
        near = difflib.get_close_matches(given, known, n=1) if known else []
        where = f"{self.file}:{line}" if self.file else f"policy {self.name}"
        return ConfigError(
            f"{where}: {what}" + (f"; did you mean {near[0]!r}?" if near else ""),
            hint=f"one of {', '.join(known)}" if known else "",
            line=line,
        )


def _outwards(place: tuple[str | int, ...]) -> list[tuple[str | int, ...]]:
    return [place[:length] for length in range(len(place), 0, -1)]

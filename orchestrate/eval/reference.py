"""The float model that a quantised one is held against: the same checkpoint, another scheme."""

from __future__ import annotations

import json
from pathlib import Path

from flexq_ft.converter.folder import is_model_folder
from flexq_ft.converter.options import DTYPES
from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate.engine.info import EngineInfo


def find_reference(model: Path, against: str) -> tuple[Path, str | None]:
    """The path and scheme of the reference. against: fp16, bf16, fp32, or a folder.

    Raises ConfigError if MODEL is a converted folder, which holds one scheme only, and `against`
    names a scheme.
    """
    if against not in DTYPES:
        if not Path(against).exists():
            raise ConfigError(
                f"--against {against} is no folder, and none of {', '.join(DTYPES)}.",
                hint="--against fp16, or the folder of the float model",
            )
        return Path(against), None
    if is_model_folder(model):
        raise ConfigError(
            f"{model} is a converted folder, so --against {against} says nothing of where the "
            "float model is.",
            cause="a folder holds one scheme.",
            hint=f"--against FOLDER, which `flexq-ft convert SOURCE FOLDER --scheme {against}` "
            "writes; or the checkpoint itself as MODEL",
        )
    return model, against


def check_same_source(ours: Path, reference: Path) -> None:
    """Raises ConfigError unless both folders were made from the same source, as far as they say."""
    sources = [_source(folder) for folder in (ours, reference)]
    if None not in sources and sources[0] != sources[1]:
        cause = f"their sources have the sha256 {sources[0]} and {sources[1]}."
        raise _other_model(ours, reference, cause)


def check_same_vocabulary(ours: EngineInfo, reference: EngineInfo) -> None:
    """What folders that name no source must at least have in common. Raises ConfigError."""
    if ours.vocab_size != reference.vocab_size:
        cause = f"they have {ours.vocab_size:,} and {reference.vocab_size:,} tokens."
        raise _other_model(Path(ours.model_dir), Path(reference.model_dir), cause)


def _other_model(ours: Path, reference: Path, cause: str) -> ConfigError:
    return ConfigError(
        f"{ours} and {reference} are not the same model.",
        cause=cause,
        hint="--against FOLDER, converted from the same checkpoint",
    )


def _source(folder: Path) -> str | None:
    path = folder / "manifest.json"
    if not path.is_file():
        return None
    return str(json.loads(path.read_text(encoding="utf-8"))["source"]["sha256"])

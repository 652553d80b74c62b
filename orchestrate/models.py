"""MODEL on a command line or in LLM(): the folder it means, converted into a cache if need be.

The cache's key is made of the source files' names, sizes and times and of what was chosen, so that
no run reads a whole checkpoint only to find out that it is known.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexq_ft.converter.options import (
    DTYPES,
    POLICY_SCHEMES,
    CalibrationOptions,
    ConvertOptions,
    check_dtype,
)
from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate.model_cache import Use, cache_root, locked, source_files

if TYPE_CHECKING:
    from flexq_ft.converter.progress import ProgressSink

# A new number makes every cached model be converted again: the layout or its numbers changed.
CACHE_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What is done to a checkpoint's weights until they are rounded, as by `convert --rotate`,
    `--smooth` and `--rounding`, with its calibration."""

    rotate: bool = False
    smooth: bool = False
    rounding: str = "nearest"
    calibration: CalibrationOptions | None = None

    def words(self) -> list[str]:
        """For a table's cell; none where weights are rounded as they are."""
        said = {"rotated": self.rotate, "smoothed": self.smooth}
        words = [word for word, is_done in said.items() if is_done]
        return words if self.rounding == "nearest" else [*words, self.rounding]


AS_IT_IS = Preparation()


def refuse_preparation(folder: Path, preparation: Preparation) -> None:
    """Of a model folder. Raises ConfigError unless its weights are taken as they are."""
    if preparation.words():
        raise ConfigError(
            f"{folder} is converted already, and cannot become {', '.join(preparation.words())}.",
            hint="name the checkpoint, or a folder that was converted so",
        )


@dataclass(frozen=True)
class FoundModel:
    """A model folder, and the choices as the engine takes them. use: of the cache, if it is there:
    who loads the folder holds on to this until that is done."""

    folder: Path
    scheme: str | None
    policy: dict[str, Any] | None
    dtype: str | None
    lm_head: str | None = None
    use: Use | None = field(default=None, compare=False, repr=False)

    def numbers(self) -> tuple[str, str]:
        """Scheme and compute type as the engine will resolve them."""
        from flexq_ft import _native

        folder = _native.open_model_folder(str(self.folder))
        scheme = self.scheme or folder.scheme
        own = scheme if scheme in DTYPES and scheme != "fp16" else folder.dtype
        return scheme, self.dtype or own

    def longest_context(self) -> int:
        """In tokens: the model's positions, or its sliding window."""
        from flexq_ft import _native

        config = _native.open_model_folder(str(self.folder)).config
        return min(config.max_positions, config.sliding_window or config.max_positions)


def find_model(
    model: Path,
    *,
    tensor_parallel_size: int,
    scheme: str | None,
    policy: str | Path | dict[str, Any] | None,
    dtype: str | None,
    lm_head: str | None,
    cache_dir: Path | None,
    notify: Callable[[str], None],
    progress: ProgressSink | None,
    preparation: Preparation = AS_IT_IS,
) -> FoundModel:
    """Raises ConfigError if the path is nothing that holds a model, or the choices contradict."""
    from flexq_ft.converter.folder import is_model_folder, resolve_model_dir

    if not model.exists():
        from flexq_ft.converter.source import absent_model

        raise absent_model(
            model, hint="a folder that flexq-ft convert wrote, a Hugging Face folder or a GGUF file"
        )
    check_dtype(dtype)  # here, as it may stand for the scheme
    is_folder = is_model_folder(model)
    use = None
    if is_folder:
        refuse_preparation(model, preparation)
    if scheme is None and not is_folder:
        scheme = "w6ax" if policy is not None else dtype or "fp16"
    if scheme is not None:  # checked here, so that the cache and the engine get what makes sense
        options = ConvertOptions(
            scheme=scheme,
            dtype=None if scheme in DTYPES else dtype,
            policy=str(policy) if isinstance(policy, Path) else policy,
            lm_head=lm_head or "fp16",
            rotate=preparation.rotate,
            smooth=preparation.smooth,
            rounding=preparation.rounding,
            calibration=preparation.calibration,
            tp=(tensor_parallel_size,),
        )
        if not is_folder:
            folder, use = _from_cache(model, options, preparation, cache_dir, notify, progress)
        if not is_folder or scheme in POLICY_SCHEMES or policy is not None:
            policy = options.resolved_policy
        scheme = scheme if scheme in DTYPES else options.resolved_scheme
    if is_folder:
        folder = resolve_model_dir(model, tensor_parallel_size)
    return FoundModel(folder, scheme, _checked_policy(folder, policy), dtype, lm_head, use)


def _checked_policy(
    folder: Path, policy: str | Path | dict[str, Any] | None
) -> dict[str, Any] | None:
    if policy is None:
        return None
    from flexq_ft import _native
    from flexq_ft.converter.policy import resolve_policy

    config = _native.open_model_folder(str(folder)).config
    block = ("gate_up", "down") if config.gated_ffn else ("fc1", "fc2")
    return resolve_policy(policy, num_layers=config.num_layers, linears=("qkv", "o", *block))


def _from_cache(
    model: Path,
    options: ConvertOptions,
    preparation: Preparation,
    cache_dir: Path | None,
    notify: Callable[[str], None],
    progress: ProgressSink | None,
) -> tuple[Path, Use]:
    from flexq_ft.converter import convert
    from flexq_ft.converter.source.base import model_name

    # The policy is given at each run; the folder holds the default one, whoever made it.
    is_w6ax = options.resolved_scheme == "w6ax"
    stored = replace(options, scheme="w6ax", policy=None) if is_w6ax else options
    key = _cache_key(model, options, preparation)
    out = cache_root(cache_dir) / f"{model_name(model)}-{key}"
    folder = out / f"{options.tp[0]}-gpu"
    use = Use(out, model)
    if folder.is_dir():
        return folder, use
    with locked(out):
        if not folder.is_dir():  # another process may have made it meanwhile
            head = "" if options.lm_head == "fp16" else f" with an lm_head in {options.lm_head}"
            target = ", ".join([options.scheme, *preparation.words()])
            notify(f"converting {model} to {target}{head} into {out} (kept for later runs)")
            if options.resolved_scheme == "w8a8" and not preparation.smooth:
                source = shlex.quote(str(model))
                smoothing = f"flexq-ft convert {source} OUT --scheme w8a8 --calibration FILE"
                notify(f"the weights are not smoothed; {smoothing} smooths them (SmoothQuant)")
            convert(model, out, stored, progress=progress)
        return folder, Use(out, model)


def _cache_key(model: Path, options: ConvertOptions, preparation: Preparation) -> str:
    # Neither the policy nor the ranks: weights do not depend on the one, and folders of several
    # sizes lie beside each other.
    chosen: list[Any] = [CACHE_FORMAT, options.resolved_scheme, options.resolved_dtype]
    if options.lm_head != "fp16":
        chosen.append(options.lm_head)
    chosen += preparation.words()
    if (calibration := preparation.calibration) is not None:
        text = hashlib.sha256(calibration.read()).hexdigest()
        chosen.append([text, calibration.sequences, calibration.length])
    return hashlib.sha256(json.dumps([source_files(model), chosen]).encode()).hexdigest()[:16]

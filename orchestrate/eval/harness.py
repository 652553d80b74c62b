"""Zero-shot tasks by lm-eval: finding them, their data on this disk, and what they gave."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from flexq_ft.errors import ConfigError
from flexq_ft.orchestrate.suggest import refuse_unknown

# The tasks of FlexQ's paper -> their folders under --data-dir; of other tasks it is their name.
PAPER_TASKS = {
    "piqa": "piqa",
    "arc_easy": "ARC-Easy",
    "arc_challenge": "ARC-Challenge",
    "boolq": "boolq",
    "hellaswag": "hellaswag",
    "winogrande": "winogrande_xl",
}
# lm-eval's name of a split's use -> the split.
_SPLITS = {"training": "train", "validation": "validation", "test": "test"}


def import_harness() -> Any:
    """The module lm_eval. Raises ConfigError where it is not installed."""
    # Its bars have no switch, and its advice is for its own command line; ours show the work.
    os.environ.setdefault("TQDM_DISABLE", "1")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        # It asks git for a commit that nobody here reads; outside of a repository git says "fatal".
        vars(import_module("lm_eval.evaluator"))["get_git_commit_hash"] = lambda: None
        return import_module("lm_eval")
    except ImportError as error:
        raise ConfigError(
            "eval tasks needs the package lm-eval.",
            cause=str(error),
            hint="pip install 'flexq-ft[eval]'",
        ) from error


def load_tasks(
    names: Sequence[str], *, data_dir: Path | None, num_fewshot: int | None
) -> list[Any]:
    """lm-eval's tasks with their documents, from data_dir or as lm-eval finds them.

    Raises ConfigError for tasks that lm-eval does not know, and data that cannot be loaded.
    """
    import_harness()
    manager = import_module("lm_eval.tasks").TaskManager()
    refuse_unknown("task of lm-eval", names, manager.all_tasks)
    specs: Any = list(names)
    if data_dir is not None:  # only the members of a group may change what a known task says
        members = [local_task(name, data_dir, num_fewshot=num_fewshot or 0) for name in names]
        specs = {"group": "local", "task": members}
    try:
        return list(manager.load(specs)["tasks"].values())
    except ConfigError:
        raise
    except Exception as error:  # of the network, the hub, the cache: each has its own kind
        raise ConfigError(
            f"the data of {', '.join(names)} could not be loaded.",
            cause=f"{type(error).__name__}: {error}",
            hint="--data-dir FOLDER, with local copies; or a network, or the sets in the cache of "
            "HF_HOME",
        ) from error


def local_task(name: str, data_dir: Path, *, num_fewshot: int) -> dict[str, Any]:
    """A task whose documents are those of a folder that `datasets.save_to_disk` wrote, or of one
    with such a folder for each split. Raises ConfigError if there is none."""
    folder = data_dir / PAPER_TASKS.get(name, name)
    if (folder / "dataset_dict.json").is_file():
        splits = [split for split in _SPLITS.values() if (folder / split).is_dir()]
    else:
        splits = [s for s in _SPLITS.values() if (folder / s / "state.json").is_file()]
    if not set(splits) & {"validation", "test"}:
        raise ConfigError(
            f"{folder} holds no split that {name} could be evaluated on.",
            cause=f"found: {', '.join(splits) or 'none'}; wanted: validation or test.",
            hint=f"datasets.load_dataset(…).save_to_disk({str(folder)!r})",
        )
    if num_fewshot and "train" not in splits:
        raise ConfigError(
            f"--num-fewshot {num_fewshot} needs the split train, and {folder} does not hold it.",
            hint="--num-fewshot 0",
        )

    def documents(**unused: Any) -> dict[str, Any]:
        load_from_disk = import_module("datasets").load_from_disk
        return {split: load_from_disk(str(folder / split)) for split in splits}

    absent = {f"{use}_split": None for use, split in _SPLITS.items() if split not in splits}
    return {"task": name, "custom_dataset": documents, **absent}


def run_tasks(
    model: Any, tasks: Sequence[Any], *, num_fewshot: int | None, limit: int | None
) -> list[dict[str, Any]]:
    """One row a task. model: a harness_model.Harness; limit: only the first documents."""
    outcome = import_harness().simple_evaluate(
        model=model,
        tasks=list(tasks),
        num_fewshot=num_fewshot,
        limit=limit,
        log_samples=False,
    )
    return [_row(task, outcome) for task in tasks]


def _row(task: Any, outcome: dict[str, Any]) -> dict[str, Any]:
    name, config = task.config.task, task.config
    values = outcome["results"][name]
    metrics = {}
    for key, value in values.items():
        metric, _, kept = key.partition(",")  # as `acc,none`: the metric, and lm-eval's filter
        if not kept or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = values.get(f"{metric}_stderr,{kept}")
        metrics[metric if kept == "none" else f"{metric} ({kept})"] = {
            "value": float(value),
            "standard_error": float(error) if isinstance(error, int | float) else None,
        }
    return {
        "task": name,
        "version": str(outcome["versions"].get(name)),
        "split": config.test_split or config.validation_split,
        "examples": outcome["n-samples"][name]["effective"],
        "num_fewshot": outcome["n-shot"].get(name, 0),
        "metrics": metrics,
    }

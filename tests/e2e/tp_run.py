"""One rank of a tensor-parallel run: python tp_run.py FOLDER OUT IDS.json [options as JSON].

Writes OUT.rank{r}.npz: the logits of the teacher-forced ids (only the log-probabilities of the ids
where "score" is set), the greedy continuation, and, when asked for, what every linear saw and gave.
Rank r computes on GPU r where the option "device" is cuda.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from flexq_ft import _native


def greedy(engine: _native.Engine, prompt: list[int], steps: int) -> list[int]:
    slot = engine.admit(prompt, max_tokens=steps, temperature=0.0, ignore_eos=True)
    tokens: list[int] = []
    while len(tokens) < steps:
        tokens += [token for s, token, _, _ in engine.step() if s == slot]
    engine.release(slot)
    return tokens


def join(parallel: bool, device: str) -> _native.DeviceComm:
    if not parallel:
        return _native.single_comm()
    host = _native.mpi_comm()
    if device == "cpu":
        return host
    unique_id = host.broadcast(_native.nccl_unique_id() if host.rank == 0 else b"")
    return _native.nccl_comm(host.rank, host.size, unique_id, host)


def main() -> None:
    folder, out, ids_file, options = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
    windows: list[list[int]] = json.loads(Path(ids_file).read_text())
    comm = join(options.pop("mpi"), options["device"])
    steps, traced, scored = (options.pop(name) for name in ("steps", "trace", "score"))
    engine = _native.Engine(folder, comm=comm, gpu=comm.rank, **options)
    arrays: dict[str, Any] = {}
    for i, ids in enumerate(windows):
        result = engine.score(ids)[0] if scored else engine.forward(ids)
        if comm.rank == 0:
            arrays[f"{'logprobs' if scored else 'logits'}.{i}"] = result
    if steps:
        arrays["greedy"] = np.array(greedy(engine, windows[0][:16], steps))
        # The logits of that very continuation, for the margin rule.
        text = windows[0][:16] + arrays["greedy"].tolist()
        arrays["greedy_logits"] = engine.forward(text)[15:-1]
    if traced:
        for record in engine.trace(windows[0][:24]):
            arrays[f"x.{record['name']}"] = record["x"]
            arrays[f"y.{record['name']}"] = record["y"]
    np.savez(f"{out}.rank{comm.rank}.npz", **arrays)
    comm.barrier()


if __name__ == "__main__":
    main()

"""The ranks of a tensor-parallel run. `python -m flexq_ft.orchestrate.worker --socket PATH`.

Rank 0 obeys the launcher's messages; before each call of its engine it broadcasts the call, and
the other ranks make the same one. All ranks therefore see the same tokens, and raise the same
ConfigErrors, which end a request only. Any other error ends the run: the rank that meets it says
so on stderr, in a line that the launcher knows, and aborts MPI with the error's exit code.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from flexq_ft.errors import ConfigError, FlexQFtError, LaunchError
from flexq_ft.orchestrate.bootstrap import Ranks
from flexq_ft.orchestrate.engine.client import Request
from flexq_ft.orchestrate.engine.info import describe
from flexq_ft.orchestrate.engine.local import LocalEngine
from flexq_ft.orchestrate.engine.options import EngineOptions
from flexq_ft.orchestrate.engine.single_rank import SingleRank
from flexq_ft.orchestrate.wire import Channel, ConnectionLostError, error_from_wire, error_to_wire

# Begins the line that carries a failed rank's error to the launcher.
ERROR_MARK = "@flexq-ft-rank-error "

_FOLLOWED = (
    "admit", "step", "release", "forward", "score_batch", "take_step_times", "step_profile",
)  # fmt: skip


class Leader:
    """Rank 0's engine: as `_native.Engine`, every call made on all ranks.

    After an error other than ConfigError the ranks are out of step: `broken` holds its exit code.
    """

    broken: int | None = None

    def __init__(self, options: EngineOptions, ranks: Ranks) -> None:
        self._ranks = ranks
        _check_folder(options)
        ranks.broadcast({"call": "load", "options": asdict(options)})
        with self._in_step():
            self._local = SingleRank(options, ranks)
        self.engine = self._local.engine

    def can_admit(self, prompt_tokens: int, max_tokens: int) -> bool:
        return bool(self._local.can_admit(prompt_tokens, max_tokens))

    def admit(self, prompt: list[int], **params: Any) -> int:
        return int(self._all("admit", [prompt], params))

    def step(self) -> Any:
        return self._all("step", [], {})

    def release(self, slot: int) -> None:
        if self.broken is None:  # else the others no longer listen, and all are about to be ended
            self._all("release", [slot], {})

    def forward(self, ids: list[int]) -> Any:
        return self._all("forward", [ids], {})

    def score_batch(self, texts: list[list[int]], first: list[int]) -> Any:
        return self._all("score_batch", [texts, first], {})

    def take_step_times(self) -> list[float]:
        return list(self._all("take_step_times", [], {}))

    def step_profile(self, batch: int, context: int) -> Any:
        return self._all("step_profile", [batch, context], {})

    def peak_memory_bytes(self) -> int:
        """Of all ranks together."""
        self._ranks.broadcast({"call": "memory"})
        return sum(self._ranks.gather(self._local.peak_memory_bytes()))

    def _all(self, call: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        if self.broken is not None:
            raise LaunchError(
                "the ranks are out of step after an earlier error.", hint="start the program again"
            )
        self._ranks.broadcast({"call": call, "args": args, "kwargs": kwargs})
        with self._in_step():
            return getattr(self._local, call)(*args, **kwargs)

    @contextlib.contextmanager
    def _in_step(self) -> Iterator[None]:
        try:
            yield
        except ConfigError:
            raise
        except BaseException as error:
            if isinstance(error, FlexQFtError):
                error.rank, error.host = self._ranks.rank, socket.gethostname()
            Leader.broken = getattr(error, "exit_code", FlexQFtError.exit_code)
            raise


def _check_folder(options: EngineOptions) -> None:
    """Faults that every rank would find are found, and reported, by one."""
    from flexq_ft import _native

    if options.synthetic_weights:
        return  # there are no files, or only their sizes count
    folder = _native.open_model_folder(options.model_dir)
    if folder.tp != options.tensor_parallel_size:
        raise ConfigError(
            f"{options.model_dir} was converted for {folder.tp} ranks, but "
            f"--tp {options.tensor_parallel_size} was asked for.",
            hint=f"flexq-ft convert SOURCE OUT --tp {options.tensor_parallel_size}",
        )


def leave(ranks: Ranks) -> None:
    """Rank 0, at the end: the followers may exit; if they cannot hear, all are ended."""
    if Leader.broken is not None:
        ranks.abort(Leader.broken)
    ranks.broadcast({"call": "exit"})


def follow(ranks: Ranks) -> None:
    """Ranks above 0: make rank 0's calls until it says exit."""
    local: SingleRank | None = None
    while True:
        message = ranks.broadcast()
        call = message["call"]
        if call == "exit":
            return
        if call == "load":
            local = None  # the old engine's memory first
            with contextlib.suppress(ConfigError):
                local = SingleRank(EngineOptions(**message["options"]), ranks)
        elif call == "ranks":
            ranks.gather(_who())
        elif call == "memory":
            assert local is not None
            ranks.gather(local.peak_memory_bytes())
        else:
            assert call in _FOLLOWED
            with contextlib.suppress(ConfigError):  # rank 0 raises the same, and reports it
                getattr(local, call)(*message["args"], **message["kwargs"])


def follow_and_exit(ranks: Ranks) -> NoReturn:
    """Ranks above 0 of a command under mpirun."""
    try:
        follow(ranks)
    except BaseException as error:
        fail(ranks, error, marked=False)
    raise SystemExit(0)


def fail(ranks: Ranks, error: BaseException, *, marked: bool) -> NoReturn:
    """Say which rank failed and why, and end all ranks with the error's exit code."""
    typed = error_from_wire(error_to_wire(error))
    typed.rank, typed.host = ranks.rank, socket.gethostname()
    report = ERROR_MARK + json.dumps(typed.to_json()) if marked else typed.report()
    sys.stderr.write(report + "\n")
    sys.stderr.flush()
    ranks.abort(typed.exit_code)
    os._exit(typed.exit_code)


def _who() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid()}


class Server:
    """Rank 0 between the launcher's socket and the engine."""

    def __init__(self, channel: Channel, ranks: Ranks) -> None:
        self._channel = channel
        self._ranks = ranks
        self._engine: LocalEngine | None = None

    def serve(self) -> None:
        """Until the launcher closes. Errors that end a request only are answered."""
        while True:
            message, _ = self._channel.receive()
            if message["call"] == "close":
                return
            try:
                self._handle(message)
            except ConfigError as error:
                self._channel.send({"error": error_to_wire(error)})

    def _handle(self, message: dict[str, Any]) -> None:
        call = message["call"]
        if call == "ranks":
            self._ranks.broadcast({"call": "ranks"})
            self._channel.send({"result": self._ranks.gather(_who())})
        elif call == "load":
            self._load(EngineOptions(**message["options"]))
        else:
            assert self._engine is not None
            if call == "generate":
                self._generate([Request(**request) for request in message["requests"]])
            elif call == "score":
                scores = self._engine.score(message["texts"], message["first"])
                self._channel.send({"result": [asdict(score) for score in scores]})
            elif call == "forward":
                logits = np.ascontiguousarray(self._engine.forward(message["ids"]))
                self._channel.send({"result": list(logits.shape)}, logits.tobytes())
            elif call == "take_step_times":
                self._channel.send({"result": self._engine.take_step_times()})
            elif call == "step_profile":
                nodes = self._engine.step_profile(message["batch"], message["context"])
                self._channel.send({"result": nodes})
            # A cancel that arrives when its generate has ended needs no answer.

    def _load(self, options: EngineOptions) -> None:
        leader = Leader(options, self._ranks)
        info = describe(leader.engine, options)
        self._engine = LocalEngine(leader, info)
        self._channel.send({"result": asdict(info)})

    def _generate(self, requests: list[Request]) -> None:
        assert self._engine is not None
        events = self._engine.generate(requests)
        for step in events:
            self._channel.send({"events": [_event_to_wire(event) for event in step]})
            while self._channel.pending():
                message, _ = self._channel.receive()
                if message["call"] == "cancel":
                    self._engine.cancel(message["id"])
                elif message["call"] == "cancel_all":
                    events.close()
                elif message["call"] == "close":
                    raise ConnectionLostError("the launcher closed the run")
        self._channel.send({"done": True})


def _event_to_wire(event: Any) -> dict[str, Any]:
    fields = dict(vars(event))
    fields["error"] = None if event.error is None else error_to_wire(event.error)
    return fields


def main(argv: list[str] | None = None) -> int:
    """One rank. Returns 0 when the launcher closed the run."""
    parser = argparse.ArgumentParser(prog="flexq_ft.orchestrate.worker")
    parser.add_argument("--socket", required=True)
    path = parser.parse_args(argv).socket
    os.dup2(2, 1)  # stdout belongs to the command's results
    ranks = _start()
    try:
        if ranks.rank > 0:
            follow(ranks)
        else:
            _serve(path, ranks)
    except ConnectionLostError:  # the launcher is gone: there is nobody to tell
        with contextlib.suppress(OSError):  # nor to remove its private folder
            Path(path).unlink()
            Path(path).parent.rmdir()
        ranks.abort(FlexQFtError.exit_code)
    except BaseException as error:
        fail(ranks, error, marked=True)
    return 0


def _start() -> Ranks:
    """The ranks of this run; without MPI the process says so and ends."""
    try:
        return Ranks()
    except FlexQFtError as error:
        error.host = socket.gethostname()
        sys.stderr.write(ERROR_MARK + json.dumps(error.to_json()) + "\n")
        raise SystemExit(error.exit_code) from error


def _serve(path: str, ranks: Ranks) -> None:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(path)
    channel = Channel(connection)
    Server(channel, ranks).serve()
    leave(ranks)


if __name__ == "__main__":
    sys.exit(main())

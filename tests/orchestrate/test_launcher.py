"""Ranks: found, started, heard, ended; with scripts in mpirun's place, so that each failure is one
that was made."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flexq_ft.errors import ConfigError, InternalError, LaunchError, WeightError
from flexq_ft.orchestrate import bootstrap, launcher, world
from flexq_ft.orchestrate.engine.client import Request
from flexq_ft.orchestrate.engine.local import LocalEngine
from flexq_ft.orchestrate.engine.options import EngineOptions
from flexq_ft.orchestrate.engine.remote import RemoteEngine
from flexq_ft.orchestrate.launcher import RankGroup
from flexq_ft.orchestrate.mpirun import find_mpirun, mpirun_command
from flexq_ft.orchestrate.wire import (
    Channel,
    ConnectionLostError,
    error_from_wire,
    error_to_wire,
)
from flexq_ft.orchestrate.worker import ERROR_MARK, Server
from tests.orchestrate.fakes import FakeNative, fake_info, says

OPTIONS = EngineOptions("fake/2-gpu", tensor_parallel_size=2)

# What every script in mpirun's place begins with; `channel()` is rank 0's end of the socket.
PREAMBLE = f"""\
#!{sys.executable}
import json, os, signal, socket, sys, time
sys.path[:0] = {sys.path!r}
MARK = {ERROR_MARK!r}
if "--version" in sys.argv:
    print("mpirun (Open MPI) 5.0.0")
    sys.exit(0)
def channel():
    from flexq_ft.orchestrate.wire import Channel
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(sys.argv[sys.argv.index("--socket") + 1])
    return Channel(connection)
"""
Mpirun = Callable[[str], None]


@pytest.fixture
def mpirun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mpirun:
    """`mpirun(code)` puts a Python script in mpirun's place."""

    def use(code: str) -> None:
        script = tmp_path / "mpirun"
        script.write_text(PREAMBLE + textwrap.dedent(code))
        script.chmod(0o755)
        monkeypatch.setattr(launcher, "find_mpirun", lambda: script)

    return use


def gone(pid: int) -> bool:
    """Whether the process ended (a zombie counts)."""
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"


def test_no_mpirun_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "find_mpirun", lambda: None)
    with pytest.raises(LaunchError) as caught:
        RankGroup(2)
    assert caught.value.exit_code == 4 and caught.value.hint == "pip install 'flexq-ft[mpi]'"


def test_an_mpirun_that_fails_is_quoted(mpirun: Mpirun) -> None:
    mpirun("print('no network interface', file=sys.stderr); sys.exit(77)")
    with pytest.raises(LaunchError) as caught:
        RankGroup(2)
    assert "code 77" in caught.value.message and "no network interface" in caught.value.cause


def test_ranks_that_never_call_back_are_given_up_and_killed(
    mpirun: Mpirun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mpirun(f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(600)")
    monkeypatch.setattr(launcher, "_START_SECONDS", 1.0)
    monkeypatch.setattr(launcher, "_STOP_SECONDS", 0.2)
    with pytest.raises(LaunchError, match="did not start within"):
        RankGroup(2)
    assert gone(int((tmp_path / "pid").read_text()))


def test_ranks_that_ignore_sigterm_are_killed(
    mpirun: Mpirun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mpirun(f"""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        c = channel()
        open({str(tmp_path / "pid")!r}, 'w').write(str(os.getpid()))
        time.sleep(600)
    """)
    monkeypatch.setattr(launcher, "_STOP_SECONDS", 0.2)
    group = RankGroup(2)
    while not (tmp_path / "pid").exists():
        time.sleep(0.01)
    group.close()
    assert gone(int((tmp_path / "pid").read_text()))


def test_a_second_ctrl_c_leaves_neither_ranks_nor_files(
    mpirun: Mpirun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """While ranks are waited for. They have process groups of their own, as Open MPI's have."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(launcher, "_socket_parent", lambda: str(tmp_path / "tmp"))
    mpirun(f"""
        rank = os.fork()
        if rank == 0:
            os.setpgid(0, 0)
            time.sleep(600)
        open({str(tmp_path / "pids")!r}, 'w').write(f"{{os.getpid()}} {{rank}}")
        c = channel()
        time.sleep(600)
    """)
    group = RankGroup(2)
    interrupt = threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGINT])
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        group.close()
    deadline = time.monotonic() + 10
    for pid in (tmp_path / "pids").read_text().split():
        while not gone(int(pid)):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_the_ranks_are_not_a_forks_to_use_or_to_end(mpirun: Mpirun) -> None:
    info = json.dumps(vars(fake_info()))
    mpirun(f"""
        c = channel()
        c.receive()
        c.send({{"result": json.loads({info!r})}})
        while c.receive()[0]["call"] == "generate":
            event = {{"id": 0, "token": 97, "logprob": 0.0, "finish": None, "started": 0.0,
                      "time": 1.0, "peak_memory_bytes": 1, "error": None}}
            c.send({{"events": [event]}})
            c.send({{"events": [event]}})
            c.send({{"done": True}})
    """)
    engine = RemoteEngine(OPTIONS)
    stream = engine.generate([Request(0, [1], {})])
    next(stream)
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            stream.close()
            engine.close()
            with pytest.raises(ConfigError, match="a fork of the one that started these ranks"):
                engine.score([[1]], [1])
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert len(list(stream)) == 1
    assert len(list(engine.generate([Request(0, [1], {})]))) == 2
    engine.close()


def test_the_first_failed_rank_is_named_with_its_own_error(mpirun: Mpirun) -> None:
    mpirun("""
        def fail(rank, kind, message):
            error = {"kind": kind, "message": message, "cause": "c", "try": "t", "rank": rank,
                     "host": "node7"}
            print("[1,1]<stderr>: " + MARK + json.dumps(error), file=sys.stderr, flush=True)
        channel().receive()
        fail(1, "WeightError", "a short file")
        fail(0, "LaunchError", "the others are gone")
        sys.exit(3)
    """)
    with pytest.raises(WeightError) as caught:
        RemoteEngine(OPTIONS)
    error = caught.value
    assert (error.message, error.rank, error.host, error.hint) == ("a short file", 1, "node7", "t")
    assert error.exit_code == 3 and "rank:  1 on node7" in error.report()


def test_a_rank_that_dies_without_a_word_is_a_launch_error(mpirun: Mpirun) -> None:
    mpirun("""
        channel().receive()
        print("rank 1 exited on signal 9 (Killed)", flush=True)
        sys.exit(137)
    """)
    with pytest.raises(LaunchError) as caught:
        RemoteEngine(OPTIONS)
    assert "code 137" in caught.value.message and "signal 9" in caught.value.cause


def test_an_error_that_rank_0_answers_is_raised_as_it_is(mpirun: Mpirun) -> None:
    mpirun("""
        c = channel()
        c.receive()
        c.send({"error": {"kind": "ConfigError", "message": "max_len is 9", "try": "less"}})
        c.receive()
    """)
    with pytest.raises(ConfigError, match="max_len is 9"):
        RemoteEngine(OPTIONS)


def test_ranks_that_die_while_they_generate_end_the_run(mpirun: Mpirun) -> None:
    info = json.dumps(vars(fake_info()))
    mpirun(f"""
        c = channel()
        c.receive()
        c.send({{"result": json.loads({info!r})}})
        c.receive()
        event = {{"id": 0, "token": 97, "logprob": 0.0, "finish": None, "started": 0.0,
                  "time": 1.0, "peak_memory_bytes": 1, "error": None}}
        c.send({{"events": [event]}})
        sys.exit(9)
    """)
    engine = RemoteEngine(OPTIONS)
    steps = engine.generate([Request(0, [1], {"max_tokens": 5})])
    assert next(steps)[0].token == 97
    with pytest.raises(LaunchError, match="code 9"):
        next(steps)
    engine.close()


def test_an_interrupted_wait_ends_the_run(mpirun: Mpirun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half an answer may have been read: no later call may take the rest for its own."""
    info = json.dumps(vars(fake_info()))
    mpirun(f"""
        c = channel()
        c.receive()
        c.send({{"result": json.loads({info!r})}})
        while c.receive()[0]["call"] != "close":
            pass
    """)

    def interrupted(channel: Channel) -> Any:
        raise KeyboardInterrupt

    engine = RemoteEngine(OPTIONS)
    monkeypatch.setattr(Channel, "receive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.score([[1, 2]], [1])
    with pytest.raises(LaunchError, match="have ended"):
        engine.score([[1, 2]], [1])


def test_an_mpirun_that_cannot_be_run_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "mpirun").write_text("no program")
    monkeypatch.setattr(launcher, "find_mpirun", lambda: tmp_path / "mpirun")
    with pytest.raises(LaunchError, match="mpirun cannot be run") as caught:
        RankGroup(2)
    assert "denied" in caught.value.cause


def test_nothing_is_left_in_the_temporary_folder(
    mpirun: Mpirun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(launcher, "_socket_parent", lambda: str(folder))
    mpirun("c = channel(); c.receive()")
    group = RankGroup(2)
    (private,) = folder.iterdir()
    assert private.stat().st_mode & 0o777 == 0o700
    group.close()
    assert list(folder.iterdir()) == []


def test_mpirun_beside_this_python_is_preferred(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside, on_path = tmp_path / "env" / "mpirun", tmp_path / "usr" / "mpirun"
    for file in (beside, on_path):
        file.parent.mkdir()
        file.touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "env" / "python"))
    monkeypatch.setenv("PATH", str(on_path.parent))
    assert find_mpirun() == beside
    beside.unlink()
    assert find_mpirun() == on_path
    on_path.unlink()
    assert find_mpirun() is None


@pytest.mark.parametrize(
    ("version", "bound"),
    [("mpirun (Open MPI) 4.1.6", True), ("mpirun (Open MPI) 5.0.11", True), ("HYDRA 4.2", False)],
)
def test_open_mpi_is_told_not_to_pin_and_to_oversubscribe(
    version: str, bound: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flexq_ft.orchestrate.mpirun.mpirun_version", lambda path: version)
    command = mpirun_command(Path("/x/mpirun"), 3, Path("/tmp/s"))
    assert command[:3] == ["/x/mpirun", "-n", "3"]
    assert ("--bind-to none --map-by :OVERSUBSCRIBE" in " ".join(command)) == bound
    assert command[-5:] == [
        sys.executable,
        "-m",
        "flexq_ft.orchestrate.worker",
        "--socket",
        "/tmp/s",
    ]


def pair() -> tuple[Channel, Channel]:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return Channel(left), Channel(right)


def test_messages_and_bytes_arrive_whole() -> None:
    left, right = pair()
    payload = np.arange(300_000, dtype=np.float32).tobytes()
    sender = threading.Thread(target=left.send, args=({"text": "é" * 1000}, payload))
    sender.start()
    assert right.receive() == ({"text": "é" * 1000}, payload)
    sender.join()
    right.send({})
    assert left.pending() and left.receive() == ({}, b"")
    assert not left.pending()


def test_a_closed_or_senseless_connection_is_lost() -> None:
    left, right = pair()
    left.close()
    with pytest.raises(ConnectionLostError):
        right.receive()
    raw, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    raw.sendall(b"\xff" * 8)
    with pytest.raises(ConnectionLostError, match="announced"):
        Channel(other).receive()


def test_errors_cross_the_wire_with_their_type() -> None:
    error = WeightError("m", cause="c", hint="h", rank=1, host="x")
    again = error_from_wire(json.loads(json.dumps(error_to_wire(error))))
    assert type(again) is WeightError and again.report() == error.report()
    assert type(error_from_wire(error_to_wire(ValueError("v")))) is InternalError
    assert error_from_wire(error_to_wire(MemoryError())).exit_code == 5
    assert type(error_from_wire({"kind": "Any", "message": "x"})) is InternalError


class _OneRank:
    """A world of one."""

    rank, size = 0, 1

    def broadcast(self, value: Any = None) -> Any:
        return value

    def gather(self, value: Any) -> list[Any]:
        return [value]


@pytest.fixture
def served() -> Any:
    """A RemoteEngine without processes: its server runs in a thread, on a fake engine."""
    left, right = pair()
    native = FakeNative(says("a long answer that goes on"))
    server = Server(right, _OneRank())
    server._engine = LocalEngine(native, fake_info())

    def serve() -> None:
        with contextlib.suppress(ConnectionLostError):
            server.serve()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    group = RankGroup.__new__(RankGroup)
    group._channel, group._process, group._folder = left, None, Path("/nonexistent")
    group._owner = os.getpid()
    remote = RemoteEngine.__new__(RemoteEngine)
    remote._group, remote._info, remote._is_busy = group, fake_info(), False
    yield remote, native, right
    remote.close()
    thread.join(timeout=10)
    assert not thread.is_alive()


def _params(**changes: Any) -> dict[str, Any]:
    return {"max_tokens": 5, "ignore_eos": False, **changes}


def _open_when_told(native: FakeNative, right: Channel) -> None:
    """Let the engine go on once the server has a message waiting."""
    while not right.pending():
        time.sleep(0.001)
    assert native.gate is not None
    native.gate.set()


def test_remote_events_are_those_of_the_local_engine(served: Any) -> None:
    remote, _, _ = served
    requests = [Request(i, [97], _params()) for i in range(3)]
    got = [event for step in remote.generate(requests) for event in step]
    assert sorted(event.id for event in got) == [0] * 5 + [1] * 5 + [2] * 5
    assert [e.token for e in got if e.id == 2] == [*b"a lon"]
    assert [e.finish for e in got if e.id == 2] == [None] * 4 + ["length"]


def test_closing_a_remote_stream_stops_it_and_the_next_one_is_clean(served: Any) -> None:
    remote, native, right = served
    native.gate = threading.Event()
    steps = remote.generate([Request(0, [97], _params(max_tokens=150, ignore_eos=True))])
    next(steps)
    assert native.at_gate.wait(30)  # from here on the server reads nothing
    opener = threading.Thread(target=_open_when_told, args=(native, right))
    opener.start()
    steps.close()
    opener.join()
    assert not native.running and native.steps == 2
    again = [e for step in remote.generate([Request(1, [97], _params())]) for e in step]
    assert {event.id for event in again} == {1} and len(again) == 5


def test_a_second_stream_beside_an_open_one_is_refused(served: Any) -> None:
    remote, _, _ = served
    steps = remote.generate([Request(0, [97], _params())])
    next(steps)
    for call in (lambda: next(remote.generate([])), lambda: remote.score([[1, 2]], [1])):
        with pytest.raises(ConfigError, match="still open"):
            call()
    assert sum(len(step) for step in steps) == 4


def test_remote_cancel_ends_one_request(served: Any) -> None:
    remote, native, right = served
    params = _params(max_tokens=150, ignore_eos=True)
    native.gate = threading.Event()
    steps = remote.generate([Request(0, [97], params), Request(1, [97], params)])
    next(steps)
    assert native.at_gate.wait(30)  # from here on the server reads nothing
    remote.cancel(0)
    _open_when_told(native, right)
    events = [event for step in steps for event in step]
    assert sum(event.id == 1 for event in events) == 149
    assert sum(event.id == 0 for event in events) == 1 and not native.running


def test_a_refused_request_is_an_event(served: Any) -> None:
    remote, _, _ = served
    (step,) = remote.generate([Request(7, [13], _params())])
    assert step[0].id == 7 and isinstance(step[0].error, ConfigError)


def test_remote_logits_and_scores(served: Any) -> None:
    remote, native, _ = served
    assert np.array_equal(remote.forward([1, 2, 3]), native.forward([1, 2, 3]))
    both = remote.score([[1, 2, 3], [1, 2, 3]], [1, 2])
    assert [score.logprobs for score in both] == [[-1.0, -1.0], [-1.0]]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, (1, 2, "mpirun")),
        ({"PMI_SIZE": "4", "PMI_RANK": "3"}, (3, 4, "mpirun")),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"}, (0, 2, "srun")),
        # A batch script of a job with two tasks is one process.
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, None),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, None),
    ],
)
def test_mpirun_and_srun_are_noticed(
    environment: dict[str, str], expected: tuple[int, int, str] | None
) -> None:
    found = world.world_from_environment(environment)
    assert (None if found is None else (found.rank, found.size, found.launcher)) == expected


def test_a_world_of_another_size_explains_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/flexq-ft", "run", "OUT", "--tp", "2"])
    with pytest.raises(ConfigError) as caught:
        world.check_world(world.World(0, 1, "mpirun"), 2)
    assert caught.value.message == (
        "this process is rank 0 of 1, but --tp 2 was asked for under mpirun."
    )
    assert caught.value.cause == "mpirun was started with -n 1."
    assert caught.value.hint.startswith("mpirun -n 2 flexq-ft run OUT --tp 2 ")
    monkeypatch.setattr(sys, "argv", ["flexq-ft", "run", "OUT"])
    with pytest.raises(ConfigError) as caught:
        world.check_world(world.World(0, 2, "srun"), 1)
    assert caught.value.message.startswith("this process is rank 0 of 2, but --tp is 1 under srun")
    assert caught.value.hint == "srun -n 2 flexq-ft run OUT --tp 2"
    monkeypatch.setattr(sys, "argv", ["flexq-ft", "run", "OUT", "--tp", "1", "x"])
    with pytest.raises(ConfigError) as caught:
        world.check_world(world.World(0, 2, "mpirun"), 1)
    assert caught.value.hint == "mpirun -n 2 flexq-ft run OUT x --tp 2"


def test_one_rank_touches_no_mpi(monkeypatch: pytest.MonkeyPatch) -> None:
    from flexq_ft import _native

    def touched() -> None:
        raise AssertionError("MPI was started")

    monkeypatch.setattr(_native, "mpi_comm", touched)
    monkeypatch.setattr(bootstrap, "Ranks", touched)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "1")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    assert world.join(1) is None
    monkeypatch.delenv("OMPI_COMM_WORLD_SIZE")
    assert world.join(4) is None  # its ranks are started later


def test_ranks_inherit_what_root_needs(mpirun: Mpirun, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("Open MPI asks this of root only")
    mpirun(f"""
        open({str(tmp_path / "env")!r}, "w").write(os.environ["OMPI_ALLOW_RUN_AS_ROOT"]
            + os.environ["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"])
        channel().receive()
    """)
    RankGroup(2).close()
    assert (tmp_path / "env").read_text() == "11"


def test_ranks_without_mpi_say_so_where_the_launcher_hears_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from flexq_ft.errors import DeviceError
    from flexq_ft.orchestrate import worker

    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(SystemExit) as caught:
        worker._start()
    assert caught.value.code == 4
    line = capsys.readouterr().err
    assert line.startswith(ERROR_MARK)
    error = error_from_wire(json.loads(line.removeprefix(ERROR_MARK)))
    assert type(error) is DeviceError and error.hint == "pip install 'flexq-ft[mpi]'"

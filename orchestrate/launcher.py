"""Starts the ranks of `--tp N` with mpirun and talks to rank 0; the launcher itself is no rank.

One failure path: when the socket closes, the run is over. The launcher then collects what mpirun
and the ranks said, raises the error of the first rank that failed, and leaves no process behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from pathlib import Path
from typing import IO, Any

from flexq_ft.errors import ConfigError, DeviceError, FlexQFtError, LaunchError
from flexq_ft.orchestrate.mpirun import INSTALL_HINT, find_mpirun, mpirun_command
from flexq_ft.orchestrate.wire import Channel, ConnectionLostError, error_from_wire
from flexq_ft.orchestrate.worker import ERROR_MARK

_START_SECONDS = 120.0
_STOP_SECONDS = 10.0


class RankGroup:
    """The running ranks; `call` asks rank 0. Use as a context manager, or close."""

    def __init__(self, ranks: int) -> None:
        mpirun = find_mpirun()
        if mpirun is None:
            raise LaunchError(
                f"{ranks} ranks cannot be started: there is no mpirun.",
                cause=f"neither beside {sys.executable} nor on PATH.",
                hint=INSTALL_HINT,
            )
        self.ranks = ranks
        self._owner = os.getpid()
        self._folder = Path(tempfile.mkdtemp(prefix="flexq-ft-", dir=_socket_parent()))
        self._said: deque[str] = deque(maxlen=40)
        self._failure: FlexQFtError | None = None
        self._process: subprocess.Popen[str] | None = None
        self._channel: Channel | None = None
        try:
            self._start(mpirun)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> RankGroup:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def is_open(self) -> bool:
        """False once the run has ended, for whatever reason, and in a fork of its process."""
        return self._channel is not None and not self._is_fork

    def send(self, message: dict[str, Any]) -> None:
        """Raises the failed rank's error if the run is over."""
        try:
            self._open_channel().send(message)
        except ConnectionLostError:
            raise self._lost() from None

    def receive(self) -> tuple[dict[str, Any], bytes]:
        """The next message; an `error` in it is raised, as is that of a failed rank."""
        try:
            message, payload = self._open_channel().receive()
        except ConnectionLostError:
            raise self._lost() from None
        except BaseException:  # Ctrl-C: what was half read cannot be continued
            self.close()
            raise
        if message.get("error") is not None:
            raise error_from_wire(message["error"])
        return message, payload

    def call(self, message: dict[str, Any]) -> Any:
        self.send(message)
        return self.receive()[0]["result"]

    def close(self) -> None:
        """Ends the ranks, by force if they do not end on their own; in a fork, nothing."""
        if self._is_fork:
            return
        if self._channel is not None:
            with contextlib.suppress(ConnectionLostError):
                self._channel.send({"call": "close"})
            self._channel.close()
            self._channel = None
        try:
            self._end_process()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _is_fork(self) -> bool:
        return os.getpid() != self._owner

    def _open_channel(self) -> Channel:
        if self._is_fork:
            raise ConfigError(
                "this process is a fork of the one that started these ranks.",
                cause="they answer that one alone.",
                hint='multiprocessing.set_start_method("spawn"), or an LLM of its own',
            )
        if self._channel is None:
            raise LaunchError("the ranks of this run have ended.", hint="open the model again")
        return self._channel

    def _start(self, mpirun: Path) -> None:
        path = self._folder / "s"
        environment = dict(os.environ)
        if os.geteuid() == 0:
            environment["OMPI_ALLOW_RUN_AS_ROOT"] = "1"
            environment["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] = "1"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(path))
            listener.listen(1)
            listener.settimeout(0.1)
            # A session of its own: Ctrl-C reaches this process only, which then ends the ranks.
            try:
                self._process = subprocess.Popen(
                    mpirun_command(mpirun, self.ranks, path),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    errors="replace",
                    env=environment,
                    start_new_session=True,
                )
            except OSError as error:
                raise LaunchError(
                    f"{mpirun} cannot be run.", cause=str(error), hint=INSTALL_HINT
                ) from error
            self._reader = threading.Thread(
                target=self._read_output, args=[self._process.stdout], daemon=True
            )
            self._reader.start()
            self._channel = Channel(self._accept(listener))

    def _accept(self, listener: socket.socket) -> socket.socket:
        assert self._process is not None
        end = time.monotonic() + _START_SECONDS
        while True:
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                if self._process.poll() is not None:
                    raise self._lost() from None
                if time.monotonic() > end:
                    raise LaunchError(
                        f"{self.ranks} ranks did not start within {_START_SECONDS:.0f} s.",
                        cause=self._last_words() or "mpirun said nothing.",
                        hint=f"flexq-ft doctor --tp {self.ranks}",
                    ) from None
            else:
                connection.settimeout(None)
                return connection

    def _read_output(self, output: IO[str]) -> None:
        """In a thread: what mpirun and the ranks write, so that no pipe fills up."""
        with output:
            for line in output:
                _, mark, data = line.partition(ERROR_MARK)
                if not mark:
                    self._said.append(line.rstrip())
                elif self._failure is None:
                    try:
                        self._failure = error_from_wire(json.loads(data))
                    except ValueError:
                        self._said.append(line.rstrip())

    def _last_words(self) -> str:
        return " | ".join(line for line in self._said if line.strip())[-1000:]

    def _lost(self) -> FlexQFtError:
        """Ends the run and says why: the first failed rank's error if one was reported."""
        code = self._end_process()
        self.close()
        if self._failure is not None:
            return self._failure
        said = self._last_words()
        if "flexq_ft" in said and "ModuleNotFoundError" in said:
            return DeviceError("the ranks cannot import flexq_ft.", cause=said, hint=INSTALL_HINT)
        return LaunchError(
            f"a rank was lost: mpirun ended with code {code}.",
            cause=said or "mpirun said nothing.",
            hint=f"flexq-ft doctor --tp {self.ranks}",
        )

    def _end_process(self) -> int | None:
        """Waits for mpirun and all it wrote; kills its whole session if it takes too long, or at
        another Ctrl-C.

        Once: later the number of its session may be another's.
        """
        process, self._process = self._process, None
        if process is None:
            return None
        try:
            for signal_number, seconds in ((None, _STOP_SECONDS), (signal.SIGTERM, 3.0)):
                if signal_number is not None:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal_number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(seconds)
                    break
        finally:
            _kill_session(process.pid)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(3.0)
        self._reader.join(timeout=3.0)
        return process.returncode


def _kill_session(session: int) -> None:
    """mpirun, and the ranks that outlived it: they have process groups of their own."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(int(folder.name)) == session:
                os.kill(int(folder.name), signal.SIGKILL)


def _socket_parent() -> str | None:
    """None: the usual temporary folder; a short one if a socket's path would not fit (108)."""
    return "/tmp" if len(tempfile.gettempdir()) > 60 else None

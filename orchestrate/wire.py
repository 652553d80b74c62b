"""Messages between the launcher and rank 0: an 8-byte length, JSON, and bytes if the JSON says so.

A message is a JSON object; `_binary` in it is the number of raw bytes that follow (logits).
"""

from __future__ import annotations

import json
import select
import socket
from collections.abc import Mapping
from typing import Any

import flexq_ft.errors as errors
from flexq_ft.errors import FlexQFtError, InternalError

_HEADER_BYTES = 8
_MAX_BYTES = 1 << 32  # beyond this a length is garbage, not a message


class ConnectionLostError(Exception):
    """The other side is gone."""


class Channel:
    """One end of the connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    def send(self, message: Mapping[str, Any], payload: bytes = b"") -> None:
        """Raises ConnectionLostError if the other side is gone."""
        body = dict(message)
        if payload:
            body["_binary"] = len(payload)
        data = json.dumps(body).encode()
        try:
            self._socket.sendall(len(data).to_bytes(_HEADER_BYTES, "big") + data + payload)
        except OSError as error:
            raise ConnectionLostError(str(error)) from error

    def receive(self) -> tuple[dict[str, Any], bytes]:
        """Waits for the next message. Raises ConnectionLostError."""
        length = int.from_bytes(self._exactly(_HEADER_BYTES), "big")
        if length > _MAX_BYTES:
            raise ConnectionLostError(f"a message of {length:,} bytes was announced")
        message: dict[str, Any] = json.loads(self._exactly(length))
        return message, self._exactly(message.pop("_binary", 0))

    def pending(self) -> bool:
        """Whether a message (or the end) can be read without waiting."""
        return bool(select.select([self._socket], [], [], 0)[0])

    def close(self) -> None:
        self._socket.close()

    def _exactly(self, count: int) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            try:
                part = self._socket.recv(min(count - len(parts), 1 << 20))
            except OSError as error:
                raise ConnectionLostError(str(error)) from error
            if not part:
                raise ConnectionLostError("the connection was closed")
            parts += part
        return bytes(parts)


def error_to_wire(error: BaseException) -> dict[str, Any]:
    """Any exception as the JSON of its typed error."""
    if isinstance(error, FlexQFtError):
        return error.to_json()
    if isinstance(error, MemoryError):
        return errors.OutOfMemoryError("the host's memory is exhausted.").to_json()
    return InternalError(f"{type(error).__name__}: {error}").to_json()


def error_from_wire(data: Mapping[str, Any]) -> FlexQFtError:
    """The typed error again, with its rank and host."""
    kind = getattr(errors, str(data.get("kind")), InternalError)
    if not (isinstance(kind, type) and issubclass(kind, FlexQFtError)):
        kind = InternalError
    return kind(
        str(data.get("message", "")),
        cause=str(data.get("cause", "")),
        hint=str(data.get("try", "")),
        rank=data.get("rank"),
        host=data.get("host"),
    )

"""Sequences on an engine until they are done: one in pieces as they come, or several in order."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing

from flexq_ft.errors import FlexQFtError
from flexq_ft.orchestrate.engine.client import EngineClient, Request
from flexq_ft.orchestrate.outputs import RequestOutput, StreamPiece, TextSequence


def pieces(engine: EngineClient, sequence: TextSequence) -> Generator[StreamPiece, None, None]:
    """As tokens come; the last has `output`. Raises what ended the sequence otherwise. Closing it
    stops the engine."""
    with closing(engine.generate([_request(0, sequence)])) as steps:
        for event in (event for step in steps for event in step):
            piece = sequence.push(event)
            if sequence.done:
                break
            yield piece
    if sequence.error is not None:
        raise sequence.error
    yield StreamPiece(piece.text, piece.token_ids, sequence.finish, sequence.output())


def in_order(
    engine: EngineClient, sequences: Sequence[TextSequence | FlexQFtError]
) -> Generator[RequestOutput | FlexQFtError, None, None]:
    """Each result, or the error in its place, as soon as it and those before it are there. Closing
    it stops the others."""
    running = {i: s for i, s in enumerate(sequences) if isinstance(s, TextSequence)}
    ready: dict[int, RequestOutput | FlexQFtError] = {
        i: s for i, s in enumerate(sequences) if isinstance(s, FlexQFtError)
    }
    given = 0
    with closing(engine.generate([_request(i, s) for i, s in running.items()])) as steps:
        for step in steps:
            for event in step:
                sequence = running.get(event.id)
                if sequence is None:
                    continue  # cancelled; the engine had gone on a little
                sequence.push(event)
                if sequence.done:
                    del running[event.id]
                    ready[event.id] = sequence.error or sequence.output()
                    if event.finish is None and event.error is None:
                        engine.cancel(event.id)
            while given in ready:
                yield ready.pop(given)
                given += 1
    while given in ready:
        yield ready.pop(given)
        given += 1


def _request(number: int, sequence: TextSequence) -> Request:
    return Request(number, sequence.prompt_ids, sequence.params.engine_fields())

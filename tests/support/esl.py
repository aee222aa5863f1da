"""Recordings of FreeSWITCH's event socket, and what is read from them."""

from __future__ import annotations

from pathlib import Path

from fs_hooks import esl
from fs_hooks.conferences import Change, Conferences, Ended

RECORDINGS = sorted((Path(__file__).parent.parent / "fixtures" / "esl").glob("*.esl"))
EXPECTED = Path(__file__).parent.parent / "expected" / "registrations"


def recording(name: str) -> bytes:
    """The bytes that FreeSWITCH sent."""
    return next(path for path in RECORDINGS if path.stem == name).read_bytes()


def boundaries(data: bytes) -> list[int]:
    """Where each frame of a sound recording ends: found apart from the reader under test."""
    found, start = [], 0
    while start < len(data):
        head_end = data.index(b"\n\n", start) + 2
        length = 0
        for line in data[start:head_end].splitlines():
            if line.startswith(b"Content-Length: "):
                length = int(line.removeprefix(b"Content-Length: "))
        start = head_end + length
        found.append(start)
    return found


def replay(name: str, conferences: Conferences) -> list[Change]:
    """What follows from a recording, asked for a snapshot as the hook does: first when subscribed, then after each."""
    changes: list[Change] = []
    question = conferences.ask()
    for frame in esl.Reader().feed(recording(name)):
        if isinstance(frame, esl.Event):
            changes += conferences.event(frame)
        elif isinstance(frame, esl.ApiResponse) and not frame.body.startswith("-ERR Conference 49999"):
            changes += conferences.snapshot(question, frame.body, now_ms=1_795_422_400_000)
            question = conferences.ask()
    return changes


def words(change: Change) -> str:
    """A change as the expected files write it."""
    conference = change.conference
    if isinstance(change, Ended):
        return f"- {conference.number} {conference.instance_id} {change.reason.value}"
    return f"+ {conference.number} {conference.instance_id}"


def expected(name: str) -> list[str]:
    """What is expected of a recording; its reasons are the file's comments."""
    lines = (EXPECTED / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith("#")]

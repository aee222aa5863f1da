"""The instructions that wait to be applied: the newest of each stay, none of an epoch that is over. Pure.

Who takes over, or comes back after an outage of Asterisk, finds the instructions of the whole time at once. Only the
newest attempt of each stay says what is wanted now, so only that is kept, and memory is bounded by the callers.

Epochs: an instruction of a desk partition whose newer owner has spoken is void (a frozen worker that wakes). They are
compared over all gateways' instructions that this partition of the topic carries: all of them tell of owners.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from callyard.records import DIALS, MAX_ATTEMPT, Instruction, RecordError, parse


class Taken(str, Enum):
    """What became of a record of ``callyard.dials``."""

    HELD = "held"
    """Waits to be applied."""
    OTHER_GATEWAY = "other-gateway"
    VOID = "void"
    """Its owner's epoch is over."""
    SUPERSEDED = "superseded"
    """A newer attempt of the same stay waits already."""
    APPLIED_BEFORE = "applied-before"
    """Read only to learn the epochs: it lies before the committed offset."""


@dataclass(frozen=True)
class Held:
    """An instruction and where it stands."""

    offset: int
    broker_ms: int
    instruction: Instruction


class Inbox:
    """The instructions to one gateway that are read and not yet applied."""

    def __init__(self, gateway_id: str) -> None:
        self._gateway_id = gateway_id
        self._epochs: dict[int, int] = {}
        self._held: dict[tuple[str, int], Held] = {}
        self._applying: set[int] = set()
        self._position = 0

    def restart(self, position: int) -> None:
        """Begin anew at this offset, with what is known of epochs."""
        self._held.clear()
        self._applying.clear()
        self._position = position

    def take(self, value: bytes | None, offset: int, broker_ms: int, *, applied_before: bool = False) -> Taken:
        """One record, in the order of the topic. Raises `RecordError` when it is no dial instruction to act on."""
        self._position = offset + 1
        instruction = parse(DIALS, value)
        if instruction.attempt > MAX_ATTEMPT:
            # No record could say what became of it.
            raise RecordError(f"attempt {instruction.attempt} is beyond {MAX_ATTEMPT}, the last that can be reported")
        newest = self._epochs.get(instruction.partition, 0)
        if instruction.epoch < newest:
            return Taken.VOID
        self._epochs[instruction.partition] = instruction.epoch
        if instruction.gateway_id != self._gateway_id:
            return Taken.OTHER_GATEWAY
        if applied_before:
            return Taken.APPLIED_BEFORE
        key = (instruction.call_id, instruction.stay)
        waiting = self._held.get(key)
        if waiting is not None and _rank(waiting.instruction) >= _rank(instruction):
            return Taken.SUPERSEDED
        self._held.pop(key, None)
        self._held[key] = Held(offset, broker_ms, instruction)
        return Taken.HELD

    def drain(self) -> list[Held]:
        """All that waits, in the order in which it came; each is `done` when it has been applied."""
        held = list(self._held.values())
        self._held.clear()
        self._applying.update(one.offset for one in held)
        return held

    def done(self, held: Held) -> None:
        """This one has been applied, or refused: it needn't be read again."""
        self._applying.discard(held.offset)

    def keep(self, held: Held) -> None:
        """This one was drained but can't be applied now: it waits on, unless a newer one of its stay came since."""
        self._applying.discard(held.offset)
        self._held.setdefault((held.instruction.call_id, held.instruction.stay), held)

    @property
    def committable(self) -> int:
        """The offset before which everything is applied."""
        return min([self._position, *self._applying, *(held.offset for held in self._held.values())])


def _rank(instruction: Instruction) -> tuple[int, int]:
    # A new owner may contradict what an older one instructed under the same number; what waits here isn't applied yet.
    return instruction.epoch, instruction.attempt

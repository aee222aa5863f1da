"""Whose rows count: each owner of a partition writes a claim into its changelog, and each row names its claim.

No look at a clock or at a group can prove, at the moment in which a batch reaches the broker, that its writer still
owns the partition: a worker can be frozen between the look and the write. The log itself can. A new owner writes its
claim and reads the log up to it; from there on a row of an older claim is void, whenever it was written. Pure.

A claim is a tombstone (``7|!``), so that it is no row, and goes with time by itself. Rows without a claim are of
releases before claims, and count.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

HEADER = "claim"


@dataclass(frozen=True, slots=True)
class Claim:
    """One ownership of one partition."""

    epoch: int
    """Greater than that of every owner whose claim was in the log when this one was made."""
    owner: str
    """Tells two owners of one epoch apart: two may have read the same log. No blanks."""

    @property
    def header(self) -> tuple[str, bytes]:
        """As each row carries it."""
        return HEADER, f"{self.epoch} {self.owner}".encode()


def claim_of(headers: Iterable[tuple[str, bytes | None]]) -> Claim | None:
    """The claim that a row's headers name; None where they name none. Raises `ValueError` where it can't be one."""
    for name, value in headers:
        if name == HEADER:
            epoch, separator, owner = (value or b"").decode().partition(" ")
            if not (separator and owner and len(epoch) <= 18 and epoch.isascii() and epoch.isdigit()):
                raise ValueError(f"a row's claim is no epoch and owner: {value!r:.60}")
            return Claim(int(epoch), owner)
    return None


class Claims:
    """The claims of one partition's changelog, in the order of its rows."""

    def __init__(self) -> None:
        self.held: Claim | None = None
        """The claim that rows must be of now; None: there was none yet."""

    def counts(self, claim: Claim | None) -> bool:
        """Whether a row of this claim counts, if it is the next one. Of two owners of one epoch the first one stays."""
        return claim is None or self.held is None or claim == self.held or claim.epoch > self.held.epoch

    def admit(self, claim: Claim | None) -> bool:
        """Take the next row's claim; whether the row counts."""
        counts = self.counts(claim)
        if counts and claim is not None:
            self.held = claim
        return counts

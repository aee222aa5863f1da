"""A call at Asterisk as it really is, for the models of property tests: its marks, and how it is listed."""

from __future__ import annotations

from dataclasses import dataclass

from agents.messages import After, Channel, ChannelState, Failure, Marks, Parked

UNDER_WAY = frozenset({ChannelState.DIALING, ChannelState.TELLING})


@dataclass
class AsteriskCall:
    """One call's channel, with the marks that the dialplan keeps on it."""

    uniqueid: str
    stay: int = 1
    mark: int = 0
    state: ChannelState = ChannelState.PARKED
    failure: Failure | None = None
    after: After | None = None
    conference: str = "10001"

    @property
    def marks(self) -> Marks:
        return Marks(self.conference, self.stay, self.state, self.mark, self.failure, self.after)

    @property
    def parked(self) -> Parked:
        return Parked(self.uniqueid, f"PJSIP/{self.uniqueid}", self.marks)

    @property
    def entry(self) -> Channel:
        return Channel(self.uniqueid, f"PJSIP/{self.uniqueid}", self.marks, self.state not in UNDER_WAY)

"""What the agent does for those who wait, beside carrying out instructions: ``*``, and the word that it is there.

Both are done only by who speaks for the gateway, and only while the fence holds: two replicas must not both ask a
caller for a number, and an agent without Kafka must not say that callers can be put through.

Neither can lose a caller. ``*`` redirects who waits, and nobody else, to where the number is asked for; until the new
number is entered the old stay goes on, and a dial for it is refused (`agents.mirror`). If that redirect is lost, the
caller waits as before. If the word of being there is lost, the dialplan ends the wait late, after it was told so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog
from prometheus_client import Counter

from agents import ami
from agents.gateway import Gateway
from agents.messages import Starred
from agents.mirror import Mirror
from callyard.fence import Fence

log = structlog.get_logger(__name__)

AGAIN_CONTEXT = "callyard-again"
PRESENT = "CALLYARD_AGENT"
"""Asterisk's global variable that holds when an agent last could put callers through (seconds, its own clock)."""
PRESENT_SECONDS = 5.0

AGAIN = Counter("callyard_agent_again", "Callers who pressed * to enter another number.", ["outcome"])


class Waiting:
    """Serves those who wait at one gateway."""

    def __init__(self, mirror: Mirror, gateway: Gateway, fence: Fence, owner: Callable[[], bool]) -> None:
        self._mirror = mirror
        self._gateway = gateway
        self._fence = fence
        self._owner = owner

    @property
    def _speaking(self) -> bool:
        return self._owner() and self._fence.holds

    def starred(self, event: Starred) -> None:
        """A caller pressed ``*``: ask for another number, if it waits."""
        session = self._gateway.session
        if session is None or session.lost is not None or not self._speaking:
            AGAIN.labels("not-speaking").inc()
            return
        if not self._mirror.may_ask_again(event):
            AGAIN.labels("not-waiting").inc()
            return
        fields = {"Channel": event.channel, "Context": AGAIN_CONTEXT, "Exten": "s", "Priority": "1"}
        try:
            session.send("Redirect", fields)
        except ami.UnsafeValueError as error:
            AGAIN.labels("bad-channel").inc()
            log.warning("a channel that cannot be named to Asterisk", why=str(error))
            return
        self._mirror.asking_again(event.uniqueid)
        AGAIN.labels("asked").inc()
        log.info("asking for another number", call_id=self._mirror.reports.call_id(event.uniqueid))

    async def be_present(self) -> None:
        """Tell Asterisk that callers can be put through, while they can, until cancelled."""
        while True:
            session = self._gateway.session
            if session is not None and session.lost is None and self._speaking:
                try:
                    await self._tell_present(session)
                except ami.AmiError as error:
                    # The session's own end is told by who attends it.
                    log.debug("Asterisk wasn't told that an agent is there", why=str(error))
            await asyncio.sleep(PRESENT_SECONDS)

    async def _tell_present(self, session: ami.Session) -> None:
        # By Asterisk's own clock: the agent's may be another machine's.
        now = str((await session.answer(session.send("Ping", {}))).get("Timestamp", "")).partition(".")[0]
        if now.isdigit() and self._speaking and session.lost is None:
            await session.answer(session.send("Setvar", {"Variable": PRESENT, "Value": now}))

"""One registration for each conference from what two sources say of it. Pure: no IO, no clock.

FreeSWITCH knows rooms (its conferences: there once somebody has joined audio). BigBlueButton knows meetings. A meeting
and the room of its number are one conference. The rules:

* A number that has a live meeting is registered as that meeting, under the meeting's URI; its rooms are not registered.
* Where a meeting has ended, its conference is over, though FreeSWITCH's room may stay for a while: the room that was
  there is never registered again, nor is one that begins later (a ghost: who dials the number of a meeting that ended
  starts a room of their own) until a meeting of the number begins.
* A number that has a room and no meeting ever is registered as the room. Whoever runs FreeSWITCH for other things, or
  set the second source to a wrong server, loses no caller by it.
* Where the meetings can't be vouched for any more (`lost`), their rooms stand in for them.
* Where meetings are reached by FreeSWITCH, too (``through_freeswitch``), and it can't be followed, no meeting can be
  reached: none is registered.

What is not to be registered any more because something else is, or because its source is away, ends as ``lost``, which
may come back; only what its own source has seen ending ends as ``ended``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from callyard.records import Source, UnregisterReason
from fs_hooks.instances import REMEMBERED, Change, Conference, Ended, Memory, Opened


class Merge:
    """What is registered; each method returns what changed by it.

    ``sources`` are those that are on. Nothing is registered before each of them was followed once, or found away: a
    conference that both know would be registered as a room first and change over at once.
    """

    def __init__(
        self, sources: Iterable[Source], *, through_freeswitch: bool = True, remembered: int = REMEMBERED
    ) -> None:
        self._sources = frozenset(sources)
        self._through_freeswitch = through_freeswitch and Source.FREESWITCH in self._sources
        self._untried = set(self._sources)
        self._followed: set[Source] = set()
        self._known: dict[str, dict[str, Conference]] = {}
        """By number, and by key."""
        self._live: dict[str, Conference] = {}
        self._registered: dict[str, dict[str, Conference]] = {}
        """What is registered, by number and by key."""
        self._spent = Memory(remembered)
        """Rooms whose meeting has ended, by key."""
        self._over = Memory(remembered)
        """Numbers whose last meeting has ended."""

    @property
    def live(self) -> Mapping[str, Conference]:
        """What is registered, by key."""
        return self._live

    @property
    def begun(self) -> bool:
        """Whether each source was tried, and one can be followed: what is registered is all that can be known now."""
        return not self._untried and bool(self._followed)

    def apply(self, changes: Iterable[Change]) -> list[Change]:
        """Apply what changed at a source."""
        found: list[Change] = []
        for change in changes:
            self._note(change)
            found += self._settle(change.conference.number, change)
        return found

    def followed(self, source: Source) -> list[Change]:
        """The source can be followed, and all that it knows was applied."""
        if source in self._followed:
            return []
        self._followed.add(source)
        self._untried.discard(source)
        return self._settle_all()

    def lost(self, source: Source) -> list[Change]:
        """The source can't be followed. What it knew is applied before, as lost."""
        if source not in self._followed and source not in self._untried:
            return []
        self._followed.discard(source)
        self._untried.discard(source)
        if source is Source.BIGBLUEBUTTON:
            self._over.clear()  # another meeting of the number may have begun since
        return self._settle_all()

    def _note(self, change: Change) -> None:
        conference = change.conference
        known = self._known.setdefault(conference.number, {})
        if isinstance(change, Opened):
            known[conference.key] = conference
        else:
            known.pop(conference.key, None)
        if conference.source is Source.BIGBLUEBUTTON:
            self._note_meeting(change, known)
        elif isinstance(change, Opened) and conference.number in self._over:
            self._spent.add(conference.key)
        if not known:
            del self._known[conference.number]

    def _note_meeting(self, change: Change, known: Mapping[str, Conference]) -> None:
        number = change.conference.number
        rooms = [c.key for c in known.values() if c.source is Source.FREESWITCH]
        if isinstance(change, Opened):
            self._over.discard(number)
            for key in rooms:
                self._spent.discard(key)
        elif change.reason is UnregisterReason.ENDED and len(rooms) == len(known):
            self._over.add(number)
            for key in rooms:
                self._spent.add(key)

    def _wanted(self, number: str) -> dict[str, Conference]:
        known = self._known.get(number, {})
        if self._untried:
            return {}
        meetings = {key: c for key, c in known.items() if c.source is Source.BIGBLUEBUTTON}
        if meetings:
            reachable = not self._through_freeswitch or Source.FREESWITCH in self._followed
            return meetings if reachable else {}
        return {key: c for key, c in known.items() if key not in self._spent}

    def _settle(self, number: str, cause: Change | None = None) -> list[Change]:
        wanted, registered = self._wanted(number), self._registered.get(number, {})
        # What is new first: at no moment has a conference that runs no registration.
        changes: list[Change] = [Opened(wanted[key]) for key in wanted if key not in registered]
        for key, conference in registered.items():
            if key not in wanted:
                own = isinstance(cause, Ended) and cause.conference.key == key
                reason = cause.reason if own else UnregisterReason.LOST  # type: ignore[union-attr]
                changes.append(Ended(conference, reason))
                del self._live[key]
        if wanted:
            self._registered[number] = wanted
            self._live.update(wanted)
        else:
            self._registered.pop(number, None)
        return changes

    def _settle_all(self) -> list[Change]:
        numbers = dict.fromkeys([*self._known, *self._registered])
        return [change for number in numbers for change in self._settle(number)]

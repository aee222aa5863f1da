"""Judges a run: what of it was lost, doubled, wrong or contradictory. Pure: facts in, findings out.

- lost: a caller whose call the gateway ended though neither a node had just ended his leg nor a reason is recorded; one
  who was never answered; one who, at the end, is not in his conference although it runs; one who waited
  `FORGOTTEN_SECONDS` beside it and was not dialled.
- doubled: two legs of one caller at the same time. Legs in sequence are right (a failed dial, a leg that the node
  ended).
- wrong: a leg for another conference than the caller entered, or at a node where it wasn't open then. A conference that
  closed less than `LATE_SECONDS` before is ``late``: told, but no fault.
- journal: what `tests.support.streams.journal_findings` says; a stay without an end; an instruction after the journal
  had the end of its target; a dial at Asterisk that nobody instructed, or twice; a table that isn't the fold of the
  journal.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from callyard.records import (
    CALLS,
    DIALS,
    JOURNAL,
    CallAlive,
    CallerLeft,
    CallerParked,
    DialInstruction,
    JournalEntry,
    parse,
)
from callyard.settings import AsteriskSettings
from streams.rows import ACTIVE, RegistrationState, StayRow, StayState
from tests.chaos.facts import Facts, Leg, Opened, SeenCaller
from tests.chaos.fold import compacted, differences, folded
from tests.chaos.site import LEASE_SECONDS
from tests.support.streams import journal_findings

LATE_SECONDS = LEASE_SECONDS + 10.0
"""How long after a close a leg may still come: a registration that nobody can take back (its hook is dead, or cut off)
lives on for its lease, and an instruction that was given until then for its deadline (10 s)."""
ENDS = frozenset({"timed-out", "given-up", "removed"})
"""Recorded reasons for which the gateway ends a call by itself, having told the caller."""
FAREWELL_SECONDS = 15.0
"""How long after a node's hanging up the gateway may end the call for that: it looks whether the meeting goes on."""
FOLLOW_SECONDS = float(AsteriskSettings().follow_ended_seconds)
"""How long a caller waits after a talk for the conference to begin again."""
FORGOTTEN_SECONDS = 45.0
"""Whoever waits longer than this beside a conference that runs is lost, also when he then hangs up. Longer than all
that may come together: a broker that starts (10 s), sessions, a call's or a registration's lease, a retry."""
CLOCK_SECONDS = 0.005
"""The end of one leg and the beginning of the next are logged by two processes, each a moment after it happened."""


@dataclasses.dataclass(frozen=True)
class Waits:
    """How long callers waited beside a conference that ran, beyond the run's median; seconds."""

    count: int = 0
    median: float = 0.0
    p50: float = 0.0
    p95: float = 0.0
    p99: float = 0.0
    longest: float = 0.0
    longest_caller: str = ""
    gave_up: int = 0
    """Callers who hung up, or whose conference closed, before anybody dialled, although it ran; not in the above."""
    longest_given_up: float = 0.0
    """The longest of these waits."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What was found; each list has a sentence for each finding."""

    lost: list[str]
    doubled: list[str]
    wrong: list[str]
    journal: list[str]
    late: list[str]
    misheard: list[str]
    """Callers whose digits arrived incompletely, so that they wait for a number that nobody has: the trial's fault."""
    stays: Mapping[str, int]
    """Stays by how they ended in the table."""
    waits: Waits

    @property
    def good(self) -> bool:
        return not (self.lost or self.doubled or self.wrong or self.journal)


def judge(facts: Facts) -> Verdict:
    """Judge a run."""
    legs: dict[str, list[Leg]] = defaultdict(list)
    for leg in sorted(facts.legs, key=lambda leg: leg.called):
        legs[leg.caller].append(leg)
    misheard = _misheard(facts)
    heard = [caller for caller in facts.callers if caller.number not in misheard]
    entered = {caller.number: caller.conference for caller in facts.callers}
    wrong, late = _places(facts, entered)
    journal, stays = _journal(facts)
    return Verdict(
        lost=_lost(heard, legs, set(facts.outside), _reasons(facts)) + _forgotten(heard, legs, facts),
        doubled=_doubled(legs),
        wrong=wrong,
        journal=journal,
        late=late,
        misheard=[f"{number} entered {entered[number]}, heard was {said}" for number, said in sorted(misheard.items())],
        stays=stays,
        waits=_waits(heard, legs, facts),
    )


# --- callers --------------------------------------------------------------------------------------------------------


def _lost(
    callers: Sequence[SeenCaller], legs: Mapping[str, Sequence[Leg]], outside: set[str], told: Mapping[str, set[str]]
) -> list[str]:  # fmt: skip
    findings = []
    for caller in callers:
        who = f"{caller.number} for {caller.conference}"
        if caller.answered is None:
            findings.append(f"{who} was never answered")
        elif caller.number in outside:
            findings.append(f"{who} was not in it at the end, although it ran")
        elif (
            caller.told_to_leave is None
            and caller.how != "left"
            and not told.get(caller.number, set()) & ENDS
            and not _ended_by_node(caller, legs.get(caller.number, ()))
        ):
            findings.append(f"{who} was hung up ({caller.how or 'no end seen'}) at {caller.over}, without a reason")
    return findings


def _ended_by_node(caller: SeenCaller, legs: Sequence[Leg]) -> bool:
    """Whether his call ended because a node had ended his last leg: at once, or when the wait after it was over.

    The gateway ends that wait by itself. Where no agent hears of it, the record says only that the call is gone.
    """
    if not legs or legs[-1].how not in {"left", "aborted"}:
        return False
    over = legs[-1].over
    if caller.over is None or over is None:
        return True
    waited = caller.over - over
    return waited < FAREWELL_SECONDS or 0 <= waited - FOLLOW_SECONDS < FAREWELL_SECONDS


def _reasons(facts: Facts) -> dict[str, set[str]]:
    """Why each caller's stays ended, as the records say, and what the stream had him told; by his number."""
    numbers: dict[str, str] = {}
    reasons: dict[str, set[str]] = defaultdict(set)
    for record in facts.calls:
        said = parse(CALLS, record.value)
        if isinstance(said, (CallerParked, CallAlive)) and said.caller is not None:
            numbers[said.call_id] = said.caller
        elif isinstance(said, CallerLeft):
            reasons[said.call_id].add(said.reason.value)
    for record in facts.instructions:
        notice = getattr(instruction := parse(DIALS, record.value), "notice", None)
        if notice is not None:
            reasons[instruction.call_id].add(notice.value)
    found: dict[str, set[str]] = defaultdict(set)
    for call_id, number in numbers.items():
        found[number] |= reasons[call_id]
    return found


def _forgotten(callers: Sequence[SeenCaller], legs: Mapping[str, Sequence[Leg]], facts: Facts) -> list[str]:
    return [
        f"{number} waited {seconds:.0f} s beside the running conference, and was not dialled"
        for number, seconds in _in_vain(callers, legs, facts).items()
        if seconds > FORGOTTEN_SECONDS
    ]


def _doubled(legs: Mapping[str, Sequence[Leg]]) -> list[str]:
    return [
        f"{number} had two legs at once: {leg}, {other}"
        for number, own in legs.items()
        for leg, other in itertools.combinations(own, 2)  # in the order of their beginning
        if leg.over is None or other.called < leg.over - CLOCK_SECONDS
    ]


def _places(facts: Facts, entered: Mapping[str, str]) -> tuple[list[str], list[str]]:
    wrong, late = [], []
    openings: dict[tuple[str, str], list[Opened]] = defaultdict(list)
    for opening in facts.openings:
        openings[opening.node, opening.conference].append(opening)
    for leg in facts.legs:
        if leg.conference != entered.get(leg.caller):
            wrong.append(f"{leg.caller} entered {entered.get(leg.caller)} and came to {leg.conference} at {leg.node}")
            continue
        there = [o for o in openings[leg.node, leg.conference] if o.opened <= leg.called]
        if any(o.closed is None or leg.called <= o.closed for o in there):
            continue
        since = min((leg.called - o.closed for o in there if o.closed is not None), default=None)
        what = f"{leg.caller} came to {leg.conference} at {leg.node}"
        if since is None:
            wrong.append(f"{what}, where it had not opened")
        elif since > LATE_SECONDS:
            wrong.append(f"{what}, where it had closed {since:.1f} s before")
        else:
            late.append(f"{what} {since:.1f} s after it closed there")
    return wrong, late


def _misheard(facts: Facts) -> dict[str, str]:
    """Callers for whom the gateway heard a number that is no meeting's, with that number."""
    meetings = {caller.conference for caller in facts.callers}
    heard: dict[str, set[str]] = defaultdict(set)
    for record in facts.calls:
        said = parse(CALLS, record.value)
        if isinstance(said, (CallerParked, CallAlive)) and said.caller is not None:
            heard[said.caller].add(said.conference)
    return {number: ", ".join(sorted(said)) for number, said in heard.items() if said and not said & meetings}


def _entering(callers: Sequence[SeenCaller], legs: Mapping[str, Sequence[Leg]]) -> float:
    """Seconds from the answer until a number is entered: as long for all, so the shortest time to a leg."""
    answered = {caller.number: caller.answered for caller in callers if caller.answered is not None}
    return min((own[0].called - answered[who] for who, own in legs.items() if who in answered and own), default=0.0)


def _waits(callers: Sequence[SeenCaller], legs: Mapping[str, Sequence[Leg]], facts: Facts) -> Waits:
    entering = _entering(callers, legs)
    waits = []
    for caller in callers:
        for leg in legs.get(caller.number, ())[:1]:
            there = [o for o in facts.openings if (o.node, o.conference) == (leg.node, leg.conference)]
            ran = [o for o in there if o.opened <= leg.called and (o.closed is None or leg.called <= o.closed)]
            if ran and caller.answered is not None:
                waits.append((leg.called - max(ran[0].opened, caller.answered + entering), caller.number))
    unheard = [wait for wait in _in_vain(callers, legs, facts).values() if wait > 0]
    if not waits:
        return Waits(gave_up=len(unheard), longest_given_up=round(max(unheard, default=0.0), 3))
    waits.sort()
    median = waits[len(waits) // 2][0]
    extra = [wait - median for wait, _ in waits]

    def at(share: float) -> float:
        return round(max(0.0, extra[min(len(extra) - 1, int(share * len(extra)))]), 3)

    return Waits(
        count=len(waits),
        median=round(median, 3),
        p50=at(0.5),
        p95=at(0.95),
        p99=at(0.99),
        longest=round(extra[-1], 3),
        longest_caller=waits[-1][1],
        gave_up=len(unheard),
        longest_given_up=round(max(unheard, default=0.0), 3),
    )


def _in_vain(
    callers: Sequence[SeenCaller], legs: Mapping[str, Sequence[Leg]], facts: Facts
) -> dict[str, float]:  # fmt: skip
    """Who was never dialled: how long he waited at the most, without a pause, while his conference ran."""
    entering = _entering(callers, legs)
    longest: dict[str, float] = {}
    for caller in callers:
        if caller.answered is None or caller.over is None or legs.get(caller.number):
            continue
        for opening in facts.openings:
            if opening.conference == caller.conference:
                until = caller.over if opening.closed is None else min(caller.over, opening.closed)
                wait = until - max(opening.opened, caller.answered + entering)
                longest[caller.number] = max(wait, longest.get(caller.number, 0.0))
    return longest


# --- the journal ----------------------------------------------------------------------------------------------------


def _journal(facts: Facts) -> tuple[list[str], dict[str, int]]:
    said = [parse(DIALS, record.value) for record in facts.instructions]
    findings = journal_findings(facts.journal, said, facts.timers, facts.inputs)
    entries: list[tuple[int, JournalEntry, bytes]] = []
    for value, record in {record.value: record for record in reversed(facts.journal)}.items():
        entry = parse(JOURNAL, value)
        if isinstance(entry, JournalEntry) and value is not None:
            entries.append((record.partition, entry, value))
    entries.sort(key=lambda one: (one[1].conference, one[1].version))
    findings += _after_the_end([entry for _, entry, _ in entries])
    instructed = {(i.call_id, i.stay, i.attempt): i.conference for _, e, _ in entries for i in e.instructions}
    findings += _dialled(facts, instructed)
    try:
        fold = folded(entries)
    except (KeyError, TypeError, ValueError) as error:
        return [*findings, f"the journal cannot be folded: {error!r}"], {}
    table, positions = compacted(facts.changelog)
    findings += differences(fold, table)
    findings += _positions([entry for _, entry, _ in entries], positions)
    stays = Counter(row.state for row in table.values() if isinstance(row, StayRow))
    findings += [
        f"the stay {key.decode()} has no end: {row.state.value}"
        for key, row in table.items()
        if isinstance(row, StayRow) and row.state in ACTIVE
    ]
    return findings, {state.value: stays[state] for state in StayState if stays[state]}


def _after_the_end(entries: Sequence[JournalEntry]) -> list[str]:
    """Instructions to where, by the journal itself, nothing ran any more."""
    findings = []
    states: dict[tuple[str, str, str], RegistrationState] = {}
    for entry in entries:
        for change in entry.changes:
            if change.get("set") == "registration":
                where = (entry.conference, str(change["node_id"]), str(change["instance_id"]))
                states[where] = RegistrationState(change["state"])
        findings += [
            f"instructed to where nothing runs: {one}"
            for one in entry.instructions
            if isinstance(one, DialInstruction)
            and states.get((one.conference, one.node_id, one.instance_id)) is not RegistrationState.LIVE
        ]
    return findings


def _dialled(facts: Facts, instructed: Mapping[tuple[str, int, int], str]) -> list[str]:
    """What Asterisk dialled, beside what the journal instructed."""
    count = Counter((dial.call_id, dial.stay, dial.attempt) for dial in facts.dials)
    findings = [f"Asterisk dialled {number} times: {attempt}" for attempt, number in count.items() if number > 1]
    return findings + [
        f"Asterisk dialled what nobody instructed: {dial}"
        for dial in facts.dials
        if instructed.get((dial.call_id, dial.stay, dial.attempt)) != dial.conference
    ]


def _positions(entries: Sequence[JournalEntry], positions: Mapping[int, Mapping[str, Mapping[str, int]]]) -> list[str]:
    decided: dict[tuple[int, str], int] = {}
    for entry in entries:
        where = (entry.position.partition, entry.position.topic)
        decided[where] = max(entry.position.offset, decided.get(where, -1))
    applied = {
        (partition, topic): offset for partition, row in positions.items() for topic, offset in row["applied"].items()
    }
    return [
        f"{topic}-{partition} was applied to {applied.get((partition, topic))}, the journal goes to"
        f" {decided.get((partition, topic))}"
        for partition, topic in sorted({*decided, *applied})
        if decided.get((partition, topic)) != applied.get((partition, topic))
    ]

"""Stories and timelines as lines for people. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import tzinfo

from streams.audit.happenings import ROUTINE, Happening, What, caller_of
from streams.audit.story import Stay, Story
from streams.audit.times import lasted, shown
from streams.rows import ACTIVE

_INDENT = " " * 4


def summary(story: Story, until_ms: int, zone: tzinfo) -> str:
    """One line for one call."""
    first, last = story.stays[0], story.stays[-1]
    waited = sum(stay.waited_ms(until_ms) for stay in story.stays)
    numbers = " → ".join(dict.fromkeys(stay.conference for stay in story.stays))
    return (
        f"{shown(first.since_ms, zone)}  {story.call_id}  {story.caller}  {numbers}  waited {lasted(waited)}"
        f"  {last.attempts} attempts  {last.outcome}"
    )


def whole(story: Story, until_ms: int, zone: tzinfo, *, everything: bool = False) -> Iterator[str]:
    """One call in full: its timeline, then each stay's waits, then what is missing."""
    yield f"Call {story.call_id} at gateway {story.gateway_id}, caller {story.caller}"
    yield ""
    start = story.happenings[0].at_ms
    for happening in story.happenings:
        if everything or happening.what not in ROUTINE:
            yield from line(happening, start, zone)
    yield ""
    for stay in story.stays:
        yield from _stay(stay, until_ms)
    if story.last.state in ACTIVE and story.last.until_ms >= until_ms:
        yield f"At the end of the range the call was {story.last.state.value}."
    for missing in story.missing:
        yield f"Missing: {missing}."


def line(happening: Happening, start_ms: int, zone: tzinfo, *, whose: bool = False) -> Iterator[str]:
    """A happening, with what was known and said beside; ``whose``: also which conference and call it is of."""
    after = happening.at_ms - start_ms
    about = ""
    if whose:
        call = "" if happening.stay is None else f" {happening.stay.call_id}"
        about = f"{happening.conference}{call}  "
    place = f"journal {happening.told.partition}@{happening.told.offset}"
    head = f"{shown(happening.at_ms, zone)}  +{lasted(after):<11} {_WORDS[happening.what]:<22}"
    yield f"{head} {about}{happening.text}{_beside(happening)}  [{place}]"
    if happening.what is What.PARKED:
        yield f"{_INDENT}known then: {known(happening, zone)}"
    if happening.instruction is not None and "because" in happening.details:
        yield f"{_INDENT}because {happening.details['because']}"


_WORDS = {
    What.REGISTERED: "registered",
    What.REGISTRATION_RENEWED: "registration renewed",
    What.REGISTRATION_BACK: "registered again",
    What.REGISTRATION_ENDED: "conference ended",
    What.REGISTRATION_LOST: "registration lost",
    What.REGISTRATION_LAPSED: "registration lapsed",
    What.PARKED: "parked",
    What.RENEWED: "renewed",
    What.INSTRUCTED: "instruction",
    What.STARTED: "redirected",
    What.CONNECTED: "connected",
    What.FAILED: "failed",
    What.TOLD: "told",
    What.NO_OUTCOME: "no outcome",
    What.LEFT: "left",
    What.GONE: "gone",
    What.LAPSED: "written off",
    What.BACK: "taken up again",
    What.NOTICED: "noticed",
    What.CHANGED: "waits on",
}


def known(happening: Happening, zone: tzinfo) -> str:
    """Where the conference was registered then, in words."""
    if not happening.known:
        return f"conference {happening.conference} was not registered anywhere"
    told = [f"node {row.node_id} since {shown(row.since_ms, zone)} ({row.sip_uri})" for row in happening.known]
    return f"conference {happening.conference} was registered at {', then '.join(told)}"


def _beside(happening: Happening) -> str:
    details = happening.details
    said = [f"{name} {details[key]}" for key, name in _DETAILS.items() if key in details]
    if happening.what is What.CONNECTED and happening.stay is not None:
        said.append(f"waited {lasted(max(0, happening.stay.connected_ms - happening.stay.since_ms))}")
    if happening.what is What.PARKED and happening.stay is not None:
        said.append(f"caller {caller_of(happening.stay)}")
    if happening.instruction is not None:
        said.append(
            f"to be done within {lasted(happening.instruction.deadline_ms - happening.instruction.issued_at_ms)}"
        )
    return f" ({', '.join(said)})" if said else ""


_DETAILS = {"sip_code": "SIP", "hangup_cause": "cause"}


def _stay(stay: Stay, until_ms: int) -> Iterator[str]:
    then = "and was connected" if stay.connected_ms is not None else "and was not connected"
    where = f" at node {stay.node_id}" if stay.connected_ms is not None and stay.node_id else ""
    after = f", after a talk ({stay.follows})" if stay.follows else ""
    yield f"Stay {stay.stay} for {stay.conference}{after}: waited {lasted(stay.waited_ms(until_ms))} {then}{where}"
    for what, ms in sorted(stay.waits.items(), key=lambda one: -one[1]):
        if ms:
            yield f"{_INDENT}{lasted(ms):>12}  {what}"
    counts = Counter(stay.failures).most_common()
    failed = f"; failed: {', '.join(f'{reason} {count} times' for reason, count in counts)}" if counts else ""
    talked = stay.talked_ms(until_ms)
    talk = f"; talked {lasted(talked)}" if talked is not None else ""
    yield f"{_INDENT}{stay.attempts} instructions{failed}{talk}; {stay.outcome}"

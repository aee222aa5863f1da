"""The verdict finds each kind of trouble: a good run is made with the stream's own core, then one thing is spoilt."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import orjson
import pytest

from callyard.records import CallRecord, RegistrationRecord
from callyard.settings import KafkaSettings, PolicySettings
from callyard.topics import partition_of, topics
from streams.claims import Claim
from streams.partition import Group, Input, Partition
from streams.policy import Policy
from tests.chaos.facts import Dial, Facts, Leg, Opened, Record, SeenCaller
from tests.chaos.verdict import (
    CLOCK_SECONDS,
    FAREWELL_SECONDS,
    FOLLOW_SECONDS,
    FORGOTTEN_SECONDS,
    LATE_SECONDS,
    Verdict,
    judge,
)
from tests.support import events

NUMBER = "+49302000001"
CONFERENCE = events.CONFERENCE
NODE = "node-1"
NAMES = topics(KafkaSettings(partitions=1))
CALL = events.left().call_id


class Stream:
    """One partition of a stream, written down as Kafka would."""

    def __init__(self) -> None:
        self.partition = Partition(0, NAMES, Policy.of(PolicySettings()))
        self.records: list[Record] = []
        self._say(self.partition.begin(1, "stream:test"))

    def hears(self, topic: str, event: RegistrationRecord | CallRecord) -> None:
        offset = sum(record.topic == topic for record in self.records)
        key, value = event.conference.encode(), event.encode()
        assert partition_of(key, 1) == 0
        self.records.append(Record(topic, 0, offset, 1000, key, value))
        self._say(self.partition.plan([Input(topic, offset, 1000, key, value)]))

    def _say(self, group: Group) -> None:
        for key, row in group.rows.items():
            self._put(NAMES.changelog.name, key, row)
        for output in group.outputs:
            self._put(output.topic, output.key, output.value)

    def _put(self, topic: str, key: bytes | None, value: bytes | None) -> None:
        self.records.append(Record(topic, 0, sum(r.topic == topic for r in self.records), 1000, key, value))

    def of(self, topic: str) -> list[Record]:
        return [record for record in self.records if record.topic == topic]


def good() -> Facts:
    """A caller who waits, is put through when the conference opens, and is hung up when it closes."""
    stream = Stream()
    calls, registrations = NAMES.calls.name, NAMES.registrations.name
    stream.hears(calls, events.parked().model_copy(update={"caller": NUMBER}))
    stream.hears(registrations, events.registered())
    stream.hears(calls, events.started())
    stream.hears(calls, events.connected())
    stream.hears(calls, events.left(reason="conference-left"))
    stream.hears(registrations, events.unregistered())
    heard = [*stream.of(calls), *stream.of(registrations)]
    return Facts(
        callers=[SeenCaller(NUMBER, CONFERENCE, answered=100.0, over=130.1, how="ended")],
        legs=[Leg(NODE, "leg-1", NUMBER, CONFERENCE, called=110.1, over=130.0, how="left")],
        openings=[Opened(CONFERENCE, NODE, opened=110.0, closed=130.0)],
        outside=[],
        dials=[Dial(CALL, 1, 1, CONFERENCE, 110.09)],
        journal=stream.of(NAMES.journal.name),
        instructions=stream.of(NAMES.dials.name),
        calls=stream.of(calls),
        changelog=stream.of(NAMES.changelog.name),
        inputs=len(heard),
        timers=NAMES.timers.name,
    )


def judged(**changes: Any) -> Verdict:
    return judge(dataclasses.replace(good(), **changes))


def caller(**changes: Any) -> list[SeenCaller]:
    return [dataclasses.replace(good().callers[0], **changes)]


def leg(**changes: Any) -> Leg:
    return dataclasses.replace(good().legs[0], **changes)


def only(verdict: Verdict, kind: str, text: str) -> None:
    """One finding, of this kind, and nothing else."""
    found = {name: getattr(verdict, name) for name in ("lost", "doubled", "wrong", "journal", "late", "misheard")}
    assert {name for name, texts in found.items() if texts} == {kind}, found
    assert len(found[kind]) == 1
    assert text in found[kind][0]
    assert verdict.good == (kind in {"late", "misheard"})


def test_a_good_run_is_good() -> None:
    verdict = judge(good())
    assert verdict.good, verdict
    assert not verdict.late
    assert not verdict.misheard
    assert verdict.stays == {"left": 1}


# --- lost


@pytest.mark.parametrize("how", ["ended", "aborted", ""])
def test_who_is_hung_up_without_a_reason_is_lost(how: str) -> None:
    # His leg was ended by the gateway, not by the node.
    only(judged(callers=caller(how=how), legs=[leg(how="ended")]), "lost", "without a reason")


def test_who_is_hung_up_while_waiting_is_lost() -> None:
    only(judged(legs=[]), "lost", "without a reason")


def test_who_is_hung_up_long_after_his_leg_is_lost_unless_a_reason_is_recorded() -> None:
    callers = caller(over=130.0 + FAREWELL_SECONDS + 1)
    only(judged(callers=callers), "lost", "without a reason")
    calls = [
        dataclasses.replace(record, value=(record.value or b"").replace(b'"conference-left"', b'"timed-out"'))
        for record in good().calls
    ]
    assert judged(callers=callers, calls=calls).good


def test_whose_wait_after_a_talk_is_over_is_not_lost() -> None:
    assert judged(callers=caller(over=130.0 + FOLLOW_SECONDS + 3)).good
    only(judged(callers=caller(over=130.0 + FOLLOW_SECONDS - 1)), "lost", "without a reason")
    only(judged(callers=caller(over=130.0 + FOLLOW_SECONDS + FAREWELL_SECONDS)), "lost", "without a reason")


def test_who_hangs_up_himself_is_not_lost() -> None:
    assert judged(callers=caller(how="left"), legs=[leg(how="ended")]).good
    assert judged(callers=caller(told_to_leave=129.0, how="aborted"), legs=[leg(how="ended")]).good


def test_who_was_never_answered_is_lost() -> None:
    only(judged(callers=caller(answered=None)), "lost", "never answered")


def test_who_is_outside_at_the_end_is_lost_although_he_then_hung_up() -> None:
    only(judged(callers=caller(how="left", told_to_leave=200.0), outside=[NUMBER]), "lost", "not in it at the end")


def test_who_hung_up_after_waiting_in_vain_for_long_is_lost() -> None:
    openings = [Opened(CONFERENCE, NODE, 110.0, None)]
    late = 110.0 + FORGOTTEN_SECONDS
    patient = caller(how="left", told_to_leave=late + 1, over=late + 1)
    only(judged(callers=patient, legs=[], openings=openings), "lost", "was not dialled")
    impatient = judged(callers=caller(how="left", told_to_leave=late - 1, over=late - 1), legs=[], openings=openings)
    assert impatient.good
    assert (impatient.waits.gave_up, impatient.waits.longest_given_up) == (1, FORGOTTEN_SECONDS - 1)
    # A pause in between begins the waiting anew.
    openings = [Opened(CONFERENCE, NODE, 110.0, late - 5), Opened(CONFERENCE, NODE, late - 4, None)]
    assert judged(callers=patient, legs=[], openings=openings).good


# --- doubled


def test_two_legs_at_the_same_time_are_doubled() -> None:
    only(judged(legs=[leg(), leg(call_id="leg-2", called=120.0)]), "doubled", "two legs at once")


def test_a_leg_without_an_end_doubles_any_later_one() -> None:
    legs = [leg(over=None, how=""), leg(call_id="leg-2", called=129.0)]
    assert len(judged(legs=legs).doubled) == 1


def test_a_long_leg_is_compared_with_all_later_ones() -> None:
    legs = [leg(), leg(call_id="leg-2", called=112.0, over=113.0), leg(call_id="leg-3", called=114.0)]
    assert len(judged(legs=legs).doubled) == 2


def test_legs_in_sequence_are_right() -> None:
    legs = [leg(over=115.0), leg(call_id="leg-2", called=115.0 - CLOCK_SECONDS / 2)]
    assert judged(legs=legs).good


# --- wrong


def test_another_conference_than_entered_is_wrong() -> None:
    openings = [*good().openings, Opened("49999", NODE, 100.0, None)]
    only(judged(legs=[leg(conference="49999")], openings=openings), "wrong", "came to 49999")


def test_a_leg_of_nobody_who_called_is_wrong() -> None:
    legs = [leg(), leg(call_id="leg-2", caller="+49309999999")]
    only(judged(legs=legs), "wrong", "entered None")


@pytest.mark.parametrize(("node", "called"), [("node-2", 110.1), (NODE, 109.9)])
def test_a_node_where_it_had_not_opened_is_wrong(node: str, called: float) -> None:
    only(judged(legs=[leg(node=node, called=called)]), "wrong", "had not opened")


def test_a_close_that_is_on_its_way_is_late_and_afterwards_wrong() -> None:
    only(judged(legs=[leg(called=130.0 + LATE_SECONDS - 0.1, over=160.0)]), "late", "after it closed")
    only(judged(legs=[leg(called=130.0 + LATE_SECONDS + 0.1, over=160.0)]), "wrong", "had closed")


def test_who_was_misheard_is_told_and_not_lost() -> None:
    callers = caller(conference="4912399", how="ended")
    verdict = judged(callers=callers, legs=[])
    only(verdict, "misheard", "entered 4912399, heard was 49123")


# --- the journal


def test_an_input_that_was_not_decided_is_found() -> None:
    only(judged(inputs=good().inputs + 1), "journal", "1 inputs were lost")


def test_a_missing_entry_is_found() -> None:
    facts = good()
    journal = [record for record in facts.journal if b'"dial-started"' not in (record.value or b"")]
    findings = judged(journal=journal).journal
    assert any("the chain" in text for text in findings), findings
    assert any("inputs were lost" in text for text in findings), findings


def test_an_entry_of_an_older_epoch_is_found() -> None:
    journal = list(good().journal)
    began = orjson.loads(journal[0].value or b"")
    journal.insert(1, dataclasses.replace(journal[0], value=orjson.dumps({**began, "epoch": 7})))
    assert any("older epoch" in text for text in judged(journal=journal).journal)


def changed(record: Record, **fields: Any) -> Record:
    return dataclasses.replace(record, value=orjson.dumps({**orjson.loads(record.value or b""), **fields}))


def test_contradictory_and_lost_instructions_are_found() -> None:
    [said] = good().instructions
    only(judged(instructions=[said, changed(said, sip_uri="sip:49123@192.0.2.99")]), "journal", "contradictory")
    only(judged(instructions=[]), "journal", "an instruction was lost")
    invented = changed(said, attempt=2)
    only(judged(instructions=[said, invented]), "journal", "an instruction was invented")


def test_an_instruction_to_where_nothing_ran_is_found() -> None:
    said = [
        dataclasses.replace(record, value=record.value.replace(b'"state":"live"', b'"state":"lost"'))
        for record in good().journal
        if record.value is not None
    ]
    assert any("instructed to where nothing runs" in text for text in judged(journal=said).journal)
    assert not any("instructed to where nothing runs" in text for text in judged(inputs=0).journal)


def newest(changelog: Sequence[Record], part: bytes) -> Record:
    return [record for record in changelog if part in (record.key or b"")][-1]


def test_a_row_that_differs_from_the_fold_is_found() -> None:
    changelog = list(good().changelog)
    row = newest(changelog, b"|s|")
    only(judged(changelog=[*changelog, changed(row, attempt=9)]), "journal", "the journal says")


def test_a_row_that_is_missing_and_one_too_many_are_found() -> None:
    changelog = list(good().changelog)
    row = newest(changelog, b"|r|")
    only(judged(changelog=[*changelog, dataclasses.replace(row, value=None)]), "journal", "the table None")
    more = dataclasses.replace(row, key=(row.key or b"") + b"2")
    only(judged(changelog=[*changelog, more]), "journal", "the journal says None")


def test_a_row_of_an_owner_whose_time_was_over_counts_for_nothing() -> None:
    row = newest(good().changelog, b"|s|")
    claim = dataclasses.replace(row, key=b"0|!", value=None, headers=(Claim(5, "new").header,))
    late = dataclasses.replace(changed(row, attempt=9), headers=(Claim(4, "old").header,))
    assert not judged(changelog=[*good().changelog, claim, late]).journal
    only(judged(changelog=[*good().changelog, late, claim]), "journal", "the journal says")


def test_old_state_after_the_new_is_found() -> None:
    changelog = list(good().changelog)
    first = next(record for record in changelog if b"|s|" in (record.key or b""))
    findings = judged(changelog=[*changelog, first]).journal
    assert any("the journal says" in text for text in findings)
    assert any("has no end: parked" in text for text in findings)


def test_a_position_that_went_back_is_found() -> None:
    changelog = list(good().changelog)
    positions = [record for record in changelog if b"|@" in (record.key or b"")]
    only(judged(changelog=[*changelog, positions[-2]]), "journal", "was applied to")


def test_a_stay_without_an_end_is_found() -> None:
    stream = Stream()
    stream.hears(NAMES.calls.name, events.parked().model_copy(update={"caller": NUMBER}))
    verdict = judged(
        journal=stream.of(NAMES.journal.name), changelog=stream.of(NAMES.changelog.name), inputs=1, instructions=[],
        dials=[],
    )  # fmt: skip
    only(verdict, "journal", "has no end: parked")


def test_dials_that_nobody_instructed_or_that_came_twice_are_found() -> None:
    [dial] = good().dials
    only(judged(dials=[dial, dial]), "journal", "dialled 2 times")
    only(judged(dials=[dataclasses.replace(dial, attempt=2)]), "journal", "nobody instructed")
    only(judged(dials=[dataclasses.replace(dial, conference="49999")]), "journal", "nobody instructed")


# --- waits


def test_waits_count_from_the_later_of_opening_and_entering_and_beyond_the_median() -> None:
    callers, legs = [], []
    # Entering takes two seconds; all wait 0.1 s, one 5.1 s; the last comes long after the opening.
    for number, (answered, called) in enumerate([(100.0, 110.1), (101.0, 110.1), (102.0, 115.1), (120.0, 122.1)]):
        name = f"+4930200000{number}"
        callers.append(SeenCaller(name, CONFERENCE, answered, 130.1, "ended"))
        legs.append(Leg(NODE, f"leg-{number}", name, CONFERENCE, called, 130.0, "left"))
    callers.append(SeenCaller("+49302000009", CONFERENCE, 118.0, 130.1, "ended"))
    legs.append(Leg(NODE, "leg-9", "+49302000009", CONFERENCE, 120.0, 130.0, "left"))
    waits = judged(callers=callers, legs=legs).waits
    assert waits.count == 5
    assert waits.median == pytest.approx(0.1)
    assert waits.longest == pytest.approx(5.0)
    assert waits.longest_caller == "+49302000002"

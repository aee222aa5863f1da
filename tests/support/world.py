"""A small world in memory for property tests: nodes, hooks, a gateway with its callers, its agent, and one partition.

The parts that decide are the real ones (`streams.partition.Partition`, `agents.mirror.Mirror`, `agents.inbox.Inbox`);
what lies between them is modelled with all that can go wrong: events that wait or are lost with their session, records
in the order of two topics, instructions that come late, twice or never, workers that are killed between two effects.
Time is the broker's, in milliseconds, and passes only in `World.tick`.
"""

from __future__ import annotations

import dataclasses
from collections import deque

from agents.inbox import Inbox
from agents.messages import After, Channel, ChannelState, DialBegan, DialEnded, Failure, HungUp, Message
from agents.mirror import Mirror, Redirect, Refused, Snapshot
from callyard.records import (
    DIALS,
    AfterTalk,
    CallRecord,
    DialInstruction,
    FailureReason,
    InputRecord,
    Instruction,
    Notice,
    RecordError,
    TellInstruction,
    parse,
)
from callyard.settings import KafkaSettings
from callyard.topics import topics
from streams.partition import Group, Input, Output, Partition
from streams.policy import Policy
from tests.support.channel import AsteriskCall
from tests.support.events import CONFERENCE, registered, timer, unregistered

TOPICS = topics(KafkaSettings(partitions=1))
RENEW_REGISTRATION_MS = 10_000
RENEW_CALL_MS = 60_000
NOT_FOUND = Failure(FailureReason.NOT_FOUND, 1, 404)
TOLD = Failure(FailureReason.TOLD)
TORN = frozenset({ChannelState.DIALING, ChannelState.CONNECTED, ChannelState.TELLING})
REDIRECTED = Failure(FailureReason.OTHER)
ENDS = frozenset({ChannelState.GIVEN_UP, ChannelState.REMOVED})


@dataclasses.dataclass
class Caller(AsteriskCall):
    """A caller of the one conference, and what the world knows of the call beside its marks."""

    conference: str = CONFERENCE
    node: str | None = None
    """The node that is dialled or talked to."""
    redirect: Instruction | None = None
    """Queued in Asterisk, not consumed yet."""
    sure: bool = False
    """It was written by an agent that had seen all that had happened until then."""
    kicked_ms: int | None = None


class KilledError(Exception):
    """The stream worker is killed here."""


class World:
    """One conference number, two nodes, one gateway."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.now = 1_000_000
        self.inputs: list[Input] = []
        self._ends: dict[str, int] = {}
        self.rows: dict[bytes, bytes] = {}
        self.partition = Partition(0, TOPICS, policy)
        self.dials: list[bytes] = []
        self.agent_at = 0
        self.running: dict[str, str] = {}
        """The conference's instance at each node where it runs."""
        self.downs: list[int] = []
        """When a registration was ended or lost."""
        self.instances = 0
        self.callers: dict[str, Caller] = {}
        self.events: deque[Message] = deque()
        self.mirror = Mirror("gw-1")
        self.inbox = Inbox("gw-1")
        self.arrived = 0
        self.faults: list[str] = []
        """What must never happen, and did."""
        self._renewed = self._told = self.now
        self.restart_stream()

    # --- the bus

    def publish(self, *records: InputRecord) -> None:
        for record in records:
            kind = record.type
            topic = TOPICS.calls.name
            if kind.startswith("conference"):
                topic = TOPICS.registrations.name
            elif kind == "deadline-passed":
                topic = TOPICS.timers.name
            offset = self._ends.get(topic, 0)
            self._ends[topic] = offset + 1
            self.inputs.append(Input(topic, offset, self.now, record.conference.encode(), record.encode()))

    # --- the stream

    def restart_stream(self) -> None:
        self.partition = Partition(0, TOPICS, self.policy)
        self.partition.load(self.rows.items())
        self._carry_out(self.partition.begin(1, "stream:test"), None)

    def run_stream(self, effects: int | None = None) -> None:
        """Decide what waits; killed after so many effects, and then started anew."""
        try:
            while waiting := [i for i in self.inputs if i.offset > self.partition.applied.get(i.topic, -1)]:
                group = self.partition.plan(waiting[:5])
                for desk in self.partition.desks.values():
                    desk.check()
                effects = self._carry_out(group, effects)
        except KilledError:
            self.restart_stream()

    def _carry_out(self, group: Group, effects: int | None) -> int | None:
        if effects == 0:
            raise KilledError
        for key, value in group.rows.items():
            if value is None:
                self.rows.pop(key, None)
            else:
                self.rows[key] = value
        left = None if effects is None else effects - 1
        for output in group.outputs:
            if left == 0:
                raise KilledError
            self._deliver(output)
            left = None if left is None else left - 1
        return left

    def _deliver(self, output: Output) -> None:
        if output.topic == TOPICS.dials.name:
            self.dials.append(output.value)

    # --- nodes and hooks

    def open(self, node: str) -> None:
        if node not in self.running:
            self.instances += 1
            self.running[node] = f"i{self.instances}"
            self.publish(registered(self.running[node], node))

    def close(self, node: str, *, hangs_up: bool) -> None:
        """The conference ends there; its callers' legs before or after the word of the hook."""
        instance = self.running.pop(node, None)
        if instance is None:
            return
        if hangs_up:
            self._legs_end(node)
        self.downs.append(self.now)
        self.publish(unregistered(instance, node))
        self._legs_end(node)

    def _legs_end(self, node: str) -> None:
        for caller in self.callers.values():
            if caller.state is ChannelState.CONNECTED and caller.node == node:
                self._follow(caller, AfterTalk.ENDED)

    def lose_hook(self, node: str) -> None:
        """The hook can't vouch for a moment, and can again."""
        if node in self.running:
            self.downs.append(self.now)
            self.publish(unregistered(self.running[node], node, "lost"), registered(self.running[node], node))

    # --- callers

    def arrive(self) -> None:
        self.arrived += 1
        caller = Caller(f"{self.arrived}.0")
        self.callers[caller.uniqueid] = caller
        self.events.append(caller.parked)

    def hang_up(self, caller: Caller) -> None:
        del self.callers[caller.uniqueid]
        self.events.append(HungUp(caller.uniqueid, 16, caller.marks))

    def kick(self, caller: Caller) -> None:
        if caller.state is ChannelState.CONNECTED:
            caller.kicked_ms = self.now
            self._follow(caller, AfterTalk.ENDED)

    def lose_leg(self, caller: Caller) -> None:
        if caller.state is ChannelState.CONNECTED:
            self._follow(caller, AfterTalk.LOST)

    def _follow(self, caller: Caller, talk: AfterTalk) -> None:
        caller.stay, caller.mark, caller.state, caller.failure = caller.stay + 1, 0, ChannelState.PARKED, None
        caller.after, caller.node = After(talk, 16 if talk is AfterTalk.ENDED else 44), None
        self.events.append(caller.parked)

    def advance(self, caller: Caller) -> None:
        """The next thing that Asterisk does by itself for this caller: consumes a redirect, ends a dial, …"""
        if caller.redirect is not None:
            wanted, caller.redirect = caller.redirect, None
            self._consume(caller, wanted)
        elif caller.state is ChannelState.DIALING:
            answers = caller.node in self.running
            self.events.append(DialEnded(caller.uniqueid, f"PJSIP/{caller.uniqueid}", caller.marks, answers))
            if answers:
                caller.state = ChannelState.CONNECTED
            else:
                caller.state, caller.failure, caller.node = ChannelState.PARKED, NOT_FOUND, None
                self.events.append(caller.parked)
        elif caller.state is ChannelState.TELLING:
            caller.state, caller.failure = ChannelState.PARKED, TOLD
            self.events.append(caller.parked)
        elif caller.state in ENDS:
            self.hang_up(caller)

    def _consume(self, caller: Caller, wanted: Instruction) -> None:
        if caller.state in TORN and caller.sure:
            self.faults.append(f"a redirect tore {caller} out of its dial or talk: {wanted}")
        if wanted.stay != caller.stay or wanted.attempt <= caller.mark:
            if caller.state in TORN:
                # As callyard-stale in the dialplan has it.
                caller.failure = TOLD if caller.state is ChannelState.TELLING else REDIRECTED
                caller.state, caller.node = ChannelState.PARKED, None
            if caller.state is ChannelState.PARKED:
                self.events.append(caller.parked)
            return
        caller.mark, caller.failure = wanted.attempt, None
        if isinstance(wanted, TellInstruction):
            caller.state = {
                Notice.UNREACHABLE: ChannelState.TELLING,
                Notice.GIVEN_UP: ChannelState.GIVEN_UP,
                Notice.REMOVED: ChannelState.REMOVED,
            }[wanted.notice]
            if caller.state is ChannelState.REMOVED and caller.after is None:
                self.faults.append(f"{caller} was told to be removed and never talked")
            return
        assert isinstance(wanted, DialInstruction)
        caller.state, caller.node = ChannelState.DIALING, wanted.node_id
        if caller.kicked_ms is not None and not any(down >= caller.kicked_ms for down in self.downs):
            self.faults.append(f"{caller} was removed and is put back in")
        caller.kicked_ms = None
        self.events.append(DialBegan(caller.uniqueid, f"PJSIP/{caller.uniqueid}", caller.marks))

    # --- the agent

    def say(self, records: list[CallRecord]) -> None:
        self.publish(*records)

    def events_arrive(self, count: int) -> None:
        for _ in range(min(count, len(self.events))):
            self.say(self.mirror.apply(self.events.popleft()))

    def lose_session(self) -> None:
        """The connection to Asterisk is cut: what waited is lost, the next session begins with a snapshot."""
        self.events.clear()
        self._snapshot(renewed=True)
        self.say(self.mirror.announce())

    def restart_agent(self, back: int) -> None:
        """The agent is killed; it reads instructions again from so many before the last one."""
        self.mirror, self.inbox = Mirror("gw-1"), Inbox("gw-1")
        self.agent_at = max(0, self.agent_at - back)
        self.lose_session()

    def _snapshot(self, *, renewed: bool) -> None:
        lot = {c.uniqueid: c.parked for c in self.callers.values() if c.state is ChannelState.PARKED}
        channels = tuple(
            Channel(c.uniqueid, f"PJSIP/{c.uniqueid}", c.marks, c.state is ChannelState.CONNECTED)
            for c in self.callers.values()
        )
        self.say(self.mirror.reconcile(Snapshot(lot, channels), renewed=renewed))

    def agent_reads(self, count: int) -> None:
        for value in self.dials[self.agent_at : self.agent_at + count]:
            self._read(value)
        self.agent_at = min(len(self.dials), self.agent_at + count)
        for held in self.inbox.drain():
            self._apply(held.instruction)
            self.inbox.done(held)

    def _read(self, value: bytes) -> None:
        try:
            self.inbox.take(value, self.agent_at, self.now)
        except RecordError as error:
            self.faults.append(f"the agent refuses {parse(DIALS, value)}: {error}")

    def _apply(self, instruction: Instruction) -> None:
        verdict = self.mirror.judge(instruction)
        if isinstance(verdict, Refused):
            self.say(list(verdict.records))
            return
        assert isinstance(verdict, Redirect)
        if self.now > instruction.deadline_ms:
            self.say([self.mirror.reports.refused(instruction, FailureReason.EXPIRED)])
            return
        self.mirror.asked(instruction)
        caller = self.callers.get(self.mirror.reports.uniqueid(instruction.call_id))
        if caller is not None and caller.redirect is None:
            # A second redirect before the first is consumed is dropped by Asterisk without a word.
            caller.redirect, caller.sure = instruction, not self.events

    # --- time

    def tick(self, milliseconds: int) -> None:
        """Time passes: renewals, snapshots and timers as they come due."""
        self.now += milliseconds
        if self.now - self._renewed >= RENEW_REGISTRATION_MS:
            self._renewed = self.now
            self.publish(*(registered(instance, node) for node, instance in self.running.items()))
        if self.now - self._told >= RENEW_CALL_MS:
            self._told = self.now
            self._snapshot(renewed=False)
            alive = (self.mirror.alive(uniqueid) for uniqueid in list(self.mirror.calls))
            self.say([record for record in alive if record is not None])
        self.run_stream()
        for _, conference in self.partition.due(self.now):
            self.publish(timer(conference=conference))

    def settle(self, seconds: int) -> None:
        """Faults stop, everything works for so long."""
        for _ in range(seconds):
            self.run_stream()
            self.agent_reads(len(self.dials))
            for caller in list(self.callers.values()):
                self.advance(caller)
            self.events_arrive(len(self.events))
            self.run_stream()
            self.tick(1000)

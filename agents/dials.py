"""Carries out instructions: Setvar, Setvar, Redirect, pipelined; each attempt of a stay at most once.

Kafka's consumer group of the gateway decides who speaks for it: the replica that owns the partition of
``callyard.dials`` in which the gateway's id lies. That one publishes call records and carries out instructions;
another stands by, with its mirror kept true, and takes over when the partition comes to it. Who takes over announces
everything, reads the instructions to the end, and carries out the newest of each stay.

An owner that was frozen longer than its session doesn't know yet that another has taken over. So each instruction is
carried out only after a look at the fence, in the same step; while it doesn't hold, instructions wait. The next
confirmed heartbeat comes after the group has said who is the owner: either this one still is, and goes on, or what
waits is dropped with the partition.

Who gives the partition up, in a rebalance or at its end, first waits for Asterisk's answers to what it has written, and
breaks the connection off where they don't come: nothing of it is carried out once another may speak.

An instruction is true until its deadline, by the brokers' clock (`callyard.broker_clock`). Whoever reads it later,
because every agent of the gateway was away, refuses it: its conference may have ended. The desk instructs what is true.

A redirect is never written twice for one attempt. Asterisk answers "successful" when it is queued, so an answer proves
little and a lost one nothing: the channel's mark tells (`agents.mirror`), and the stream issues the next attempt when
it hears of a failure, or at the instruction's deadline. What can't be carried out is refused by name, counted and
logged, and the desk is told what is true instead.

Order: whatever concerns one call is judged and written in one step without waiting; only answers are awaited, for all
calls side by side, so that two hundred callers of one conference don't wait for one another.
"""

from __future__ import annotations

import asyncio
import os
import time

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, ConsumerRecord, TopicPartition
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    IllegalStateError,
    KafkaError,
    TopicAuthorizationFailedError,
)
from prometheus_client import Counter, Gauge

from agents import ami
from agents.gateway import Gateway
from agents.inbox import Held, Inbox, Taken
from agents.mirror import Mirror, Redirect, Refused
from agents.publish import Publisher
from callyard import access, clients
from callyard.broker_clock import BrokerClock
from callyard.fence import Fence, watch_heartbeat
from callyard.nodes import AllowedNodes
from callyard.records import FailureReason, Instruction, RecordError, TellInstruction, split_sip_uri
from callyard.rights import agent_group
from callyard.settings import KafkaSettings
from callyard.topics import Topics, partition_of

log = structlog.get_logger(__name__)

DIAL_CONTEXT = "callyard-dial"
TELL_CONTEXT = "callyard-tell"
SESSION_MS = 6_000
HEARTBEAT_MS = 500
"""Nothing is said from joining the group until the first of them is confirmed."""
LOOK_BACK = 1_000
"""So many records before the committed offset are read at a takeover, to learn the newest epochs."""
COMMIT_SECONDS = 1.0
SETTLE_SECONDS = 1.0
"""Longest wait for Asterisk's answers before the partition is given up: they take milliseconds."""
DRAIN_SECONDS = 2.0
"""At the end: longest wait until Kafka has what was said, and for the offsets."""
POLL_MS = 100
REFUSED_SECONDS = 1.0
"""Between two questions to a Kafka that refuses."""

INSTRUCTIONS = Counter("callyard_agent_instructions", "Dial instructions, by what became of them.", ["outcome"])
OWNER = Gauge("callyard_agent_owner", "1 where this process speaks for its gateway, 0 where it stands by.")
LAG = Gauge("callyard_agent_lag", "Instructions in the gateway's partition that are not carried out or refused yet.")


class NodeNotAllowedError(ValueError):
    """An instruction names a node that isn't among those of the settings."""


class Dials(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no complete types
    """Reads instructions and applies them to the gateway."""

    def __init__(
        self, settings: KafkaSettings, topics: Topics, gateway_id: str, mirror: Mirror, gateway: Gateway,
        publisher: Publisher, fence: Fence, clock: BrokerClock, nodes: AllowedNodes,
    ) -> None:  # fmt: skip
        self._settings = settings
        self._gateway_id = gateway_id
        self._nodes = nodes
        self._mirror = mirror
        self._gateway = gateway
        self._publisher = publisher
        self._fence = fence
        self._clock = clock
        self._inbox = Inbox(gateway_id)
        self._partition = TopicPartition(topics.dials.name, partition_of(gateway_id.encode(), settings.partitions))
        self._consumer: AIOKafkaConsumer | None = None
        self._take_over = False
        self._owner = False
        self._turn = 0
        self._applied_to = 0
        self._level_at: int | None = None
        self._committed = 0
        self._next_commit = 0.0
        self._answers: set[asyncio.Task[None]] = set()
        self._bug: BaseException | None = None
        self._told: set[str] = set()
        self._refused_at = 0.0
        self.joined = asyncio.Event()
        """Set once the group has said whether this process speaks for the gateway."""
        LAG.set_function(self._lag)

    @property
    def owner(self) -> bool:
        return self._owner

    def _lag(self) -> int:
        end = self._consumer.highwater(self._partition) if self._owner and self._consumer is not None else None
        return max(0, (end or 0) - self._inbox.committable) if self._owner else 0

    # --- the group

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        if self._partition not in revoked:
            return
        self._publisher.mute()
        OWNER.set(0)
        was_owner = self._owner
        self._owner = self._take_over = False
        self._turn += 1
        if was_owner:
            await self._settle()
            await self._commit()

    async def _settle(self) -> None:
        """Return when nothing that was written to Asterisk is still to be carried out."""
        if self._answers:
            await asyncio.wait(self._answers, timeout=SETTLE_SECONDS)
        if self._answers:
            log.warning("Asterisk does not answer; breaking off, because another may speak soon")
            self._gateway.break_off()

    async def _hand_over(self) -> None:
        """This process ends: leave nothing half done, and only then the group."""
        await self._settle()
        await self._publisher.drain(DRAIN_SECONDS)
        try:
            await asyncio.wait_for(self._commit(), DRAIN_SECONDS)
        except asyncio.TimeoutError:
            log.warning("offsets not committed; what is read twice is refused by the channels' marks")
        self._owner = False
        self._publisher.mute()
        OWNER.set(0)

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        assert self._consumer is not None  # noqa: S101 - it is what calls this
        self._consumer.pause(*(partition for partition in assigned if partition != self._partition))
        self._take_over = self._partition in assigned
        log.info("group joined", role="owner" if self._take_over else "standby", partition=self._partition.partition)
        if not self._take_over:
            self.joined.set()

    async def run(self) -> None:
        """Read and apply until cancelled. Raises `KafkaUnreachableError` at the start alone."""
        while True:
            try:
                await self._be_member()
            except GroupAuthorizationFailedError as error:
                # A client that its group refused once never joins again, whatever it is allowed later.
                await self._refused(error)
            except clients.KafkaUnreachableError as error:
                if not self._told:
                    raise
                log.warning("cannot join the group again yet", why=str(error))
                await asyncio.sleep(REFUSED_SECONDS)

    async def _be_member(self) -> None:
        async with clients.consumer(
            self._settings,
            group_id=agent_group(self._settings, self._gateway_id),
            client_id=f"agent-{self._gateway_id}-{os.getpid()}",
            auto_offset_reset="earliest",
            session_timeout_ms=SESSION_MS,
            heartbeat_interval_ms=HEARTBEAT_MS,
            # A second replica that comes must not move the partition away from who speaks.
            partition_assignment_strategy=(StickyPartitionAssignor,),
        ) as consumer:
            self._consumer = consumer
            watch_heartbeat(consumer, self._fence)
            consumer.subscribe([self._partition.topic], listener=self)
            try:
                while True:
                    try:
                        await self._round(consumer)
                    except TopicAuthorizationFailedError as error:
                        # The client asks on by itself, and instructions wait on the topic.
                        await self._refused(error)
                    else:
                        self._permitted(consumer)
            except (asyncio.CancelledError, GroupAuthorizationFailedError):
                self._take_over = False
                self._turn += 1
                if self._owner:
                    await self._hand_over()
                raise
            finally:
                for task in self._answers:
                    task.cancel()

    async def _refused(self, error: KafkaError) -> None:
        """Say which right is missing, and wait a moment."""
        group = isinstance(error, GroupAuthorizationFailedError)
        resource = agent_group(self._settings, self._gateway_id) if group else self._partition.topic
        why = access.why(self._settings, "gateway", "Read", resource, error)
        self._refused_at = time.monotonic()
        if why not in self._told:
            self._told.add(why)
            log.error("no instructions can be read; they wait", why=why)
        await asyncio.sleep(REFUSED_SECONDS)

    def _permitted(self, consumer: AIOKafkaConsumer) -> None:
        # Between two refusals the client says nothing, too, nor while it doesn't even see the topic.
        if not self._told or time.monotonic() - self._refused_at < 3 * REFUSED_SECONDS:
            return
        if self._fence.holds and consumer.partitions_for_topic(self._partition.topic):
            self._told.clear()
            log.info("instructions can be read again")

    async def _round(self, consumer: AIOKafkaConsumer) -> None:
        batches = await consumer.getmany(timeout_ms=POLL_MS)
        if self._bug is not None:
            raise self._bug
        if self._take_over:
            # What was fetched before is read again: the takeover seeks.
            try:
                await self._begin(consumer)
            except (IllegalStateError, KafkaError) as error:
                # The partition was taken away again, or Kafka doesn't answer now. The next round tries anew.
                if not isinstance(error, IllegalStateError) and not error.retriable:
                    raise
                log.warning("cannot take over yet", why=repr(error))
            return
        if not self._owner:
            return
        for record in batches.get(self._partition, ()):
            self._take(record)
        if self._level_at is not None and await consumer.position(self._partition) >= self._level_at:
            log.info("instructions read to their end", offset=self._level_at)
            self._level_at = None
            self.joined.set()
        self._apply_all()
        if self._owner:
            await self._commit(COMMIT_SECONDS)

    async def _begin(self, consumer: AIOKafkaConsumer) -> None:
        partition, turn = self._partition, self._turn
        first = (await consumer.beginning_offsets([partition]))[partition]
        end = (await consumer.end_offsets([partition]))[partition]
        # A topic that was made anew is shorter than what was committed: then all of it is new.
        committed = await consumer.committed(partition) or 0
        if turn != self._turn:
            # Taken away meanwhile; aiokafka still lets it be sought in.
            return
        self._applied_to = max(first, committed) if committed <= end else first
        consumer.seek(partition, max(first, self._applied_to - LOOK_BACK))
        self._take_over = False
        self._owner = True
        self._level_at = end
        self._inbox.restart(self._applied_to)
        self._committed = self._applied_to
        OWNER.set(1)
        log.info("speaking for the gateway", offset=self._applied_to, end=end)
        self._publisher.speak()

    async def _commit(self, every_seconds: float = 0) -> None:
        # A hint where to begin: what is read twice is refused by the channels' marks. So its failure costs nothing.
        now = time.monotonic()
        offset = self._inbox.committable
        if self._consumer is None or offset <= self._committed:
            return
        if every_seconds and now < self._next_commit:
            return
        self._next_commit = now + every_seconds
        try:
            await self._consumer.commit({self._partition: offset})
            self._committed = offset
        except (KafkaError, IllegalStateError) as error:
            log.warning("offsets not committed; the next time will do", why=repr(error))

    # --- the instructions

    def _take(self, record: ConsumerRecord[bytes, bytes]) -> None:
        before = record.offset < self._applied_to
        try:
            taken = self._inbox.take(record.value, record.offset, record.timestamp, applied_before=before)
        except RecordError as error:
            if not before:
                INSTRUCTIONS.labels("rejected").inc()
                log.warning("no dial instruction; set aside", offset=record.offset, why=str(error))
                self._publisher.reject(record.topic, str(error), record.value or b"", record.key)
            return
        if taken is not Taken.HELD and not before:
            INSTRUCTIONS.labels(taken.value).inc()
            if taken is Taken.VOID:
                log.warning("instruction of an epoch that is over", offset=record.offset)

    def _apply_all(self) -> None:
        session = self._gateway.session
        if session is None or session.lost is not None or self._level_at is not None or not self._owner:
            # They wait: for the next session's snapshot, or for the end of what was instructed before.
            return
        for held in self._inbox.drain():
            if self._fence.holds:
                self._apply(session, held)
            else:
                self._inbox.keep(held)

    def _apply(self, session: ami.Session, held: Held) -> None:
        instruction = held.instruction
        verdict = self._mirror.judge(instruction)
        if isinstance(verdict, Refused):
            self._refuse(instruction, verdict.refusal.value)
            self._publisher.say(verdict.records)
            self._inbox.done(held)
            return
        now = self._clock.now_ms()
        if now is None:
            # Known with the first delivery; a caller who can be redirected is in the announcement under way.
            self._inbox.keep(held)
            return
        if now > instruction.deadline_ms:
            self._refuse(instruction, "expired")
            self._publisher.say([self._mirror.reports.refused(instruction, FailureReason.EXPIRED)])
            self._inbox.done(held)
            return
        try:
            pending = self._write(session, instruction, verdict)
        except (ami.UnsafeValueError, RecordError, NodeNotAllowedError) as error:
            self._refuse(instruction, "bad-instruction", why=str(error))
            self._publisher.say([self._mirror.reports.refused(instruction, FailureReason.BAD_INSTRUCTION)])
            self._inbox.done(held)
            return
        written_ns = time.time_ns()
        self._mirror.asked(instruction)
        task = asyncio.create_task(self._await(session, pending, held, written_ns), name=instruction.instruction_id)
        self._answers.add(task)
        task.add_done_callback(self._answered)

    def _write(self, session: ami.Session, instruction: Instruction, verdict: Redirect) -> list[ami.Pending]:
        if isinstance(instruction, TellInstruction):
            context, variable, value = TELL_CONTEXT, "CALLYARD_NOTICE", instruction.notice.value
        else:
            _, host, _, _ = split_sip_uri(instruction.sip_uri)
            if not self._nodes.allows(host):
                raise NodeNotAllowedError(f"{host} is none of CALLYARD_GATEWAY_NODES: callers aren't sent there")
            context, variable, value = DIAL_CONTEXT, "CALLYARD_URI", instruction.sip_uri
        dial = f"{instruction.stay}x{instruction.attempt}"
        channel = verdict.channel
        # The value first: where CALLYARD_DIAL is of this attempt, the value is as well.
        actions = [
            ("Setvar", {"Channel": channel, "Variable": variable, "Value": value}),
            ("Setvar", {"Channel": channel, "Variable": "CALLYARD_DIAL", "Value": dial}),
            ("Redirect", {"Channel": channel, "Context": context, "Exten": dial, "Priority": "1"}),
        ]
        for _, fields in actions:
            for name, value in fields.items():
                ami.check_line(name, value)
        return [session.send(action, fields) for action, fields in actions]

    async def _await(self, session: ami.Session, pending: list[ami.Pending], held: Held, written_ns: int) -> None:
        instruction = held.instruction
        about = {"call_id": instruction.call_id, "stay": instruction.stay, "attempt": instruction.attempt}
        try:
            for answer in pending:
                await session.answer(answer)
        except ami.AmiActionError as error:
            INSTRUCTIONS.labels("refused-by-asterisk").inc()
            log.warning("Asterisk refuses a redirect; the next snapshot tells why", why=str(error), **about)
            self._mirror.unsure(instruction)
            self._gateway.want_snapshot()
        except ami.AmiLostError as error:
            INSTRUCTIONS.labels("answer-lost").inc()
            log.warning("the answer to a redirect was lost; the channel tells", why=str(error), **about)
            self._mirror.unsure(instruction)
        else:
            INSTRUCTIONS.labels("applied").inc()
            log.debug(
                "redirect accepted", conference=instruction.conference, applied_ns=time.time_ns(),
                written_ns=written_ns, broker_ms=held.broker_ms, **about,
            )  # fmt: skip
        self._inbox.done(held)

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._answers.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._bug = task.exception()

    def _refuse(self, instruction: Instruction, outcome: str, **more: str) -> None:
        INSTRUCTIONS.labels(outcome).inc()
        log.info(
            "instruction not carried out", outcome=outcome, call_id=instruction.call_id,
            conference=instruction.conference, stay=instruction.stay, attempt=instruction.attempt, **more,
        )  # fmt: skip

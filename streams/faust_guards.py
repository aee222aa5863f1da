"""Every place where Faust's insides are mended. Pinned to exact versions; fails loudly when they change.

Each guard answers one finding, measured on a real broker (see docs/architecture.md, "Faust, guarded"):

* **Seek race after recovery.** Source records flow before the seek to the committed offsets has ended, and are then
  cleared and committed past. `GuardedApp` stops the flow when a rebalance completes; Faust resumes it after the seek.
* **Seek to the applied position.** aiokafka's ``seek_to_committed`` does nothing where nothing was committed, and what
  was applied may be ahead of what was committed. `GuardedConsumer.perform_seek` seeks each input to applied + 1.
* **100 ms tail.** Faust pauses changelog partitions only logically; the first record that the stream writes to one
  blocks the next fetch from that broker. They are paused in aiokafka itself once recovery is over.
* **1.5 s waits under load** after a rebalance: ``fetch_max_wait_ms`` is hard-coded.
* **An exception in an agent** (or in Faust's decoding before it) skips the event: it ends the process instead.
* **No fence.** Faust knows of no confirmed heartbeat; the coordinator's is watched (`callyard.fence`), and each produce
  request asks for it.
* **A recovery that a rebalance interrupts** goes on as if it had read the changelogs: it is told from a whole one.
* **A header name that isn't UTF-8** raises in the fetcher, again and again: `callyard.header_names`, for all consumers.
* **Folders for tables** are made at the start, also for tables in memory, which have none: with a read-only root (a
  container's) the worker would not start.
* **Recovery** takes 75 µs a row, proves nothing about its end, and can't tell whose rows count: Faust is told that
  there is nothing to recover, and `streams.changelog` reads the table when Faust says that it is recovered.

What needs no patch is a setting in `streams.worker.make_app`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from importlib.metadata import version
from typing import Any, cast

import faust
import uvloop
from faust.tables.manager import TableManager
from faust.tables.recovery import Recovery
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from callyard import header_names
from callyard.fence import Fence, watch_heartbeat
from callyard.guards import GuardError, patched

PINNED = {"faust-streaming": "0.15.3", "aiokafka": "0.14.0", "mode-streaming": "0.7.1"}
FETCH_MAX_WAIT_MS = 50


def check_versions() -> None:
    """Raise `GuardError` unless the installed versions are those that the guards were made for."""
    found = {name: version(name) for name in PINNED}
    wrong = [f"{name} is {found[name]}, not {wanted}" for name, wanted in PINNED.items() if found[name] != wanted]
    if wrong:
        raise GuardError(
            f"{'; '.join(wrong)}: streams/faust_guards.py was made for the pinned versions; install callyard[stream]"
        )


class GuardedThread(driver.AIOKafkaConsumerThread):
    """Faust's consumer thread with a short fetch wait and a watched heartbeat."""

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        patched(consumer, "_fetch_max_wait_ms")
        consumer._fetch_max_wait_ms = FETCH_MAX_WAIT_MS  # noqa: SLF001 - no public way; see the module's docstring
        return consumer

    async def on_start(self) -> None:
        await super().on_start()
        self._watch_heartbeat()

    async def subscribe(self, topics: Iterable[str]) -> None:
        await super().subscribe(topics)
        # subscribe() exchanges aiokafka's coordinator when it was made without a group.
        self._watch_heartbeat()

    def _watch_heartbeat(self) -> None:
        watch_heartbeat(self._ensure_consumer(), cast("GuardedApp", self.app).fence)

    def pause_in_client(self, tps: Iterable[TP], generation: int) -> Awaitable[None]:
        """Pause partitions in aiokafka itself, so that nothing of them is fetched, unless another generation began.

        A new assignment begins unpaused, and Faust decides what of it flows.
        """

        async def pause() -> None:
            consumer = self._ensure_consumer()
            if patched(consumer, "_coordinator").generation != generation:
                return
            assigned = consumer.assignment()
            consumer.pause(*(tp for tp in map(driver.ensure_aiokafka_TP, tps) if tp in assigned))

        done: Awaitable[None] = self.call_thread(pause)
        return done


class GuardedConsumer(driver.Consumer):
    """Faust's consumer that reads on where the table says, not where the last commit says."""

    def _new_consumer_thread(self) -> Any:
        # The thread would make itself a selector loop: uvloop.run() sets no policy.
        return GuardedThread(self, loop=self.loop, thread_loop=uvloop.new_event_loop(), beacon=self.beacon)

    async def perform_seek(self) -> None:
        await super().perform_seek()
        positions: Mapping[TP, int] = await cast("GuardedApp", self.app).next_positions()
        if not positions:
            return
        await self._thread.seek_wait(positions)
        for tp, offset in positions.items():
            # Faust takes "nothing read yet" from None, and from the committed offset which acknowledgements count.
            self._read_offset[tp] = offset or None
            self._committed_offset[tp] = offset or None
        # Faust seeks at other times, too, for example while it prepares a recovery.
        app = cast("GuardedApp", self.app)
        if not app.recovers:
            changelogs = {tp for tp in self.assignment() if self._is_changelog_tp(tp)}
            generation = app.consumer_generation_id
            await cast("GuardedThread", self._thread).pause_in_client(changelogs, generation)


class GuardedRecovery(Recovery):
    """Faust's recovery that finds every changelog read already: `Worker` reads them when it has ended."""

    async def _build_offsets(self, consumer: Any, tps: Any, destination: Any, title: str) -> None:
        await super()._build_offsets(consumer, tps, destination, title)
        if title == "active":
            for tp in tps:  # a Counter's update() would add
                destination[tp] = self.active_highwaters[tp]


class GuardedTables(TableManager):
    """Faust's tables with the guarded recovery."""

    @property
    def recovery(self) -> Recovery:
        if self._recovery is None:
            self._recovery = GuardedRecovery(self.app, self, beacon=self.beacon, loop=self.loop)
        return self._recovery


class GuardedTransport(driver.Transport):
    """Faust's transport with the guarded consumer."""

    Consumer = GuardedConsumer


class GuardedApp(faust.App):
    """Faust's app with the guards in place.

    The worker sets what to do: ``begin`` before the group is joined, ``next_positions`` says where each assigned input
    is read on, ``ready`` is called once the flow has resumed after a rebalance, ``failed`` when the agent raised.
    """

    begin: Callable[[], Awaitable[None]]
    failed: Callable[[BaseException], None]
    next_positions: Callable[[], Awaitable[Mapping[TP, int]]]
    ready: Callable[[], None]

    def __init__(self, *args: Any, fence: Fence, **kwargs: Any) -> None:
        check_versions()
        header_names.tolerate()
        super().__init__(*args, TableManager=GuardedTables, **kwargs)
        self.fence = fence
        self.on_rebalance_complete.connect(self._stop_flow_for_seek, weak=False)

    async def on_start(self) -> None:
        await super().on_start()
        await self.begin()

    def _create_directories(self) -> None:
        """Make none. Were this no longer asked, Faust could not make what ``datadir`` names, and would say so."""

    async def _stop_flow_for_seek(self, *_: Any, **__: Any) -> None:
        self.consumer.stop_flow()
        self.flow_control.suspend()

    async def _on_agent_error(self, agent: Any, exc: BaseException) -> None:  # noqa: ARG002 - Faust's signature
        # Faust would restart the agent without the event that it failed at.
        self.failed(exc)

    def on_rebalance_end(self) -> None:
        super().on_rebalance_end()
        self.ready()

    def _new_transport(self) -> Any:
        return GuardedTransport(self.conf.broker_consumer, self)

    @property
    def recovers(self) -> bool:
        """Whether Faust prepares a recovery, or is about to."""
        return bool(patched(patched(self.tables, "recovery"), "in_recovery")) or self.recovers_again

    @property
    def recovers_again(self) -> bool:
        """Whether another rebalance interrupted this recovery, so that what it read is incomplete.

        Faust catches its own ``RebalanceAgain`` while it waits for the changelogs and goes on as if they had been read.
        """
        event: Any = patched(patched(self.tables, "recovery"), "signal_recovery_start")
        return bool(event.is_set())

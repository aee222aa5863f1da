"""What a worker takes for the brokers' time."""

from __future__ import annotations

from aiokafka.structs import RecordMetadata, TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from callyard.broker_clock import PERIOD_SECONDS, BrokerClock

CREATE_TIME, LOG_APPEND_TIME = 0, 1
AHEAD_MS = 1_000_000


class World:
    """A machine's clock, and a broker that is `AHEAD_MS` ahead of it."""

    def __init__(self) -> None:
        self.seconds = 100.0
        self.ahead_ms = AHEAD_MS
        self.clock = BrokerClock(lambda: self.seconds)

    def broker_ms(self) -> int:
        return int(self.seconds * 1000) + self.ahead_ms

    def deliver(self, seconds: float = 0.0, kind: int = LOG_APPEND_TIME) -> None:
        """A record is stamped now, and confirmed so much later."""
        stamped = self.broker_ms()
        self.seconds += seconds
        self.clock.observe(RecordMetadata("calls", 0, TopicPartition("calls", 0), 0, stamped, kind, 0))


def test_nothing_is_known_before_the_first_delivery() -> None:
    world = World()
    assert world.clock.now_ms() is None
    world.deliver(kind=CREATE_TIME)
    assert world.clock.now_ms() is None, "the broker did not stamp it"
    world.deliver()
    assert world.clock.now_ms() == world.broker_ms()


def test_a_worker_that_was_frozen_knows_how_long() -> None:
    world = World()
    world.deliver(0.25)
    world.seconds += 31
    world.deliver(31)  # stamped before it was frozen again, confirmed after it
    assert world.clock.now_ms() == world.broker_ms() - 250


def test_a_broker_s_clock_set_back_is_followed() -> None:
    world = World()
    world.deliver()
    world.ahead_ms -= 3_600_000
    for _ in range(3):
        world.seconds += PERIOD_SECONDS + 1
        world.deliver()
    assert world.clock.now_ms() == world.broker_ms()


@given(st.lists(st.tuples(st.floats(0, 40), st.floats(0, 40)), min_size=1, max_size=20))
def test_it_is_never_ahead_and_behind_by_no_more_than_the_last_confirmation_took(
    deliveries: list[tuple[float, float]],
) -> None:
    world = World()
    for pause, took in deliveries:
        world.seconds += pause
        world.deliver(took)
        now = world.clock.now_ms()
        assert now is not None
        assert world.broker_ms() - took * 1000 - 2 <= now <= world.broker_ms() + 1

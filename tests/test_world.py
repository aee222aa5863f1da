"""Anything in any order, and then: once faults stop, whoever waits is in the conference, and who was removed is not."""

from __future__ import annotations

import dataclasses

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from agents.messages import ChannelState
from callyard.settings import PolicySettings
from streams.policy import Policy
from tests.support.world import Caller, World

POLICY = dataclasses.replace(Policy.of(PolicySettings()), fan_out=3)
SETTLE_SECONDS = 100
"""Longer than a registration's lease, a deadline, the longest pause and an announcement's deadline together."""
NODES = st.sampled_from(["node-1", "node-2"])
ANY = st.integers(0, 9)


class WorldMachine(RuleBasedStateMachine):
    """Callers, conferences and faults as they please."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(POLICY)
        for _ in range(2):
            self.world.arrive()

    def pick(self, number: int) -> Caller | None:
        callers = list(self.world.callers.values())
        return callers[number % len(callers)] if callers else None

    @rule()
    def a_caller_comes(self) -> None:
        self.world.arrive()

    @rule(number=ANY)
    def a_caller_hangs_up(self, number: int) -> None:
        if (caller := self.pick(number)) is not None:
            self.world.hang_up(caller)

    @rule(node=NODES)
    def a_conference_opens(self, node: str) -> None:
        self.world.open(node)

    @rule(node=NODES, hangs_up=st.booleans())
    def a_conference_ends(self, node: str, hangs_up: bool) -> None:
        self.world.close(node, hangs_up=hangs_up)

    @rule(node=NODES)
    def a_hook_loses_its_freeswitch_for_a_moment(self, node: str) -> None:
        self.world.lose_hook(node)

    @rule(number=ANY)
    def a_caller_is_removed(self, number: int) -> None:
        if (caller := self.pick(number)) is not None:
            self.world.kick(caller)

    @rule(number=ANY)
    def a_leg_is_lost(self, number: int) -> None:
        if (caller := self.pick(number)) is not None:
            self.world.lose_leg(caller)

    @rule(number=ANY, steps=st.integers(1, 3))
    def asterisk_goes_on(self, number: int, steps: int) -> None:
        for _ in range(steps):
            if (caller := self.pick(number)) is not None:
                self.world.advance(caller)

    @rule(count=st.integers(1, 5))
    def events_arrive(self, count: int) -> None:
        self.world.events_arrive(count)

    @rule(count=st.integers(1, 5))
    def the_agent_reads(self, count: int) -> None:
        self.world.agent_reads(count)

    @rule(count=st.integers(1, 3))
    def instructions_are_lost(self, count: int) -> None:
        self.world.agent_at = min(len(self.world.dials), self.world.agent_at + count)

    @rule(back=st.integers(0, 20))
    def the_agent_is_killed(self, back: int) -> None:
        self.world.restart_agent(back)

    @rule()
    def the_session_with_asterisk_is_cut(self) -> None:
        self.world.lose_session()

    @rule()
    def the_stream_decides(self) -> None:
        self.world.run_stream()

    @rule(effects=st.integers(0, 12))
    def the_stream_is_killed(self, effects: int) -> None:
        self.world.run_stream(effects)

    @rule(milliseconds=st.sampled_from([10, 500, 2_000, 6_000, 11_000, 40_000, 200_000]))
    def time_passes(self, milliseconds: int) -> None:
        self.world.tick(milliseconds)

    @rule()
    def everything_works_for_a_moment(self) -> None:
        self.world.settle(3)

    @invariant()
    def nothing_happens_that_must_not(self) -> None:
        assert self.world.faults == []

    def teardown(self) -> None:
        """Once faults stop, everybody is where they belong."""
        world = self.world
        if not world.running:
            world.open("node-1")
        world.settle(SETTLE_SECONDS)
        assert world.faults == []
        for caller in world.callers.values():
            assert caller.state is ChannelState.CONNECTED, f"{caller} is left waiting beside {world.running}"
            assert caller.node in world.running


WorldMachine.TestCase.settings = settings(max_examples=500, stateful_step_count=40, deadline=None, derandomize=True)
test_anything_in_any_order = WorldMachine.TestCase

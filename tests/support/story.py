"""A desk's story: events told one after the other, the invariants checked after each."""

from __future__ import annotations

from callyard.records import InputRecord, TellInstruction
from callyard.settings import PolicySettings
from streams.decide import decide
from streams.desk import Desk
from streams.draft import Decision
from streams.policy import Policy
from streams.rows import StayState
from tests.support.events import CONFERENCE, timer

POLICY = Policy.of(PolicySettings())


class Story:
    """A desk and its time: each call applies one event and checks the invariants."""

    def __init__(self, policy: Policy = POLICY) -> None:
        self.desk = Desk(CONFERENCE)
        self.policy = policy
        self.now = 1_000_000

    def __call__(self, event: InputRecord, after: int = 10) -> Decision:
        self.now += after
        before = (self.desk.row, dict(self.desk.stays), dict(self.desk.registrations))
        decision = decide(self.desk, event, self.now, self.policy)
        assert before == (self.desk.row, self.desk.stays, self.desk.registrations), "decide changed the desk"
        assert decide(self.desk, event, self.now, self.policy) == decision, "decide is not repeatable"
        attempts = {key: (stay.stay, stay.attempt) for key, stay in self.desk.stays.items()}
        self.desk.apply(decision.changes)
        self.desk.check()
        for key, stay in self.desk.stays.items():
            number, attempt = attempts.get(key, (0, 0))
            assert stay.stay > number or (stay.stay, stay.attempt) >= (number, attempt), "attempts only grow"
        assert self.desk.row.version == decision.changes.desk.version
        return decision

    def until(self, when: int) -> list[tuple[str, int, str]]:
        """Let time pass to ``when``, with a timer whenever one is due; who was dialled meanwhile."""
        found = []
        while (due := self.desk.next_due_ms(self.policy.stub_retention_ms)) is not None and due <= when:
            found += dialled(self(timer(), after=max(0, due - self.now)))
        self.now = when
        return found

    def stay(self, call: str = "1") -> StayState:
        return self.desk.stays[f"gw-1/{call}"].state


def dialled(decision: Decision) -> list[tuple[str, int, str]]:
    """Who is sent where (a node), or told what (a notice): call, attempt, and that."""
    return [
        (i.call_id.split("/")[1], i.attempt, i.notice.value if isinstance(i, TellInstruction) else i.node_id)
        for i in decision.instructions
    ]

"""Draws docs/states.md from the transition tables: ``python -m streams.state_diagram``. A test fails when it drifts."""

from __future__ import annotations

import sys

from streams.rows import RegistrationState, StayState
from streams.transitions import CALL_EVENTS, REGISTRATION_EVENTS, REGISTRATIONS, STAYS, Known, RegistrationStep, Step

_NEXT_STAY = {
    Step.PARK: StayState.PARKED,
    Step.START: StayState.DIALING,
    Step.CONNECT: StayState.CONNECTED,
    Step.FAIL: StayState.PARKED,
    Step.LEAVE: StayState.LEFT,
}
_NEXT_REGISTRATION = {
    RegistrationStep.REGISTER: RegistrationState.LIVE,
    RegistrationStep.REVIVE: RegistrationState.LIVE,
    RegistrationStep.END: RegistrationState.ENDED,
    RegistrationStep.LOSE: RegistrationState.LOST,
}
_STAYS_BY_TIME = (
    ("parked", "dialing", "a registration is live: an instruction to dial"),
    ("parked", "dialing", "removed, or all attempts failed: an instruction to tell"),
    ("dialing", "parked", "no outcome by the deadline"),
    ("parked", "lapsed", "lease over"),
    ("dialing", "lapsed", "lease over"),
    ("connected", "lapsed", "lease over"),
)


def page() -> str:
    """The whole page, as Markdown."""
    return "\n".join(
        [
            "# States",
            "",
            "Written by `make docs` from `streams/transitions.py`; a test fails when it drifts.",
            "",
            "## A stay",
            "",
            "A caller's wait for one conference number. `revived` and `adopted` take the gateway's word for the state;",
            "`caller-left` with the reason `gone` leads to `gone`, from which a later word of the gateway revives it.",
            "",
            *_diagram(_stay_edges()),
            *_table(CALL_EVENTS, {state.value: [step.value for step in steps] for state, steps in STAYS.items()}),
            "## A registration",
            "",
            *_diagram(_registration_edges()),
            *_table(
                REGISTRATION_EVENTS,
                {state.value: [step.value for step in steps] for state, steps in REGISTRATIONS.items()},
            ),
        ]
    )


def _stay_edges() -> list[tuple[str, str, str]]:
    edges = [("[*]", "parked", "caller-parked")]
    for state, steps in STAYS.items():
        for event, step in zip(CALL_EVENTS, steps, strict=True):
            follows = _NEXT_STAY.get(step)
            if isinstance(state, StayState) and follows is not None and follows is not state:
                edges.append((state.value, follows.value, event))
    edges += [(state.value, "parked", "revived, as told") for state in (StayState.LAPSED, StayState.GONE)]
    return [*edges, *_STAYS_BY_TIME]


def _registration_edges() -> list[tuple[str, str, str]]:
    edges = []
    for state, steps in REGISTRATIONS.items():
        for event, step in zip(REGISTRATION_EVENTS, steps, strict=True):
            follows = _NEXT_REGISTRATION.get(step)
            if follows is not None and follows is not state:
                source = "[*]" if isinstance(state, Known) else state.value
                edges.append((source, follows.value, event))
    return [*edges, ("live", "lapsed", "lease over")]


def _diagram(edges: list[tuple[str, str, str]]) -> list[str]:
    lines = [f"    {source} --> {target}: {label}" for source, target, label in dict.fromkeys(edges)]
    return ["```mermaid", "stateDiagram-v2", *lines, "```", ""]


def _table(events: tuple[str, ...], rows: dict[str, list[str]]) -> list[str]:
    return [
        "| state | " + " | ".join(events) + " |",
        "| --- |" + " --- |" * len(events),
        *(f"| `{state}` | " + " | ".join(steps) + " |" for state, steps in rows.items()),
        "",
    ]


if __name__ == "__main__":
    sys.stdout.write(page())

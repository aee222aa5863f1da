"""What ``callyard doctor gateway`` tries as the agent: its login, what it may do, and what it may not."""

from __future__ import annotations

from collections.abc import Mapping

from agents import ami
from callyard.doctor import Finding, Findings
from callyard.settings import AmiSettings

NOT_GRANTED: tuple[tuple[str, dict[str, str], str], ...] = (
    ("Command", {"Command": "core show uptime"}, "command"),
    ("CoreStatus", {}, "system or reporting"),
)
"""Actions that no agent needs, which change nothing where they are granted all the same; and their classes."""
RENDER = "render again (callyard render asterisk), then 'manager reload'"


async def manager(settings: AmiSettings) -> list[Finding]:
    """Whether the manager user can do what the agent does, and nothing else."""
    found = Findings("manager")
    try:
        session = await ami.connect(settings)
    except ami.AmiError as error:
        found.wrong(str(error), "the agent can do nothing until then; what needs it was not looked at")
        return found.all
    try:
        found.fine(f"Asterisk at {session.address} takes the manager user {settings.username!r}")
        await _needed(session, found)
        await _not_needed(session, found)
    except ami.AmiLostError as error:
        found.wrong(f"the manager connection broke off: {error}", "look into Asterisk's log")
    finally:
        session.close()
    return found.all


async def _needed(session: ami.Session, found: Findings) -> None:
    refused = []
    # On a channel that can't be there: Asterisk says so where it may be tried, and that it may not where not.
    nobody = {"Channel": "PJSIP/callyard-doctor-nobody"}
    tried = {
        "Setvar": {**nobody, "Variable": "CALLYARD_DOCTOR", "Value": "1"},
        "Redirect": {**nobody, "Context": "callyard-dial", "Exten": "0x0", "Priority": "1"},
    }
    for action, fields in tried.items():
        try:
            await session.answer(session.send(action, fields))
        except ami.AmiActionError as error:
            if _denied(str(error)):
                refused.append(action)
    for action, fields in (("Status", nobody), ("ParkedCalls", {"ParkingLot": "callyard"})):
        answer = await _list(session, action, fields)
        if _denied(answer.error):
            refused.append(action)
        elif answer.error and action == "ParkedCalls":
            found.wrong(f"there is no parking lot 'callyard' ({answer.error})", "render again, then 'module reload'")
    if refused:
        found.wrong(f"the manager user may not do {', '.join(refused)}", RENDER)
    else:
        found.fine("it may do what the agent does")


async def _not_needed(session: ami.Session, found: Findings) -> None:
    granted = []
    for action, fields, names in NOT_GRANTED:
        try:
            await session.answer(session.send(action, fields))
        except ami.AmiActionError:
            continue
        granted.append(f"{action} (class {names})")
    if granted:
        found.wrong(f"the manager user may do more than the agent needs: {', '.join(granted)}", RENDER)
    else:
        found.fine("it may do nothing else that was tried")


def _denied(answer: str | None) -> bool:
    return "permission" in (answer or "").lower()


async def _list(session: ami.Session, action: str, fields: Mapping[str, str]) -> ami.Listing:
    session.request_list(action, fields)
    while not isinstance(item := await session.next(), ami.Listing):
        pass
    return item

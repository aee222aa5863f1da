"""What ``callyard doctor gateway`` looks at: the configuration on the disk, and the Asterisk that runs by it.

It asks Asterisk over its control socket, which only its own user and root may use, and changes nothing.
"""

from __future__ import annotations

import asyncio
import re
import socket
import time
from pathlib import Path

from ast_config.command import rendered
from callyard import asterisk_console
from callyard.doctor import Finding, Findings
from callyard.settings import AmiSettings, Loaded

CONTEXTS = ("callyard-entry", "callyard-wait", "callyard-dial", "callyard-tell", "callyard-again")
"""Contexts of the dialplan without which no caller is parked or put through."""
LOOK_UP_SECONDS = 1.0
"""A look-up of a name that takes longer holds up calls: Asterisk makes it for each of them."""
ANSWERS_SLOWLY = "give it a line in /etc/hosts (docs/gateway.md)"


async def running(loaded: Loaded, run_directory: Path, *, join: bool) -> list[Finding]:
    """What the Asterisk that runs says of itself."""
    found = Findings("asterisk")

    async def ask(command: str) -> str:
        return await asterisk_console.cli(run_directory, command)

    try:
        version = (await ask("core show version")).split(" built")[0].strip()
        found.fine(f"{version} runs")
        _modules(found, await ask("module show"), rendered(loaded, join=False)["modules.conf"], join=join)
        missing = [name for name in CONTEXTS if "no existence" in await ask(f"dialplan show {name}")]
        if missing:
            found.wrong(f"the dialplan has no {', '.join(missing)}", "render it, include it, then 'dialplan reload'")
        else:
            found.fine("the dialplan for callers is loaded")
        _access(found, await ask(f"manager show user {loaded[AmiSettings].username}"))
        _presence(found, await ask("dialplan show globals"))
    except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError) as error:
        found.wrong(
            f"no Asterisk answers at {run_directory}/asterisk.ctl ({error!r:.120})",
            "start it, run this as root or Asterisk's user, or name the directory by --run",
        )
    return found.all


def _modules(found: Findings, shown: str, wanted: str, *, join: bool) -> None:
    running_ = {words[0] for line in shown.splitlines() if (words := line.split()) and " Running " in f" {line} "}
    missing = [name for name in re.findall(r"(?m)^load = (\S+)", wanted) if name not in running_]
    if not missing:
        found.fine("all modules run that the dialplan, SIP and the manager interface need")
    elif join:
        found.warn(
            f"modules of Callyard's own set don't run here: {', '.join(missing)}", "load what docs/gateway.md lists"
        )
    else:
        found.wrong(f"modules don't run: {', '.join(missing)}", "see modules.conf and Asterisk's log, then restart it")


def _access(found: Findings, shown: str) -> None:
    acl = re.search(r"(?m)^\s*ACL:\s*(\S+)", shown)
    if acl is None or acl[1].lower() != "yes":
        found.wrong("the manager user has no ACL: whoever reaches the port may try its secret", "render again, reload")
    else:
        found.fine("the manager user is taken from the ACL's addresses only")


def _presence(found: Findings, shown: str) -> None:
    variables = dict(line.strip().split("=", 1) for line in shown.splitlines() if "=" in line)
    seen = variables.get("CALLYARD_AGENT", "")
    if not seen.isdigit():
        found.warn("no agent has told this Asterisk that it is there", "start 'callyard agent'; callers wait meanwhile")
    elif time.time() - int(seen) > 30:
        found.wrong(f"the agent was last here {time.time() - int(seen):.0f} s ago", "look into the agent's log")
    else:
        found.fine("an agent is there")
    if variables.get("CALLYARD_DRAINING"):
        found.warn("it drains: new calls are answered by 503", 'dialplan set global CALLYARD_DRAINING ""')


async def names() -> list[Finding]:
    """Names that Asterisk looks up for calls: each look-up without an answer holds its call up for five seconds."""
    found, loop = Findings("names"), asyncio.get_running_loop()
    for name in (socket.gethostname(), "A.ROOT-SERVERS.NET"):
        begun = loop.time()
        try:
            await asyncio.wait_for(loop.getaddrinfo(name, None), LOOK_UP_SECONDS)
        except asyncio.TimeoutError:
            found.wrong(f"{name} isn't found within {LOOK_UP_SECONDS:g} s: calls are held up by it", ANSWERS_SLOWLY)
        except OSError as error:
            text = f"{name} isn't found ({error.strerror or error}, after {loop.time() - begun:.1f} s)"
            found.warn(text, ANSWERS_SLOWLY)
        else:
            found.fine(f"{name} is found at once")
    return found.all

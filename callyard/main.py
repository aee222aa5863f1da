"""The command line: finds each command by name and turns known errors into words and exit statuses.

Commands live with the package that they run (``streams.command``, …) and are imported only when called, so that a
node needs no Faust and a gateway no FreeSWITCH code. Exit statuses: 0 done, 1 it failed (the text says why), 2 wrong
use or settings, 130 interrupted; audits have some of their own (`streams.audit.reading`).
"""

from __future__ import annotations

import difflib
import importlib
import sys
from typing import NamedTuple

import typer
from rich.console import Console

from callyard import __version__, log
from callyard.clients import KafkaUnreachableError
from callyard.errors import CommandError
from callyard.settings import SettingsError
from callyard.topics import TopicsError


class Command(NamedTuple):
    """Where a command lives, what to install for it, and its line in the help."""

    module: str
    extra: str | None
    help: str


COMMANDS: dict[str, Command] = {
    "kafka": Command("callyard.kafka.command", "embedded", "Run the embedded Kafka in the foreground."),
    "topics": Command("callyard.topics_command", None, "Create the topics, and check those that exist."),
    "up": Command("callyard.up", "embedded", "Run all workers in one process group, for one's own Asterisk and nodes."),
    "stream": Command("streams.command", "stream", "Run a stream worker: keeps the table and decides."),
    "agent": Command("agents.command", "gateway", "Run this gateway's agent."),
    "hook": Command("fs_hooks.command", "node", "Run this node's hook."),
    "health": Command("callyard.health_command", None, "Ask a worker of this machine whether it is ready."),
    "doctor": Command("callyard.doctor_command", None, "Look at what is installed, and say what to do."),
    "render": Command("callyard.render_command", "gateway", "Write the configuration of Asterisk or FreeSWITCH."),
    "audit": Command("streams.audit.command", "audit", "Tell what happened to a call; verify and seal the journal."),
    "status": Command("streams.audit.status_command", "audit", "Say whether all of it works, and what to do if not."),
    "table": Command("streams.audit.table_command", "audit", "Show what runs where and who waits, now or then."),
    "export": Command("streams.audit.export_command", "audit", "Export calls, registrations or the journal."),
    "replay": Command("streams.audit.replay_command", "stream,audit", "Decide recorded inputs again, and compare."),
    "rights": Command("callyard.rights_command", None, "Print what a role may do on the bus, as Kafka is told."),
    "keys": Command("callyard.keys_command", None, "Make the key by which a node signs its registrations."),
    "schema": Command("callyard.schema_command", None, "Print the records' JSON Schema, or all settings or metrics."),
    "demo": Command("callyard.demo.command", "embedded,gateway,stream", "Show the main job end to end."),
}  # fmt: skip


def app(name: str) -> typer.Typer:
    """The typer application of one command (the attribute ``app`` of its module)."""
    command = COMMANDS[name]
    try:
        module = importlib.import_module(command.module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in {"callyard", "streams", "agents", "fs_hooks"}:
            raise
        wanted = f"callyard[{command.extra}]" if command.extra else "callyard"
        raise CommandError(f"'callyard {name}' needs {error.name}: install it with pip install '{wanted}'") from None
    found = module.app
    assert isinstance(found, typer.Typer)  # noqa: S101 - a programming error of ours
    # Typer's own tracebacks print local variables, and those hold secrets.
    found.pretty_exceptions_enable = False
    return found


def usage() -> str:
    """The overview that ``callyard --help`` prints."""
    width = max(len(name) for name in COMMANDS)
    lines = [f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        ["Usage: callyard COMMAND [OPTIONS]", "", "One phone number for a whole BigBlueButton cluster.", "", *lines, "",
         "'callyard COMMAND --help' explains one. Settings: CALLYARD_… variables or --config FILE (docs/settings.md)."]
    )  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    words = sys.argv[1:] if arguments is None else arguments
    out = Console(soft_wrap=True, markup=False, highlight=False)
    err = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
    name = words[0] if words else ""
    if name in COMMANDS:
        return _run(name, words[1:], err)
    if name in {"", "--help", "-h", "help"}:
        out.print(usage())
        return 0 if words else 2
    if name == "--version":
        out.print(f"callyard {__version__}")
        return 0
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    err.print(f"callyard: there is no command {name!r}{f' (did you mean {near[0]}?)' if near else ''}\n\n{usage()}")
    return 2


def _run(name: str, arguments: list[str], err: Console) -> int:
    try:
        result = app(name)(arguments, prog_name=f"callyard {name}", standalone_mode=True)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except KeyboardInterrupt:
        return 130
    except SettingsError as error:
        err.print(f"callyard {name}: {error}")
        return 2
    except (CommandError, KafkaUnreachableError, TopicsError) as error:
        if not log.tell(name, getattr(error, "problems", [str(error)])):
            err.print(f"callyard {name}: {error}")
        return error.status if isinstance(error, CommandError) else 1
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    sys.exit(main())

"""``callyard health``: ask a worker of this machine how it is, for a container's check, where there is no curl."""

from __future__ import annotations

import http.client
from typing import Annotated

import typer

from callyard.errors import CommandError
from callyard.options import ConfigOption
from callyard.settings import HealthSettings, SettingsError, load

app = typer.Typer(add_completion=False, help=__doc__)

SECONDS = 5.0
ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what serves on all addresses is asked at one of its own


@app.command(name="health")
def command(
    config: ConfigOption = None,
    live: Annotated[bool, typer.Option("--live", help="Ask only whether it lives, not whether it is ready.")] = False,
) -> None:
    """Ask the worker at CALLYARD_HEALTH_HOST and CALLYARD_HEALTH_PORT whether it is ready, and print its answer.

    Exit status 1 where it isn't, with what is missing, or where nothing answers.
    """
    settings = load(HealthSettings, config=config)[HealthSettings]
    if not settings.port:
        raise SettingsError([f"{settings.variable('port')} is 0: nothing is served; set it, for the worker and here"])
    typer.echo(ask(settings, "/healthz" if live else "/readyz"), nl=False)


def ask(settings: HealthSettings, path: str) -> str:
    """What the worker answers. Raises `CommandError` where it isn't well, or doesn't answer within `SECONDS`."""
    host = ANY.get(settings.host, settings.host)
    connection = http.client.HTTPConnection(host, settings.port, timeout=SECONDS)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        text = response.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        raise CommandError(f"nothing answers at {host}:{settings.port}: {error or type(error).__name__}") from None
    finally:
        connection.close()
    if response.status != http.client.OK:
        raise CommandError(text.strip() or f"the worker answers {response.status}")
    return text

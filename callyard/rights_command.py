"""``callyard rights``: prints what a role may do on the bus, as it is given to Kafka. It asks and changes nothing."""

from __future__ import annotations

import dataclasses
import re
from typing import Annotated

import orjson
import typer
from pydantic import TypeAdapter, ValidationError

from callyard.errors import CommandError
from callyard.options import ConfigOption, JsonOption
from callyard.records import GatewayId
from callyard.rights import ROLES, commands, rights, strimzi
from callyard.settings import KafkaSettings, load

app = typer.Typer(add_completion=False, help=__doc__)

_PRINCIPAL = re.compile(r"[A-Za-z]+:[^'\n]+")
_RESOURCE = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")
_AUTHENTICATION = ("scram-sha-512", "tls")


class UsageError(CommandError):
    """Wrong use of the command."""

    status = 2


@app.command(name="rights")
def command(
    role: Annotated[str, typer.Argument(help=f"{', '.join(ROLES)}.")],
    principal: Annotated[
        str, typer.Option(help="Who gets them, as the broker names him. Default: User:callyard-ROLE.")
    ] = "",
    gateway: Annotated[
        str, typer.Option(help="Role gateway: the id of the one gateway whose place it may take. Default: any.")
    ] = "",
    as_strimzi: Annotated[
        bool, typer.Option("--strimzi", help="Print a KafkaUser for Strimzi instead of kafka-acls commands.")
    ] = False,
    cluster: Annotated[str, typer.Option(help="With --strimzi: the name of the Kafka cluster.")] = "kafka",
    authentication: Annotated[
        str, typer.Option(help=f"With --strimzi: {' or '.join(_AUTHENTICATION)}.")
    ] = _AUTHENTICATION[0],
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Print the kafka-acls commands that give a role its rights, and nothing else.

    Run them where $BROKER is a broker's address and admin.properties holds an administrator's credentials. Topics and
    groups are those of CALLYARD_KAFKA_TOPIC_PREFIX.
    """
    if role not in ROLES:
        raise UsageError(f"there is no role {role!r}: {', '.join(ROLES)}")
    principal = principal or f"User:callyard-{role}"
    if not _PRINCIPAL.fullmatch(principal):
        raise UsageError(f"{principal!r} is no principal: User:NAME")
    settings = load(KafkaSettings, config=config)[KafkaSettings]
    only = _gateway(role, gateway)
    granted = rights(settings, only)[role]
    if json:
        typer.echo(orjson.dumps([{"principal": principal, **dataclasses.asdict(right)} for right in granted]).decode())
    elif as_strimzi:
        name = principal.partition(":")[2]
        if not _RESOURCE.fullmatch(name) or not _RESOURCE.fullmatch(cluster):
            raise UsageError(f"{name!r} and {cluster!r} must be names of Kubernetes: small letters, digits, - and .")
        if authentication not in _AUTHENTICATION:
            raise UsageError(f"--authentication is {' or '.join(_AUTHENTICATION)}")
        typer.echo(strimzi(name, cluster, granted, authentication), nl=False)
    else:
        typer.echo("\n".join(commands(settings, role, principal, only)))


def _gateway(role: str, gateway: str) -> str | None:
    if not gateway:
        return None
    if role != "gateway":
        raise UsageError("--gateway is for role gateway alone")
    try:
        return TypeAdapter(GatewayId).validate_python(gateway)
    except ValidationError:
        raise UsageError(f"{gateway!r} is no gateway id") from None

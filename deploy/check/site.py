"""What the pods find around them: Kafka, a node (FreeSWITCH's double and its SIP side), settings and secrets.

All of it is on this machine, on 127.0.0.1, and ends with the block. The rendered settings hold but for what names
another machine: addresses, ports, and the way to Kafka.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from callyard.parts import freeswitch, sipp
from callyard.parts.ports import LOOPBACK, free_sip_port
from callyard.processes import free_port
from callyard.signing import Signer
from deploy.check import bus
from deploy.check.manifests import Rendered
from deploy.check.pods import Surroundings, config_maps
from deploy.check.report import CheckError

NODE = "node-1"
FOLDER = "/etc/callyard"
"""Where the hook finds its secrets."""
WORKERS = ("stream", "agent", "agent-standby", "hook")


@dataclass(frozen=True)
class Site:
    """``ports``: where each worker answers for its health. ``hook``: its settings, ``files``: its secrets by name."""

    around: Surroundings
    kafka: bus.Bus
    hook: Mapping[str, str]
    files: Mapping[str, str]
    ports: Mapping[str, int]
    sip_port: int
    control: freeswitch.FreeSwitch
    node: sipp.Node


@asynccontextmanager
async def running(rendered: Rendered, directory: Path) -> AsyncIterator[Site]:
    """The surroundings of these manifests' pods."""
    async with (
        bus.running(rendered, directory / "bus") as kafka,
        freeswitch.FreeSwitch() as control,
        sipp.node(directory / "node", name=NODE) as node,
    ):
        signer, pem = Signer.make()
        ports = {worker: free_port(LOOPBACK) for worker in WORKERS}
        reached = {
            "CALLYARD_KAFKA_BOOTSTRAP_SERVERS": kafka.secured,
            "CALLYARD_KAFKA_REPLICATION_FACTOR": str(kafka.plain.replication_factor),
        }
        sip_port, ami_port = free_sip_port(), free_port(LOOPBACK)
        gateway = {
            "CALLYARD_AMI_PORT": str(ami_port),
            "CALLYARD_GATEWAY_NODES": LOOPBACK,
            "CALLYARD_ASTERISK_TRUNK_NETWORKS": LOOPBACK,
            "CALLYARD_ASTERISK_SIP_HOST": LOOPBACK,
            "CALLYARD_ASTERISK_SIP_PORT": str(sip_port),
            # SIPp sends no audio while it waits.
            "CALLYARD_ASTERISK_RTP_TIMEOUT_SECONDS": "0",
            "CALLYARD_ASTERISK_NODE_RTP_TIMEOUT_SECONDS": "0",
        }

        def changes(container: str) -> Mapping[str, str]:
            own = {"CALLYARD_HEALTH_HOST": LOOPBACK}
            if container in ports:
                own["CALLYARD_HEALTH_PORT"] = str(ports[container])
            return {**reached, **own, **({} if container == "stream" else gateway)}

        nodes = {"nodes": f"{NODE} {signer.public_key} {LOOPBACK}\n"}
        user = next((name for name in kafka.passwords if name.startswith("callyard-node")), None)
        if user is None:
            raise CheckError(f"{rendered.name} has no user for a node among {', '.join(kafka.passwords)}")
        yield Site(
            around=Surroundings(
                directory / "volumes", _secrets(kafka), changes, config_maps(rendered, node_keys=nodes)
            ),
            kafka=kafka,
            hook={
                **reached,
                "CALLYARD_KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
                "CALLYARD_KAFKA_SASL_MECHANISM": "SCRAM-SHA-512",
                "CALLYARD_KAFKA_SASL_USERNAME": user,
                "CALLYARD_KAFKA_SASL_PASSWORD_FILE": f"{FOLDER}/password",
                "CALLYARD_KAFKA_SSL_CAFILE": f"{FOLDER}/ca.crt",
                "CALLYARD_NODE_ID": NODE,
                "CALLYARD_NODE_SIP_URI": node.uri(),
                "CALLYARD_NODE_SIGNING_KEY_FILE": f"{FOLDER}/node.key",
                "CALLYARD_ESL_PORT": str(control.port),
                "CALLYARD_ESL_PASSWORD": control.password,
                "CALLYARD_HEALTH_HOST": LOOPBACK,
                "CALLYARD_HEALTH_PORT": str(ports["hook"]),
            },
            files={"node.key": pem, "password": kafka.passwords[user], "ca.crt": kafka.authority.read_text()},
            ports=ports,
            sip_port=sip_port,
            control=control,
            node=node,
        )


def _secrets(kafka: bus.Bus) -> dict[str, dict[str, str]]:
    """What Strimzi's operators and the site's owner would have made."""
    return {
        **{user: {"password": password} for user, password in kafka.passwords.items()},
        "callyard-cluster-ca-cert": {"ca.crt": kafka.authority.read_text(encoding="ascii")},
        "callyard-ami": {"secret": secrets.token_hex(16)},
    }

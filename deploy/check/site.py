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

from callyard.kafka import embedded
from callyard.parts import freeswitch, sipp
from callyard.parts.ports import LOOPBACK, free_sip_port
from callyard.processes import free_port
from callyard.signing import Signer
from deploy.check.manifests import Rendered
from deploy.check.pods import Surroundings, config_maps

NODE = "node-1"
WORKERS = ("stream", "agent", "agent-standby", "hook")


@dataclass(frozen=True)
class Site:
    """``ports``: where each worker answers for its health. ``hook``: the hook's settings; its key is in the files."""

    around: Surroundings
    kafka: Mapping[str, str]
    hook: Mapping[str, str]
    key: Path
    ports: Mapping[str, int]
    sip_port: int
    control: freeswitch.FreeSwitch
    node: sipp.Node


@asynccontextmanager
async def running(rendered: Rendered, directory: Path) -> AsyncIterator[Site]:
    """The surroundings of these manifests' pods."""
    async with (
        embedded.running(directory / "kafka") as kafka,
        freeswitch.FreeSwitch() as control,
        sipp.node(directory / "node", name=NODE) as node,
    ):
        signer, pem = Signer.make()
        key = directory / "node.key"
        key.write_text(pem, encoding="ascii")
        ports = {worker: free_port(LOOPBACK) for worker in WORKERS}
        bus: dict[str, str | None] = {
            "CALLYARD_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            "CALLYARD_KAFKA_SECURITY_PROTOCOL": "PLAINTEXT",
            "CALLYARD_KAFKA_REPLICATION_FACTOR": "1",
            **dict.fromkeys(f"CALLYARD_KAFKA_{name}" for name in ("SSL_CAFILE", *_SASL)),
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

        def changes(container: str) -> Mapping[str, str | None]:
            own: dict[str, str | None] = {"CALLYARD_HEALTH_HOST": LOOPBACK}
            if container in ports:
                own["CALLYARD_HEALTH_PORT"] = str(ports[container])
            return {**bus, **own, **({} if container == "stream" else gateway)}

        nodes = {"nodes": f"{NODE} {signer.public_key} {LOOPBACK}\n"}
        yield Site(
            around=Surroundings(directory / "volumes", _secrets(), changes, config_maps(rendered, node_keys=nodes)),
            kafka={name: value for name, value in bus.items() if value is not None},
            hook={
                "CALLYARD_NODE_ID": NODE,
                "CALLYARD_NODE_SIP_URI": node.uri(),
                "CALLYARD_NODE_SIGNING_KEY_FILE": "/etc/callyard/node.key",
                "CALLYARD_ESL_PORT": str(control.port),
                "CALLYARD_ESL_PASSWORD": control.password,
                "CALLYARD_HEALTH_HOST": LOOPBACK,
                "CALLYARD_HEALTH_PORT": str(ports["hook"]),
            },
            key=key,
            ports=ports,
            sip_port=sip_port,
            control=control,
            node=node,
        )


_SASL = ("SASL_MECHANISM", "SASL_USERNAME", "SASL_PASSWORD_FILE")


def _secrets() -> dict[str, dict[str, str]]:
    """What Strimzi and the operator would have made, with contents of this run's own."""
    return {
        "callyard-stream": {"password": secrets.token_hex(16)},
        "callyard-gateway": {"password": secrets.token_hex(16)},
        "callyard-cluster-ca-cert": {"ca.crt": "no certificate: this Kafka is asked without TLS\n"},
        "callyard-ami": {"secret": secrets.token_hex(16)},
    }

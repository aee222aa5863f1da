"""A gateway as its agent sees it: what it is called, which nodes it may dial, Asterisk's manager interface."""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, SecretStr, field_validator

from callyard.nodes import AllowedNodes
from callyard.numbers import LEAST_KEY_CHARACTERS
from callyard.records import CallerForm, GatewayId
from callyard.settings.groups import HOST_NAME, PATH, Group, SettingsError, require_one_line


class GatewaySettings(Group):
    """This gateway, and what its agent does."""

    table: ClassVar[str] = "gateway"

    id: GatewayId = Field(
        default_factory=lambda: socket.gethostname().split(".")[0],
        description="The gateway's id; default: its host name. Replicas of one gateway's agent share it.",
    )
    caller_number: Literal["masked", "full", "hashed", "none"] = Field(
        "masked",
        description="In which form callers' numbers enter Kafka: last digits masked, full, as a keyed hash, or not at"
        " all.",
    )
    renew_seconds: float = Field(
        60, gt=0, le=3600, description="Seconds between two renewals of each live call; a third of its lease."
    )
    snapshot_seconds: float = Field(
        30, gt=0, le=3600, description="Seconds between two reconciliations with Asterisk's list of channels."
    )
    nodes: str = Field(
        "127.0.0.1",
        description="Nodes that callers may be sent to, comma-separated: addresses, networks, names as they stand in"
        " SIP URIs; any: all. Asterisk takes SIP from these addresses and the trunk's only, so give addresses where"
        " URIs have names, too.",
    )  # fmt: skip

    @field_validator("nodes")
    @classmethod
    def _nodes(cls, value: str) -> str:
        AllowedNodes(value)
        if not value.strip(" ,"):
            raise ValueError("must name at least one node")
        return value


class PrivacySettings(Group):
    """What keeps callers' numbers apart from who may read Kafka; the same for all agents and for who audits."""

    table: ClassVar[str] = "privacy"

    caller_key: SecretStr | None = Field(
        None,
        description="Key of the hashes of callers' numbers, one line of 16 characters or more; asked for where"
        " CALLYARD_GATEWAY_CALLER_NUMBER is hashed. With another key, older hashes are no one's.",
    )

    @field_validator("caller_key")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(require_one_line(value).get_secret_value()) < LEAST_KEY_CHARACTERS:
            raise ValueError(f"must have {LEAST_KEY_CHARACTERS} characters or more")
        return value

    @property
    def key(self) -> str:
        """The key; empty where none is set."""
        return self.caller_key.get_secret_value() if self.caller_key is not None else ""

    def key_for(self, form: CallerForm) -> str:
        """The key, if there is one. Raises `SettingsError` where this form needs one and there is none."""
        if form is CallerForm.HASHED and not self.key:
            raise SettingsError([
                f"{self.variable('caller_key')} (or …_FILE) is not set: {GatewaySettings.variable('caller_number')} is"
                " hashed, and a hash needs a key"
            ])  # fmt: skip
        return self.key


class AmiSettings(Group):
    """The gateway's Asterisk Manager Interface."""

    table: ClassVar[str] = "ami"

    host: str = Field("127.0.0.1", description="Address of Asterisk's manager interface.")
    port: int = Field(5038, ge=1, le=65535, description="TCP port of Asterisk's manager interface.")
    username: str = Field("callyard", pattern=r"^[A-Za-z0-9._-]{1,64}$", description="Manager user (manager.conf).")
    secret: SecretStr = Field(description="The manager user's secret.")
    connect_timeout_seconds: float = Field(5, gt=0, le=60, description="Seconds to wait for connection and answers.")
    reconnect_max_seconds: float = Field(
        10, gt=0, le=300, description="Most seconds between two attempts to connect; they begin at a quarter second."
    )
    tls: bool = Field(False, description="Speak TLS with it, its certificate checked; needed where it isn't loopback.")
    tls_cafile: Path | None = Field(
        None, description="With TLS: CA certificates (PEM) that Asterisk's is checked against; empty: the system's."
    )
    tls_server_name: str = Field(
        "", pattern=HOST_NAME, description="With TLS: name that Asterisk's certificate must hold; empty: the host."
    )
    bind: str = Field(
        "",
        pattern=r"^[0-9A-Fa-f.:]*$",
        description="Address that Asterisk serves it on; empty: the host, if it is one.",
    )
    tls_server_certfile: str = Field(
        "", pattern=PATH, description="With TLS: Asterisk's own certificate for it (PEM), a path on the gateway."
    )
    tls_server_keyfile: str = Field("", pattern=PATH, description="With TLS: the key of that certificate (PEM).")
    tls_plain_port: int = Field(
        5037, ge=1, le=65535,
        description="With TLS: TCP port on loopback that Asterisk serves without TLS all the same; it has no switch for"
        " that.",
    )  # fmt: skip

    @field_validator("secret")
    @classmethod
    def _one_line(cls, value: SecretStr) -> SecretStr:
        return require_one_line(value)

    @property
    def serves_on(self) -> str:
        """The address that Asterisk serves the manager interface on."""
        return self.bind or {"localhost": "127.0.0.1"}.get(self.host, self.host)

    @property
    def is_loopback(self) -> bool:
        """Whether the manager interface can be reached from this machine only."""
        try:
            return ipaddress.ip_address(self.serves_on).is_loopback
        except ValueError:
            return False

"""Settings: every setting of every worker, in groups; read from the environment and an optional file.

A setting's environment variable is its group's prefix and its name in capitals (``CALLYARD_KAFKA_BOOTSTRAP_SERVERS``).
In the ``--config`` file (TOML) it stands under the group's table: ``[kafka] bootstrap_servers = "…"``. The environment
wins over the file. A secret can also come from a file named by ``…_FILE`` (its last newline is dropped).

`load` checks all groups that a worker needs and reports all problems at once, before anything connects. Nothing here
connects or starts anything. Each field's description gives unit and reason; ``docs/settings.md`` is made from them. The
module is long because it is the one list of all settings.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import socket
import sys
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)  # fmt: skip
from pydantic_core import PydanticUndefined

from callyard.dialogue_settings import DialogueSettings
from callyard.nodes import AllowedNodes
from callyard.numbers import LEAST_KEY_CHARACTERS
from callyard.records import CallerForm, GatewayId, NodeId, Source, split_sip_uri

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PREFIX = "CALLYARD_"
REPLAY_PREFIX = "replay-"
"""Begins the topic prefix of a Callyard that inputs are replayed into."""


class SettingsError(Exception):
    """Settings are missing or wrong. ``problems`` names each one by its variable and says what to do."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__("settings:\n" + "\n".join(f"  {problem}" for problem in self.problems))


_SERVER = re.compile(r"([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]):(?P<port>[0-9]{1,5})")


class Group(BaseModel):
    """A group of settings: one table of the file, one prefix of the environment."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)
    table: ClassVar[str]

    @classmethod
    def variable(cls, name: str) -> str:
        """The environment variable of one of this group's settings."""
        return f"{PREFIX}{cls.table.upper()}_{name.upper()}"


class SecurityProtocol(str, Enum):
    """How to speak to Kafka."""

    PLAINTEXT = "PLAINTEXT"
    SSL = "SSL"
    SASL_PLAINTEXT = "SASL_PLAINTEXT"
    SASL_SSL = "SASL_SSL"


SASL_PROTOCOLS = frozenset({SecurityProtocol.SASL_PLAINTEXT, SecurityProtocol.SASL_SSL})
SSL_PROTOCOLS = frozenset({SecurityProtocol.SSL, SecurityProtocol.SASL_SSL})


class KafkaSettings(Group):
    """Which Kafka, and how the topics are laid out."""

    table: ClassVar[str] = "kafka"

    bootstrap_servers: str = Field("127.0.0.1:9092", description="Brokers as host:port, comma-separated.")
    security_protocol: SecurityProtocol = Field(
        SecurityProtocol.PLAINTEXT, description="PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL."
    )
    ssl_cafile: Path | None = Field(None, description="CA certificates (PEM) that the brokers are checked against.")
    ssl_certfile: Path | None = Field(None, description="This client's certificate (PEM), for mutual TLS.")
    ssl_keyfile: Path | None = Field(None, description="This client's key (PEM), for mutual TLS.")
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "SCRAM-SHA-512", description="With SASL_…: the mechanism."
    )
    sasl_username: str | None = Field(None, description="With SASL_…: the user name.")
    sasl_password: SecretStr | None = Field(None, description="With SASL_…: the password.")
    topic_prefix: str = Field(
        "callyard", pattern=r"^[a-z][a-z0-9-]{0,30}$",
        description="First part of all topic and consumer group names. One that begins with replay- is marked for"
        " replays: there a header tells when an input was first written, and recorded deadlines are the only ones.",
    )  # fmt: skip
    partitions: int = Field(
        12, ge=1, le=1000, description="Partitions of the topics keyed by conference: the most stream workers of use."
    )
    replication_factor: int = Field(1, ge=1, le=7, description="Replicas of each topic; 3 in production.")
    retention_days: float = Field(
        30, gt=0, le=3650,
        description="Days that inputs, journal and rejected records are kept for audits, where their own setting says"
        " nothing else.",
    )  # fmt: skip
    registrations_retention_days: float | None = Field(
        None, gt=0, le=3650, description="Days that registrations are kept; default: retention_days."
    )
    calls_retention_days: float | None = Field(
        None, gt=0, le=3650, description="Days that the gateways' records of calls are kept; default: retention_days."
    )
    journal_retention_days: float | None = Field(
        None, gt=0, le=3650, description="Days that the journal is kept; default: retention_days."
    )
    rejected_retention_days: float | None = Field(
        None, gt=0, le=3650, description="Days that rejected records are kept; default: retention_days."
    )
    request_timeout_ms: int = Field(
        10_000, ge=500, le=120_000, description="Milliseconds until a request to Kafka that got no answer has failed."
    )

    @property
    def replayed(self) -> bool:
        """Whether these topics are marked for replays: there, and nowhere else, a header tells an input's time."""
        return self.topic_prefix.startswith(REPLAY_PREFIX)

    def retention_days_of(self, topic: Literal["registrations", "calls", "journal", "rejected"]) -> float:
        """Days that this topic is kept."""
        own: float | None = getattr(self, f"{topic}_retention_days")
        return self.retention_days if own is None else own

    @field_validator("bootstrap_servers")
    @classmethod
    def _servers(cls, value: str) -> str:
        for server in value.split(","):
            found = _SERVER.fullmatch(server.strip())
            if found is None or not 0 < int(found["port"]) < 65536:
                raise ValueError(f"{server.strip()!r} is not host:port")
        return value

    @model_validator(mode="after")
    def _sasl_is_complete(self) -> KafkaSettings:
        if self.security_protocol in SASL_PROTOCOLS and (not self.sasl_username or self.sasl_password is None):
            raise ValueError(
                f"{self.variable('security_protocol')} is {self.security_protocol.value}:"
                f" {self.variable('sasl_username')} and {self.variable('sasl_password')} (or …_FILE) must be set, too"
            )
        return self


class LogSettings(Group):
    """What the workers say, and how."""

    table: ClassVar[str] = "log"

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is written.")
    format: Literal["auto", "json", "text"] = Field(
        "auto", description="json: one object a line; text: for people; auto: text on a terminal, json elsewhere."
    )


class HealthSettings(Group):
    """Where a worker answers ``/healthz``, ``/readyz`` and ``/metrics`` (Prometheus), without TLS or passwords."""

    table: ClassVar[str] = "health"

    host: str = Field("127.0.0.1", description="Address that a worker's health and metrics are served on.")
    port: int = Field(
        0, ge=0, le=65533,
        description="TCP port that a worker's health and metrics are served on (0: not served); workers of one machine"
        " need different ones: by custom stream 9101, agent 9102, hook 9103. `callyard up` takes this one for the"
        " stream, the next for the agent, and the one after that for the hook.",
    )  # fmt: skip
    grace_seconds: float = Field(
        12, ge=1, le=300,
        description="Seconds from SIGTERM after which a worker ends even if it isn't done (Kafka may be away); less"
        " than its supervisor's own grace period. What it was about is gone on with by the next one.",
    )  # fmt: skip


class NodeSettings(Group):
    """This BigBlueButton node, as the gateways reach it."""

    table: ClassVar[str] = "node"

    id: NodeId = Field(
        default_factory=lambda: socket.gethostname().split(".")[0], description="The node's id; default: its host name."
    )
    sip_uri: str = Field(
        description="SIP URI of a conference here, as a template: sip:{conference}@192.0.2.7:5060;transport=tcp."
    )
    snapshot_seconds: float = Field(
        30, gt=0, le=3600, description="Seconds between two reconciliations with FreeSWITCH's list of conferences."
    )
    renew_seconds: float = Field(
        10, gt=0, le=3600, description="Seconds between two renewals of a registration; a third of its lease."
    )
    signing_key: SecretStr | None = Field(
        None,
        description="This node's private key (PEM; 'callyard keys' makes one), by which its registrations are signed.",
    )
    exclude: str = Field(
        "99999", pattern=r"^[0-9*?, ]*$",
        description="Conference numbers that are never registered, comma-separated (99999: BBB's test bridge); * stands"
        " for any digits, ? for one.",
    )  # fmt: skip
    sources: str = Field(
        "freeswitch", pattern=r"^(freeswitch|bigbluebutton|freeswitch, ?bigbluebutton|bigbluebutton, ?freeswitch)$",
        description="Who says which conferences run: freeswitch (a conference is there once somebody has joined audio),"
        " bigbluebutton (as long as the meeting runs), or both, comma-separated.",
    )  # fmt: skip
    meeting_sip_uri: str = Field(
        "", description="SIP URI of a meeting that source bigbluebutton knows, as a template (livekit-sip listens"
        " elsewhere than FreeSWITCH); empty: as CALLYARD_NODE_SIP_URI, and reachable only while FreeSWITCH is.",
    )  # fmt: skip
    vouch_seconds: int = Field(
        60, ge=3, le=3600,
        description="Seconds that FreeSWITCH lets callers into a meeting without a conference after the hook last"
        " vouched for its number; renewed after a third of it.",
    )  # fmt: skip

    @field_validator("sip_uri", "meeting_sip_uri")
    @classmethod
    def _template(cls, value: str, info: ValidationInfo) -> str:
        if not value and info.field_name == "meeting_sip_uri":
            return value
        if value.count("{conference}") != 1 or "{" in value.replace("{conference}", "") or value.endswith("\n"):
            raise ValueError("must hold {conference} exactly once and no other brace")
        try:
            split_sip_uri(value.replace("{conference}", "49123"))
        except ValueError as error:
            raise ValueError(str(error)) from None
        return value

    def uri_of(self, conference: str, source: Source = Source.FREESWITCH) -> str:
        """The SIP URI under which gateways reach a conference (its number) that this source knows."""
        template = self.meeting_sip_uri if source is Source.BIGBLUEBUTTON and self.meeting_sip_uri else self.sip_uri
        return template.replace("{conference}", conference)

    @property
    def excluded(self) -> re.Pattern[str]:
        """Matches whole the conference numbers that are never registered."""
        wanted = [number.strip() for number in self.exclude.split(",") if number.strip()]
        return re.compile("|".join(number.replace("*", "[0-9]*").replace("?", "[0-9]") for number in wanted) or "(?!)")

    @property
    def used_sources(self) -> frozenset[Source]:
        """The sources that are on."""
        return frozenset(Source(name.strip()) for name in self.sources.split(","))


_PATH = r"^(/[A-Za-z0-9_./@+-]+)?$"
_HOST_NAME = r"^[A-Za-z0-9.:-]*$"


def _require_one_line(secret: SecretStr) -> SecretStr:
    # A line break in it would begin another command.
    if not secret.get_secret_value() or any(c in secret.get_secret_value() for c in "\r\n\0"):
        raise ValueError("must be one line of text")
    return secret


class EslSettings(Group):
    """The node's FreeSWITCH event socket."""

    table: ClassVar[str] = "esl"

    host: str = Field("127.0.0.1", description="Address of FreeSWITCH's event socket.")
    port: int = Field(8021, ge=1, le=65535, description="TCP port of FreeSWITCH's event socket.")
    password: SecretStr = Field(description="Password of the event socket (event_socket.conf.xml).")
    event_format: Literal["plain", "json"] = Field("plain", description="Format in which FreeSWITCH sends its events.")
    connect_timeout_seconds: float = Field(5, gt=0, le=60, description="Seconds to wait for connection and answers.")
    reconnect_max_seconds: float = Field(
        10, gt=0, le=300, description="Most seconds between two attempts to connect; they begin at a quarter second."
    )

    @field_validator("password")
    @classmethod
    def _one_line(cls, value: SecretStr) -> SecretStr:
        return _require_one_line(value)


class FreeswitchSettings(Group):
    """The node's FreeSWITCH and BigBlueButton, as ``callyard render freeswitch`` configures them for the gateways."""

    table: ClassVar[str] = "freeswitch"

    gateways: str = Field(
        pattern=r"^[0-9A-Fa-f.:/]+(,[0-9A-Fa-f.:/]+)*$",
        description="Addresses or networks of the gateways, comma-separated: their calls alone are let in.",
    )  # fmt: skip
    caller: Literal["masked", "full", "none"] = Field(
        "masked",
        description="How a caller is shown in the meeting: the number with its last three digits as x, in full, or not"
        " at all. What the gateway has masked stays masked.",
    )  # fmt: skip
    unknown_caller: str = Field(
        "unknown", pattern=r"^[A-Za-z0-9_-]{1,40}$",
        description="Name shown where there is no number to show; BigBlueButton rejects an empty or anonymous one.",
    )  # fmt: skip
    media_timeout_seconds: int = Field(
        120, ge=0, le=3600,
        description="Seconds without any audio from a gateway after which its caller leaves the conference; longer than"
        " the gateway's own (CALLYARD_ASTERISK_RTP_TIMEOUT_SECONDS); 0: as FreeSWITCH is configured.",
    )  # fmt: skip
    dial_number: str = Field(
        "", max_length=60,
        description="Telephone number that BigBlueButton shows; empty: its properties are left alone.",
    )  # fmt: skip
    welcome_footer: str = Field(
        "<br><br>To join this meeting by phone, dial:<br>  %%DIALNUM%%<br>Then enter %%CONFNUM%%# as the conference"
        " PIN number.",
        max_length=2000,
        description="Footer of BigBlueButton's welcome message where a dial number is set; it puts in %%DIALNUM%% and"
        " %%CONFNUM%%. Empty: left alone.",
    )  # fmt: skip

    @field_validator("gateways")
    @classmethod
    def _networks(cls, value: str) -> str:
        networks = [ipaddress.ip_network(network) for network in value.split(",")]
        if any(network.prefixlen == 0 for network in networks):
            raise ValueError("must not be every address: whoever is let in can join any conference")
        if len(networks) > MOST_NETWORKS:
            raise ValueError(f"must not be more than {MOST_NETWORKS}: FreeSWITCH reads no more in one list")
        return ",".join(str(network) for network in networks)

    @field_validator("unknown_caller")
    @classmethod
    def _not_anonymous(cls, value: str) -> str:
        if value.lower() == "anonymous":
            raise ValueError("must not be 'anonymous'")
        return value

    @field_validator("dial_number", "welcome_footer")
    @classmethod
    def _one_line(cls, value: str) -> str:
        if value != value.strip() or any(ord(c) < 0x20 or ord(c) == 0x7F for c in value):
            raise ValueError("must be one line without blanks at its ends")
        return value

    @field_validator("welcome_footer")
    @classmethod
    def _names_both(cls, value: str) -> str:
        if value and not ("%%DIALNUM%%" in value and "%%CONFNUM%%" in value):
            raise ValueError("must hold %%DIALNUM%% and %%CONFNUM%%")
        return value


MOST_NETWORKS = 100
"""FreeSWITCH's limit for a list of networks that is written out (switch_core.c, switch_check_network_list_ip…)."""


class BigBlueButtonSettings(Group):
    """The node's BigBlueButton, where it is a source (``CALLYARD_NODE_SOURCES``)."""

    table: ClassVar[str] = "bigbluebutton"

    api_url: str = Field(
        "http://127.0.0.1:8090/bigbluebutton/api", pattern=r"^https?://[A-Za-z0-9.:\[\]-]+(/[A-Za-z0-9._~/-]*)?$",
        description="BigBlueButton's API; the default is bbb-web itself, without the web server before it.",
    )  # fmt: skip
    secret: SecretStr = Field(description="The API's shared secret (bbb-conf --secret).")
    redis_host: str = Field("127.0.0.1", description="Address of BigBlueButton's Redis.")
    redis_port: int = Field(6379, ge=1, le=65535, description="TCP port of BigBlueButton's Redis.")
    redis_password: SecretStr | None = Field(None, description="Password of Redis; BigBlueButton sets none.")
    timeout_seconds: float = Field(5, gt=0, le=60, description="Seconds to wait for connections and answers.")
    reconnect_max_seconds: float = Field(
        10, gt=0, le=300,
        description="Most seconds between two attempts to reach Redis or the API; they begin at a quarter second.",
    )  # fmt: skip

    @field_validator("secret", "redis_password")
    @classmethod
    def _one_line(cls, value: SecretStr | None) -> SecretStr | None:
        return None if value is None else _require_one_line(value)

    @field_validator("api_url")
    @classmethod
    def _url(cls, value: str) -> str:
        parts = urlsplit(value)
        if not parts.hostname or (parts.port is not None and not 0 < parts.port < 65536):
            raise ValueError("is not a URL of the form http://127.0.0.1:8090/bigbluebutton/api")
        return value.rstrip("/")


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
        if value is not None and len(_require_one_line(value).get_secret_value()) < LEAST_KEY_CHARACTERS:
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
        "", pattern=_HOST_NAME, description="With TLS: name that Asterisk's certificate must hold; empty: the host."
    )
    bind: str = Field(
        "",
        pattern=r"^[0-9A-Fa-f.:]*$",
        description="Address that Asterisk serves it on; empty: the host, if it is one.",
    )
    tls_server_certfile: str = Field(
        "", pattern=_PATH, description="With TLS: Asterisk's own certificate for it (PEM), a path on the gateway."
    )
    tls_server_keyfile: str = Field("", pattern=_PATH, description="With TLS: the key of that certificate (PEM).")
    tls_plain_port: int = Field(
        5037, ge=1, le=65535,
        description="With TLS: TCP port on loopback that Asterisk serves without TLS all the same; it has no switch for"
        " that.",
    )  # fmt: skip

    @field_validator("secret")
    @classmethod
    def _one_line(cls, value: SecretStr) -> SecretStr:
        return _require_one_line(value)

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


class SipSettings(Group):
    """How the gateway speaks SIP: its transports, its trunk, the nodes; as ``callyard render asterisk`` writes it."""

    table: ClassVar[str] = "sip"

    transports: str = Field(
        "udp,tcp", pattern=r"^(udp|tcp|tls)(,(udp|tcp|tls))*$",
        description="Transports, comma-separated: udp, tcp, tls. Trunk and nodes use those that are here.",
    )  # fmt: skip
    tls_port: int = Field(5061, ge=1, le=65535, description="TCP port that SIP over TLS is served on.")
    tls_certfile: str = Field(
        "",
        pattern=_PATH,
        description="With tls: the gateway's certificate, with the chain (PEM), a path on the gateway.",
    )
    tls_keyfile: str = Field("", pattern=_PATH, description="With tls: the key of that certificate (PEM).")
    tls_cafile: str = Field(
        "/etc/ssl/certs/ca-certificates.crt", pattern=_PATH,
        description="With tls: CA certificates (PEM) that those of nodes and of the provider are checked against.",
    )  # fmt: skip
    trunk_kind: Literal["address", "registration", "pbx"] = Field(
        "address",
        description="The trunk: known by its addresses; at which this gateway registers, too; or a PBX, which may have"
        " to give a password. Calls are taken from CALLYARD_ASTERISK_TRUNK_NETWORKS only, whichever it is.",
    )  # fmt: skip
    trunk_transport: Literal["any", "udp", "tcp", "tls"] = Field(
        "any", description="Transport to register by; with tls, calls of the trunk that come otherwise are refused."
    )
    trunk_server: str = Field(
        "", pattern=r"^([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])?(:[0-9]{1,5})?$",
        description="With registration: the provider's registrar, host or host:port.",
    )  # fmt: skip
    trunk_username: str = Field(
        "", pattern=r"^[A-Za-z0-9._+-]{0,64}$",
        description="User name at the registrar; of a PBX: the one that it has to give.",
    )  # fmt: skip
    trunk_password: SecretStr | None = Field(
        None, description="Its password. A PBX without one is known by its address alone."
    )
    trunk_expiration_seconds: int = Field(
        300, ge=60, le=86400, description="With registration: seconds that it holds; it is renewed before."
    )
    trunk_retry_seconds: int = Field(
        60, ge=5, le=3600, description="With registration: seconds until one that failed is tried again, for ever."
    )
    trunk_srtp: Literal["off", "optional", "required"] = Field(
        "off", description="Audio of the trunk encrypted, keys by SDES: not, where the other side wants it, or always."
    )
    node_srtp: Literal["off", "optional", "required"] = Field(
        "off", description="The same for audio to nodes whose SIP URI says transport=tls; to others it never is."
    )

    @field_validator("trunk_password")
    @classmethod
    def _one_line(cls, value: SecretStr | None) -> SecretStr | None:
        return None if value is None else _require_one_line(value)

    @model_validator(mode="after")
    def _is_complete(self) -> SipSettings:
        used = self.transports.split(",")
        wanted = {
            "registration": {"trunk_server", "trunk_username", "trunk_password"},
            "pbx": {"trunk_username"} if self.trunk_password is not None else set(),
        }.get(self.trunk_kind, set())
        if "tls" in used:
            wanted |= {"tls_certfile", "tls_keyfile", "tls_cafile"}
        missing = [self.variable(name) for name in sorted(wanted) if not getattr(self, name)]
        if missing:
            raise ValueError(
                f"{self.variable('trunk_kind')} {self.trunk_kind} and {self.variable('transports')} {self.transports}"
                f" need {', '.join(missing)}"
            )
        if self.trunk_transport not in {"any", *used}:
            raise ValueError(f"{self.variable('trunk_transport')} is none of {self.variable('transports')}")
        for name, safe in (("trunk_srtp", self.trunk_transport == "tls"), ("node_srtp", "tls" in used)):
            if getattr(self, name) != "off" and not safe:
                needed = "trunk_transport" if name == "trunk_srtp" else "transports"
                raise ValueError(
                    f"{self.variable(name)}: keys (SDES) travel in SIP, so {self.variable(needed)} must be tls, too"
                )
        return self


_NETWORKS = r"^[0-9A-Fa-f.:/]+(,[0-9A-Fa-f.:/]+)*$"


class AsteriskSettings(DialogueSettings, Group):
    """The gateway's Asterisk, as ``callyard render asterisk`` configures it (its manager user: group ``ami``)."""

    table: ClassVar[str] = "asterisk"

    base_directory: str = Field(
        "", pattern=r"^(/[A-Za-z0-9_./-]+)?$",
        description="Directory that holds etc, run, log, spool and lib of a separate Asterisk; empty: the system's.",
    )  # fmt: skip
    sip_host: str = Field("0.0.0.0", pattern=r"^[0-9A-Fa-f.:]+$", description="Address that SIP is served on.")  # noqa: S104 - it is there to be called; trunk_networks says by whom
    sip_port: int = Field(5060, ge=1, le=65535, description="UDP and TCP port that SIP is served on.")
    media_address: str = Field(
        "", pattern=r"^[0-9A-Fa-f.:]*$",
        description="Address that callers and nodes send their audio to; empty: the one of the outgoing interface.",
    )  # fmt: skip
    trunk_networks: str = Field(
        "127.0.0.1", pattern=_NETWORKS,
        description="Addresses or networks, comma-separated, whose calls are taken (the telephone provider's).",
    )  # fmt: skip
    rtp_first_port: int = Field(
        10_000, ge=1024, le=65534, description="First UDP port for audio; two for each call leg."
    )
    rtp_last_port: int = Field(20_000, ge=1025, le=65535, description="Last UDP port for audio.")
    rtp_timeout_seconds: int = Field(
        60, ge=0, le=3600,
        description="Seconds without any audio from a caller after which the call is hung up, for those that vanished;"
        " 0: never.",
    )  # fmt: skip
    node_rtp_timeout_seconds: int = Field(
        20, ge=0, le=3600,
        description="Seconds without any audio from a node after which it is lost to the caller, who then follows the"
        " meeting; 0: never.",
    )  # fmt: skip
    codecs: str = Field(
        "ulaw,alaw", pattern=r"^[a-z0-9]+(,[a-z0-9]+)*$", description="Codecs offered and taken, the preferred first."
    )
    dtmf_mode: Literal["rfc4733", "info", "auto", "auto_info", "inband"] = Field(
        "auto_info", description="How callers' digits come; auto_info: RFC 4733 where offered, else SIP INFO."
    )
    least_digits: int = Field(5, ge=5, le=11, description="Least digits of a conference number.")
    most_digits: int = Field(11, ge=5, le=11, description="Most digits of a conference number.")
    tries: int = Field(3, ge=1, le=20, description="Times that a caller is asked for the conference number.")
    digit_seconds: int = Field(10, ge=1, le=60, description="Seconds to wait for the first, and for each next, digit.")
    lot_size: int = Field(
        1000, ge=1, le=100_000,
        description="Most callers that wait at the same time. When a conference ends, those who talked in it wait, too:"
        " not less than the calls that the trunk allows.",
    )  # fmt: skip
    longest_wait_seconds: int = Field(
        3600, ge=1, le=86400, description="Seconds that a caller waits for one conference before being told to give up."
    )
    dial_seconds: int = Field(
        6, ge=1, le=60, description="Seconds until a dial to a node that doesn't answer has failed."
    )
    follow_ended_seconds: int = Field(
        60, ge=0, le=86400,
        description="Seconds that a caller whose conference has ended waits for it to begin again, on whatever node;"
        " 30 or more, so that the stream can tell who was removed; 0: the call ends with it.",
    )  # fmt: skip
    follow_lost_seconds: int = Field(
        600, ge=0, le=86400,
        description="Seconds that a caller whose node was lost (no audio, an abnormal cause) waits to be put through"
        " again; 0: the call ends with it.",
    )  # fmt: skip
    while_dialing: Literal["music", "ringing"] = Field("music", description="What a caller hears while being dialled.")
    language: str = Field("en", pattern=r"^[A-Za-z]{2,3}(_[A-Za-z0-9]{1,8})*$", description="Language of the prompts.")
    music_directory: str = Field(
        "moh", pattern=r"^[A-Za-z0-9_./-]+$",
        description="Directory of the music for waiting callers; relative to Asterisk's data directory, or absolute.",
    )  # fmt: skip
    manager_networks: str = Field(
        "127.0.0.1", pattern=_NETWORKS, description="Addresses or networks that the manager user may connect from."
    )

    @field_validator("sip_host", "media_address")
    @classmethod
    def _address(cls, value: str) -> str:
        return str(ipaddress.ip_address(value)) if value else value

    @field_validator("trunk_networks", "manager_networks")
    @classmethod
    def _networks(cls, value: str) -> str:
        return ",".join(str(ipaddress.ip_network(network)) for network in value.split(","))

    @field_validator("rtp_last_port", "most_digits")
    @classmethod
    def _not_below(cls, value: int, info: ValidationInfo) -> int:
        least = {"rtp_last_port": "rtp_first_port", "most_digits": "least_digits"}[str(info.field_name)]
        if least in info.data and value < info.data[least]:
            raise ValueError(f"must not be less than {cls.variable(least)}")
        return value


class StreamSettings(Group):
    """How a stream worker runs (what it decides by is the group ``policy``)."""

    table: ClassVar[str] = "stream"

    session_seconds: float = Field(
        6, ge=1, le=60, description="Seconds without a heartbeat after which another worker takes over."
    )
    group_limit: int = Field(500, ge=1, le=5000, description="Most inputs that are decided and written as one batch.")
    tick_seconds: float = Field(0.25, gt=0, le=10, description="Seconds between two looks at which deadlines are due.")
    snapshot_seconds: float = Field(
        3600, ge=10, le=86400 * 7,
        description="Seconds after which a desk is put whole into the journal before it changes again, so that a past"
        " moment is restored without what was before; the journal is kept at least twice as long.",
    )  # fmt: skip


class PolicySettings(Group):
    """All that decides, beside the events. Journalled whole; the same for every worker."""

    table: ClassVar[str] = "policy"

    registration_lease_seconds: float = Field(
        30, ge=1, le=3600, description="Seconds that a registration holds without renewal (the hook renews every 10)."
    )
    call_lease_seconds: float = Field(
        180,
        ge=3,
        le=86400,
        description="Seconds that a call is believed alive without renewal (agents renew every 60).",
    )
    instruction_deadline_seconds: float = Field(
        10, ge=1, le=300,
        description="Seconds until an instruction without an outcome is issued again; longer than the dial's time-out.",
    )  # fmt: skip
    attempts: int = Field(
        5, ge=1, le=100,
        description="Failed dials of a stay to one registration after which the next live one has its turn; after the"
        " last one the caller is told.",
    )  # fmt: skip
    after_attempts: Literal["wait", "end"] = Field(
        "wait",
        description="What follows when a caller was told that the conference can't be reached: wait (and be put through"
        " once it can), or the end of the call.",
    )  # fmt: skip
    tell_deadline_seconds: float = Field(
        30, ge=1, le=300,
        description="Seconds until an instruction to tell a caller something is issued again if it has had no outcome;"
        " longer than the announcement.",
    )  # fmt: skip
    kick_seconds: float = Field(
        5, ge=0, le=60,
        description="Seconds after a node has hung up as usual: if the registration ends within them, the meeting is"
        " over and the caller follows it; if it is renewed after them, the caller was removed and isn't put back in.",
    )  # fmt: skip
    short_talk_seconds: float = Field(
        60, ge=0, le=3600,
        description="A talk that was lost before it was as long isn't put through again at once, but after a pause as"
        " after a failed dial; more than the time without audio after which a node counts as lost.",
    )  # fmt: skip
    backoff_seconds: float = Field(
        1, gt=0, le=60, description="Seconds before a failed dial is tried again; doubles with each failure."
    )
    backoff_max_seconds: float = Field(15, gt=0, le=600, description="Most seconds before a failed dial's next try.")
    ended_retention_seconds: float = Field(
        3600, ge=60, le=86400 * 30, description="Seconds that an ended registration or stay is remembered as ended."
    )
    stub_retention_seconds: float = Field(
        86400 * 7, ge=60, le=86400 * 365, description="Seconds that an ended desk's version and hash are kept."
    )
    fan_out: int = Field(200, ge=1, le=500, description="Most callers that one decision concerns; the rest follow.")
    allowed_nodes: str = Field(
        "", description="Hosts that callers may be sent to (names, addresses or networks, comma-separated); empty: any."
    )
    nodes: Path | None = Field(
        None,
        description="File of the nodes' public keys and hosts, a line each ('callyard keys' prints it). With it, only"
        " registrations that are signed by their own node count; without it, any does.",
    )
    signature_seconds: float = Field(
        120, ge=5, le=3600,
        description="Seconds by which a signed registration's own time may differ from the broker's; what is older is"
        " refused as expired. More than the nodes' clocks differ, and than Kafka's short outages take.",
    )  # fmt: skip

    @field_validator("allowed_nodes")
    @classmethod
    def _nodes(cls, value: str) -> str:
        AllowedNodes(value)
        return value


class AuditSettings(Group):
    """Keys of the journal's signed checkpoints (``callyard audit checkpoint`` and ``verify``)."""

    table: ClassVar[str] = "audit"

    signing_key: SecretStr | None = Field(
        None, description="Private Ed25519 key (PEM) that checkpoints are signed by; only where they are written."
    )
    verify_key: SecretStr | None = Field(
        None, description="Public Ed25519 key (PEM) that checkpoints are checked by; default: that of the private one."
    )


G = TypeVar("G", bound=Group)
GROUPS: tuple[type[Group], ...] = (
    KafkaSettings, LogSettings, HealthSettings, NodeSettings, EslSettings, BigBlueButtonSettings, FreeswitchSettings,
    GatewaySettings, PrivacySettings, AmiSettings, SipSettings, AsteriskSettings, StreamSettings, PolicySettings,
    AuditSettings,
)  # fmt: skip


class Loaded:
    """Settings that were read and checked: ``loaded[KafkaSettings].partitions``."""

    def __init__(self, groups: Mapping[type[Group], Group]) -> None:
        self._groups = dict(groups)

    def __getitem__(self, group: type[G]) -> G:
        found = self._groups[group]
        assert isinstance(found, group)  # noqa: S101 - holds by construction; tells the type checker
        return found


def load(
    *groups: type[Group], config: Path | None = None, environment: Mapping[str, str] | None = None
) -> Loaded:  # fmt: skip
    """Read and check these groups. Raises `SettingsError` with all problems of all of them."""
    env = os.environ if environment is None else environment
    problems: list[str] = []
    tables = _read_file(config, problems)
    problems.extend(_unknown_variables(env))
    loaded: dict[type[Group], Group] = {}
    for group in groups:
        values = dict(tables.get(group.table, {}))
        values.update(_from_environment(group, env, problems))
        try:
            loaded[group] = group.model_validate(values)
        except ValidationError as error:
            found = error.errors(include_url=False, include_input=False, include_context=False)
            problems.extend(_explain(group, problem) for problem in found)
    if problems:
        raise SettingsError(problems)
    return Loaded(loaded)


def given(*groups: type[Group], config: Path | None = None, environment: Mapping[str, str] | None = None) -> bool:
    """Whether any setting of these groups was set at all, rightly or not, in the environment or in the file."""
    env = os.environ if environment is None else environment
    tables = _read_file(config, [])
    return any(tables.get(group.table) for group in groups) or any(
        name in env for name, group in variables().items() if group in groups
    )


def _explain(group: type[Group], problem: Any) -> str:
    if not problem["loc"]:  # what several settings together get wrong
        return str(problem["msg"]).removeprefix("Value error, ")
    name = str(problem["loc"][0])
    if problem["type"] == "missing":
        return f"{group.variable(name)} is not set: {group.model_fields[name].description}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{group.variable(name)}: {message}. It means: {group.model_fields[name].description}"


def _read_file(config: Path | None, problems: list[str]) -> dict[str, dict[str, Any]]:
    if config is None:
        return {}
    try:
        content = tomllib.loads(config.read_text(encoding="utf-8"))
    except OSError as error:
        problems.append(f"--config {config}: {error.strerror}")
        return {}
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        problems.append(f"--config {config} is not TOML: {error}")
        return {}
    known = {group.table: group for group in GROUPS}
    tables: dict[str, dict[str, Any]] = {}
    for table, values in content.items():
        if table not in known or not isinstance(values, dict):
            problems.append(f"--config {config}: [{table}] is none of {', '.join(known)}")
            continue
        fields = known[table].model_fields
        problems.extend(
            f"--config {config}: [{table}] {name} is unknown{_near(name, fields)}"
            for name in values
            if name not in fields
        )
        tables[table] = {name: value for name, value in values.items() if name in fields}
    return tables


def _from_environment(group: type[Group], env: Mapping[str, str], problems: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, field in group.model_fields.items():
        variable = group.variable(name)
        if variable in env:
            values[name] = env[variable]
        if not _is_secret(field.annotation) or f"{variable}_FILE" not in env:
            continue
        path = Path(env[f"{variable}_FILE"])
        if variable in env:
            problems.append(f"{variable} and {variable}_FILE are both set: unset one")
        try:
            values[name] = path.read_text(encoding="utf-8").removesuffix("\n")
        except (OSError, UnicodeDecodeError) as error:
            problems.append(f"{variable}_FILE: cannot read {path}: {error}")
    return values


def _is_secret(annotation: Any) -> bool:
    return annotation is SecretStr or SecretStr in getattr(annotation, "__args__", ())


def variables() -> dict[str, type[Group]]:
    """Every environment variable that is a setting, with its group."""
    found: dict[str, type[Group]] = {}
    for group in GROUPS:
        for name, field in group.model_fields.items():
            found[group.variable(name)] = group
            if _is_secret(field.annotation):
                found[f"{group.variable(name)}_FILE"] = group
    return found


def _unknown_variables(env: Mapping[str, str]) -> list[str]:
    # A misspelt variable would be silence and a default: the worst way to learn of it.
    known = variables()
    return [
        f"{name} is no setting{_near(name, known)}"
        for name in sorted(env)
        if name.startswith(PREFIX)
        and name not in known
        and name not in _NOT_SETTINGS
        and not _SERVICE_LINK.search(name)
    ]


_NOT_SETTINGS = frozenset({"CALLYARD_CACHE"})
"""Variables of the same prefix that the command line or the Makefile read."""

_SERVICE_LINK = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP)(_\w+)?)?)$")
"""What Kubernetes puts into the environment for a service of a like name; not a misspelling."""


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def reference() -> list[tuple[str, str, str, str]]:
    """All settings as rows for the reference page: variable, default, description, group's summary."""
    rows = []
    for group in GROUPS:
        for name, field in group.model_fields.items():
            if field.default is not PydanticUndefined:
                default = field.default.value if isinstance(field.default, Enum) else field.default
                shown = "" if default is None else str(default)
            else:
                shown = "host name" if field.default_factory is not None else "required"
            rows.append((group.variable(name), shown, field.description or "", (group.__doc__ or "").strip()))
    return rows

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

from callyard.numbers import LEAST_KEY_CHARACTERS
from callyard.records import CallerForm, GatewayId, NodeId, split_sip_uri

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PREFIX = "CALLYARD_"


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
        "callyard", pattern=r"^[a-z][a-z0-9-]{0,30}$", description="First part of all topic and consumer group names."
    )
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


class MetricsSettings(Group):
    """Where Prometheus may read a worker's counters."""

    table: ClassVar[str] = "metrics"

    host: str = Field("127.0.0.1", description="Address that the metrics are served on.")
    port: int = Field(0, ge=0, le=65535, description="TCP port that the metrics are served on; 0: not served.")


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
    exclude: str = Field(
        "99999", description="Conference numbers that are never registered, comma-separated (99999: BBB's echo test)."
    )

    @field_validator("sip_uri")
    @classmethod
    def _template(cls, value: str) -> str:
        if value.count("{conference}") != 1 or "{" in value.replace("{conference}", "") or value.endswith("\n"):
            raise ValueError("must hold {conference} exactly once and no other brace")
        try:
            split_sip_uri(value.replace("{conference}", "49123"))
        except ValueError as error:
            raise ValueError(str(error)) from None
        return value

    def uri_of(self, conference: str) -> str:
        """The SIP URI under which gateways reach a conference (its number) on this node."""
        return self.sip_uri.replace("{conference}", conference)

    @property
    def excluded(self) -> frozenset[str]:
        """The conference numbers that are never registered."""
        return frozenset(number.strip() for number in self.exclude.split(",") if number.strip())


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

    @field_validator("secret")
    @classmethod
    def _one_line(cls, value: SecretStr) -> SecretStr:
        return _require_one_line(value)


_NETWORKS = r"^[0-9A-Fa-f.:/]+(,[0-9A-Fa-f.:/]+)*$"
_PROMPT = r"^[A-Za-z0-9_./-]+(&[A-Za-z0-9_./-]+)*$"


class AsteriskSettings(Group):
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
    caller_id: Literal["masked", "full", "none"] = Field(
        "masked", description="How nodes see the caller's number: last three digits as x, in full, or not at all."
    )
    unknown_caller: str = Field(
        "unknown", pattern=r"^[A-Za-z0-9_-]{1,40}$",
        description="Caller id where there is no number to show; nodes reject an empty or anonymous one.",
    )  # fmt: skip
    language: str = Field("en", pattern=r"^[A-Za-z]{2,3}(_[A-Za-z0-9]{1,8})*$", description="Language of the prompts.")
    music_directory: str = Field(
        "moh", pattern=r"^[A-Za-z0-9_./-]+$",
        description="Directory of the music for waiting callers; relative to Asterisk's data directory, or absolute.",
    )  # fmt: skip
    prompt_number: str = Field("conf-getconfno", pattern=_PROMPT, description="Asks for the conference number and #.")
    prompt_wrong: str = Field("conf-invalid", pattern=_PROMPT, description="The number's form is wrong; asks again.")
    prompt_goodbye: str = Field("vm-goodbye", pattern=_PROMPT, description="After the last wrong number.")
    prompt_full: str = Field("tt-allbusy", pattern=_PROMPT, description="No place is left to wait at.")
    prompt_waited: str = Field(
        "please-try-call-later&vm-goodbye", pattern=_PROMPT, description="The longest wait is over."
    )
    prompt_unreachable: str = Field(
        "sorry-youre-having-problems&one-moment-please", pattern=_PROMPT,
        description="The conference runs but can't be reached; the caller waits on.",
    )  # fmt: skip
    prompt_given_up: str = Field(
        "sorry-youre-having-problems&please-try-call-later&vm-goodbye", pattern=_PROMPT,
        description="The conference runs but can't be reached; the call ends.",
    )  # fmt: skip
    prompt_removed: str = Field(
        "conf-kicked&vm-goodbye", pattern=_PROMPT, description="The caller was removed from the conference."
    )
    manager_networks: str = Field(
        "127.0.0.1", pattern=_NETWORKS, description="Addresses or networks that the manager user may connect from."
    )

    @field_validator(
        "base_directory", "music_directory", "prompt_number", "prompt_wrong", "prompt_goodbye", "prompt_full",
        "prompt_waited", "prompt_unreachable", "prompt_given_up", "prompt_removed",
    )  # fmt: skip
    @classmethod
    def _stays_inside(cls, value: str) -> str:
        if ".." in value:
            raise ValueError("must not hold '..'")
        return value

    @field_validator("unknown_caller")
    @classmethod
    def _not_anonymous(cls, value: str) -> str:
        if value.lower() == "anonymous":
            raise ValueError("must not be 'anonymous'")
        return value

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
        "", description="Hosts that callers may be sent to (names or addresses, comma-separated); empty: any."
    )


G = TypeVar("G", bound=Group)
GROUPS: tuple[type[Group], ...] = (
    KafkaSettings, LogSettings, MetricsSettings, NodeSettings, EslSettings,
    GatewaySettings, PrivacySettings, AmiSettings, AsteriskSettings, StreamSettings, PolicySettings,
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

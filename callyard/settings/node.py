"""A BigBlueButton node as its hook sees it: its name and SIP URI, FreeSWITCH's event socket, BigBlueButton's API."""

from __future__ import annotations

import re
import socket
from typing import ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationInfo, field_validator

from callyard.records import NodeId, Source, split_sip_uri
from callyard.settings.groups import Group, require_one_line


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
        return require_one_line(value)


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
        return None if value is None else require_one_line(value)

    @field_validator("api_url")
    @classmethod
    def _url(cls, value: str) -> str:
        parts = urlsplit(value)
        if not parts.hostname or (parts.port is not None and not 0 < parts.port < 65536):
            raise ValueError("is not a URL of the form http://127.0.0.1:8090/bigbluebutton/api")
        return value.rstrip("/")

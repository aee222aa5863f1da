"""A gateway's Asterisk as ``callyard render asterisk`` configures it (its dialogue: `callyard.settings.dialogue`)."""

from __future__ import annotations

import ipaddress
from typing import ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from callyard.settings.dialogue import DialogueSettings
from callyard.settings.groups import NETWORKS, Group


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
        "127.0.0.1", pattern=NETWORKS,
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
        "127.0.0.1", pattern=NETWORKS, description="Addresses or networks that the manager user may connect from."
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

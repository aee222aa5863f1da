"""A node's FreeSWITCH and BigBlueButton as ``callyard render freeswitch`` configures them."""

from __future__ import annotations

import ipaddress
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from callyard.settings.groups import Group

MOST_NETWORKS = 100
"""FreeSWITCH's limit for a list of networks that is written out (switch_core.c, switch_check_network_list_ip…)."""


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

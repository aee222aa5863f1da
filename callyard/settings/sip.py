"""How a gateway speaks SIP. What does not fit together (keys in the open, a trunk without its name) is refused here."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, SecretStr, field_validator, model_validator

from callyard.settings.groups import PATH, Group, require_one_line


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
        pattern=PATH,
        description="With tls: the gateway's certificate, with the chain (PEM), a path on the gateway.",
    )
    tls_keyfile: str = Field("", pattern=PATH, description="With tls: the key of that certificate (PEM).")
    tls_cafile: str = Field(
        "/etc/ssl/certs/ca-certificates.crt", pattern=PATH,
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
        return None if value is None else require_one_line(value)

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

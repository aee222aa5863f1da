"""Settings: every setting of every worker, in groups; read from the environment and an optional file.

A setting's environment variable is its group's prefix and its name in capitals (``CALLYARD_KAFKA_BOOTSTRAP_SERVERS``).
In the ``--config`` file (TOML) it stands under the group's table: ``[kafka] bootstrap_servers = "…"``. The environment
wins over the file. A secret can also come from a file named by ``…_FILE`` (its last newline is dropped).

`load` checks all groups that a worker needs and reports all problems at once, before anything connects. Nothing here
connects or starts anything. Each field's description gives unit and reason; ``docs/settings.md`` is made from them. All
that others use is imported from here, whichever module holds it.
"""

from __future__ import annotations

from callyard.settings.asterisk import AsteriskSettings
from callyard.settings.freeswitch import FreeswitchSettings
from callyard.settings.gateway import AmiSettings, GatewaySettings, PrivacySettings
from callyard.settings.groups import PREFIX, Group, SettingsError
from callyard.settings.kafka import REPLAY_PREFIX, SASL_PROTOCOLS, SSL_PROTOCOLS, KafkaSettings, SecurityProtocol
from callyard.settings.loading import GROUPS, Loaded, given, load, reference, variables
from callyard.settings.node import BigBlueButtonSettings, EslSettings, NodeSettings
from callyard.settings.sip import SipSettings
from callyard.settings.stream import AuditSettings, PolicySettings, StreamSettings
from callyard.settings.worker import HealthSettings, LogSettings

__all__ = [
    "PREFIX", "REPLAY_PREFIX", "SASL_PROTOCOLS", "SSL_PROTOCOLS", "SecurityProtocol",
    "Group", "GROUPS", "Loaded", "SettingsError", "given", "load", "reference", "variables",
    "KafkaSettings", "LogSettings", "HealthSettings", "NodeSettings", "EslSettings", "BigBlueButtonSettings",
    "FreeswitchSettings", "GatewaySettings", "PrivacySettings", "AmiSettings", "SipSettings", "AsteriskSettings",
    "StreamSettings", "PolicySettings", "AuditSettings",
]  # fmt: skip

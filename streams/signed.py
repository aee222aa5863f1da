"""Whether a registration may be believed: known node, its own key, its own hosts, fresh, and not said before. Pure.

Only where the policy names the nodes (`Policy.nodes`); without that, anybody who may write to the topic is believed.
What a node says of itself is proved, not that it is true: a node can claim a conference that it doesn't have.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from callyard.records import ConferenceRegistered, ConferenceUnregistered, split_sip_uri
from callyard.signing import NodeKey, is_signed_by, read_nodes
from streams.policy import Policy
from streams.rows import RegistrationRow


@lru_cache(maxsize=8)
def _known(nodes: tuple[str, ...]) -> Mapping[str, list[NodeKey]]:
    found: dict[str, list[NodeKey]] = {}
    for node in read_nodes("\n".join(nodes)):
        found.setdefault(node.node_id, []).append(node)
    return found


def refusal(  # noqa: PLR0911 - one line for each case
    policy: Policy, event: ConferenceRegistered | ConferenceUnregistered, row: RegistrationRow | None, broker_ms: int
) -> str | None:
    """Why this isn't believed, as a sentence; None where it is. ``broker_ms``: when the broker took it."""
    if not policy.nodes:
        return None
    keys = _known(policy.nodes).get(event.node_id)
    if keys is None:
        return f"node {event.node_id} is not in the file of nodes (CALLYARD_POLICY_NODES)"
    if event.signature is None:
        return f"it is not signed: node {event.node_id} needs CALLYARD_NODE_SIGNING_KEY"
    key = next((key for key in keys if key.key_id == event.key_id), None)
    if key is None:
        return f"it is signed by key {event.key_id}, which is none of node {event.node_id}"
    if not is_signed_by(event, key.public_key):
        return f"it is forged: its signature is not by the key of node {event.node_id}"
    apart = abs(broker_ms - event.sent_at_ms)
    if apart > policy.signature_ms:
        return f"it has expired: its time and the broker's are {apart / 1000:.0f} s apart"
    if row is not None and event.sender_sequence <= row.sequence:
        return f"it was said before: number {event.sender_sequence} came after {row.sequence}"
    if isinstance(event, ConferenceRegistered):
        host = split_sip_uri(event.sip_uri)[1]
        if host not in key.hosts:
            return f"host {host} is not among those of node {event.node_id}"
    return None

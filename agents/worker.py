"""The agent's composition root: one gateway, its mirror, its voice, and the instructions to it.

    Asterisk ─AMI─▶ gateway ─▶ mirror ─▶ publish ─▶ callyard.calls
    Asterisk ◀─AMI─ dials ◀─ callyard.dials

Ready (the event ``ready`` in the log) is who has a snapshot of Asterisk in its mirror and a place in its gateway's
group: as the owner with everything announced and the instructions read to their end, or standing by. Asterisk may come
up later than the agent; Kafka must be there, with its topics.
"""

from __future__ import annotations

import asyncio
import os

import structlog

from agents.ami import AmiRefusedError
from agents.dials import SESSION_MS, Dials
from agents.gateway import Gateway
from agents.mirror import Mirror
from agents.publish import Publisher
from agents.waiting import Waiting
from callyard import access, clients
from callyard import topics as all_topics
from callyard.broker_clock import BrokerClock
from callyard.errors import CommandError
from callyard.fence import Fence
from callyard.health import Health
from callyard.nodes import AllowedNodes
from callyard.notify import Notifier
from callyard.records import CallerForm
from callyard.settings import AmiSettings, GatewaySettings, KafkaSettings, Loaded, PrivacySettings
from callyard.tasks import Tasks

log = structlog.get_logger(__name__)

GROUPS = (KafkaSettings, GatewaySettings, AmiSettings, PrivacySettings)
"""The settings that an agent needs."""


async def work(settings: Loaded, stop: asyncio.Event, health: Health) -> None:
    """Run one gateway's agent until ``stop`` is set.

    Raises `SettingsError`, `callyard.topics.TopicsError` or `callyard.clients.KafkaUnreachableError` at the start, and
    `CommandError` when Asterisk refuses the manager user or isn't Asterisk.
    """
    kafka, gateway_settings = settings[KafkaSettings], settings[GatewaySettings]
    structlog.contextvars.bind_contextvars(gateway_id=gateway_settings.id)
    form = CallerForm(gateway_settings.caller_number)
    caller_key = settings[PrivacySettings].key_for(form)
    await access.check(kafka, "gateway", gateway_settings.id)
    async with clients.admin(kafka) as admin:
        await all_topics.check(admin, kafka)
    topics = all_topics.topics(kafka)
    mirror = Mirror(gateway_settings.id, form, caller_key)
    fence = Fence(SESSION_MS / 1000)
    clock = BrokerClock()
    publisher = Publisher(kafka, topics, mirror, fence, clock, client_id=f"agent-{gateway_settings.id}-{os.getpid()}")
    gateway = Gateway(settings[AmiSettings], gateway_settings, mirror, publisher)
    nodes = AllowedNodes(gateway_settings.nodes)
    dials = Dials(kafka, topics, gateway_settings.id, mirror, gateway, publisher, fence, clock, nodes)
    waiting = Waiting(mirror, gateway, fence, lambda: dials.owner)
    gateway.on_star = waiting.starred

    health.require("Asterisk's calls are known (manager session, snapshot)", gateway.synced.is_set)
    health.require("the group has said who speaks for the gateway", lambda: dials.joined.is_set() and fence.holds)
    health.require("the owner has announced all calls", lambda: not dials.owner or publisher.announced.is_set())

    notifier = Notifier()
    tasks = Tasks()
    for name, task in notifier.tasks(
        health.missing, lambda: "speaks for its gateway" if dials.owner else "stands by for its gateway"
    ).items():
        tasks.start(name, task)
    tasks.start("publish", publisher.run())
    tasks.start("watch", publisher.watch())
    tasks.start("gateway", gateway.run())
    tasks.start("renew", gateway.renew())
    tasks.start("present", waiting.be_present())
    tasks.start("dials", dials.run())
    telling = asyncio.create_task(_tell_ready(gateway, dials, publisher), name="ready")
    try:
        await tasks.run(stop)
    except AmiRefusedError as error:
        raise CommandError(str(error)) from None
    finally:
        telling.cancel()
        notifier.stopping()


async def _tell_ready(gateway: Gateway, dials: Dials, publisher: Publisher) -> None:
    await gateway.synced.wait()
    await dials.joined.wait()
    if dials.owner:
        await publisher.announced.wait()
    log.info("ready", role="owner" if dials.owner else "standby")

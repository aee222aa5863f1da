"""The changelog on the real broker: read as a whole, claimed, and written by its owner alone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
import pytest_asyncio

from callyard import clients
from callyard.fence import Fence, boottime
from callyard.settings import KafkaSettings, PolicySettings
from callyard.topics import topics
from streams.changelog import FOREIGN, MENDED_BYTES, Changelog, Owned, SupersededError, TruncatedError
from streams.partition import Partition
from streams.policy import Policy
from streams.rows import DeskRow, decode, desk_key, encode
from tests.support import kafka as on_kafka

pytestmark = pytest.mark.kafka

Make = Callable[[str], Any]
POLICY = Policy.of(PolicySettings())
NUMBER = 1


def ALWAYS() -> bool:  # noqa: N802 - a constant that is asked
    return True


def NEVER() -> bool:  # noqa: N802 - as above
    return False


@pytest_asyncio.fixture
async def worker(kafka_settings: KafkaSettings) -> AsyncIterator[Make]:
    """Makes the changelog as one stream worker has it."""
    names, fence = topics(kafka_settings), Fence(session_seconds=3600)
    fence.confirm(boottime())
    async with AsyncExitStack() as stack:

        async def made(owner: str) -> Changelog:
            producer = await stack.enter_async_context(
                clients.producer(kafka_settings, owner, max_batch_size=1_000_000)
            )
            empty: Callable[[int], Partition] = lambda number: Partition(number, names, POLICY)  # noqa: E731
            return Changelog(kafka_settings, names.changelog.name, producer, fence, owner, empty)

        yield made


async def opened(changelog: Changelog, kept: Owned | None = None) -> Owned:
    found = await changelog.open([NUMBER], {} if kept is None else {NUMBER: kept}, ALWAYS)
    assert found is not None
    return found[NUMBER]


async def taken(changelog: Changelog, kept: Owned | None = None) -> Owned:
    owned = await opened(changelog, kept)
    assert await changelog.claim(owned, 1, ALWAYS)
    return owned


async def write(changelog: Changelog, owned: Owned, conference: str, version: int, *, remember: bool = True) -> None:
    """Decide something, as it were: in memory and in the changelog."""
    row = DeskRow(version=version, head="0" * 64)
    if remember:
        owned.partition.load([(desk_key(NUMBER, conference), encode(row))])
    await changelog.write([(owned, {desk_key(NUMBER, conference): encode(row)})])


def versions(owned: Owned) -> dict[str, int]:
    return {conference: desk.row.version for conference, desk in owned.partition.desks.items()}


async def compacted(settings: KafkaSettings) -> dict[str, int]:
    """What compaction would leave of the desks: the latest row of each key, whoever wrote it."""
    records = await on_kafka.read(settings, topics(settings).changelog.name)
    latest = {record.key: record.value for record in records if record.partition == NUMBER}
    rows = {key.decode().split("|")[1]: decode("d", value) for key, value in latest.items() if value is not None}
    return {conference: row.version for conference, row in rows.items() if isinstance(row, DeskRow)}


async def test_the_next_owner_has_what_the_one_before_wrote(worker: Make) -> None:
    first, second = await worker("first"), await worker("second")
    owned = await taken(first)
    for version in (1, 2, 3):
        await write(first, owned, "49123", version)
    await write(first, owned, "49124", 1)
    again = await taken(second)
    assert versions(again) == {"49123": 3, "49124": 1}
    assert again.epoch == owned.epoch + 1


async def test_an_empty_changelog_is_an_empty_table_and_none_is_asked_for_none(worker: Make) -> None:
    changelog = await worker("first")
    assert versions(await opened(changelog)) == {}
    assert await changelog.open([], {}, ALWAYS) == {}
    assert await changelog.open([NUMBER], {}, NEVER) is None


async def test_a_batch_that_comes_late_is_void_and_written_over_and_its_writer_learns_it(
    worker: Make, kafka_settings: KafkaSettings
) -> None:
    """As when a worker is frozen between its look at the fence and the write to its socket."""
    first, second = await worker("first"), await worker("second")
    old = await taken(first)
    await write(first, old, "49123", 1)
    await write(first, old, "49125", 1)
    new = await taken(second)
    await write(second, new, "49123", 2)
    with pytest.raises(SupersededError, match="has another owner"):
        await write(first, old, "49123", 7)
    with pytest.raises(SupersededError):
        await write(first, old, "49126", 7)
    before = FOREIGN._value.get()
    assert versions(await opened(second)) == {"49123": 2, "49125": 1}, "a reader knows them void"
    assert (await compacted(kafka_settings))["49123"] == 7, "but compaction does not"
    await write(second, new, "49125", 2)
    assert FOREIGN._value.get() - before == 2
    assert await compacted(kafka_settings) == {"49123": 2, "49125": 2}
    await write(second, new, "49125", 3)  # and goes on
    assert versions(await taken(await worker("third"))) == {"49123": 2, "49125": 3}


async def test_many_rows_are_written_over_in_batches_that_kafka_takes(
    worker: Make, kafka_settings: KafkaSettings
) -> None:
    first, second = await worker("first"), await worker("second")
    old = await taken(first)
    row = encode(DeskRow(version=1, head="0" * 64))
    count = 3 * MENDED_BYTES // len(row)
    rows = {desk_key(NUMBER, str(100_000 + number)): row for number in range(count)}
    new = await taken(second)
    new.partition.load(rows.items())
    late = encode(DeskRow(version=7, head="0" * 64))
    keys = list(rows)
    for at in range(0, count, 2000):  # each is on its way before the first is answered
        await first._append([(old, [(key, late) for key in keys[at : at + 2000]])])
    await write(second, new, "49123", 2)
    assert set((await compacted(kafka_settings)).values()) == {1, 2}


async def test_a_successor_that_comes_first_writes_over_what_is_hidden(
    worker: Make, kafka_settings: KafkaSettings
) -> None:
    first, second, third = await worker("first"), await worker("second"), await worker("third")
    old = await taken(first)
    await write(first, old, "49123", 1)
    new = await taken(second)
    await write(second, new, "49123", 2)
    with pytest.raises(SupersededError):
        await write(first, old, "49123", 7)
    again = await taken(third)  # the second one died before it wrote anything more
    assert versions(again) == {"49123": 2}
    assert await compacted(kafka_settings) == {"49123": 2}


async def test_what_is_written_between_reading_and_claim_counts(worker: Make) -> None:
    first, second = await worker("first"), await worker("second")
    old = await taken(first)
    await write(first, old, "49123", 1)
    new = await opened(second)
    await write(first, old, "49123", 2)
    await write(first, old, "49124", 1)
    assert await second.claim(new, 1, ALWAYS)
    assert versions(new) == {"49123": 2, "49124": 1}
    await write(second, new, "49124", 2)
    with pytest.raises(SupersededError):
        await write(first, old, "49123", 3)


async def test_who_claims_behind_a_newer_claim_is_told(worker: Make) -> None:
    first, second = await worker("first"), await worker("second")
    slow = await opened(first)
    assert await second.claim(await opened(second), 9, ALWAYS)
    with pytest.raises(SupersededError, match=r"partition 1 is claimed by Claim\(epoch=9, owner='second'\)"):
        await first.claim(slow, 8, ALWAYS)


async def test_who_claims_behind_a_claim_of_the_same_epoch_claims_the_next(worker: Make) -> None:
    """As when a worker freezes in the middle of its claim, and the next one has read the same log meanwhile."""
    first, second = await worker("first"), await worker("second")
    slow, owned = await opened(first), await opened(second)
    assert await first.claim(slow, 1, ALWAYS)
    await write(first, slow, "49123", 1)
    assert await second.claim(owned, 1, ALWAYS)
    assert (owned.epoch, versions(owned)) == (slow.epoch + 1, {"49123": 1})
    await write(second, owned, "49123", 2)
    with pytest.raises(SupersededError):
        await write(first, slow, "49123", 7)
    assert versions(await taken(await worker("third"))) == {"49123": 2}


async def test_a_claim_is_given_up_where_it_is_no_longer_wanted(worker: Make) -> None:
    first, second = await worker("first"), await worker("second")
    slow = await opened(first)
    assert not await first.claim(slow, 1, NEVER)
    await write(second, await taken(second), "49123", 1)
    answers = iter([True, False])  # a rebalance begins while it catches up
    assert not await first.claim(slow, 1, lambda: next(answers, False))
    assert versions(await taken(await worker("third"))) == {"49123": 1}


async def test_what_is_kept_is_read_again_only_where_somebody_has_written(worker: Make) -> None:
    first, second = await worker("first"), await worker("second")
    owned = await taken(first)
    await write(first, owned, "49123", 1)
    read = first.read_rows
    kept = await taken(first, owned)
    assert (kept.partition is owned.partition, first.read_rows) == (True, read)
    await write(first, kept, "49123", 2)
    other = await taken(second)
    await write(second, other, "49123", 3)
    assert versions(await taken(first, kept)) == {"49123": 3}
    assert first.read_rows > read


async def test_rows_without_a_claim_are_of_an_older_release_and_count(
    worker: Make, kafka_settings: KafkaSettings
) -> None:
    changelog = await worker("first")
    row = encode(DeskRow(version=4, head="0" * 64))
    async with clients.producer(kafka_settings, "older") as producer:

        async def without() -> None:
            name = topics(kafka_settings).changelog.name
            await producer.send_and_wait(name, row, key=desk_key(NUMBER, "49123"), partition=NUMBER)

        await without()
        owned = await taken(changelog)
        assert versions(owned) == {"49123": 4}
        await without()
        with pytest.raises(SupersededError, match="is of no claim: this partition has another owner"):
            await write(changelog, owned, "49124", 1)


async def test_a_changelog_that_lost_what_was_acknowledged_is_told(worker: Make) -> None:
    changelog = await worker("first")
    owned = await taken(changelog)
    await write(changelog, owned, "49123", 1)
    owned.end += 5
    with pytest.raises(TruncatedError, match="rows were acknowledged, the next one is"):
        await write(changelog, owned, "49123", 2)


async def test_a_row_with_a_broken_claim_stops_the_takeover(worker: Make, kafka_settings: KafkaSettings) -> None:
    changelog = await worker("first")
    async with clients.producer(kafka_settings, "foreign") as producer:
        await producer.send_and_wait(
            topics(kafka_settings).changelog.name, b"{}", key=b"1|49123|d", partition=NUMBER, headers=[("claim", b"?")]
        )
    with pytest.raises(ValueError, match="a row's claim is no epoch and owner"):
        await opened(changelog)


async def test_a_log_that_ends_in_offsets_without_a_record_is_read_to_its_end(
    worker: Make, kafka_settings: KafkaSettings
) -> None:
    changelog = await worker("first")
    owned = await taken(changelog)
    await write(changelog, owned, "49123", 1)
    row = encode(DeskRow(version=2, head="0" * 64))
    async with (
        clients.producer(kafka_settings, "foreign", transactional_id=kafka_settings.topic_prefix) as producer,
        producer.transaction(),  # its marker takes an offset after the record
    ):
        name = topics(kafka_settings).changelog.name
        await producer.send_and_wait(name, row, key=desk_key(NUMBER, "49123"), partition=NUMBER)
    again = await opened(changelog)
    assert versions(again) == {"49123": 2}
    assert again.end >= owned.end + 1

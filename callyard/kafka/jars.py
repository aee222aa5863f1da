"""Kafka's program: fetched once from Maven Central into the cache, checked, and never touched again.

jgo walks the dependencies; every jar must be one that ``jars.sha256`` names, byte for byte: jgo itself only warns about
a wrong checksum, and an interrupted download would stay in its repository for ever. So all is fetched into a folder
beside the final one and moved there as a whole. Starting a broker needs no network and no jgo.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from callyard.cache import cache_folder, locked
from callyard.errors import CommandError

KAFKA_VERSION = "4.1.1"
COORDINATES = (
    f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}",
    # Kafka's own archive adds this binding; without it Kafka logs nothing. "!": its parent's choice of versions must
    # not count for the others, or jgo brings an older zstd-jni than Kafka was released with.
    "org.apache.logging.log4j:log4j-slf4j-impl:2.24.3!",
)
REPOSITORY = "https://repo.maven.apache.org/maven2"
MEGABYTES = 45
"""About what is downloaded."""
CHECKSUMS = Path(__file__).with_name("jars.sha256")


def folder() -> Path:
    """Where this version's jars are, or will be."""
    return cache_folder() / f"kafka-{KAFKA_VERSION}"


def checksums() -> dict[str, str]:
    """SHA-256 of each jar by its file name."""
    pairs = (line.split() for line in CHECKSUMS.read_text(encoding="ascii").splitlines())
    return {name: digest for digest, name in pairs}


def prepared() -> bool:
    """Whether every jar is in the cache."""
    return all((folder() / name).is_file() for name in checksums())


def classpath() -> str:
    """The jars as Java wants them. Only of use when `prepared`."""
    # Java expands DIR/* itself, in the order of the file system; named one by one, the order is everywhere the same.
    return ":".join(str(folder() / name) for name in checksums())


def prepare(say: Callable[[str], None]) -> bool:
    """Fetch and check the jars unless they are there; returns whether anything was fetched.

    ``say`` gets one line before the download begins. Raises `CommandError` when it is impossible.
    """
    with locked(cache_folder() / "kafka.lock"):
        if prepared():
            return False
        say(f"fetching Apache Kafka {KAFKA_VERSION} from {REPOSITORY} (about {MEGABYTES} MB, once) into {folder()}")
        partial = folder().with_suffix(".partial")
        try:
            shutil.rmtree(partial, ignore_errors=True)
            _collect(download(partial / "maven"), partial / "jars")
            shutil.rmtree(folder(), ignore_errors=True)
            (partial / "jars").rename(folder())
        except OSError as error:  # requests' errors are OSErrors, too
            raise CommandError(_impossible(error)) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return True


def download(repository: Path) -> list[Path]:
    """Resolve and fetch all jars into a Maven repository in this folder; what comes is not checked yet."""
    # Imported here: jgo takes a third of a second, and only a download needs it.
    from jgo.maven import MavenContext  # noqa: PLC0415

    context = MavenContext(repo_cache=repository, local_repos=[], remote_repos={"central": REPOSITORY}, timeout=60)
    wanted = [context.create_dependency(coordinate) for coordinate in COORDINATES]
    try:
        inputs, more = context.resolver.resolve(wanted)
        needed = [*inputs, *(found for found in more if found.scope in {"compile", "runtime"})]
        with ThreadPoolExecutor(max_workers=8) as pool:
            return list(pool.map(lambda found: Path(found.artifact.resolve()), needed))
    except RuntimeError as error:  # jgo's only word for "the server has no such file"
        raise CommandError(_impossible(error)) from error


def _collect(found: list[Path], into: Path) -> None:
    known = checksums()
    names = {path.name for path in found}
    if names != set(known):
        raise CommandError(
            f"Kafka's dependencies are not those of {CHECKSUMS.name}: missing {sorted(set(known) - names)}, unknown"
            f" {sorted(names - set(known))}; nothing was installed. Update Callyard, or report this"
        )
    into.mkdir(parents=True)
    for path in found:
        if hashlib.sha256(path.read_bytes()).hexdigest() != known[path.name]:
            raise CommandError(
                f"{path.name} from {REPOSITORY} is not the file that Callyard was released with (SHA-256 differs);"
                " nothing was installed. Try again; if it stays, something between here and there alters files"
            )
        path.rename(into / path.name)


def _impossible(error: Exception) -> str:
    return (
        f"Apache Kafka {KAFKA_VERSION} cannot be fetched: {error}\n"
        f"Its jars are needed once, by HTTPS from {REPOSITORY}. Behind a proxy set HTTPS_PROXY, behind a private"
        f" certificate authority REQUESTS_CA_BUNDLE; or copy the folder {folder()} from a machine where"
        " 'callyard kafka --prepare' has worked; or use a Kafka of your own (CALLYARD_KAFKA_BOOTSTRAP_SERVERS)"
    )

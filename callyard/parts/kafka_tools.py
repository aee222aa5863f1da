"""Kafka's own command line tools that a broker has no use for (kafka-acls): one more jar, for tests.

``python -m callyard.parts.kafka_tools`` fetches it into the cache, checked. The other tools are in the broker's jars.
"""

from __future__ import annotations

import hashlib
import sys
import urllib.request
from pathlib import Path

from callyard.cache import cache_folder, locked
from callyard.errors import CommandError
from callyard.kafka import jars

NAME = f"kafka-tools-{jars.KAFKA_VERSION}.jar"
SHA256 = "8a6939f310a61119cedaffc144119e9b2a374e32a7ec18f78e49ce5aeb71d6b0"
URL = f"{jars.REPOSITORY}/org/apache/kafka/kafka-tools/{jars.KAFKA_VERSION}/{NAME}"
TIMEOUT_SECONDS = 60


def jar() -> Path:
    """The jar, fetched where it isn't there. Raises `CommandError` where that is impossible."""
    path = cache_folder() / NAME
    with locked(cache_folder() / "kafka-tools.lock"):
        if not path.is_file():
            try:
                with urllib.request.urlopen(URL, timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310 - always HTTPS
                    content: bytes = answer.read()
            except OSError as error:
                raise CommandError(f"{NAME} cannot be fetched from {URL}: {error}") from None
            if hashlib.sha256(content).hexdigest() != SHA256:
                raise CommandError(f"{URL} is not the file that Callyard was released with (SHA-256 differs)")
            partial = path.with_suffix(".partial")
            partial.write_bytes(content)
            partial.rename(path)
    return path


if __name__ == "__main__":
    try:
        jar()
    except CommandError as error:
        print(f"callyard.parts.kafka_tools: {error}", file=sys.stderr)  # noqa: T201 - a command's message
        sys.exit(1)

"""Logging: structured, one event a line, no secrets, callers' numbers only as the records carry them.

Workers log with ``structlog.get_logger()``: the event is a short sentence without values, the values are fields whose
names are the contract's (``conference``, ``call_id``, ``stay``, ``attempt``, ``node_id``, ``gateway_id``).
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterable
from types import TracebackType

import structlog

from callyard.settings import LogSettings

OURS = ("callyard", "streams", "agents", "fs_hooks", "ast_config")
REPEAT_SECONDS = 10.0


class _Rarely(logging.Filter):
    """Lets the same complaint of a library through every ten seconds: without a broker aiokafka makes 130 a second."""

    def __init__(self) -> None:
        super().__init__()
        self._told: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.split(".")[0] in OURS:
            return True
        complaint, now = (record.name, str(record.msg)[:60]), time.monotonic()
        if now - self._told.get(complaint, -REPEAT_SECONDS) < REPEAT_SECONDS:
            return False
        if len(self._told) > 1000:
            self._told.clear()
        self._told[complaint] = now
        return True


def configure(settings: LogSettings, worker: str) -> None:
    """Set up logging of this process to standard error; libraries' own loggers are let through from warnings up."""
    level = getattr(logging, settings.level.upper())
    as_json = settings.format == "json" or (settings.format == "auto" and not sys.stderr.isatty())

    def name_worker(_: object, __: str, fields: structlog.typing.EventDict) -> structlog.typing.EventDict:
        # Not bound to the context: that of another thread (Faust's) has nothing of it.
        return {**fields, "worker": worker}

    shared: list[structlog.typing.Processor] = [
        name_worker,
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info if as_json else structlog.processors.StackInfoRenderer(),
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_Rarely())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in OURS:
        logging.getLogger(name).setLevel(level)
    logging.captureWarnings(capture=True)
    if as_json:
        # Whoever reads the log line by line must not find a traceback spread over many.
        sys.excepthook = _log_uncaught
        threading.excepthook = lambda failed: _log_uncaught(
            failed.exc_type, failed.exc_value or failed.exc_type(), failed.exc_traceback
        )


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, Exception):  # an interrupt
        sys.__excepthook__(kind, error, trace)
        return
    structlog.get_logger("callyard").critical("a bug ended it", error=repr(error), exc_info=(kind, error, trace))


def tell(command: str, problems: Iterable[str]) -> bool:
    """Log why a command ends, one event for each problem, if its log is read by machines; False where it isn't."""
    if sys.excepthook is not _log_uncaught:
        return False
    for problem in problems:
        structlog.get_logger("callyard").critical("ended", command=command, error=problem)
    return True

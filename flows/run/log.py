"""A run's own log: everything at DEBUG, kept on this machine while it runs and in the sink after."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

LOGGERS = ("flows", "engine", "connectors")
"""Names of the loggers that say what a run does."""

_FORMAT = "%(asctime)s %(levelname)-7s %(name)s %(message)s"


class _File(logging.FileHandler):
    """A log that a full disk cuts short, without an end to the run."""

    failure: OSError | None = None

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging calls it so
        """Keep what went wrong; anything but a disk's fault is this program's."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        self.failure = error

    def close(self) -> None:
        """Close the file; what is still in memory is lost where the disk is full."""
        try:
            super().close()
        except OSError as exc:
            self.failure = exc


@contextmanager
def run_log(file: Path) -> Iterator[None]:
    """Write what this project's loggers say to `file` while the block runs.

    A logger without a level of its own is set to DEBUG; one that somebody has set, such as Prefect
    by PREFECT_LOGGING_EXTRA_LOGGERS, keeps its level.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    handler = _File(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter(_FORMAT))
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
        handler.close()
        if handler.failure is not None:
            logger.warning("the run's log %s is cut short: %s", file, handler.failure)

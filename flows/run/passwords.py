"""Which password opens which document of a job. Held in memory only, by the room that reads."""

from __future__ import annotations

import re

from config.load import load_passwords
from config.pipeline import ReaderConfig
from connectors.readers import Password
from flows.run.globs import glob_regex


class Passwords:
    """The passwords of `reader.passwords`, found by path; the first glob that matches counts."""

    def __init__(self, reader: ReaderConfig) -> None:
        """Take the values from the environment.

        Raises:
            ConfigError: A variable that the pipeline names is not set.
        """
        self._passwords = [
            (re.compile(glob_regex(glob)), password) for glob, password in load_passwords(reader)
        ]

    def find(self, path: str) -> Password | None:
        """Return the password of the document at `path` below the source, if it has one."""
        return next((secret for glob, secret in self._passwords if glob.fullmatch(path)), None)

"""What can go wrong in what the operator wrote.

ConfigError    a file, a key or an option is wrong; the message names it and the fix. Exit code 2.
"""

from __future__ import annotations


class ConfigError(Exception):
    """The configuration is wrong; the message says file, key and fix."""

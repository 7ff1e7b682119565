"""The `headrace` command: one module per group of commands, app.py with what they share."""

from __future__ import annotations

from flows.cli import (
    approve,
    cache,
    check,
    cost,
    decide,
    engine,
    look,
    machine,
    prepare,
    preview,
    readiness,
    run,
    runner,
    transcript,
)
from flows.cli.app import app, main

__all__ = [
    "app",
    "approve",
    "cache",
    "check",
    "cost",
    "decide",
    "engine",
    "look",
    "machine",
    "main",
    "prepare",
    "preview",
    "readiness",
    "run",
    "runner",
    "transcript",
]

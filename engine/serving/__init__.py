"""Serving a model on GPUs: the exact `vllm serve` command of a plan, and who watches over it.

`launches_of(profile, plan, options)` builds a command for each server; `Keeper` starts them, waits, restarts
what crashes or hangs, and lets requests under way come to their end.
"""

from engine.serving.command import Launch, ServeOptions, launches_of
from engine.serving.keeper import Keeper, KeepRule
from engine.serving.serve import Home, kept_launches, kept_local

__all__ = [
    "Home",
    "KeepRule",
    "Keeper",
    "Launch",
    "ServeOptions",
    "kept_launches",
    "kept_local",
    "launches_of",
]

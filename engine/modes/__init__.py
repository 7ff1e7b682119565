"""The modes a request can be carried out in; each turns one request into one or more calls."""

from __future__ import annotations

from collections.abc import Mapping

from engine.modes.agent import Agent
from engine.modes.instant import Instant
from engine.modes.mode import Mode
from engine.modes.swarm import Swarm
from engine.modes.thinking import Thinking
from engine.request import ModeName

MODES: Mapping[ModeName, Mode] = {
    "instant": Instant(),
    "thinking": Thinking(),
    "agent": Agent(),
    "swarm": Swarm(),
}

"""How far an agent or a swarm may go, as a pipeline says it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from pydantic import Field, model_validator

from config.model import Model
from engine.request import AgentLimits, DriftAction


class SearchConfig(Model):
    """How the tool `search` finds passages."""

    vectors: str | None = None
    """Engine that makes vectors of passages and queries, so that what means the same is found in other words too:
    a URL that serves `/v1/embeddings`, or a profile with `embeddings`. It sees what agents may search. Vectors are
    kept in the sink and paid for once. None: words only."""


class LimitsConfig(Model):
    """Limits of one request; what it has found by then is its answer, and the record says why it stopped."""

    steps: int = Field(default=100, ge=3, le=5_000)
    """Turns of the model, the last ones for the answer. Moonshot's own runs of K2.5 allow 100 to an agent
    and 15 to the orchestrator of a swarm (arXiv 2602.02276)."""
    calls: int = Field(default=300, ge=1, le=20_000)
    """Tool calls in all."""
    opening_calls: int = Field(default=0, ge=0)
    """Turns at the beginning that must call a tool, so that nothing is answered from memory; at most `steps` less
    two. The engine must be able to force it (`capabilities.forced_calls`)."""
    tokens: int | None = Field(default=None, ge=1_000)
    """Prompt and answer tokens of all turns. None: as `budget` allows."""
    failures: int = Field(default=6, ge=1)
    """Calls of one tool that may fail in a row before it is closed for the request; about one in eight does."""
    result_chars: int = Field(default=12_000, ge=500)
    """Most characters of a tool's result that are shown at once; the model pages through longer ones."""
    call_seconds: float = Field(default=120.0, gt=0)
    """Longest time that one call may take."""
    think: bool = True
    """Whether turns are in Thinking mode, where the engine has a switch for it. Instant is the safer one where
    thinking and calls together are unstable, and enough for work that is plain."""
    subagents: int = Field(default=20, ge=1, le=300)
    """Sub-agents of a swarm that are at work at once; K2.5 was trained with up to 100."""
    subagent_steps: int = Field(default=100, ge=3, le=5_000)
    """`steps` of each sub-agent."""
    subagent_tokens: int | None = Field(default=None, ge=1_000)
    """`tokens` of each sub-agent: its share."""

    @model_validator(mode="after")
    def _leave_turns_for_the_answer(self) -> Self:
        if self.opening_calls > self.steps - 2:
            raise ValueError(
                f"opening_calls: {self.opening_calls} of {self.steps} steps leave no turns for the answer; it may be"
                f" {self.steps - 2} at most, or raise steps"
            )
        return self

    def for_engine(self, on_drift: Sequence[DriftAction]) -> AgentLimits:
        """Return them as the engine takes them."""
        return AgentLimits(
            max_steps=self.steps,
            max_calls=self.calls,
            opening_calls=self.opening_calls,
            max_tokens=self.tokens,
            max_failures=self.failures,
            result_chars=self.result_chars,
            call_timeout_s=self.call_seconds,
            think=self.think,
            on_drift=tuple(on_drift),
            max_subagents=self.subagents,
            subagent_steps=self.subagent_steps,
            subagent_tokens=self.subagent_tokens,
        )

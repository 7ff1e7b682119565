"""What can go wrong between a request and its result, by who must act.

EngineError
├── PrerequisiteError     the operator: something is not installed, not free or not allowed
├── SetUpImpossible       the operator: GPUs, parallel sizes or a context that cannot be
├── EngineUnavailable     the scheduler: no answer, 408, 409, 429 or 5xx (retryable)
├── EngineMisconfigured   the operator: 401, 403 or 404: the key, the URL or the model is wrong
├── RequestRejected       this request: another 4xx
│   └── RequestTooLong    this request: prompt and answer exceed the endpoint's context
├── VectorsUnavailable    this request: the texts of a search cannot be made into vectors
└── BudgetReached         the operator: the budget of the run or the stage does not cover this request
    └── BudgetAwaited     the scheduler: it may, when batches of the host have ended
"""

from __future__ import annotations


class EngineError(Exception):
    """Base of everything the engine raises on purpose."""

    retryable = False


class PrerequisiteError(EngineError):
    """The machine lacks something; the message says what and how to mend it."""


class SetUpImpossible(EngineError):
    """No server can be set up as asked for; the message says what contradicts what, and what would do."""


class EngineUnavailable(EngineError):
    """The endpoint did not answer, or said 'later'.

    `retry_after_s` if it said when; `status` if it was an HTTP status that said so.
    """

    retryable = True

    def __init__(
        self, message: str, *, retry_after_s: float | None = None, status: int | None = None
    ) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.status = status

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild_unavailable, (str(self), self.retry_after_s, self.status))


class EngineMisconfigured(EngineError):
    """The endpoint refuses every request of this kind; going on would be pointless."""


class BudgetReached(EngineError):
    """The budget does not cover this call; the run, or the stage, ends and can go on with a larger one."""


class BudgetAwaited(BudgetReached):
    """The budget may cover this call when batches of the host have ended that it is set aside for."""


class RequestRejected(EngineError):
    """The endpoint refuses this request; others may pass. `status` is the HTTP status."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild_rejected, (str(self), self.status))


class RequestTooLong(RequestRejected):
    """Prompt and answer exceed the endpoint's context: its count of tokens is not ours."""

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild_too_long, (str(self), self.status))


class VectorsUnavailable(EngineError):
    """A search has no vectors: it ends the request, for which no other engine need stand in."""


def _rebuild_unavailable(
    message: str, retry_after_s: float | None, status: int | None
) -> EngineUnavailable:
    return EngineUnavailable(message, retry_after_s=retry_after_s, status=status)


def _rebuild_too_long(message: str, status: int) -> RequestTooLong:
    return RequestTooLong(message, status=status)


def _rebuild_rejected(message: str, status: int) -> RequestRejected:
    return RequestRejected(message, status=status)

"""The turns of a request that go through the host's batch API, each as one line of a file.

Nobody waits here. A turn whose line is not answered yet ends the request as `awaiting_batch`; when the
batch has ended, the request is carried out once more and is given the same answers again, turn by turn,
up to the first that is not there. So a run of any length, on any machine, goes on where it was.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import orjson

from engine.batch.amount import Amount, amount_of, cost_usd, gpu_seconds, usage_of, worst_usage
from engine.batch.budget import Reservation
from engine.batch.call import Account, Caller
from engine.endpoint import Endpoint
from engine.errors import EngineError, EngineMisconfigured, EngineUnavailable, RequestRejected
from engine.reply import ABORTED, Assembly, Reply
from engine.request import BatchTerms, Request
from engine.status import status_error

AWAITING_BATCH = "awaiting_batch"
"""Error class of a request that waits for a batch of the host."""

MAX_TRIES = 3
"""Lines that are sent for one turn, where the host answers none of them."""

_KEY_CHARS = 58
"""Of a request's key in the id of a line, which has at most 64 characters in all."""

_NOT_IN_A_FILE = frozenset({"stream", "stream_options", "stream_interval", "priority"})
"""What is only of use to somebody who waits for the answer."""


class AwaitingBatch(EngineError):
    """A line of a batch has no answer yet; the request is taken up again when it has one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One call, as it stands in a file."""

    line_id: str
    """Its `custom_id`."""
    stage: str
    window: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class LineEnd:
    """What became of a line."""

    kind: Literal["answered", "refused", "lost", "cancelled"]
    """`answered` has a completion; `refused`: the host has answered with an error; `lost`: the batch ended
    before it came to the line, or left it out; `cancelled`: somebody has ended the batch."""
    batch_id: str
    status: int = 200
    body: Mapping[str, Any]
    """The completion, or the error as the host tells it."""
    seconds: float = 0.0
    """From when the host took the batch to its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A line that is on its way."""

    told: str
    """Where it is, for people."""


class BatchDesk(Protocol):
    """Takes lines for the host's batches, and has what became of earlier ones."""

    @property
    def base_url(self) -> str:
        """Return the address of the one host that it sends to."""

    def find(self, line_id: str) -> LineEnd | Waiting | None:
        """Return what became of a line; None where it has never been sent."""

    def take(self, line: Line, reservation: Reservation) -> Waiting:
        """Take a line that is to be sent, with what is set aside for it."""

    def bill(self, line_id: str, stage: str, used: Amount) -> bool:
        """Count what a line took, in place of what is set aside for it, and tell whether it is this shard's bill."""


class HostedTurns:
    """Sends the turns of one request."""

    def __init__(
        self, request: Request, terms: BatchTerms, caller: Caller, desk: BatchDesk
    ) -> None:
        self._request, self._terms = request, terms
        self._caller, self._desk = caller, desk
        self._number = 0

    async def call(self, body: Mapping[str, Any], priority: int, account: Account) -> Reply:
        """Return the reply of one turn, which a batch has answered.

        Raises:
            AwaitingBatch: It has not yet.
            EngineUnavailable: It was sent as often as is tried, or somebody has ended the batch.
            RequestRejected: The host refuses it.
            BudgetReached: The budget does not cover it.
        """
        failure: EngineUnavailable | None = None
        for _ in range(MAX_TRIES):
            line_id = line_id_of(self._request.request_key, self._number)
            found = await asyncio.to_thread(self._desk.find, line_id)
            if found is None:
                if self._number and self._terms.again == "at_once":
                    return await self._caller.call(
                        body, self._request, priority, account, waits=True
                    )
                found = await self._post(line_id, body, account)
            if isinstance(found, Waiting):
                raise AwaitingBatch(found.told)
            self._number += 1
            lines = account.of_lines()
            lines.attempts += 1
            lines.batch_ids[found.batch_id] = None
            lines.batch_s += found.seconds
            try:
                return self._reply(line_id, found, body, lines)
            except EngineUnavailable as exc:
                if found.kind == "cancelled":
                    raise
                failure = exc
        assert failure is not None
        raise EngineUnavailable(f"{failure}; it was sent in {MAX_TRIES} batches")

    async def _post(self, line_id: str, body: Mapping[str, Any], account: Account) -> Waiting:
        """Return where the line waits, after its worst case has been set aside."""
        profile, request = self._caller.line.endpoint.profile, self._request
        with account.queueing():
            reserved = await self._caller.budget.reserve(
                request.stage,
                worst_usage(body, request),
                profile,
                price_factor=self._price_factor,
            )
        sent = {name: value for name, value in body.items() if name not in _NOT_IN_A_FILE}
        line = Line(line_id=line_id, stage=request.stage, window=self._terms.window, body=sent)
        return await asyncio.to_thread(self._desk.take, line, reserved)

    def _reply(
        self, line_id: str, end: LineEnd, body: Mapping[str, Any], account: Account
    ) -> Reply:
        """Return the reply in a line.

        Raises:
            EngineUnavailable: There is none, and another try may have one.
            RequestRejected: The host refuses the line.
            _failure: One of these.
        """
        profile, request = self._caller.line.endpoint.profile, self._request
        used, is_ours = Amount(), True
        try:
            if end.kind != "answered":
                raise _failure(end, self._caller.line.endpoint)
            reply = _read(end)
            usage = usage_of(reply, body, worst_usage(body, request))
            used = amount_of(usage, profile, self._price_factor)
        finally:
            is_ours = self._desk.bill(line_id, request.stage, used)
        if not is_ours:
            # Another shard that asks the same has paid for it.
            return replace(reply, usage=usage)
        cost = cost_usd(usage, profile.prices, self._price_factor)
        time_s = gpu_seconds(usage, profile)
        account.add(usage, cost, time_s)
        return replace(reply, usage=usage, cost_usd=cost, gpu_seconds=time_s)

    @property
    def _price_factor(self) -> float:
        prices = self._caller.line.endpoint.profile.prices
        return 1.0 if prices is None else prices.factor(by_batch=True)


def line_id_of(request_key: str, number: int) -> str:
    """Return the id of a request's line, by the number of lines before it."""
    return f"{prefix_of(request_key)}-{number}"


def prefix_of(request_key: str) -> str:
    """Return what the ids of a request's lines begin with."""
    return request_key[:_KEY_CHARS]


def _read(end: LineEnd) -> Reply:
    """Return the reply that a completion is.

    Raises:
        EngineUnavailable: It is none, or the host gave it up.
    """
    assembly = Assembly()
    try:
        assembly.add_completion(end.body)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as exc:
        raise EngineUnavailable(
            f"batch {end.batch_id} answered a line with what is not a completion"
        ) from exc
    reply = assembly.reply(first_token_s=None)
    if reply.finish_reason in ABORTED:
        raise EngineUnavailable(f"batch {end.batch_id} gave a line up ({reply.finish_reason})")
    return reply


def _failure(end: LineEnd, endpoint: Endpoint) -> EngineError:
    """Return the error that a line without an answer ends with."""
    if end.kind != "refused":
        return EngineUnavailable(str(end.body.get("error", "")))
    where = f"{endpoint.base_url}, in batch {end.batch_id or 'not begun'},"
    body = orjson.dumps(dict(end.body))
    error = status_error(
        end.status,
        body,
        base_url=where,
        secret=endpoint.api_key,
        key=endpoint.profile.key_in_words,
    )
    if isinstance(error, EngineMisconfigured):
        # What the sink holds of the batch stays as it is: a run that ended here would end so each time.
        return RequestRejected(str(error), status=end.status)
    return error

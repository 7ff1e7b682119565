"""What a host's batch API may do to lines, files and batches: each request ends once, with a reason."""

from __future__ import annotations

from collections import Counter

import pytest

from engine.batch import Amount, Budget, Caps
from engine.batch.hosted import line_id_of
from engine.batch_api.desk import Desk, Keeping
from engine.batch_api.limits import BatchLimits, window_s
from engine.batch_api.record import BatchRecord, HeldRecord, SinkChanged
from engine.errors import EngineMisconfigured
from engine.profile import Prices
from tests.engine.batch_rounds import FOLDER, SHARD, MemoryStore, Rounds, request, spent
from tests.fakes.batch_host import BatchHostServer

NUM = 9


@pytest.fixture
def host():
    with BatchHostServer() as fake:
        yield fake


@pytest.fixture
def rounds(host, tmp_path):
    return Rounds(url=host.url, store=MemoryStore(), folder=tmp_path)


def ask(rounds, num=NUM, **options):
    return rounds.carry_out([request(number, **options) for number in range(num)])


def outcomes(results):
    return Counter((end.outcome, end.error_class) for end in results.values())


def times_sent(host):
    return Counter(Counter(line for batch in host.kept.submitted for line in batch).values())


def check_all_answered(rounds, host, results):
    """Check that all have an answer, no line was sent twice, and nothing is left anywhere."""
    assert outcomes(results) == {("succeeded", None): NUM}
    assert set(times_sent(host)) == {1}
    assert rounds.store.objects == {}
    assert host.kept.files == {}
    assert rounds.budget.spent.usd == pytest.approx(spent(results))
    assert rounds.budget.reserved.usd == 0


def test_answers_come_from_one_batch_at_the_lower_price_when_all_is_well(host, rounds):
    results = ask(rounds)
    check_all_answered(rounds, host, results)
    assert [len(batch) for batch in host.kept.submitted] == [NUM]
    for end in results.values():
        full = Prices(input_usd=1.0, cached_input_usd=0.1, output_usd=10.0).usd(
            prompt=end.usage.prompt_tokens, cached=0, output=end.usage.completion_tokens
        )
        assert end.cost_usd == pytest.approx(0.5 * full)
        assert end.batch_ids == ("batch-00002",)
        assert end.attempts == 1
    assert host.kept.bodies[0].keys() == {"model", "messages", "max_tokens", "response_format"}


@pytest.mark.parametrize(
    ("rules", "num_batches"),
    [
        ({"shuffle": True}, 1),
        ({"double": True}, 1),
        ({"strangers": 4}, 1),
        ({"keeps_metadata": False}, 1),
        ({"num_looks": 5}, 1),
        # Missing, expired and failed lines go into a next batch.
        ({"leave_out": 2, "bad_batches": 1}, 2),
        ({"leave_out": 2, "bad_batches": 2}, 3),
        ({"ends_as": "expired", "leave_out": 2, "bad_batches": 1}, 2),
        ({"fail_status": 500, "bad_batches": 1}, 2),
        ({"fail_status": 429, "bad_batches": 1}, 2),
        # Answers that are no JSON are repaired in a next batch.
        ({"invalid_every": 3, "bad_batches": 1}, 2),
        ({"refuse": {"upload": 429}, "refuse_times": 2}, 1),
        ({"refuse": {"begin": 429}, "refuse_times": 2}, 1),
        ({"refuse": {"begin": 429}, "refuse_times": 4}, 1),
        ({"refuse": {"upload": 503}, "refuse_times": 1}, 1),
        ({"refuse": {"look": 503}, "refuse_times": 2}, 1),
        ({"refuse": {"content": 500}, "refuse_times": 2}, 1),
        ({"refuse": {"list": 500}, "refuse_times": 1}, 1),
        # Not known whether it has begun.
        ({"refuse": {"begin": 500}, "refuse_times": 1}, 1),
        ({"refuse": {"begin": 500}, "refuse_times": 2}, 1),
        ({"refuse": {"begin": 500}, "refuse_times": 7}, 1),
        ({"lose_answers": {"begin": 1}, "refuse": {"list": 500}, "refuse_times": 5}, 1),
        ({"lose_answers": {"begin": 1}}, 1),
        ({"lose_answers": {"begin": 1}, "keeps_metadata": False}, 1),
        ({"lose_answers": {"begin": 1}, "refuse": {"list": 500}, "refuse_times": 2}, 1),
        ({"lose_answers": {"upload": 1}}, 1),
        ({"lose_answers": {"content": 1, "look": 1, "remove": 1}}, 1),
        ({"refuse": {"content": 404}, "refuse_times": 2}, 1),
    ],
    ids=str,
)
def test_all_are_answered_when_a_host_has_its_ways(host, rounds, rules, num_batches):
    host.set(**rules)
    results = ask(rounds)
    check_all_answered(rounds, host, results)
    assert len(host.kept.submitted) == num_batches
    assert host.kept.at_once == 0


@pytest.mark.parametrize(
    "rules",
    [
        {"leave_out": 3, "bad_batches": 1},
        {"ends_as": "expired", "leave_out": 3, "bad_batches": 1},
        {"fail_status": 500, "bad_batches": 1},
        {"invalid_every": 3, "bad_batches": 1},
    ],
    ids=str,
)
def test_what_is_asked_again_goes_at_once_when_the_stage_says_so(host, rounds, rules):
    host.set(**rules)
    results = ask(rounds, again="at_once")
    check_all_answered(rounds, host, results)
    assert len(host.kept.submitted) == 1
    assert host.kept.at_once == 3


@pytest.mark.parametrize(
    ("rules", "reason", "num_batches"),
    [
        ({"leave_out": 3}, "ended without a line for this request; it was sent in 3 batches", 3),
        ({"ends_as": "expired", "leave_out": 3}, "expired before the host came to this", 3),
        ({"fail_status": 500}, "answered 500: it failed; it was sent in 3 batches", 3),
        ({"refuse": {"content": 404}}, "or not of its answers; it was sent in 3 batches", 3),
        ({"ends_as": "cancelled", "leave_out": 3}, "was cancelled at the host", 1),
    ],
    ids=str,
)
def test_a_request_fails_with_the_reason_when_no_batch_answers_it(
    host, rounds, rules, reason, num_batches
):
    host.set(**rules)
    results = rounds.carry_out([request(number) for number in range(NUM)])
    failed = [end for end in results.values() if end.outcome == "failed"]
    assert {end.error_class for end in failed} == {"engine_unavailable"}
    assert failed
    assert all(reason in end.error for end in failed)
    assert len(results) == NUM
    assert len(host.kept.submitted) == num_batches
    assert set(times_sent(host)) == {1}
    assert rounds.store.objects == {}


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        ({"refuse": {"upload": 413}}, "413: upload is refused"),
        ({"refuse": {"begin": 400}}, "400: begin is refused"),
        ({"max_bytes": 100}, "413: the file has"),
        ({"ends_as": "failed"}, "refused the file of batch batch-00002: it does not say why"),
        ({"fail_status": 400, "fail_every": 1}, "answered 400: it failed"),
        ({"fail_status": 403, "fail_every": 1}, "answered 403: it failed"),
    ],
    ids=str,
)
def test_requests_are_refused_with_the_hosts_reason_when_it_refuses_their_file(
    host, rounds, rules, reason
):
    host.set(**rules)
    results = ask(rounds)
    assert outcomes(results) == {("failed", "request_rejected"): NUM}
    assert all(reason in end.error for end in results.values())
    assert rounds.store.objects == {}
    assert rounds.budget.spent.tokens == 0


def test_only_the_line_that_is_to_blame_fails_when_a_file_is_refused(host, rounds):
    requests = [request(number) for number in range(NUM)]
    requests[4] = request(4, material="[L1] REFUSE THIS\n")
    results = rounds.carry_out(requests)
    bad = results.pop(requests[4].request_key)
    assert (bad.outcome, bad.error_class) == ("failed", "request_rejected")
    assert "this line is refused" in bad.error
    assert outcomes(results) == {("succeeded", None): NUM - 1}
    assert [len(batch) for batch in host.kept.submitted] == [NUM - 1]


def test_requests_are_sent_anew_when_the_host_forgets_a_batch(host, rounds):
    host.set(forgets=True)
    results = ask(rounds, num=2)
    assert outcomes(results) == {("failed", "engine_unavailable"): 2}
    assert all("knows of no batch" in end.error for end in results.values())


def test_files_keep_to_the_hosts_limits(host, rounds):
    rounds.limits = {"max_requests": 4}
    check_all_answered(rounds, host, ask(rounds))
    assert [len(batch) for batch in host.kept.submitted] == [4, 4, 1]


def test_a_file_has_no_more_bytes_than_the_host_takes(host, rounds):
    rounds.limits = {"max_bytes": 1500}
    host.set(max_bytes=1500)
    check_all_answered(rounds, host, ask(rounds))
    assert len(host.kept.submitted) > 2


def test_a_request_larger_than_a_file_is_refused_before_it_is_sent(host, rounds):
    rounds.limits = {"max_bytes": 1500}
    results = rounds.carry_out([request(0, material="x" * 2000), request(1)])
    ends = [results[request(number).request_key] for number in range(2)]
    assert [end.outcome for end in ends] == ["failed", "succeeded"]
    assert "a file of the host's batch API 1,500" in ends[0].error


def test_one_file_has_one_model_and_one_stage(host, rounds):
    rounds.carry_out([
        request(0),
        request(1, stage="other"),
        request(2, adapter="fine"),
        request(3),
    ])
    # The last request's model is an adapter that the engine does not have: it is not sent.
    assert sorted(len(batch) for batch in host.kept.submitted) == [1, 1, 2]


def test_more_files_go_out_as_batches_end_when_there_is_a_limit(host, rounds):
    rounds.limits = {"max_requests": 3, "max_files": 2}
    results = ask(rounds)
    check_all_answered(rounds, host, results)
    assert [len(batch) for batch in host.kept.submitted] == [3, 3, 3]


def test_batches_stay_within_the_budget_and_the_rest_goes_on_with_more(host, tmp_path):
    store = MemoryStore()
    budget = Budget(Caps(usd=0.0003))
    first = Rounds(url=host.url, store=store, folder=tmp_path, budget=budget)
    results = ask(first)
    assert budget.spent.usd <= 0.0003
    # A batch has only what fits at worst; what it did not take is for the next.
    assert 0 < len(host.kept.submitted[0]) < 5
    assert len(host.kept.submitted) > 1
    assert budget.spent.usd == pytest.approx(spent(results))
    classes = outcomes(results)
    assert classes["succeeded", None] + classes["over_budget", "budget_reached"] == NUM
    assert 0 < classes["succeeded", None] < NUM
    before = len(host.kept.submitted)
    rest = [key for key, end in results.items() if end.outcome != "succeeded"]
    second = Rounds(url=host.url, store=store, folder=tmp_path)
    again = second.carry_out([r for r in map(request, range(NUM)) if r.request_key in rest])
    assert outcomes(again) == {("succeeded", None): len(rest)}
    assert len(host.kept.submitted) > before
    assert set(times_sent(host)) == {1}


def test_a_line_is_counted_once_when_its_repair_has_to_wait_for_the_budget(host, tmp_path):
    host.set(invalid_every=3, bad_batches=1)
    budget = Budget(Caps(usd=1.0))
    rounds = Rounds(url=host.url, store=MemoryStore(), folder=tmp_path, budget=budget)
    requests = [request(number) for number in range(NUM)]
    endpoint, desk = open_desk(rounds)

    def go_on(asked):
        found = rounds._round(desk, endpoint, asked, "s00000")
        desk.wait(["s00000"], until_s=None, is_cancelled=lambda: False, tell=lambda _: None)
        return found, [one for one in asked if found[one.request_key].outcome == "over_budget"]

    with desk:
        _, left = go_on(requests)
        elsewhere = budget.hold("other", Amount(usd=0.9999))
        first, left = go_on(left)
        assert outcomes(first) == {("succeeded", None): 6, ("over_budget", "awaiting_batch"): 3}
        budget.settle(elsewhere, Amount())
        second, left = go_on(left)
        third, left = go_on(left)
    assert outcomes(third) == {("succeeded", None): 3}
    assert {end.attempts for end in third.values()} == {2}
    assert not left
    total = spent(first) + spent(second) + spent(third)
    assert total == pytest.approx(budget.spent.usd)


def test_a_later_process_takes_up_what_waits_and_sends_nothing(host, tmp_path):
    store = MemoryStore()
    host.set(takes_to_end=False)
    requests = [request(number) for number in range(NUM)]
    first = Rounds(url=host.url, store=store, folder=tmp_path)
    endpoint, desk = open_desk(first)
    with desk:
        desk.begin([])
        found = first._round(desk, endpoint, requests, "s00000")
        assert {end.error_class for end in found.values()} == {"awaiting_batch"}
        assert all("it goes into the next batch" in end.error for end in found.values())
        [told] = desk.waiting()
        assert told["lines"] == NUM
        assert told["batch_id"] == "batch-00002"
        assert told["since"]
        assert told["expires"]
    host.set(takes_to_end=True)
    # What is out counts against the budget of whoever goes on.
    budget = Budget(Caps(usd=1.0))
    second = Rounds(url=host.url, store=store, folder=tmp_path, budget=budget)
    results = second.carry_out(requests)
    check_all_answered(second, host, results)
    assert len(host.kept.submitted) == 1


class SharedStore(MemoryStore):
    """Another process does something once, by what it happens before or after."""

    def __init__(self):
        super().__init__()
        self.meanwhile = {}

    def _happen(self, when):
        self.meanwhile.pop(when, lambda: None)()

    def put(self, path, data):
        self._happen("before ends are put")
        super().put(path, data)

    def put_if_match(self, path, data, etag):
        found = super().put_if_match(path, data, etag)
        self._happen("after a record is changed")
        return found

    def delete(self, path):
        super().delete(path)
        self._happen("after something is deleted")


def test_nothing_is_left_in_the_sink_when_two_processes_collect_one_batch(host, tmp_path):
    store = SharedStore()
    host.set(takes_to_end=False)
    requests = [request(number) for number in range(NUM)]
    first = Rounds(url=host.url, store=store, folder=tmp_path / "first")
    second = Rounds(url=host.url, store=store, folder=tmp_path / "second")
    ended = []
    endpoint, desk = open_desk(first)
    with desk:
        desk.begin([])
        first._round(desk, endpoint, requests, SHARD)
        host.set(takes_to_end=True)
        store.meanwhile["before ends are put"] = lambda: ended.append(second.carry_out(requests))
        desk.wait([SHARD], until_s=None, is_cancelled=lambda: False, tell=lambda _: None)
        assert desk.waiting() == []
    check_all_answered(second, host, ended[0])


def test_paid_answers_stay_when_the_host_refuses_who_has_lost_the_shard(host, tmp_path):
    store = SharedStore()
    requests = [request(number) for number in range(NUM)]
    first = Rounds(url=host.url, store=store, folder=tmp_path / "first")
    second = Rounds(url=host.url, store=store, folder=tmp_path / "second")
    endpoint, desk = open_desk(first)
    _, other = open_desk(second)

    def take_over():
        with other:
            other.open(SHARD)
            other.find(line_id_of(requests[0].request_key, 0), SHARD)
            other.wait([SHARD], until_s=None, is_cancelled=lambda: False, tell=lambda _: None)
        host.set(refuse={"begin": 400}, refuse_times=1)

    store.meanwhile["after a record is changed"] = take_over
    with desk, pytest.raises(SinkChanged):
        first._round(desk, endpoint, requests, SHARD)
    check_all_answered(second, host, second.carry_out(requests))
    assert len(host.kept.submitted) == 1


def test_no_ends_are_left_when_another_process_puts_them_while_they_are_removed():
    store = SharedStore()
    record = BatchRecord(
        batch_key="key", shard=SHARD, stage="topic", run_id="run-1", base_url="http://host/v1",
        model="model", window="24h", lines={},
    )  # fmt: skip
    held = HeldRecord.create(store, record, FOLDER)
    other = HeldRecord.find(store, f"{FOLDER}/{record.path}", FOLDER)
    held.end(b"")

    def put_once_more():
        with pytest.raises(SinkChanged):
            other.end(b"")

    store.meanwhile["after something is deleted"] = put_once_more
    held.remove()
    assert store.objects == {}


def open_desk(rounds):
    endpoint = rounds.endpoint()
    keeping = Keeping(store=rounds.store, folder=FOLDER, scratch=rounds.folder / "scratch")
    limits = endpoint.profile.capabilities.batch_api
    return endpoint, Desk(endpoint, limits, keeping, rounds.budget, run_id=rounds.run_id)


def test_the_run_ends_when_the_host_has_no_batch_api(host, rounds):
    host.set(refuse={"upload": 404})
    with pytest.raises(EngineMisconfigured, match="404"):
        ask(rounds)


def test_no_key_is_told_when_the_host_refuses_it(tmp_path):
    with BatchHostServer(api_key="right") as host:
        rounds = Rounds(url=host.url, store=MemoryStore(), folder=tmp_path, api_key="s3cret-key")
        with pytest.raises(EngineMisconfigured) as error:
            ask(rounds)
    assert "s3cret-key" not in str(error.value)
    assert "check the API key for which api_key_env is missing (profile " in str(error.value)


def test_windows_are_hours_or_days_within_what_the_host_takes():
    assert (window_s("12h"), window_s("7d")) == (43_200, 604_800)
    limits = BatchLimits(min_window="12h", max_window="7d", models=("kimi-k2.5",))
    assert limits.misfit("1d", "kimi-k2.5") is None
    assert "from 12h to 7d, not 11h" in limits.misfit("11h", "kimi-k2.5")
    assert "takes kimi-k2.5, not kimi-k3" in limits.misfit("12h", "kimi-k3")
    with pytest.raises(ValueError, match="longer than"):
        BatchLimits(min_window="7d", max_window="12h")

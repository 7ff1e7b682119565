"""What a shard's report says of its answers."""

from engine.request import Result, Work
from flows.run.counts import Bill, count_stage
from flows.run.rows import Answered, Inquiry
from tests.flows.report_sink import Sample


def test_engines_that_answered_turns_of_an_agent_are_told_beside_who_answered_last(tmp_path):
    inquiry = Inquiry(
        stage=Sample(tmp_path).config.stages[0], mode="agent", fingerprint="", document=None, chunk=None,
        unit="0", route="masked",
    )  # fmt: skip
    result = Result(
        request_key="k", stage="pick", outcome="succeeded", mode="agent", engine="small", host="b:1",
        work=Work(num_steps=4, engines=("large", "small")),
    )  # fmt: skip
    end = Answered(
        inquiry=inquiry, result=result, results=[result], agreement=None, escalated=None, output=None,
        columns={}, citations=(), claims=(),
    )  # fmt: skip
    # The same request may stand behind several records.
    count = count_stage(
        2, [end, end], [], planned=0, bill=Bill(paid=frozenset(), cached=frozenset())
    )
    assert count.routes == {"masked\tlarge\t": 1, "masked\tsmall\tb:1": 1}

"""What a plan expects of the prefix cache, in whole blocks where their size is known."""

import pytest

from config.pipeline import StageConfig
from connectors.sinks import parquet
from connectors.sinks.lake import Lake
from flows.planned_hits import measured_block, planned_hits
from flows.row_estimate import RowTokens
from flows.run.layout import whole_blocks
from flows.stage_estimate import Load, Material
from flows.usage_records import load_usage

OUTPUT = {"type": "object", "properties": {"a": {"type": "string"}}}


@pytest.mark.parametrize(
    ("tokens", "block", "expected"),
    [(140, None, 140), (140, 16, 128), (127, 128, 0), (128, 128, 128), (0, 16, 0)],
)
def test_tokens_count_as_far_as_they_fill_blocks(tokens, block, expected):
    assert whole_blocks(tokens, block) == expected


def hits(over, load, block):
    stage = StageConfig(name="s", prompt="What?", output=OUTPUT, over=over)
    material = Material(
        num_documents=2,
        num_chunks=2,
        chunk_tokens=1_000,
        num_rows=0,
        row_tokens=RowTokens(total=0.0, shared=0.0),
        sampled=((1, 0), (1, 0)),
        chunk_sizes=(400, 600),
        cache_block_tokens=block,
    )
    return planned_hits(stage, load, 100, material=material)


def test_every_token_counts_where_blocks_are_not_known():
    assert hits("chunk", Load(2, 2, 1_000, 1_000), None) == 2 * 100 + 1_000


def test_chunks_count_by_the_blocks_that_they_fill():
    # 500 and 700 tokens with what stands in front: 3 and 5 blocks of 128.
    assert hits("chunk", Load(2, 2, 1_000, 1_000), 128) == pytest.approx(8 * 128)


def test_instructions_shorter_than_a_block_are_no_hit():
    assert hits("chunk", Load(2, 2, 1_000, 0), 128) == 0
    assert hits("chunk", Load(2, 2, 1_000, 0), 16) == 2 * 96


def test_what_rows_share_ends_in_the_middle_of_a_block():
    assert hits("rows", Load(10, 10, 5_000, 1_000), 16) == 10 * 96 + 1_000 - 10 * 8
    assert hits("rows", Load(10, 10, 5_000, 20), 16) == 10 * 96


@pytest.mark.parametrize(
    ("cached", "expected"),
    [([128, 256, 384, 640], 128), ([256, 512, 1_024, 768, 0, None], 256), ([128, None], None), ([384] * 5, 384), ([3, 4, 5, 7], None)],
)  # fmt: skip
def test_block_is_what_the_hits_of_earlier_runs_have_in_common(tmp_path, cached, expected):
    folder = tmp_path / "runs" / "one" / "usage"
    folder.mkdir(parents=True)
    rows = [
        {"request_key": f"key-{n}", "row_key": "", "stage": "s", "cached_tokens": tokens}
        for n, tokens in enumerate(cached)
    ]
    (folder / "s00000.parquet").write_bytes(parquet.to_parquet(rows, parquet.USAGE))
    assert measured_block(load_usage(Lake(str(tmp_path)))) == expected


def test_no_block_is_known_of_an_empty_sink(tmp_path):
    assert measured_block(load_usage(Lake(str(tmp_path)))) is None

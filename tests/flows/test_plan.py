import itertools
import re

import pytest

from config.errors import ConfigError
from connectors.document import SourceRef
from connectors.sinks.lake import Lake
from connectors.storage import LocalStorage
from flows.run.assignments import Assignments
from flows.run.plan import Planner, SinkState, glob_regex, limited, list_sources


def ref(path):
    return SourceRef(uri=f"file:///{path}", path=path, size_bytes=1, etag="e")


@pytest.mark.parametrize(
    ("glob", "matching", "other"),
    [
        ("**/*", ["a", "a/b/c.pdf"], []),
        ("**/*.pdf", ["a.pdf", "x/y/a.pdf"], ["a.txt", "a.pdf/b"]),
        ("reports/*.pdf", ["reports/a.pdf"], ["reports/x/a.pdf", "a.pdf"]),
        ("a?.c[1]", ["ab.c[1]"], ["abb.c[1]", "ab.c1"]),
    ],
)
def test_glob_matches_like_a_shell_when_translated(glob, matching, other):
    pattern = re.compile(glob_regex(glob))
    assert [path for path in matching if not pattern.fullmatch(path)] == []
    assert [path for path in other if pattern.fullmatch(path)] == []


def test_sources_are_in_path_order_and_filtered_when_listed(tmp_path):
    for name in ("b.pdf", "a/z.pdf", "a/y.txt"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"x")
    found = list_sources(LocalStorage(tmp_path), ["**/*.pdf"])
    assert [source.path for source in found] == ["a/z.pdf", "b.pdf"]


def planner(lake, sources, per_shard=2):
    state = SinkState(assignments=Assignments(lake), commits={}, open_shards=set(), work_key="any")
    return Planner(sources=sources, state=state, documents_per_shard=per_shard)


def paths(shards):
    return {shard.shard: [source.path for source in shard.sources] for shard in shards}


def test_documents_keep_their_shard_when_others_come_and_go(tmp_path):
    lake = Lake(str(tmp_path))
    first = planner(lake, [ref(f"d{i}") for i in range(5)])
    assert paths(first.shards()) == {
        "s00000": ["d0", "d1"],
        "s00001": ["d2", "d3"],
        "s00002": ["d4"],
    }
    second = planner(lake, [ref("a"), ref("d1"), ref("d4"), ref("z")])
    assert paths(second.shards()) == {"s00000": ["d1"], "s00002": ["d4"], "s00003": ["a", "z"]}
    # All documents of s00001 are gone, and it was never written.
    assert second.unchanged == {"s00001": 0}


def test_first_shard_is_planned_while_the_listing_goes_on(tmp_path):
    def listing():
        yield from (ref("d0"), ref("d1"))
        raise AssertionError("the listing was read on before the first shard was given out")

    shard = next(planner(Lake(str(tmp_path)), listing()).shards())
    assert [source.path for source in shard.sources] == ["d0", "d1"]


def test_no_document_has_two_shards_when_two_runs_cut_at_once(tmp_path):
    lake = Lake(str(tmp_path))
    first = planner(lake, [ref(f"d{i}") for i in range(9)])
    second = planner(lake, [ref(f"d{i}") for i in range(1, 12)])
    found = []
    for shards in itertools.zip_longest(first.shards(), second.shards()):
        found += [shard for shard in shards if shard is not None]
    owners = {}
    for shard in found:
        for source in shard.sources:
            owners.setdefault(source.path, set()).add(shard.shard)
    assert sorted(owners) == sorted(f"d{i}" for i in range(12))
    assert all(len(shards) == 1 for shards in owners.values())
    assert Assignments(lake).shard_of == {path: min(shards) for path, shards in owners.items()}


def test_limit_is_refused_when_the_sink_holds_documents_beyond_it():
    sources = [ref("a"), ref("b"), ref("c")]
    assert limited(sources, {"a": "s00000"}, 1) == sources[:1]
    with pytest.raises(ConfigError, match="already holds 1 document beyond it, such as 'c'"):
        limited(sources, {"a": "s00000", "c": "s00000"}, 2)

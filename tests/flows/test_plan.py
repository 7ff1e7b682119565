import re

import pytest

from config.errors import ConfigError
from connectors.document import SourceRef
from connectors.storage import LocalStorage
from flows.run.plan import cut_shards, glob_regex, list_sources, select


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


def test_documents_keep_their_shard_when_others_come_and_go():
    first = cut_shards([ref(f"d{i}") for i in range(5)], {}, 2)
    assert [[s.path for s in shard.sources] for shard in first] == [
        ["d0", "d1"],
        ["d2", "d3"],
        ["d4"],
    ]
    known = {source.path: shard.shard for shard in first for source in shard.sources}
    second = cut_shards([ref("a"), ref("d1"), ref("d4"), ref("z")], known, 2)
    assert {shard.shard: [s.path for s in shard.sources] for shard in second} == {
        "s00000": ["d1"],
        "s00001": [],
        "s00002": ["d4"],
        "s00003": ["a", "z"],
    }


def test_limit_is_refused_when_the_sink_holds_documents_beyond_it():
    sources = [ref("a"), ref("b"), ref("c")]
    assert select(sources, {"a": "s00000"}, 1) == sources[:1]
    with pytest.raises(ConfigError, match="already holds 1 document beyond it, such as 'c'"):
        select(sources, {"a": "s00000", "c": "s00000"}, 2)

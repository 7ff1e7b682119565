"""Vectors of texts: kept in a sink, and searched."""

import asyncio
import resource
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest

from connectors.errors import StorageError
from connectors.storage import open_storage
from connectors.vectors import VectorStore, key_of

NUM_DIMS = 8


def store_of(tmp_path, name="a", num_dims=NUM_DIMS):
    storage = open_storage(str(tmp_path / "sink"))
    return VectorStore(storage, "vectors/m", tmp_path / name, num_dims=num_dims, texts_per_call=4)


def axis(number, length=1.0):
    vector = [0.0] * NUM_DIMS
    vector[number] = length
    return vector


def put(store, **texts):
    store.put({key_of(text): vector for text, vector in texts.items()})


def missing(store, keys):
    async def claim():
        async with store.claiming(keys) as claimed:
            return claimed.own

    return asyncio.run(claim())


def test_vectors_are_found_by_another_store_over_the_same_sink(tmp_path):
    put(store_of(tmp_path), north=axis(0), east=axis(1))
    other = store_of(tmp_path, "b")
    keys = [key_of("east"), key_of("north"), key_of("south"), key_of("south")]
    assert missing(other, keys) == [key_of("south")]
    numbers = other.numbers(keys[:2])
    assert other.nearest(axis(1, 3.0), numbers, 5) == [(0, pytest.approx(1.0)), (1, 0.0)]


def test_nearest_are_those_of_a_whole_product_whatever_part_is_searched(tmp_path):
    pick = np.random.default_rng(1)
    vectors = pick.standard_normal((500, NUM_DIMS))
    keys = [key_of(str(number)) for number in range(500)]
    store = store_of(tmp_path)
    for at in range(0, 500, 100):
        store.put(dict(zip(keys[at : at + 100], vectors[at : at + 100], strict=True)))
    query = pick.standard_normal(NUM_DIMS)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for part in (list(range(500)), list(range(499, 0, -7))):
        found = store.nearest(query, store.numbers([keys[n] for n in part]), 10)
        best = sorted(part, key=lambda n: -float(unit[n] @ query))[:10]
        assert [part[place] for place, _ in found] == best
    assert store.nearest(query, store.numbers([]), 10) == []


def test_vector_of_zeros_is_near_nothing(tmp_path):
    store = store_of(tmp_path)
    put(store, empty=[0.0] * NUM_DIMS, north=axis(0))
    found = store.nearest(axis(0), store.numbers([key_of("empty"), key_of("north")]), 2)
    assert found == [(1, pytest.approx(1.0)), (0, 0.0)]


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda _: b"", lambda _: b"no vectors"])
def test_broken_object_is_passed_over_and_its_texts_are_missing(tmp_path, damage):
    put(store_of(tmp_path), north=axis(0))
    (file,) = (tmp_path / "sink" / "vectors" / "m").iterdir()
    file.write_bytes(damage(file.read_bytes()))
    store = store_of(tmp_path, "b")
    assert missing(store, [key_of("north")]) == [key_of("north")]
    put(store, north=axis(0))
    assert missing(store_of(tmp_path, "c"), [key_of("north")]) == []


class Failing:
    """A storage that fails at the second object that is read, once."""

    def __init__(self, storage):
        self._storage, self.num_found = storage, 0

    def __getattr__(self, name):
        return getattr(self._storage, name)

    def find(self, path):
        self.num_found += 1
        if self.num_found == 2:
            raise StorageError("no answer", uri=path)
        return self._storage.find(path)


def test_vectors_are_loaded_once_where_the_sink_failed_in_between(tmp_path):
    first = store_of(tmp_path)
    for number in range(NUM_DIMS):
        put(first, **{str(number): axis(number)})
    storage = Failing(open_storage(str(tmp_path / "sink")))
    store = VectorStore(storage, "vectors/m", tmp_path / "b", num_dims=NUM_DIMS, texts_per_call=4)
    keys = [key_of(str(number)) for number in range(NUM_DIMS)]
    with pytest.raises(StorageError, match="no answer"):
        missing(store, keys)
    assert missing(store, keys) == []
    assert (tmp_path / "b" / "vectors.f4").stat().st_size == NUM_DIMS * NUM_DIMS * 4
    assert sorted(store.numbers(keys)) == list(range(NUM_DIMS))
    assert store.nearest(axis(3), store.numbers(keys), 1) == [(3, pytest.approx(1.0))]


def test_vectors_of_another_length_are_passed_over(tmp_path):
    put(store_of(tmp_path), north=axis(0))
    other = store_of(tmp_path, "b", num_dims=4)
    assert missing(other, [key_of("north")]) == [key_of("north")]


def test_text_is_claimed_by_one_at_a_time_and_free_again_when_that_one_fails(tmp_path):
    store = store_of(tmp_path)
    keys = [key_of("a"), key_of("b")]

    async def claim():
        with suppress(RuntimeError):
            async with store.claiming(keys[:1]) as first:
                async with store.claiming([*keys, *keys]) as second:
                    pass
                raise RuntimeError
        async with store.claiming(keys) as third:
            return first, second, third

    first, second, third = asyncio.run(claim())
    assert (first.own, first.others) == (keys[:1], [])
    assert (second.own, second.others) == (keys[1:], keys[:1])
    assert (third.own, third.others) == (keys, [])


def test_who_waits_for_a_claim_of_another_thread_is_woken_at_its_end(tmp_path):
    store = store_of(tmp_path)
    keys = [key_of("a")]
    is_claimed, may_end = threading.Event(), threading.Event()

    async def hold():
        async with store.claiming(keys):
            is_claimed.set()
            await asyncio.to_thread(may_end.wait, 60)
            await asyncio.to_thread(put, store, a=axis(0))

    async def wait():
        async with store.claiming(keys) as claimed:
            assert not claimed.own
        given_up = asyncio.create_task(claimed.others_end())
        waiting = asyncio.create_task(claimed.others_end())
        await asyncio.sleep(0)
        # One who gives up takes nothing from the others.
        given_up.cancel()
        await asyncio.wait({given_up})
        assert not waiting.done()
        may_end.set()
        await waiting

    with ThreadPoolExecutor(1) as threads:
        holding = threads.submit(asyncio.run, hold())
        assert is_claimed.wait(60)
        asyncio.run(wait())
        holding.result()
    assert missing(store, keys) == []


class Held:
    """A storage that lists nothing before it is let go."""

    def __init__(self, storage):
        self._storage, self.is_listing, self.may_list = (
            storage,
            threading.Event(),
            threading.Event(),
        )

    def __getattr__(self, name):
        return getattr(self._storage, name)

    def list(self, prefix):
        self.is_listing.set()
        assert self.may_list.wait(60)
        return self._storage.list(prefix)


def test_searches_that_wait_for_the_sink_leave_threads_to_other_tools(tmp_path):
    storage = Held(open_storage(str(tmp_path / "sink")))
    store = VectorStore(storage, "v", tmp_path / "a", num_dims=NUM_DIMS, texts_per_call=4)

    async def claim(number):
        async with store.claiming([key_of(str(number))]) as claimed:
            return claimed.own

    async def search():
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        claims = [asyncio.create_task(claim(number)) for number in range(3)]
        # The one thread of the loop is free: else this would wait for what only comes afterwards.
        await asyncio.to_thread(storage.is_listing.wait, 60)
        assert not any(one.done() for one in claims)
        storage.may_list.set()
        return await asyncio.gather(*claims)

    assert asyncio.run(search()) == [[key_of(str(number))] for number in range(3)]


def test_many_threads_put_and_search_at_once(tmp_path):
    store = store_of(tmp_path)
    put(store, north=axis(0))

    def work(number):
        for count in range(20):
            text = f"{number}-{count}"
            put(store, **{text: axis(1 + number % 7)})
            found = store.nearest(axis(1 + number % 7), store.numbers([key_of(text)]), 1)
            assert found == [(0, pytest.approx(1.0))]
        done.append(number)

    done: list[int] = []
    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == list(range(8))


def test_error_names_the_file_where_this_machine_cannot_keep_vectors(tmp_path):
    (tmp_path / "a").write_text("no folder")
    with pytest.raises(StorageError, match=r"vectors.f4.*check that the disk has room"):
        put(store_of(tmp_path), north=axis(0))


def test_vectors_are_found_after_a_write_that_failed_halfway(tmp_path):
    store = store_of(tmp_path)
    for number in range(20):
        put(store, **{f"old {number}": axis(number % 2)})
    row = NUM_DIMS * 4
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Of three rows one and a half can be written; the objects in the sink are smaller than the file is.
    resource.setrlimit(resource.RLIMIT_FSIZE, (20 * row + row * 3 // 2, most))
    try:
        with pytest.raises(StorageError, match="vectors.f4"):
            put(store, north=axis(2), east=axis(3), south=axis(4))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert (tmp_path / "a" / "vectors.f4").stat().st_size > 20 * row
    numbers = store.numbers([key_of("old 1")])
    assert store.nearest(axis(1), numbers, 1) == [(0, pytest.approx(1.0))]
    put(store, north=axis(2), east=axis(3), south=axis(4))
    numbers = store.numbers([key_of(text) for text in ("old 1", "north", "east", "south")])
    for place, number in enumerate((1, 2, 3, 4)):
        assert store.nearest(axis(number), numbers, 1) == [(place, pytest.approx(1.0))]


def test_vectors_are_found_again_on_s3(bucket, tmp_path):
    for name in ("a", "b"):
        store = VectorStore(
            open_storage(bucket), "v", tmp_path / name, num_dims=NUM_DIMS, texts_per_call=4
        )
        if name == "a":
            for number in range(12):
                put(store, **{str(number): axis(number % NUM_DIMS)})
    keys = [key_of(str(number)) for number in range(12)]
    assert not missing(store, keys)
    assert store.nearest(axis(3), store.numbers(keys), 2) == [(3, 1.0), (11, 1.0)]

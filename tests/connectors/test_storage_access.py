"""How buckets are reached: profiles, keys that expire, places without keys, two stores at once."""

import json
import sys
import textwrap
import time
from datetime import UTC, datetime, timedelta

import pytest
from botocore.credentials import Credentials, RefreshableCredentials

from connectors.errors import StorageError, StorageUnavailable
from connectors.sinks.lake import Lake
from connectors.sinks.parquet import DOCUMENTS, to_parquet
from connectors.storage import Access, open_storage
from connectors.storage.access import Keys
from tests.fakes.object_store import ARCHIVE, OPEN_DATA
from tests.fakes.s3_server import FakeStore

PART = "documents/s00000.parquet"


class Issuer:
    """A credential_process: hands out the keys in a file, and notes each call."""

    def __init__(self, folder):
        self.file, self._calls = folder / "keys.json", folder / "calls"
        self._calls.touch()
        self.script = folder / "issue.py"
        self.script.write_text(
            textwrap.dedent(f"""
                import pathlib, sys
                with open({str(self._calls)!r}, "a") as file:
                    file.write("x")
                try:
                    print(pathlib.Path({str(self.file)!r}).read_text())
                except FileNotFoundError:
                    sys.exit("the session has ended")
            """)
        )

    @property
    def num_calls(self):
        return self._calls.stat().st_size

    def issue(self, key, secret, lifetime):
        end = datetime.now(UTC) + lifetime
        keys = {"Version": 1, "AccessKeyId": key, "SecretAccessKey": secret}
        self.file.write_text(json.dumps({**keys, "Expiration": end.isoformat()}))


@pytest.fixture
def profiles(bucket, tmp_path, monkeypatch):
    """Write profiles into the AWS configuration, and leave no keys in the environment."""
    file = tmp_path / "aws-config"
    monkeypatch.setenv("AWS_CONFIG_FILE", str(file))

    def write(**profiles):
        file.write_text(
            "\n".join(
                f"[profile {name}]\n" + "".join(f"{key} = {value}\n" for key, value in keys.items())
                for name, keys in profiles.items()
            )
        )

    return write


def by_profile(monkeypatch, name):
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(variable)
    monkeypatch.setenv("AWS_PROFILE", name)


def eventually(call):
    """Return what the call gives once it is allowed; obstore keeps keys for a moment."""
    for _ in range(100):
        try:
            return call()
        except StorageError:
            time.sleep(0.05)
    return call()


def test_keys_are_renewed_when_they_expire(object_store, bucket, profiles, tmp_path, monkeypatch):
    issuer = Issuer(tmp_path)
    profiles(expiring={"credential_process": f"{sys.executable} {issuer.script}"})
    by_profile(monkeypatch, "expiring")
    issuer.issue("reader", object_store.keys["reader"], timedelta(minutes=5))
    storage, lake = open_storage(bucket), Lake(bucket)
    assert list(storage.list()) == []
    with pytest.raises(StorageError, match="access denied"):
        storage.put("a.txt", b"x")
    environment = object_store.environment
    issuer.issue(
        environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"], timedelta(hours=1)
    )
    eventually(lambda: storage.put("a.txt", b"x"))
    eventually(lambda: lake.put_part(PART, to_parquet([], DOCUMENTS), history="old"))
    assert lake.read_table("documents").height == 0
    before = issuer.num_calls
    for _ in range(20):
        assert storage.get("a.txt") == b"x"
    assert lake.read_table("documents").height == 0
    assert issuer.num_calls == before


def test_run_is_stopped_with_the_reason_when_keys_cannot_be_renewed(
    object_store, bucket, profiles, tmp_path, monkeypatch
):
    issuer = Issuer(tmp_path)
    profiles(ending={"credential_process": f"{sys.executable} {issuer.script}"})
    by_profile(monkeypatch, "ending")
    issuer.issue("reader", object_store.keys["reader"], timedelta(minutes=5))
    storage = open_storage(bucket)
    assert list(storage.list()) == []
    issuer.file.unlink()
    time.sleep(0.2)
    with pytest.raises(StorageUnavailable, match="cannot be renewed.*the session has ended.*sso"):
        storage.get("a.txt")
    with pytest.raises(StorageError, match="the session has ended"):
        open_storage(bucket)


def test_obstore_asks_again_as_long_as_keys_last_when_they_are_handed_out():
    clock = [datetime.now(UTC)]
    lifetime = [timedelta(hours=1)]
    issued = []

    def issue():
        issued.append(clock[0])
        end = (clock[0] + lifetime[0]).isoformat()
        return {"access_key": "a", "secret_key": "s", "token": "t", "expiry_time": end}

    end = clock[0] + lifetime[0]
    credentials = RefreshableCredentials(
        "a", "s", "t", end, issue, "test", time_fetcher=lambda: clock[0]
    )
    keys = Keys(credentials)
    left = keys()["expires_at"] - datetime.now(UTC)
    assert timedelta(minutes=9) < left <= timedelta(minutes=10)
    assert issued == []
    clock[0] += timedelta(minutes=55)
    lifetime[0] = timedelta(minutes=2)
    # Shorter than botocore renews ahead: asked for anew each time.
    assert keys()["expires_at"] <= datetime.now(UTC)
    assert len(issued) == 1
    assert Keys(Credentials("a", "s"))()["expires_at"] is None


def test_profile_goes_before_the_environment_when_named(object_store, bucket, profiles):
    profiles(
        reading={
            "aws_access_key_id": "reader",
            "aws_secret_access_key": object_store.keys["reader"],
        }
    )
    open_storage(bucket).put("a.txt", b"x")
    storage = open_storage(bucket, Access(profile="reading"))
    assert storage.get("a.txt") == b"x"
    with pytest.raises(StorageError, match="access denied; the credentials of profile 'reading'"):
        storage.put("a.txt", b"y")


def test_profile_is_named_when_there_is_none(bucket, profiles):
    profiles()
    with pytest.raises(StorageError, match=r"archivee\) could not be found"):
        open_storage(bucket, Access(profile="archivee"))


def test_address_and_region_of_a_profile_go_before_the_environment_when_set(bucket, profiles):
    with FakeStore({"in/a.txt": b"x"}) as store:
        keys = {"aws_access_key_id": "a", "aws_secret_access_key": "s"}
        profiles(near=keys | {"endpoint_url": store.url, "region": "eu-near-1"})
        assert open_storage("s3://b/in", Access(profile="near")).get("a.txt") == b"x"
        far = Access(endpoint_url=store.url, region="eu-far-1")
        assert open_storage("s3://b/in", far).get("a.txt") == b"x"
    signed = [seen.authorization for seen in store.requests]
    assert "/eu-near-1/s3/" in signed[0]
    assert "/eu-far-1/s3/" in signed[1]


def test_aws_itself_is_meant_when_a_place_names_it(bucket):
    # The environment names another store.
    access = Access(endpoint_url="https://s3.eu-west-1.amazonaws.com", region="eu-west-1")
    storage = open_storage("s3://b/in", access)
    assert storage.session.endpoint_url == "https://s3.eu-west-1.amazonaws.com"


def test_requests_are_unsigned_when_anonymous_though_there_are_keys(bucket, monkeypatch):
    with FakeStore({"in/": b"", "in/a.txt": b"x", "in/b//c.txt": b"y"}) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.url)
        storage = open_storage("s3://b/in", Access(anonymous=True))
        assert [item.path for item in storage.list()] == ["a.txt", "b//c.txt"]
        assert storage.get("b//c.txt") == b"y"
        assert storage.diagnose() == "fine"
    assert len(store.requests) > 3
    assert {seen.authorization for seen in store.requests} == {None}


def test_public_bucket_is_read_and_not_written_when_anonymous(bucket):
    Lake(f"s3://{OPEN_DATA}/lake").put_part(PART, to_parquet([], DOCUMENTS), history="old")
    lake = Lake(f"s3://{OPEN_DATA}/lake", Access(anonymous=True))
    assert lake.read_table("documents").height == 0
    with pytest.raises(StorageError, match="is not public; leave `anonymous` out"):
        lake.put_json("a.json", {})
    with pytest.raises(StorageError, match="is not public"):
        list(open_storage(f"s3://{ARCHIVE}", Access(anonymous=True)).list())

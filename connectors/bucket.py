"""Makes the bucket of a test or demo store, and tells when the store takes writes."""

from __future__ import annotations

from contextlib import suppress

import botocore.exceptions
import botocore.session
from botocore.config import Config

_ONE_TRY = Config(connect_timeout=2, read_timeout=5, retries={"total_max_attempts": 1})
_PROBE_KEY = "_headrace-probe"


def bucket_takes_writes(
    bucket: str, *, endpoint_url: str, access_key: str, secret_key: str
) -> bool:
    """Return whether a write to `bucket` succeeds, after making it where it is missing."""
    client = botocore.session.Session().create_client(
        "s3",
        endpoint_url=endpoint_url,
        region_name="us-east-1",
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        config=_ONE_TRY,
    )
    try:
        taken = client.exceptions
        with suppress(taken.BucketAlreadyExists, taken.BucketAlreadyOwnedByYou):
            client.create_bucket(Bucket=bucket)
        client.put_object(Bucket=bucket, Key=_PROBE_KEY, Body=b"")
        client.delete_object(Bucket=bucket, Key=_PROBE_KEY)
    except (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError):
        return False
    return True

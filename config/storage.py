"""How places in object storage are reached."""

from __future__ import annotations

import re
from typing import Self

from pydantic import field_validator, model_validator

from config.model import Model
from connectors.storage import Access


class StorageConfig(Model):
    """How one place in object storage is reached.

    What is left out comes from the profile, then from the environment (`AWS_PROFILE`,
    `AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, `AWS_REGION`). Keys and secrets are never here: they are
    in the profile's files or in the environment. The run keeps this in its sink, and this machine
    remembers how it reached the sink: resume, retry, records and report need not be told. Commands
    without a pipeline (`headrace ask`), and those with a `--sink` that this machine has not written
    to, go by the environment alone.
    """

    profile: str | None = None
    """Profile of `~/.aws/config` or `~/.aws/credentials`: keys, role, SSO or `credential_process`, address
    and region."""
    endpoint_url: str | None = None
    """Address of the store, such as `http://minio:9000`; of AWS itself `https://s3.REGION.amazonaws.com`,
    where the environment names another one."""
    region: str | None = None
    """Region of the bucket. None: `us-east-1` where nothing else says one."""
    anonymous: bool = False
    """Send requests unsigned, also where there are credentials: for public data."""

    @field_validator("endpoint_url")
    @classmethod
    def _check_address(cls, url: str | None) -> str | None:
        if url is not None and not re.fullmatch(r"https?://[^/@?\s]+(/[^@?\s]*)?", url):
            # Not shown: what stands before an @ may be a password.
            raise ValueError("endpoint_url must be like http://host:9000, without user or password")
        return url

    @model_validator(mode="after")
    def _check_keys(self) -> Self:
        if self.anonymous and self.profile is not None:
            raise ValueError("anonymous and profile exclude each other; drop one")
        return self

    def access(self) -> Access:
        """Return what storage is opened with."""
        return Access(
            profile=self.profile,
            endpoint_url=self.endpoint_url,
            region=self.region,
            anonymous=self.anonymous,
        )

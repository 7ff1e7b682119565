"""How an object store is reached: the AWS credential chain, resolved by botocore for every client."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import botocore
import botocore.session
from botocore.config import Config
from botocore.credentials import Credentials, RefreshableCredentials
from botocore.exceptions import BotoCoreError
from botocore.utils import parse_timestamp
from obstore.store import S3Store

if TYPE_CHECKING:
    from obstore.store import S3Credential

ONE_TRY = Config(connect_timeout=5, read_timeout=10, retries={"total_max_attempts": 1})
"""For a look at the bucket that is quick to fail."""
_WORK = Config(
    connect_timeout=5, read_timeout=60, retries={"mode": "standard", "total_max_attempts": 4}
)
# botocore itself knows the second name only.
_VARIABLES = {"region": ("region", ["AWS_REGION", "AWS_DEFAULT_REGION"], None, None)}
_ISO_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3}|\.\d{6})?Z")
_RENEWED_S = 600
"""Seconds before the end of keys at which botocore renews them for certain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How to reach a place in object storage; what is not said comes from the environment."""

    profile: str | None = None
    endpoint_url: str | None = None
    region: str | None = None
    anonymous: bool = False


class Session:
    """An access with region, address and credentials resolved.

    What the access or its profile says goes before the environment.
    """

    def __init__(self, access: Access) -> None:
        """Resolve the access.

        Raises:
            BotoCoreError: There is no such profile, or its credentials cannot be fetched.
        """
        self._session = botocore.session.Session(_VARIABLES, profile=access.profile)
        parsers = self._session.get_component("response_parser_factory")
        parsers.set_parser_defaults(timestamp_parser=_timestamp)
        profile = self._session.get_scoped_config() if access.profile is not None else {}
        self.profile = access.profile
        self.is_anonymous = access.anonymous
        self.region: str = (
            access.region
            or profile.get("region")
            or self._session.get_config_variable("region")
            or "us-east-1"
        )
        self._endpoint_url = access.endpoint_url or self._endpoint_in(profile)
        credentials = None if access.anonymous else self._session.get_credentials()
        self.keys = None if credentials is None else Keys(credentials)
        """What requests are signed with; None where they are not."""
        self._making = threading.Lock()
        self.worker = self.client(_WORK)
        """A client that tries four times, as obstore's store does."""
        self.endpoint_url = str(self.worker.meta.endpoint_url)

    def _endpoint_in(self, profile: Mapping[str, Any]) -> str | None:
        services = self._session.full_config.get("services", {}).get(profile.get("services"), {})
        found = services.get("s3", {}).get("endpoint_url") or profile.get("endpoint_url")
        return None if found is None else str(found)

    def client(self, config: Config) -> Any:  # noqa: ANN401 - botocore makes its classes at run time
        """Return a new botocore client for S3."""
        if self.keys is None:
            config = config.merge(Config(signature_version=botocore.UNSIGNED))
        # Clients may be used by several threads, but not made.
        with self._making:
            return self._session.create_client(
                "s3", region_name=self.region, endpoint_url=self._endpoint_url, config=config
            )

    def store(self, bucket: str) -> S3Store:
        """Return obstore's store for a bucket; it tries four times, within half a minute."""
        # Everything is said, since obstore fills in the rest from the environment.
        return S3Store(
            bucket,
            region=self.region,
            endpoint=self.endpoint_url,
            skip_signature=self.keys is None,
            credential_provider=self.keys,
            client_options={
                "allow_http": self.endpoint_url.startswith("http://"),
                "connect_timeout": "5s",
            },
            retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=30)},
        )


def _timestamp(value: object) -> datetime:
    """Return a time in an answer; botocore's own way takes most of the time of a listing."""
    if isinstance(value, str) and _ISO_TIME.fullmatch(value):
        return datetime.fromisoformat(value)
    found = parse_timestamp(value)
    assert isinstance(found, datetime)
    return found


class Keys:
    """Hands out botocore's keys, and tells obstore when to ask again: roles and SSO renew theirs."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self.failure: str | None = None
        """Why the last attempt to renew them failed."""

    def __call__(self) -> S3Credential:
        """Return keys that are valid now.

        Raises:
            BotoCoreError: They cannot be renewed.
            RuntimeError: What they were renewed to has expired already.
        """
        try:
            keys = self._credentials.get_frozen_credentials()
        except (BotoCoreError, RuntimeError) as exc:
            self.failure = " ".join(str(exc).split())
            raise
        self.failure = None
        return {
            "access_key_id": keys.access_key,
            "secret_access_key": keys.secret_key,
            "token": keys.token,
            "expires_at": self._ask_again(),
        }

    def _ask_again(self) -> datetime | None:
        """Return the end of the time that the keys are good for; botocore does not say it itself."""
        if not isinstance(self._credentials, RefreshableCredentials):
            return None
        is_short = self._credentials.refresh_needed(_RENEWED_S)
        return datetime.now(UTC) + timedelta(seconds=0 if is_short else _RENEWED_S)

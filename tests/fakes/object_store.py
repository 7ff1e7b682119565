"""SeaweedFS with several identities, for what one set of credentials cannot show."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, ClassVar

from connectors.bucket import bucket_takes_writes
from flows.services import ObjectStore

if TYPE_CHECKING:
    from engine.process import Command

ARCHIVE = "archive"
OPEN_DATA = "open-data"


class SharedStore(ObjectStore):
    """The store of the demo, with a reader of its bucket, an archivist of another, and a public one."""

    keys: ClassVar = {"reader": "reader-secret", "archivist": "archivist-secret"}
    """Secret by access key."""

    def command(self) -> Command:
        """Return the demo's command, with more identities in its file."""
        command = super().command()
        file = self.folder / "identities.json"
        known = json.loads(file.read_text(encoding="utf-8"))
        allowed = {
            "reader": [f"Read:{self.bucket}", f"List:{self.bucket}"],
            "archivist": [f"{action}:{ARCHIVE}" for action in ("Read", "Write", "List")],
        }
        known["identities"] += [
            {
                "name": name,
                "credentials": [{"accessKey": name, "secretKey": self.keys[name]}],
                "actions": actions,
            }
            for name, actions in allowed.items()
        ]
        public = [f"{action}:{OPEN_DATA}" for action in ("Read", "List")]
        known["identities"].append({"name": "anonymous", "actions": public})
        file.write_text(json.dumps(known), encoding="utf-8")
        return command

    def is_ready(self) -> bool:
        """Tell whether writes to all buckets succeed."""
        return all(
            bucket_takes_writes(
                bucket,
                endpoint_url=self.address,
                access_key=self.environment["AWS_ACCESS_KEY_ID"],
                secret_key=self.environment["AWS_SECRET_ACCESS_KEY"],
            )
            for bucket in (self.bucket, ARCHIVE, OPEN_DATA)
        )

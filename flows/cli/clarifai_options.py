"""Options of `engine plan --emit`: what a deployment on Clarifai is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from engine.serving.clarifai import ClarifaiOptions

_PANEL = "A deployment on Clarifai"

EmitOption = Annotated[
    Path | None,
    typer.Option(
        "--emit",
        metavar="DIR",
        help="Write the files of a deployment into this folder; --gpus are those of one replica.",
        rich_help_panel=_PANEL,
    ),
]
UserIdOption = Annotated[
    str | None, typer.Option("--user-id", help="Clarifai's user id.", rich_help_panel=_PANEL)
]
ModelVersionOption = Annotated[
    str | None,
    typer.Option(
        "--model-version",
        help="Version that `clarifai model upload` has printed.",
        rich_help_panel=_PANEL,
    ),
]
InstanceOption = Annotated[
    str | None,
    typer.Option(
        "--instance",
        help="Clarifai's id of an instance with these GPUs; AWS's if left out.",
        rich_help_panel=_PANEL,
    ),
]
CloudOption = Annotated[
    str, typer.Option("--cloud", help="Where the GPUs are.", rich_help_panel=_PANEL)
]
RegionOption = Annotated[
    str, typer.Option("--region", help="Where in that cloud.", rich_help_panel=_PANEL)
]
MinReplicasOption = Annotated[
    int,
    typer.Option(
        "--min-replicas",
        min=0,
        help="Least replicas; 0 gives the GPUs back after an hour without requests.",
        rich_help_panel=_PANEL,
    ),
]
MaxReplicasOption = Annotated[
    int | None,
    typer.Option(
        "--max-replicas",
        min=1,
        help="Most replicas; as many as --concurrency needs if left out.",
        rich_help_panel=_PANEL,
    ),
]
OverwriteOption = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace files that differ.", rich_help_panel=_PANEL),
]


def require_emit(emit: Path | None, *given: object) -> None:
    """Check that options of a deployment come with a folder for its files.

    Raises:
        ConfigError: They do not.
    """
    from config.errors import ConfigError

    if emit is None and any(value is not None for value in given):
        raise ConfigError(
            "--user-id, --model-version, --instance, --cloud, --region, --min-replicas, --max-replicas and"
            " --overwrite are about the files of --emit; give that folder"
        )


def clarifai_options(
    *,
    user_id: str | None,
    version_id: str | None,
    cloud: str,
    region: str,
    instance: str | None,
    min_replicas: int,
    max_replicas: int | None,
) -> ClarifaiOptions:
    """Return what the options ask for."""
    from engine.serving.clarifai import ClarifaiOptions

    return ClarifaiOptions(
        user_id=user_id,
        version_id=version_id,
        cloud=cloud,
        region=region,
        instance=instance,
        min_replicas=min_replicas,
        max_replicas=max_replicas,
    )

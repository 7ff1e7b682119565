"""Types of the flows' parameters: ranges, examples and lists that the run form shows.

What a parameter means is said in the flow's docstring, where Prefect's form takes its help from. Lists
are an `enum` of the form's schema and no type: the server refuses a misspelt name, and the command
line may pass a path or URL in process.
"""

from __future__ import annotations

from typing import Annotated, Any, get_args

from pydantic import Field

from config.load import known_pipelines, known_profiles
from engine.request import ModeName


def _one_of(names: list[Any]) -> dict[str, Any]:
    return {"enum": names}


Pipeline = Annotated[str, Field(json_schema_extra=_one_of(sorted(known_pipelines())))]
Source = Annotated[str | None, Field(examples=["s3://lake/papers", "/data/papers"])]
Sink = Annotated[str | None, Field(examples=["s3://lake/answers", "/data/answers"])]
Cache = Annotated[str | None, Field(examples=["s3://lake/answers-shared", "/data/shared"])]
Engine = Annotated[str | None, Field(json_schema_extra=_one_of([*known_profiles(), None]))]
EngineUrl = Annotated[str | None, Field(examples=["http://gpu-box:8000/v1"])]
Mode = Annotated[ModeName | None, Field(json_schema_extra=_one_of([*get_args(ModeName), None]))]
Limit = Annotated[int | None, Field(ge=1, examples=[20])]
BudgetUsd = Annotated[float | None, Field(gt=0, examples=[5.0])]
BudgetTokens = Annotated[int | None, Field(gt=0, examples=[1_000_000])]
BudgetGpuSeconds = Annotated[float | None, Field(gt=0, examples=[3600.0])]
FailureLimit = Annotated[float | None, Field(ge=0, le=1, examples=[0.05])]
ApprovalHours = Annotated[float, Field(ge=0, examples=[8.0])]
Settings = Annotated[list[str] | None, Field(examples=[["chunk.max_tokens=500"]])]
SecretBlocks = Annotated[
    list[Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")]] | None,
    Field(examples=[["moonshot-api-key"]]),
]
NewRunId = Annotated[str | None, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")]
LATEST = "latest"
Resume = Annotated[
    str | None,
    Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$", examples=["20261123T093000Z-4f2a", LATEST]),
]
FlowRunId = Annotated[str, Field(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
EarlierRun = Annotated[str | None, Field(examples=["20261123T093000Z-4f2a"])]

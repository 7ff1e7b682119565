"""Which MCP servers a pipeline uses, and how they are reached."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

_NAME = r"^[A-Za-z][A-Za-z0-9]{0,19}$"
_VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"
_Variable = Annotated[str, Field(pattern=_VARIABLE)]


class _Server(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: str = Field(pattern=_NAME)
    """Short; its tools are called `name__tool`."""
    allow: tuple[str, ...] = Field(min_length=1)
    """The tools that are offered, by the server's own names; no other can be called."""
    timeout_s: float = Field(default=60.0, gt=0, le=600)
    """For one call."""


class ProcessServer(_Server):
    """An MCP server that is started for the run and talks over stdin and stdout."""

    kind: Literal["stdio"] = "stdio"
    command: tuple[str, ...] = Field(min_length=1)
    """Program and arguments. Secrets do not belong here: others on the machine can see them."""
    environment: tuple[_Variable, ...] = ()
    """Names of variables that it gets beside PATH, HOME and LANG; their values are never shown."""


class HttpServer(_Server):
    """An MCP server that is reached over streamable HTTP."""

    kind: Literal["http"] = "http"
    url: str
    """`http` or `https`, without a password in it."""
    headers: dict[str, _Variable] = Field(default_factory=dict)
    """Headers of each request: the name of the variable that holds the value, such as
    `{Authorization: CRM_AUTHORIZATION}`."""

    @field_validator("url")
    @classmethod
    def _is_plain(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc:
            raise ValueError("an MCP server's url is http(s)://host/path; put secrets into headers")
        return url


ServerConfig = Annotated[ProcessServer | HttpServer, Field(discriminator="kind")]


def variables(config: ProcessServer | HttpServer) -> tuple[str, ...]:
    """Return the names of the environment variables that a server is given."""
    if isinstance(config, ProcessServer):
        return config.environment
    return tuple(config.headers.values())

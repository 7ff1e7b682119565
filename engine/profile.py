"""A profile: the facts of one host and its model, as a typed document.

Written in config/profiles/*.yaml, read by config.load, used by everything in this folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from engine.batch_api.limits import BatchLimits
from engine.grammar import Grammar
from engine.local_models import LocalModelName
from engine.request import ModeName
from engine.tokens import TokenizerSource


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Capabilities(_Model):
    """What the host can do beyond plain text."""

    images: bool = False
    """Whether the model takes images; otherwise it is sent the text read off them."""
    tools: bool = False
    """Whether the host takes `tools` and answers with tool calls."""
    strict_tools: bool = False
    """Whether the host constrains a call to its tool's schema where the tool says `strict`, as vLLM does
    (0.32, tool_parsers/tool_strict_level.py)."""
    forced_calls: bool = False
    """Whether the host takes `tool_choice: required`, with which a turn must call a tool, in every mode. Moonshot's
    API refuses it in Thinking (platform docs, second-hand)."""
    stream_forced_calls: bool = True
    """Whether a turn that must call is streamed like any other, where `stream` is on. vLLM 0.32 streams such a call
    of parser kimi_k2 as plain content now and then, or loses it, and reads it well in one piece
    (tests/engine/test_tiny_agent.py)."""
    structured_output: bool = False
    """Whether `response_format: json_schema` constrains the answer on the host."""
    grammar: Grammar = "any"
    """What builds the grammar there: `xgrammar` cannot express all of JSON Schema; `any`: vLLM's
    `auto`, which picks a backend that can, or a host that does not say."""
    priority: bool = False
    """Whether the host takes vLLM's `priority` (lower is earlier), with
    `--scheduling-policy priority`."""
    stream: bool = True
    """Whether answers come as a stream of events, so that a stall is seen and the first token is
    known; off for gateways that cannot."""
    stream_interval: int | None = Field(default=None, ge=1)
    """Tokens vLLM gathers into one event, sent as `stream_interval`: fewer events, less work on both
    sides (vLLM 0.32: the first and the last event are never held back). None: not sent."""
    thinking_budget: bool = False
    """Whether the host takes vLLM's `thinking_token_budget`, which ends the thinking by force; it
    needs `--reasoning-parser` there (vLLM 0.32, v1/engine/input_processor.py)."""
    cached_tokens: bool = False
    """Whether usage says how many prompt tokens came from the prefix cache; vLLM needs
    `--enable-prompt-tokens-details` for it."""
    batch_api: BatchLimits | None = None
    """Limits of the host's batch API, for stages with `batch_api`; None: it has none. vLLM has none
    (0.32)."""


class EmbeddingRule(_Model):
    """How the host's `/embeddings` is asked for vectors of texts, for `search.vectors` of a pipeline."""

    texts_per_call: int = Field(default=32, ge=1, le=2048)
    """Most texts of one call. Hugging Face's TEI takes 32 unless told otherwise, OpenAI 2,048."""
    passage_prefix: str = ""
    """Put in front of each passage, where the model was trained so: `"passage: "` for E5."""
    query_prefix: str = ""
    """Put in front of each query: `"query: "` for E5, an instruction for Qwen3-Embedding."""


class ImageRule(_Model):
    """How many tokens an image takes."""

    cell_px: int = Field(default=28, ge=1)
    """Side of the square that becomes one token, in pixels. Kimi K2.5: patches of 14 px, merged
    2 x 2 (media_proc_cfg of the model)."""
    max_tokens: int = Field(default=4096, ge=1)
    """Most tokens of one image; larger ones are scaled down by the host. Kimi K2.5: 16,384
    patches, four to a token (media_proc_cfg)."""


class Prices(_Model):
    """What the host takes, in US dollars per million tokens."""

    input_usd: float = Field(ge=0)
    """Prompt tokens that are computed."""
    cached_input_usd: float = Field(ge=0)
    """Prompt tokens served from the host's prefix cache."""
    output_usd: float = Field(ge=0)
    """Tokens generated, reasoning included."""
    batch_factor: float | None = Field(default=None, gt=0, le=1)
    """Share of these prices that the host's own batch API takes, 0.6 for 40 % off; None: as much as
    any call."""

    def factor(self, *, by_batch: bool) -> float:
        """Return the share of these prices that is paid."""
        return self.batch_factor if by_batch and self.batch_factor is not None else 1.0

    def usd(self, *, prompt: int, cached: int, output: int) -> float:
        """Return the price of that many tokens; `cached` is a part of `prompt`."""
        return (
            (prompt - cached) * self.input_usd
            + cached * self.cached_input_usd
            + output * self.output_usd
        ) / 1e6


class RateTier(_Model):
    """Limits that a host sets for one class of customers."""

    name: str
    """As the host calls it."""
    max_in_flight: int = Field(ge=1)
    """Requests under way at the same time."""
    requests_per_minute: int | None = Field(default=None, ge=1)
    """Calls begun in any minute; None: no limit."""
    tokens_per_minute: int | None = Field(default=None, ge=1)
    """Prompt and answer tokens of the calls begun in any minute; None: no limit."""
    tokens_per_day: int | None = Field(default=None, ge=1)
    """For people who plan; a run beyond it is slowed down by the host's 429. None: no limit."""


class Throughput(_Model):
    """Tokens a second that the host reached when it was measured, for estimates of time."""

    prompt_tokens_per_s: float = Field(gt=0)
    """Prompt tokens computed a second, all requests together."""
    output_tokens_per_s: float = Field(gt=0)
    """Tokens generated a second, all requests together."""


class ModeSettings(_Model):
    """How one mode is asked for on this host."""

    sampling: Mapping[str, float] = Field(default_factory=dict)
    """Sampling parameters as sent, such as temperature. Empty where the host fixes them."""
    wire: Mapping[str, Any] = Field(default_factory=dict)
    """Further fields of the request body that switch the mode."""
    reasoning_tokens: int = Field(default=4096, ge=1)
    """Most tokens of thinking where the stage sets none; Thinking mode only. Moonshot's own
    evaluations of K2.5 allow 16,384 to 98,304 (Kimi-Vendor-Verifier README), a batch rarely needs
    that much."""
    by: Literal["host", "prompt"] = "host"
    """Who thinks in Thinking mode: `host` has a model with a switch for it; `prompt`: the model is
    asked to think in prose first and for the answer in a second turn, on any host."""


class Licence(_Model):
    """What the licence of the model, or the terms of the host, ask for."""

    name: str
    """Its short name."""
    duties: tuple[str, ...] = ()
    """What whoever runs it must do, one sentence each."""
    source: str = ""
    """Where it is written."""


class DataSheet(_Model):
    """What is disclosed about the model and the host, for those who must approve its use."""

    training_data: str = "not disclosed"
    """What the maker says of the training data."""
    certifications: tuple[str, ...] = ()
    """Certifications of the host that were found, such as SOC 2; empty: none found."""
    weaknesses: tuple[str, ...] = ()
    """Known weaknesses that a pipeline should be built around, one sentence each."""
    sources: tuple[str, ...] = ()
    """Where these facts are written."""


class DeployTarget(_Model):
    """Where `headrace engine plan PROFILE --emit DIR` deploys the profile's model to."""

    to: Literal["clarifai"]
    """The cloud: `clarifai` has compute clusters, node pools and deployments."""
    gpus: str
    """GPUs of one replica where `--gpus` names none, such as `8xH200`."""


class Profile(_Model):
    """One host."""

    name: str
    """Name of the file without its suffix; a URL's own text for a plain endpoint."""
    title: str = ""
    """The model and the host, for people."""
    model: str | None = None
    """Model as named in requests; None: the first one the endpoint lists."""
    serve: LocalModelName | None = None
    """What this machine starts by itself; None for an endpoint that is there already."""
    listed: bool = True
    """Whether the host's list of models names all that it serves; off where it may not, or there is no list:
    then a model that is not on it is asked for all the same, and the first request tells."""
    server_flags: tuple[str, ...] = ()
    """Flags of `vllm serve` for an engine that this machine starts, or that is deployed with `deploy`."""
    base_url: str | None = None
    """Address up to and with `/v1`; None for an engine that this machine starts."""
    replicas: tuple[str, ...] = ()
    """Addresses of further servers of the same model, as `base_url`. Requests about one chunk stay with one
    of them, whose cache holds it; `max_in_flight` and a tier's limits hold for each."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key; the key itself is nowhere else."""
    hosted_by: str | None = None
    """Who runs the host, where it is not you: what is sent leaves your premises. None: you do, or nobody has
    said so."""
    needs_key: bool = False
    """Whether the host answers nobody without a key."""
    context_tokens: int | None = Field(default=None, ge=256)
    """Longest prompt and answer together, in tokens; None: as the endpoint reports it."""
    max_chunk_tokens: int | None = Field(default=None, ge=64)
    """Most tokens of a chunk where the pipeline sets none; None: what the context leaves. Smaller
    ones keep more requests in the KV cache at once."""
    max_in_flight: int = Field(default=16, ge=1)
    """Most requests under way at the same time; a tier may allow fewer."""
    tiers: tuple[RateTier, ...] = ()
    """Limits by class of customers, as the host publishes them."""
    tier: str | None = None
    """The class this account is in: its limits are kept. None: only `max_in_flight` is kept."""
    capabilities: Capabilities = Field(default_factory=Capabilities)
    image_rule: ImageRule = Field(default_factory=ImageRule)
    """How many tokens an image takes, where the model takes images."""
    embeddings: EmbeddingRule | None = None
    """How vectors of texts are asked for; None: the host gives none. `context_tokens` is then the longest text,
    and a longer one is cut there. A host for nothing else has `modes: {}`."""
    tokenizer: TokenizerSource = Field(default_factory=TokenizerSource)
    """Where exact token counts come from; without any of it they are estimated, with a margin."""
    refuses: tuple[str, ...] = ()
    """Fields of a request body that the host answers with 400, or fixes: never sent."""
    adapters: Mapping[str, str] = Field(default_factory=dict)
    """LoRA adapters by the name that a stage's `adapter` gives: what each is for. They are asked for
    as a model of that name, as vLLM serves them with `--lora-modules`."""
    prices: Prices | None = None
    """What tokens cost; None: not known, such as on own hardware."""
    throughput: Throughput | None = None
    """How fast it is; None: not measured."""
    facts: str | None = None
    """What the planner knows of the model, by the name of its file in `config/models`; None: nothing."""
    gpu_kind: str | None = None
    """Kind of these GPUs, such as `H200`, or the memory of one, such as `96GiB`, for the planner and
    `engine serve`; None: those that this machine has."""
    gpus: int | None = Field(default=None, ge=1)
    """Number of GPUs that serve the model together, all replicas behind the address counted. With
    `throughput` it says how many GPU-seconds a call takes; None: not known, such as at a host's API."""
    deploy: DeployTarget | None = None
    """Cloud that can serve the model on GPUs of its own choosing, for `engine plan --emit`; None: none."""
    ask_fields: str = "answer: string, evidence: line"
    """What `headrace ask` asks for where no fields are given, in short. A model too small to write a
    sentence is asked for a line of the document only."""
    modes: Mapping[ModeName, ModeSettings]
    """Settings of each mode that the host offers."""
    licence: Licence | None = None
    """Licence of the model or terms of the host; None: not recorded."""
    data_sheet: DataSheet = Field(default_factory=DataSheet)
    """What is disclosed, certified and known to be weak."""

    @field_validator("base_url")
    @classmethod
    def _check_url(cls, url: str | None) -> str | None:
        return None if url is None else _without_secret(url)

    @field_validator("replicas")
    @classmethod
    def _check_replicas(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_without_secret(url) for url in urls)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len({self.base_url, *self.replicas}) <= len(self.replicas):
            raise ValueError(
                "replicas are further servers: each address once, and not that of base_url"
            )
        if self.replicas and self.base_url is None:
            raise ValueError("replicas stand beside base_url; name the first server there")
        names = [tier.name for tier in self.tiers]
        if self.tier is not None and self.tier not in names:
            raise ValueError(f"tier {self.tier!r} is none of {', '.join(names) or 'the tiers'}")
        for mode, settings in self.modes.items():
            sent = sorted({*settings.sampling, *settings.wire} & set(self.refuses))
            if sent:
                raise ValueError(f"modes.{mode} sends {sent[0]!r}, which the host refuses")
        return self

    def offers(self, mode: ModeName) -> bool:
        """Tell whether requests can be carried out in a mode; agents need calls of tools, and any other mode."""
        return self.capabilities.tools if mode in {"agent", "swarm"} else mode in self.modes

    def turn_mode(self, mode: ModeName, *, think: bool) -> ModeName:
        """Return the mode of a request's calls: of an agent's turns, Thinking where the host has a switch for it."""
        if mode not in {"agent", "swarm"}:
            return mode
        can_think = "thinking" in self.modes and self.modes["thinking"].by == "host"
        return "thinking" if can_think and (think or "instant" not in self.modes) else "instant"

    @property
    def key_in_words(self) -> str:
        """Return how messages name the key: by the variable that holds it and by the profile, never by the key."""
        where = f"in {self.api_key_env}" if self.api_key_env else "for which api_key_env is missing"
        return f"the API key {where} (profile {self.name!r})"

    @property
    def limits(self) -> RateTier:
        """Return the limits to keep: the account's tier, within `max_in_flight`."""
        for tier in self.tiers:
            if tier.name == self.tier:
                allowed = min(tier.max_in_flight, self.max_in_flight)
                return tier.model_copy(update={"max_in_flight": allowed})
        return RateTier(name="none", max_in_flight=self.max_in_flight)


def _without_secret(url: str) -> str:
    if "@" in urlsplit(url).netloc:
        raise ValueError(
            "the URL holds a user name or password; a key belongs into the environment variable"
            " that api_key_env names (for a plain URL: OPENAI_API_KEY)"
        )
    return url


def profile_for_url(url: str) -> Profile:
    """Return the profile of a plain OpenAI-compatible endpoint, of which only the address is known.

    Structured output and vectors are asked for, as vLLM, SGLang and llama.cpp offer them; temperature 0 makes
    answers repeatable as far as the host allows. Thinking is by prompt: how a model of its own
    switches is not known.
    """
    base_url = url.rstrip("/")
    if not base_url.endswith("/v1"):
        base_url += "/v1"
    greedy = {"temperature": 0.0}
    return Profile(
        name=url,
        title=f"OpenAI-compatible endpoint at {url}",
        base_url=base_url,
        api_key_env="OPENAI_API_KEY",
        capabilities=Capabilities(structured_output=True),
        tokenizer=TokenizerSource(tokenize=True),
        embeddings=EmbeddingRule(),
        modes={
            "instant": ModeSettings(sampling=greedy),
            "thinking": ModeSettings(sampling=greedy, by="prompt"),
        },
    )

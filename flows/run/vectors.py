"""Search by meaning in a run: who makes the vectors, and where they are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from config.errors import ConfigError
from config.pipeline import PipelineConfig, StageConfig
from connectors.sinks.lake import Lake
from connectors.storage import STATE_PREFIX
from connectors.vectors import VectorStore
from engine.batch import Embedder, Line, line_of_vectors, num_dims
from engine.endpoint import Endpoint
from engine.profile import EmbeddingRule, Profile
from engine.request import content_key

VECTORS = f"{STATE_PREFIX}/vectors"
"""Where a sink keeps the vectors of passages, a folder for each model."""
_SEARCH = "search"


@dataclass(frozen=True, slots=True, kw_only=True)
class MeaningSearch:
    """What the searches of a run work with, beside the words."""

    embedder: Embedder
    store: VectorStore


def vectors_engine(pipeline: PipelineConfig) -> str | None:
    """Return the engine that makes vectors; None where nothing is searched by meaning."""
    return next(filter(None, (vectors_of(pipeline, stage) for stage in pipeline.stages)), None)


def vectors_of(pipeline: PipelineConfig, stage: StageConfig) -> str | None:
    """Return the engine that makes vectors for a stage's searches; None where they are by words only."""
    return pipeline.search.vectors if _SEARCH in stage.tools else None


def vectors_key(maker: Endpoint) -> list[object]:
    """Return what answers of a stage that searches follow from, by what it may find by meaning.

    Args:
        maker: Makes vectors; opened, or as a plan has it.

    Raises:
        ConfigError: Its profile says nothing of vectors.
    """
    rule = rule_of(maker.profile)
    return [maker.model, maker.context_tokens, rule.passage_prefix, rule.query_prefix]


def rule_of(profile: Profile) -> EmbeddingRule:
    """Return how an engine is asked for vectors.

    Raises:
        ConfigError: Its profile says nothing of them.
    """
    if profile.embeddings is None:
        raise ConfigError(
            f"search.vectors: the profile of engine {profile.name!r} has no `embeddings`; name an engine that"
            " serves /v1/embeddings by its URL, or add `embeddings: {}` to its profile"
        )
    return profile.embeddings


def open_vectors(
    endpoint: Endpoint, lake: Lake, folder: Path, *, beside: Sequence[Line]
) -> MeaningSearch:
    """Return what a run's searches by meaning work with.

    The engine is asked for the vector of one word, so that one that gives none is found before anything else
    is paid.

    Args:
        endpoint: Who makes vectors.
        lake: The sink.
        folder: For this machine's copy of the vectors.
        beside: Lines of the run's routes: an endpoint that they lead to keeps its gate.

    Raises:
        ConfigError: The engine's profile says nothing of vectors.
        EngineError: It gives none, or cannot be reached.
    """
    rule = rule_of(endpoint.profile)
    dims = num_dims(endpoint)
    # Longer texts are cut at the context: where that was wrong, they are made into vectors anew.
    key = content_key("vectors", endpoint.model, endpoint.context_tokens, rule.passage_prefix, dims)
    store = VectorStore(
        lake.storage,
        f"{VECTORS}/{key[:32]}",
        folder,
        num_dims=dims,
        texts_per_call=rule.texts_per_call,
    )
    return MeaningSearch(
        embedder=Embedder(line=line_of_vectors(endpoint, beside=beside), num_dims=dims), store=store
    )

"""Token counts as the served model makes them: by its vocabulary, by its server, or estimated.

`engine.tokens.opening` picks the method. It is imported by name, as are the counters that call a
server, so that a profile can hold a `TokenizerSource` without importing the HTTP client.
"""

from engine.tokens.counter import BYTES_PER_TOKEN, TokenCounter
from engine.tokens.estimate import EstimateCounter
from engine.tokens.images import MOST_IMAGE_TOKENS, image_tokens
from engine.tokens.local import HuggingFaceCounter, TiktokenCounter
from engine.tokens.source import TokenizerSource

__all__ = [
    "BYTES_PER_TOKEN",
    "MOST_IMAGE_TOKENS",
    "EstimateCounter",
    "HuggingFaceCounter",
    "TiktokenCounter",
    "TokenCounter",
    "TokenizerSource",
    "image_tokens",
]

"""Where documents may go: which are sensitive, which engines are on your premises, what is masked before it leaves."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from config.model import Model
from connectors.masking import MASK_KINDS, MaskKind, MaskRules

_PatternName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,29}$")]
_FILE = re.compile(
    r"\.(?:txt|text|csv|tsv|md|json|jsonl|ya?ml|xlsx?|docx?|ods|odt|pdf)\s*$", re.IGNORECASE
)
"""What a word does not end in, and the name of a file does."""


class MaskConfig(Model):
    """Personal data that becomes placeholders before text is sent to an engine that is not on your premises.

    What is read off images is masked like other text, and images themselves are not sent. A name that is in
    no list is not found.
    """

    kinds: tuple[MaskKind, ...] = MASK_KINDS
    """What is found by its form. Numbers of IBANs and cards count where their check digits are right."""
    words: tuple[str, ...] = ()
    """Names and words, or the name of a `.txt` file with one a line. Case is ignored; whole words only."""
    patterns: Mapping[_PatternName, str] = Field(default_factory=dict)
    r"""Regular expressions by name, for numbers of your own: `{case: "AZ-\d{4,}"}`."""
    restore: bool = False
    """Whether answers hold the values again. Without it the columns of answers hold placeholders. Citations are
    the lines of the sink's own chunks and hold what the source says either way."""

    @field_validator("words")
    @classmethod
    def _check_words(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        for word in words:
            if _FILE.search(word):
                raise ValueError(
                    f"{word!r} in a list is the name of a file, which is not read there and masks no name; put one"
                    " name a line into a .txt file and give its name without a list: `words: names.txt`"
                )
        return words

    @field_validator("patterns")
    @classmethod
    def _check_patterns(cls, patterns: Mapping[str, str]) -> Mapping[str, str]:
        for name, text in patterns.items():
            try:
                pattern = re.compile(text)
            except re.error as exc:
                raise ValueError(f"{name}: {text!r} is no regular expression: {exc}") from exc
            if pattern.match("") is not None:
                raise ValueError(f"{name}: {text!r} matches the empty text; make it match a value")
        return patterns

    def rules(self) -> MaskRules:
        """Return them as the masker takes them."""
        return MaskRules(kinds=self.kinds, words=self.words, patterns=self.patterns)


class PolicyConfig(Model):
    """Where documents may go. What would break it is refused before the first call."""

    sensitive: tuple[str, ...] = ()
    """Globs on the path below the source, of documents that may go to `on_premises` engines only; case is
    ignored. `true` for all of them. All else goes to `engine`. A stage over groups or the corpus rests on
    sensitive documents, and goes where they go."""
    on_premises: tuple[str, ...] = ()
    """Engines on your own machines, by profile or URL. Sensitive documents go to the first one, and the others
    stand in for it in this order. One that a profile says somebody hosts is refused."""
    mcp: tuple[str, ...] = ()
    """Those of the pipeline's `mcp` servers that are on your premises, by name: only their tools may be used
    where documents are sensitive."""
    mask: MaskConfig | None = None
    """What is masked before text goes to any engine that is not on your premises; None: nothing."""
    certifications: tuple[str, ...] = ()
    """What every engine that is not on your premises must be certified for, as its profile's data sheet names
    it: `[SOC 2, ISO 27001]`."""

    @field_validator("sensitive", mode="before")
    @classmethod
    def _read_all_or_none(cls, value: object) -> object:
        if isinstance(value, bool):
            return ("**/*",) if value else ()
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.sensitive and not self.on_premises:
            raise ValueError(
                "sensitive documents have nowhere to go; name an engine of your own under on_premises,"
                " such as [kimi-k2.5]"
            )
        return self

    @property
    def is_all_sensitive(self) -> bool:
        """Tell whether every document of the source is sensitive."""
        return not {"**", "**/*"}.isdisjoint(self.sensitive)

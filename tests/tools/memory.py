"""Corpora in memory, where a test needs lines that no small file has."""

from collections.abc import Sequence
from pathlib import Path

from connectors.document import Segment, Span
from tools.corpus import Entry


class MemoryCorpus:
    """Documents in memory; `reads` counts how often lines were asked for."""

    def __init__(self, *documents: Sequence[Segment]) -> None:
        self.documents = documents
        self.entries = [
            Entry(
                label=f"D{number}",
                path=f"{number}.txt",
                document_key=str(number),
                media_type="text/plain",
                num_lines=len(lines),
            )
            for number, lines in enumerate(documents, start=1)
        ]
        self.reads = 0

    def lines(self, label: str) -> Sequence[Segment]:
        self.reads += 1
        return self.documents[int(label[1:]) - 1]

    def media(self, label: str, name: str) -> Path:
        raise FileNotFoundError(name)

    def table(self, label: str, name: str) -> Path:
        raise KeyError(name)


def paragraph(text: str, number: int = 0) -> Segment:
    """Return a line of a text."""
    return Segment(kind="paragraph", text=text, span=Span(char_start=number, char_end=number + 1))

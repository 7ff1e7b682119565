"""Commands that the pages show exist, with the options they are shown with."""

import re
from pathlib import Path

import pytest
import typer

from flows.cli import app

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

# In a code span or on a line of a code block; up to its end, a comment or the next command.
_COMMAND = re.compile(r"(?:`|^ *|&& |/)headrace ([a-z][^`#\n&]*)", re.MULTILINE)


def shown():
    """Yield each command of the pages."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for number, words in enumerate(_COMMAND.findall(text)):
            yield pytest.param(words.split(), id=f"{page.relative_to(ROOT)}-{number}")


@pytest.mark.parametrize("words", list(shown()))
def test_command_exists_when_a_page_shows_it(words):
    command = typer.main.get_command(app)
    while words and hasattr(command, "commands"):
        name, *words = words
        assert name in command.commands, f"there is no command {name!r}"
        command = command.commands[name]
    known = {option for parameter in command.params for option in parameter.opts}
    given = {option for word in words for option in re.findall(r"--[a-z-]+", word.split("=")[0])}
    assert given <= {*known, "--help"}

"""A folder with a pipeline and its documents: notes of two lines that say who they are."""

from pathlib import Path


def write_notes(folder: Path, pipeline: str, num_files: int) -> Path:
    """Write `notes.yaml` and `in/NN.txt`; returns the folder."""
    (folder / "notes.yaml").write_text(pipeline, encoding="utf-8")
    (folder / "in").mkdir()
    for number in range(num_files):
        text = f"Note {number} says this.\nIt is the second line of note {number}."
        (folder / "in" / f"{number:02d}.txt").write_text(text, encoding="utf-8")
    return folder

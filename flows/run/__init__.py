"""The Prefect-free core of a run: plan, shards, stages, commit. Called by the CLI and by flows."""

"""Measurements: each a ratio to a peer or a limit, taken in the same run on the same machine."""

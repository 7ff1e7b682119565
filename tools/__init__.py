"""What a model may call while it works on a request: one file per tool, and the registry in `tools.registry`."""

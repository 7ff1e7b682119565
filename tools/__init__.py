"""What a model may call while it works on a request. Empty until the first agent mode."""

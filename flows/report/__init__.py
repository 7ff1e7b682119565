"""Renders a finished run as one self-contained HTML page and as Markdown. Prefect-free."""

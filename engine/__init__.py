"""Requests in, results out: profiles, the vLLM process, the HTTP client, modes, batches.

Knows nothing of Prefect, object storage, documents or Parquet.
"""

"""Bytes in, records out: storage, readers, chunker, Parquet sink. Knows nothing of models."""

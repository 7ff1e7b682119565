"""Where results go: typed Parquet parts in a lake, and the manifest that says they add up."""

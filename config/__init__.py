"""Pipelines and profiles as typed documents: the models' composition, and the YAML loader."""

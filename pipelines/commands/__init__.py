"""The commands, a file per subject; `pipelines.cli` puts them together."""

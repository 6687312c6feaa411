"""What a recipe may say, and how its YAML is read; `pipelines.config` makes a run of it."""

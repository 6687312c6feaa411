"""Protocols run on an encoder: scores of a split, of a checkpoint, of RegDB's ten trials."""

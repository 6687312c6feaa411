"""Exact nearest neighbors of unit rows, the same however the queries are split."""

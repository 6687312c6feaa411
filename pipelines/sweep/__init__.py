"""Searches over settings on Ray Tune, and the record that they leave."""

"""Bytes of images by path or URI; data sets packed as Parquet."""

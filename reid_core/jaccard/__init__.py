"""k-reciprocal Jaccard distances, sparse from end to end."""

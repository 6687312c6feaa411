"""From a data set on disk to checked batches: preparation, plans, streams."""

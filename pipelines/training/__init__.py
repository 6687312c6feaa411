"""Training: the driver on Ray, the loop of a worker, and what sits between the epochs."""

"""What workers exchange, and BatchNorm over all of them."""

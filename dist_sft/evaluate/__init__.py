"""The held-out loss of any model on any rows; the training loop uses it, and needs nothing else of it."""

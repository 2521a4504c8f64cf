"""Where figures go: the console, metrics.jsonl, W&B. Rank 0 only."""

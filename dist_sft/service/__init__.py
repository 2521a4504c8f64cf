"""Encode ahead and hand each rank its share of a step."""

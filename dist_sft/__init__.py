"""Supervised fine-tuning of language models across many nodes, that people can trust.

A step is a set of conversations; everything else is execution.
"""

__version__ = "0.1.0"

"""Causal attention inside samples, never between them.

interface   what transformers calls: checks, exchange between neighbouring ranks, then one of the back ends
choose      which back end runs
segments    one attention per sample, any device; costs the sum of squares of the samples
flash       flash-attention 2 or 3, CUDA
varlen      torch's variable-length flash kernel, CUDA
flex        torch's flex attention with a block mask, compiled on CUDA; on CPU slow, for tests
dropout     on attention weights, a number for each of them
"""

from dist_sft.model.attention.choose import DROPOUTS, FLASH, FLEX, SEGMENTS, VARLEN, choose, dropout_of, name_of
from dist_sft.model.attention.interface import register

__all__ = ["DROPOUTS", "FLASH", "FLEX", "SEGMENTS", "VARLEN", "choose", "dropout_of", "name_of", "register"]

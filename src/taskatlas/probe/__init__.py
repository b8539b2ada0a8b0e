"""Probes, the samples that every checkpoint sees, and the features that a checkpoint makes of them."""

from .features import Features, check_same_samples, extract
from .probe import Probe
from .quiet import quiet

__all__ = ["Features", "Probe", "check_same_samples", "extract", "quiet"]

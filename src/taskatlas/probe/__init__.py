"""Probes, the samples that every checkpoint sees, and the features that a checkpoint makes of them."""

from .features import Features, check_same_samples, extract
from .probe import Probe
from .quiet import quiet
from .views import class_names, class_subset, random_labels, read_classes, wordnet_classes

__all__ = [
    "Features",
    "Probe",
    "check_same_samples",
    "class_names",
    "class_subset",
    "extract",
    "quiet",
    "random_labels",
    "read_classes",
    "wordnet_classes",
]

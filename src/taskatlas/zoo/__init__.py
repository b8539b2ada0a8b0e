"""Zoos of checkpoints: what they hold, opened lazily, whatever made them."""

from taskatlas.zoo.checkpoint import Checkpoint, OpenedCheckpoint
from taskatlas.zoo.weights import read_weights, tensor_shapes
from taskatlas.zoo.zoo import Zoo

__all__ = ["Checkpoint", "OpenedCheckpoint", "Zoo", "read_weights", "tensor_shapes"]

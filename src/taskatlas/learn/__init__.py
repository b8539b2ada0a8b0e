"""Learning: several small networks at once in memory, or one of any size from a stream."""

from .networks import flat_mlp, mlp, resnet18, small_cnn, vit
from .pictures import Preparation
from .recipe import Recipe
from .run import Network, new_network, read_log, train_to_folder, trained
from .stacked import IGNORED, accuracy, has_batch_statistics, outputs, train
from .stream import Stream
from .streamed import Epoch, train_streamed

__all__ = [
    "IGNORED",
    "Epoch",
    "Network",
    "Preparation",
    "Recipe",
    "Stream",
    "accuracy",
    "flat_mlp",
    "has_batch_statistics",
    "mlp",
    "new_network",
    "outputs",
    "read_log",
    "resnet18",
    "small_cnn",
    "train",
    "train_streamed",
    "train_to_folder",
    "trained",
    "vit",
]

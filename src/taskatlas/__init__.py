"""taskatlas turns a pile of PyTorch checkpoints into a map you can act on."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

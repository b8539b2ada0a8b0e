"""Feature extractors of data-adaptive fusion: frozen networks whose features decide an input's coefficients.

Any module serves, a Hugging Face image model (the mean over space of its last hidden state), a sentence encoder (the
mean over the tokens that are no padding), or the merged model's own base up to one of its early modules. An extractor
always runs in evaluation mode without gradients, whatever mode it is found in, and is left as it was.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from taskatlas.errors import BadInput
from taskatlas.merge.unlabelled import Batch, batch_length, call, network_inputs
from taskatlas.probe import Features, Probe, extract, quiet
from taskatlas.probe.pooling import Pool, pooled
from taskatlas.probe.taps import Tap
from taskatlas.store import Store
from taskatlas.zoo import Checkpoint, OpenedCheckpoint
from taskatlas.zoo.checkpoint import TRANSFORMERS, is_hub_id
from taskatlas.zoo.weights import first_line

_OUTPUT = ""  # the tap at the output of the whole network


@dataclass(frozen=True, eq=False)
class Extractor:
    """A frozen network and where its features are read.

    Attributes:
        checkpoint: the network: a ``Checkpoint``, or one made of a module (``Extractor.of``).
        prepare: raw samples of a probe -> what the network takes; None: the checkpoint's own way, or the probe's.
        tap: as ``extract`` has it: a module's name, ``name:input``, ``""`` for the network's output; None: the last
            hidden state of a Hugging Face model, else the input of the linear layer that is called last.
        pool: ``auto``: the mean over space or over tokens that are no padding; ``first`` or ``last`` token.
        device: where it runs.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).train()
        >>> Extractor.of(net)(torch.zeros(5, 4)).shape, net.training
        (torch.Size([5, 3]), True)
    """

    checkpoint: Checkpoint
    prepare: Callable[[list[Any]], Any] | None = None
    tap: str | None = None
    pool: Pool = "auto"
    device: str = "cpu"
    _known: dict[tuple[str, str], Features] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, network: "Extractor | Checkpoint | nn.Module | Path | str", **how: Any) -> "Extractor":
        """An extractor of a module, a checkpoint, or a Hugging Face model by folder or hub id.

        Args:
            network: what computes the features; an ``Extractor`` stays as it is.
            how: ``prepare``, ``tap``, ``pool``, ``device``.

        Raises:
            BadInput: it is none of these, or there is no such folder.
        """
        if isinstance(network, Extractor):
            return network
        if isinstance(network, nn.Module):
            network = Checkpoint("extractor", module=network)
        elif isinstance(network, str | Path):
            place = Path(network)
            if not place.exists() and (isinstance(network, Path) or not is_hub_id(network)):
                raise BadInput(f"there is no extractor at {network}. Is the path right?")
            network = Checkpoint("extractor", weights=network, builder=TRANSFORMERS)
        elif not isinstance(network, Checkpoint):
            raise BadInput(
                f"the extractor is a {type(network).__name__}; give a module, a checkpoint, or a Hugging Face model by "
                "folder or hub id."
            )
        return cls(network, **how)

    @classmethod
    def early(cls, network: nn.Module, place: str, **how: Any) -> "Extractor":
        """The features of a network at one of its own modules; what lies behind that is not computed.

        Args:
            network: the base that is merged into, mostly.
            place: a module's name.
            how: ``prepare``, ``pool``, ``device``.

        Raises:
            BadInput: the network has no such module.

        Example:
            >>> import torch
            >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
            >>> Extractor.early(net, "0")(torch.zeros(5, 4)).shape
            torch.Size([5, 3])
        """
        return cls(Checkpoint("early features", module=UpTo(network, place)), tap=_OUTPUT, **how)

    def features(self, probe: Probe, store: Store | None = None) -> Features:
        """The features of every sample of a probe, computed once and kept in the store.

        A function has no digest: with ``prepare`` they are kept in memory, for as long as this extractor is there.

        Raises:
            BadInput: as ``extract``.
        """
        if self.prepare is None:
            return extract(self, probe, tap=self.tap, pool=self.pool, device=self.device, store=store)
        key = self.digest, probe.digest
        if key not in self._known:
            with tempfile.TemporaryDirectory() as folder:
                its = Store(Path(folder))
                found = extract(self, probe, tap=self.tap, pool=self.pool, device=self.device, store=its)
                self._known[key] = replace(found, values=np.array(found.values))
        return self._known[key]

    def __call__(self, batch: Batch) -> Float[Tensor, "batch d"]:
        """The features of a batch that is prepared already.

        Raises:
            BadInput: the network cannot take it, or gives NaN.
        """
        module = self._opened.module
        inputs = network_inputs(batch, module)
        mask = inputs.get("attention_mask")
        with quiet(module), Tap(module, self.tap, "the extractor") as tap:
            try:
                output = call(module, inputs)
            except Exception as error:  # the network's own code may raise anything
                raise BadInput(f"the extractor cannot take a batch: {first_line(error)}.") from error
            values = tap.read(output)
        found = pooled(values, self.pool, mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None)
        if len(found) != batch_length(inputs):
            raise BadInput(f"the extractor gives {len(found)} features for {batch_length(inputs)} samples.")
        if not bool(found.isfinite().all()):
            raise BadInput("the extractor gives NaN or infinite features. Is its checkpoint whole?")
        return found

    @property
    def name(self) -> str:
        """The checkpoint's."""
        return self.checkpoint.name

    @property
    def digest(self) -> str:
        """The checkpoint's; tap and pooling are in the digest of ``features``, ``prepare`` is in none."""
        return self.checkpoint.digest

    @property
    def needs_raw_samples(self) -> bool:
        """Whether it prepares samples in a way of its own, so that batches made for another network do not serve it."""
        return self.prepare is not None or self.checkpoint.builder is not None

    def open(self, device: str = "cpu") -> OpenedCheckpoint:
        """The network and how it prepares samples; one in memory as it is, in whatever mode, and not a copy."""
        own = self.checkpoint.module
        here = own is not None and all(str(p.device) == device for p in own.parameters())
        opened = OpenedCheckpoint(own, None) if own is not None and here else self.checkpoint.open(device)
        return OpenedCheckpoint(opened.module, self.prepare or opened.prepare)

    @cached_property
    def _opened(self) -> OpenedCheckpoint:
        return self.open(self.device)


class UpTo(nn.Module):
    """A network that is run up to one of its modules, whose output it gives.

    Raises:
        BadInput: the network has no such module, or a pass does not come to it.
    """

    def __init__(self, network: nn.Module, place: str) -> None:
        super().__init__()
        Tap(network, place, "the network")  # says which modules there are
        self.network = network
        self.place = place

    def extra_repr(self) -> str:
        """Where it stops: part of what it is, and so of its digest."""
        return f"up to {self.place}"

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """What the module gives."""

        def stop(_: nn.Module, __: Any, output: Any) -> None:
            raise _Reached(output[0] if isinstance(output, tuple | list) else output)

        hook = self.network.get_submodule(self.place).register_forward_hook(stop)
        try:
            self.network(*args, **kwargs)
        except _Reached as reached:
            return reached.value
        finally:
            hook.remove()
        raise BadInput(f"the forward pass never calls {self.place!r}. Choose another module.")


class _Reached(Exception):  # no error: the pass is over
    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

"""Adding a network to a zipped one: what is merged already counts as often as networks went into it."""

from copy import deepcopy
from dataclasses import replace
from typing import Any

from torch import nn

from taskatlas.errors import BadInput
from taskatlas.merge.probe_batches import Data
from taskatlas.merge.zipped import Zipped
from taskatlas.merge.zipped_network import ZippedNetwork
from taskatlas.merge.zipping import zip_models
from taskatlas.zoo import Checkpoint


def add_to_zipped(zipped: Zipped, model: nn.Module | Checkpoint, probe: Data, **settings: Any) -> Zipped:
    """Merges one more network into a zipped one, up to the same place; the heads that it has stay.

    Networks can so come one after the other, with only the last and the merged one at hand. What is merged counts
    n-fold beside the new one, so that in the end all count alike.

    Args:
        zipped: of n networks; stays as it is.
        model: one more of their architecture; with a stop, of the merged network's width.
        probe: samples of all tasks, those of the new one too.
        settings: as ``zip_models`` takes them, but for ``stop_at`` and ``shares``.

    Raises:
        BadInput: as ``zip_models``.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> one = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> x = torch.randn(100, 4)
        >>> add_to_zipped(zip_models([one, one], x), one, x)
        Zipped(model 0, model 1, model 2; to the end, 1 group aligned)
    """
    if not isinstance(zipped, Zipped):
        raise BadInput(f"a {type(zipped).__name__} is no zipped network. Give what zip_models returned.")
    if {"stop_at", "shares"} & settings.keys():
        raise BadInput("stop_at and shares are those of the zipped network. Leave them out.")
    if not isinstance(model, Checkpoint):
        model = Checkpoint(f"model {len(zipped.names)}", module=model)
    merged = zipped.network
    if isinstance(merged, ZippedNetwork):
        merged = _with_trunk(model.open().module, merged)
    both = zip_models(
        [Checkpoint(" and ".join(zipped.names), module=merged), model],
        probe,
        stop_at=zipped.stop_at,
        shares=(len(zipped.names), 1),
        **settings,
    )
    grown = replace(both, names=(*zipped.names, model.name))
    if isinstance(zipped.network, ZippedNetwork) and isinstance(both.network, ZippedNetwork):
        return replace(grown, network=_heads_of_both(zipped.network, both.network, grown.names))
    return grown


def _with_trunk(network: nn.Module, zipped: ZippedNetwork) -> nn.Module:
    """A network like the new one that computes what the merged trunk does, up to the stop."""
    made = deepcopy(network)
    state = made.state_dict()
    trunk = zipped.trunk.state_dict()
    unlike = [name for name, value in trunk.items() if name not in state or state[name].shape != value.shape]
    if unlike:
        raise BadInput(f"the network to add has another {unlike[0]!r} than the zipped one. Add one like its parents.")
    made.load_state_dict(state | trunk)
    return made


def _heads_of_both(old: ZippedNetwork, new: ZippedNetwork, names: tuple[str, ...]) -> ZippedNetwork:
    """The new trunk; the old heads take their tensor from what the old trunk has become in it."""
    of_old, of_new = new.unmerges
    return ZippedNetwork(
        new.trunk,
        [*(nn.Sequential(deepcopy(of_old), deepcopy(unmerge)) for unmerge in old.unmerges), of_new],
        [*(deepcopy(head) for head in old.heads), new.heads[1]],
        names=names,
        keywords=new.keywords,
        outputs=new.outputs,
    )

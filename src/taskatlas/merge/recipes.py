"""Recipes of every kind: of weights alone, of models with data, of networks that were trained apart."""

import time
from pathlib import Path

from taskatlas.merge.data_recipe import DataRecipe
from taskatlas.merge.execute import carry_out
from taskatlas.merge.merge_result import MergeResult
from taskatlas.merge.merge_with_data import merge_with_data
from taskatlas.merge.network_merge import NetworkMergeResult, merge_networks
from taskatlas.merge.network_recipe import NetworkRecipe
from taskatlas.merge.planning import SHARD_SIZE, make_plan
from taskatlas.merge.recipe import MergeRecipe, kind_of
from taskatlas.zoo import Zoo


def merge_recipe(
    recipe: MergeRecipe | DataRecipe | NetworkRecipe | str | Path,
    out: str | Path,
    *,
    zoo: Zoo | str | Path | None = None,
    seed: int = 0,
    shard_size: int = SHARD_SIZE,
    device: str = "cpu",
) -> MergeResult | NetworkMergeResult:
    """Merges models into a folder that opens with ``from_pretrained`` where the models do.

    Tensors are read, merged and written one after the other, so memory holds a few of them whatever the number and the
    size of the models. A run that was killed goes on when the same is started again, with the same bytes as the result;
    one that had finished is left as it is. Methods that look at data (``merge_with_data``) and those for networks that
    were trained apart (``merge_networks``) hold all models in memory.

    Args:
        recipe: a recipe of any kind, or its file.
        out: a folder; made if it is not there, and empty unless an earlier run of the same merge left it.
        zoo: whose checkpoints the recipe may name, or where it is.
        seed: of random methods.
        shard_size: the most bytes of a file of the result, where weights alone are merged.
        device: where methods compute that do more than merge weights.

    Raises:
        BadInput: something is wrong with the recipe, the models or the place; the message says what.

    Example:
        >>> import tempfile, torch
        >>> from safetensors.torch import load_file, save_file
        >>> place = Path(tempfile.mkdtemp())
        >>> for name, value in (("a", 1.0), ("b", 4.0)):
        ...     save_file({"w": torch.full((2,), value)}, place / f"{name}.safetensors")
        >>> recipe = {"merge_method": "linear", "models": [
        ...     {"model": str(place / "a.safetensors"), "parameters": {"weight": 2}},
        ...     {"model": str(place / "b.safetensors"), "parameters": {"weight": 1}}]}
        >>> result = merge_recipe(MergeRecipe.from_dict(recipe), place / "out")
        >>> result.tensors, load_file(place / "out" / "model.safetensors")["w"]
        (1, tensor([2., 2.]))
    """
    started = time.perf_counter()
    if isinstance(recipe, str | Path):
        kind = kind_of(Path(recipe))
        if kind == "data":
            recipe = DataRecipe.load(recipe)
        elif kind == "networks":
            return merge_networks(recipe, out, zoo=zoo, seed=seed, device=device)
    if isinstance(recipe, DataRecipe):
        return merge_with_data(recipe.with_zoo(zoo), out, seed=seed, device=device, started=started)
    if isinstance(recipe, NetworkRecipe):
        return merge_networks(recipe, out, zoo=zoo, seed=seed, device=device)
    return carry_out(make_plan(recipe, zoo=zoo, seed=seed, shard_size=shard_size), out, started=started)

"""Recipes for networks that were trained apart, carried out: a folder with one network, and what is known of it."""

import csv
import json
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from taskatlas.errors import BadInput
from taskatlas.merge.folder import CARD, CONFIG, RECIPE
from taskatlas.merge.network_recipe import NamedNetworks, NetworkRecipe
from taskatlas.merge.probe_batches import ProbeBatches, first_samples
from taskatlas.merge.zipped import Cost, Zipped, cost_of
from taskatlas.merge.zipping import zip_models
from taskatlas.store import RECEIPT, load_receipts, output_folder
from taskatlas.zoo import Zoo

MADE_BY = "merge networks"
WEIGHTS, PROGRAM, AGREEMENTS, SUMMARY = "model.safetensors", "zipped.pt2", "agreements.csv", "zipped.json"


@dataclass(frozen=True)
class NetworkMergeResult:
    """What a merge of networks left behind.

    Attributes:
        out: the folder.
        files: in it.
        cost: of the merged network on a batch of the probe; the same for each model; notes.
        parents: what each of the models costs.
        notes: what to know before relying on it.
        kept: whether an earlier run had made it.
    """

    out: Path
    files: tuple[str, ...]
    cost: Cost
    parents: tuple[Cost, ...]
    notes: tuple[str, ...]
    kept: bool = False


def merge_networks(
    recipe: NetworkRecipe | str | Path,
    out: str | Path,
    *,
    zoo: Zoo | str | Path | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> NetworkMergeResult:
    """Merges networks that were trained apart into a folder.

    Merged to the end, the folder has weights by the names that the models have them (``model.safetensors``, with the
    configuration of a Hugging Face model, the widest where widths differ). Up to a stop it has ``zipped.pt2``, which
    opens without the models' code (``torch.export.load``). ``agreements.csv`` says how well units agree,
    ``zipped.json`` what the network costs.

    Args:
        recipe: a recipe or its file.
        out: a folder; made if it is not there.
        zoo: whose checkpoints the recipe may name.
        seed: of what is drawn at random.
        device: where to compute.

    Raises:
        BadInput: something is wrong with the recipe, the models or the place; the message says what.
    """
    started = time.perf_counter()
    beside = None
    if not isinstance(recipe, NetworkRecipe):
        beside = Path(recipe).parent
        recipe = NetworkRecipe.load(recipe)
    named = NamedNetworks.of(recipe, zoo=None if zoo is None else Zoo.open(zoo), beside=beside)
    out = Path(out)
    inputs = {f"model {one.name}": one.digest for one in named.checkpoints} | {"probe": named.probe.digest}
    inputs |= {} if named.groups is None else {"groups": named.groups.digest}
    settings = {"recipe": recipe.text}
    if _is_finished(out, inputs, settings, seed):
        return _result(out, kept=True)
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / RECIPE).is_file()):
        raise BadInput(f"{out} is not an empty folder. Name another one for the merged network.")
    zipped = zip_models(
        named.checkpoints,
        named.probe,
        stop_at=recipe.stop_at,
        method=recipe.merge_method,
        a=recipe.a,
        b=recipe.b,
        calibration=recipe.remedy,
        groups=named.groups,
        outputs=recipe.outputs,
        device=device,
        seed=seed,
    )
    with output_folder(out, MADE_BY, inputs=inputs, settings=settings, seed=seed, started=started) as folder:
        _write(folder, recipe, zipped, named, device)
    return _result(out)


def _write(folder: Path, recipe: NetworkRecipe, zipped: Zipped, named: NamedNetworks, device: str) -> None:
    opened = [one.open(device) for one in named.checkpoints]
    like = next((at for at, one in enumerate(opened) if _shapes(one.module) == _shapes(zipped.network)), 0)
    if zipped.stop_at is None:
        tensors = {
            name: value.detach().cpu().clone().contiguous() for name, value in zipped.network.state_dict().items()
        }
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        own = named.checkpoints[like].weights
        if isinstance(own, Path) and (own / CONFIG).is_file():
            shutil.copyfile(own / CONFIG, folder / CONFIG)
    else:
        zipped.save(folder / PROGRAM)
    with (folder / AGREEMENTS).open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, ["group", "units", "agreement"])
        table.writeheader()
        table.writerows(zipped.agreement_rows())
    prepare = next((one.prepare for one in opened if one.prepare is not None), None)
    batch = first_samples(next(iter(ProbeBatches(named.probe, opened[0].module, prepare=prepare))), 32)
    costs = [cost_of(network, batch) for network in (zipped.network, *(one.module for one in opened))]
    document: dict[str, object] = {"models": zipped.names, "stop_at": zipped.stop_at, "notes": zipped.notes}
    document |= {"cost": asdict(costs[0]), "parents": [asdict(cost) for cost in costs[1:]]}
    (folder / SUMMARY).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (folder / RECIPE).write_text(recipe.text, encoding="utf-8")
    (folder / CARD).write_text(_card(recipe, zipped, costs, zipped.names[like]), encoding="utf-8")


def _result(out: Path, kept: bool = False) -> NetworkMergeResult:
    found = json.loads((out / SUMMARY).read_text(encoding="utf-8"))
    files = tuple(sorted(file.name for file in out.iterdir() if file.is_file() and file.name != RECEIPT))
    return NetworkMergeResult(
        out,
        files,
        Cost(**found["cost"]),
        tuple(Cost(**cost) for cost in found["parents"]),
        tuple(found["notes"]),
        kept,
    )


def _is_finished(out: Path, inputs: dict[str, str], settings: dict[str, str], seed: int) -> bool:
    """Whether the folder holds the whole result of this very merge."""
    if not (out / RECEIPT).is_file():
        return False
    receipt = next((one for one in load_receipts(out) if one.made_by == MADE_BY), None)
    same = receipt is not None and (receipt.inputs, receipt.settings, receipt.seed) == (inputs, settings, seed)
    return same and receipt is not None and not receipt.verify(out)


def _shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def _card(recipe: NetworkRecipe, zipped: Zipped, costs: list[Cost], like: str) -> str:
    """What was merged, how, what it costs, and how to open it."""
    opened = (
        f"Load `{WEIGHTS}` into a network like that of {like}."
        if zipped.stop_at is None
        else f'`torch.export.load("{PROGRAM}").module()` gives a module with one output for each model, in order.'
    )
    own, *parents = costs
    together = sum(cost.macs for cost in parents)
    lines = [
        "---\ntags:\n- merge\n- taskatlas\n---",
        f"# {recipe.name or 'Merged networks'}",
        f"Merged with taskatlas by the method `{recipe.merge_method}`, from: {', '.join(zipped.names)}.",
        opened,
        f"{own.parameters:,} parameters and {own.macs / 1e6:,.1f} million multiplications a sample; the models "
        f"together have {sum(cost.parameters for cost in parents):,} and {together / 1e6:,.1f} million.",
        *(f"Note: {note}" for note in zipped.notes),
        f"```yaml\n{recipe.text}```",
    ]
    return "\n\n".join(lines) + "\n"

"""``taskatlas zip-points``."""

from typing import Annotated, Any

from cyclopts import App, Parameter

from taskatlas.cli.options import DEFAULTS, Common, emit, table
from taskatlas.errors import BadInput

app = App(
    name="zip-points",
    help_epilogue="""Examples:

    taskatlas zip-points even.pt --builder nets.py:resnet --shape 3,32,32
    taskatlas zip-points bert/ --probe lines.tsv
    taskatlas zip-points even.pt --builder nets.py:resnet --probe photos/ --format json
""",
)


@app.default
def zip_points(
    model: str,
    *,
    builder: str | None = None,
    probe: str | None = None,
    shape: Annotated[str | None, Parameter(negative=())] = None,
    outputs: str | None = None,
    common: Common = DEFAULTS,
) -> None:
    """List up to where networks like this one can be merged, and which units move together.

    A stop is a place where a single tensor cuts the network in two: before it networks are merged, after it each keeps
    what it has.

    Args:
        model: A weights file, a Hugging Face model folder, or timm:NAME, torchvision:NAME.
        builder: Unless the model says it: transformers, timm:NAME, module.path:function, file.py:function.
        probe: Samples that the network takes; two are looked at.
        shape: In place of a probe, the shape of one input, such as 3,32,32.
        outputs: Of a network that returns several, those that count, separated by commas.
    """
    from taskatlas.cli.options import split_names
    from taskatlas.merge import AxisGroups
    from taskatlas.zoo import Zoo

    (checkpoint,) = Zoo.open([model], builder=builder).checkpoints
    opened = checkpoint.open()
    example = _example(opened, probe, shape)
    groups = AxisGroups.of(opened.module, example, None if outputs is None else split_names(outputs))
    sizes = {name: value.numel() for name, value in opened.module.named_parameters(remove_duplicate=False)}
    whole = sum(value.numel() for value in opened.module.parameters())
    stops: list[dict[str, Any]] = [
        {
            "place": stop.place,
            "aliases": stop.aliases,
            "parameters_before": sum(sizes.get(name, 0) for name in stop.trunk),
        }
        for stop in groups.stops
    ]
    document = {
        "model": checkpoint.name,
        "parameters": whole,
        "stops": stops,
        "groups": [{"name": group.name, "units": group.size} for group in groups],
        "frozen": [
            {"tensor": axis.tensor, "axis": axis.axis, "why": axis.why, "where": axis.where} for axis in groups.frozen
        ],
    }
    rows = [
        [stop["place"], ", ".join(stop["aliases"]), f"{stop['parameters_before'] / max(whole, 1):.0%}"]
        for stop in stops
    ]
    emit(common, document, [table("legal stops", ["place", "the same as", "parameters before"], rows), "", str(groups)])


def _example(opened: Any, probe: str | None, shape: str | None) -> Any:
    """Two samples as the network takes them."""
    import torch

    from taskatlas.merge.probe_batches import ProbeBatches, first_samples
    from taskatlas.probe import Probe

    if (probe is None) == (shape is None):
        raise BadInput("a network is looked at as it runs. Give --probe, or --shape with the shape of one input.")
    if probe is not None:
        found = Probe.open(probe)
        few = found.take(range(min(2, len(found))))
        return first_samples(next(iter(ProbeBatches(few, opened.module, prepare=opened.prepare))), 2)
    try:
        axes = [int(part) for part in str(shape).split(",")]
        return torch.randn(2, *axes, generator=torch.Generator().manual_seed(0))
    except (ValueError, RuntimeError) as error:
        raise BadInput(f"--shape {shape!r} is no shape. Give whole numbers with commas, such as 3,32,32.") from error

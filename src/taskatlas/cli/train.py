"""``taskatlas train``."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from taskatlas.cli.options import DEFAULTS, Common, NotNegative, Positive, emit, table

RECORD = "predictions.record"
_LARGE = 64  # pixels a side above which pictures are brought to 224 and cropped at random, as is usual for ImageNet

app = App(
    name="train",
    help_epilogue="""Examples:

    taskatlas train photos/ --model small_cnn --epochs 20 --out run
    taskatlas train imagenet/train --model timm:resnet50 --workers 8 --out run
    taskatlas train a.parquet --model nets.py:build --probe b.parquet --out run
    taskatlas train photos/ --model small_cnn --classes tasks.json:pets
    taskatlas train photos/ --model timm:resnet50 --split 01.npz --out broken
""",
)


@app.default
def train(
    data: str,
    *,
    model: str,
    classes: str | None = None,
    wordnet: Path | None = None,
    node: str | None = None,
    random_labels: Annotated[float, Parameter(negative=())] = 0.0,
    split: str | None = None,
    probe: str | None = None,
    snapshots: str = "1.3",
    imprint: float | None = None,
    name: str | None = None,
    epochs: Positive = 90,
    batch_size: Positive = 256,
    learning_rate: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    schedule: Literal["cosine", "step"] = "cosine",
    warmup: float = 0.05,
    label_smoothing: float = 0.0,
    size: Positive | None = None,
    crop: Literal["none", "shift", "resized"] | None = None,
    flip: bool | None = None,
    precision: Literal["float32", "bfloat16"] | None = None,
    workers: NotNegative = 0,
    common: Common = DEFAULTS,
) -> None:
    """Train one network on labelled pictures or arrays of any number, and record its predictions on the way.

    Writes weights.safetensors, log.csv, zoo.yaml and receipt.json into --out (default: run), and with --probe the
    predictions as predictions.record, a snapshot at a time. Running again goes on where an earlier run stopped.

    Args:
        data: What it learns: a folder with a folder a class, .parquet, .npz, or hf:NAME:SPLIT.
        model: timm:NAME, torchvision:NAME, module.path:function, file.py:function, or small_cnn.
        classes: Learn these classes only: a JSON file with a list, FILE:KEY where it has several.
        wordnet: Learn the classes below --node of this hierarchy: a file with "parent child" a line.
        node: Where in the hierarchy.
        random_labels: Share of the samples whose label is drawn at random.
        split: Learn the train part of a split (.npz of `taskatlas split`, or a .csv of id,part) and its target, and say
            how many samples of its test and reserved parts are right; its controls are splits too. Or one of those
            published as positions in the data's order (.torch, .pt, .pth, .json), which learns the data's own classes:
            FILE:NAME where there are several.
        probe: What predictions are recorded on; classes are those of the data by their names.
        snapshots: Each snapshot so many times as late as the last, or every:N for one every N steps.
        imprint: Record by the distance of features to the mean of each of the probe's own classes, with this
            temperature: for networks that learn other classes.
        name: Of the run; runs of one name are seeds of one task. Default: the name of --out.
        epochs: Passes over the data.
        batch_size: Samples a step.
        learning_rate: The highest.
        momentum: Of stochastic gradient descent.
        weight_decay: Of all parameters.
        schedule: How the learning rate falls: along a cosine, or to a tenth after each third.
        warmup: Share of the steps in which the learning rate rises.
        label_smoothing: Probability that is shared out among all classes.
        size: Side in pixels that pictures are brought to. Default: as they are, or 224 where they are larger than 64.
        crop: At random, shift: by up to an eighth; resized: a part, scaled. Default: resized for large pictures, none
            for small ones.
        flip: Exchange left and right of every other picture. Default: for large pictures.
        precision: Of the forward pass. Default: bfloat16 on a GPU that has it.
        workers: Processes that read pictures; they change no result.
    """
    from taskatlas.learn import Recipe, Stream, new_network, train_to_folder
    from taskatlas.learn.run import WEIGHTS
    from taskatlas.probe import Probe, class_names, class_subset
    from taskatlas.probe import random_labels as with_random_labels

    out = common.out or Path("run")
    called = name or out.resolve().name
    whole = Probe.open(data)
    parts = {} if split is None else _parts(split, whole, classes, wordnet)
    whole = parts.get("train", whole)
    chosen = _chosen_classes(whole, classes, wordnet, node)
    learned = whole if chosen is None else class_subset(whole, chosen)
    names = class_names(learned)
    if random_labels:
        learned = with_random_labels(learned, random_labels, seed=common.seed)
    large = learned.kind == "image" and min(learned.inputs[0].shape[:2]) > _LARGE
    side = 224 if size is None and large else size
    recipe = Recipe(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        momentum=momentum,
        weight_decay=weight_decay,
        schedule=schedule,
        warmup=warmup,
        label_smoothing=label_smoothing,
        crop=crop or ("resized" if large else "none"),
        flip=large if flip is None else flip,
        precision=precision or _fast_precision(common.device),
        seed=common.seed,
    )
    network = new_network(model, learned, len(names), size=side, seed=common.seed)
    stream = Stream(learned, recipe, network.prepare)
    recorder = None
    if probe is not None:
        asked = Probe.open(probe)
        if imprint is None and asked.labels is not None and asked.kind != "words":
            asked = _numbered(asked, whole.class_names, names, chosen is not None)
        recorder = _recorder(asked, out / RECORD, called, network.prepare, snapshots, imprint, batch_size)
    named = [part for said in (classes, split) if said for part in (said, said.rpartition(":")[0])]
    files = [Path(path) for path in (data, probe, wordnet, *named) if path]
    rows = train_to_folder(
        out,
        network,
        stream,
        name=called,
        hook=None if recorder is None else _watching(recorder, len(stream)),
        written=[] if recorder is None else [RECORD],
        inputs={} if recorder is None else {"probe": recorder.probe.digest},
        settings={"name": called, "random_labels": random_labels, "snapshots": snapshots, "imprint": imprint}
        | ({} if split is None else {"split": Path(split).name}),
        sources=files,
        workers=workers,
        device=common.device,
    )
    last = rows[-1]
    asked_parts = {part: samples for part, samples in parts.items() if part != "train"}
    fallen = _right(out, called, asked_parts, common.device, batch_size) if asked_parts else None
    document = {
        "out": out,
        "weights": out / WEIGHTS,
        "record": None if recorder is None else out / RECORD,
        "snapshots": None if recorder is None else len(recorder.steps),
        "samples": len(learned),
        "classes": names,
        "steps": last.step,
        "loss": last.loss,
        "accuracy": last.accuracy,
        "split": fallen,
    }
    shown = [rows[position] for position in sorted({round(i * (len(rows) - 1) / 9) for i in range(10)})]
    columns = ["epoch", "step", "learning rate", "loss (nats)", "accuracy"]
    title = f"{called}: {len(learned):,} samples of {len(names)} classes"
    wrote = [f"wrote {out}: weights.safetensors, log.csv, zoo.yaml, receipt.json"]
    if recorder is not None:
        wrote.append(f"recorded {len(recorder.steps)} snapshots of {len(recorder.probe):,} samples: {out / RECORD}")
    told = [f"right in the {name} part: {share:.3f}" for name, share in (fallen or {}).items()]
    emit(common, document, [table(title, columns, [list(row) for row in shown]), *told, *wrote])


def _parts(split: str, data: Any, classes: str | None, wordnet: Path | None) -> dict[str, Any]:
    """The parts of a split, each with the split's target as its labels."""
    from taskatlas.errors import BadInput
    from taskatlas.tasks.split_files import open_split

    if classes is not None or wordnet is not None:
        raise BadInput("a split says itself what is learned; leave out either --split or the choice of classes.")
    parts = open_split(split, data).probes(data)
    if parts["train"].labels is None or not parts["train"].labels.any():
        raise BadInput(f"the target of {split} has one class; there is nothing to learn.")
    return parts


def _right(out: Path, name: str, parts: dict[str, Any], device: str, batch_size: int) -> dict[str, float]:
    """The share of each part's samples that the trained network, as it lies in the folder, gets right."""
    from taskatlas.paths import predict
    from taskatlas.probe.forward import chosen_device
    from taskatlas.zoo import Zoo

    opened = Zoo.open(out)[name].open(chosen_device(device))
    found = {}
    for part, probe in parts.items():
        said = predict(opened.module, probe, prepare=opened.prepare, batch_size=batch_size, who=name)
        found[part] = float((said.log_probs.argmax(1) == probe.labels).mean())
    return found


def _chosen_classes(data: Any, classes: str | None, wordnet: Path | None, node: str | None) -> list[int | str] | None:
    from taskatlas.errors import BadInput
    from taskatlas.probe import class_names, read_classes, wordnet_classes

    if (wordnet is None) != (node is None) or (classes is not None and wordnet is not None):
        raise BadInput("choose classes by --classes FILE[:KEY], or by --wordnet FILE together with --node NAME.")
    if wordnet is not None and node is not None:
        return [*wordnet_classes(wordnet, node, class_names(data))]
    if classes is None:
        return None
    file, _, key = classes.rpartition(":")
    return read_classes(classes) if not file or Path(classes).is_file() else read_classes(file, key)


def _numbered(probe: Any, known: tuple[str, ...] | None, learned: tuple[str, ...], chosen: bool) -> Any:
    """A probe with its classes numbered as the network's outputs are.

    Args:
        probe: labelled samples. Where they have numbers and no names, these are the data's numbers.
        known: names of all classes of the data, where they have some.
        learned: names of the classes that are learned.
        chosen: whether these are a part, so that the probe's other samples are left out.
    """
    from taskatlas.errors import BadInput
    from taskatlas.probe import class_names
    from taskatlas.probe.views import numbered_by_name

    own = probe.class_names or known or class_names(probe)
    there = {own[label] for label in probe.labels.tolist() if label < len(own)}
    foreign = sorted(there.difference(learned))
    if foreign and not chosen:
        raise BadInput(
            f"the probe has the class {foreign[0]!r}, which the data has not. Name classes alike, choose some by "
            "--classes, or record by the probe's own classes with --imprint."
        )
    return numbered_by_name(probe, learned, own)


def _recorder(
    probe: Any, path: Path, name: str, prepare: Any, snapshots: str, imprint: float | None, batch_size: int
) -> Any:
    from functools import partial

    from taskatlas.paths import Recorder, predict, predict_imprinted
    from taskatlas.paths.imprint import check_temperature

    if imprint is not None:
        check_temperature(imprint)
    asked = predict if imprint is None else partial(predict_imprinted, temperature=imprint)
    schedule = _schedule(snapshots)
    return Recorder(probe, path, name=name, prepare=prepare, schedule=schedule, predict=asked, batch_size=batch_size)


def _schedule(snapshots: str) -> Callable[[int, int | None], bool]:
    from taskatlas.errors import BadInput
    from taskatlas.paths import every, geometric

    kind, _, number = snapshots.rpartition(":")
    try:
        if kind == "every":
            return every(int(number))
        if not kind:
            return geometric(float(number))
    except ValueError as error:
        if isinstance(error, BadInput):
            raise
    raise BadInput(f"--snapshots is {snapshots!r}; give a ratio above 1, such as 1.3, or every:N.")


def _watching(recorder: Any, steps: int) -> Callable[[Any, int], object]:
    """Offers the recorder every step, and has it take the last."""
    return lambda module, step: recorder(module, step) if step < steps else recorder.record(module, step)


def _fast_precision(device: str) -> Literal["float32", "bfloat16"]:
    import torch

    from taskatlas.probe.forward import chosen_device

    return "bfloat16" if chosen_device(device) == "cuda" and torch.cuda.is_bf16_supported() else "float32"

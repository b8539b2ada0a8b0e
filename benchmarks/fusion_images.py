"""Five image tasks for ``fusion_suite.py``: photographs, which way up they are, and three kinds of digits.

Data and networks do not come with this project: a folder with cifar10-train.parquet and cifar10-test.parquet (columns
image, label, id) and mnist.npz (x_train, y_train, x_test, y_test), and a folder of the CIFAR-10 networks that circulate
as ``resnet20-….th`` (github.com/akamaster/pytorch_resnet_cifar10). The base is ResNet-20 and the family to which
hypernetworks are transferred ResNet-32; features are those of ResNet-56. Digits on photographs are the absolute
difference of both, as in MNIST-M (Ganin et al., "Domain-Adversarial Training of Neural Networks", JMLR 2016).
"""

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from fusion_tasks import QUICK, Suite, disjoint
from torch import Tensor, nn

import taskatlas as ta
from taskatlas.merge import CORRUPTIONS

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import cifar_resnet

SIZES = {"train": 1600, "held_out": 240, "validation": 100, "test": 210}
DEPTHS = (20, 32)  # of the base, and of the family to which hypernetworks go
FEATURES = 56
SEVERITY = 3

Split = Mapping[str, tuple[np.ndarray, np.ndarray]]  # images (n, 32, 32, 3) and labels, for training and for tests


def read_image_suite(data: Path, networks: Path, quick: bool) -> Suite:
    """The suite of image tasks."""
    photographs, digits = read_photographs(data), read_digits(data / "mnist.npz")
    every: dict[str, Split] = {
        "objects": photographs,
        "rotations": {part: rotated(*its) for part, its in photographs.items()},
        "digits": digits,
        "digits-on-photographs": {part: on_photographs(*digits[part], photographs[part][0]) for part in digits},
        "scanned-digits": read_scans(),
    }
    sizes = QUICK if quick else SIZES
    return Suite(
        tasks={
            name: disjoint(*(probe_of(f"{name} {part}", *split[part]) for part in ("train", "test")), sizes)
            for name, split in every.items()
        },
        families={f"resnet-{depth}": partial(classifier, networks, depth) for depth in DEPTHS},
        prepare=cifar_resnet.prepare,
        extractor=ta.Extractor.of(trained(networks, FEATURES), prepare=cifar_resnet.prepare),
        corrupt=corrupted_in_turns,
        tuning={
            "head_steps": 100,
            "head_alone_rate": 1e-2,
            "steps": 200,
            "rate": 3e-4,
            "head_rate": 3e-4,
            "batch": 32,
        },
        adaptation={"steps": 150, "batch": 16, "adamerging_rate": 2e-2, "rate": 1e-3},
    )


class ImageClassifier(nn.Module):
    """A residual network without its head, and a linear head."""

    def __init__(self, body: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images."""
        return self.head(self.body(x))


def classifier(networks: Path, depth: int, classes: int) -> nn.Module:
    """A trained network with a new head."""
    body = trained(networks, depth)
    width = body.linear.in_features
    body.linear = nn.Identity()
    return ImageClassifier(body, width, classes).eval()


def trained(networks: Path, depth: int) -> nn.Module:
    """A network of the folder."""
    (found,) = networks.glob(f"resnet{depth}-*.th")
    checkpoint = ta.Checkpoint(found.stem, weights=found, builder=cifar_resnet.build)
    return checkpoint.open().module


def read_photographs(folder: Path) -> Split:
    """CIFAR-10; of the training images as many as may be needed."""
    found = {}
    for part, count in (("train", 6000), ("test", 2000)):
        probe = ta.Probe.from_parquet(folder / f"cifar10-{part}.parquet").take(range(count))
        found[part] = np.stack([np.asarray(probe.inputs[row]) for row in range(count)]), probe.labels
    return found


def rotated(images: np.ndarray, _: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each image turned by none to three quarters of a turn, which is its label."""
    turns = np.random.default_rng(0).integers(4, size=len(images))
    return np.stack([np.rot90(image, turn) for image, turn in zip(images, turns, strict=True)]), turns


def read_digits(file: Path) -> Split:
    """MNIST in the middle of 32 x 32 pixels."""
    with np.load(file) as arrays:
        parts = {
            "train": (arrays["x_train"][:6000], arrays["y_train"][:6000]),
            "test": (arrays["x_test"][:2000], arrays["y_test"][:2000]),
        }
    return {part: (coloured(np.pad(x, ((0, 0), (2, 2), (2, 2)))), y.astype(np.int64)) for part, (x, y) in parts.items()}


def on_photographs(digits: np.ndarray, labels: np.ndarray, photographs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each digit taken from a photograph."""
    ground = photographs[np.random.default_rng(1).integers(len(photographs), size=len(digits))]
    return np.abs(ground.astype(np.int16) - digits).astype(np.uint8), labels


def read_scans() -> Split:
    """The digits of 8 x 8 pixels that come with scikit-learn, enlarged."""
    from sklearn.datasets import load_digits

    found = load_digits()
    large = coloured(np.kron(np.clip(found.images * 16, 0, 255), np.ones((4, 4))).astype(np.uint8))
    return {"train": (large[:1400], found.target[:1400]), "test": (large[1400:], found.target[1400:])}


def coloured(images: np.ndarray) -> np.ndarray:
    """Grey images with three equal channels."""
    return np.repeat(images[..., None], 3, axis=-1)


def probe_of(name: str, images: np.ndarray, labels: np.ndarray) -> ta.Probe:
    return ta.Probe("image", list(images), [f"{name} {row}" for row in range(len(images))], labels, None)


def corrupted_in_turns(probe: ta.Probe) -> ta.Probe:
    """Each sample with one of the seven corruptions at severity 3, in turns."""
    inputs = list(probe.inputs)
    for start, kind in enumerate(CORRUPTIONS):
        rows = range(start, len(probe), len(CORRUPTIONS))
        worse = ta.corrupted(probe.take(rows), kind, SEVERITY)
        for row, image in zip(rows, worse.inputs, strict=True):
            inputs[row] = image
    return ta.Probe("image", inputs, probe.ids, probe.labels, probe.class_names)

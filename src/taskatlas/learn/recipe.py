"""How one network is trained: everything that decides where it ends, and the learning rate at every step."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from taskatlas.errors import BadInput

Schedule = Literal["cosine", "step"]
Crop = Literal["none", "shift", "resized"]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Recipe:
    """Settings of a training by stochastic gradient descent; the defaults are those usual for ImageNet.

    Attributes:
        epochs: passes over the samples.
        batch_size: samples a step. What is left over at the end of an epoch is left out, for a batch of one would have
            no batch statistics; every epoch has another order.
        learning_rate: the highest, reached after the warm-up.
        momentum: of the gradient, with Nesterov's correction.
        weight_decay: of all parameters.
        schedule: ``cosine``, down to 0 at the end, or ``step``, a tenth after each third of the training.
        warmup: share of all steps in which the learning rate rises in proportion.
        label_smoothing: probability that is shared out among all classes.
        crop: ``none``; ``shift``, by up to an eighth of the image, which is reflected at its edges; ``resized``, a part
            of 8 to 100 % of the area, of an aspect between 3:4 and 4:3, scaled to the size (He et al., CVPR 2016).
        flip: left and right are exchanged for half of the images.
        precision: of the forward pass; ``bfloat16`` keeps weights and sums in float32.
        seed: of the order, the crops, and what is random within the network.

    Raises:
        BadInput: a setting out of its range.
    """

    epochs: int = 90
    batch_size: int = 256
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: Schedule = "cosine"
    warmup: float = 0.05
    label_smoothing: float = 0.0
    crop: Crop = "none"
    flip: bool = False
    precision: Precision = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("epochs", 1, math.inf),
            ("batch_size", 1, math.inf),
            ("seed", 0, math.inf),
            ("weight_decay", 0, math.inf),
            ("momentum", 0, 1),
            ("warmup", 0, 1),
            ("label_smoothing", 0, 1),
        ):
            if not low <= getattr(self, name) <= high:
                reach = f"at least {low}" if high == math.inf else f"from {low} to {high}"
                raise BadInput(f"{name.replace('_', ' ')} is {getattr(self, name)}; give a number {reach}.")
        if not 0 < self.learning_rate < math.inf:
            raise BadInput(f"the learning rate is {self.learning_rate}; give a number above 0.")
        for name, known in (("schedule", Schedule), ("crop", Crop), ("precision", Precision)):
            if getattr(self, name) not in get_args(known):
                raise BadInput(f"there is no {name} {getattr(self, name)!r}. Choose {', '.join(get_args(known))}.")

    def steps_per_epoch(self, samples: int) -> int:
        """Whole batches that so many samples make, and one where they make none.

        Example:
            >>> Recipe(batch_size=64).steps_per_epoch(1000)
            15
        """
        return max(1, samples // self.batch_size)

    def learning_rate_at(self, step: int, steps: int) -> float:
        """The learning rate of a step, counted from 0, in a training of so many.

        Example:
            >>> recipe = Recipe(learning_rate=1.0, warmup=0.2)
            >>> [round(recipe.learning_rate_at(step, 10), 3) for step in (0, 1, 2, 6, 9)]
            [0.5, 1.0, 1.0, 0.5, 0.038]
        """
        rising = round(self.warmup * steps)
        if step < rising:
            return self.learning_rate * (step + 1) / rising
        if self.schedule == "step":
            return self.learning_rate * 0.1 ** min(2, 3 * step // steps)
        return self.learning_rate * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising))) / 2

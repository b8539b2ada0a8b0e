"""How long it takes to derive axis groups: transformers of twelve layers at their usual size, self-check included.

Run ``python benchmarks/axes.py`` (about a minute; needs the extra ``hf``). Weights are random: nothing is downloaded.
"""

import logging
import time
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from taskatlas.merge.axis_groups import AxisGroups

WORDS = torch.randint(5, 1000, (1, 16), generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))


def networks() -> Mapping[str, tuple[nn.Module, Mapping[str, Tensor]]]:
    """Twelve layers of 768 units each."""
    import transformers

    return {
        "BERT base": (
            transformers.BertForSequenceClassification(transformers.BertConfig()),
            {"input_ids": WORDS, "attention_mask": torch.ones_like(WORDS)},
        ),
        "GPT-2": (transformers.GPT2LMHeadModel(transformers.GPT2Config()), {"input_ids": WORDS}),
        "ViT base": (transformers.ViTForImageClassification(transformers.ViTConfig()), {"pixel_values": IMAGES}),
    }


def main() -> None:
    """Prints a line for each network; the first derivation of a process, which loads what torch.export needs, apart."""
    logging.disable(logging.WARNING)
    started = time.perf_counter()
    AxisGroups.of(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), torch.zeros(1, 2))
    print(f"start of torch.export: {time.perf_counter() - started:.1f} s")
    for name, (module, example) in networks().items():
        started, worked = time.perf_counter(), time.process_time()
        groups = AxisGroups.of(module.eval(), example)
        seconds, work = time.perf_counter() - started, time.process_time() - worked
        print(f"{name}: {seconds:.1f} s ({work:.1f} s of processor time), {groups!r}")


if __name__ == "__main__":
    main()

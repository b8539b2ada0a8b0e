r"""Fine-tuning: all classes, learned from scratch and from networks that learned a half of them first.

    python examples/studies/fine_tuning.py
    python examples/studies/fine_tuning.py --data cifar10.parquet --probe-size 1000 --out cifar

Only the second part, on all classes, is recorded: its paths begin where the first part ended.
"""

import time
from collections.abc import Sequence

from common import new_network, open_material, parser, record_run, report, supervised, train

import taskatlas as ta
from taskatlas.probe import class_subset


def main(arguments: Sequence[str] | None = None) -> list[ta.Trajectory]:
    settings = parser(__doc__).parse_args(arguments)
    started = time.perf_counter()
    material = open_material(settings)
    half = len(material.classes) // 2
    all_classes = supervised(material.learned, settings)
    runs = []
    for seed in range(settings.seeds):
        runs.append(
            record_run("all classes", new_network(material, settings, seed), all_classes, material, settings, seed)
        )
        for name, classes in {"first": material.classes[:half], "second": material.classes[half:]}.items():
            before = new_network(material, settings, seed, len(classes))
            for _ in train(before, supervised(class_subset(material.learned, classes), settings), settings, seed):
                pass
            network = new_network(material, settings, seed)
            network.encoder.load_state_dict(before.encoder.state_dict())
            runs.append(record_run(f"fine-tuned from {name} half", network, all_classes, material, settings, seed))
    return report(runs, settings, started)


if __name__ == "__main__":
    main()

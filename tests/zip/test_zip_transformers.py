"""Transformers' own classes: permuted copies are aligned back, heads and streams included; a pair is merged."""

import csv
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.zip.test_axis_transformers import CASES, derived
from tests.zip.test_zip_models import relative, with_weights

import taskatlas as ta
from taskatlas.merge.axis_run import generic_weights

EXAMPLES = Path(__file__).parents[2] / "examples"


def batches(inputs, count=96):
    """Inputs like the given ones, other in every sample; texts keep their last token."""
    draw = torch.Generator().manual_seed(5)
    found = {}
    for name, values in inputs.items():
        shape = (count, *values.shape[1:])
        if values.is_floating_point():
            found[name] = torch.randn(shape, generator=draw)
        elif "mask" in name:
            found[name] = torch.ones(shape, dtype=torch.long)
            found[name][::3, -2:] = 0
        else:
            found[name] = torch.randint(1, 49, shape, generator=draw)
            found[name][:, -1] = values[0, -1]
    return [{name: values[start : start + 48] for name, values in found.items()} for start in range(0, count, 48)]


@torch.no_grad()
def outputs(network, data, name):
    return torch.cat([network(**batch)[name].flatten(1) for batch in data])


@pytest.mark.parametrize(
    ("name", "method"), [*((name, "zip") for name in CASES), ("BERT", "weight_matching"), ("Llama", "weight_matching")]
)
def test_a_permuted_transformer_is_aligned_back(name, method):
    module, inputs, output, _, groups = derived(name)
    own = {key: value for key, value in generic_weights(module).items() if key in module.state_dict()}
    network = with_weights(module, module.state_dict() | own)
    other = with_weights(network, groups.permute(network.state_dict(), groups.random_permutations(3)))
    data = batches(inputs)
    zipped = ta.zip_models([network, other], data, method=method, calibration=None, groups=groups, outputs=[output])
    assert relative(outputs(zipped.network, data, output), outputs(network, data, output)) < 1e-4
    averaged = ta.zip_models(
        [network, other], data, method="identity", calibration=None, groups=groups, outputs=[output]
    )
    assert relative(outputs(averaged.network, data, output), outputs(network, data, output)) > 0.01


@pytest.mark.parametrize("stop", ["transformer.h.0", None])
def test_a_transformer_zipped_with_itself_is_itself(stop):
    module, inputs, output, _, groups = derived("GPT-2")
    data = batches(inputs)
    zipped = ta.zip_models([module, module], data, stop_at=stop, groups=groups, outputs=[output], calibration=None)
    with torch.no_grad():
        found = zipped.network(**data[0])
    for one in found if stop else (found,):
        assert relative(one[output], module(**data[0])[output]) < 1e-5


def test_a_saved_transformer_takes_texts_of_any_length(tmp_path):
    module, inputs, output, _, groups = derived("GPT-2")
    data = batches(inputs)
    zipped = ta.zip_models(
        [module, module], data, stop_at="transformer.h.0", groups=groups, outputs=[output], calibration=None
    )
    zipped.save(tmp_path / "zipped.pt2")
    opened = torch.export.load(tmp_path / "zipped.pt2").module()
    for shape in ((2, 7), (1, 5), (4, 12)):
        words = torch.randint(1, 49, shape, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected, found = zipped.network(**dict.fromkeys(data[0], words)), opened(words)
        for one, other in zip(expected, found, strict=True):
            assert relative(other[output], one[output]) < 1e-5


def test_the_example_of_two_berts_runs(tmp_path):
    random = np.random.default_rng(0)
    subjects = [["goal", "match", "team"], ["bank", "market", "trade"], ["atom", "star", "cell"]]
    rows = []
    for split, count in (("train", 120), ("test", 60)):
        for _ in range(count):
            label = int(random.integers(3))
            words = [*random.choice(subjects[label], 3), *random.choice(["the", "of", "said", "new", "a"], 5)]
            random.shuffle(words)
            rows.append({"split": split, "label": label, "text": " ".join(words)})
    with (tmp_path / "texts.tsv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["split", "label", "text"], delimiter="\t")
        table.writeheader()
        table.writerows(rows)
    spec = importlib.util.spec_from_file_location("zip_transformers", EXAMPLES / "zip_transformers.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.WAYS = {way: module.WAYS[way] for way in ("average", "permute", "zip, least squares")}
    found = module.main([f"{tmp_path}/texts.tsv", "--epochs", "1", "--match", "60", "--csv", f"{tmp_path}/out.csv"])
    rows = {row["way"]: row for row in found}
    assert rows.keys() >= {"model 0", "model 1", "average", "permute", "zip, least squares"}
    assert all(0 <= row["right"] <= 100 for row in found)
    assert all(0 < rows[way]["agreement"] < 1 for way in ("permute", "zip, least squares"))
    assert [row["way"] for row in csv.DictReader((tmp_path / "out.csv").open())] == list(rows)

"""Batches as networks take them."""

from itertools import islice

import numpy as np
import pytest
import torch
from torch import nn

from taskatlas.errors import BadInput
from taskatlas.merge.unlabelled import Unlabelled, endless, logits_of, network_inputs
from taskatlas.probe import Probe

PROBE = Probe.from_arrays(np.arange(10.0).reshape(10, 1), labels=range(10))


def seen(batches):
    return torch.cat(list(batches)).flatten().tolist()


def test_every_pass_shows_every_sample_once_in_a_new_order():
    batches = Unlabelled(PROBE, batch_size=3)
    torch.manual_seed(0)
    first, second = seen(batches), seen(batches)
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    torch.manual_seed(0)
    assert seen(batches) == first
    assert seen(Unlabelled(PROBE, batch_size=4, shuffle=False)) == list(range(10))
    assert [len(batch) for batch in batches] == [3, 3, 3, 1]
    assert len(batches) == 4


def test_samples_are_prepared_by_the_networks_own_way():
    probe = Probe.from_text(["a", "bb"])
    batches = Unlabelled(probe, prepare=lambda texts: torch.tensor([len(text) for text in texts]), shuffle=False)
    assert [batch.tolist() for batch in batches] == [[1, 2]]
    with pytest.raises(BadInput, match=r"samples '0' to '1'.*made 1 rows"):
        list(Unlabelled(probe, prepare=lambda texts: torch.tensor([len(texts)]), shuffle=False))


def test_batches_are_asked_for_anew_in_each_pass():
    asked = []

    class Loader:
        def __iter__(self):
            asked.append(1)
            return iter([1, 2])

    assert list(islice(endless(Loader(), "a"), 5)) == [1, 2, 1, 2, 1]
    assert len(asked) == 3


@pytest.mark.parametrize("batches", [[], iter([1])])
def test_data_that_run_out_are_told(batches):
    with pytest.raises(BadInput, match="the data of a give no batch, or give them only once"):
        list(islice(endless(batches, "a"), 2))


def test_labels_are_dropped_and_precision_is_the_networks():
    net = nn.Linear(1, 1).bfloat16()
    x = torch.ones(2, 1)
    assert network_inputs([x, torch.tensor([0, 1])], net)[""].dtype == torch.bfloat16
    assert network_inputs(x, net, torch.float64)[""].dtype == torch.float64
    found = network_inputs({"input_ids": torch.ones(2, 1, dtype=torch.long), "labels": x, "flag": True}, net)
    assert (found["input_ids"].dtype, found["flag"], "labels" in found) == (torch.long, True, False)


@pytest.mark.parametrize("batch", ["a", 3, [], {}, {"a": 1}, ("a", "b"), torch.zeros(0, 3), None])
def test_what_is_no_batch_is_told(batch):
    with pytest.raises(BadInput, match="batch"):
        network_inputs(batch, nn.Linear(1, 1))


class Output:
    logits = torch.zeros(2, 3)


@pytest.mark.parametrize(
    "output", [torch.zeros(2, 3), {"logits": torch.zeros(2, 3), "a": 1}, Output(), (torch.zeros(2, 3), "cache")]
)
def test_logits_are_found(output):
    assert logits_of(output, 2).shape == (2, 3)


@pytest.mark.parametrize(
    ("output", "said"),
    [("a", "str without logits"), ({"a": 1}, "without logits"), (torch.zeros(3), r"\(3,\) for 2"), ((), "tuple")],
)
def test_what_has_no_logits_is_told(output, said):
    with pytest.raises(BadInput, match=said):
        logits_of(output, 2, "net")


def test_a_batch_has_a_size():
    with pytest.raises(BadInput, match="at least 1"):
        Unlabelled(PROBE, batch_size=0)

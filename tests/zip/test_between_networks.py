"""What lies between networks: barriers, orders of units, networks that come one after the other."""

import copy

import numpy as np
import pytest
import torch
from tests.zip import networks
from tests.zip.test_zip_models import case, digits, relative, run, with_weights
from torch.nn import functional as F

import taskatlas as ta
from taskatlas.merge.merged_weights import merged_weights


def batches(x, y):
    return list(zip(x.split(100), y.split(100), strict=True))


def test_a_barrier_falls_when_units_are_in_order():
    models, x, y = digits()
    data = batches(x[1200:], y[1200:])
    zipped = ta.zip_models(models, x[:400], method="weight_matching", calibration=None)
    moved = ta.in_order_of_the_first(models[1], zipped)
    assert relative(run(moved, x), run(models[1], x)) < 1e-4
    apart, aligned = (ta.loss_barrier(models[0], other, data, points=5) for other in (models[1], moved))
    assert apart.losses[0] == aligned.losses[0]
    assert apart.losses[-1] == pytest.approx(aligned.losses[-1], rel=1e-4)
    assert aligned.height < 0.7 * apart.height


def test_losses_on_a_path_are_those_of_networks_made_by_hand():
    models, x, y = digits()
    found = ta.loss_barrier(*models, batches(x[:150], y[:150]), points=[0, 0.3, 1])
    for point, loss in zip(found.points, found.losses, strict=True):
        states = [model.state_dict() for model in models]
        network = with_weights(
            models[0], {name: (1 - point) * states[0][name] + point * states[1][name] for name in states[0]}
        )
        assert loss == pytest.approx(float(F.cross_entropy(run(network, x[:150]), y[:150])), rel=1e-5)
    line = found.losses[0] + 0.3 * (found.losses[2] - found.losses[0])
    assert found.height == pytest.approx(max(0.0, found.losses[1] - line))


def test_a_loss_that_is_no_number_is_told(as_installed):
    models, x, y = digits()
    broken = copy.deepcopy(models[1])
    broken[0].weight.data[0, 0] = float("nan")
    with pytest.raises(ta.BadInput, match="NaN or infinite at 0 of the path"):
        ta.loss_barrier(models[0], broken, batches(x[:50], y[:50]), points=5)
    with pytest.raises(
        ta.BadInput, match=r"outputs of shape \(50, 10\) cannot be computed \(IndexError: Target 13 is out"
    ):
        ta.loss_barrier(*models, batches(x[:50], y[:50] * 0 + 13), points=5)


def test_statistics_on_a_path_are_those_of_the_data():
    torch.manual_seed(0)
    models = [networks.vgg() for _ in range(2)]
    x, y = torch.randn(60, 3, 8, 8), torch.zeros(60, dtype=torch.long)
    kept, reset = (ta.loss_barrier(*models, [(x, y)], points=3, reset_statistics=flag).losses for flag in (False, True))
    assert kept[[0, 2]] == pytest.approx(reset[[0, 2]])
    assert kept[1] != pytest.approx(reset[1], rel=1e-3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"points": [0, 0.5]}, "go up from 0 to 1"),
        ({"data": []}, "no batches"),
        ({"other": torch.nn.Linear(3, 2)}, "differ in 'weight'"),
    ],
)
def test_a_path_that_cannot_be_walked_is_told(change, said):
    x = torch.ones(4, 2)
    arguments = {"one": torch.nn.Linear(2, 2), "other": torch.nn.Linear(2, 2), "data": [(x, torch.zeros(4).long())]}
    with pytest.raises(ta.BadInput, match=said):
        ta.loss_barrier(**arguments | change)


def test_joined_units_have_no_order():
    models, x, _ = digits()
    zipped = ta.zip_models(models, x[:200], b=0.5, calibration=None)
    with pytest.raises(ta.BadInput, match="were joined"):
        ta.in_order_of_the_first(models[1], zipped)


def test_the_third_network_may_come_later():
    network, groups, data = case("vgg")
    others = [
        with_weights(network, groups.permute(network.state_dict(), groups.random_permutations(seed))) for seed in (3, 4)
    ]
    for stop in (None, "4"):
        both = ta.zip_models([network, others[0]], data, stop_at=stop, groups=groups, calibration=None)
        grown = ta.add_to_zipped(both, others[1], data, groups=groups, calibration=None)
        assert grown.names == ("model 0", "model 1", "model 2")
        outputs = [run(grown.network, data)] if stop is None else run(grown.network, data)
        assert len(outputs) == (1 if stop is None else 3)
        for output in outputs:
            assert relative(output, run(network, data)) < 1e-4


def test_what_is_merged_counts_as_often_as_networks_went_into_it():
    network, groups, data = case("mlp")
    states = [
        {name: value + 0.01 * torch.randn_like(value) for name, value in network.state_dict().items()} for _ in range(3)
    ]
    models = [with_weights(network, state) for state in states]
    both = ta.zip_models(models[:2], data, method="identity", groups=groups, calibration=None)
    grown = ta.add_to_zipped(both, models[2], data, method="identity", groups=groups, calibration=None)
    at_once = merged_weights(states, groups, {})
    for name, value in grown.network.state_dict().items():
        assert torch.allclose(value, at_once[name], atol=1e-6)


def test_only_a_network_of_the_same_kind_is_added(as_installed):
    network, groups, data = case("vgg")
    both = ta.zip_models([network, network], data, stop_at="4", groups=groups, calibration=None)
    with pytest.raises(ta.BadInput, match=r"has another '0\.weight'"):
        ta.add_to_zipped(both, networks.mlp(), data)
    with pytest.raises(ta.BadInput, match="a Sequential is no zipped network"):
        ta.add_to_zipped(network, network, data)
    with pytest.raises(ta.BadInput, match="stop_at and shares"):
        ta.add_to_zipped(both, network, data, stop_at="2")


def test_shares_weigh_models():
    network, groups, data = case("mlp")
    other = with_weights(network, {name: torch.zeros_like(value) for name, value in network.state_dict().items()})
    found = ta.zip_models(
        [network, other], data, method="identity", groups=groups, calibration=None, shares=(3, 1)
    ).network
    for name, value in network.state_dict().items():
        assert torch.allclose(found.state_dict()[name], 0.75 * value)
    with pytest.raises(ta.BadInput, match="give each a number above 0"):
        ta.zip_models([network, other], data, groups=groups, shares=(1,))


def test_a_zipped_network_answers_as_each_model():
    models, x, y = digits()
    zipped = ta.zip_models(models, x[:300], stop_at="4")
    assert list(zipped.models) == ["model 0", "model 1"]
    both = run(zipped.network, x)
    for position, network in enumerate(zipped.models.values()):
        assert torch.equal(run(network, x), both[position])
    probe = ta.Probe.from_arrays(x[1200:].numpy(), y[1200:].numpy())
    scores = ta.evaluate(
        {"zipped": dict(zip(("a", "b"), zipped.models.values(), strict=True))}, {"a": probe, "b": probe}
    )
    assert scores.average("zipped", "known").value > 0.8
    rows = zipped.agreement_rows()
    assert [row["group"] for row in rows] == list(zipped.aligned.agreements)
    assert all(-1 <= row["agreement"] <= 1 for row in rows)


def test_statistics_serve_several_ways():
    models, x, _ = digits()
    groups = ta.AxisGroups.of(models[0], x[:2])
    from taskatlas.merge.zipping import group_statistics

    statistics = group_statistics(models, x[:200], groups)
    for settings in ({"method": "permute"}, {"a": 0.01, "stop_at": "4"}):
        settings |= {"groups": groups, "calibration": None}
        one = ta.zip_models(models, x[:200], **settings)
        other = ta.zip_models(models, x[:200], statistics=statistics, **settings)
        for name, alignment in one.aligned.alignments.items():
            assert np.array_equal(alignment.places, other.aligned.alignments[name].places)


def test_copies_are_copies():
    models, x, y = digits()
    before = copy.deepcopy(models[0].state_dict())
    ta.loss_barrier(*models, batches(x[:50], y[:50]), points=3)
    assert all(torch.equal(value, before[name]) for name, value in models[0].state_dict().items())


def test_the_path_in_prediction_space_is_shorter_when_aligned():
    models, x, y = digits()
    probe = ta.Probe.from_arrays(x[1200:].numpy(), y[1200:].numpy())
    apart, aligned = (ta.path_between(*models, probe, align=align, points=5) for align in (None, "weight_matching"))
    assert (apart.name, aligned.name) == ("as they are", "aligned")
    assert list(apart.steps) == [0, 25, 50, 75, 100]
    for end, model in ((0, models[0]), (-1, models[1])):
        expected = torch.tensor(aligned.log_probs[end]).exp()
        assert relative(run(model, x[1200:]).softmax(1), expected) < 1e-3
    assert aligned.length() < apart.length()
    assert aligned.accuracy()[2] > apart.accuracy()[2]
    embedding = ta.InPCA(n_components=2).fit([apart, aligned]).as_embedding()
    assert set(embedding.runs) == {"as they are", "aligned"}
    with pytest.raises(ta.BadInput, match="two ends"):
        ta.path_between(*models, probe, points=1)

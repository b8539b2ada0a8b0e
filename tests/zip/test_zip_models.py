"""Zipping whole networks: permuted copies, self-merges, stops, calibration, files, and what is refused."""

import copy
from dataclasses import replace
from functools import cache

import pytest
import torch
from tests.zip import networks
from tests.zip.test_axis_networks import cifar_resnet, projection_resnet
from torch import nn

from taskatlas.errors import BadInput
from taskatlas.merge.axis_groups import AxisGroups
from taskatlas.merge.axis_run import generic_weights
from taskatlas.merge.zipped import cost_of
from taskatlas.merge.zipped_network import ZippedNetwork
from taskatlas.merge.zipping import group_statistics, zip_models
from taskatlas.probe import Probe
from taskatlas.zoo import Checkpoint

IMAGES = torch.randn(96, 3, 8, 8, generator=torch.Generator().manual_seed(0))
VECTORS = torch.randn(300, 6, generator=torch.Generator().manual_seed(1))
WORDS = torch.randn(60, 3, 6, generator=torch.Generator().manual_seed(2))
CASES = {
    "mlp": (networks.mlp, VECTORS),
    "vgg": (networks.vgg, IMAGES),
    "resnet": (networks.ImageNetResNet, IMAGES),
    "option A": (cifar_resnet, IMAGES),
    "option B": (projection_resnet, IMAGES),
    "convnext": (networks.ConvNeXt, IMAGES),
    "densenet": (networks.DenseNet, IMAGES),
    "unet": (networks.UNet, IMAGES),
    "resnext": (networks.ResNeXt, IMAGES),
    "pixel shuffle": (networks.SuperResolution, IMAGES),
    "written into zeros": (networks.Filled, VECTORS),
    "fused attention": (lambda: networks.Block(networks.FusedAttention()), WORDS),
    "interleaved attention": (lambda: networks.Block(networks.InterleavedAttention()), WORDS),
    "grouped attention": (lambda: networks.Block(networks.GroupedAttention()), WORDS),
    "mixer": (networks.Mixer, IMAGES),
    "torch's encoder": (networks.TorchEncoder, WORDS),
    "torch's attention": (lambda: networks.Block(networks.TorchAttention()), WORDS),
    "bare parameters": (networks.BareParameters, VECTORS),
    "a norm by hand": (networks.HandwrittenNorm, VECTORS),
}


@cache
def case(name):
    """A network with weights that hide nothing, its groups, and data."""
    build, data = CASES[name]
    torch.manual_seed(0)
    network = build().eval()
    network.load_state_dict(
        generic_weights(network)
        | {key: value for key, value in network.state_dict().items() if not value.is_floating_point()}
    )
    return network, AxisGroups.of(network, data[:2]), data


def with_weights(network, weights):
    other = copy.deepcopy(network)
    other.load_state_dict(weights)
    return other


def relative(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


@torch.no_grad()
def run(network, data):
    return network(data)


# Laws


@pytest.mark.parametrize(
    ("name", "method"),
    [*((name, "zip") for name in CASES), ("resnet", "permute"), ("unet", "permute"), ("grouped attention", "permute")],
)
def test_a_permuted_copy_is_aligned_back(name, method):
    network, groups, data = case(name)
    other = with_weights(network, groups.permute(network.state_dict(), groups.random_permutations(3)))
    zipped = zip_models([network, other], data, method=method, calibration=None, groups=groups)
    assert relative(run(zipped.network, data), run(network, data)) < 1e-4
    assert min(zipped.aligned.agreements.values()) > 0.999
    assert ["never vary" in note for note in zipped.notes] == ([True] if name == "written into zeros" else [])
    # and not because there was nothing to do
    averaged = zip_models([network, other], data, method="identity", calibration=None, groups=groups)
    assert relative(run(averaged.network, data), run(network, data)) > 0.01


def test_a_place_that_shows_only_rounding_of_a_unit_does_not_count_for_it():
    """Else the unit is only half like itself, and two others of one network, more alike, are joined before it."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 8), networks.LikeGELU(), nn.Linear(8, 4)).eval()
    with torch.no_grad():
        network[0].weight[2] = network[0].weight[1] + 0.2 * network[0].weight[2]
        network[0].bias[0] = -1000
    groups = AxisGroups.of(network, VECTORS[:2])
    assert {site.place for site in groups["0"].taps} > {"0", "1"}
    near = copy.deepcopy(network)
    with torch.no_grad():
        near[0].weight[0] *= 1.01  # so that the same unit rounds otherwise
    before, after = (torch.stack([run(model[:end], VECTORS)[:, 0] for model in (network, near)]) for end in (1, 2))
    assert torch.corrcoef(before)[0, 1] > 0.999999
    assert torch.corrcoef(after)[0, 1].abs() < 0.3
    order = groups.random_permutations(3)
    other = with_weights(near, groups.permute(near.state_dict(), order))
    zipped = zip_models([network, other], VECTORS, calibration=None, groups=groups)
    assert (zipped.aligned.alignments["0"].places[1] == order["0"]).all()
    assert relative(run(zipped.network, VECTORS), run(network, VECTORS)) < 1e-4
    assert zipped.aligned.agreements["0"] > 0.999


@pytest.mark.parametrize("name", ["mlp", "vgg", "resnet", "densenet", "fused attention"])
def test_weights_alone_align_a_permuted_copy(name):
    network, groups, data = case(name)
    other = with_weights(network, groups.permute(network.state_dict(), groups.random_permutations(3)))
    zipped = zip_models([network, other], data, method="weight_matching", calibration=None, groups=groups)
    assert relative(run(zipped.network, data), run(network, data)) < 1e-4
    assert min(zipped.aligned.agreements.values()) > 0.999


@pytest.mark.parametrize("method", ["zip", "permute", "cycle_consistent"])
@pytest.mark.parametrize("name", ["torch's encoder", "bare parameters"])
def test_units_that_nothing_shows_are_matched_by_their_weights(name, method):
    network, groups, data = case(name)
    blind = replace(groups, groups=tuple(replace(group, taps=()) for group in groups if "linear" not in group.name))
    shown = tuple(group for group in groups if "linear" in group.name)
    half_blind = replace(blind, groups=(*blind.groups, *shown))
    other = with_weights(network, groups.permute(network.state_dict(), groups.random_permutations(3)))
    zipped = zip_models([network, other], data, method=method, calibration=None, groups=half_blind)
    assert relative(run(zipped.network, data), run(network, data)) < 1e-4
    assert any("matched by their weights" in note for note in zipped.notes)
    assert zipped.aligned.alignments.keys() == {group.name for group in groups}


def test_what_is_inside_a_fused_attention_is_seen_in_the_graph(tmp_path):
    network, groups, data = case("torch's encoder")
    heads = groups["encoder.layers.0.self_attn.in_proj_weight"]
    assert {site.place.partition("#")[0] for site in heads.taps} == {"linear"}
    assert all(group.taps for group in groups)
    groups.save(tmp_path / "groups.json")
    other = with_weights(network, groups.permute(network.state_dict(), groups.random_permutations(3)))
    zipped = zip_models([network, other], data, calibration=None, groups=AxisGroups.load(tmp_path / "groups.json"))
    assert relative(run(zipped.network, data), run(network, data)) < 1e-4
    gone = [replace(group, taps=tuple(replace(tap, place="linear#99") for tap in group.taps)) for group in groups]
    with pytest.raises(BadInput, match="no operation 'linear#99'"):
        zip_models([network, other], data, groups=replace(groups, groups=tuple(gone)))


class HeadsApart(nn.Module):
    """Attention in which a module sees queries with heads on one axis and their contents on another."""

    def __init__(self):
        super().__init__()
        self.qkv, self.seen, self.out = nn.Linear(12, 36), nn.Identity(), nn.Linear(12, 12)

    def forward(self, x):
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 3, 4).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(self.seen(q), k, v)
        return self.out(mixed.transpose(1, 2).flatten(2))


def test_heads_are_not_told_apart_where_their_contents_have_an_axis_of_their_own():
    torch.manual_seed(0)
    network, data = HeadsApart().eval(), torch.randn(60, 5, 12)
    groups = AxisGroups.of(network, data[:2])
    assert "seen:input" in {site.place for group in groups for site in group.taps}
    other = with_weights(network, groups.permute(network.state_dict(), groups.random_permutations(3)))
    zipped = zip_models([network, other], data, calibration=None, groups=groups)
    assert relative(run(zipped.network, data), run(network, data)) < 1e-4


def test_a_stream_with_a_norm_is_not_zipped_within_a_model():
    network, groups, data = case("a norm by hand")
    assert not groups["into"].scalable
    assert groups["up"].scalable
    torch.manual_seed(1)
    other = networks.HandwrittenNorm()
    aligned = zip_models([network, other], data, b=0.5, calibration=None, groups=groups).aligned.alignments
    assert aligned["into"].is_permutation
    assert not aligned["up"].is_permutation


@pytest.mark.parametrize("method", ["zip", "permute", "cycle_consistent", "weight_matching", "identity"])
@pytest.mark.parametrize("models", [2, 3])
def test_a_self_merge_gives_the_model_back(method, models):
    network, groups, data = case("resnet")
    zipped = zip_models([network] * models, data, method=method, calibration=None, groups=groups)
    for name, value in network.state_dict().items():
        assert torch.allclose(zipped.network.state_dict()[name], value, rtol=1e-6, atol=0), name


@pytest.mark.parametrize(
    ("name", "calibration"),
    [
        *((name, "least_squares") for name in ("mlp", "resnet", "densenet", "convnext", "fused attention")),
        *((name, "repair") for name in ("vgg", "densenet")),
    ],
)
def test_calibrating_a_self_merge_leaves_its_function(name, calibration):
    network, groups, data = case(name)
    zipped = zip_models([network, network], data, calibration=calibration, groups=groups)
    assert relative(run(zipped.network, data), run(network, data)) < (1e-3 if calibration == "least_squares" else 0.05)


@pytest.mark.parametrize(
    ("name", "calibration"),
    [
        *(("vgg", None), ("resnet", None), ("fused attention", None), ("resnet", "least_squares")),
        *(("torch's encoder", None), ("torch's encoder", "least_squares")),
    ],
)
def test_every_stop_of_a_permuted_copy_keeps_the_function(name, calibration):
    network, groups, data = case(name)
    other = with_weights(network, groups.permute(network.state_dict(), groups.random_permutations(3)))
    for stop in groups.stops[1 :: 4 if calibration is None else 6]:
        zipped = zip_models([network, other], data, stop_at=stop.place, calibration=calibration, groups=groups)
        for output in run(zipped.network, data):
            assert relative(output, run(network, data)) < 1e-3, stop.place


# Networks that differ


@cache
def digits():
    """Two small networks trained apart on handwritten digits, from different seeds; data, labels."""
    from sklearn.datasets import load_digits

    from taskatlas.learn import train

    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16, torch.tensor(y)
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        models.append(
            nn.Sequential(
                *(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(12, 24, 3, padding=1)),
                *(nn.ReLU(), nn.Flatten(), nn.Linear(24 * 16, 32), nn.ReLU(), nn.Linear(32, 10)),
            )
        )
    train(models, x[:1200], [y[:1200]] * 2, epochs=30, learning_rate=3e-3)
    return models, x, y


def right(network, x, y):
    return float((run(network, x).argmax(1) == y).float().mean())


def test_matching_and_calibration_beat_averaging():
    models, x, y = digits()
    unseen, answers = x[1200:], y[1200:]
    assert min(right(model, unseen, answers) for model in models) > 0.85
    found = {
        (method, calibration): right(
            zip_models(models, x[:400], method=method, calibration=calibration, seed=0).network, unseen, answers
        )
        for method, calibration in (
            ("identity", None),
            ("permute", None),
            ("zip", None),
            ("zip", "repair"),
            ("zip", "least_squares"),
        )
    }
    assert found["permute", None] > found["identity", None] + 0.05
    assert found["zip", None] > found["identity", None] + 0.1
    assert found["zip", "least_squares"] > found["zip", None]
    assert found["zip", "least_squares"] > 0.8
    assert found["zip", "repair"] > found["identity", None] + 0.1


def test_later_stops_cost_less_and_lose_more():
    """As merged; what calibration leaves is less at each stop, and most at the last: between others it may turn."""
    models, x, _ = digits()
    costs, errors, fitted = [], [], []
    for stop in ("2", "4", "7"):
        for calibration, found in ((None, errors), ("least_squares", fitted)):
            zipped = zip_models(models, x[:300], stop_at=stop, calibration=calibration)
            outputs = zip(run(zipped.network, x), models, strict=True)
            found.append(sum(float(relative(out, run(model, x))) for out, model in outputs))
        costs.append(cost_of(zipped.network, x[:50]).macs)
    assert costs == sorted(costs, reverse=True)
    assert costs[0] < sum(cost_of(model, x[:50]).macs for model in models)
    assert errors == sorted(errors)
    assert all(after < before for before, after in zip(errors, fitted, strict=True))
    assert max(fitted) == fitted[-1]


def test_heads_may_differ_after_the_stop():
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
    models = [nn.Sequential(copy.deepcopy(trunk), nn.Linear(8, classes)).eval() for classes in (2, 5)]
    zipped = zip_models(models, VECTORS, stop_at="1:input")
    small, large = run(zipped.network, VECTORS)
    assert relative(small, run(models[0], VECTORS)) < 1e-4
    assert relative(large, run(models[1], VECTORS)) < 1e-4
    said = (
        r"differ in 1\.bias, 1\.weight: 1\.bias has shapes \(5,\) and \(2,\)\. Only hidden units .* up to a stop before"
    )
    with pytest.raises(BadInput, match=said):
        zip_models(models, VECTORS)


def test_heads_that_differ_do_not_stand_in_the_way_of_weights():
    network, groups, data = case("vgg")
    other = with_weights(network, groups.permute(network.state_dict(), groups.random_permutations(3)))
    torch.manual_seed(0)
    other[11] = nn.Linear(20, 9)
    zipped = zip_models([network, other], data, stop_at="10", method="weight_matching", calibration=None, groups=groups)
    for output, model in zip(run(zipped.network, data), (network, other), strict=True):
        assert relative(output, run(model, data)) < 1e-4


def test_three_networks_are_one():
    network, groups, data = case("vgg")
    others = [
        with_weights(network, groups.permute(network.state_dict(), groups.random_permutations(seed))) for seed in (3, 4)
    ]
    for method in ("permute", "cycle_consistent", "zip"):
        zipped = zip_models([network, *others], data, method=method, groups=groups, calibration=None)
        assert relative(run(zipped.network, data), run(network, data)) < 1e-4


# The result


def test_heads_by_position_and_by_name():
    network, groups, data = case("resnet")
    zipped = zip_models(
        [Checkpoint("one", module=network), Checkpoint("other", module=network)], data, stop_at="layer1", groups=groups
    )
    assert isinstance(zipped.network, ZippedNetwork)
    both = run(zipped.network, data)
    assert (zipped.network(data, head="other") == both[1]).all()
    assert (zipped.network(data, head=0) == both[0]).all()
    assert repr(zipped) == f"Zipped(one, other; up to layer1, {len(zipped.aligned.alignments)} groups aligned)"
    with pytest.raises(BadInput, match=r"no head 'third'\. There are: one, other"):
        zipped.network(data, head="third")
    assert run(zipped.network, data[:1])[0].shape == (1, 5)  # of any number of samples


def test_the_trunk_runs_once():
    network, groups, data = case("resnet")
    zipped = zip_models([network, network], data, stop_at="layer2", calibration=None, groups=groups)
    whole, head = cost_of(network, data).macs, 24 * 5
    assert cost_of(zipped.network, data).macs == whole + head


@pytest.mark.parametrize(("name", "stop"), [("mlp", None), ("resnet", "layer1")])
def test_one_file_opens_without_the_models_code(name, stop, tmp_path):
    network, groups, data = case(name)
    zipped = zip_models([network, network], data, stop_at=stop, groups=groups, calibration=None)
    zipped.save(tmp_path / "zipped.pt2")
    opened = torch.export.load(tmp_path / "zipped.pt2").module()
    expected = run(zipped.network, data[:7])
    found = run(opened, data[:7])
    for one, other in zip([expected] if stop is None else expected, [found] if stop is None else found, strict=True):
        assert relative(one, other) < 1e-6


def test_the_networks_are_left_as_they_were():
    network, groups, data = case("vgg")
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    zip_models([network, network], data, groups=groups, stop_at="4")
    assert network.training
    network.eval()
    assert all((value == before[name]).all() for name, value in network.state_dict().items())


def test_the_same_every_time():
    models, x, _ = digits()
    one, other = (zip_models(models, x[:200], seed=5).network.state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_data_may_come_in_any_form():
    models, x, _ = digits()
    probe = Probe.from_arrays(x[:100].numpy())
    results = [
        zip_models(models, data, batch_size=50, calibration=None).network
        for data in (x[:100], probe, [x[:50], x[50:100]], [(x[:50],), (x[50:100],)], iter([x[:50], x[50:100]]))
    ]
    for result in results[1:]:
        assert relative(run(result, x), run(results[0], x)) < 1e-3


# Bad input


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"models": 1}, "1 model cannot be zipped"),
        ({"stop_at": "7:input"}, r"no legal stop.*Choose one of: 0, 1"),
        ({"method": "sew"}, "method='sew' is no way to zip. Choose one of: zip, permute"),
        ({"calibration": "magic"}, "Choose one of: least_squares, repair, reset, None"),
        ({"probe": VECTORS[:0]}, "no samples"),
        ({"probe": VECTORS[:1]}, "one sample"),
        ({"probe": VECTORS.numpy()}, r"of type ndarray and has no tensor.*Probe\.from_arrays"),
        ({"probe": torch.full_like(VECTORS, float("nan"))}, "the samples hold NaN"),
        ({"probe": torch.ones_like(VECTORS)}, "no unit of the networks varies on these samples"),
        ({"shares": (1, float("inf"))}, "a number above 0, and none that is infinite"),
        ({"models": [None, None]}, "a NoneType is no model"),
        ({"models": ["one.pt", "other.pt"]}, "a str is no model"),
    ],
)
def test_bad_input_is_told(change, said, as_installed):
    network, groups, data = case("mlp")
    models = change.pop("models", 2)
    models = models if isinstance(models, list) else [network] * models
    with pytest.raises(BadInput, match=said):
        zip_models(**{"models": models, "probe": data, "groups": groups} | change)


def test_two_models_of_one_name_are_told():
    network, groups, data = case("mlp")
    with pytest.raises(BadInput, match="two models are called 'net'"):
        zip_models([Checkpoint("net", module=network), Checkpoint("net", module=network)], data, groups=groups)


@pytest.mark.parametrize("method", ["zip", "permute", "weight_matching", "identity"])
def test_groups_of_another_width_are_told(method):
    network, groups, data = case("mlp")
    torch.manual_seed(0)
    narrow = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 4)).eval()
    for model, of_other in ((network, AxisGroups.of(narrow, data[:2])), (narrow, groups)):
        with pytest.raises(BadInput, match=r"not those of model 0: 0\.bias has shape"):
            zip_models([model, model], data, method=method, groups=of_other)
        with pytest.raises(BadInput, match=r"not those of model 0: 0\.bias has shape"):
            group_statistics([model, model], data, of_other)


def test_groups_without_a_bias_are_told():
    network, groups, data = case("mlp")
    content = groups.to_dict()
    content["groups"][0]["members"] = [part for part in content["groups"][0]["members"] if part["tensor"] != "0.bias"]
    with pytest.raises(BadInput, match=r"permuting 0 does\. Is an axis missing"):
        zip_models([network, network], data, groups=AxisGroups.from_dict(content))


def test_statistics_of_other_models_are_told():
    network, groups, data = case("mlp")
    other = with_weights(network, groups.permute(network.state_dict(), groups.random_permutations(3)))
    statistics = group_statistics([network, network], data, groups)
    with pytest.raises(BadInput, match="the statistics are not those of model 1"):
        zip_models([network, other], data, groups=groups, statistics=statistics)
    with pytest.raises(BadInput, match="of 2 models, and there are 3"):
        zip_models([network] * 3, data, groups=groups, statistics=statistics)


def test_nan_activations_are_told_by_layer():
    network, groups, data = case("mlp")
    broken = copy.deepcopy(network)
    broken[2].weight.data[0] = 3e38
    with pytest.raises(BadInput, match="model 1 gives NaN or infinite values at '2'"):
        zip_models([network, broken], data, groups=groups)


@pytest.mark.parametrize("method", ["zip", "permute", "weight_matching", "identity"])
@pytest.mark.parametrize("calibration", ["least_squares", "repair", "reset", None])
@pytest.mark.parametrize("stop", [None, "2"])
def test_nan_weights_are_told_whatever_is_done_with_them(method, calibration, stop):
    network, groups, data = case("mlp")
    broken = copy.deepcopy(network)
    broken[4].weight.data[0, 0] = float("nan")
    with pytest.raises(BadInput, match=r"the tensor '4\.weight' of model 1 holds NaN"):
        zip_models([network, broken], data, method=method, calibration=calibration, groups=groups, stop_at=stop)


@pytest.mark.parametrize(("method", "calibration"), [("zip", None), ("weight_matching", "least_squares")])
def test_few_samples_are_noted(method, calibration):
    network, groups, data = case("mlp")
    few, enough = (
        zip_models([network, network], data[:count], method=method, groups=groups, calibration=calibration).notes
        for count in (9, 10)
    )
    assert few[0] == "9 samples are fewer than the 10 units of the widest group. Give more."
    assert not any("samples are fewer" in note for note in enough)


@pytest.mark.parametrize("method", ["zip", "permute", "weight_matching"])
def test_networks_that_hardly_agree_are_noted(method):
    torch.manual_seed(7)
    strangers = [nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3)) for _ in range(2)]
    notes = zip_models(strangers, torch.randn(70, 64), method=method, calibration=None).notes
    assert "the networks hardly agree in 1 of 1 groups" in notes[0]
    assert zip_models([strangers[0]] * 2, torch.randn(70, 64), method=method, calibration=None).notes == ()


def test_units_that_never_vary_are_noted():
    network, groups, data = case("mlp")
    dead = copy.deepcopy(network)
    with torch.no_grad():
        dead[0].weight[:3] = 0
    notes = zip_models([dead, network], data, groups=groups, calibration=None).notes
    assert notes[0].startswith("3 of 34 units never vary on these samples")


def test_a_network_that_branches_is_merged_by_groups_given_by_hand():
    torch.manual_seed(0)
    network = networks.Branching().eval()
    hidden = {
        "name": "hidden",
        "size": 6,
        "members": [
            {"tensor": "one.weight", "axis": 0},
            {"tensor": "one.bias", "axis": 0},
            {"tensor": "two.weight", "axis": 1, "role": "in"},
        ],
        "taps": [{"place": "one", "axis": 1}],
    }
    groups = AxisGroups.from_dict({"groups": [hidden]}).checked(network, VECTORS[:2])
    other = with_weights(network, groups.permute(network.state_dict(), groups.random_permutations(1)))
    zipped = zip_models([network, other], VECTORS, groups=groups, calibration=None)
    assert relative(run(zipped.network, VECTORS), run(network, VECTORS)) < 1e-4
    with pytest.raises(BadInput, match=r"cannot be followed.*groups given by hand and calibration=None or 'reset'"):
        zip_models([network, other], VECTORS, groups=groups)
    with pytest.raises(BadInput, match="by hand"):
        zip_models([network, other], VECTORS)


class BranchingNorm(nn.Module):
    """A hidden layer with batch statistics, whose sign depends on the samples."""

    def __init__(self):
        super().__init__()
        self.one, self.norm, self.two = nn.Linear(6, 9), nn.BatchNorm1d(9), nn.Linear(9, 3)

    def forward(self, x):
        if x.sum() > 0:
            return self.two(torch.relu(self.norm(self.one(x))))
        return -self.two(torch.relu(self.norm(self.one(x))))


def test_statistics_of_a_network_that_branches_are_reset():
    torch.manual_seed(0)
    network = BranchingNorm().eval()
    norms = ("one.bias", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var")
    members = [{"tensor": "one.weight", "axis": 0}, {"tensor": "two.weight", "axis": 1, "role": "in"}]
    members += [{"tensor": name, "axis": 0} for name in norms]
    hidden = {"name": "hidden", "size": 9, "members": members, "taps": [{"place": "norm", "axis": 1}]}
    groups = AxisGroups.from_dict({"groups": [hidden]})
    other = with_weights(network, groups.permute(network.state_dict(), groups.random_permutations(1)))
    merged = zip_models([network, other], VECTORS, groups=groups, calibration="reset").network
    given = run(network.one, VECTORS)
    assert torch.allclose(merged.norm.running_mean, given.mean(0), atol=1e-5)
    assert torch.allclose(merged.norm.running_var, given.var(0), atol=1e-4)
    assert relative(merged.norm.running_var, network.norm.running_var) > 0.1
    for calibration in ("least_squares", "repair"):
        with pytest.raises(BadInput, match=r"calibration=None or 'reset'"):
            zip_models([network, other], VECTORS, groups=groups, calibration=calibration)


@pytest.mark.parametrize("calibration", ["least_squares", "repair"])
def test_units_that_never_vary_are_no_trouble(calibration):
    network, groups, data = case("vgg")
    dead = copy.deepcopy(network)
    with torch.no_grad():
        dead[1].weight[:3] = 0
        dead[1].bias[:3] = -1
    zipped = zip_models([dead, network], data, groups=groups, calibration=calibration)
    assert bool(run(zipped.network, data).isfinite().all())
    both = zip_models([dead, dead], data, groups=groups, calibration=None)
    assert relative(run(both.network, data), run(dead, data)) < 1e-5


def test_networks_of_other_code_and_equal_shapes_are_refused():
    """Four heads of 8 numbers and eight of 4 have the same tensors; nothing but running them tells them apart."""
    torch.manual_seed(0)
    four, eight = (networks.Block(networks.FusedAttention(heads=heads)).eval() for heads in (4, 8))
    with pytest.raises(BadInput, match=r"model 0 and model 1 have tensors of the same shapes and compute different"):
        zip_models([four, eight], WORDS, calibration=None)
    narrow = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    other = copy.deepcopy(narrow)
    other[3] = nn.Tanh()
    assert zip_models([narrow, other], VECTORS, stop_at="1", calibration=None).network is not None
    with pytest.raises(BadInput, match="an activation or another setting"):
        zip_models([narrow, other], VECTORS, calibration=None)
    other[1] = nn.Tanh()
    with pytest.raises(BadInput, match="compute different things"):
        zip_models([narrow, other], VECTORS, stop_at="1", calibration=None)


def test_a_forward_that_is_wrapped_still_runs_with_other_weights():
    torch.manual_seed(0)
    models = [networks.mlp().eval(), networks.mlp().eval()]
    for model in models:
        model.forward = lambda x, run=model.forward: run(x)
    assert zip_models(models, VECTORS, calibration=None).stop_at is None

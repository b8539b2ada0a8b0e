"""Zipping networks of different widths: widened copies, what stands alone, stops, files, and what is refused."""

import copy
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests.references import matching as reference
from tests.zip import networks
from tests.zip.make import features
from tests.zip.test_axis_networks import example
from tests.zip.test_matching import SEEDS, SHARES, joined
from tests.zip.test_zip_models import IMAGES, VECTORS, WORDS, relative, right, run
from torch import nn

import taskatlas as ta
from taskatlas.errors import BadInput
from taskatlas.merge import zipping
from taskatlas.merge.axis_groups import AxisGroups
from taskatlas.merge.axis_run import generic_weights
from taskatlas.merge.batch_norm import reestimate_batch_norm
from taskatlas.merge.linear_operations import along
from taskatlas.merge.merged_weights import merged_weights
from taskatlas.merge.widening import widened
from taskatlas.merge.zip_search import search_zip
from taskatlas.merge.zipping import group_statistics, zip_models

WIDTHS = st.lists(st.integers(1, 7), min_size=1, max_size=4)
NETWORKS = {
    "mlp": (networks.mlp, VECTORS),
    "vgg": (networks.vgg, IMAGES),
    "bottlenecks": (networks.ImageNetResNet, IMAGES),
    "option A": (lambda wide=1: example("cifar_resnet").CifarResNet(1, 8 * wide, 10), IMAGES),
    "option B": (lambda wide=1: example("cifar_resnet_projection").ProjectionResNet(1, 8 * wide, 5), IMAGES),
    "densenet": (networks.DenseNet, IMAGES),
    "unet": (networks.UNet, IMAGES),
    "attention": (lambda wide=1: networks.Block(networks.FusedAttention(), hidden=40 * wide), WORDS),
}


@pytest.fixture(autouse=True)
def derived_once(monkeypatch):
    """What takes most of the time here is to derive axis groups: once for all networks that look alike."""
    derive = AxisGroups.of

    def of(module, example, outputs=None):
        key = (str(module), tuple(example.shape))
        if key not in _GROUPS:
            _GROUPS[key] = derive(module, example, outputs)
        return _GROUPS[key]

    monkeypatch.setattr(AxisGroups, "of", of)


_GROUPS = {}


@cache
def pair(name):
    """A network, one of twice its width that computes the same, and data."""
    build, data = NETWORKS[name]
    torch.manual_seed(0)
    narrow, wide = build().eval(), build(2).eval()
    kept = {key: value for key, value in narrow.state_dict().items() if not value.is_floating_point()}
    narrow.load_state_dict(generic_weights(narrow) | kept)
    wide.load_state_dict(doubled(narrow, wide, data))
    assert relative(run(wide, data), run(narrow, data)) < 1e-4
    return narrow, wide, data


def doubled(narrow, wide, data):
    """Every hidden unit of a network twice, each with half of the outgoing weights."""
    pairs = list(zip(AxisGroups.of(wide, data[:2]), AxisGroups.of(narrow, data[:2]), strict=True))
    state = narrow.state_dict()
    for name, value in wide.state_dict().items():
        for axis in (axis for axis in range(value.ndim) if value.shape[axis] != state[name].shape[axis]):
            source, share = np.zeros(value.shape[axis], int), torch.ones(value.shape[axis])
            for group, small in pairs:
                for member, before in zip(group.members, small.members, strict=True):
                    if (member.tensor, member.axis) == (name, axis):
                        positions = member.layout.index()
                        source[positions] = before.layout.index()[np.arange(group.size) % small.size]
                        share[positions] = small.size / group.size if member.role == "in" else 1.0
            state[name] = state[name].index_select(axis, torch.from_numpy(source)) * along(share, value.ndim, axis)
    return state


def wide_mlp(*hidden):
    """A multilayer perceptron of hidden sizes of one's choice, from 6 inputs to 4 outputs."""
    sizes = [6, *hidden, 4]
    layers = [nn.Linear(one, other) for one, other in pairwise(sizes)]
    return nn.Sequential(*[part for layer in layers[:-1] for part in (layer, nn.ReLU())], layers[-1]).eval()


# Matching


@given(SEEDS, WIDTHS, SHARES, SHARES)
@settings(max_examples=60, deadline=None)
def test_zip_is_the_straightforward_loop(seed, widths, a, b):
    covariance = reference.covariance(ragged(seed, widths))
    found = ta.match_features(covariance, widths, a=a, b=b)
    expected = reference.greedy_zip(reference.correlation(covariance), widths, a, b)
    assert (found.places[found.places >= 0] == expected).all()
    assert found.widths == tuple(widths)


@given(SEEDS, WIDTHS, SHARES, SHARES, st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_no_feature_is_dropped(seed, widths, a, b, constants):
    parts = ragged(seed, widths)
    for part in parts:
        part[:, np.random.default_rng(seed).integers(0, part.shape[1], constants)] = 3.0
    found = ta.match_features(reference.covariance(parts), widths, a=a, b=b)
    assert found.unmerge.shape == (sum(widths), max(widths))
    assert (found.unmerge.sum(axis=1) == 1).all()
    assert (found.unmerge.sum(axis=0) >= 1).all()
    assert found.merge.sum(axis=1) == pytest.approx(np.ones(max(widths)), abs=1e-6)
    assert found.merge @ found.unmerge == pytest.approx(np.eye(max(widths)), abs=1e-6)


@given(SEEDS, WIDTHS.filter(lambda widths: len(widths) > 1), SHARES.filter(bool), SHARES)
@settings(max_examples=30, deadline=None)
def test_the_order_of_the_models_does_not_matter(seed, widths, a, b):
    parts = ragged(seed, widths)
    order = np.random.default_rng(seed).permutation(len(widths))
    straight = ta.match_features(reference.covariance(parts), widths, a=a, b=b)
    turned = ta.match_features(
        reference.covariance([parts[i] for i in order]), [widths[i] for i in order], a=a, b=b
    ).places
    rows = [row[row >= 0] for row in straight.places]
    assert joined(np.concatenate([rows[i] for i in order])) == joined(turned[turned >= 0])


def test_equal_widths_are_a_number_of_models():
    covariance = reference.covariance(features(0, 3, width=5))
    assert (ta.match_features(covariance, (5, 5, 5)).places == ta.match_features(covariance, 3).places).all()


def test_without_a_budget_every_narrow_unit_meets_a_wide_one():
    found = ta.match_features(reference.covariance(ragged(0, (7, 4))), (7, 4), b=0)
    assert sorted(found.counts) == [1] * 3 + [2] * 4
    assert not found.is_permutation
    assert repr(found) == "Alignment(2 models x 7 features, zipped)"


def test_units_that_have_to_stand_alone_do_not_count_against_agreement():
    x = np.random.default_rng(0).standard_normal((50, 5))
    parts = [x, x[:, [3, 1]]]
    covariance = reference.covariance(parts)
    found = ta.match_features(covariance, (5, 2))
    assert found.places[1, :2].tolist() == [3, 1]
    assert found.agreement(covariance) == pytest.approx(1)
    apart = ta.Alignment(np.array([[0, 1, 2, 3, 3], [4, 4, -1, -1, -1]]))
    assert apart.agreement(covariance) == 0


@pytest.mark.parametrize("method", ["permute", "cycle_consistent", "optimal", "identity"])
def test_other_methods_are_one_to_one(method):
    with pytest.raises(BadInput, match=rf"{method} matches features one to one, and the models have 4, 3"):
        ta.match_features(np.eye(7), (4, 3), method)


@pytest.mark.parametrize("widths", [(4, 4), (7, 0), ()])
def test_widths_have_to_fit_the_covariance(widths, as_installed):
    with pytest.raises(BadInput, match=r"\(7, 7\) is not that of models with"):
        ta.match_features(np.eye(7), widths)


@pytest.mark.parametrize("places", [[[0, 1], [-1, 0]], [[0, -1], [0, -1]], [[0, -2], [1, 0]]])
def test_what_a_model_lacks_stands_last(places, as_installed):
    with pytest.raises(BadInput, match="-1 stands last"):
        ta.Alignment(np.array(places))


def ragged(seed, widths):
    """Features of models of different widths that share some of what they see."""
    return [x[:, :width] for x, width in zip(features(seed, len(widths), width=7), widths, strict=True)]


# Laws


@pytest.mark.parametrize("calibration", [None, "least_squares"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_widened_copy_merges_into_the_same_function(name, calibration):
    narrow, wide, data = pair(name)
    for models in ([narrow, wide], [wide, narrow]):
        zipped = zip_models(models, data, calibration=calibration)
        assert relative(run(zipped.network, data), run(narrow, data)) < (1e-4 if calibration is None else 1e-3)
        assert {key: value.shape for key, value in zipped.network.state_dict().items()} == {
            key: value.shape for key, value in wide.state_dict().items()
        }


@pytest.mark.parametrize("calibration", ["repair", "reset"])
@pytest.mark.parametrize("name", ["vgg", "option B"])
def test_a_widened_copy_keeps_its_function_when_norms_are_set_anew(name, calibration):
    narrow, wide, data = pair(name)
    settled, expected = copy.deepcopy(wide), copy.deepcopy(narrow)
    for network in (settled, expected):
        reestimate_batch_norm(network, [data])
    zipped = zip_models([expected, settled], data, calibration=calibration)
    assert relative(run(zipped.network, data), run(expected, data)) < 0.05


@pytest.mark.parametrize("calibration", [None, "least_squares"])
@pytest.mark.parametrize("name", ["mlp", "vgg", "bottlenecks", "densenet", "attention"])
def test_every_stop_of_a_widened_copy_keeps_the_function(name, calibration):
    narrow, wide, data = pair(name)
    stops = AxisGroups.of(wide, data[:2]).stops[1 :: 4 if calibration is None else 6]
    for stop in stops:
        zipped = zip_models([narrow, wide], data, stop_at=stop.place, calibration=calibration)
        for output in run(zipped.network, data):
            assert relative(output, run(narrow, data)) < 1e-3, stop.place
        small, large = (sum(value.numel() for value in head.parameters()) for head in zipped.network.heads)
        assert small <= large  # a head stays as narrow as it was


def test_every_unit_has_its_share():
    """Of linear networks the merged one is the mean, whatever is joined, and each column of M adds up."""
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Linear(6, width), nn.Linear(width, 3)).eval() for width in (5, 9, 7)]
    zipped = zip_models(models, VECTORS, b=0.5, calibration="least_squares")
    assert relative(run(zipped.network, VECTORS), sum(run(model, VECTORS) for model in models) / 3) < 0.05
    (alignment,) = zipped.aligned.alignments.values()
    assert alignment.widths == (5, 9, 7)
    assert alignment.merge.shape == (9, 21)
    assert (alignment.merge.sum(axis=0) > 0).all()


def test_units_that_stand_alone_are_taken_over_as_they_are():
    """By hand: two units of the wide network are the narrow one's, its third unit is nobody else's."""
    narrow, wide = (nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, 1)).eval() for width in (2, 3))
    with torch.no_grad():
        narrow[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        wide[0].weight.copy_(torch.tensor([[0.0, 3.0], [1.0, 1.0], [1.0, 0.0]]))
        for model in (narrow, wide):
            model[0].bias.fill_(0)
            model[2].bias.fill_(0)
        narrow[2].weight.copy_(torch.tensor([[4.0, 6.0]]))
        wide[2].weight.copy_(torch.tensor([[8.0, 10.0, 12.0]]))
    zipped = zip_models([narrow, wide], torch.randn(200, 2), b=0, calibration=None)
    merged = zipped.network.state_dict()
    order = merged["0.weight"][:, 0].argsort(stable=True)
    units = torch.cat([merged["0.weight"], merged["2.weight"].T], dim=1)
    expected = [[0.0, (1 + 3) / 2, (6 + 8) / 2], [1.0, 1.0, 10 / 2], [1.0, 0.0, (4 + 12) / 2]]
    assert sorted(units[order].tolist()) == sorted(expected)


def test_equal_widths_are_not_widened(monkeypatch):
    def refuse(*_):
        raise AssertionError

    monkeypatch.setattr(zipping, "widened", refuse)
    torch.manual_seed(0)
    zip_models([networks.mlp(), networks.mlp()], VECTORS, stop_at="2")


# Networks that differ


@cache
def digits():
    """A narrow and a wide network trained apart on handwritten digits; data, labels."""
    from sklearn.datasets import load_digits

    from taskatlas.learn import train

    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16, torch.tensor(y)
    models = []
    for seed, (one, two, three) in enumerate([(12, 24, 32), (18, 30, 48)]):
        torch.manual_seed(seed)
        models.append(
            nn.Sequential(
                *(nn.Conv2d(1, one, 3, padding=1), nn.BatchNorm2d(one), nn.ReLU(), nn.MaxPool2d(2)),
                *(nn.Conv2d(one, two, 3, padding=1), nn.ReLU(), nn.Flatten()),
                *(nn.Linear(two * 16, three), nn.ReLU(), nn.Linear(three, 10)),
            )
        )
        train(models[-1:], x[:1200], [y[:1200]], epochs=6, learning_rate=3e-3)
        models[-1].eval()
    return models, x, y


def naive(models, x):
    """Every unit of the narrow network merged with the wide one's unit at the same place."""
    even = widened(models, ("narrow", "wide"), 1, AxisGroups.of(models[1], x[:2]), x[:2], None, None)
    places = {
        name: ta.Alignment(np.where(np.arange(max(units)) < np.array(units)[:, None], np.arange(max(units)), -1))
        for name, units in even.units.items()
    }
    network = copy.deepcopy(models[1])
    network.load_state_dict(merged_weights([one.state_dict() for one in even.networks], even.groups, places))
    return network


def test_a_narrow_and_a_wide_network_become_one_that_works():
    models, x, y = digits()
    unseen, answers = x[1200:], y[1200:]
    assert min(right(model, unseen, answers) for model in models) > 0.85
    by_place = right(naive(models, x), unseen, answers)
    found = {
        calibration: right(zip_models(models, x[:400], calibration=calibration).network, unseen, answers)
        for calibration in (None, "reset", "repair", "least_squares")
    }
    assert found[None] > by_place + 0.1, (found, by_place)
    assert found["reset"] > by_place + 0.1
    assert found["repair"] > by_place + 0.1
    assert found["least_squares"] > 0.8


def test_three_widths_and_a_third_that_comes_later():
    models, x, y = digits()
    unseen, answers = x[1200:], y[1200:]
    zipped = zip_models(models, x[:400])
    grown = ta.add_to_zipped(zipped, models[0], x[:400])
    assert grown.names == ("model 0", "model 1", "model 2")
    assert right(grown.network, unseen, answers) > 0.75
    assert right(zip_models([*models, models[0]], x[:400]).network, unseen, answers) > 0.75


def test_heads_of_different_widths_and_classes():
    torch.manual_seed(0)
    models = [
        nn.Sequential(
            nn.Linear(6, 8 * wide), nn.ReLU(), nn.Linear(8 * wide, 5 * wide), nn.Tanh(), nn.Linear(5 * wide, wide)
        )
        for wide in (1, 2)
    ]
    zipped = zip_models([model.eval() for model in models], VECTORS, stop_at="1")
    small, large = run(zipped.network, VECTORS)
    assert (small.shape[1], large.shape[1]) == (1, 2)
    assert relative(small, run(models[0], VECTORS)) < 0.3
    assert relative(large, run(models[1], VECTORS)) < 0.3
    with pytest.raises(BadInput, match=r"model 1 and model 0 differ in 4\.bias, 4\.weight: 4\.bias has shapes \(2,\)"):
        zip_models(models, VECTORS)


def test_statistics_and_searches():
    narrow, wide, data = pair("mlp")
    groups = AxisGroups.of(wide, data[:2])
    statistics = group_statistics([narrow, wide], data, groups)
    for stop in (None, "2"):
        one, other = (
            zip_models([narrow, wide], data, groups=groups, stop_at=stop, calibration=None, statistics=known)
            for known in (statistics, None)
        )
        for a, b in zip(one.network.state_dict().values(), other.network.state_dict().values(), strict=True):
            assert torch.equal(a, b)
    rows = search_zip(
        [narrow, wide], data, lambda zipped: {"units": 1.0}, groups=groups, a=[0.3], b=[0.1], stop_at=[None, "2"]
    )
    assert len(rows) == 2


def test_one_file_opens_without_the_models_code(tmp_path):
    narrow, wide, data = pair("bottlenecks")
    for stop in (None, "layer1"):
        zipped = zip_models([narrow, wide], data, stop_at=stop, calibration=None)
        zipped.save(tmp_path / "zipped.pt2")
        outputs = run(torch.export.load(tmp_path / "zipped.pt2").module(), data[:7])
        for output in [outputs] if stop is None else outputs:
            assert relative(output, run(narrow, data[:7])) < 1e-3


def test_units_that_never_vary_are_counted_once():
    models = [wide_mlp(5), wide_mlp(9)]
    with torch.no_grad():
        models[0][0].weight[:2] = 0
    notes = zip_models(models, VECTORS, calibration=None).notes
    assert notes[0].startswith("2 of 14 units never vary")


NETS = """
import torch
def net(weights):
    width = len(weights["0.bias"])
    return torch.nn.Sequential(torch.nn.Linear(6, width), torch.nn.ReLU(), torch.nn.Linear(width, 4))
"""


def test_a_recipe_merges_into_the_widest(tmp_path):
    torch.manual_seed(0)
    for name, width in (("narrow", 5), ("wide", 9)):
        save_file(wide_mlp(width).state_dict(), tmp_path / f"{name}.safetensors")
    (tmp_path / "nets.py").write_text(NETS)
    np.savez(tmp_path / "x.npz", x=VECTORS.numpy())
    content = {
        "merge_method": "zip",
        "models": [{"model": "narrow.safetensors"}, {"model": "wide.safetensors"}],
        "builder": "nets.py:net",
        "probe": "x.npz",
    }
    (tmp_path / "zip.yml").write_text(yaml.safe_dump(content))
    result = ta.merge_networks(tmp_path / "zip.yml", tmp_path / "out")
    assert load_file(tmp_path / "out" / "model.safetensors")["0.weight"].shape == (9, 6)
    assert "a network like that of wide" in (tmp_path / "out" / "README.md").read_text()
    assert result.cost.parameters == result.parents[1].parameters
    (tmp_path / "permute.yml").write_text(yaml.safe_dump(content | {"merge_method": "permute"}))
    with pytest.raises(BadInput, match=r"narrow and wide differ in 0\.weight.*by permute have equal widths"):
        ta.merge_networks(tmp_path / "permute.yml", tmp_path / "other")


# What is refused


@pytest.mark.parametrize("method", ["permute", "cycle_consistent", "weight_matching", "identity"])
def test_only_zip_takes_different_widths(method):
    said = rf"model 0 and model 1 differ in 0\.weight, 0\.bias, 2\.weight: .*by {method} have equal widths; zip also"
    with pytest.raises(BadInput, match=said):
        zip_models([wide_mlp(5), wide_mlp(9)], VECTORS, method=method)


def attention(width=32):
    return networks.Block(networks.FusedAttention(width=width), width=width)


class Heads(nn.Module):
    """Attention with as many heads as one likes, of as many numbers."""

    def __init__(self, heads, contents):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(32, heads * contents) for _ in range(3))
        self.out = nn.Linear(heads * contents, 32)

    def forward(self, x):
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def heads(heads, contents):
    return networks.Block(Heads(heads, contents))


@pytest.mark.parametrize(
    ("models", "data", "said"),
    [
        (
            lambda: [wide_mlp(5, 9), wide_mlp(9, 5)],
            VECTORS,
            r"model 0 is not in 0\.weight, model 1 is not in 2\.weight",
        ),
        (lambda: [wide_mlp(5), wide_mlp(5, 5)], VECTORS, r"differ in 4\.weight, 4\.bias: 4\.weight has shapes none"),
        (lambda: [attention(), attention(width=64)], WORDS, r"differ in into\.weight.*not along a norm"),
        (
            lambda: [heads(4, 6), heads(6, 6)],
            WORDS,
            r"differ in attention\.q\.weight.*\(36, 32\) and \(24, 32\).*heads",
        ),
        (
            lambda: [heads(4, 6), heads(4, 8)],
            WORDS,
            r"differ in attention\.q\.weight.*\(32, 32\) and \(24, 32\).*heads",
        ),
        (lambda: [networks.ResNeXt(), wider_groups()], IMAGES, r"model 1 and model 0 differ in conv1\.weight"),
        (
            lambda: [nn.Linear(6, 3), nn.Linear(6, 4)],
            VECTORS,
            r"differ in bias, weight: bias has shapes \(4,\) and \(3,\)",
        ),
        (lambda: [Scaled(4), Scaled(8)], VECTORS, "model 0 computes something else once it is as wide"),
    ],
)
def test_networks_that_cannot_be_zipped_are_told_by_tensor(models, data, said):
    torch.manual_seed(0)
    with pytest.raises(BadInput, match=said):
        zip_models([model.eval() for model in models()], data)


class Scaled(nn.Module):
    """Its forward pass has a number in it that depends on the width."""

    def __init__(self, width):
        super().__init__()
        self.one, self.two = nn.Linear(6, width), nn.Linear(width, 3)

    def forward(self, x):
        return self.two(torch.relu(self.one(x)) * self.one.out_features**-0.5)


def wider_groups():
    network = networks.ResNeXt()
    network.conv1, network.bn1 = nn.Conv2d(16, 32, 1), nn.BatchNorm2d(32)
    network.conv2, network.bn2 = nn.Conv2d(32, 32, 3, padding=1, groups=4), nn.BatchNorm2d(32)
    network.conv3 = nn.Conv2d(32, 16, 1)
    return network


def test_groups_are_those_of_the_widest():
    narrow, wide, data = pair("mlp")
    with pytest.raises(BadInput, match=r"not those of model 1: 0\.bias has shape \(20,\) there, and \(10,\)"):
        zip_models([narrow, wide], data, groups=AxisGroups.of(narrow, data[:2]))


def test_units_that_nothing_shows_have_to_be_as_many():
    narrow, wide, data = pair("mlp")
    content = AxisGroups.of(wide, data[:2]).to_dict()
    content["groups"][0]["taps"] = []
    with pytest.raises(BadInput, match="nothing shows the units of 0, and the networks have different numbers"):
        zip_models([narrow, wide], data, groups=AxisGroups.from_dict(content))


def test_a_network_of_another_width_is_not_added_up_to_a_stop():
    narrow, wide, data = pair("mlp")
    zipped = zip_models([wide, wide], data, stop_at="2", calibration=None)
    with pytest.raises(BadInput, match=r"has another '0\.weight' than the zipped one"):
        ta.add_to_zipped(zipped, narrow, data)


def test_no_order_is_left_of_units_that_were_zipped():
    narrow, wide, data = pair("mlp")
    from taskatlas.merge.barrier import in_order_of_the_first

    with pytest.raises(BadInput, match="units of '0' were joined"):
        in_order_of_the_first(narrow, zip_models([wide, narrow], data, calibration=None))

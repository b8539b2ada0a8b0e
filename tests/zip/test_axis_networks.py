"""Axis groups of networks of the usual structures: what theory says can move is found; moving it changes nothing."""

import copy
import dataclasses
import importlib.util
import re
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.zip import networks
from torch import nn
from torch.utils._pytree import tree_map

import taskatlas as ta
from taskatlas.errors import BadInput
from taskatlas.merge import axis_rules
from taskatlas.merge.axis_groups import AxisGroups

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def families(groups):
    """Name -> size of a group; groups that lie within equal blocks are one entry, with the number of blocks."""
    found = {}
    for group in groups:
        found.setdefault(re.sub(r"\[.*\]", "[]", group.name), []).append(group.size)
    return {name: (len(sizes), sizes[0]) if "[]" in name else sizes[0] for name, sizes in found.items()}


def precise(module, seed=0):
    """A copy in float64 in which nothing is zero or one by initialisation."""
    module = copy.deepcopy(module).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module


def run(module, example, output=None):
    """The outputs, and what every module that is called once takes and gives."""
    seen, calls = {}, {}

    def note(name):
        def hook(_, arguments, keywords, result):
            calls[name] = calls.get(name, 0) + 1
            given = [*arguments, *keywords.values()]
            seen[f"{name}:input"] = given[0].clone() if given and isinstance(given[0], torch.Tensor) else None
            seen[name] = result.clone() if isinstance(result, torch.Tensor) else result[0]

        return hook

    hooks = [part.register_forward_hook(note(name), with_kwargs=True) for name, part in module.named_modules() if name]
    example = tree_map(lambda x: x.double() if x.is_floating_point() else x, example)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    with torch.no_grad():
        result = module(**example) if isinstance(example, dict) else module(example)
    torch.backends.mha.set_fastpath_enabled(fast)
    for hook in hooks:
        hook.remove()
    return result if output is None else result[output], seen


def moved(module, groups, permutations):
    other = copy.deepcopy(module)
    other.load_state_dict(groups.permute(module.state_dict(), permutations))
    return other


def difference(a, b):
    return float((a - b).abs().max() / a.abs().max())


def cifar_resnet():
    return example("cifar_resnet").CifarResNet(2, 8, 10)


def projection_resnet():
    return example("cifar_resnet_projection").ProjectionResNet(2, 8, 5)


def attention(kind, **settings):
    return lambda: networks.Block(kind(**settings))


AROUND = {"into": 32, "up": 40}

CASES = {
    "mlp": (networks.mlp, networks.WORDS, {"0": 10, "2": 7}),
    "vgg": (networks.vgg, networks.IMAGES, {"0": 8, "4": 12, "8": 20}),
    # Stages of 8, 16 and 32 channels: zero-padded shortcuts join the middle of a stream with all of the one before.
    "option A": (
        cifar_resnet,
        networks.IMAGES,
        {
            **{"conv1": 8, "layer2.0.conv2": 8, "layer3.0.conv2": 16},
            **{f"layer{i}.{j}.conv1": 4 * 2**i for i in (1, 2, 3) for j in (0, 1)},
        },
    ),
    "option B": (
        projection_resnet,
        networks.IMAGES,
        {
            **{"conv1": 8, "layer2.0.conv2": 16, "layer3.0.conv2": 32},
            **{f"layer{i}.{j}.conv1": 4 * 2**i for i in (1, 2, 3) for j in (0, 1)},
        },
    ),
    "ImageNet": (
        networks.ImageNetResNet,
        torch.randn(2, 3, 32, 32),
        {
            **{"conv1": 8, "layer1.0.conv3": 16, "layer2.0.conv3": 24},
            **{f"layer1.{i}.conv{j}": 4 for i in (0, 1) for j in (1, 2)},
            **{f"layer2.0.conv{j}": 6 for j in (1, 2)},
        },
    ),
    "ConvNeXt": (networks.ConvNeXt, networks.IMAGES, {"stem": 16, "up": 40, "reduce": 24}),
    "DenseNet": (
        networks.DenseNet,
        networks.IMAGES,
        {"conv0": 8, "conv1": 4, "conv2": 5, "transition": 6, "conv3": 3},
    ),
    "U-Net": (networks.UNet, networks.IMAGES, {"down1": 8, "down2": 12, "up": 6, "merge": 10}),
    "ResNeXt": (networks.ResNeXt, networks.IMAGES, {"stem": 16, "conv1": 4, "conv1[]": (4, 6), "conv2[]": (4, 6)}),
    "pixel shuffle": (networks.SuperResolution, networks.IMAGES, {"conv1": 8, "conv2": 5}),
    "filled": (networks.Filled, networks.WORDS, {"inner": 5, "head": 4}),
    "mixer": (networks.Mixer, networks.IMAGES, {"stem": 16, "token1": 7, "channel1": 20}),
    "fused attention": (
        attention(networks.FusedAttention),
        networks.WORDS,
        {**AROUND, "attention.qkv": 4, "attention.qkv[]": (4, 8), "attention.out[]": (4, 8)},
    ),
    # One norm for the contents of all heads: they move alike in every head; those of values are free of it.
    "normed attention": (
        attention(networks.FusedAttention, norm=True),
        networks.WORDS,
        {**AROUND, "attention.qkv": 4, "attention.norm": 8, "attention.qkv[]": (4, 8)},
    ),
    "interleaved attention": (
        attention(networks.InterleavedAttention),
        networks.WORDS,
        {**AROUND, "attention.qkv": 4, "attention.qkv[]": (4, 8), "attention.out[]": (4, 8)},
    ),
    # Two key-value heads; two query heads in each; contents of keys and of values.
    "grouped attention": (
        attention(networks.GroupedAttention),
        networks.WORDS,
        {
            **{**AROUND, "attention.qkv": 2, "attention.qkv[]": (2, 2)},
            **{"attention.qkv#2[]": (2, 8), "attention.out[]": (2, 8)},
        },
    ),
    "fixed heads": (
        attention(networks.FixedHeads),
        networks.WORDS,
        {**AROUND, "attention.q[]": (4, 8), "attention.v[]": (4, 8)},
    ),
    "torch's encoder": (
        lambda: nn.Sequential(
            nn.Linear(6, 32), nn.TransformerEncoderLayer(32, 4, 48, batch_first=True), nn.Linear(32, 5)
        ),
        networks.WORDS,
        {
            **{"0": 32, "1.self_attn.in_proj_weight": 4, "1.linear1": 48},
            **{"1.self_attn.in_proj_weight[]": (4, 8), "1.self_attn.out_proj[]": (4, 8)},
        },
    ),
}


@cache
def derived(name):
    build, example, expected = CASES[name]
    torch.manual_seed(0)
    module = build()
    return module, example, expected, AxisGroups.of(module, example)


@pytest.fixture(params=CASES, ids=str)
def case(request):
    return derived(request.param)


def test_what_theory_says_can_move_is_found(case):
    *_, expected, groups = case
    assert families(groups) == expected
    assert not [axis for axis in groups.frozen if "self-check" in axis.why]


@pytest.mark.parametrize("seed", [1, 2])
def test_permuting_leaves_outputs_unchanged(case, seed):
    module, example, _, groups = case
    module = precise(module, seed)
    before, _ = run(module, example)
    after, _ = run(moved(module, groups, groups.random_permutations(seed)), example)
    assert difference(before, after) < 1e-5


def test_every_axis_of_a_group_is_needed(case):
    """Where only the first axis of a group moves, the outputs change."""
    module, example, _, groups = case
    module = precise(module)
    before, _ = run(module, example)
    permutations = groups.random_permutations(0)
    for group in groups:
        if len(group.members) > 1:
            part = AxisGroups((dataclasses.replace(group, members=group.members[:1], within=None),))
            after, _ = run(moved(module, part, {group.name: permutations[group.name]}), example)
            assert difference(before, after) > 1e-4, group


def test_taps_show_the_units_in_their_new_order(case):
    module, example, _, groups = case
    module = precise(module)
    permutations = groups.random_permutations(0)
    _, before = run(module, example)
    _, after = run(moved(module, groups, permutations), example)
    for group in sorted(groups, key=groups.depth, reverse=True):
        for site in (tap for tap in group.taps if not tap.is_operation):
            positions = site.layout.index()
            order = torch.arange(before[site.place].shape[site.axis])
            order[positions] = torch.from_numpy(positions[permutations[group.name]])
            before[site.place] = before[site.place].index_select(site.axis, order)
    places = {site.place for group in groups for site in group.taps if not site.is_operation}
    assert places
    for place in places:
        assert difference(before[place], after[place]) < 1e-9, place


def test_every_group_can_be_seen(case):
    module, *_, groups = case
    # torch's own attention computes with its weights itself, so no module shows its heads.
    hidden = {group.name for group in groups if not group.taps}
    assert all(name.startswith("1.self_attn") and isinstance(module, nn.Sequential) for name in hidden)


def test_roles_follow_from_use(case):
    """What a layer makes is out, what it sums over is in."""
    module, *_, groups = case
    layers = {name: part for name, part in module.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)}
    for group in groups:
        for member in group.members:
            layer, _, kind = member.tensor.rpartition(".")
            if layer in layers and kind == "weight":
                assert member.role == ("out" if member.axis == 0 else "in"), member
            if kind == "bias":
                assert member.role == "out"


def test_deriving_leaves_no_trace():
    module = networks.vgg().train()
    module[2].eval()
    state = copy.deepcopy(module.state_dict())
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    AxisGroups.of(module, networks.IMAGES)
    assert torch.equal(torch.rand(3), expected)
    assert module.training
    assert not module[2].training
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


def test_the_same_module_gives_the_same_groups():
    groups = [AxisGroups.of(CASES["grouped attention"][0](), networks.WORDS) for _ in range(2)]
    assert groups[0].digest == groups[1].digest


# What cannot move


def frozen(groups):
    return {(axis.tensor, axis.axis): axis for axis in groups.frozen}


def test_inputs_and_classes_stay():
    stays = frozen(derived("mlp")[-1])
    assert set(stays) == {("0.weight", 1), ("4.weight", 0), ("4.bias", 0)}
    assert "input" in stays["0.weight", 1].why
    assert stays["0.weight", 1].positions == 6
    assert "output" in stays["4.bias", 0].why


def test_what_is_not_understood_is_frozen_and_named():
    groups = AxisGroups.of(networks.Ordered(), networks.WORDS)
    assert families(groups) == {"three": 6}
    stays = frozen(groups)
    assert "cumsum" in stays["one.weight", 0].why
    assert "fft" in stays["two.weight", 0].why
    assert "not understood" in stays["two.weight", 0].why
    assert re.match(r"networks.py:\d+: x = torch.fft.fft", stays["two.weight", 0].where)


def test_a_recurrent_layer_is_frozen_and_the_rest_moves():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.into, self.lstm, self.out, self.head = (
                *(nn.Linear(6, 5), nn.LSTM(5, 4, batch_first=True)),
                *(nn.Linear(4, 8), nn.Linear(8, 2)),
            )

        def forward(self, x):
            return self.head(torch.relu(self.out(self.lstm(self.into(x))[0][:, -1])))

    assert families(AxisGroups.of(Recurrent(), networks.WORDS)) == {"out": 8}


def test_a_parameter_that_is_not_used_is_said_to_be():
    module = networks.mlp()
    module.register_parameter("extra", nn.Parameter(torch.zeros(3)))
    groups = AxisGroups.of(module, networks.WORDS)
    assert families(groups) == {"0": 10, "2": 7}
    assert "does not use" in frozen(groups)["extra", 0].why


# The self-check


def forgetful(step, input, **_):
    """A wrong rule: the weights of a norm are not said to move with what they scale."""
    return input.axes


@pytest.mark.parametrize(
    ("operation", "case", "lost"),
    [
        ("batch_norm", "vgg", {"0", "1"}),
        ("layer_norm", "ConvNeXt", {"stem", "norm"}),
        ("cumsum", "ordered", {"one"}),
    ],
)
def test_a_wrong_rule_is_caught(monkeypatch, operation, case, lost):
    build, example, expected = CASES.get(case, (networks.Ordered, networks.WORDS, {"three": 6}))
    monkeypatch.setattr(axis_rules, "RULE_OF", {**axis_rules.RULE_OF, operation: forgetful})
    groups = AxisGroups.of(build(), example)
    assert families(groups) == {name: size for name, size in expected.items() if name not in lost}
    failed = {axis.tensor.split(".")[0] for axis in groups.frozen if "self-check" in axis.why}
    assert lost <= failed
    module = precise(build())
    before, _ = run(module, example)
    after, _ = run(moved(module, groups, groups.random_permutations(0)), example)
    assert difference(before, after) < 1e-5


def test_a_network_that_insists_on_its_precision_is_checked_in_it():
    class Single(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.two(torch.relu(self.one(x)).float())

    assert families(AxisGroups.of(Single(), networks.WORDS)) == {"one": 8}


@pytest.mark.parametrize("wrong", [lambda step, input: input.axes[:1], lambda step: ()])
def test_a_rule_that_does_not_fit_freezes_what_it_touches(monkeypatch, wrong):
    monkeypatch.setattr(axis_rules, "RULE_OF", {**axis_rules.RULE_OF, "relu": wrong})
    groups = AxisGroups.of(networks.mlp(), networks.WORDS)
    assert families(groups) == {"2": 7}
    assert frozen(groups)["0.weight", 0].why == "relu is not understood"


def test_groups_given_by_hand_are_checked():
    module = networks.mlp()
    right = {"name": "first", "size": 10, "members": [{"tensor": t, "axis": 0} for t in ("0.weight", "0.bias")]}
    right["members"].append({"tensor": "2.weight", "axis": 1, "role": "in"})
    wrong = {
        "name": "second",
        "size": 7,
        "members": [{"tensor": "2.weight", "axis": 0}, {"tensor": "2.bias", "axis": 0}],
    }
    groups = AxisGroups.from_dict({"groups": [right, wrong]}).checked(module, networks.WORDS)
    assert [group.name for group in groups] == ["first"]
    assert {axis.tensor for axis in groups.frozen} == {"2.weight", "2.bias"}


# What cannot be followed


def test_control_flow_on_values_is_refused_with_its_line():
    with pytest.raises(BadInput, match=r"networks.py:\d+ \(if x.sum\(\) > 0:\).*by hand"):
        AxisGroups.of(networks.Branching(), networks.WORDS)


def test_an_example_that_does_not_fit_is_refused():
    with pytest.raises(BadInput, match="does not fit"):
        AxisGroups.of(networks.mlp(), networks.IMAGES)


def test_an_output_that_is_not_there_is_refused():
    with pytest.raises(BadInput, match="no output 'logits'"):
        AxisGroups.of(networks.mlp(), networks.WORDS, outputs=["logits"])


# Real networks


def test_the_projection_builder_reads_depth_and_width_from_the_weights(tmp_path):
    builder = example("cifar_resnet_projection")
    save_file(builder.ProjectionResNet(2, 8, 5).state_dict(), tmp_path / "net.safetensors")
    opened = ta.Zoo.open(tmp_path, builder=f"{EXAMPLES / 'cifar_resnet_projection.py'}:build")["net"].open()
    images = [np.full((32, 32, 3), value, dtype=np.uint8) for value in (0, 255)]
    assert opened.module(opened.prepare(images)).shape == (2, 5)


def test_a_trained_pair_has_the_groups_of_its_architecture(real_input):
    builder = f"{EXAMPLES / 'cifar_resnet_projection.py'}:build"
    zoo = ta.Zoo.open(real_input / "zoo" / "cifar5-pairs", builder=builder)
    images = torch.randn(2, 3, 32, 32)
    pair = [checkpoint.open().module for checkpoint in zoo.values()]
    one, two = (AxisGroups.of(module, images) for module in pair)
    assert one.digest == two.digest
    assert {"conv1": 32, "layer2.0.conv2": 64, "layer3.0.conv2": 128}.items() <= families(one).items()
    assert len(one) == 3 + 9
    other = moved(pair[0], one, one.random_permutations(0))
    with torch.no_grad():
        assert difference(pair[0](images), other(images)) < 1e-5


# Stops


def test_legal_stops_are_named_in_order():
    *_, groups = derived("option B")
    outer = [stop.place for stop in groups.stops if stop.place.startswith("layer") and stop.place[6:7] in ("", ".")]
    outer = [place for place in outer if "shortcut" not in place]
    assert outer == ["layer1.0", "layer1", "layer2.0", "layer2", "layer3.0", "layer3"]
    stop = groups.stop("layer1.1")
    assert stop.place == "layer1"
    assert "layer1.1.bn2.weight" in stop.trunk
    assert "layer2.0.shortcut.0.weight" in stop.rest
    assert not set(stop.trunk) & set(stop.rest)
    [(group, site)] = groups.at("layer1")
    assert (group.name, site.axis) == ("conv1", 1)


@pytest.mark.parametrize("place", ["layer1.0.conv1", "layer2.0.bn1", "nowhere"])
def test_an_illegal_stop_lists_the_legal_ones(place):
    *_, groups = derived("option B")
    with pytest.raises(BadInput, match=r"no legal stop.*layer1, layer2"):
        groups.stop(place)


def test_a_skip_connection_leaves_no_stop_beneath_it():
    stops = {stop.place for stop in derived("U-Net")[-1].stops}
    assert {"down1", "merge"} <= stops
    assert not stops & {"down2", "norm", "up"}


# As a person sees it


def test_a_table_that_a_person_can_read():
    text = str(derived("fused attention")[-1])
    lines = text.splitlines()
    assert lines[0].startswith("AxisGroups(11 groups")
    [heads] = [line for line in lines if line.startswith("attention.qkv ")]
    assert "attention.qkv.weight[0] ×3" in heads
    assert re.search(r"^  attention.qkv\[0 … 3\] +4 × 8", text, re.MULTILINE)
    assert "it is seen in the output: head.weight[0], head.bias[0]" in text
    assert "legal stops: into" in text

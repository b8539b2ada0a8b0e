"""Recipes: what is read, what is refused, and which number holds for which tensor."""

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from taskatlas.errors import BadInput
from taskatlas.merge.layers import depth_of, find_stacks, layer_of, renumbered
from taskatlas.merge.methods import METHODS
from taskatlas.merge.parameters import Gradient, first_value, read_setting, value_at, write_setting
from taskatlas.merge.recipe import KINDS, MergeRecipe

NUMBERS = st.floats(-1e6, 1e6, allow_nan=False)
FILTERED = st.lists(
    st.fixed_dictionaries({"value": st.one_of(NUMBERS, st.lists(NUMBERS, min_size=1, max_size=4))})
    | st.fixed_dictionaries({"value": NUMBERS, "filter": st.sampled_from(["mlp", "attn", "*"])}),
    min_size=1,
    max_size=3,
)
SETTINGS = st.one_of(NUMBERS, st.booleans(), st.lists(NUMBERS, min_size=1, max_size=5), FILTERED)

FULL = """
merge_method: task_arithmetic
base_model: base            # what they were fine-tuned from
models:
  - model: base
  - model: a+adapter
    parameters:
      weight: [0, 0.5, 1]
  - model: b
    parameters:
      weight:
        - {filter: mlp, value: [1e-4, 2]}
        - value: 0.3
parameters:
  normalize: true
  int8_mask: true
  lambda: 0.5
dtype: float32
out_dtype: bfloat16
tokenizer_source: base
name: mine
zoo: checkpoints
common_only: true
"""


def refusal(text):
    with pytest.raises(BadInput) as caught:
        MergeRecipe.from_dict(yaml.safe_load(text))
    return str(caught.value)


# Reading and writing


def test_everything_that_a_recipe_can_say(tmp_path):
    (tmp_path / "recipe.yml").write_text(FULL)
    recipe = MergeRecipe.load(tmp_path / "recipe.yml")
    recipe.save(tmp_path / "again.yml")
    again = MergeRecipe.load(tmp_path / "again.yml")
    assert again == recipe
    assert again.digest == recipe.digest
    assert repr(recipe) == str(recipe) == "MergeRecipe(task_arithmetic, 3 models on base)"
    assert recipe.models[1].parameters == {"weight": Gradient((0.0, 0.5, 1.0))}
    assert recipe.models[2].parameters["weight"][0].value == Gradient((1e-4, 2.0))  # YAML 1.1 takes 1e-4 for a text
    assert recipe.parameters == {"normalize": True, "int8_mask": True, "lambda": 0.5}


def test_the_digest_is_of_what_the_recipe_says():
    one = yaml.safe_load(FULL)
    assert MergeRecipe.from_dict(one).digest == MergeRecipe.from_dict(dict(reversed(one.items()))).digest
    one["parameters"]["lambda"] = 0.6
    assert MergeRecipe.from_dict(one).digest != MergeRecipe.from_dict(yaml.safe_load(FULL)).digest


def test_parameters_with_only_a_comment_under_them():
    recipe = MergeRecipe.from_dict({"merge_method": "linear", "models": [{"model": "a", "parameters": None}]})
    assert recipe.models[0].parameters == {}


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ({}, None),
        ({"tokenizer_source": "union"}, "union"),
        ({"tokenizer_source": "model:a/b"}, "a/b"),
        ({"tokenizer": {"source": "b"}}, "b"),
        ({"tokenizer": {}}, "union"),
    ],
)
def test_whose_tokenizer(said, meant):
    recipe = MergeRecipe.from_dict({"merge_method": "linear", "models": [{"model": "a"}], **said})
    assert recipe.tokenizer_from == meant


# What is refused


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "{merge_method: linear, models: [{model: a}, {model: b, parameters: {wieght: 1}}]}",
            "models[1].parameters.wieght: unknown key; did you mean 'weight'?",
        ),
        (
            "{merge_method: linear, models: [{model: a, parametrs: {weight: 1}}]}",
            "models[0].parametrs: unknown key; did you mean 'parameters'?",
        ),
        ("{merge_method: linear, modls: [{model: a}]}", "modls: unknown key; did you mean 'models'?"),
        (
            "{merge_method: linear, slices: [{sources: [{model: a, layer_rang: [0, 1]}]}]}",
            "slices[0].sources[0].layer_rang: unknown key; did you mean 'layer_range'?",
        ),
        ("{merge_method: linaer, models: [{model: a}]}", "there is no method 'linaer'; did you mean 'linear'?"),
        ("{merge_method: linear, models: [{model: a}], parameters: {weight: [1, x]}}", "weight[1]: 'x' is no number"),
        ("{merge_method: linear, models: [{model: a}], parameters: {weight: []}}", "parameters.weight: the list is"),
        ("{merge_method: linear, models: [{model: a}], parameters: {weight: .nan}}", "weight: nan is no finite number"),
        ("{merge_method: linear, models: [{model: a}], parameters: {weight: .inf}}", "weight: inf is no finite number"),
        ("{merge_method: linear, models: [{model: a}], parameters: {weight: true}}", "weight: True is not a number"),
        ("{merge_method: linear, models: [{model: a}], parameters: {weight: many}}", "'many' is not a number"),
        ("{merge_method: linear, models: [{model: a}], parameters: {normalize: 3}}", "3 is not true or false"),
        (
            "{merge_method: linear, models: [{model: a}], parameters: {weight: [{filter: mlp}]}}",
            "parameters.weight[0]: {'filter': 'mlp'} is no value with a filter",
        ),
        (
            "{merge_method: linear, models: [{model: a}], parameters: {weight: [{filter: mlp, value: 1, vale: 2}]}}",
            "parameters.weight[0].vale: unknown key",
        ),
        (
            "{merge_method: linear, models: [{model: a}], parameters: {weight: [{filter: 3, value: 1}]}}",
            "parameters.weight[0].filter: 3 is no text",
        ),
        (
            "{merge_method: linear, models: [{model: a, parameters: {normalize: true}}]}",
            "models[0].parameters.normalize: linear has one normalize for all models",
        ),
        (
            "{merge_method: linear, models: [{model: a}], parameters: {lambda: 1}}",
            "parameters.lambda: linear has no such parameter (task_arithmetic has)",
        ),
        (
            "{merge_method: ties, base_model: c, models: [{model: a, parameters: {density: [0.2, 1.5]}}]}",
            "models[0].parameters.density: 1.5 is out of bounds. It has to be from 0 to 1",
        ),
        (
            "{merge_method: nearswap, base_model: c, models: [{model: a}], parameters: {t: -0.1}}",
            "parameters.t: -0.1 is out of bounds. It has to be zero or more",
        ),
        (
            "{merge_method: ties, base_model: c, models: [{model: a}], parameters: {scope: all}}",
            "parameters.scope: 'all' is out of bounds. It has to be model or tensor",
        ),
        (
            "{merge_method: dare_ties, base_model: c, models: [{model: a}], parameters: {consensus_method: most}}",
            "parameters.consensus_method: 'most' is out of bounds. It has to be sum or count",
        ),
        ("{merge_method: task_arithmetic, models: [{model: a}]}", "base_model: task_arithmetic needs one"),
        ("{merge_method: task_arithmetic, base_model: a, models: [{model: a}]}", "beside the base, and there are 0"),
        ("{merge_method: linear}", "the recipe names no models"),
        ("{merge_method: linear, models: [{model: a}], slices: [{sources: [{model: a}]}]}", "both models and slices"),
        ("{merge_method: linear, models: []}", "models: "),
        ("{models: [{model: a}]}", "merge_method: "),
        ("{merge_method: linear, models: [{model: {path: a}}]}", "models[0].model: "),
        ("{merge_method: linear, models: [{model: ''}]}", "models[0].model: "),
        ("{merge_method: linear, slices: [{sources: [{model: a, layer_range: [3, 1]}]}]}", "ends before it starts"),
        ("{merge_method: linear, slices: [{sources: [{model: a, layer_range: [0.5, 1]}]}]}", "layer_range[0]: "),
        ("{merge_method: linear, slices: [{sources: [{model: a, layer_range: [-1, 1]}]}]}", "layer_range[0]: "),
        ("{merge_method: linear, models: [{model: a}], dtype: bf16}", "dtype: "),
        ("{merge_method: linear, models: [{model: a}], chat_template: auto}", "chat_template: taskatlas has nothing"),
        ("{merge_method: linear, models: [{model: a}], tokenizer: {tokens: {}}}", "tokenizer.tokens: taskatlas has"),
        ("{merge_method: linear, models: [{model: a}], tokenizer_source: base}", "tokenizer: there is no base"),
        ("{merge_method: linear, models: [{model: a}], common_only: true}", "common_only: "),
        ("[1, 2]", "the recipe is no mapping"),
        ("linear", "the recipe is no mapping"),
        ("", "the recipe is no mapping"),
        ("&x {merge_method: linear, models: [*x]}", "models[0].merge_method: unknown key"),
        ("{merge_method: linear, models: [{model: a}], parameters: {weight: &x [*x]}}", "parameters.weight[0]: "),
    ],
)
def test_a_wrong_recipe(text, said):
    assert said in refusal(text)


def test_a_wrong_file_is_named(tmp_path):
    (tmp_path / "twice.yml").write_text("merge_method: linear\nmerge_method: ties\n")
    (tmp_path / "no.yml").write_text("models: [a, b")
    (tmp_path / "key.yml").write_text("merge_method: linear\nmodls: []\n")
    for name, said in {"twice": "line 2", "no": "line 1", "key": "modls: unknown key", "gone": "Is the path"}.items():
        with pytest.raises(BadInput, match=said) as caught:
            MergeRecipe.load(tmp_path / f"{name}.yml")
        assert f"{name}.yml" in str(caught.value)


def test_every_key_that_is_one_letter_off_is_refused():
    whole = yaml.safe_load(FULL)
    for key in whole:
        wrong = {(key[:-1] if key == name else name): value for name, value in whole.items()}
        with pytest.raises(BadInput, match="unknown key"):
            MergeRecipe.from_dict(wrong)


# Which number holds


@given(SETTINGS)
def test_a_setting_survives_being_written(content):
    setting = read_setting(content)
    assert read_setting(write_setting(setting)) == setting


@given(st.lists(NUMBERS, min_size=1, max_size=6), st.floats(0, 1))
def test_a_gradient_is_linear_interpolation(values, depth):
    expected = np.interp(depth, np.linspace(0, 1, len(values)), values) if len(values) > 1 else values[0]
    assert Gradient(tuple(values)).at(depth) == pytest.approx(expected, rel=1e-9, abs=1e-6)


def test_the_first_filter_that_matches_holds():
    setting = read_setting([{"filter": "mlp", "value": 1}, {"filter": "down", "value": 2}, {"value": 3}])
    assert [value_at(setting, name, 0.0) for name in ("h.0.mlp.down", "h.0.down", "h.0.up")] == [1, 2, 3]
    assert value_at(read_setting([{"filter": "mlp", "value": 1}]), "h.0.attn", 0.0) is None


def test_levels_in_their_order():
    levels = [{"weight": read_setting([{"filter": "mlp", "value": 1}])}, {}, {"weight": 2.0}, {"weight": 3.0}]
    assert first_value(levels, "weight", "h.0.mlp", 0.0) == 1
    assert first_value(levels, "weight", "h.0.attn", 0.0) == 2.0
    assert first_value(levels, "density", "h.0.attn", 0.0) is None


# Layers by their names


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layers.12.mlp.experts.3.w1.weight", ("model.layers", 12)),
        ("transformer.h.0.attn.c_attn.weight", ("transformer.h", 0)),
        ("bert.encoder.layer.11.output.dense.bias", ("bert.encoder.layer", 11)),
        ("encoder.block.2.layer.0.SelfAttention.q.weight", ("encoder.block", 2)),
        ("layer3.1.conv2.weight", ("layer3", 1)),
        ("0.weight", ("", 0)),
        ("blocks.7", ("blocks", 7)),
        ("conv1.weight", None),
        ("fc.weight", None),
    ],
)
def test_where_a_layer_stands_in_a_name(name, place):
    assert layer_of(name) == place
    if place is not None:
        assert layer_of(renumbered(name, 42)) == (place[0], 42)
        assert renumbered(name, place[1]) == name


def test_depth_in_stacks_with_gaps_and_of_one_layer():
    stacks = find_stacks(["0.weight", "2.weight", "5.weight", "head.3.weight"])
    assert stacks == {"": (0, 2, 5), "head": (3,)}
    assert [depth_of(name, stacks) for name in ("0.weight", "2.weight", "5.weight", "head.3.weight")] == [0, 0.5, 1, 1]


def test_methods_of_other_kinds_are_those_of_their_recipes():
    from typing import get_args

    from taskatlas.merge.data_recipe import DATA_METHODS, DataMethod
    from taskatlas.merge.network_recipe import NetworkMethod

    by_kind = {kind: {method for method in KINDS if KINDS[method] == kind} for kind in set(KINDS.values())}
    assert by_kind == {"data": set(DATA_METHODS), "networks": set(get_args(NetworkMethod))}
    assert set(get_args(DataMethod)) == set(DATA_METHODS)
    assert not set(KINDS) & set(METHODS)

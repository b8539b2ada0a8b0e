"""Plans: which tensors of which models make which tensor of the result, with which numbers, at what cost."""

import json
import os

import pytest
import torch
from tests.merge.material import merged, recipe, tensors, write, write_models, write_recipe
from torch import nn

from taskatlas.errors import BadInput
from taskatlas.merge.in_memory import merge_models
from taskatlas.merge.planning import make_plan
from taskatlas.merge.recipe import MergeRecipe
from taskatlas.merge.shards import parse_size
from taskatlas.zoo import Zoo

HALVES = {"weight": 0.5}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with the models a, b and c."""
    write_models(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def file(name):
    return f"{name}.safetensors"


def linear(*models, **fields):
    return recipe("linear", [file(name) for name in models], parameters=HALVES, **fields)


def slices(*rows, method="linear", **fields):
    content = [
        {"sources": [{"model": file(name), "layer_range": list(layers)} for name, layers in row.items()]}
        for row in rows
    ]
    return MergeRecipe.from_dict({"merge_method": method, "slices": content, "parameters": {"weight": 1}, **fields})


# Numbers


def test_parameters_follow_layers_filters_and_levels(place):
    models = [
        (file("a"), {"weight": [0, 1]}),
        (file("b"), {"weight": [{"filter": "mlp", "value": [1, 3]}, {"filter": "lm_head", "value": 7}]}),
        file("c"),
    ]
    plan = make_plan(recipe("linear", models, parameters={"weight": 0.25, "normalize": False}))
    found = {one.name: [own["weight"] for own in one.parameters] for one in plan.tensors if one.method == "linear"}
    assert found["model.embed_tokens.weight"] == [0, 0.25, 0.25]
    assert found["model.layers.0.mlp.down_proj.weight"] == [0, 1, 0.25]
    assert found["model.layers.1.mlp.down_proj.weight"] == [0.5, 2, 0.25]
    assert found["model.layers.2.self_attn.q_proj.weight"] == [1, 0.25, 0.25]
    assert found["model.norm.weight"] == [1, 0.25, 0.25]
    assert found["lm_head.weight"] == [1, 7, 0.25]
    assert all(one.settings == {"normalize": False} for one in plan.tensors if one.method == "linear")


def test_slices_have_parameters_of_their_own(place):
    content = {
        "merge_method": "linear",
        "slices": [
            {
                "sources": [
                    {"model": file("a"), "layer_range": [0, 2], "parameters": {"weight": 1}},
                    {"model": file("b"), "layer_range": [1, 3]},
                ],
                "parameters": {"weight": 2, "normalize": False},
            },
            {"sources": [{"model": file("c"), "layer_range": [0, 3], "parameters": {"weight": [1, 2]}}]},
        ],
        "parameters": {"weight": 3},
    }
    found = make_plan(MergeRecipe.from_dict(content)).by_name
    numbers = {name: [own.get("weight") for own in one.parameters] for name, one in found.items()}
    assert numbers["model.layers.1.input_layernorm.weight"] == numbers["model.embed_tokens.weight"] == [1, 2]
    assert [numbers[f"model.layers.{layer}.input_layernorm.weight"] for layer in (2, 3, 4)] == [[1], [1.5], [2]]
    assert numbers["lm_head.weight"] == [2]
    assert [found[f"model.layers.{layer}.input_layernorm.weight"].settings["normalize"] for layer in (0, 2)] == [0, 1]


@pytest.mark.parametrize(
    ("method", "weights", "parameters", "said"),
    [
        (
            "linear",
            [1, [{"filter": "lm_head", "value": -1}, {"value": 1}]],
            {},
            "weights of 'lm_head.weight' sum to zero",
        ),
        (
            "nuslerp",
            [1, [{"filter": "lm_head", "value": -1}, {"value": 1}]],
            {},
            "weights of 'lm_head.weight' sum to zero",
        ),
        ("della", [1, 1], {"density": 0.1, "epsilon": 0.2}, "density 0.1 and epsilon 0.2 of a.safetensors"),
    ],
)
def test_numbers_that_no_tensor_can_be_merged_with(place, method, weights, parameters, said):
    """They are told before anything is read, also where it is the last tensor that has them."""
    models = [(file(name), {"weight": weight}) for name, weight in zip("ab", weights, strict=True)]
    based = {"base_model": file("c")} if method == "della" else {}
    with pytest.raises(BadInput, match=said):
        make_plan(recipe(method, models, parameters=parameters, **based))


def test_a_number_that_nothing_gives(place):
    with pytest.raises(BadInput, match=r"models\[1\].parameters.weight: linear needs it.*lm_head"):
        make_plan(recipe("linear", [(file("a"), HALVES), (file("b"), {"weight": [{"filter": "model", "value": 1}]})]))


# Layers


def test_layers_are_laid_on_layers(place):
    plan = make_plan(slices({"a": (0, 2)}, {"b": (1, 3)}, {"a": (2, 3)}))
    norms = [plan.by_name[f"model.layers.{layer}.input_layernorm.weight"].models[0] for layer in range(5)]
    assert norms == [
        (file(model), f"model.layers.{layer}.input_layernorm.weight")
        for model, layer in [("a", 0), ("a", 1), ("b", 1), ("b", 2), ("a", 2)]
    ]
    assert "model.layers.5.input_layernorm.weight" not in plan.by_name
    assert plan.layers == (0, 1, 1, 2, 2)


def test_what_is_in_no_layer_comes_from_the_first_and_the_last_slice(place):
    plan = make_plan(slices({"a": (0, 2)}, {"b": (1, 3)}, {"c": (3, 3)}))
    found = {name: one.models[0][0] for name, one in plan.by_name.items() if "layers" not in name}
    assert found == {
        "model.embed_tokens.weight": file("a"),
        "model.norm.weight": file("c"),
        "lm_head.weight": file("c"),
        "scale": file("c"),
        "steps": file("c"),
    }


def test_the_base_of_a_slice_is_cut_as_its_sources(place):
    fields = {"method": "task_arithmetic", "base_model": file("c")}
    plan = make_plan(slices({"a": (0, 2), "b": (0, 2)}, {"a": (1, 2), "c": (2, 3)}, **fields))
    assert plan.by_name["model.layers.1.input_layernorm.weight"].base[1] == "model.layers.1.input_layernorm.weight"
    assert plan.by_name["model.layers.2.input_layernorm.weight"].base[1] == "model.layers.2.input_layernorm.weight"
    assert plan.by_name["model.layers.2.input_layernorm.weight"].models == (
        (file("a"), "model.layers.1.input_layernorm.weight"),
    )


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: slices({"a": (0, 4)}), r"slices\[0\].sources\[0\].layer_range: a.safetensors has 3 layers"),
        (lambda: slices({"a": (0, 2), "b": (0, 3)}), r"slices\[0\].sources\[1\].layer_range: 3 layers cannot be"),
        (
            lambda: slices({"a": (0, 2), "b": (1, 3)}, method="task_arithmetic", base_model=file("c")),
            "the ranges differ, so say which layers of the base",
        ),
        (lambda: slices({"flat": (0, 1)}), "no numbered layers"),
        (lambda: slices({"two": (0, 1)}), "different lengths"),
    ],
)
def test_layers_that_are_not_there(place, made, said):
    write(place / file("flat"), {"w": torch.ones(2)})
    write(
        place / file("two"),
        {f"{stack}.{n}.w": torch.ones(1) for stack, length in (("x", 2), ("y", 3)) for n in range(length)},
    )
    with pytest.raises(BadInput, match=said):
        make_plan(made())


def test_numbers_with_gaps_are_no_layers(place):
    """A projection of two linear layers with an activation between is not cut with the model."""
    more = {"model.proj.0.weight": torch.ones(2, 2), "model.proj.2.weight": torch.ones(2, 2)}
    write(place / file("d"), tensors(4) | more)
    plan = make_plan(slices({"d": (0, 1)}, {"d": (2, 3)}))
    assert {name for name in plan.by_name if "proj." in name and "layers" not in name} == set(more)
    assert plan.layers == (0, 2)


# What fits together


def test_tensors_that_do_not_fit_are_listed_with_both_shapes(place):
    write(place / file("wide"), tensors(5, words=9) | {"extra": torch.ones(2)})
    with pytest.raises(BadInput, match="3 tensors do not fit together") as caught:
        make_plan(linear("a", "wide"))
    for part in (
        "model.embed_tokens.weight is (7, 4) in a.safetensors and (9, 4) in wide.safetensors",
        "lm_head.weight is (7, 4) in a.safetensors and (9, 4) in wide.safetensors",
        "extra is in wide.safetensors and not in a.safetensors",
        "common_only: true",
    ):
        assert part in str(caught.value)


def test_a_type_that_does_not_fit(place):
    write(place / file("d"), tensors(5) | {"steps": torch.ones(())})
    with pytest.raises(BadInput, match=r"steps is int64 in a.safetensors and float32 in d.safetensors"):
        make_plan(linear("a", "d"))


def test_the_common_backbone_alone(place):
    wide = tensors(5, words=9) | {"extra": torch.ones(2)}
    del wide["model.norm.weight"]
    write(place / file("wide"), wide)
    base, other = tensors(0), tensors(1)
    made = recipe(
        "linear", [file("b"), file("wide")], base_model=file("a"), common_only=True, parameters={"weight": 0.5}
    )
    found = merged(made, "out")
    assert set(found) == set(base)
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"):
        assert torch.equal(found[name], base[name])
    name = "model.layers.1.mlp.down_proj.weight"
    torch.testing.assert_close(found[name], (other[name] + wide[name]) / 2)


def test_models_that_share_nothing(place):
    write(place / file("d"), {f"transformer.{name}": value for name, value in tensors(3).items()})
    with pytest.raises(BadInput, match=r"no two models have a tensor of one name \(a.*; d.safetensors: tr"):
        make_plan(linear("a", "d"))
    with pytest.raises(BadInput, match="no tensors of numbers in common"):
        make_plan(recipe("linear", [file("d")], base_model=file("a"), common_only=True, parameters=HALVES))


def test_weights_that_one_file_holds_tied(place):
    """One model's file has its tied head written out, the other's has not."""
    untied, tied = tensors(0), tensors(1)
    tied["lm_head.weight"] = tied["model.embed_tokens.weight"].clone()
    write(place / file("written"), tied)
    del untied["lm_head.weight"]
    write(place / file("left"), untied)
    assert "lm_head.weight" not in make_plan(linear("written", "left")).by_name
    with pytest.raises(BadInput, match=r"lm_head.weight is in a.safetensors and not in left"):
        make_plan(linear("a", "left"))


def tied(seed, suffix="safetensors", **more):
    """A model whose head is its embedding: one storage in a PyTorch file, copies in a safetensors file."""
    content = tensors(seed) | more
    head = content["model.embed_tokens.weight"]
    return content | {"lm_head.weight": head if suffix == "pt" else head.clone()}


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della", "ties"])
def test_tied_weights_are_merged_once_and_stay_tied(place, suffix, method):
    for seed, name in enumerate("xyz"):
        write(place / f"{name}.{suffix}", tied(seed, suffix, **{"lm_head.bias": tensors(seed)["model.norm.weight"]}))
    models, how = [f"x.{suffix}", f"y.{suffix}"], {"density": 0.5, "weight": [0.5, 1]}
    made = recipe(method, models, base_model=f"z.{suffix}", parameters=how)
    plan, found = make_plan(made), merged(made, "out")
    assert plan.by_name["lm_head.weight"].tied_to == "model.embed_tokens.weight"
    assert plan.by_name["lm_head.bias"].tied_to is None  # of vectors, equal ones are not tied
    assert sum(one.tied_to is not None for one in plan.tensors) == 1
    assert torch.equal(found["lm_head.weight"], found["model.embed_tokens.weight"])
    assert not torch.equal(found["lm_head.weight"], tied(2)["lm_head.weight"])


def test_vectors_are_tied_by_one_storage_in_every_file(place):
    for seed, name in enumerate("xyz"):
        content = tensors(seed)
        write(place / f"{name}.pt", content | {"twin": content["model.norm.weight"], "copy": content["scale"].clone()})
    made = recipe("dare_linear", ["x.pt", "y.pt"], base_model="z.pt", parameters={"density": 0.5, "weight": 1})
    assert {one.name: one.tied_to for one in make_plan(made).tensors if one.tied_to} == {"twin": "model.norm.weight"}
    found = merged(made, "out")
    assert torch.equal(found["twin"], found["model.norm.weight"])


def test_ties_over_whole_models_counts_a_tied_tensor_once(place):
    """As in memory, where the two names are seen to be one tensor."""
    made = {name: tied(seed, "pt") for seed, name in enumerate("xyz")}
    for name, content in made.items():
        write(place / f"{name}.pt", content)
    how = {"density": 0.3, "weight": 1, "scope": "model"}
    found = merged(recipe("ties", ["x.pt", "y.pt"], base_model="z.pt", parameters=how), "out")
    models = {f"{name}.pt": made[name] for name in "xy"}
    expected = merge_models(models, base=made["z"], method="ties", density=0.3)
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_a_tie_that_one_model_breaks_is_none(place):
    for seed, name in enumerate("xy"):
        write(place / file(name), tied(seed))
    assert all(one.tied_to is None for one in make_plan(linear("x", "y", "a")).tensors)
    assert any(one.tied_to for one in make_plan(linear("x", "y")).tensors)


def test_tied_weights_of_another_shape_are_listed(place):
    write(place / file("x"), tied(0))
    wide = tensors(1, words=9)
    write(place / file("wide"), wide | {"lm_head.weight": wide["model.embed_tokens.weight"].clone()})
    with pytest.raises(BadInput, match=r"model.embed_tokens.weight is \(7, 4\) in x.safetensors and \(9, 4\) in wide"):
        make_plan(linear("x", "wide"))


def test_a_tied_head_that_only_the_base_has_is_not_kept_beside_a_merged_embedding(place):
    write(place / file("base"), tied(5))
    for seed, name in enumerate("xy"):
        write(place / file(name), {key: value for key, value in tensors(seed).items() if key != "lm_head.weight"})
    for common_only in (True, False):
        made = recipe(
            "linear", [file("x"), file("y")], base_model=file("base"), common_only=common_only, parameters=HALVES
        )
        assert "lm_head.weight" not in make_plan(made).by_name


def test_ties_survive_a_recipe_as_a_model_and_an_adapter(place):
    for seed, name in enumerate("xyz"):
        write(place / file(name), tied(seed))
    write_recipe("xy.yml", merge_method="linear", models=[{"model": file(n)} for n in "xy"], parameters=HALVES)
    factors = {
        f"base_model.model.model.layers.0.mlp.down_proj.lora_{s}.weight": torch.ones(n)
        for s, n in (("A", (1, 8)), ("B", (4, 1)))
    }
    write(place / "lora/adapter_model.safetensors", factors)
    (place / "lora/adapter_config.json").write_text('{"peft_type": "LORA", "lora_alpha": 3}')
    plan = make_plan(recipe("linear", ["xy.yml", f"{file('z')}+lora"], parameters=HALVES))
    assert plan.by_name["lm_head.weight"].tied_to == "model.embed_tokens.weight"


def test_integers_are_copied_and_types_are_kept(place):
    for name, dtype in (("h", torch.float16), ("i", torch.bfloat16)):
        write(place / file(name), tensors(ord(name), dtype=dtype))
    for models, dtype in ((("h", "h"), torch.float16), (("h", "i"), torch.float32), (("i", "a"), torch.float32)):
        plan = make_plan(linear(*models))
        assert {one.dtype for one in plan.tensors} == {dtype, torch.int64}
    assert make_plan(linear("h", "i")).by_name["steps"].models == ((file("h"), "steps"),)  # the first by name
    assert make_plan(linear("i", "h")).by_name["steps"].models == ((file("h"), "steps"),)
    based = recipe("task_arithmetic", [file("h")], base_model=file("i"), parameters={"weight": 1})
    assert {one.dtype for one in make_plan(based).tensors} == {torch.bfloat16, torch.int64}
    assert make_plan(based).by_name["steps"].models == ((file("i"), "steps"),)
    assert {one.dtype for one in make_plan(linear("h", "i", dtype="float64")).tensors} == {torch.float64, torch.int64}
    both = make_plan(linear("h", "i", dtype="float32", out_dtype="float16"))
    assert {one.dtype for one in both.tensors} == {torch.float16, torch.int64}


def test_complex_numbers_pass_where_they_are_the_same(place):
    for name, seed in (("d", 0), ("e", 0), ("f", 1)):
        write(place / file(name), tensors(3) | {"phase": torch.full((2,), seed + 1j)})
    found = merged(linear("d", "e", dtype="float16"), "out")
    assert torch.equal(found["phase"], torch.full((2,), 1j))
    with pytest.raises(BadInput, match="'phase' is complex"):
        merged(linear("d", "f"), "other")
    assert not (place / "other").exists()


def test_the_base_is_no_model_of_its_own(place):
    models = [file("a"), (file("b"), {"weight": 1})]
    plan = make_plan(recipe("task_arithmetic", models, base_model=file("a")))
    assert plan.by_name["lm_head.weight"].models == ((file("b"), "lm_head.weight"),)
    assert plan.by_name["lm_head.weight"].base == (file("a"), "lm_head.weight")


def test_the_base_in_another_spelling_is_the_base(place):
    models, parameters = ["b", "c"], {"filter_wise": False}
    listed = recipe("model_stock", [file("a"), *map(file, models)], base_model=file("a"), parameters=parameters)
    for spelling in (f"./{file('a')}", str(place / file("a"))):
        made = recipe("model_stock", [spelling, *map(file, models)], base_model=file("a"), parameters=parameters)
        assert make_plan(made).by_name["lm_head.weight"] == make_plan(listed).by_name["lm_head.weight"]
    content = {"sources": [{"model": f"./{file('a')}"}, {"model": file("b")}]}
    based = {"merge_method": "task_arithmetic", "base_model": file("a"), "parameters": {"weight": 1}}
    found = make_plan(MergeRecipe.from_dict({**based, "slices": [content]})).by_name["lm_head.weight"]
    assert found.models == ((file("b"), "lm_head.weight"),)
    with pytest.raises(BadInput, match="models: model_stock merges at least 2 models beside the base, and there are 1"):
        make_plan(recipe("model_stock", [f"./{file('a')}", file("b")], base_model=file("a")))


def test_a_model_that_is_listed_twice_has_two_names(place):
    plan = make_plan(recipe("linear", [(file("a"), {"weight": 1}), (file("a"), {"weight": 3}), (file("b"), HALVES)]))
    assert plan.by_name["lm_head.weight"].labels == (file("a"), f"{file('a')}#2", file("b"))


def test_a_model_that_is_listed_twice_is_the_same_in_any_order(place):
    """What is random follows what is said of each, and not which is said first."""
    twice = [(file("a"), {"weight": 0.3}), (file("a"), {"weight": 0.7})]
    how = {"base_model": file("c"), "parameters": {"density": 0.5}}
    one, other = (
        merged(recipe("dare_linear", models, **how), models[0][1]["weight"].hex()) for models in (twice, twice[::-1])
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


# What models are called


def test_checkpoints_of_a_zoo(place):
    (place / "zoo").mkdir()
    for name in "ab":
        (place / file(name)).rename(place / "zoo" / file(name))
    in_memory = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    made = recipe("linear", ["a", "b"], parameters=HALVES)
    for plan in (make_plan(made, zoo="zoo"), make_plan(made.model_copy(update={"zoo": "zoo"}))):
        assert set(plan.sources) == {"a", "b"}
        assert plan.bytes_read > 0
    modules = Zoo.open({"one": in_memory, "two": nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))})
    found = merged(recipe("linear", ["one", "two"], parameters=HALVES), "out", zoo=modules)
    expected = (in_memory[0].weight + modules["two"].module[0].weight) / 2
    torch.testing.assert_close(found["0.weight"], expected.detach())
    assert found["1.num_batches_tracked"].dtype == torch.int64


def test_models_on_the_hub(place, monkeypatch):
    """Ids are downloaded, in a recipe and in a zoo, for a model and for what adapts it."""
    asked = []

    def download(model_id):
        asked.append(model_id)
        return place / "hub" / model_id.replace("/", "--")

    monkeypatch.setattr("taskatlas.merge.references.download_model", download)
    write(place / "hub/org--a/model.safetensors", tensors(0))
    shapes = {"A": (1, 4), "B": (7, 1)}
    factors = {f"base_model.model.lm_head.lora_{side}.weight": torch.ones(shape) for side, shape in shapes.items()}
    write(place / "hub/org--lora/adapter_model.safetensors", factors)
    (place / "hub/org--lora/adapter_config.json").write_text('{"peft_type": "LORA", "lora_alpha": 3}')
    zoo = Zoo.open({"mine": "org/a"})
    made = recipe("linear", ["org/a+org/lora", "mine"], parameters=HALVES)
    found = merged(made, "out", zoo=zoo)["lm_head.weight"]
    torch.testing.assert_close(found, tensors(0)["lm_head.weight"] + 1.5)
    assert sorted(asked) == ["org/a", "org/a", "org/lora"]


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("aa.safetensors", r"models\[0\].model: there is no model 'aa.safetensors'. Did you mean 'a.safetensors'\?"),
        ("gone/x.pt", "there is no model 'gone/x.pt'. Is the path right"),
        ("a.safetensors+b.safetensors", "is no adapter"),
        ("empty", "holds no model"),
    ],
)
def test_a_model_that_is_not_there(place, reference, said):
    (place / "empty").mkdir()
    with pytest.raises(BadInput, match=said):
        make_plan(recipe("linear", [reference], parameters=HALVES))


def test_a_zoo_that_is_not_there(place):
    with pytest.raises(BadInput, match="zoo: there is no zoo at gone"):
        make_plan(linear("a", "b", zoo="gone"))


def test_paths_are_seen_from_the_recipe_too(place, monkeypatch, tmp_path_factory):
    written = write_recipe(place / "r.yml", merge_method="linear", models=[{"model": file("a")}], parameters=HALVES)
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert len(make_plan(written).tensors) == len(tensors(0))


def test_a_recipe_as_a_model(place):
    """The mean of a and b, then of that and c, without the first ever being written."""
    write_recipe("ab.yml", merge_method="linear", models=[{"model": file(n)} for n in "ab"], parameters=HALVES)
    found = merged(recipe("linear", ["ab.yml", file("c")], parameters=HALVES), "out")
    a, b, c = (tensors(seed) for seed in range(3))
    for name, value in a.items():
        if value.is_floating_point():
            torch.testing.assert_close(found[name], ((value + b[name]) / 2 + c[name]) / 2)


def test_recipes_in_a_circle(place):
    for name, other in (("one", "two"), ("two", "three"), ("three", "one"), ("self", "self")):
        models = [{"model": f"{other}.yml"}, {"model": file("a")}]
        write_recipe(f"{name}.yml", merge_method="linear", models=models, parameters=HALVES)
    for name in ("one", "self"):
        with pytest.raises(BadInput, match=r"models\[0\].model: .*is made of itself"):
            make_plan(f"{name}.yml")


# Costs


def test_bytes_and_shards(place):
    plan = make_plan(linear("a", "b"))
    size = sum(value.nbytes for value in tensors(0).values())
    assert plan.bytes_read == 2 * size - tensors(0)["steps"].nbytes  # an integer is read once
    assert plan.bytes_written == plan.shards[0].nbytes == size + len(plan.shards[0].header)
    assert plan.peak_bytes < plan.bytes_read
    small = make_plan(linear("a", "b"), shard_size=150)
    assert sorted(name for shard in small.shards for name in shard.tensors) == [one.name for one in plan.tensors]
    assert small.shards[0].name == f"model-00001-of-{len(small.shards):05d}.safetensors"
    for shard in small.shards:
        assert len(shard.tensors) == 1 or shard.nbytes - len(shard.header) <= 150
    json.dumps(small.document)
    write_recipe("abc.yml", merge_method="linear", models=[{"model": file(name)} for name in "abc"], parameters=HALVES)
    most = max(value.nbytes for value in tensors(0).values())
    written = sum(sorted(value.nbytes for value in tensors(0).values())[-3:])
    assert make_plan(recipe("linear", ["abc.yml"], parameters=HALVES)).peak_bytes == (3 + 1 + 1) * most + written
    assert repr(plan).startswith("MergePlan(linear, 14 tensors in 1 file")


def test_the_digest_is_of_all_that_decides_the_result(place):
    def digest(made, **options):
        return make_plan(made, **options).digest

    first = digest(linear("a", "b"))
    assert first == digest(linear("a", "b"))
    others = [digest(linear("b", "a")), digest(linear("a", "b"), seed=1), digest(linear("a", "b"), shard_size=150)]
    os.utime(file("a"), ns=(1, 1))
    assert len({first, *others, digest(linear("a", "b"))}) == 5


@pytest.mark.parametrize(("text", "size"), [("5GB", 5 * 10**9), ("1.5 MiB", 3 * 2**19), ("200", 200), ("2kb", 2000)])
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-5GB", "5 gallons", "1e9", "5PB"])
def test_no_sizes(text):
    with pytest.raises(BadInput, match="is no size"):
        parse_size(text)


def test_files_that_hold_nothing(place):
    with pytest.raises(BadInput, match="hold nothing"):
        make_plan(linear("a"), shard_size=0)

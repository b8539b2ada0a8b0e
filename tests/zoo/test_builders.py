"""Local builders: found, called and loaded strictly, or refused by name."""

import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import nn

from taskatlas.errors import BadInput
from taskatlas.zoo.builders import build, builder_digest, builder_name, code_of_classes, load_weights, resolve_builder


def at_the_top(width=2):
    return nn.Linear(width, width)


def test_a_file_a_module_and_a_function_name_the_same(builder, monkeypatch):
    from_file, _ = build(f"{builder}:mlp", {"hidden": 5}, None)
    assert from_file[0].out_features == 5
    monkeypatch.chdir(builder.removesuffix("/nets.py"))
    from_module, _ = build("nets:mlp", {"hidden": 5}, None)
    assert str(from_module) == str(from_file)
    from_function, _ = build(resolve_builder("nets:mlp"), {"hidden": 5}, None)
    assert str(from_function) == str(from_file)
    sys.modules.pop("nets")


def test_weights_are_handed_to_who_asks_for_them(builder):
    module, _ = build(f"{builder}:sized", {}, {"0.weight": torch.zeros(7, 3)})
    assert module[0].out_features == 7


def test_a_builder_may_say_how_inputs_are_prepared(builder):
    _, prepare = build(f"{builder}:with_preparation", {}, None)
    assert prepare([1]) == [1]


def test_a_builder_may_take_anything(builder):
    module, _ = build(f"{builder}:open_ended", {"hidden": 6}, None)
    assert module[0].out_features == 6


def test_a_class_is_a_builder():
    module, prepare = build(nn.Linear, {"in_features": 2, "out_features": 3}, None)
    assert (module.out_features, prepare) == (3, None)


@pytest.mark.parametrize("function", ["mlp", "fails", "no_such"])
def test_sys_path_is_left_as_it_was(builder, function):
    before = list(sys.path)
    with suppress(BadInput):
        build(f"{builder}:{function}", {}, None)
    assert sys.path == before


def test_a_file_imports_its_neighbours_also_while_it_builds(tmp_path):
    (tmp_path / "neighbour_of_nets.py").write_text("WIDTH = 9\n")
    (tmp_path / "later_neighbour_of_nets.py").write_text("DEPTH = 2\n")
    (tmp_path / "file.py").write_text(
        "from torch import nn\nimport neighbour_of_nets\n"
        "def f():\n    import later_neighbour_of_nets\n    return nn.Linear(neighbour_of_nets.WIDTH, 1)\n"
    )
    before = list(sys.path)
    module, _ = build(f"{tmp_path}/file.py:f", {}, None)
    assert module.in_features == 9
    assert sys.path == before


def test_a_changed_file_is_imported_again(tmp_path):
    file = tmp_path / "net.py"
    file.write_text("from torch import nn\ndef f(): return nn.Linear(1, 1)\n")
    first, digest = build(f"{file}:f", {}, None)[0], builder_digest(f"{file}:f")
    file.write_text("from torch import nn\ndef f(): return nn.Linear(1, 12)\n")
    assert build(f"{file}:f", {}, None)[0].out_features == 12 != first.out_features
    assert builder_digest(f"{file}:f") != digest


def test_a_builders_digest_is_of_its_name_and_file_not_of_its_place(builder, tmp_path):
    copied = tmp_path / "elsewhere.py"
    copied.write_bytes(Path(builder).read_bytes())
    assert builder_digest(f"{copied}:mlp") == builder_digest(f"{builder}:mlp")
    assert builder_digest(f"{copied}:mlp") != builder_digest(f"{builder}:sized")


def test_a_builder_without_a_source():
    function = eval("lambda: None")
    assert builder_digest(function) == builder_digest(eval("lambda: None")) != builder_digest(eval("lambda: 1"))
    with pytest.raises(BadInput, match="no source"):
        builder_digest(len)
    with pytest.raises(BadInput, match="cannot be named"):
        builder_name(function)


def test_names_for_another_process(builder):
    assert builder_name(f"{builder}:mlp") == f"{builder}:mlp"
    assert builder_name(nn.Linear) == "torch.nn.modules.linear:Linear"
    name = builder_name(at_the_top)
    assert resolve_builder(name).__code__ == at_the_top.__code__
    with pytest.raises(BadInput, match="cannot be named"):
        builder_name(lambda: nn.Linear(1, 1))


# Attacks


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("nothing", ["not a builder", "file.py:function"]),
        ("", ["not a builder"]),
        (":f", ["not a builder"]),
        ("nets:", ["not a builder"]),
        ("FILE:mpl", ["does not exist", "Did you mean 'mlp'?"]),
        ("FILE:mlp.inner", ["does not exist"]),
        ("no_such_file.py:mlp", ["no file no_such_file.py", "path right?"]),
        ("no_such_module_at_all:mlp", ["cannot be imported", "no_such_module_at_all"]),
        ("FILE:NOT_A_FUNCTION", ["cannot be called: it is of type int"]),
        ("FILE:returns_none", ["returned a NoneType", "(module, prepare)"]),
        ("FILE:fails", ["failed (KeyError: 'layer7')", "layer7"]),
        ("FILE:needs", ["needs the argument 'hidden'"]),
    ],
)
def test_a_builder_that_does_not_work(builder, name, parts):
    with pytest.raises(BadInput) as caught:
        build(name.replace("FILE", builder), {}, None)
    for part in parts:
        assert part in str(caught.value)


def test_an_unknown_argument(builder):
    with pytest.raises(BadInput, match=r"nets\.py:mlp takes no argument 'hiden'\. Did you mean 'hidden'\?"):
        build(f"{builder}:mlp", {"hiden": 3}, None)


def test_a_builder_that_asks_for_weights_where_there_are_none(builder):
    with pytest.raises(BadInput, match="needs the argument 'weights'"):
        build(f"{builder}:sized", {}, None)


@pytest.mark.parametrize("content", ["def f(:", "import no_such_package_here", "raise SystemExit(3)", "1/0", "\x00"])
def test_a_file_that_cannot_be_imported(tmp_path, content):
    (tmp_path / "bad.py").write_text(content)
    before, modules = list(sys.path), set(sys.modules)
    with pytest.raises(BadInput, match=r"bad\.py cannot be imported"):
        resolve_builder(f"{tmp_path}/bad.py:f")
    assert sys.path == before
    assert not [name for name in set(sys.modules) - modules if name.startswith("taskatlas_builder")]


# Strict loading


def test_loading_is_exact():
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    load_weights(target, source.state_dict(), "net.pt")
    assert torch.equal(source.weight, target.weight)


def test_all_that_does_not_fit_is_named_and_long_lists_are_short():
    module = nn.Sequential(*(nn.Linear(2, 2) for _ in range(6)))
    tensors = {f"extra{i}": torch.ones(1) for i in range(8)} | {"5.weight": torch.ones(3, 2), "5.bias": torch.ones(2)}
    before = module[5].bias.clone()
    with pytest.raises(BadInput) as caught:
        load_weights(module, tensors, "net.pt, opened with f,")
    message = str(caught.value)
    assert (
        "net.pt, opened with f, does not fit: 10 missing (0.weight, 0.bias, 1.weight, 1.bias, 2.weight and 5" in message
    )
    assert "8 unexpected (extra0, extra1, extra2, extra3, extra4 and 3 more)" in message
    assert "1 of another shape (5.weight is (3, 2) in the weights and (2, 2) in the module)" in message
    assert torch.equal(module[5].bias, before)


def test_only_missing_and_only_unexpected():
    with pytest.raises(BadInput, match=r"does not fit: 1 missing \(bias\)\. Check"):
        load_weights(nn.Linear(1, 1), {"weight": torch.ones(1, 1)}, "x")
    with pytest.raises(BadInput, match=r"does not fit: 1 unexpected \(bias\)\. Check"):
        load_weights(nn.Linear(1, 1, bias=False), {"weight": torch.ones(1, 1), "bias": torch.ones(1)}, "x")


def test_tied_weights_may_be_there_once():
    module = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    module[1].weight = module[0].weight
    load_weights(module, {"0.weight": torch.full((2, 2), 3.0)}, "x")
    assert module[1].weight[0, 0] == 3
    with pytest.raises(BadInput, match=r"1 missing \(1\.weight\)"):
        load_weights(nn.Sequential(nn.Linear(2, 2, False), nn.Linear(2, 2, False)), {"0.weight": torch.ones(2, 2)}, "x")


def test_a_wrapped_module_takes_plain_names():
    module = nn.DataParallel(nn.Linear(1, 1))
    load_weights(module, {"weight": torch.full((1, 1), 5.0), "bias": torch.ones(1)}, "x")
    assert module.module.weight.item() == 5


def test_batch_norm_of_old_files_has_no_count():
    module = nn.BatchNorm1d(2)
    tensors = {name: value for name, value in module.state_dict().items() if name != "num_batches_tracked"}
    load_weights(module, tensors, "x")


def test_a_lazy_layer_takes_its_shape_from_the_weights():
    module = nn.LazyLinear(2)
    load_weights(module, {"weight": torch.ones(2, 5), "bias": torch.ones(2)}, "x")
    assert module.weight.shape == (2, 5)


def test_the_code_of_classes_tells_networks_apart():
    class One(nn.Module):
        def forward(self, x):
            return x

    first = code_of_classes(One())

    class One(nn.Module):
        def forward(self, x):
            return -x

    assert code_of_classes(One()) != first
    assert code_of_classes(nn.Linear(1, 1)) == code_of_classes(nn.ReLU())

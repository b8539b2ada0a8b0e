"""Recipes with data: what a folder holds afterwards, that it is what the functions give, and what is refused."""

import json
import warnings

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tests.merge.material import snapshot
from torch import nn

from taskatlas.cli import main
from taskatlas.errors import BadInput
from taskatlas.merge.adamerging import adamerge
from taskatlas.merge.data_adaptive import DataAdaptive
from taskatlas.merge.data_plan import plan_with_data
from taskatlas.merge.data_recipe import DataRecipe
from taskatlas.merge.evaluation import evaluate
from taskatlas.merge.extractor import Extractor
from taskatlas.merge.fisher_information import diagonal_fisher, fisher_merge
from taskatlas.merge.low_rank import LowRankVectors
from taskatlas.merge.placement import Placement
from taskatlas.merge.recipes import merge_recipe
from taskatlas.merge.regression_mean import layer_inputs, regmean
from taskatlas.merge.unlabelled import Unlabelled
from taskatlas.probe import Probe
from taskatlas.zoo import Zoo

NETS = """
import torch
from torch import nn

def mlp(weights):
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, len(weights["2.bias"])))

def shifted(weights):
    def prepare(samples):
        return torch.tensor([[float(value) + 1 for value in sample] for sample in samples])
    return mlp(weights), prepare
"""
CLASSES = {"a": 3, "b": 2}


def network(seed, classes=3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, classes))


@pytest.fixture
def folder(tmp_path):
    """A base, two experts with heads of their own sizes, samples of both tasks, and a builder."""
    (tmp_path / "nets.py").write_text(NETS)
    save_file(network(0).state_dict(), tmp_path / "base.safetensors")
    for seed, (task, classes) in enumerate(CLASSES.items(), 1):
        save_file(network(seed, classes).state_dict(), tmp_path / f"{task}.safetensors")
        x = np.random.default_rng(seed).normal(2.0 * seed, 1, size=(40, 4)).astype(np.float32)
        np.savez(tmp_path / f"{task}.npz", x=x, y=np.arange(40) % classes)
    return tmp_path


def recipe(folder, method, **fields):
    """A recipe's file; fields that are None are left out."""
    content = {
        "merge_method": method,
        "base_model": "base.safetensors" if method in ("adamerging", "data_adaptive") else None,
        "models": [{"model": f"{task}.safetensors", "data": f"{task}.npz"} for task in CLASSES],
        "builder": "nets.py:mlp",
        "extractor": "base.safetensors" if method == "data_adaptive" else None,
        "parameters": {"steps": 6, "learning_rate": 0.01} if method in ("adamerging", "data_adaptive") else None,
    } | fields
    file = folder / "recipe.yml"
    file.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    return file


def opened(folder):
    """Base, experts and samples as Python has them."""
    base, experts = network(0), {task: network(1, classes) for task, classes in CLASSES.items()}
    base.load_state_dict(load_file(folder / "base.safetensors"))
    for task, expert in experts.items():
        expert.load_state_dict(load_file(folder / f"{task}.safetensors"))
    return base, experts, {task: Probe.open(folder / f"{task}.npz") for task in CLASSES}


def same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=0)


def test_adamerging_is_a_folder_for_each_task_that_evaluate_takes_as_one_model(folder):
    merge_recipe(recipe(folder, "adamerging"), folder / "out", seed=3)
    base, experts, data = opened(folder)
    streams = {task: Unlabelled(probe, batch_size=16) for task, probe in data.items()}
    expected = adamerge(base, experts, streams, steps=6, learning_rate=0.01, seed=3)
    for task, classes in CLASSES.items():
        found = load_file(folder / "out" / task / "model.safetensors")
        same(found, {**expected.state, **expected.own[task]})
        assert len(found["2.bias"]) == classes
    data = {task: Probe.open(folder / f"{task}.npz") for task in CLASSES}
    found = evaluate({"out": dict(Zoo.open(folder / "out"))}, data, individual=experts)
    assert set(found.models()) == {"out", "individual"}


@pytest.mark.parametrize("level", ["task", "layer"])
def test_data_adaptive_holds_the_fusion_and_a_model_for_each_task(folder, level):
    parameters = {"level": level, "steps": 6, "learning_rate": 0.01, "standardise": True}
    file = recipe(folder, "data_adaptive", parameters=parameters)
    merge_recipe(file, folder / "out", seed=3)
    base, experts, data = opened(folder)
    streams = {task: Unlabelled(probe, batch_size=16) for task, probe in data.items()}
    expected = DataAdaptive(base, experts, Extractor.of(base), seed=3, **parameters).fit(streams)
    for task in CLASSES:
        whole = load_file(folder / "out" / task / "model.safetensors")
        same(whole, expected.merged_for(streams[task], task))
    pictures = {"tasks.png", "learning.png"} | ({"layers.png"} if level == "layer" else set())
    assert {file.name for file in (folder / "out").glob("*.png")} == pictures
    per_sample = Zoo.open(folder / "out" / "per-sample.yaml")
    for task, checkpoint in per_sample.items():
        network = checkpoint.open().module
        x = torch.from_numpy(data[task].inputs)
        found = torch.log_softmax(network(x), -1).detach().numpy()
        np.testing.assert_allclose(found, expected.predict_log_proba(data[task], task), atol=1e-6)
    found = evaluate({"fused": dict(per_sample), "merged": dict(Zoo.open(folder / "out"))}, data)
    assert found.accuracy("fused", "a").value == pytest.approx(expected.score(data["a"], task="a"))


def test_a_fusion_whose_network_and_extractor_prepare_samples(folder):
    merge_recipe(recipe(folder, "data_adaptive", builder="nets.py:shifted"), folder / "out")
    opened_again = Zoo.open(folder / "out" / "per-sample.yaml")["b"].open()
    samples = list(Probe.open(folder / "b.npz").inputs[:5])
    logits = opened_again.module(**opened_again.prepare(samples))
    x = torch.from_numpy(np.stack(samples)) + 1
    fused = opened_again.module.fused
    torch.testing.assert_close(logits, fused.answer(x, fused.extractor(x), "b"))
    (folder / "out" / "fusion.safetensors").write_bytes(b"other")
    with pytest.raises(BadInput, match="not the fusion that it was"):
        Zoo.open(folder / "out" / "per-sample.yaml")["b"].open()


def test_engine_and_devices_of_a_fusion(folder, monkeypatch):
    made, fit = [], DataAdaptive.fit
    monkeypatch.setattr(DataAdaptive, "fit", lambda self, X: made.append(self) or fit(self, X))
    placement = {"vectors": "cpu", "networks": ["cpu", "cpu:0"], "extractor": "cpu:0"}
    parameters = {"steps": 6, "learning_rate": 0.01, "engine": "merging"}
    merge_recipe(recipe(folder, "data_adaptive", placement=placement, parameters=parameters), folder / "out")
    assert made[0].placement == Placement("cpu", "cpu", ("cpu", "cpu:0"))
    assert (made[0].engine, made[0].extractor.device) == ("merging", "cpu:0")
    merge_recipe(recipe(folder, "data_adaptive", parameters=parameters), folder / "plain")
    same(load_file(folder / "out" / "b" / "model.safetensors"), load_file(folder / "plain" / "b" / "model.safetensors"))
    x = torch.from_numpy(Probe.open(folder / "a.npz").inputs[:4])
    here = Zoo.open(folder / "out" / "per-sample.yaml")["a"].open().module
    assert here.fused.extractor.device == "cpu:0"
    logits = here(x)
    assert here.fused.engine == "merging"
    file = folder / "out" / "recipe.yml"
    file.write_text(file.read_text().replace("cpu:0", "cuda:77"))  # as learned on another machine
    elsewhere = Zoo.open(folder / "out" / "per-sample.yaml")["a"].open().module
    assert elsewhere.fused.extractor.device == "cpu"
    torch.testing.assert_close(elsewhere(x), logits)


def test_the_folder_of_a_fusion_can_be_moved(folder):
    merge_recipe(recipe(folder, "data_adaptive"), folder / "out")
    assert str(folder) not in (folder / "out" / "per-sample.yaml").read_text()
    x = torch.from_numpy(Probe.open(folder / "a.npz").inputs[:4])
    before = Zoo.open(folder / "out" / "per-sample.yaml")["a"].open().module(x)
    (folder / "elsewhere").mkdir()
    (folder / "out").rename(folder / "elsewhere" / "moved")
    after = Zoo.open(folder / "elsewhere" / "moved" / "per-sample.yaml")["a"].open().module(x)
    assert torch.equal(before, after)


@pytest.mark.parametrize("method", ["adamerging", "data_adaptive"])
def test_what_a_reader_has_to_know_is_in_line_json_receipt_and_table(folder, capsys, monkeypatch, method):
    monkeypatch.setenv("COLUMNS", "200")
    base = load_file(folder / "base.safetensors")
    expert = load_file(folder / "b.safetensors")
    save_file({**expert, "0.bias": base["0.bias"]}, folder / "b.safetensors")
    parameters = {"level": "layer", "steps": 3, "transductive": True}
    models = [{"model": f"{task}.safetensors", "data": f"{task}.npz"} for task in CLASSES]
    models += [{"model": "base.safetensors", "data": "a.npz", "task": "same"}]
    file = recipe(folder, method, parameters=parameters, models=models)

    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        assert not stop.value.code
        return capsys.readouterr().out

    said = " ".join(run("merge", file, folder / "out").split())
    assert "learned on transductive samples; 1 of 4 coefficients dead; equal to the base: same" in said
    learned = {"samples": "transductive", "coefficients": 4, "dead": 1, "dropped": ["same"], "collapsed": []}
    assert json.loads(run("merge", file, folder / "again", "--format", "json"))["adaptation"] == learned
    receipt = json.loads((folder / "out" / "receipt.json").read_text())["merge"]
    assert receipt["settings"]["learned"] == learned
    asked = ("evaluate", f"fused={folder / 'out'}", "--on", f"a={folder / 'a.npz'}", f"b={folder / 'b.npz'}")
    assert "transductive" in run(*asked)
    assert json.loads(run(*asked, "--format", "json"))["models"][0]["learned_on"] == "transductive"


def test_collapse_is_in_the_result_and_warns_of_nothing_else(folder):
    for task, shift in (("a", 9.0), ("b", 8.0)):
        flat = {name: torch.zeros_like(value) for name, value in network(0).state_dict().items()}
        flat["0.weight"], flat["2.weight"] = torch.eye(5, 4), torch.eye(3, 5)
        save_file(flat, folder / "base.safetensors")
        save_file({**flat, "2.bias": torch.tensor([shift, 0.0, 0.0])}, folder / f"{task}.safetensors")
    parameters = {"steps": 60, "learning_rate": 2e-2, "initial": 0.05}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = merge_recipe(recipe(folder, "data_adaptive", parameters=parameters), folder / "out")
        through = merge_recipe(
            recipe(folder, "data_adaptive", parameters={**parameters, "collapse": None}), folder / "through"
        )
    assert found.adaptation.collapsed == ("a", "b")
    assert "predictions collapsed: a, b" in repr(found)
    assert through.adaptation.collapsed == ()


def test_lora_adapters_stay_low_rank(folder):
    for seed, name in enumerate(("x", "y")):
        place = folder / name
        place.mkdir()
        draw = torch.Generator().manual_seed(seed)
        factors = {"A": torch.randn(2, 4, generator=draw), "B": torch.randn(5, 2, generator=draw)}
        save_file({f"base_model.model.0.lora_{key}.weight": value for key, value in factors.items()},
                  place / "adapter_model.safetensors")  # fmt: skip
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["0"]}
        (place / "adapter_config.json").write_text(json.dumps(config))
    models = [{"model": name, "data": "a.npz", "task": name} for name in ("x", "y")]
    merge_recipe(recipe(folder, "data_adaptive", models=models), folder / "out")
    base, _, data = opened(folder)
    network = Zoo.open(folder / "out" / "per-sample.yaml")["x"].open().module
    assert isinstance(network.fused.family.vectors, LowRankVectors)
    folders = {name: folder / name for name in ("x", "y")}
    streams = {name: Unlabelled(data["a"], batch_size=16) for name in folders}
    expected = DataAdaptive(base, folders, Extractor.of(base), steps=6, learning_rate=0.01).fit(streams)
    same(load_file(folder / "out" / "y" / "model.safetensors"), expected.merged_for(streams["y"], "y"))
    with pytest.raises(BadInput, match="is a LoRA adapter"):
        merge_recipe(recipe(folder, "adamerging", models=models), folder / "other")


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_methods_in_closed_form(folder, method):
    merge_recipe(recipe(folder, method, parameters={"samples": 40}), folder / "out")
    _, experts, data = opened(folder)
    batches = {task: Unlabelled(probe, shuffle=False) for task, probe in data.items()}
    if method == "fisher":
        seen = {task: diagonal_fisher(expert, batches[task]) for task, expert in experts.items()}
        expected = fisher_merge(experts, seen, own=["2.*"])
    else:
        seen = {task: layer_inputs(expert, batches[task]) for task, expert in experts.items()}
        expected = regmean(experts, seen, own=["2.*"])
    for task, expert in experts.items():
        head = {name: value for name, value in expert.state_dict().items() if name.startswith("2.")}
        found = load_file(folder / "out" / task / "model.safetensors")
        assert found.keys() == {**expected, **head}.keys()
        for name, value in {**expected, **head}.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["fisher", "regmean"])
@pytest.mark.parametrize("count", [40, 33])
def test_batch_norm_sees_the_merged_network(folder, method, count):
    """Statistics are those of the merged network's own activations, also where a batch of one sample would be left."""
    (folder / "bn.py").write_text(
        "from torch import nn\n\n"
        "def net(weights):\n    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))\n"
    )
    for seed, task in enumerate(CLASSES):
        torch.manual_seed(seed)
        own = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
        save_file(own.state_dict(), folder / f"{task}.safetensors")
    merge_recipe(recipe(folder, method, builder="bn.py:net", parameters={"samples": count}), folder / "out", seed=2)
    found = load_file(folder / "out" / "model.safetensors")
    rows = {
        task: np.sort(np.random.default_rng(2).permutation(40)[:count])[: 32 if count == 33 else 40] for task in CLASSES
    }
    seen = torch.cat([torch.from_numpy(Probe.open(folder / f"{task}.npz").inputs[rows[task]]) for task in CLASSES])
    hidden = seen @ found["0.weight"].T + found["0.bias"]
    torch.testing.assert_close(found["1.running_mean"], hidden.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["1.running_var"], hidden.var(0), rtol=1e-4, atol=1e-5)


def test_experts_without_heads_of_their_own_become_one_model(folder):
    save_file(network(2, 3).state_dict(), folder / "b.safetensors")
    result = merge_recipe(recipe(folder, "adamerging"), folder / "out")
    files = {"model.safetensors", "recipe.yml", "README.md", "receipt.json"}
    assert {path.name for path in (folder / "out").iterdir()} == files
    card = (folder / "out" / "README.md").read_text()
    for said in ("# A merged model", "`adamerging`", "base.safetensors` (the base)", "b.safetensors`", "Tasks: a, b"):
        assert said in card
    assert result.tensors == 4
    assert result.bytes_written == (folder / "out" / "model.safetensors").stat().st_size


def test_the_same_recipe_gives_the_same_bytes_in_another_order(folder):
    merge_recipe(recipe(folder, "data_adaptive"), folder / "one")
    models = [{"model": f"{task}.safetensors", "data": f"{task}.npz"} for task in reversed(CLASSES)]
    merge_recipe(recipe(folder, "data_adaptive", models=models), folder / "two")
    for file in ("fusion.safetensors", "a/model.safetensors", "b/model.safetensors"):
        assert (folder / "one" / file).read_bytes() == (folder / "two" / file).read_bytes()


def test_tasks_models_of_a_zoo_and_rows_of_one_split(folder):
    (folder / "zoo.yaml").write_text(
        "builder: nets.py:mlp\ncheckpoints: {first: {weights: a.safetensors}, second: {weights: b.safetensors}}\n"
    )
    models = [{"model": "first", "data": "a.npz"}, {"model": "second", "data": "b.npz", "task": "other"}]
    found = DataRecipe.load(recipe(folder, "regmean", models=models, zoo="zoo.yaml", builder=None))
    assert found.tasks == ("first", "other")
    assert [one.weights.name for one in found.experts().values()] == ["a.safetensors", "b.safetensors"]
    assert DataRecipe.load(_written(folder, found.text)) == found
    (folder / "t.csv").write_text("split,label,text\ntrain,0,a\ntest,1,b\n")
    one = [{"model": "first", "data": "t.csv"}]
    found = DataRecipe.load(recipe(folder, "regmean", models=one, zoo="zoo.yaml", split="test"))
    assert list(found.data()["first"].inputs) == ["b"]


def _written(folder, text):
    (folder / "again.yml").write_text(text)
    return folder / "again.yml"


def test_the_commands_merge_compare_and_check(folder, capsys):
    file = recipe(folder, "data_adaptive")

    def run(*arguments, command=("merge", file)):
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in (*command, *arguments)])
        return stop.value.code or 0, capsys.readouterr()

    code, said = run("--dry-run", "--format", "json")
    assert code == 0
    planned = json.loads(said.out)
    assert planned["tasks"] == ["a", "b"]
    assert {"tensors", "bytes_read", "bytes_written", "peak_bytes"} <= set(planned)
    code, said = run(folder / "out", "--format", "json")
    assert code == 0, said.err
    assert "fusion.safetensors" in json.loads(said.out)["files"]
    on = [f"{task}={folder / f'{task}.npz'}" for task in CLASSES]
    both = ("evaluate", folder / "out", folder / "out" / "per-sample.yaml")
    code, said = run("--on", *on, "--format", "json", command=both)
    assert code == 0, said.err
    rows = {row["model"]: row["tasks"] for row in json.loads(said.out)["models"]}
    assert set(rows) == {"out", "per-sample"}
    fused = Zoo.open(folder / "out" / "per-sample.yaml")["a"].open().module.fused
    data = Probe.open(folder / "a.npz")
    assert rows["per-sample"]["a"]["accuracy"] == pytest.approx(fused.score(data, task="a"))
    assert run(command=("check", folder / "out"))[0] == 0
    code, said = run("--dry-run")
    assert "data_adaptive" in said.out
    assert "40" in said.out
    code, said = run(folder / "other")
    assert "data_adaptive of a, b" in said.out
    code, said = run(folder / "out")
    assert code == 2
    assert "not an empty folder" in said.err


@pytest.mark.parametrize("method", ["adamerging", "data_adaptive", "fisher", "regmean"])
def test_a_plan_says_what_the_merge_does(folder, method):
    """Of networks of 4 · 5 + 5 shared numbers, with heads of their own of 18 and 12."""
    made = DataRecipe.load(recipe(folder, method))
    plan, result = plan_with_data(made), merge_recipe(made, folder / "out")
    weights = {"base": 43, "a": 43, "b": 37, "extractor": 43}
    read = sum(weights[name] for name in ("a", "b", *made.others()))
    assert (plan.tensors, plan.bytes_read) == (result.tensors, 4 * read) == (8, 4 * read)
    assert plan.bytes_written == 4 * (43 + 37) < result.bytes_written
    more = {"fisher": 2 * 25, "regmean": 2 * 4**2}.get(method, (2 + 3) * 25)
    assert plan.peak_bytes == 4 * (read + 25 + more)


def test_a_plan_looks_at_the_models(folder):
    (folder / "b.safetensors").write_bytes(b"cut")
    with pytest.raises(BadInput, match=r"the model of b: .*b\.safetensors"):
        plan_with_data(DataRecipe.load(recipe(folder, "fisher")))


MODELS = [{"model": "a.safetensors", "data": "a.npz"}]


@pytest.mark.parametrize(
    ("method", "fields", "message"),
    [
        ("adamerging", {"base_model": None}, "base_model: adamerging needs one"),
        ("regmean", {"base_model": "base.safetensors"}, "base_model: regmean takes none"),
        ("data_adaptive", {"extractor": None}, "extractor: data_adaptive needs one"),
        ("fisher", {"extractor": "base.safetensors"}, "extractor: fisher takes none"),
        ("fisher", {"models": [*MODELS, *MODELS]}, "two tasks are called 'a'"),
        ("fisher", {"models": [{"model": "a.safetensors"}]}, r"models\[0\].data"),
        ("fisher", {"models": [{"model": "a.safetensors", "date": "a.npz"}]}, "did you mean 'data'"),
        ("fisher", {"extracter": "x"}, "did you mean 'extractor'"),
        ("adamerging", {"parameters": {"step": 5}}, "parameters.step: adamerging has no such parameter; did you"),
        ("adamerging", {"parameters": {"steps": 0.5}}, "parameters.steps: 0.5 is not a whole number"),
        ("adamerging", {"parameters": {"steps": 0}}, "parameters.steps: 0 is out of bounds. It has to be 1 or more"),
        ("adamerging", {"parameters": {"learning_rate": "fast"}}, "'fast' is not a number"),
        ("adamerging", {"parameters": {"level": "tensor"}}, "'tensor' is out of bounds. It has to be task or layer"),
        (
            "data_adaptive",
            {"parameters": {"bound": "tight"}},
            "'tight' is out of bounds. It has to be none or clamp or softmax",
        ),
        (
            "adamerging",
            {"parameters": {"initial": float("nan")}},
            "parameters.initial: nan is out of bounds. It has to be",
        ),
        (
            "adamerging",
            {"parameters": {"density": 0.0}},
            "parameters.density: 0.0 is out of bounds. It has to be above 0",
        ),
        ("adamerging", {"parameters": {"learning_rate": 0}}, "parameters.learning_rate: 0 is out of bounds"),
        (
            "regmean",
            {"parameters": {"off_diagonal": 1.5}},
            "parameters.off_diagonal: 1.5 is out of bounds. It has to be",
        ),
        ("fisher", {"models": []}, "models: "),
        ("fisher", {"models": [{"model": "nowhere.pt", "data": "a.npz"}]}, r"models\[0\].model"),
        ("fisher", {"models": [{"model": "a.safetensors", "data": "nowhere.npz"}]}, r"models\[0\].data"),
        ("fisher", {"builder": None}, "no builder"),
        ("fisher", {"models": [{**MODELS[0], "task": "recipe.yml"}]}, "called 'recipe.yml', like a file of the result"),
        ("data_adaptive", {"parameters": {"initial": float("nan")}}, "initial: nan is out of bounds"),
        ("data_adaptive", {"parameters": {"steps": 1, "diversity": float("nan")}}, "diversity: nan is out of bounds"),
        ("data_adaptive", {"parameters": {"learning_rate": 1e30}}, "learning_rate: 1e[+]30 is out of bounds"),
        ("data_adaptive", {"parameters": {"bound": None}}, "None is not a word"),
        (
            "data_adaptive",
            {"parameters": {"engine": "fast"}},
            "parameters.engine: 'fast' is out of bounds. It has to be auto or mixing or vmap or merging",
        ),
        ("adamerging", {"parameters": {"engine": "auto"}}, "parameters.engine: adamerging has no such parameter"),
        ("regmean", {"placement": {"vectors": "cpu"}}, "placement: regmean takes none"),
        ("data_adaptive", {"placement": {"vector": "cpu"}}, "placement.vector: unknown key; did you mean 'vectors'"),
        ("data_adaptive", {"placement": {"networks": "cpu"}}, "placement.networks: "),
        ("data_adaptive", {"placement": {"extractor": "gpu"}}, "placement.extractor: 'gpu' is no device. Write cpu"),
        (
            "data_adaptive",
            {"placement": {"networks": ["cpu", "cuda:77"]}},
            r"placement.networks\[1\]: there is no device 'cuda:77' here",
        ),
    ],
)
def test_what_is_refused_leaves_nothing(folder, method, fields, message):
    before = snapshot(folder, without=("recipe.yml",))
    with pytest.raises(BadInput, match=message):
        merge_recipe(recipe(folder, method, **fields), folder / "out")
    assert snapshot(folder, without=("recipe.yml",)) == before


def test_a_zoo_in_memory_cannot_be_opened_again(folder):
    with pytest.raises(BadInput, match="Name the zoo by its path"):
        merge_recipe(recipe(folder, "fisher"), folder / "out", zoo=Zoo.open({"a": network(0)}))

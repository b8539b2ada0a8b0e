"""Hypernetworks that come from files or go to other families, what a fusion leaves on disk, and its pictures."""

import json
import pickle
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.func import functional_call

from taskatlas.errors import BadInput
from taskatlas.merge.data_adaptive import DataAdaptive
from taskatlas.merge.depth_map import depth_map
from taskatlas.merge.extractor import Extractor
from taskatlas.merge.fusion_files import SavedFusion
from taskatlas.merge.hypernetwork import Hypernetwork, published_hypernetwork, read_hypernetwork
from taskatlas.merge.task_vectors import TaskVectors
from taskatlas.store import check_receipts
from taskatlas.zoo import read_weights

matplotlib.use("Agg")


class Deep(nn.Module):
    """A stem, blocks, and a head that is each task's own."""

    def __init__(self, seed, blocks=2, width=6, classes=3):
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Linear(4, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.classifier = nn.Linear(width, classes)

    def forward(self, x):
        x = torch.tanh(self.stem(x))
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        return self.classifier(x)


def batch(seed, n=8, shift=0.0):
    return torch.from_numpy(np.random.default_rng(seed).normal(shift, 1, size=(n, 4))).float()


def extractor():
    torch.manual_seed(99)
    return Extractor.of(nn.Sequential(nn.Linear(4, 7), nn.Tanh()), tap="")


def family(blocks=2, width=6):
    return Deep(0, blocks, width), {task: Deep(i + 1, blocks, width) for i, task in enumerate("ab")}


def data():
    return {task: [batch((i, j), shift=2.0 * i) for j in range(3)] for i, task in enumerate("ab")}


def fused(level="layer", **options):
    options = {"steps": 12, "learning_rate": 5e-3, "own": ["classifier.*"], **options}
    return DataAdaptive(*family(), extractor(), level=level, **options).fit(data())


# Published hypernetworks


@pytest.mark.parametrize("form", ["module.pt", "tensors.pth", "tensors.safetensors"])
def test_published_hypernetworks_are_read_in_every_form(tmp_path, form):
    torch.manual_seed(0)
    published = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 6))
    path = tmp_path / form
    if form == "module.pt":
        torch.save(published, path)
    elif form.endswith(".pth"):
        torch.save(published.state_dict(), path)
    else:
        save_file(published.state_dict(), path)
    x = torch.randn(4, 5)
    found = read_hypernetwork(path, experts=2)
    torch.testing.assert_close(found(x), published(x).view(4, 2, 3))  # the outputs of one expert after the other


def test_a_published_hypernetwork_steers_experts_by_name_and_tensor(tmp_path):
    base, experts = family()
    torch.manual_seed(5)
    tensors = ["unused.weight", "stem.bias", "stem.weight", "blocks.0.weight", "blocks.0.bias"]
    tensors += ["blocks.1.weight", "blocks.1.bias"]
    published = nn.Sequential(nn.Linear(7, 7), nn.ReLU(), nn.Linear(7, 14))
    torch.save(published.state_dict(), tmp_path / "h.pt")
    new = DataAdaptive(base, experts, extractor(), level="layer", own=["classifier.*"])
    found = new.with_published(tmp_path / "h.pt", ["b", "a"], tensors)
    expected = published(extractor()(batch(1))).view(8, 2, 7).detach().numpy()
    columns = [tensors.index(name) for name in found.tensors_]
    np.testing.assert_allclose(found.coefficients(batch(1)), expected[:, [1, 0]][:, :, columns], rtol=1e-6)
    assert "published in h.pt" in repr(found)
    assert found.predict(batch(1), task="a").shape == (8,)
    with pytest.raises(BadInput, match=r"stem\.weight' is not among them"):
        new.with_published(tmp_path / "h.pt", ["b", "a"], [name for name in tensors if name != "stem.weight"])
    with pytest.raises(BadInput, match="experts here are a, b, and not a, c"):
        new.with_published(tmp_path / "h.pt", ["a", "c"], tensors)
    with pytest.raises(BadInput, match="other level"):
        DataAdaptive(base, experts, extractor(), own=["classifier.*"]).with_published(tmp_path / "h.pt", ["a", "b"])


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit",))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "there are no weights"),
        (lambda path: path.write_bytes(pickle.dumps(Evil())), r"h\.pt"),
        (lambda path: torch.save({"a": Evil()}, path), r"h\.pt"),
        (lambda path: torch.save(nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Linear(2, 2)), path), r"h\.pt"),
        (lambda path: torch.save(nn.Linear(2, 2), path), r"h\.pt"),
        (lambda path: torch.save(nn.Linear(2, 2).state_dict(), path), "no two linear layers"),
        (lambda path: torch.save(nn.Sequential(nn.Linear(3, 3), nn.Linear(2, 2)), path), "do not fit each other"),
        (lambda path: torch.save(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 5)), path), "do not divide"),
        (lambda path: torch.save(nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 4)), path), "no two linear"),
    ],
)
def test_what_is_no_hypernetwork_is_refused(tmp_path, write, message):
    write(tmp_path / "h.pt")
    with pytest.raises(BadInput, match=message):
        read_hypernetwork(tmp_path / "h.pt", experts=2)


# Transfer


def test_depth_maps_interpolate_between_layers_of_the_same_role():
    known = ["emb.w", "layer.0.a", "layer.0.b", "layer.1.a", "layer.1.b", "layer.2.a", "layer.2.b", "head.w"]
    deeper = ["emb.w", *(f"layer.{i}.{role}" for i in range(5) for role in "ab"), "head.w"]
    found = depth_map(known, deeper)
    np.testing.assert_allclose(found.sum(0), 1)
    values = torch.tensor([9.0, 0.0, 10.0, 1.0, 11.0, 2.0, 12.0, 7.0], dtype=torch.float64)
    expected = [9, 0, 10, 0.5, 10.5, 1, 11, 1.5, 11.5, 2, 12, 7]
    np.testing.assert_allclose(values @ found, expected)
    np.testing.assert_allclose(depth_map(known, known), np.eye(8))
    shallower = depth_map(deeper, known)
    np.testing.assert_allclose(shallower.sum(0), 1)
    assert shallower[deeper.index("layer.2.a"), known.index("layer.1.a")] == 1
    strange = depth_map(known, ["one", "two", "three"])  # no role in common: all tensors, by their order
    np.testing.assert_allclose(strange[:, 0], [1, 0, 0, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(strange[:, 1], [0, 0, 0, 0.5, 0.5, 0, 0, 0])
    with pytest.raises(BadInput, match="no tensors"):
        depth_map([], known)


@pytest.mark.parametrize("level", ["task", "layer"])
def test_a_hypernetwork_steers_a_deeper_family(level):
    trained = fused(level)
    other = trained.transferred(*family(blocks=5, width=9))
    x = batch(3)
    mine, theirs = trained.coefficients(x), other.coefficients(x)
    if level == "task":
        np.testing.assert_allclose(theirs, mine)
    else:
        np.testing.assert_allclose(theirs, mine @ depth_map(trained.tensors_, other.tensors_).numpy(), rtol=1e-5)
        np.testing.assert_allclose(
            other.coefficients_, trained.coefficients_ @ depth_map(trained.tensors_, other.tensors_).numpy()
        )
    assert other.predict(x, task="b").shape == (8,)
    assert "transferred" in repr(other)
    base, experts = family(5, 9)
    with pytest.raises(BadInput, match="does not know 'z'"):
        trained.transferred(base, {"z": experts["a"]})


def test_remapping_is_exact():
    torch.manual_seed(0)
    h = Hypernetwork(5, (3, 4))
    nn.init.normal_(h.second.weight)
    nn.init.normal_(h.second.bias)
    h.standardise(torch.randn(20, 5) * 3 + 1)
    matrix, x = torch.rand(4, 6), torch.randn(7, 5)
    torch.testing.assert_close(h.remapped([2, 0], matrix)(x), h(x)[:, [2, 0]] @ matrix)


# What a fusion leaves on disk


@pytest.mark.parametrize("level", ["task", "layer"])
def test_what_was_learned_comes_back(tmp_path, level):
    trained = fused(level, standardise=True, bound="clamp")
    trained.save(tmp_path / "h.safetensors")
    again = DataAdaptive.load(tmp_path / "h.safetensors", *family(), extractor())
    x = batch(3)
    assert (again.coefficients(x) == trained.coefficients(x)).all()
    assert (again.predict_log_proba(x, task="a") == trained.predict_log_proba(x, task="a")).all()
    assert repr(again) == repr(trained)
    assert again.steps == 12
    assert (again.learned_.entropy == trained.learned_.entropy).all()
    assert (again.dead_ == trained.dead_).all()


def test_statistics_of_batch_norm_come_back(tmp_path):
    def net(seed):
        torch.manual_seed(seed)
        made = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
        made(torch.randn(64, 4) * (seed + 1))
        return made.eval()

    experts = {"a": net(1), "b": net(2)}
    trained = DataAdaptive(net(0), experts, extractor(), steps=3).fit(data())
    trained.save(tmp_path / "h.safetensors")
    again = DataAdaptive.load(tmp_path / "h.safetensors", net(0), experts, extractor())
    x = batch(3)
    np.testing.assert_allclose(again.predict_log_proba(x, task="b"), trained.predict_log_proba(x, task="b"), rtol=1e-6)


def test_other_experts_and_damaged_files_are_refused(tmp_path):
    path = tmp_path / "h.safetensors"
    fused().save(path)
    base, experts = family()
    with pytest.raises(BadInput, match="other names"):
        DataAdaptive.load(path, base, {"a": experts["a"], "c": experts["b"]}, extractor())
    with pytest.raises(BadInput, match="other tensors"):
        DataAdaptive.load(path, *family(3), extractor())
    with pytest.raises(BadInput, match="other extractor"):
        DataAdaptive.load(path, base, experts, Extractor.of(nn.Linear(4, 7), tap=""))
    with pytest.raises(BadInput, match="other base"):
        DataAdaptive.load(path, Deep(7), experts, extractor())
    with pytest.raises(BadInput, match="other experts"):
        DataAdaptive.load(path, base, {"a": experts["b"], "b": experts["a"]}, extractor())
    with pytest.raises(BadInput, match="other experts"):
        DataAdaptive.load(path, base, {**experts, "a": with_head(experts["a"], 9)}, extractor())
    with pytest.raises(BadInput, match="other extractor"):
        DataAdaptive.load(path, base, experts, Extractor.of(extractor().checkpoint.module, tap="0"))
    with pytest.raises(BadInput, match="other heads"):
        DataAdaptive.load(path, base, experts, extractor(), heads=dict.fromkeys("ab", nn.Identity()))
    with pytest.raises(BadInput, match="no file"):
        DataAdaptive.load(tmp_path / "none", base, experts, extractor())
    (tmp_path / "short").write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BadInput, match="not whole"):
        DataAdaptive.load(tmp_path / "short", base, experts, extractor())
    save_file({"x": torch.zeros(2)}, tmp_path / "other")
    with pytest.raises(BadInput, match="no fusion"):
        DataAdaptive.load(tmp_path / "other", base, experts, extractor())


def with_head(network, seed):
    """The same network with another head."""
    found = Deep(0)
    found.load_state_dict({**network.state_dict(), "classifier.weight": Deep(seed).classifier.weight})
    return found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda about: about["arguments"].update(more=1), "another version"),
        (lambda about: about["arguments"].pop("steps"), "another version"),
        (lambda about: about["arguments"].update(level="task"), "other levels"),
        (lambda about: about["arguments"].update(steps=0), "steps=0"),
        (lambda about: about.pop("arguments"), "not whole"),
        (lambda about: about.update(arguments=[1]), "not whole"),
        (lambda about: about.pop("adaptation"), "not whole"),
        (lambda about: about["hypernetwork"].update(bound="tight"), "not whole|bound='tight'"),
    ],
)
def test_files_that_say_something_else_are_refused(tmp_path, change, message):
    fused().save(tmp_path / "h")
    with safe_open(tmp_path / "h", "pt") as file:
        ((key, said),) = file.metadata().items()
    about = json.loads(said)
    change(about)
    save_file(load_file(tmp_path / "h"), tmp_path / "changed", metadata={key: json.dumps(about)})
    with pytest.raises(BadInput, match=message):
        DataAdaptive.load(tmp_path / "changed", *family(), extractor())


def test_weights_that_are_nan_are_refused(tmp_path):
    fused().save(tmp_path / "h")
    with safe_open(tmp_path / "h", "pt") as file:
        metadata = file.metadata()
    tensors = load_file(tmp_path / "h")
    save_file({**tensors, "hypernetwork/second.bias": tensors["hypernetwork/second.bias"] * torch.nan},
              tmp_path / "nan", metadata=metadata)  # fmt: skip
    with pytest.raises(BadInput, match="NaN"):
        DataAdaptive.load(tmp_path / "nan", *family(), extractor())
    published = nn.Sequential(nn.Linear(7, 7), nn.ReLU(), nn.Linear(7, 2))
    nn.init.constant_(published[2].bias, torch.nan)
    torch.save(published, tmp_path / "h.pt")
    with pytest.raises(BadInput, match="NaN"):
        read_hypernetwork(tmp_path / "h.pt", experts=2)


def test_a_hypernetwork_for_features_of_another_width_is_told(tmp_path):
    torch.save(nn.Sequential(nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 2)), tmp_path / "h.pt")
    found = DataAdaptive(*family(), extractor()).with_published(tmp_path / "h.pt", ["a", "b"])
    with pytest.raises(BadInput, match="gives 7 features, and the hypernetwork takes 9"):
        found.predict(batch(0), task="a")


def test_numpy_numbers_are_saved(tmp_path):
    fused().save(tmp_path / "h")
    saved = SavedFusion.load(tmp_path / "h")
    arguments = {**saved.about["arguments"], "seed": np.int64(3), "learning_rate": np.float32(0.5)}
    replace(saved, about={**saved.about, "arguments": arguments}).save(tmp_path / "again")
    assert DataAdaptive.load(tmp_path / "again", *family(), extractor()).get_params()["seed"] == 3


def test_dead_coefficients_are_not_transferred():
    base, experts = family()
    with torch.no_grad():
        for name, value in experts["a"].blocks[0].named_parameters():
            value.copy_(base.blocks[0].get_parameter(name))
    how = {"steps": 30, "learning_rate": 0.02, "own": ["classifier.*"], "collapse": None}
    trained = DataAdaptive(base, experts, extractor(), level="layer", **how).fit(data())
    other = trained.transferred(*family(blocks=3))
    of = {name: other.coefficients_[:, :, column] for column, name in enumerate(other.tensors_)}
    last = trained.coefficients_[:, :, trained.tensors_.index("blocks.1.weight")]
    first = trained.coefficients_[:, :, trained.tensors_.index("blocks.0.weight")]
    np.testing.assert_allclose(first[:, 0], 0.3, atol=1e-6)
    for block in range(3):  # all of expert a's come from the block that it has learned
        np.testing.assert_allclose(of[f"blocks.{block}.weight"][:, 0], last[:, 0])
    np.testing.assert_allclose(of["blocks.1.weight"][:, 1], (first[:, 1] + last[:, 1]) / 2)


def test_a_merged_model_is_an_ordinary_checkpoint(tmp_path):
    trained = fused()
    x = batch(3)
    trained.export(tmp_path / "model", x, task="a")
    state = read_weights(tmp_path / "model")
    expected = trained.merged_for(x, task="a")
    torch.testing.assert_close(dict(state), expected)
    torch.testing.assert_close(state["classifier.weight"], family()[1]["a"].classifier.weight.detach())
    coefficients = torch.from_numpy(trained.coefficients(x).mean(0))
    vectors = TaskVectors.of(*family(), own=["classifier.*"])
    torch.testing.assert_close(expected["stem.weight"], vectors.state(vectors.merged(coefficients))["stem.weight"])
    functional_call(Deep(7), dict(state), (x,))
    served = trained.clusters(batch(4, n=20), 3)
    trained.export(tmp_path / "cluster", served.clusters.centres[1].numpy(), task="a")
    torch.testing.assert_close(dict(read_weights(tmp_path / "cluster")), served.model(1, task="a"))
    assert check_receipts(tmp_path / "model") == (1, [])
    receipt = json.loads((tmp_path / "model" / "receipt.json").read_text())
    assert receipt["taskatlas.DataAdaptive.export"]["settings"]["task"] == "a"
    assert receipt["taskatlas.DataAdaptive.export"]["settings"]["learned on"] == "held-out"
    with pytest.raises(BadInput, match="no task 'z'"):
        trained.export(tmp_path / "model", x, task="z")
    with pytest.raises(BadInput, match="no folder"):
        trained.export(tmp_path / "new", x, task="a", like=tmp_path / "nowhere")
    before = {file.name: file.read_bytes() for file in (tmp_path / "model").iterdir()}
    with pytest.raises(BadInput, match="not an empty folder"):
        trained.export(tmp_path / "model", x, task="a")
    assert {file.name: file.read_bytes() for file in (tmp_path / "model").iterdir()} == before


def test_a_merged_hugging_face_model_opens_with_from_pretrained(tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs the extra hf")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}

    def bert(seed, labels):
        torch.manual_seed(seed)
        config = transformers.BertConfig(vocab_size=30, num_labels=labels, **sizes)
        return transformers.BertForSequenceClassification(config).eval()

    experts = {"a": bert(1, 3), "b": bert(2, 4)}
    ids = {
        task: [torch.randint(0, 30, (4, 6), generator=torch.Generator().manual_seed(i))] for i, task in enumerate("ab")
    }
    batches = {task: [{"input_ids": one} for one in its] for task, its in ids.items()}
    encoder = Extractor.of(transformers.BertModel(transformers.BertConfig(vocab_size=30, **sizes)))
    trained = DataAdaptive(bert(0, 2), experts, encoder, steps=2).fit(batches)
    (tmp_path / "like").mkdir()
    (tmp_path / "like" / "vocab.txt").write_text("[PAD]\n")
    trained.export(tmp_path / "model", batches["b"][0], task="b", like=tmp_path / "like")
    opened = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    assert opened.config.num_labels == 4
    assert (tmp_path / "model" / "vocab.txt").is_file()
    state = trained.merged_for(batches["b"][0], task="b")
    found = load_file(tmp_path / "model" / "model.safetensors")
    torch.testing.assert_close(found["classifier.weight"], state["classifier.weight"])
    logits = functional_call(experts["b"], state, (), batches["b"][0]).logits
    torch.testing.assert_close(opened(**batches["b"][0]).logits, logits)


# Pictures


def test_pictures_have_titles_labels_and_a_legend():
    trained = fused()
    tasks = trained.plot()
    assert tasks.get_title() == "Coefficients by task (held-out)"
    assert [label.get_text() for label in tasks.get_yticklabels()] == ["a", "b"]
    layers = trained.plot("layers", task="b")
    assert "b, held-out" in layers.get_title()
    assert layers.images[0].get_array().shape == (2, len(trained.tensors_))
    learning = trained.plot("learning")
    assert learning.get_xlabel() == "step"
    assert learning.get_legend() is not None
    assert fused("task").plot().images[0].get_array().shape == (2, 2)
    with pytest.raises(BadInput, match="same in every layer"):
        fused("task").plot("layers")
    with pytest.raises(BadInput, match="no task 'z' to draw; there are a, b"):
        trained.plot("layers", task="z")
    with pytest.raises(BadInput, match="not trained here"):
        trained.transferred(*family(3)).plot("learning")


def test_published_order_of_tensors_is_optional_where_it_is_the_bases(tmp_path):
    torch.manual_seed(0)
    torch.save(nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 4)), tmp_path / "h.pt")
    same = published_hypernetwork(tmp_path / "h.pt", (["x", "y"], ["s", "t"]), (["x", "y"], ["s", "t"]))
    x = torch.randn(3, 5)
    torch.testing.assert_close(same(x), read_hypernetwork(tmp_path / "h.pt", 2)(x))

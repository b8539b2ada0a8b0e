"""A fusion served with a few merged models: nearest cluster, cached models, stated bounds, and files."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.func import functional_call

from taskatlas.errors import BadInput
from taskatlas.merge.clusters import Clusters
from taskatlas.merge.data_adaptive import DataAdaptive
from taskatlas.merge.extractor import Extractor
from taskatlas.merge.low_rank import LowRankVectors
from taskatlas.merge.task_vectors import TaskVectors
from taskatlas.probe import Probe


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 3))


def samples(seed, n=30):
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 2, size=(n, 4))).float()


def fused(level="task", **how):
    torch.manual_seed(99)
    f = Extractor.of(nn.Sequential(nn.Linear(4, 7), nn.Tanh()), tap="")
    experts = {task: network(i + 1) for i, task in enumerate("abc")}
    data = {task: [samples(i)] for i, task in enumerate("abc")}
    made = DataAdaptive(network(0), experts, f, level=level, steps=20, learning_rate=0.02, collapse=None, **how)
    return made.fit(data)


def merges(monkeypatch, kind=TaskVectors):
    """A list that grows with every merge from now on."""
    made, merged = [], kind.merged
    monkeypatch.setattr(kind, "merged", lambda self, *given, **how: made.append(1) or merged(self, *given, **how))
    return made


@pytest.mark.parametrize("level", ["task", "layer"])
def test_every_sample_is_answered_by_the_model_of_its_nearest_cluster(level):
    trained, x = fused(level, own=["4.*"]), samples(7)
    served = trained.clusters(samples(8, 200), 4)
    which, bounds = served.assign(x)
    assert set(which) == {0, 1, 2, 3}
    own = trained.coefficients(x)
    expected = []
    for row, cluster in enumerate(which.tolist()):
        centre = served.clusters.centres[cluster].numpy()
        state = trained.merged_for(centre, task="b")
        torch.testing.assert_close(served.model(cluster, task="b"), state)
        expected.append(torch.log_softmax(functional_call(trained.base, state, (x[row : row + 1],)), -1)[0].detach())
        apart = trained.family_.vectors.merged(torch.from_numpy(own[row])) - served.clusters.merged(cluster)
        assert 0 < apart.norm() <= bounds[row] * (1 + 1e-5)
        others = [(np.abs(own[row] - one.numpy()) * served.clusters.norms.numpy()).sum() for one in
                  served.clusters.centres]  # fmt: skip
        assert bounds[row] == pytest.approx(min(others), rel=1e-5)
    found = served.predict_log_proba(x, task="b")
    np.testing.assert_allclose(found, torch.stack(expected), atol=1e-5)
    assert (served.predict(x, task="b") == found.argmax(1)).all()
    assert abs(found - trained.predict_log_proba(x, task="b")).max() > 1e-4  # it does cost something
    assert served.chosen == "clusters: 4 of 4 merged models"


def test_with_a_cluster_for_each_sample_nothing_is_lost():
    trained, x = fused(), samples(7)
    served = trained.clusters(x, 100)
    np.testing.assert_allclose(served.predict_log_proba(x, "a"), trained.predict_log_proba(x, "a"), atol=1e-5)
    np.testing.assert_allclose(served.assign(x)[1], 0, atol=1e-6)
    tasks, classes = served.inferred(x)
    assert (tasks == trained.infer_tasks(x)).all()
    assert (classes == served.predict(x)).all()
    probe = Probe.from_arrays(x.numpy(), labels=trained.predict(x, task="a"))
    assert served.score(probe, task="a") == 1.0


def test_models_are_merged_once_for_all_batches_and_tasks(monkeypatch):
    trained = fused(own=["4.*"])
    served = trained.clusters(samples(8, 200), 4)
    made = merges(monkeypatch)
    loader = [samples(9), samples(10)]
    first = served.predict_log_proba(loader, task="a")
    assert len(made) == 4
    assert (served.predict_log_proba(loader, task="a") == first).all()
    served.predict(loader)
    assert len(made) == 4
    few = trained.clusters(samples(8, 200), 4, kept=1)
    assert (few.predict_log_proba(loader, task="a") == first).all()
    assert len(made) == 12  # two batches with four models each
    base = trained.family_.vectors.base
    assert (served.clusters.bytes, few.clusters.bytes) == (4 * base.numel() * 4, base.numel() * 4)
    assert repr(few).startswith("ServedModel(4 merged models, at most 1 kept, ")


@pytest.mark.parametrize("level", ["task", "layer"])
def test_clusters_come_back_from_their_file(tmp_path, level):
    trained, x = fused(level), samples(7)
    served = trained.clusters(samples(8, 200), 4, kept=3)
    served.save(tmp_path / "clusters.safetensors")
    trained.save(tmp_path / "fusion.safetensors")
    experts = {task: network(i + 1) for i, task in enumerate("abc")}
    loaded = DataAdaptive.load(tmp_path / "fusion.safetensors", network(0), experts, trained.extractor)
    again = loaded.served(tmp_path / "clusters.safetensors")
    assert (again.predict_log_proba(x, "a") == served.predict_log_proba(x, "a")).all()
    for one, other in zip(again.assign(x), served.assign(x), strict=True):
        assert (one == other).all()
    assert again.clusters.kept == 3
    again.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "clusters.safetensors").read_bytes()


def test_files_that_are_no_clusters_of_this_fusion_are_refused(tmp_path):
    trained, file = fused(), tmp_path / "clusters.safetensors"
    trained.clusters(samples(8), 4).save(file)
    with pytest.raises(BadInput, match="no file"):
        trained.served(tmp_path / "nowhere.safetensors")
    trained.save(tmp_path / "fusion.safetensors")
    with pytest.raises(BadInput, match="holds no clusters"):
        trained.served(tmp_path / "fusion.safetensors")
    other = DataAdaptive(network(0), {task: network(i + 5) for i, task in enumerate("abc")}, trained.extractor, steps=1)
    with pytest.raises(BadInput, match="made with other experts"):
        other.fit({"a": [samples(0)]}).served(file)
    named = DataAdaptive(network(0), {"a": network(1), "b": network(2)}, trained.extractor, steps=1)
    with pytest.raises(BadInput, match="made with other names"):
        named.fit({"a": [samples(0)]}).served(file)
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(BadInput, match="not whole"):
        trained.served(file)


def test_low_rank_experts_are_served_by_adapted_weights_alone(tmp_path, monkeypatch):
    for seed, name in enumerate(("x", "y")):
        (tmp_path / name).mkdir()
        draw = torch.Generator().manual_seed(seed)
        factors = {"A": torch.randn(2, 4, generator=draw), "B": torch.randn(6, 2, generator=draw)}
        save_file({f"base_model.model.0.lora_{key}.weight": value for key, value in factors.items()},
                  tmp_path / name / "adapter_model.safetensors")  # fmt: skip
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["0"]}
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(config))
    adapters = {name: tmp_path / name for name in ("x", "y")}
    f = Extractor.of(nn.Sequential(nn.Linear(4, 7), nn.Tanh()), tap="")
    trained = DataAdaptive(network(0), adapters, f, steps=20, learning_rate=0.05, collapse=None)
    trained.fit({name: [samples(seed)] for seed, name in enumerate(adapters)})
    x, made = samples(7), merges(monkeypatch, LowRankVectors)
    served = trained.clusters(x, 100)
    np.testing.assert_allclose(served.predict_log_proba(x, "x"), trained.predict_log_proba(x, "x"), atol=1e-4)
    few = trained.clusters(x, 3)
    del made[:]
    few.predict(x, "x")
    assert len(made) == 3
    assert few.clusters.bytes == 3 * 4 * 6 * 4
    few.save(tmp_path / "clusters.safetensors")
    again = trained.served(tmp_path / "clusters.safetensors")
    assert (again.predict_log_proba(x, "y") == few.predict_log_proba(x, "y")).all()


def test_coefficients_are_clustered_by_the_weights_that_they_move():
    """The second coefficient differs more, the first moves a hundred times as much."""
    base = {"w": torch.zeros(2)}
    vectors = TaskVectors.of(base, {"a": {"w": torch.tensor([100.0, 0.0])}, "b": {"w": torch.tensor([0.0, 1.0])}})
    coefficients = torch.tensor([[0.0, 0.0], [0.0, 9.0], [1.0, 0.0], [1.0, 9.0]])
    clusters = Clusters.of(coefficients, vectors, 2)
    which, bounds = clusters.assign(coefficients)
    assert which[0] == which[1] != which[2] == which[3]
    assert bounds.tolist() == pytest.approx([4.5] * 4)

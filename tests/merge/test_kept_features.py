"""Features of samples in batches: computed once, by whatever process, and never taken for those of others."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from taskatlas.errors import BadInput
from taskatlas.merge.data_adaptive import DataAdaptive
from taskatlas.merge.extractor import Extractor
from taskatlas.merge.fusion_data import Featured
from taskatlas.merge.kept_features import KeptFeatures, sample_digests
from taskatlas.store import Store


class Counted(nn.Module):
    """Features of a tensor or of what stands under ``x``, moved by what else there is."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.linear = nn.Linear(4, 3)
        self.calls = []

    def forward(self, x, shift=None, texts=(), **_):
        self.calls.append(len(x))
        lengths = torch.tensor([[float(len(text))] for text in texts]) if texts else 0
        return self.linear(x.to(self.linear.weight)) + (0 if shift is None else shift) + lengths


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def kept(store, network=None, **how):
    network = network or Counted()
    return KeptFeatures(Extractor.of(network, tap="", **how), store), network.calls


def filled(store, *batches, **how):
    """A store that has the features of these batches."""
    features, _ = kept(store, **how)
    for batch in batches:
        features.of(batch)
    features.write()


def computes(store, batch, network=None, **how):
    """How many samples are passed through the extractor for this batch; and that the features are right."""
    features, calls = kept(store, network, **how)
    found = features.of(batch)
    torch.testing.assert_close(found, features.extractor(batch).float(), rtol=1e-5, atol=1e-6)
    return sum(calls[:-1])


X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


def fit(seed):
    """Learns from loaders that shuffle by the seed; how many samples pass through the extractor."""
    torch.manual_seed(0)
    base, experts = nn.Linear(4, 3), {"a": nn.Linear(4, 3), "b": nn.Linear(4, 3)}
    samples = {task: TensorDataset(torch.randn(20, 4), torch.arange(20)) for task in experts}
    torch.manual_seed(seed)
    data = {task: DataLoader(its, batch_size=5, shuffle=True) for task, its in samples.items()}
    f = Counted()
    DataAdaptive(base, experts, Extractor.of(f, tap=""), steps=9, learning_rate=0.01).fit(data)
    return sum(f.calls)


def test_a_second_fit_in_another_process_computes_no_features():
    assert fit(0) == 40
    code = "from tests.merge.test_kept_features import fit; print(fit(1))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    assert int(run.stdout) == 0  # though its loaders shuffle otherwise


def test_what_was_learned_is_the_same_with_features_from_the_store():
    torch.manual_seed(0)
    base, experts, data = nn.Linear(4, 3), {"a": nn.Linear(4, 3)}, {"a": [X[:3], X[3:]]}
    f = Counted().double()
    how = {"steps": 4, "learning_rate": 0.01}
    first = DataAdaptive(base, experts, Extractor.of(f, tap=""), **how).fit(data)
    passed = len(f.calls)
    second = DataAdaptive(base, experts, Extractor.of(f, tap=""), **how).fit(data)
    assert len(f.calls) == passed == 2
    assert (first.coefficients_ == second.coefficients_).all()
    assert (second.coefficients([X[3:], X[:3]]) == second.coefficients([X])[[3, 4, 5, 0, 1, 2]]).all()
    assert len(f.calls) == passed
    second.coefficients(X)  # a batch alone is answered as it comes
    assert len(f.calls) == passed + 1


def test_samples_are_known_in_any_batch_and_form(store):
    filled(store, X[:4])
    assert computes(store, X[:4]) == 0
    assert computes(store, X[[3, 0]]) == 0
    assert computes(store, (X[:2], torch.arange(2))) == 0
    assert computes(store, [X[:2], ["a", "b"]]) == 0
    assert computes(store, X[3:5]) == 2  # one of them is new
    filled(store, {"x": X[:4], "labels": torch.zeros(4)})
    assert computes(store, {"x": X[1:4]}) == 0
    assert computes(store, {"x": X[1:4], "label": torch.ones(3)}) == 0


@pytest.mark.parametrize(
    "other",
    [
        X[:4] + 1e-6,
        X[:4].double(),
        -X[:4],
        {"x": X[:4], "shift": torch.tensor(2.0)},
        {"x": X[:4], "shift": torch.ones(4, 1)},
        {"x": X[:4], "shift": torch.ones(1, 3)},
        {"x": X[:4], "shift": 3},
        {"x": X[:4], "texts": ["a", "bb", "c", "dd"]},
    ],
)
def test_other_samples_are_not_known(store, other):
    filled(store, X[:4], {"x": X[:4]}, {"x": X[:4], "texts": ["a", "b", "c", "d"]}, {"x": X[:4], "shift": 2})
    filled(store, {"x": X[:4], "shift": torch.tensor(1.0)}, {"x": X[:4], "shift": torch.zeros(4, 1)})
    assert computes(store, other) == 4


def test_texts_belong_to_their_samples(store):
    batch = {"x": X[:4], "texts": ["a", "bb", "c", "dd"]}
    filled(store, batch)
    assert computes(store, {"x": X[[2, 1]], "texts": ["c", "bb"]}) == 0
    assert computes(store, {"x": X[[2, 1]], "texts": ["c", "b"]}) == 2


def test_another_extractor_knows_nothing(store):
    filled(store, X)
    assert computes(store, X) == 0
    assert computes(store, X, Counted(1)) == 6
    network = Counted()
    with torch.no_grad():
        network.linear.bias[0] += 1e-4
    assert computes(store, X, network) == 6
    f, calls = KeptFeatures(Extractor.of(Counted(), tap="linear"), store), []
    f.extractor.checkpoint.module.register_forward_hook(lambda *_: calls.append(1))
    f.of(X)
    assert calls


def test_what_has_no_digest_is_computed_every_time(store):
    class Note:
        pass

    batch = {"x": X, "note": Note()}
    features, calls = kept(store)
    assert sample_digests(batch) == []
    assert torch.equal(features.of(batch), features.of(batch))
    features.write()
    assert calls == [6, 6]
    assert not store.root.exists()


def test_an_extractor_without_a_digest_keeps_features_in_memory(store, monkeypatch):
    def refused(_):
        raise BadInput("quantised")

    monkeypatch.setattr("taskatlas.zoo.checkpoint.tensors_digest", refused)
    features, calls = kept(store)
    assert torch.equal(features.of(X), features.of(X))
    features.write()
    assert calls == [6]
    assert not store.root.exists()


def test_half_precision_is_kept_exactly(store):
    network = Counted().bfloat16()
    first, _ = kept(store, network)
    expected = first.of(X.bfloat16())
    first.write()
    again, calls = kept(store, network)
    found = again.of(X.bfloat16())
    assert sum(calls) == 6  # of the first alone
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_what_was_computed_before_a_failure_is_kept_whole(store):
    features, _ = kept(store)
    with pytest.raises(BadInput, match="cannot take a batch"):
        list(Featured([X[:2], X[2:4], torch.zeros(2, 9)], features, "the data").once())
    assert computes(store, X[:4]) == 0
    (file,) = store.root.rglob("*.sqlite")
    with sqlite3.connect(file) as table:
        rows = table.execute("SELECT features FROM samples").fetchall()
    assert [len(np.frombuffer(content, "<f4")) for (content,) in rows] == [3] * 4
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_write_is_all_or_nothing(store):
    filled(store, X[:2])
    features, _ = kept(store)
    features.of(X)
    features._unwritten["not plain"] = features._unwritten[next(iter(features._unwritten))]
    last = list(features._unwritten)[-1]
    (file,) = store.root.rglob("*.sqlite")
    with sqlite3.connect(file) as table:
        table.execute(f"CREATE TRIGGER full BEFORE INSERT ON samples WHEN NEW.digest = '{last}' "
                      "BEGIN SELECT RAISE(ABORT, 'disk is full'); END")  # fmt: skip
    with pytest.raises(BadInput, match="disk is full"):
        features.write()
    with sqlite3.connect(file) as table:
        assert table.execute("SELECT count(*) FROM samples").fetchone() == (2,)


def test_a_store_that_cannot_be_written_or_is_locked_costs_nothing_but_time(store, tmp_path, monkeypatch):
    (tmp_path / "store").write_text("a file")
    filled(store, X)
    assert computes(store, X) == 6
    (tmp_path / "store").unlink()
    filled(store, X[:2])
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda file, timeout: connect(file, timeout=0.01))
    (file,) = store.root.rglob("*.sqlite")
    other = connect(file, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    assert computes(store, X[:2]) == 2
    filled(store, X)
    other.execute("ROLLBACK")
    other.close()
    assert computes(store, X[:2]) == 0


def test_a_damaged_file_is_told(store):
    filled(store, X)
    (file,) = store.root.rglob("*.sqlite")
    file.write_bytes(b"something else" * 100)
    with pytest.raises(BadInput, match=r"are damaged .*Remove that file"):
        computes(store, X)


def test_only_so_much_is_kept_of_a_loader_whose_samples_are_always_new(store, monkeypatch):
    monkeypatch.setattr("taskatlas.merge.kept_features._REMEMBERED", 12)
    filled(store, X[:4], X[4:])
    assert computes(store, X[:4]) == 0
    assert computes(store, X[4:]) == 2


def test_loaders_give_their_samples_in_any_order(store):
    loader = DataLoader(TensorDataset(X, torch.arange(6)), batch_size=4, shuffle=True)
    first, calls = kept(store)
    for batch, features in Featured(loader, first, "the data").once():
        torch.testing.assert_close(features, first.extractor.checkpoint.module(batch[0]).detach())
    before = len(calls)
    list(Featured(loader, first, "the data").once())
    assert len(calls) == before

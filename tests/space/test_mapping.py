"""From a zoo or from features to a space: order, replicates, additions, and what is refused."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.references import space as reference
from tests.space.make import features, network
from torch import nn

from taskatlas.errors import BadInput
from taskatlas.probe import Probe, extract
from taskatlas.space import KERNELS, cka_matrix, map_features, map_tasks
from taskatlas.space.samples import standardise
from taskatlas.store import Store
from taskatlas.zoo import Zoo


@pytest.fixture
def probe():
    return Probe.from_arrays(np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32))


def zoo(*seeds):
    return Zoo.open({f"net-{seed}": network(seed) for seed in seeds})


def counting(function):
    """A kernel that counts how many pairs it is asked for."""

    def kernel(rows, columns=None):
        kernel.pairs += len(rows) * len(rows if columns is None else columns)
        return function(rows, columns)

    kernel.pairs = 0
    return kernel


# From features


@pytest.mark.parametrize("kernel", list(KERNELS))
def test_a_space_holds_its_kernel_of_the_features(kernel):
    made = features(1, 60, (5, 9, 40))
    space = map_features(made, kernel=kernel)
    assert space.names == ("net-0", "net-1", "net-2")
    assert (space.covariance == KERNELS[kernel]([one.values for one in made], None)).all()
    assert (space.kernel, space.probe, space.replicates) == (kernel, "the probe", None)
    assert space.features == ("digest 0", "digest 1", "digest 2")


@pytest.mark.parametrize("kernel", list(KERNELS))
@pytest.mark.parametrize("shape", [(60, (5, 9, 40, 6, 6)), (150, (4, 3, 5, 3, 4))])
def test_the_order_of_the_features_changes_no_bit(kernel, shape):
    made = features(2, *shape)
    space = map_features(made, kernel=kernel, bootstrap=2)
    for order in ([4, 3, 2, 1, 0], [2, 0, 4, 1, 3]):
        other = map_features([made[i] for i in order], kernel=kernel, bootstrap=2)
        assert other.names == tuple(made[i].checkpoint for i in order)
        assert other.features == tuple(made[i].digest for i in order)
        back = other.subset(space.names)
        assert (back.covariance == space.covariance).all()
        assert (back.replicates == space.replicates).all()
        assert other.digest == space.digest


def test_standardised_features_say_so():
    made = features(3, 60, (5, 9))
    made[0].values[:, 0] *= 1e3
    space = map_features(made, standardised=True)
    assert space.kernel == "cka of standardised features"
    scaled = [standardise(one.values)[:] for one in made]
    assert space["net-0", "net-1"] == pytest.approx(reference.linear_cka(*scaled), abs=1e-6)


@pytest.mark.parametrize("standardised", [False, True])
def test_replicates_are_of_random_halves(standardised):
    made = features(4, 61, (5, 9, 7))
    space = map_features(made, bootstrap=3, seed=7, standardised=standardised)
    assert space.seed == 7
    assert space.replicates.shape == (3, 3, 3)
    rows = np.sort(np.random.default_rng([7, 1]).choice(61, size=30, replace=False))
    halves = [(standardise(one.values)[:] if standardised else one.values)[rows] for one in made]
    assert space.replicates[1] == pytest.approx(cka_matrix(halves), abs=1e-6)
    again = map_features(made, bootstrap=3, seed=7, standardised=standardised)
    assert (again.replicates == space.replicates).all()
    assert (map_features(made, bootstrap=3, seed=8, standardised=standardised).replicates != space.replicates).any()


def test_the_spread_of_replicates_is_that_of_new_samples():
    # The standard deviation over fresh probes of 200 samples, against the spread over halves of one of them.
    def draw(seed):
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((200, 3))
        return [x, x @ np.diag([1.0, 0.5, 0.2]) + 0.8 * rng.standard_normal((200, 3))]

    fresh = np.std([cka_matrix(draw(seed))[0, 1] for seed in range(200)])
    made = [
        replace(one, values=x.astype(np.float32)) for one, x in zip(features(5, 200, (3, 3)), draw(1000), strict=True)
    ]
    estimated = map_features(made, bootstrap=100).replicates[:, 0, 1].std()
    assert 0.6 < estimated / fresh < 1.6


# Adding a checkpoint


@pytest.mark.parametrize("kernel", list(KERNELS))
def test_a_new_checkpoint_costs_one_row(kernel):
    made = features(6, 64, (5, 9, 7, 11, 6))
    function = counting(KERNELS[kernel])
    whole = map_features(made, kernel=function, bootstrap=2)
    known = map_features(made[:4], kernel=function, bootstrap=2)
    function.pairs = 0
    grown = map_features(made, kernel=function, bootstrap=2, known=known)
    assert function.pairs == 3 * (4 + 1)  # the old four and itself, for the covariance and two replicates
    assert grown.covariance == pytest.approx(whole.covariance, abs=1e-6)
    assert grown.replicates == pytest.approx(whole.replicates, abs=1e-6)
    assert (grown.covariance[:4, :4] == known.covariance).all()
    assert (grown.covariance == grown.covariance.T).all()
    function.pairs = 0
    same = map_features(made[::-1], kernel=function, bootstrap=2, known=grown)
    assert function.pairs == 0
    assert same.digest == grown.digest


def test_what_is_known_of_other_features_is_not_used():
    made = features(7, 64, (5, 9, 7))
    other = features(8, 64, (5, 9, 7))
    space = map_features(made)
    for known in (
        map_features(other, kernel="rbf_cka"),
        map_features(other, standardised=True),
        map_features([replace(one, probe="another probe") for one in other]),
        map_features([replace(one, digest=f"other {i}") for i, one in enumerate(other)]),
        replace(map_features(other), features=()),
    ):
        assert (map_features(made, known=known).covariance == space.covariance).all()


@pytest.mark.parametrize("settings_", [{"bootstrap": 3, "seed": 1}, {"bootstrap": 4, "seed": 0}])
def test_known_replicates_of_other_draws_are_not_used(settings_):
    made = features(9, 64, (5, 9, 7))
    known = map_features(made[:2], bootstrap=3, seed=0)
    found = map_features(made, known=known, **settings_)
    assert found.replicates == pytest.approx(map_features(made, **settings_).replicates, abs=1e-7)
    assert map_features(made, known=map_features(made[:2]), bootstrap=2).replicates == pytest.approx(
        map_features(made, bootstrap=2).replicates, abs=1e-7
    )


@given(st.integers(0, 2**32 - 1), st.permutations(range(5)), st.integers(1, 4))
@settings(max_examples=15, deadline=None)
def test_in_whatever_order_checkpoints_come_the_space_is_the_same(seed, order, first):
    made = features(seed, 30, (3, 4, 5, 6, 7))
    known = map_features([made[i] for i in order[:first]])
    grown = map_features([made[i] for i in order], known=known)
    assert grown.subset([one.checkpoint for one in made]).covariance == pytest.approx(
        map_features(made).covariance, abs=1e-6
    )


# What is refused


def test_features_of_other_samples_are_refused():
    one, two = features(10, 20, (3, 4))
    with pytest.raises(BadInput, match=r"net-0 and of net-1 are not of the same samples: row 3 is 's3'"):
        map_features([one, replace(two, ids=(*two.ids[:3], "x", *two.ids[4:]))])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kernel": "cosine"}, r"no kernel 'cosine'.*mutual_knn"),
        ({"bootstrap": -1}, "bootstrap is -1"),
    ],
)
def test_settings_that_are_none_are_refused(as_installed, change, words):
    with pytest.raises(BadInput, match=words):
        map_features(features(11, 20, (3, 4)), **change)


def test_no_features_and_two_alike():
    with pytest.raises(BadInput, match="no features to map"):
        map_features([])
    one, _ = features(12, 20, (3, 4))
    with pytest.raises(BadInput, match="two checkpoints are named 'net-0'"):
        map_features([one, one])


def test_too_few_samples_for_the_replicates():
    with pytest.raises(BadInput, match="at least four samples; the probe has 3"):
        map_features(features(13, 6, (3, 4)), kernel="debiased_cka", bootstrap=2)
    with pytest.raises(BadInput, match="10 neighbours need more than 10 samples; the probe has 8"):
        map_features(features(13, 16, (3, 4)), kernel="mutual_knn", bootstrap=2)


# From a zoo


def test_a_zoo_is_mapped_by_what_its_networks_make_of_the_probe(probe):
    space = map_tasks(zoo(3, 1, 2), probe)
    assert space.names == ("net-3", "net-1", "net-2")
    made = {name: extract(zoo(1, 2, 3)[name], probe) for name in space.names}
    hidden = torch.tanh(network(3)[0](torch.from_numpy(probe.inputs))).detach().numpy()
    assert made["net-3"].values == pytest.approx(hidden, abs=1e-6)
    for one in space.names:
        for other in space.names:
            assert space[one, other] == pytest.approx(
                reference.linear_cka(made[one].values, made[other].values), abs=1e-6
            )
    assert space.probe == probe.digest
    assert space.features == tuple(made[name].digest for name in space.names)


@pytest.mark.parametrize("engine", ["local", "threads:3", "executor"])
def test_neither_order_nor_engine_changes_a_bit(probe, engine):
    space = map_tasks(zoo(1, 2, 3, 4), probe, bootstrap=2)
    with ThreadPoolExecutor(2) as executor:
        chosen = executor if engine == "executor" else engine
        other = map_tasks(zoo(4, 2, 1, 3), probe, bootstrap=2, engine=chosen).subset(space.names)
    assert (other.covariance == space.covariance).all()
    assert (other.replicates == space.replicates).all()
    assert other.digest == space.digest


def test_a_zoo_that_was_mapped_is_not_opened_again(probe, tmp_path, monkeypatch):
    store = Store(tmp_path / "store")
    space = map_tasks(zoo(1, 2), probe, store=store)
    from taskatlas.zoo import Checkpoint

    monkeypatch.setattr(Checkpoint, "open", lambda *_: pytest.fail("opened again"))
    again = map_tasks(zoo(1, 2), probe, store=store, kernel="debiased_cka")
    assert again.kernel == "debiased_cka"
    assert map_tasks(zoo(1, 2), probe, store=store).digest == space.digest


def test_mapping_names_the_checkpoint_that_is_no_use(probe):
    dead = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    with torch.no_grad():
        dead[0].bias.fill_(-1e9)
    with pytest.raises(BadInput, match=r"features of dead at 2:input are the same for every sample"):
        map_tasks(Zoo.open({"alive": network(1), "dead": dead}), probe)
    broken = network(2)
    with torch.no_grad():
        broken[0].weight[0, 0] = torch.nan
    with pytest.raises(BadInput, match=r"broken at 2:input gives NaN or infinite features for sample '0'"):
        map_tasks(Zoo.open({"alive": network(1), "broken": broken}), probe)


def test_a_probe_of_one_sample_is_refused(probe):
    with pytest.raises(BadInput, match=r"net-1 at 2:input hold 1 sample\(s\); give at least two"):
        map_tasks(zoo(1, 2), probe.take([0]))

"""InPCA: the published eigenvalues, distances it gives back, new points, weights, landmarks, and what it refuses."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import config
from sklearn.base import clone
from sklearn.utils.estimator_checks import check_estimator
from tests.paths.make import learning, models, run
from tests.references import paths as reference

from taskatlas.errors import BadInput
from taskatlas.paths import Embedding, InPCA, bhattacharyya, explained_stress, hellinger, procrustes

SEEDS = st.integers(0, 999)


def all_axes(**settings):
    return InPCA(n_components=None, **settings)


def test_published_eigenvalues(real_input):
    with np.load(real_input / "golden/paths/prediction.npz") as golden:
        P, expected = golden["probs"].reshape(48, 200, 7), golden["inpca_eigenvalues"]
    fit = all_axes().fit(P)
    assert np.abs(fit.eigenvalues_ - expected).max() < 1e-8
    assert np.abs(fit.as_embedding().distances() - bhattacharyya(P)).max() < 1e-8
    assert (
        np.abs(reference.inpca(reference.bhattacharyya(P[:5], P[:5]))[0] - all_axes().fit(P[:5]).eigenvalues_).max()
        < 1e-12
    )


@given(seed=SEEDS, sharpness=st.floats(0.1, 10))
@settings(max_examples=15, deadline=None)
def test_signed_coordinates_give_the_distances_back(seed, sharpness):
    P = models(seed, 7, 9, 4, sharpness)
    fit = all_axes().fit(P)
    assert np.allclose(fit.as_embedding().distances(), bhattacharyya(P), atol=1e-10)
    values, coordinates = reference.inpca(reference.bhattacharyya(P, P))
    assert np.allclose(fit.eigenvalues_, values, atol=1e-10)
    assert np.allclose(np.abs(fit.embedding_[:, 0]), np.abs(coordinates[:, 0]), atol=1e-7)


def test_negative_eigenvalues_are_kept_in_the_order_of_their_size():
    fit = all_axes().fit(np.concatenate([learning(seed) for seed in range(3)]))
    assert (np.diff(np.abs(fit.eigenvalues_)) <= 0).all()
    assert (fit.signature_ == np.where(fit.eigenvalues_ < 0, -1, 1)).all()
    assert (fit.signature_ < 0).any()


def test_explained_stress_is_the_published_formula():
    fit = InPCA(n_components=4).fit(models(count=8))
    squares = fit.eigenvalues_**2
    expected = [1 - np.sqrt(1 - squares[: k + 1].sum() / squares.sum()) for k in range(4)]
    assert np.allclose(fit.explained_stress_, expected, atol=1e-12)
    assert explained_stress(np.zeros(3)).tolist() == [1, 1, 1]


@given(seed=SEEDS)
@settings(max_examples=10, deadline=None)
def test_models_of_the_fit_are_projected_onto_themselves(seed):
    P = models(seed, 7)
    fit = all_axes().fit(P)
    coordinates, residual = fit.project(P)
    assert np.allclose(coordinates, fit.embedding_, atol=1e-6)
    assert np.allclose(residual, 0, atol=1e-10)


def test_a_new_model_keeps_its_distances_as_far_as_the_map_can():
    P = np.concatenate([learning(0), learning(1)])
    fit = all_axes().fit(P[:-1])
    (point,), (residual,) = fit.project(P[-1:])
    d = bhattacharyya(P[-1:], P[:-1])[0]
    found = ((point - fit.embedding_) ** 2) @ fit.signature_ + residual
    assert np.allclose(found, d, atol=1e-8)


def test_precomputed_is_the_same_map():
    P, new = models(count=7), models(seed=1, count=2)
    direct, given_distances = InPCA().fit(P), InPCA(metric="precomputed").fit(bhattacharyya(P))
    assert np.allclose(direct.embedding_, given_distances.embedding_, atol=1e-12)
    assert np.allclose(direct.transform(new), given_distances.transform(bhattacharyya(new, P)), atol=1e-10)


def test_tensors_and_other_metrics():
    P = models(count=6)
    assert np.allclose(InPCA(2).fit(torch.from_numpy(P)).embedding_, InPCA(2).fit(P).embedding_)
    euclidean = all_axes(metric="hellinger").fit(P)
    assert (euclidean.eigenvalues_ > -1e-12).all()  # squared distances of points in Euclidean space
    assert np.allclose(euclidean.as_embedding().distances(), hellinger(P), atol=1e-12)


@given(seed=SEEDS)
@settings(max_examples=10, deadline=None)
def test_the_order_of_models_does_not_matter(seed):
    P = models(seed, 7)
    order = np.random.default_rng(seed).permutation(7)
    assert np.allclose(InPCA(2).fit(P[order]).embedding_, InPCA(2).fit(P).embedding_[order], atol=1e-9)


def test_signs_are_fixed():
    fit = all_axes().fit(models(count=6))
    largest = np.abs(fit.embedding_).argmax(0)
    assert (fit.embedding_[largest, np.arange(6)] > 0).all()


def test_a_point_of_weight_two_is_a_point_given_twice():
    P = models(count=6)
    weighted = InPCA(3).fit(P, point_weights=np.array([2, 1, 1, 1, 1, 1.0]))
    doubled = InPCA(3).fit(np.concatenate([P[:1], P]))
    assert np.allclose(weighted.embedding_, doubled.embedding_[1:], atol=1e-9)
    everything = InPCA(None).fit(P, point_weights=np.arange(1.0, 7))
    assert np.allclose(everything.as_embedding().distances(), bhattacharyya(P), atol=1e-10)
    assert np.allclose(np.arange(1.0, 7) @ everything.embedding_, 0, atol=1e-6)


def test_a_point_of_no_weight_is_projected():
    P = models(count=6)
    fit = InPCA(3).fit(P, point_weights=np.array([1, 1, 0, 1, 1, 1]))
    without = InPCA(3).fit(np.delete(P, 2, 0))
    assert np.allclose(np.delete(fit.embedding_, 2, 0), without.embedding_, atol=1e-12)
    assert np.allclose(fit.embedding_[2:3], without.transform(P[2:3]), atol=1e-12)
    assert np.allclose(fit.transform(P), fit.embedding_, atol=1e-8)


def test_a_sample_of_weight_two_is_a_sample_given_twice():
    P = models(count=6, samples=5)
    weights = np.array([2, 0, 1, 1, 3.0])
    weighted = InPCA(3).fit(P, sample_weights=weights)
    assert np.allclose(weighted.embedding_, InPCA(3).fit(P.repeat(weights.astype(int), 1)).embedding_, atol=1e-10)
    new = models(seed=4, count=2, samples=5)
    assert np.allclose(
        weighted.transform(new),
        InPCA(3).fit(P.repeat(weights.astype(int), 1)).transform(new.repeat(weights.astype(int), 1)),
        atol=1e-9,
    )


def test_even_weights_change_nothing():
    P = models(count=6)
    weighted = InPCA(3).fit(P, point_weights=np.ones(6), sample_weights=np.full(12, 0.25))
    assert np.allclose(weighted.embedding_, InPCA(3).fit(P).embedding_, atol=1e-12)


def test_landmarks_come_close_to_the_whole_map():
    P = np.concatenate([learning(seed, steps=30, noise=0.05) for seed in range(3)])
    whole, few = InPCA(2).fit(P), InPCA(2, landmarks=40).fit(P)
    assert len(few.base_) == 40
    assert few.embedding_.shape == whole.embedding_.shape
    assert np.allclose(few.transform(P), few.embedding_, atol=1e-8)
    assert procrustes(few.embedding_, whole.embedding_, whole.signature_).disparity < 0.1
    again = InPCA(2, landmarks=40).fit(P)
    assert (again.embedding_ == few.embedding_).all()
    assert np.allclose(InPCA(2, landmarks=len(P)).fit(P).embedding_, whole.embedding_)
    assert few.as_embedding().eigenvalues.shape == (40,)


def test_trajectories_keep_their_names_and_steps():
    a, b, c = run("a"), run("b", seed=1, steps=4), run("b", seed=2)
    fit = InPCA(2).fit([a, b, c])
    together = np.concatenate([each.probabilities() for each in (a, b, c)])
    assert np.allclose(fit.embedding_, InPCA(2).fit(together).embedding_, atol=1e-6)
    found = fit.as_embedding()
    assert found.runs == ("a",) * 9 + ("b #1",) * 4 + ("b #2",) * 9
    assert found.steps.tolist() == [*range(0, 90, 10), *range(0, 40, 10), *range(0, 90, 10)]
    assert np.allclose(fit.transform(b), fit.embedding_[9:13], atol=1e-5)
    assert np.allclose(InPCA(2).fit(a).embedding_, InPCA(2).fit([a]).embedding_)


def test_slabs_of_samples_add_up(monkeypatch):
    runs = [run("a"), run("b", seed=1)]
    whole = InPCA(2).fit(runs)
    monkeypatch.setattr("taskatlas.paths.predictions._SLAB", 1000)
    assert np.allclose(InPCA(2).fit(runs).embedding_, whole.embedding_, atol=1e-6)
    weights = np.arange(30.0)
    slabs = InPCA(2).fit(runs, sample_weights=weights).embedding_
    monkeypatch.undo()
    assert np.allclose(slabs, InPCA(2).fit(runs, sample_weights=weights).embedding_, atol=1e-6)


def test_the_bootstrap_is_centred_on_the_map_and_narrows_with_samples():
    def spread(samples):
        P = np.concatenate([learning(seed, samples=samples) for seed in range(2)])
        fit = InPCA(2).fit(P)
        found = fit.bootstrap(20)
        assert found.coordinates.shape == (20, 18, 2)
        assert np.abs(found.coordinates.mean(0) - fit.embedding_).max() < 4 * found.coordinates.std(0).max()
        return found.coordinates.std(0).mean()

    assert spread(400) < 0.6 * spread(40)


def test_the_bootstrap_is_fixed_by_its_seed_and_takes_runs():
    runs = [run("a"), run("b", seed=1)]
    fit = InPCA(2).fit(runs)
    found, again = fit.bootstrap(3, seed=5), fit.bootstrap(3, seed=5)
    assert (found.coordinates == again.coordinates).all()
    assert (found.coordinates != fit.bootstrap(3, seed=6).coordinates).any()
    assert "3 resamples" in repr(found)
    P = models()
    for other in (InPCA(2, "precomputed").fit(bhattacharyya(P)), InPCA(2, landmarks=3).fit(P)):
        with pytest.raises(BadInput, match="draws samples again"):
            other.bootstrap(3)


def test_scikit_learn_accepts_it(monkeypatch):
    monkeypatch.setattr(config, "jaxtyping_disable", True)  # it builds estimators with arguments of any kind
    check_estimator(
        InPCA(n_components=1, metric="precomputed"),
        expected_failed_checks={"check_positive_only_tag_during_fit": "it shifts distances, diagonal and all"},
    )
    fit = InPCA(n_components=2, landmarks=5)
    assert clone(fit).get_params() == fit.get_params()
    assert list(InPCA(2).fit(models()).get_feature_names_out()) == ["inpca0", "inpca1"]


@pytest.mark.parametrize(
    ("distances", "words"),
    [
        (np.arange(9.0).reshape(3, 3) * (1 - np.eye(3)), "not symmetric"),
        (np.ones((3, 3)), "diagonal"),
        (np.zeros((3, 4)), "square"),
        (np.full((3, 3), np.nan), "NaN"),
    ],
)
def test_matrices_that_are_no_distances(distances, words):
    with pytest.raises(ValueError, match=words):
        InPCA(1, "precomputed").fit(distances)


def test_bad_input():
    P = models(count=5)
    with pytest.raises(BadInput, match="metric 'euclidean'"):
        InPCA(metric="euclidean").fit(P)
    with pytest.raises(BadInput, match="6 axes from n_samples = 5"):
        InPCA(6).fit(P)
    with pytest.raises(BadInput, match="3 axes from n_samples = 1"):
        InPCA().fit(P[:1])
    with pytest.raises(BadInput, match="precomputed"):
        InPCA().fit(bhattacharyya(P))
    with pytest.raises(BadInput, match="same probe"):
        InPCA(2).fit(P).transform(models(count=2, samples=5))
    with pytest.raises(BadInput, match="weights"):
        InPCA(2).fit(P, point_weights=np.ones(4))
    with pytest.raises(BadInput, match="samples any more"):
        InPCA(2, "precomputed").fit(bhattacharyya(P), sample_weights=np.ones(12))
    with pytest.raises(BadInput, match="other samples"):
        InPCA(2).fit([run("a"), run("b", samples=29)])
    with pytest.raises(BadInput, match="other samples"):
        InPCA(2).fit([run("a")]).transform(run("b", samples=29))


# The map as a value


def test_an_embedding_is_saved_and_loaded_whole(tmp_path):
    found = InPCA(3).fit([run("ä"), run("b", seed=1)]).as_embedding()
    found.save(tmp_path / "map.npz")
    again = Embedding.load(tmp_path / "map.npz")
    assert again.digest == found.digest
    assert repr(again) == repr(found)
    assert again.runs[0] == "ä"
    (tmp_path / "map.npz").write_bytes((tmp_path / "map.npz").read_bytes()[:-300])
    for name in ("map.npz", "missing.npz"):
        with pytest.raises(BadInput, match="no embedding"):
            Embedding.load(tmp_path / name)


def test_an_embedding_that_does_not_fit_itself():
    with pytest.raises(BadInput, match="needs a run and a step"):
        Embedding(np.zeros((3, 2)), np.zeros(3), ["a"], [0, 1, 2])


@pytest.mark.parametrize("axes", [(0, 1), (2, 0), (0, 1, 2)])
def test_time_like_axes_are_marked_in_the_picture(axes):
    found = Embedding(np.random.default_rng(0).normal(size=(4, 3)), [3, -1, 0.5, 0], ["a", "a", "b", "b"], [1, 0, 0, 1])
    ax = found.plot(axes=axes)
    labels = [ax.get_xlabel(), ax.get_ylabel(), ax.get_zlabel() if len(axes) == 3 else ""]
    assert ["time-like" in label for label in labels[: len(axes)]] == [axis == 1 for axis in axes]
    assert {text.get_text() for text in ax.get_legend().get_texts()} == {"a", "b"}
    line = ax.lines[0]
    first = line.get_data()[0][0] if len(axes) == 2 else line.get_data_3d()[0][0]
    assert first == found.coordinates[1, axes[0]]  # a run is drawn in the order of its steps


def test_axes_that_are_not_there():
    found = InPCA(2).fit(models()).as_embedding()
    with pytest.raises(BadInput, match="cannot draw axes"):
        found.plot(axes=(0, 2))


# Alignment


@given(seed=SEEDS)
@settings(max_examples=10, deadline=None)
def test_procrustes_undoes_a_motion(seed):
    random = np.random.default_rng(seed)
    points = random.normal(size=(9, 3))
    turn = np.linalg.qr(random.normal(size=(3, 3)))[0]
    found = procrustes(points, points @ turn + random.normal(size=3))
    assert np.allclose(found.rotation, turn)
    assert found.disparity < 1e-20


def test_procrustes_does_not_mix_space_and_time():
    random = np.random.default_rng(0)
    points, target = random.normal(size=(2, 9, 3))
    rotation = procrustes(points, target, np.array([1, -1, 1])).rotation
    assert rotation[1, [0, 2]].tolist() == rotation[[0, 2], 1].tolist() == [0, 0]
    assert np.allclose(rotation @ rotation.T, np.eye(3))
    with pytest.raises(BadInput, match="same models"):
        procrustes(points, target[:5])
    with pytest.raises(BadInput, match="signs"):
        procrustes(points, target, np.ones(2))

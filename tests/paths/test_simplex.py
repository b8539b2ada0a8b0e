"""What is refused as probabilities, weights or labels, and what the message names."""

import numpy as np
import pytest
import torch
from tests.paths.make import models

from taskatlas.errors import BadInput
from taskatlas.paths import bhattacharyya, check_simplex, from_log_probabilities, hellinger, progress, symmetric_kl
from taskatlas.paths.simplex import as_tensor, check_labels, check_weights, unit_roots

DIVERGENCES = [bhattacharyya, hellinger, symmetric_kl]


@pytest.mark.parametrize(
    ("value", "words"),
    [(np.nan, "NaN"), (-0.2, "negative"), (0.9, "sum to"), (np.inf, "sum to")],
    ids=["nan", "negative", "sum", "infinite"],
)
@pytest.mark.parametrize("divergence", DIVERGENCES, ids=lambda f: f.__name__)
def test_a_bad_row_is_named(divergence, value, words):
    P = models(count=4, samples=6)
    P[2, 5, 0] = value
    with pytest.raises(BadInput, match=rf"model 2, sample \d.*{words}"):
        divergence(P)
    with pytest.raises(BadInput, match=words):
        divergence(models(samples=6), P)


def test_the_sample_is_named_by_its_place_in_the_probe_and_not_in_a_slab():
    P = models(count=3, samples=40)
    P[1, 37] = 0.9
    with pytest.raises(BadInput, match="model 1, sample 37"):
        bhattacharyya(P, chunk=1000)


def test_log_probabilities_and_half_precision_are_recognised():
    with pytest.raises(BadInput, match="exponential"):
        check_simplex(np.log(models()))
    with pytest.raises(BadInput, match="float32"):
        check_simplex(models().astype(np.float16))
    with pytest.raises(BadInput, match="float32"):
        bhattacharyya(torch.from_numpy(models()).bfloat16())


def test_names_of_models_reach_the_message():
    P = models(count=2)
    P[1, 3, 0] = np.nan
    with pytest.raises(BadInput, match="model 'second', sample 3"):
        check_simplex(P, names=["first", "second"])


def test_rows_of_float32_pass_and_rounded_ones_do_not():
    P = models(classes=1000, samples=3, sharpness=3)
    check_simplex(P.astype(np.float32))
    with pytest.raises(BadInput, match="sum to"):
        check_simplex(P.round(4))


def test_unit_roots_have_unit_length():
    roots = unit_roots(torch.from_numpy(models() * (1 + 5e-5)))
    assert torch.allclose(roots.square().sum(-1), torch.ones(()).double(), atol=1e-15)


def test_from_log_probabilities():
    P = models()
    assert np.allclose(from_log_probabilities(np.log(P)), P, atol=1e-15)
    assert isinstance(from_log_probabilities(torch.from_numpy(np.log(P))), torch.Tensor)
    with np.errstate(divide="ignore"):
        assert (from_log_probabilities(np.log(np.eye(3))) == np.eye(3)).all()
    with pytest.raises(BadInput, match="sum to"):
        from_log_probabilities(np.log(P) + 0.1)


@pytest.mark.parametrize("bad", [[0, 4, 0], [0, -1, 0]], ids=["high", "negative"])
def test_a_label_out_of_range_is_named(bad):
    with pytest.raises(BadInput, match=r"sample 1: label .* out of range"):
        check_labels(np.array(bad), 3, 4)


def test_labels_of_another_number_or_kind_are_refused():
    with pytest.raises(BadInput, match="one label a sample"):
        progress(models(samples=6), np.zeros(5, dtype=int))
    for kind in (torch.bool, torch.bfloat16, torch.complex64):
        with pytest.raises(BadInput, match="whole numbers"):
            check_labels(torch.zeros(3, dtype=kind), 3, 4)
    assert check_labels(torch.tensor([0, 3, 1], dtype=torch.uint32), 3, 4).tolist() == [0, 3, 1]


@pytest.mark.parametrize("kind", ["u1", "u2", "u4", "u8", "i1", ">i4", ">i8", ">u2"])
def test_labels_of_every_kind_of_whole_number(kind):
    assert check_labels(np.array([0, 3, 1]).astype(kind), 3, 4).tolist() == [0, 3, 1]
    with pytest.raises(BadInput, match="sample 1: label 3 is out of range"):
        check_labels(np.array([0, 3, 1]).astype(kind), 3, 3)


@pytest.mark.parametrize("kind", ["U3", "S3", "O", "c16", "f4"])
def test_labels_that_are_no_whole_numbers(kind):
    with pytest.raises(BadInput, match="whole numbers from 0 to 3"):
        check_labels(np.array([0, 3, 1]).astype(kind), 3, 4)


@pytest.mark.parametrize("kind", [">f8", ">f4", "<f4"])
def test_predictions_in_any_byte_order(kind):
    P = models().astype(kind)
    found = bhattacharyya(P)
    assert found.dtype == P.dtype
    np.testing.assert_allclose(found.astype(float), bhattacharyya(models()), atol=1e-6)
    assert torch.equal(as_tensor(models().astype(np.longdouble)), torch.from_numpy(models()))


@pytest.mark.parametrize("bad", [[1, -1, 1], [0, 0, 0], [1, np.nan, 1], [1, 1]], ids=["negative", "zero", "nan", "few"])
def test_weights_that_are_none_are_refused(bad):
    with pytest.raises(BadInput, match="weights"):
        check_weights(np.array(bad, dtype=float), 3, "samples")

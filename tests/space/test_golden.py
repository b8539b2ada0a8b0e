"""The published covariance of 34 language models: what is known of it, and the paper's selection."""

import numpy as np
import pytest
from tests.references import space as reference

from taskatlas.space import TaskSpace, gaussian_kl, matrix_cosine, select


@pytest.fixture(scope="module")
def published(real_input):
    return TaskSpace.from_matrix(real_input / "golden/space/kappa34.npy", real_input / "golden/space/names34.txt")


def test_names_are_in_the_order_of_the_file(published, real_input):
    lines = (real_input / "golden/space/names34.txt").read_text().split()
    assert published.names == tuple(lines)
    assert len(published) == 34
    assert {"roberta-base", "t5-base", "bart-large"} <= set(published.names)


def test_the_matrix_is_as_it_was_published(published):
    matrix = published.covariance
    off = matrix[~np.eye(34, dtype=bool)]
    assert (matrix == matrix.T).all()
    assert np.diagonal(matrix) == pytest.approx(np.ones(34), abs=1e-6)
    assert off.min() == pytest.approx(0.00075, abs=5e-6)
    assert off.max() == pytest.approx(0.954, abs=5e-4)
    assert off.mean() == pytest.approx(0.248, abs=5e-4)
    eigenvalues = np.linalg.eigvalsh(matrix)
    assert eigenvalues[[0, -1]] == pytest.approx([0.0449, 11.196], abs=5e-4)
    assert np.linalg.slogdet(matrix)[1] == pytest.approx(-17.88286, abs=1e-5)
    assert gaussian_kl(matrix, np.eye(34)) == pytest.approx(17.88286 / 2, abs=1e-4)
    assert matrix_cosine(matrix, np.eye(34)) == pytest.approx(np.sqrt(34) / np.linalg.norm(matrix), abs=1e-6)


def test_the_closest_pair(published):
    matrix = published.covariance - 2 * np.eye(34)
    i, j = np.unravel_index(matrix.argmax(), matrix.shape)
    assert {published.names[i], published.names[j]} == {"longformer-base", "roberta-base"}
    first = published.linkage()[0]
    assert {published.names[int(leaf)] for leaf in first[:2]} == {"longformer-base", "roberta-base"}
    assert first[2] == pytest.approx(1 - published["longformer-base", "roberta-base"])


def test_the_papers_selection(published):
    found = select(published, 5)
    assert found.names == ("roberta-base", "distilbert-base-uncased", "t5-base", "bert-base-cased", "bart-large")
    assert found.totals[0] == pytest.approx(1.2259, abs=5e-5)
    assert found.totals[4] == pytest.approx(2.9484, abs=5e-5)
    assert found.left_out == {}


def test_mutual_information_peaks_at_fifteen(published):
    everything = select(published, 34)
    assert int(np.argmax(everything.totals)) + 1 == 15
    assert everything.totals[-1] == pytest.approx(0, abs=1e-9)
    peak = select(published, stop_at_peak=True)
    assert peak.names == everything.names[:15]


def test_every_pick_is_the_plain_greedy_one(published):
    matrix = published.subset(sorted(published.names)).covariance
    picked, gains = reference.greedy_mutual_information(matrix, 34)
    found = select(published, 34)
    assert [sorted(published.names).index(name) for name in found.names] == picked
    assert [step.gain for step in found.steps] == pytest.approx(gains, abs=1e-9)


def test_the_picture_of_the_paper(published):
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    ax = published.plot()
    assert sorted(label.get_text() for label in ax.get_yticklabels()) == sorted(published.names)
    plt.close(ax.figure)

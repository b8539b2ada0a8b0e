"""Real trainings: what their pictures show is in the numbers."""

import numpy as np
import pytest

from taskatlas.paths import InPCA, Trajectory, saturated_share, shuffle_null, trajectory_distance

NAMES = ("all_a", "all_b", "slow", "randlab")


@pytest.fixture(scope="module")
def runs(real_input):
    return {name: Trajectory.from_npz(real_input / f"zoo/cifar10-runs/{name}.traj.npz") for name in NAMES}


def test_trainings_lie_on_a_map_of_few_axes(runs):
    fit = InPCA(3).fit(list(runs.values()))
    assert fit.embedding_.shape == (92, 3)
    assert fit.explained_stress_[-1] > 0.8
    assert InPCA(None).fit(list(runs.values())).as_embedding().distances().max() == pytest.approx(2.4966, abs=1e-4)
    assert all(saturated_share(run.probabilities()) == 0 for run in runs.values())


def test_two_seeds_are_no_nearer_to_each_other_than_to_a_slow_training(runs):
    seeds = trajectory_distance(runs["all_a"], runs["all_b"])
    slow = trajectory_distance(runs["all_a"], runs["slow"])
    assert seeds == pytest.approx(0.120, abs=0.0005)
    assert slow == pytest.approx(0.111, abs=0.0005)


def test_random_labels_lead_nowhere(runs):
    assert runs["randlab"].progress().max() < 0.008
    assert all(runs[name].progress().max() > 0.3 for name in NAMES[:3])
    assert runs["randlab"].accuracy()[-1] == pytest.approx(0.079, abs=1e-3)


def test_progress_asked_for_is_reached(runs):
    for run in runs.values():
        reached = run.progress()
        grid = np.linspace(reached[0], reached.max(), 7)
        assert np.abs(run.resample(grid).progress() - grid).max() < 1e-3


def test_seeds_err_on_the_same_samples(runs):
    assert shuffle_null(runs["all_a"], runs["all_b"], shuffles=9).p_value == 0.1


def test_a_public_training(real_input):
    run = Trajectory.from_npz(real_input / "zoo/fer-mini-xception.traj.npz")
    progress, falls = run.progress(), run.regressions()
    assert len(run) == 21
    assert progress[[0, -1]] == pytest.approx([0.262, 0.474], abs=5e-4)
    assert run.length() == pytest.approx(11.5, abs=0.05)
    assert run.tortuosity() == pytest.approx(10.6, abs=0.05)
    assert len(falls) == 6
    assert max(fall.depth for fall in falls) == pytest.approx(0.020, abs=5e-4)
    assert InPCA(3).fit(run).explained_stress_[[0, 2]] == pytest.approx([0.51, 0.65], abs=0.005)


@pytest.mark.parametrize(
    ("name", "share", "sureness", "best", "fallen", "right"),
    [("all_a", 0.80, 0.82, 0.181, 0.080, 0.17), ("all_b", 0.90, 0.83, 0.173, 0.033, 0.12)],
)
def test_the_detour_of_the_fast_runs_is_sure_and_wrong(runs, name, share, sureness, best, fallen, right):
    run = runs[name]
    at = run.steps.tolist().index(50)
    progress = run.progress()
    assert (progress[:at].max(), progress[at]) == pytest.approx((best, fallen), abs=5e-4)
    assert run.accuracy()[at] == pytest.approx(right, abs=0.005)
    probs = run.probabilities()[at]
    assert np.bincount(probs.argmax(-1)).max() / len(probs) == pytest.approx(share, abs=0.005)
    assert probs.max(-1).mean() == pytest.approx(sureness, abs=0.005)

"""Agreement scores: what they measure, what they do not depend on, what they refuse."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from taskatlas.errors import BadInput, WorkFailed
from taskatlas.learn import mlp
from taskatlas.probe import Probe
from taskatlas.store import Store
from taskatlas.tasks import (
    Agreement,
    Null,
    Task,
    Training,
    agreement_score,
    agreement_scores,
    human_tasks,
    random_tasks,
)
from taskatlas.tasks import agreement as score_module
from taskatlas.tasks import jobs as module
from taskatlas.tasks.agreement import load_agreements, mean_interval, pair_agreement, save_agreements
from taskatlas.tasks.samples import hold_out

QUICK = Training(epochs=12, batch_size=32, learning_rate=0.01)


def small(shape, classes):
    return mlp(shape[0], (16,), classes)


def scores(tasks, data, **settings):
    return agreement_scores(tasks, small, data, **{"training": QUICK, "seeds": 2, "nulls": 1, **settings})


def test_networks_agree_on_what_there_is_to_learn_and_not_on_chance(blobs):
    data = blobs()
    real, chance = scores([human_tasks(data, 1)[0], random_tasks(data, 1)[0]], data)
    assert real.agreement > max(0.9, chance.agreement)
    assert real.accuracy > 0.9 > 0.7 > chance.accuracy
    assert real.held_out == 48
    assert real.lift["random"][0] == pytest.approx(real.agreement - real.nulls["random"].agreement)
    assert real.lift["random"][0] > 0.05
    low, high = real.interval
    assert low <= real.agreement <= high
    assert len(real.values) == 2
    assert len(real.nulls["untrained"].values) == 1
    assert "over random" in repr(real)


def test_neither_the_order_of_the_data_nor_the_company_nor_the_engine_matters(blobs, tmp_path):
    data = blobs(160)
    tasks = human_tasks(data, 3)
    first = scores(tasks, data, nulls=0, store=Store(tmp_path / "a"))
    order = np.random.default_rng(2).permutation(len(data))
    shuffled = data.take(order)
    again = scores([task.among(shuffled.ids) for task in tasks], shuffled, nulls=0, store=Store(tmp_path / "b"))
    assert [one.digest for one in again] == [one.digest for one in first]
    threaded = scores(tasks, data, nulls=0, engine="threads:2", store=Store(tmp_path / "c"))
    assert [one.digest for one in threaded] == [one.digest for one in first]
    alone = scores(tasks[1:2], data, nulls=0, store=Store(tmp_path / "d"))[0]
    np.testing.assert_allclose(alone.values, first[1].values, atol=1 / first[1].held_out)


@pytest.mark.parametrize("rates", [(0.84, 0.16), (0.57, 0.43), (0.7, 0.2, 0.1)])
def test_nulls_have_the_rates_of_their_task(blobs, monkeypatch, rates):
    """Random labels have no lift over random labels: there would be one if theirs were more even."""
    data = blobs(400)
    made = []
    keep = score_module._null_tasks
    monkeypatch.setattr(score_module, "_null_tasks", lambda *a, **k: made.append(keep(*a, **k)) or made[-1])
    task = random_tasks(data, 1, rates=rates)[0]
    found = scores([task, task.complement()], data, training=Training(epochs=1, batch_size=32), seeds=1)
    assert len(made) == 1
    assert found[0].nulls == found[1].nulls
    for family in made[0].values():
        for null in family:
            np.testing.assert_allclose(null.class_rates, task.class_rates, atol=0.0026)


def test_a_task_and_its_complement_score_alike(blobs):
    data = blobs(160)
    task = human_tasks(data, 1)[0]
    one, other = scores([task, task.complement()], data, nulls=0)
    assert one.agreement == pytest.approx(other.agreement, abs=0.1)
    assert one.class_rates == other.class_rates[::-1]


def test_results_come_from_the_store(blobs, monkeypatch):
    data = blobs(160)
    tasks = human_tasks(data, 2)
    first = scores(tasks, data)
    monkeypatch.setattr(module, "train", lambda *_, **__: pytest.fail("trained again"))
    assert [one.digest for one in scores(tasks, data)] == [one.digest for one in first]
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        scores(tasks, data, seed=1)


def test_closures_that_build_other_networks_are_told_apart(blobs):
    data = blobs(160)
    task = human_tasks(data, 1)[0]
    found = [
        agreement_score(
            task, lambda classes, w=width: mlp(6, (w,), classes), data, training=QUICK, seeds=1, nulls=0
        ).soft
        for width in (1, 16)
    ]
    assert found[0] != found[1]


@pytest.mark.parametrize("differ", [("initialisation",), ("order",), ("half",), ("initialisation", "order", "half")])
def test_what_differs_between_learners(blobs, differ):
    found = scores(human_tasks(blobs(), 1), blobs(), differ=differ, nulls=0, seeds=1)[0]
    assert 0.6 < found.agreement <= 1
    assert math.isnan(found.interval[0])
    if differ == ("half",):
        assert found.fit < 1


def test_learners_that_differ_in_nothing_that_matters_agree_fully(blobs):
    """One order and one initialisation: the halves alone differ; with whole batches in any order nothing does."""
    data = blobs(160)
    training = Training(epochs=3, batch_size=128, learning_rate=0.01)
    found = agreement_scores(human_tasks(data, 1), small, data, training=training, differ=("order",), seeds=1, nulls=0)
    assert found[0].agreement == 1
    assert found[0].soft < 1


def test_networks_with_batch_statistics_train_in_turn(blobs):
    def normed(classes):
        return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, classes))

    data = blobs(160)
    found = agreement_score(human_tasks(data, 1)[0], normed, data, training=QUICK, seeds=1, nulls=0)
    assert found.agreement > 0.8


def test_a_network_with_batch_statistics_sees_its_own_half(blobs):
    seen = {}

    def normed(classes):
        network = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, classes))
        network.register_forward_pre_hook(
            lambda module, x: seen.setdefault(id(module), []).append(x[0].clone()) if module.training else None
        )
        return network

    settings = {"training": QUICK, "seeds": 1, "nulls": 0, "differ": ("half",)}
    agreement_score(human_tasks(blobs(160), 1)[0], normed, blobs(160), **settings)
    one, other = ({tuple(row) for batch in batches for row in batch.tolist()} for batches in seen.values())
    assert (len(one), len(other), len(one & other)) == (64, 64, 0)


def test_networks_that_cannot_be_stacked_train_in_turn(blobs):
    class Branching(nn.Module):
        def __init__(self, classes):
            super().__init__()
            self.first, self.second = nn.Linear(6, 16), nn.Linear(16, classes)

        def forward(self, x):
            h = self.first(x)
            return self.second(h.relu() if h.mean() > -100 else h)

    data = blobs(160)
    found = agreement_score(human_tasks(data, 1)[0], Branching, data, training=QUICK, seeds=1, nulls=0)
    assert found.agreement > 0.8


def test_a_function_that_cannot_be_sent_to_a_process_is_told(blobs, tmp_path):
    data = blobs(160)
    with pytest.raises(BadInput, match=r"cannot be sent to another process.*threads:N"):
        agreement_score(
            human_tasks(data, 1)[0],
            lambda classes: mlp(6, (4,), classes),
            data,
            training=QUICK,
            seeds=1,
            nulls=0,
            engine="processes:1",
        )


def test_texts_and_images_and_three_classes():
    texts = [f"{'good fine nice' if i % 2 else 'bad poor awful'} number {i}" for i in range(120)]
    data = Probe.from_text(texts, labels=[i % 2 for i in range(120)])
    found = agreement_score(Task.of_probe("mood", data), "mlp", data, training=QUICK, seeds=1, nulls=0)
    assert found.agreement > 0.9
    pixels = np.zeros((90, 8, 8, 3), np.uint8)
    pixels[np.arange(90), :, :, np.arange(90) % 3] = 200
    images = Probe.from_arrays(pixels, labels=np.arange(90) % 3)
    quick = Training(epochs=20, batch_size=32, learning_rate=0.02)
    found = agreement_score(Task.of_probe("colour", images), "small_cnn", images, training=quick, seeds=1, nulls=1)
    assert len(found.class_rates) == 3
    assert found.nulls["untrained"].agreement >= 0


def test_a_pair_agrees_where_both_say_the_same():
    one, other = torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    hard, soft = pair_agreement(one, other)
    p, q = one.softmax(-1).numpy(), other.softmax(-1).numpy()
    assert hard == pytest.approx(np.mean([a.argmax() == b.argmax() for a, b in zip(p, q, strict=True)]))
    assert soft == pytest.approx(np.mean([sum(a * b) for a, b in zip(p, q, strict=True)]))
    assert mean_interval(np.array([0.2, 0.4, 0.6])) == pytest.approx((0, 0.4 + 4.30265 * 0.2 / 3**0.5), abs=1e-4)


def test_lifts_have_welchs_interval():
    values, others = (0.9, 0.95, 0.97), (0.7, 0.72, 0.69, 0.75)
    one = Agreement(
        "t", 0.94, (0.9, 1.0), 0.9, 0.9, 1.0, (0.5, 0.5), values, {"random": Null(0.715, (0.6, 0.8), others)}
    )
    expected = stats.ttest_ind(values, others, equal_var=False).confidence_interval()
    assert one.lift["random"][1:] == pytest.approx((expected.low, expected.high))
    single = replace(one, nulls={"random": Null(0.7, (math.nan, math.nan), (0.7,))})
    assert single.lift["random"][0] == pytest.approx(0.24)
    assert np.isnan(single.lift["random"][1:]).all()


@pytest.mark.parametrize("count", [2, 5])
def test_the_interval_of_a_lift_holds_for_other_draws_of_null_tasks(monkeypatch, blobs, count):
    """Null tasks differ by .02, repeats by .005: in 19 of 20 searches the true lift of .3 is within."""
    draw = np.random.default_rng(0)
    data = blobs(160)
    task = human_tasks(data, 1)[0]

    def measure(tasks, *_, **__):
        means = [0.9, *(0.6 + 0.02 * draw.standard_normal(len(tasks) - 1))]
        return [np.tile(mean + 0.005 * draw.standard_normal((3, 1)), (1, 4)) for mean in means]

    made = {"random": random_tasks(data, count)}
    monkeypatch.setattr(score_module, "_null_tasks", lambda *_, **__: made)
    monkeypatch.setattr(score_module, "_measure", measure)
    lifts = [scores([task], data, nulls=count)[0].lift["random"] for _ in range(400)]
    assert np.mean([low <= 0.3 <= high for _, low, high in lifts]) == pytest.approx(0.95, abs=0.03)


def test_what_is_held_out_follows_ids():
    ids = [f"{i}" for i in range(50)]
    learned, held = hold_out(ids, 0.3, 1)
    assert sorted([*learned, *held]) == list(range(50))
    back = hold_out(ids[::-1], 0.3, 1)[1]
    assert {ids[row] for row in held} == {ids[::-1][row] for row in back}
    for share in (0.0, 1.0, -1.0, 0.001):
        with pytest.raises(BadInput, match="leaves one side empty"):
            hold_out(ids, share, 0)


def test_scores_come_back_from_their_file(blobs, tmp_path):
    found = scores(human_tasks(blobs(160), 1), blobs(160), seeds=1)
    save_agreements(tmp_path / "a.json", found)
    back = load_agreements(tmp_path / "a.json")
    assert back[0].nulls.keys() == found[0].nulls.keys()
    assert (back[0].agreement, back[0].values, back[0].settings) == (
        found[0].agreement,
        found[0].values,
        found[0].settings,
    )
    assert math.isnan(back[0].interval[0])
    found[0].save(tmp_path / "b.json")
    assert repr(Agreement.load(tmp_path / "b.json")) == repr(found[0])
    for text in ("", "{}", "[]", '{"scores": [{"task": 1}]}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(BadInput, match="holds no agreement scores"):
            load_agreements(tmp_path / "bad.json")


# What is refused


def test_nearly_constant_tasks_are_refused(blobs):
    data = blobs(100)
    rare = Task("rare", (np.arange(100) < 3).astype(int), data.ids)
    with pytest.raises(BadInput, match="'rare' is nearly constant"):
        scores([rare], data)


def test_labels_of_other_samples_are_refused(blobs):
    data = blobs(100)
    other = Task("other", np.arange(100) % 2, tuple(f"x{i}" for i in range(100)))
    with pytest.raises(BadInput, match="'other' has no label for 100 of 100 samples, such as 's"):
        scores([other], data)


def test_fewer_samples_than_a_batch_are_refused(blobs):
    data = blobs(40)
    with pytest.raises(BadInput, match="32 training samples are fewer than a batch of 64"):
        agreement_score(human_tasks(data, 1)[0], small, data, training=Training(batch_size=64))


@pytest.mark.parametrize(
    ("learner", "said"),
    [
        (lambda classes: mlp(6, (4,), 3), r"outputs of shape \(3,\) for a sample, and 2 are needed"),
        (lambda classes: mlp(5, (4,), classes), r"cannot take samples of shape \(6,\)"),
        ("no.such:thing", "cannot be imported"),
    ],
)
def test_learners_that_do_not_fit_are_refused(blobs, learner, said):
    data = blobs(100)
    with pytest.raises(BadInput, match=said):
        agreement_score(human_tasks(data, 1)[0], learner, data, training=QUICK)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"learners": 1}, "at least 2 learners"),
        ({"seeds": 0}, "at least 2 learners and 1 repeat"),
        ({"differ": ()}, "cannot differ in"),
        ({"held_out": 0.0}, "leaves one side empty"),
    ],
)
def test_settings_that_make_no_sense_are_refused(blobs, settings, said):
    with pytest.raises(BadInput, match=said):
        scores(human_tasks(blobs(100), 1), blobs(100), **settings)
    with pytest.raises(BadInput, match="no task to score"):
        scores([], blobs(100))


@pytest.mark.parametrize("settings", [{"epochs": 0}, {"learning_rate": 0.0}, {"enough": 1.5}, {"weight_decay": -1.0}])
def test_trainings_that_are_none_are_refused(settings):
    with pytest.raises(BadInput):
        Training(**settings)


def test_a_loss_that_becomes_nan_is_told(blobs):
    data = blobs(100)
    with pytest.raises(WorkFailed, match="became NaN or infinite in epoch"):
        scores(human_tasks(data, 1), data, training=Training(epochs=3, batch_size=32, learning_rate=1e30), nulls=0)

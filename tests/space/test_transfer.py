"""What a selection is worth: against heads trained by hand, random selections, and what is refused."""

import json
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from tests.space.make import network

from taskatlas.errors import BadInput
from taskatlas.probe import Probe, extract
from taskatlas.space import Selection, Transfer, head_score, random_selections, transfer
from taskatlas.space.transfer import load_transfers, save_transfers
from taskatlas.zoo import Zoo

SCORES = Transfer(("a", "b"), 0.8, (0.5, 0.8, 0.9, 0.1), (("a", "c"), ("b", "c")), {"best elsewhere": 0.7}, "accuracy")


def task(seed, n, classes=3):
    """Samples of six numbers whose class is a direction that they lean to."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes)])
    centres = np.random.default_rng(100).standard_normal((classes, 6))
    return (rng.standard_normal((n, 6)) + 1.5 * centres[labels]).astype(np.float32), labels


@pytest.fixture(scope="module")
def zoo():
    return Zoo.open({f"net-{seed}": network(seed) for seed in range(5)})


@pytest.fixture(scope="module")
def train():
    return Probe.from_arrays(*task(1, 60))


@pytest.fixture(scope="module")
def test():
    return Probe.from_arrays(*task(2, 50))


# Against a head by hand


def by_hand(zoo, names, train, test):
    x, y = (np.hstack([extract(zoo[name], probe).values for name in sorted(names)]) for probe in (train, test))
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    head = LogisticRegression(max_iter=2000).fit((x - mean) / deviation, train.labels)
    return head.predict((y - mean) / deviation)


def test_scores_are_those_of_a_head_by_hand(zoo, train, test):
    worth = transfer(zoo, ["net-3", "net-1"], train, test, n_random=2, others={"rival": ["net-0"]})
    assert worth.names == ("net-3", "net-1")
    hits = by_hand(zoo, worth.names, train, test) == test.labels
    assert worth.selected == pytest.approx(hits.mean(), abs=0.021)  # one sample, where solvers stop apart
    assert worth.selected > 0.5
    for names, score in zip(worth.random_names, worth.random, strict=True):
        assert score == pytest.approx((by_hand(zoo, names, train, test) == test.labels).mean(), abs=0.021)
    assert worth.others == {
        "rival": pytest.approx((by_hand(zoo, ["net-0"], train, test) == test.labels).mean(), abs=0.021)
    }


def test_macro_f1_is_the_mean_over_classes(zoo, train, test):
    worth = transfer(zoo, ["net-3"], train, test, n_random=1, metric="macro_f1")
    expected = f1_score(test.labels, by_hand(zoo, ["net-3"], train, test), average="macro")
    assert worth.metric == "macro_f1"
    assert worth.selected == pytest.approx(expected, abs=0.03)


def test_a_head_scores_held_out_samples():
    x, y = task(3, 40)
    assert head_score(x[:20], y[:20], x[20:], y[20:]) > 0.8
    assert head_score(x[:20], y[:20], x[20:], (y[20:] + 1) % 3) < 0.2
    loud = x * np.array([1e4, 1, 1, 1, 1, 1e-4], np.float32)
    assert head_score(loud[:20], y[:20], loud[20:], y[20:]) == head_score(x[:20], y[:20], x[20:], y[20:])


def test_neither_seed_nor_engine_nor_order_changes_what_was_selected(zoo, train, test):
    one = transfer(zoo, ["net-3", "net-1"], train, test, n_random=2)
    assert transfer(zoo, ["net-3", "net-1"], train, test, n_random=2, engine="threads:2") == one
    turned = Zoo.open({name: zoo[name] for name in reversed(list(zoo))})
    assert transfer(turned, ["net-3", "net-1"], train, test, n_random=2) == one
    other = transfer(zoo, ["net-1", "net-3"], train, test, n_random=2, seed=5)
    assert other.selected == one.selected
    assert other.random_names != one.random_names


def test_a_selection_is_taken_by_its_names(zoo, train, test):
    worth = transfer(zoo, Selection(("net-4", "net-2"), ()), train, test, n_random=1)
    assert worth.names == ("net-4", "net-2")


def test_classes_are_matched_by_name(zoo, train):
    x, y = task(4, 40)
    names = np.array(["ant", "bee", "cat"])
    named = Probe.from_arrays(train.inputs, labels=names[train.labels].tolist())
    held_out = Probe.from_arrays(x[y > 0], labels=names[y[y > 0]].tolist())  # no ants: bees would be numbered 0
    assert held_out.labels.min() == 0
    expected = transfer(zoo, ["net-3"], train, Probe.from_arrays(x[y > 0], labels=y[y > 0]), n_random=1)
    assert transfer(zoo, ["net-3"], named, held_out, n_random=1).selected == expected.selected


# Random selections


@given(
    st.lists(st.text("abcdef", min_size=1, max_size=3), min_size=1, max_size=9, unique=True),
    st.data(),
    st.integers(1, 40),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_random_selections_are_distinct_sets(names, data, count, seed):
    k = data.draw(st.integers(1, len(names)))
    found = random_selections(names, k, count, seed)
    assert len(found) == min(count, comb(len(names), k)) == len(set(found))
    assert all(list(one) == sorted(set(one)) and len(one) == k and set(one) <= set(names) for one in found)
    assert random_selections(data.draw(st.permutations(names)), k, count, seed) == found


# The result


def test_a_band_and_a_share():
    assert SCORES.band == pytest.approx((0.16, 0.65, 0.885))
    assert SCORES.beaten == (1 + 0.5 + 0 + 1) / 4
    assert repr(SCORES) == "Transfer(accuracy 0.800 with 2 picked; random 0.650 [0.160, 0.885])"


def test_saved_scores_load_the_same(tmp_path, zoo, train, test):
    worth = transfer(zoo, ["net-3"], train, test, n_random=2, others={"rival": ["net-0"]})
    for one in (worth, SCORES):
        one.save(tmp_path / "transfer.json")
        assert Transfer.load(str(tmp_path / "transfer.json")) == one
        assert Transfer.load(tmp_path / "transfer.json").digest == one.digest
    save_transfers([worth, SCORES], tmp_path / "transfer.json")
    assert load_transfers(tmp_path / "transfer.json") == (worth, SCORES)
    assert worth.digest != SCORES.digest


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", "3", "null", '"text"', "[3]", "[null]", '["text"]', "[{}]", "[" * 100_000, "\x00"],
)
def test_a_file_that_is_no_transfer_is_refused(tmp_path, as_installed, content):
    (tmp_path / "transfer.json").write_text(content)
    with pytest.raises(BadInput, match=r"transfer\.json holds no transfer .*`taskatlas transfer`"):
        Transfer.load(tmp_path / "transfer.json")


@pytest.mark.parametrize(
    "change",
    [{"names": None}, {"selected": "much"}, {"random": [None]}, {"random": 3}, {"random_names": [3]}, {"others": [1]}],
)
def test_scores_with_a_wrong_field_are_refused(tmp_path, as_installed, change):
    SCORES.save(tmp_path / "transfer.json")
    fields = json.loads((tmp_path / "transfer.json").read_text())[0]
    (tmp_path / "transfer.json").write_text(json.dumps([fields | change]))
    with pytest.raises(BadInput, match="holds no transfer"):
        Transfer.load(tmp_path / "transfer.json")
    del fields[next(iter(change))]
    (tmp_path / "transfer.json").write_text(json.dumps([fields]))
    with pytest.raises(BadInput, match="holds no transfer"):
        Transfer.load(tmp_path / "transfer.json")


def test_scores_that_are_not_there_or_not_whole(tmp_path):
    SCORES.save(tmp_path / "transfer.json")
    whole = (tmp_path / "transfer.json").read_bytes()
    (tmp_path / "transfer.json").write_bytes(whole[:-30])
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "transfer.json", tmp_path / "binary.json", tmp_path / "none.json", tmp_path):
        with pytest.raises(BadInput, match="holds no transfer"):
            Transfer.load(path)


# What is refused


@pytest.mark.parametrize(
    ("pick", "change", "words"),
    [
        ([], {}, "the selection is empty"),
        (["net-9"], {}, r"the selection names 'net-9', which is not in the zoo\. There are: net-0, net-1"),
        (["net-1", "net-1"], {}, "the selection names a checkpoint twice: net-1, net-1"),
        (["net-1"], {"others": {"rival": ["net-7"]}}, "rival names 'net-7'"),
        (["net-1"], {"others": {"rival": []}}, "rival is empty"),
        (["net-1"], {"n_random": 0}, "n_random is 0"),
        (["net-1"], {"n_random": -3}, "n_random is -3"),
        (["net-1"], {"metric": "f1"}, r"no metric 'f1'.*macro_f1"),
    ],
)
def test_what_cannot_be_compared_is_refused(as_installed, zoo, train, test, pick, change, words):
    with pytest.raises(BadInput, match=words):
        transfer(zoo, pick, train, test, **change)


def test_labels_are_needed(zoo, train, test):
    bare = Probe.from_arrays(train.inputs)
    with pytest.raises(BadInput, match="the train samples have no labels"):
        transfer(zoo, ["net-1"], bare, test)
    with pytest.raises(BadInput, match="the test samples have no labels"):
        transfer(zoo, ["net-1"], train, bare)


def test_a_class_that_was_never_trained_is_refused(zoo, train, test):
    fewer = train.take(np.flatnonzero(train.labels != 1))
    with pytest.raises(BadInput, match="class 1 is in the test samples and not in the training samples"):
        transfer(zoo, ["net-1"], fewer, test)


def test_one_class_is_no_task(zoo, train):
    alone = train.take(np.flatnonzero(train.labels == 1))
    with pytest.raises(BadInput, match="all training samples have one label"):
        transfer(zoo, ["net-1"], alone, alone)


def test_a_head_of_an_unknown_metric_is_refused(as_installed):
    x, y = task(5, 20)
    with pytest.raises(BadInput, match="no metric 'auc'"):
        head_score(x, y, x, y, metric="auc")

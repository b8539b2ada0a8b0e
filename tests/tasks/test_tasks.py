"""Tasks, where they come from, how alike they are, and their files."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tests.references import tasks as reference

from taskatlas.errors import BadInput
from taskatlas.probe import Probe
from taskatlas.tasks import (
    Task,
    adjusted_mutual_information,
    check_class_rates,
    class_group_task,
    embedding_tasks,
    human_tasks,
    mean_similarity,
    random_tasks,
    read_tasks,
    similarity,
    similarity_matrix,
    untrained_tasks,
    write_tasks,
)
from taskatlas.tasks.diversity import information_with, pairwise_information, uniformity
from taskatlas.tasks.samples import as_numbers
from taskatlas.tasks.task_files import CERTAINTY, TASKS, write_certainty
from taskatlas.tasks.task_sets import rotated_heads, task_of_logits

IDS = tuple("abcdefgh")


def task(labels, name="t", ids=None):
    labels = np.asarray(labels)
    return Task(name, labels, tuple(f"s{i}" for i in range(len(labels))) if ids is None else ids)


def labellings(classes=3):
    return arrays(np.int64, 12, elements=st.integers(0, classes - 1)).filter(lambda x: np.ptp(x) > 0)


# Tasks


def test_a_constant_task_is_refused():
    with pytest.raises(BadInput, match="'t' is constant"):
        task([1, 1, 1])


@pytest.mark.parametrize(
    ("labels", "ids", "said"),
    [
        ([0, 1], ("a", "a"), "ids must be unique"),
        ([0, 1, 1], ("a", "b"), r"shape \(3,\) for 2 samples"),
        ([0, -1], ("a", "b"), "has the label -1"),
    ],
)
def test_labels_that_are_none_are_refused(labels, ids, said):
    with pytest.raises(BadInput, match=said):
        task(labels, ids=ids)


def test_nearly_constant_tasks_are_refused_where_rates_count():
    rare = task([0] * 97 + [1] * 3)
    with pytest.raises(BadInput, match=r"nearly constant: class 1 has 3\.0 %"):
        check_class_rates(rare)
    check_class_rates(rare, 0.03)
    check_class_rates(task(np.arange(90) % 30))
    with pytest.raises(BadInput, match=r"the least is 1\.67 %"):
        check_class_rates(task([*range(30), *[0] * 90]))
    with pytest.raises(BadInput, match="cannot be kept by 2 classes"):
        check_class_rates(rare, 0.6)


def test_labels_follow_ids():
    one = task([0, 1, 1, 0], ids=("d", "b", "a", "c"))
    assert one.on(["a", "b", "c", "d"]).tolist() == [1, 1, 0, 0]
    assert one.among(["a", "c"]).labels.tolist() == [1, 0]
    other = task([1, 1, 0, 0], ids=("a", "b", "c", "d"))
    assert one.digest == other.digest
    assert one.digest != one.complement().digest
    with pytest.raises(BadInput, match="no label for 1 of 2 samples, such as 'z'"):
        one.on(["a", "z"])
    with pytest.raises(BadInput, match="constant"):
        one.among(["a", "b"])


def test_a_task_comes_back_from_its_file(tmp_path):
    one = Task("sure", np.array([0, 1, 1]), ("a", "b", "c,d"), np.array([0.5, 2.25, 1e-3], np.float32))
    one.save(tmp_path / "sure.csv")
    back = Task.load(tmp_path / "sure.csv")
    assert (back.name, back.ids, back.labels.tolist()) == (one.name, one.ids, one.labels.tolist())
    np.testing.assert_array_equal(back.certainty, one.certainty)


# Task sets


def test_human_tasks_are_all_divisions_once_in_order():
    data = Probe.from_arrays(np.zeros((10, 1)), labels=range(10))
    tasks = human_tasks(data)
    assert len(tasks) == 126
    assert [one.name for one in tasks[:2]] == ["0+1+2+3+4", "0+1+2+3+5"]
    assert tasks[-1].name == "0+6+7+8+9"
    assert all(one.labels.sum() == 5 and one.labels[0] == 1 for one in tasks)
    assert len({one.digest for one in tasks} | {one.complement().digest for one in tasks}) == 252
    odd = human_tasks(Probe.from_arrays(np.zeros((5, 1)), labels=range(5)))
    assert [one.name for one in odd] == ["+".join(map(str, pair)) for pair in itertools.combinations(range(5), 2)]
    assert [one.name for one in human_tasks(data, 2, size=1)] == ["0", "1"]


@pytest.mark.parametrize("size", [0, 10, -1])
def test_groups_that_divide_nothing_are_refused(size):
    with pytest.raises(BadInput, match="no group of"):
        human_tasks(Probe.from_arrays(np.zeros((10, 1)), labels=range(10)), size=size)


def test_groups_by_name_or_number():
    data = Probe.from_text(list("abcd"), labels=["cat", "dog", "eel", "cat"])
    assert class_group_task(data, ["cat"]).labels.tolist() == [1, 0, 0, 1]
    assert class_group_task(data, [2, "cat"]).name == "cat+eel"
    for wrong in (["bird"], [7]):
        with pytest.raises(BadInput, match="there is no class"):
            class_group_task(data, wrong)


def test_random_tasks_have_their_rates_and_follow_ids(blobs):
    data = blobs(200)
    one, other = random_tasks(data, 2, rates=[0.7, 0.2, 0.1], seed=3)
    assert np.bincount(one.labels).tolist() == [140, 40, 20]
    assert similarity(one, other) < 0.75
    order = np.random.default_rng(1).permutation(200)
    assert random_tasks(data.take(order), 2, rates=[0.7, 0.2, 0.1], seed=3)[1].digest == other.digest
    assert random_tasks(data, 1, rates=[0.7, 0.2, 0.1], seed=4)[0].digest != one.digest


def test_untrained_tasks_are_halves_that_follow_the_samples(blobs):
    data = blobs(100)
    one, other = untrained_tasks("mlp", data, 2)
    assert np.bincount(one.labels).tolist() == np.bincount(other.labels).tolist() == [50, 50]
    assert one.digest != other.digest
    order = np.random.default_rng(1).permutation(100)
    assert untrained_tasks("mlp", data.take(order), 1)[0].digest == one.digest
    assert untrained_tasks("mlp", data, 1, rates=[0.8, 0.2])[0].class_rates.tolist() == [0.8, 0.2]
    assert untrained_tasks("mlp", data, 1, classes=3)[0].classes == 3
    three = untrained_tasks("mlp", data, 1, classes=3, rates=[0.7, 0.2, 0.1])[0]
    assert np.bincount(three.labels).tolist() == [70, 20, 10]
    again = untrained_tasks("mlp", data.take(order), 1, classes=3, rates=[0.7, 0.2, 0.1])[0]
    assert again.digest == three.digest


def test_classes_with_rates_take_where_they_lead():
    logits = np.random.default_rng(0).standard_normal((60, 3))
    free = task_of_logits("t", logits, tuple(f"{i:02}" for i in range(60)))
    own = np.bincount(free.labels) / 60
    held = task_of_logits("t", logits, free.ids, rates=own.tolist())
    assert np.bincount(held.labels).tolist() == np.bincount(free.labels).tolist()
    assert similarity(held, free) > 0.85
    scaled = (logits - logits.mean(0)) / logits.std(0)
    rank = np.sort(scaled, axis=1)
    np.testing.assert_allclose(free.certainty, rank[:, 2] - rank[:, 1], rtol=1e-5)


def test_certainty_is_least_at_the_border():
    logits = np.array([[0, 3.0], [0, -1], [0, 1], [0, -4]])
    one = task_of_logits("t", logits, IDS[:4])
    assert one.labels.tolist() == [1, 0, 1, 0]
    assert one.certainty.argmin() == 2
    assert one.certainty.argmax() == 3


def test_embedding_tasks_divide_an_embedding_evenly():
    x = np.random.default_rng(0).standard_normal((200, 4)) * [1, 10, 100, 1] + 50
    tasks = embedding_tasks(x, [str(i) for i in range(200)], 4)
    assert all(one.class_rates.tolist() == [0.5, 0.5] for one in tasks)
    assert mean_similarity(tasks) < 0.6
    with pytest.raises(BadInput, match="none of 3 samples"):
        embedding_tasks(x, ["a", "b", "c"], 1)


@pytest.mark.parametrize(("classes", "width"), [(2, 1), (2, 5), (3, 4), (5, 8)])
def test_heads_are_simplices_at_right_angles(classes, width):
    heads = rotated_heads(5, classes, width, np.random.default_rng(0))
    assert heads.shape == (5, classes, width)
    np.testing.assert_allclose(heads.sum(1), 0, atol=1e-12)
    for head in heads:
        expected = np.full((classes, classes), -1 / (classes - 1)) + np.eye(classes) * (1 + 1 / (classes - 1))
        np.testing.assert_allclose(head @ head.T, expected, atol=1e-12)
    if 2 * (classes - 1) <= width:
        np.testing.assert_allclose(heads[0] @ heads[1].T, 0, atol=1e-12)
    with pytest.raises(BadInput, match="do not fit"):
        rotated_heads(1, width + 2, width, np.random.default_rng(0))


# Similarity


@given(labellings(), labellings())
@settings(max_examples=60, deadline=None)
def test_similarity_is_the_references(a, b):
    assert similarity(task(a), task(b)) == pytest.approx(reference.similarity(a, b))


@given(labellings(2), labellings(2))
@settings(max_examples=60, deadline=None)
def test_of_two_classes_it_is_the_larger_share(a, b):
    same = (a == b).mean()
    assert similarity(task(a), task(b)) == pytest.approx(max(same, 1 - same))
    assert similarity(task(a), task(b).complement()) == similarity(task(a), task(b))
    assert similarity(task(a), task(a).complement()) == 1


def test_similarity_needs_the_same_samples():
    with pytest.raises(BadInput):
        similarity(task([0, 1, 1]), task([0, 1]))
    with pytest.raises(BadInput, match="no label"):
        similarity(task([0, 1], ids=("a", "b")), task([0, 1], ids=("a", "c")))
    matrix = similarity_matrix([task([0, 0, 1, 1]), task([0, 1, 0, 1])], [task([0, 0, 1, 1])])
    assert matrix.tolist() == [[1.0], [0.5]]
    assert adjusted_mutual_information(task([0, 0, 1, 1]), task([1, 1, 0, 0])) == 1


# What keeps tasks apart


def test_uniformity_is_the_references():
    h = torch.nn.functional.normalize(torch.randn(9, 4, dtype=torch.double, generator=torch.Generator().manual_seed(0)))
    assert uniformity(h).item() == pytest.approx(reference.uniformity(h.numpy()))
    assert uniformity(h[:1].expand(5, -1)).item() == pytest.approx(8)


def test_information_is_the_references():
    labels = torch.randn(3, 20, 3, dtype=torch.double, generator=torch.Generator().manual_seed(0)).mul(3).softmax(-1)
    assert pairwise_information(labels).item() == pytest.approx(reference.pairwise_information(labels.numpy()))
    hard = torch.eye(2, dtype=torch.double)[torch.tensor([[0, 0, 1, 1], [0, 1, 0, 1]])]
    assert pairwise_information(hard).item() == pytest.approx(0, abs=1e-8)
    assert information_with(hard[:1], hard).item() == pytest.approx(np.log(2))


# Files


def test_tasks_come_back_from_their_file(tmp_path):
    tasks = [task([0, 1, 2], "three"), task([1, 0, 1], "two, with a comma")]
    write_tasks(tmp_path / TASKS, tasks)
    back = read_tasks(tmp_path)
    assert [one.name for one in back] == ["three", "two, with a comma"]
    assert [one.digest for one in back] == [one.digest for one in tasks]
    sure = [Task(one.name, one.labels, one.ids, np.arange(3, dtype=np.float32)) for one in tasks]
    write_certainty(tmp_path / CERTAINTY, sure)
    assert read_tasks(tmp_path)[1].certainty.tolist() == [0, 1, 2]
    with pytest.raises(BadInput, match="two tasks are called 'three'"):
        write_tasks(tmp_path / "twice.csv", [tasks[0], tasks[0]])
    with pytest.raises(BadInput, match="no tasks"):
        write_tasks(tmp_path / "none.csv", [])


def test_attributes_and_words_are_read(tmp_path):
    (tmp_path / "celeba.csv").write_text("image_id,Smiling,kind,all,score\n1.jpg,-1,cat,1,0.5\n2.jpg,1,dog,1,0.7\n")
    smiling, kind = read_tasks(tmp_path / "celeba.csv")
    assert (smiling.labels.tolist(), kind.labels.tolist()) == ([0, 1], [0, 1])
    assert smiling.ids == ("1.jpg", "2.jpg")
    assert read_tasks(tmp_path / "celeba.csv", ["kind"])[0].name == "kind"
    (tmp_path / "frame.csv").write_text(",a\n007,0\n08,1\n")
    assert read_tasks(tmp_path / "frame.csv")[0].ids == ("007", "08")


@pytest.mark.parametrize(
    "labels", ["1,2,1,2", "0.0,1.0,0.0,1.0", "1e0,2e0,1e0,2e0", "3,9000000000000000,3,9000000000000000"]
)
def test_labels_are_counted_from_zero(tmp_path, labels):
    rows = "".join(f"{i},{label}\n" for i, label in enumerate(labels.split(",")))
    (tmp_path / "t.csv").write_text("id,a\n" + rows)
    one = read_tasks(tmp_path / "t.csv")[0]
    assert (one.labels.tolist(), one.classes) == ([0, 1, 0, 1], 2)


def test_small_units_are_no_constants(blobs):
    data = blobs(60)
    made = as_numbers(data).inputs
    for unit in (1e-9, 1e9):
        scaled = Probe("array", np.asarray(data.inputs) * np.float32(unit), data.ids)
        np.testing.assert_allclose(as_numbers(scaled).inputs, made, rtol=1e-4, atol=1e-5)
    flat = np.full((60, 1), 0.1, np.float32) * np.array([[1, 1e8]], np.float32)
    assert not as_numbers(Probe("array", flat, data.ids)).inputs.any()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read as a table"),
        ("", "cannot be read as a table"),
        ("id,a\n", "no rows"),
        ("id,a\n1,0\n1,1\n", "names the sample '1' twice"),
        ("id,a\n1,0\n2,\n", "has no label in row 3"),
        ("id,a\n1,cat\n2,\n", "has no label in row 3"),
        ("id,a\n1,0\n2,nan\n", "has no label in row 3"),
        ("id,a,a\n1,0,0\n2,1,1\n", "two columns called 'a'"),
        ("id,a\n1,0,5\n", "cannot be read as a table"),
        ("id,a\n1,0.5\n2,1.5\n", "holds no task"),
        ("id,a\n1,1\n2,1\n", "holds no task"),
    ],
)
def test_damaged_tables_are_refused(tmp_path, text, said):
    file = tmp_path / "tasks.csv"
    if text is not None:
        file.write_text(text)
    with pytest.raises(BadInput, match=said):
        read_tasks(file)


def test_a_column_that_is_not_there_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("id,a,b\n1,0,1\n2,1,1\n")
    with pytest.raises(BadInput, match="no column 'c'; it has a, b"):
        read_tasks(tmp_path / "t.csv", ["c"])
    with pytest.raises(BadInput, match=r"'b' .* is no task"):
        read_tasks(tmp_path / "t.csv", ["b"])


def test_certainties_of_other_samples_are_refused(tmp_path):
    write_tasks(tmp_path / TASKS, [task([0, 1], "t", ("a", "b"))])
    (tmp_path / CERTAINTY).write_text("id,t\na,1\nc,2\n")
    with pytest.raises(BadInput, match="other samples"):
        read_tasks(tmp_path)

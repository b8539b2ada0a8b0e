"""Splits: what they hold, their controls and balance, what they do to a network, and their files."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from torch import nn

from taskatlas.errors import BadInput
from taskatlas.learn import mlp
from taskatlas.probe import Probe
from taskatlas.tasks import (
    Agreement,
    Easier,
    Null,
    Split,
    Task,
    Training,
    adversarial_split,
    controls,
    group_target,
    human_tasks,
    jobs,
    measure_splits,
    random_tasks,
    rank_splits,
    read_class_groups,
    read_published_splits,
    similarity,
    task_sets,
    untrained_split,
)
from taskatlas.tasks.adversarial import adversarial_splits
from taskatlas.tasks.damage import easier_task, load_damage, save_damage
from taskatlas.tasks.samples import as_numbers
from taskatlas.tasks.split import RESERVED, TEST, TRAIN, UNUSED, as_task

QUICK = Training(epochs=15, batch_size=16, learning_rate=0.01)


def small(shape, classes):
    return mlp(shape[0], (16,), classes)


def two_tasks(n=60, seed=0):
    draw = np.random.default_rng(seed)
    ids = tuple(f"s{i:03}" for i in draw.permutation(n))
    return Task("target", draw.permutation(np.arange(n) % 2), ids), Task(
        "easy", draw.permutation(np.arange(n) % 2), ids
    )


# Splits


@given(st.integers(0, 50), st.sampled_from([0.0, 0.2]), st.booleans())
@settings(max_examples=40, deadline=None)
def test_train_agrees_and_test_does_not(seed, reserve, flipped):
    target, easy = two_tasks(seed=seed)
    split = adversarial_split(
        target, easy, reserve=reserve, polarity="complement" if flipped else "as given", seed=seed
    )
    labels = 1 - easy.labels if flipped else easy.labels
    assert (labels == target.labels)[split.train].all()
    assert (labels != target.labels)[split.test].all()
    assert len(split.reserved) == round(reserve * 60)
    assert sorted([*split.train, *split.test, *split.reserved]) == list(range(60))
    np.testing.assert_array_equal(split.target, target.labels)


def test_the_order_of_the_samples_does_not_matter():
    target, easy = two_tasks()
    order = np.random.default_rng(1).permutation(60)
    moved = target.among([target.ids[row] for row in order])
    for settings_ in ({"reserve": 0.2}, {"balance": "classes"}, {"train_share": 0.5}):
        assert adversarial_split(target, easy, **settings_).digest == adversarial_split(moved, easy, **settings_).digest
    one, other = (controls(t, adversarial_split(t, easy, reserve=0.1)) for t in (target, moved))
    assert {name: split.digest for name, split in one.items()} == {name: split.digest for name, split in other.items()}


def test_balance_and_share_leave_samples_out():
    target, easy = two_tasks(seed=3)
    split = adversarial_split(target, easy, balance="classes")
    for rows in (split.train, split.test):
        assert np.bincount(target.labels[rows]).tolist() == [len(rows) // 2] * 2
    split = adversarial_split(target, easy, train_share=0.8)
    assert len(split.train) / (len(split.train) + len(split.test)) == pytest.approx(0.8, abs=0.05)
    assert (split.parts == UNUSED).any()
    both = adversarial_split(target, easy, balance="classes", train_share=0.8)
    for rows in (both.train, both.test):
        assert np.bincount(target.labels[rows]).tolist() == [len(rows) // 2] * 2
    assert len(both.train) / (len(both.train) + len(both.test)) == pytest.approx(0.8, abs=0.1)


def test_a_split_of_many_classes_learns_the_classes():
    data = Probe.from_arrays(np.zeros((40, 1)), labels=np.arange(40) % 4)
    target = group_target(data, [0, 1])
    split = adversarial_split(target, random_tasks(data, 1)[0], labels=Task.of_probe("classes", data))
    assert split.target.tolist() == (np.arange(40) % 4).tolist()
    assert split.how["labels"] == "classes"


def test_an_untrained_network_halves_every_class(blobs):
    data = blobs(160)
    split = untrained_split(group_target(data), small, data, labels=Task.of_probe("classes", data))
    for part in (TRAIN, TEST):
        assert np.bincount(data.labels[split.parts == part]).tolist() == [20] * 4
    order = np.random.default_rng(0).permutation(160)
    moved = data.take(order)
    again = untrained_split(group_target(moved), small, moved, labels=Task.of_probe("classes", moved))
    assert again.digest == split.digest


def test_what_is_reserved_leaves_the_halves_even(blobs):
    data = blobs(200)
    classes = Task.of_probe("classes", data)
    split = untrained_split(group_target(data), small, data, labels=classes, reserve=0.3)
    assert len(split.reserved) == 60
    counts = [np.bincount(data.labels[rows], minlength=4) for rows in (split.train, split.test)]
    assert np.abs(counts[0] - counts[1]).max() <= 1


def test_untrained_networks_look_at_a_batch_at_a_time(blobs, monkeypatch):
    sizes = []

    def watched(classes):
        network = mlp(6, (16,), classes)
        network.register_forward_pre_hook(lambda module, x: sizes.append(len(x[0])))
        return network

    whole = untrained_split(group_target(blobs(160)), watched, blobs(160))
    assert max(sizes) == 160
    sizes.clear()
    monkeypatch.setattr(task_sets, "_NUMBERS", 6 * 32)
    assert untrained_split(group_target(blobs(160)), watched, blobs(160)).digest == whole.digest
    assert max(sizes) == 32


def test_targets_are_groups_of_classes(blobs):
    data = blobs(40)
    assert group_target(data).name == "0+1"
    assert group_target(data, [3]).class_rates.tolist() == [0.75, 0.25]
    assert group_target(data, seed=1).digest == group_target(data, seed=1).digest
    with pytest.raises(BadInput, match="at least two classes"):
        group_target(Probe.from_arrays(np.zeros((4, 1)), labels=[1, 1, 1, 1]))


def test_controls_are_as_large_and_mean_nothing():
    target, easy = two_tasks(400)
    split = adversarial_split(target, easy, reserve=0.1)
    made = controls(target, split, seed=5)
    assert made.keys() == {"random task", "random split"}
    plain = made["random split"]
    assert (len(plain.train), len(plain.test)) == (len(split.train), len(split.test))
    for one in made.values():
        np.testing.assert_array_equal(one.reserved, split.reserved)
        np.testing.assert_array_equal(one.target, split.target)
        both = (one.parts < RESERVED) & (one.parts == split.parts)
        assert 0.4 < both.sum() / (split.parts < RESERVED).sum() < 0.6
        assert one.how["of"] == split.name
    assert not np.array_equal(made["random task"].parts, plain.parts)


def test_a_random_task_makes_parts_of_the_splits_own_sizes():
    ids = tuple(f"{i:03}" for i in range(200))
    target = Task("t", (np.arange(200) % 4 == 0).astype(int), ids)
    easy = Task("e", np.where(np.arange(200) % 20 == 1, 1, target.labels), ids)  # nearly the target
    split = adversarial_split(target, easy, reserve=0.1)
    drawn = controls(target, split)["random task"]
    for part in (TRAIN, TEST):
        counts = [np.bincount(target.labels[one.parts == part], minlength=2).tolist() for one in (drawn, split)]
        assert counts[0] == counts[1]
    assert len(split.test) < 15
    assert (drawn.parts == TEST)[split.test].mean() < 0.5


# As other libraries take them


def test_scikit_learn_takes_a_split(blobs):
    data = blobs(80)
    split = adversarial_split(group_target(data), human_tasks(data)[1])
    scores = cross_val_score(LogisticRegression(), np.asarray(data.inputs), split.target, cv=split)
    expected = LogisticRegression().fit(data.inputs[split.train], split.target[split.train])
    assert scores.tolist() == [expected.score(data.inputs[split.test], split.target[split.test])]
    with pytest.raises(BadInput, match="X has 3"):
        next(split.split(np.zeros((3, 1))))
    sparse = csr_matrix(np.asarray(data.inputs))
    assert cross_val_score(LogisticRegression(), sparse, split.target, cv=split).tolist() == scores.tolist()
    assert next(split.split(list(range(80))))[0].tolist() == split.train.tolist()


def test_torch_takes_a_split():
    target, easy = two_tasks()
    split = adversarial_split(target, easy)
    train, test = split.subsets(list(range(60)))
    assert list(train) == split.train.tolist()
    assert list(test) == split.test.tolist()
    train, _ = split.subsets(list("abc"), ids=[split.ids[split.test[0]], "unknown", split.ids[split.train[0]]])
    assert list(train) == ["c"]
    with pytest.raises(BadInput, match="has 3"):
        split.subsets([1, 2, 3])


def test_hugging_face_takes_a_column():
    datasets = pytest.importorskip("datasets")
    target, easy = two_tasks(20)
    split = adversarial_split(target, easy)
    column = split.add_column(datasets.Dataset.from_dict({"id": list(split.ids)[::-1]}), "id")["split"]
    assert list(column)[::-1] == [("train", "test")[part] for part in split.parts]
    assert list(split.add_column(datasets.Dataset.from_dict({"x": list(range(20))}))["split"]) == list(column)[::-1]
    with pytest.raises(BadInput, match="does not know the sample 'z'"):
        split.add_column(datasets.Dataset.from_dict({"id": ["z"]}), "id")
    with pytest.raises(BadInput, match="has 1 rows"):
        split.add_column(datasets.Dataset.from_dict({"id": ["z"]}))


def test_probes_of_a_split_carry_its_target(blobs):
    data = blobs(80)
    split = adversarial_split(group_target(data), human_tasks(data)[1], reserve=0.1)
    order = np.random.default_rng(0).permutation(80)
    parts = split.probes(data.take(order))
    assert set(parts) == {"train", "test", "reserved"}
    place = {name: row for row, name in enumerate(split.ids)}
    for name, part in (("train", TRAIN), ("test", TEST), ("reserved", RESERVED)):
        rows = [place[one] for one in parts[name].ids]
        assert (split.parts[rows] == part).all()
        assert parts[name].labels.tolist() == split.target[rows].tolist()
    with pytest.raises(BadInput, match="no train sample in common"):
        split.probes(Probe.from_arrays(np.zeros((2, 1))))


# Files


@pytest.mark.parametrize("ending", [".npz", ".csv"])
def test_a_split_comes_back_from_its_file(tmp_path, ending):
    target, easy = two_tasks()
    split = adversarial_split(target, easy, reserve=0.1)
    split.save(tmp_path / f"split{ending}")
    back = Split.load(tmp_path / f"split{ending}")
    assert back.digest == split.digest
    assert back.ids == split.ids
    if ending == ".npz":
        assert (back.name, dict(back.how)) == (split.name, json.loads(json.dumps(split.how)))
    with pytest.raises(BadInput, match=r"\.npz or \.csv"):
        split.save(tmp_path / "split.txt")


def test_group_dro_reads_partitions(tmp_path):
    target, easy = two_tasks()
    split = adversarial_split(target, easy, reserve=0.1)
    split.save_group_dro(tmp_path / "partition.csv")
    lines = (tmp_path / "partition.csv").read_text().split()
    assert lines[0] == "image_id,partition"
    numbers = {"0": TRAIN, "1": RESERVED, "2": TEST}
    found = {name: numbers[part] for name, _, part in (line.partition(",") for line in lines[1:])}
    assert found == dict(zip(split.ids, split.parts.tolist(), strict=True))
    back = Split.load(tmp_path / "partition.csv")
    assert back.parts.tolist() == split.parts.tolist()


def test_the_manifest_says_sizes_and_shares():
    target, easy = two_tasks()
    manifest = adversarial_split(target, easy).manifest()
    assert sum(manifest["sizes"].values()) == 60
    assert all(sum(shares) == pytest.approx(1) for shares in manifest["class_shares"].values())
    assert manifest["how"]["polarity"] == "as given"
    json.dumps(manifest)


def test_published_index_pairs_are_read(tmp_path):
    target, _ = two_tasks(10)
    pairs = {(0, 1): (torch.tensor([0, 1]), torch.tensor([2])), "b": {"train": [3], "test": [4, 5]}}
    torch.save(pairs, tmp_path / "splits.torch")
    found = read_published_splits(tmp_path / "splits.torch", target)
    assert set(found) == {"0-1", "b"}
    assert found["0-1"].train.tolist() == [0, 1]
    assert found["b"].test.tolist() == [4, 5]
    (tmp_path / "splits.json").write_text('{"x": {"train_idx": [1], "test_idx": [2]}}')
    assert read_published_splits(tmp_path / "splits.json", target)["x"].train.tolist() == [1]


@pytest.mark.parametrize("kind", [np.int64, np.int32])
def test_published_numpy_indices_are_read(tmp_path, kind):
    pair = np.array([0, 1], dtype=kind), np.array([2], dtype=kind)
    torch.save({"a": pair, "b": {"train": pair[0], "test": pair[1]}}, tmp_path / "splits.torch")
    found = read_published_splits(tmp_path / "splits.torch", two_tasks(10)[0])
    assert [found[name].train.tolist() for name in "ab"] == [[0, 1]] * 2


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


def evil_array(path):
    with path.open("wb") as file:
        pickle.dump({"a": (np.array([Evil()], dtype=object), np.array([0]))}, file, protocol=2)


def evil(path):
    with path.open("wb") as file:
        pickle.dump({"a": Evil()}, file)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (evil, "cannot be read without running code"),
        (evil_array, "cannot be read without running code"),
        (lambda path: torch.save({(0, 1): ([0], [1]), "0-1": ([1], [0])}, path), "two splits called '0-1'"),
        (lambda path: path.write_bytes(b"junk"), "cannot be read"),
        (lambda path: torch.save({"a": 3}, path), "holds no pairs"),
        (lambda path: torch.save({"a": ([0], [99])}, path), "counts to 99"),
        (lambda path: torch.save({"a": ([0, 1], [1])}, path), "trains and tests on the same sample"),
        (lambda path: None, "Is the path right"),
    ],
)
def test_damaged_publications_are_refused(tmp_path, capsys, write, said):
    write(tmp_path / "splits.torch")
    with pytest.raises(BadInput, match=said):
        read_published_splits(tmp_path / "splits.torch", two_tasks(10)[0])
    assert "code ran" not in capsys.readouterr().out


def test_class_groups_are_read(tmp_path):
    np.save(tmp_path / "g.npy", np.array([[1, 0, 0, 1], [0, 1, 1, 0]]))
    assert read_class_groups(tmp_path / "g.npy", 4) == [(0, 3), (1, 2)]
    for wrong in (np.array([[0, 9]]), np.array([0.5]), np.array([[0, 1, 2, 3]]), np.array([{}], dtype=object)):
        np.save(tmp_path / "bad.npy", wrong, allow_pickle=True)
        with pytest.raises(BadInput):
            read_class_groups(tmp_path / "bad.npy", 4)


@pytest.mark.parametrize("text", ["id,part\na,train\n", "id,where\na,train\n", "id,part\na,left\nb,test\n"])
def test_damaged_split_tables_are_refused(tmp_path, text):
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(BadInput):
        Split.load(tmp_path / "s.csv")


def test_damaged_split_archives_are_refused(tmp_path):
    target, easy = two_tasks()
    adversarial_split(target, easy).save(tmp_path / "s.npz")
    whole = (tmp_path / "s.npz").read_bytes()
    for content in (b"", whole[: len(whole) // 2]):
        (tmp_path / "s.npz").write_bytes(content)
        with pytest.raises(BadInput, match="holds no split"):
            Split.load(tmp_path / "s.npz")
    with pytest.raises(BadInput, match="there is no split"):
        Split.load(tmp_path / "gone.npz")


# What splits do


def shortcut(n=300, seed=0):
    """A loud column and a quiet one; the target asks for the quiet one."""
    draw = np.random.default_rng(seed)
    x = draw.standard_normal((n, 4)).astype(np.float32)
    loud, quiet = (draw.integers(0, 2, n) for _ in range(2))
    x[:, 0] += 6 * loud
    x[:, 1] += 2.5 * quiet
    data = Probe.from_arrays(x, labels=quiet)
    return data, Task.of_probe("quiet", data), Task.of_probe("loud", data, loud)


def test_a_network_falls_where_an_easier_task_agrees():
    data, target, loud = shortcut()
    chance = random_tasks(data, 1)[0]
    ranked = rank_splits(target, [chance, loud], small, data, seeds=2, training=QUICK)
    (worst, damage), (_, other) = ranked
    assert damage.task == "loud"
    assert damage.found.accuracy < 0.5 < 0.75 < damage.controls["random split"].accuracy
    assert damage.controls["random task"].accuracy > 0.7
    assert other.found.accuracy > 0.7
    assert damage.fall == pytest.approx(damage.controls["random split"].accuracy - damage.found.accuracy)
    assert damage.found.fit > 0.95
    assert damage.found.train == len(worst.train)
    low, high = damage.found.interval
    assert low <= damage.found.accuracy <= high


def scored(task, agreement, **nulls):
    beside = {name: Null(value, (value, value), (value,)) for name, value in nulls.items()}
    return Agreement(task.name, agreement, (0.0, 1.0), 0.9, 0.9, 1.0, (0.5, 0.5), (agreement,), beside)


def test_an_audit_says_how_like_the_target_a_task_is_and_how_easy():
    data, target, loud = shortcut(120)
    chance = random_tasks(data, 1)[0].among(data.ids)
    scores = [scored(loud, 0.95, random=0.55, untrained=0.75), scored(target, 0.1)]
    ranked = rank_splits(
        target, [chance, loud.complement()], small, data, seeds=1, training=QUICK, controlled=0, scores=scores
    )
    found = {damage.task: damage.easier for _, damage in ranked}
    share = float((loud.labels == target.labels).mean())
    assert found[chance.name].similarity == similarity(target, chance)
    assert np.isnan(found[chance.name].agreement)
    assert found[loud.complement().name].similarity == max(share, 1 - share)
    known = easier_task(target, loud, scores[0])
    assert known == Easier(max(share, 1 - share), 0.95, {"random": 0.55, "untrained": 0.75})
    assert known.lift == pytest.approx(0.2)
    assert np.isnan(easier_task(target, loud, scored(loud, 0.95)).lift)
    assert [
        damage.easier
        for _, damage in rank_splits(target, [loud], small, data, seeds=1, training=QUICK, controlled=0, scores=scores)
    ] == [known]


def test_measuring_depends_on_neither_order_nor_engine(tmp_path):
    data, target, loud = shortcut(120)
    split = adversarial_split(target, loud)
    first = measure_splits([split], small, data, seeds=1, training=QUICK)
    moved = data.take(np.random.default_rng(0).permutation(120))
    assert measure_splits([split], small, moved, seeds=1, training=QUICK, engine="threads:2") == first


@pytest.mark.parametrize("running", [True, False])
def test_a_network_with_batch_statistics_sees_nothing_but_the_train_part(running):
    def normed(classes):
        norm = nn.BatchNorm1d(16, track_running_stats=running)
        return nn.Sequential(nn.Linear(4, 16), norm, nn.ReLU(), nn.Linear(16, classes))

    data, target, loud = shortcut(120)
    split = adversarial_split(target, loud, reserve=0.2)
    seen = []

    def watched(classes):
        network = normed(classes)
        network.register_forward_pre_hook(lambda module, x: seen.append(x[0].clone()) if module.training else None)
        return network

    measure_splits([split], watched, data, seeds=1, training=QUICK)
    shown = {tuple(row) for batch in seen for row in batch.tolist()}
    x = as_numbers(data)
    assert shown == {tuple(x.inputs[row].tolist()) for row in split.rows_of(x.ids)}


def test_the_last_sample_of_an_order_goes_with_the_batch_before():
    def normed(classes):
        return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Linear(16, classes))

    data, target, loud = shortcut(120)
    split = adversarial_split(target, loud)
    alone = Training(epochs=2, batch_size=len(split.train) - 1)
    assert 0 <= measure_splits([split], normed, data, seeds=1, training=alone)[0].accuracy <= 1
    with pytest.raises(BadInput, match="one sample a step"):
        measure_splits([split], normed, data, seeds=1, training=Training(epochs=2, batch_size=1))


def test_batches_are_as_large_as_the_training_says_whatever_the_share(monkeypatch):
    sizes = []
    monkeypatch.setattr(jobs, "train", lambda *_, batch_size, **__: sizes.append(batch_size))
    data, target, _ = shortcut(120)
    for train in (24, 40, 60, 102):
        parts = np.where(np.arange(120) < train, TRAIN, TEST)
        measure_splits([Split(f"{train}", data.ids, parts, target.labels)], small, data, seeds=1, training=QUICK)
    assert sizes == [5 * 16, 3 * 16, 2 * 16, 16]


def test_fewer_training_samples_than_a_batch_are_refused():
    data, target, loud = shortcut(120)
    split = adversarial_split(target, loud)
    with pytest.raises(BadInput, match=f"has {len(split.train)} training samples, fewer than a batch of 128"):
        measure_splits([split], small, data)
    for splits, seeds in (([], 1), ([split], 0)):
        with pytest.raises(BadInput, match="at least 1 of each"):
            measure_splits(splits, small, data, seeds=seeds)


def test_damage_comes_back_from_its_file(tmp_path):
    data, target, loud = shortcut(120)
    ranked = rank_splits(target, [loud], small, data, seeds=1, training=QUICK, controlled=0)
    save_damage(tmp_path / "d.json", [damage for _, damage in ranked])
    back = load_damage(tmp_path / "d.json")[0]
    assert (back.split, back.found.values, back.controls) == (ranked[0][1].split, ranked[0][1].found.values, {})
    known = replace(ranked[0][1], easier=Easier(0.75, 0.9, {"random": 0.6}))
    save_damage(tmp_path / "d.json", [known])
    assert load_damage(tmp_path / "d.json")[0].easier == known.easier
    (tmp_path / "d.json").write_text('{"splits": [{}]}')
    with pytest.raises(BadInput, match="holds no measured splits"):
        load_damage(tmp_path / "d.json")


# What is refused


def test_splits_that_cannot_be_are_refused():
    target, easy = two_tasks()
    with pytest.raises(BadInput, match="no test samples: the task and the target are the same"):
        adversarial_split(target, target)
    with pytest.raises(BadInput, match="no train samples: the task and the target agree nowhere"):
        adversarial_split(target, target, polarity="complement")
    with pytest.raises(BadInput, match=r"no test samples left after a share of 0\.99 was reserved"):
        adversarial_split(target, Task("near", target.labels ^ (np.arange(60) == 0), target.ids), reserve=0.99)
    three = Task("three", np.arange(60) % 3, target.ids)
    for pair in ((three, easy), (target, three)):
        with pytest.raises(BadInput, match="'three' has 3 classes"):
            adversarial_split(*pair)
    with pytest.raises(BadInput, match="no label for"):
        adversarial_split(target, two_tasks(30)[1].among(two_tasks(30)[1].ids[:20]))


@pytest.mark.parametrize(
    ("settings_", "said"),
    [
        ({"train_share": 0.0}, "train share of 0 cannot be had"),
        ({"train_share": 0.9999}, "train share of 0.9999 cannot be had of"),
        ({"reserve": 1.0}, "share of 1 cannot be reserved"),
        ({"polarity": "up"}, "no polarity"),
        ({"balance": "age"}, "no balance"),
    ],
)
def test_impossible_balances_are_refused(as_installed, settings_, said):
    with pytest.raises(BadInput, match=said):
        adversarial_split(*two_tasks(), **settings_)


def test_a_class_without_a_part_cannot_be_balanced():
    ids = tuple("abcdef")
    target, easy = Task("t", np.array([0, 0, 0, 1, 1, 1]), ids), Task("e", np.array([0, 0, 0, 0, 1, 1]), ids)
    with pytest.raises(BadInput, match="class 0 has no test sample"):
        adversarial_split(target, easy, balance="classes")


def test_a_target_of_one_class_is_refused(blobs):
    data = blobs(40)
    one = Split("one", data.ids, np.arange(40) % 2, np.zeros(40, dtype=np.int64))
    with pytest.raises(BadInput, match="has one class"):
        measure_splits([one], small, data)
    with pytest.raises(BadInput, match="is constant"):
        as_task(one)


def test_no_task_that_splits_is_told(blobs):
    data = blobs(40)
    target = group_target(data)
    with pytest.raises(BadInput, match="no task makes a split"):
        rank_splits(target, [target], small, data)


def test_a_setting_that_is_wrong_is_not_laid_on_the_tasks():
    target, easy = two_tasks()
    with pytest.raises(BadInput, match=r"^a train share of 2 cannot be had"):
        adversarial_splits(target, [easy], train_share=2.0)
    made, refused = adversarial_splits(target, [easy, target, Task("three", np.arange(60) % 3, target.ids)])
    assert [task.name for task, _ in made] == ["easy"]
    assert ["are the same" in refused[0], "has 3 classes" in refused[1]] == [True, True]

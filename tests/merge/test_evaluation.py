"""Scores against counting by hand: known and inferred heads, joint accuracy, individual and ensemble rows."""

import csv
import json
import math

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from taskatlas.errors import BadInput
from taskatlas.merge.evaluation import evaluate
from taskatlas.merge.scores import Evaluation, Score
from taskatlas.probe import Probe
from taskatlas.zoo import Checkpoint


class Fixed(nn.Module):
    """Says what the samples say: columns ``start`` to ``stop`` of them."""

    def __init__(self, start=0, stop=None, scale=1.0):
        super().__init__()
        self.cut, self.scale = slice(start, stop), nn.Parameter(torch.tensor(float(scale)), requires_grad=False)

    def forward(self, x):
        return x[:, self.cut] * self.scale


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def tasks(seed=0, outputs=5, sizes=(7, 9), labels=((0, 1, 3), (2, 3, 4))):
    random = np.random.default_rng(seed)
    return {
        name: Probe.from_arrays(random.normal(size=(n, outputs)), labels=[*own, *random.choice(own, n - len(own))])
        for name, n, own in zip("ab", sizes, labels, strict=True)
    }


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=10, deadline=None)
def test_one_network_scored_by_hand(seed):
    """The first task's samples lack one of its classes, which competes all the same."""
    data, classes = tasks(seed), {"a": [0, 1, 3, 4], "b": [2, 3, 4]}
    found = evaluate({"net": Fixed()}, data, classes=classes)
    right_in_all = total = 0
    for task, probe in data.items():
        own = classes[task]
        known = inferred = 0
        for x, label in zip(probe.inputs, probe.labels, strict=True):
            known += max(own, key=lambda c: x[c]) == label
            inferred += max(range(5), key=lambda c: x[c]) == label
        assert found.accuracy("net", task).value == known / len(probe)
        p = inferred / len(probe)
        assert found.accuracy("net", task, "inferred") == (p, pytest.approx(math.sqrt(p * (1 - p) / len(probe))))
        right_in_all, total = right_in_all + inferred, total + len(probe)
    assert found.joint("net").value == right_in_all / total
    a, b = (found.accuracy("net", task) for task in "ab")
    assert found.average("net") == pytest.approx(((a.value + b.value) / 2, math.hypot(a.error, b.error) / 2))


def test_one_task_with_all_classes_has_no_head_to_infer():
    whole = Probe.from_arrays(np.eye(5), labels=range(5))
    assert {score.heads for score in evaluate({"net": Fixed()}, {"a": whole}).scores} == {"known"}
    part = whole.take([0, 1])
    found = evaluate({"net": Fixed()}, {"a": part}, classes={"a": [0, 1]})
    assert {score.heads for score in found.scores} == {"known", "inferred"}


def test_where_the_classes_are_not_known_all_outputs_compete_and_the_result_says_so():
    """A sample of one class does not make every network right."""
    data = {"a": Probe.from_arrays(np.eye(5), [3] * 5), "b": Probe.from_arrays(np.eye(5), range(5))}
    found = evaluate({"net": Fixed()}, data)
    assert (found.accuracy("net", "a").value, found.accuracy("net", "b").value) == (0.2, 1)
    assert found.unlisted == ("a",)  # of b all outputs are seen
    assert "all outputs compete on a" in repr(found)
    told = evaluate({"net": Fixed()}, data, classes={"a": [3, 4]})
    assert (told.accuracy("net", "a").value, told.unlisted) == (0.8, ())


def test_a_head_of_its_own_competes_with_all_its_outputs():
    data = {"a": Probe.from_arrays(np.eye(5), [3] * 5), "b": Probe.from_arrays(np.eye(5), [0] * 5)}
    found = evaluate({"net": {"a": Fixed(), "b": Fixed()}}, data, individual={"a": Fixed(), "b": Fixed()})
    assert {score.right for score in found.scores} == {1}
    assert found.unlisted == ()


def test_names_of_classes_that_a_sample_lacks_compete():
    whole = Probe.from_arrays(np.eye(3), labels=["cat", "dog", "emu"])
    found = evaluate({"net": Fixed()}, {"birds": whole.take([2]), "pets": whole})
    assert found.unlisted == ()
    assert evaluate({"net": Fixed(scale=-1)}, {"birds": whole.take([2])}).average("net").value == 0


def test_an_ensemble_needs_one_label_space():
    x = np.eye(2)
    data = {"pets": Probe.from_arrays(x, ["cat", "dog"]), "colours": Probe.from_arrays(x, ["blue", "red"])}
    experts = {"pets": Fixed(), "colours": Fixed()}
    assert evaluate({}, data, individual=experts).average("individual").value == 1
    with pytest.raises(BadInput, match="cat, dog of pets; blue, red of colours"):
        evaluate({}, data, individual=experts, ensemble=True)
    same = {"a": data["pets"], "b": data["pets"]}
    assert evaluate({}, same, individual={"a": Fixed(), "b": Fixed()}, ensemble=True).average("ensemble").value == 1


@pytest.mark.parametrize("infer", ["entropy", "confidence"])
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=10, deadline=None)
def test_heads_scored_by_hand(infer, seed):
    data = tasks(seed, labels=((0, 1), (0, 1, 2)))
    cuts = {"a": (0, 2, 3.0), "b": (2, 5, 1.0)}
    found = evaluate({"net": {task: Fixed(*cut) for task, cut in cuts.items()}}, data, infer=infer)
    joint = 0
    for task, probe in data.items():
        known = inferred = 0
        for x, label in zip(probe.inputs, probe.labels, strict=True):
            heads = {head: softmax(x[start:stop] * scale) for head, (start, stop, scale) in cuts.items()}
            known += heads[task].argmax() == label
            if infer == "confidence":
                chosen = max(heads, key=lambda head: heads[head].max())
            else:
                chosen = min(heads, key=lambda h: -(heads[h] * np.log(heads[h])).sum() / np.log(len(heads[h])))
            inferred += chosen == task and heads[chosen].argmax() == label
        assert found.accuracy("net", task).value == known / len(probe)
        assert found.accuracy("net", task, "inferred").value == inferred / len(probe)
        joint += inferred
    assert found.joint("net").value == joint / 16


def test_known_and_inferred_heads_are_kept_apart():
    found = evaluate({"net": {"a": Fixed(0, 2), "b": Fixed(2, 5)}}, tasks(labels=((0, 1), (0, 1, 2))))
    assert {score.heads for score in found.scores} == {"known"}
    with pytest.raises(BadInput, match="not scored on 'a' with inferred heads"):
        found.joint("net")
    assert "inferred" not in repr(found)


def test_heads_that_are_not_asked_about_other_tasks_are_not_run_on_them():
    data = {"a": Probe.from_arrays(np.eye(2), [0, 1]), "b": Probe.from_arrays(np.eye(3), [0, 1, 2])}
    heads = {"a": nn.Linear(2, 2), "b": nn.Linear(3, 3)}
    assert len(evaluate({"net": heads}, data).scores) == 2
    with pytest.raises(BadInput, match="net cannot take samples"):
        evaluate({"net": heads}, data, infer="entropy")


def test_individual_and_ensemble_rows_and_the_ratio():
    data = tasks(1, sizes=(40, 50))
    experts = {"a": Fixed(scale=2.0), "b": Fixed(scale=-1.0)}
    classes = {task: np.unique(probe.labels).tolist() for task, probe in data.items()}
    found = evaluate({"net": Fixed()}, data, individual=experts, ensemble=True, classes=classes)
    assert found.models() == ("net", "individual", "ensemble")
    by_hand = {}
    for task, probe in data.items():
        own = np.unique(probe.labels)
        means = np.stack([(softmax(2 * x) + softmax(-x)) / 2 for x in probe.inputs])
        assert found.accuracy("ensemble", task).value == np.mean(own[means[:, own].argmax(1)] == probe.labels)
        expert = probe.inputs * (2 if task == "a" else -1)
        by_hand[task] = np.mean(expert.argmax(1) == probe.labels)
        assert found.accuracy("individual", task).value == by_hand[task]
    expected = found.average("net").value / np.mean(list(by_hand.values()))
    assert found.ratio("net") == pytest.approx(expected)
    assert found.ratio("individual") == 1
    assert evaluate({"net": Fixed()}, data).ratio("net") is None


def test_names_of_classes_are_outputs_in_the_order_of_the_alphabet():
    """A head has its own task's names; one network for all has everyone's."""
    data = {
        "pets": Probe.from_arrays(np.eye(3)[[0, 1]], labels=["cat", "dog"]),
        "birds": Probe.from_arrays(np.eye(3)[[0, 2]], labels=["cat", "emu"]),
    }
    found = evaluate({"net": Fixed()}, data)
    assert [score.right for score in found.scores] == [2, 2, 2, 2]
    heads = {"pets": Fixed(0, 2), "birds": Fixed(0, 2)}
    assert found.accuracy("net", "birds").value == 1
    own = evaluate({"net": heads}, data)
    assert own.accuracy("net", "pets").value == 1
    with pytest.raises(BadInput, match="pets names 2 classes, all tasks together 3, and net has 4 outputs"):
        evaluate({"net": nn.Linear(3, 4)}, data)


def test_equal_names_in_two_tasks_are_one_class():
    x = np.array([[4.0, 0, 0, 3], [0, 4, 3, 0]])
    named = {task: Probe.from_arrays(x, labels=["no", "yes"]) for task in "ab"}
    numbered = {task: Probe.from_arrays(x, labels=[0, 1]) for task in "ab"}
    heads = {"a": Fixed(0, 2), "b": Fixed(2, 4)}  # the second says the opposite, less surely
    assert [s.right for s in evaluate({"net": heads}, named, infer="entropy").scores if s.heads == "inferred"] == [2, 2]
    by_number = evaluate({"net": heads}, numbered, infer="entropy")
    assert [s.right for s in by_number.scores if s.heads == "inferred"] == [2, 0]


def test_what_a_checkpoint_says_is_asked_once(monkeypatch):
    data, checkpoint = tasks(), Checkpoint("net", module=Fixed().eval())
    first = evaluate({"net": checkpoint}, data)
    monkeypatch.setattr(Checkpoint, "open", lambda *_: pytest.fail("opened again"))
    assert evaluate({"again": checkpoint}, data, batch_size=2).average("again") == first.average("net")


def test_preparing_is_the_callers_where_the_network_brings_none():
    probe = Probe.from_text(["a", "bb"], labels=[0, 1])

    def prepare(texts):
        return torch.eye(2)[[len(text) - 1 for text in texts]]

    assert evaluate({"net": Fixed()}, {"a": probe}, prepare=prepare).average("net").value == 1
    with pytest.raises(BadInput, match="no tokenizer"):
        evaluate({"net": Fixed()}, {"a": probe})


def test_networks_stay_as_they_are():
    net = nn.Sequential(nn.Dropout(0.5), Fixed()).train()
    first = evaluate({"net": net}, tasks())
    assert net[0].training
    assert evaluate({"other": net}, tasks(), store=None).average("other") == first.average("net")


GOOD = tasks()


@pytest.mark.parametrize(
    ("models", "data", "how", "said"),
    [
        ({}, GOOD, {}, "no models"),
        ({"net": Fixed()}, {}, {}, "no data"),
        ({"net": Fixed()}, {"a": Probe.from_arrays(np.eye(5))}, {}, "samples of a have no labels"),
        ({"net": Fixed()}, {"a": Probe("words", [["x"]], ("0",), np.array([0]))}, {}, "label for each word"),
        ({"net": Fixed(0, 3)}, GOOD, {}, "labels of a run from 0 to 3, and net has 3 outputs"),
        ({"net": Fixed()}, {"a": Probe.from_arrays(np.eye(5), [-1, 0, 1, 2, 3])}, {}, "from -1 to 3"),
        ({"net": {"a": Fixed()}}, GOOD, {}, "net has no network for task 'b'; it has a"),
        ({"net": Fixed(scale=float("nan"))}, GOOD, {}, "NaN or infinite outputs for sample '0'"),
        ({"net": nn.Linear(3, 2)}, GOOD, {}, "net cannot take samples '0' to '6'"),
        ({"net": nn.Flatten(0)}, GOOD, {}, r"\(35,\) for 7 samples"),
        ({"individual": Fixed()}, GOOD, {}, "called 'individual'"),
        ({"net": Fixed()}, GOOD, {"ensemble": True}, "not given"),
        ({"net": Fixed()}, GOOD, {"infer": "margin"}, "'margin' is no way to choose a head"),
        ({"net": Fixed()}, GOOD, {"classes": {"c": [0]}}, "given for 'c', and there are only the tasks a, b"),
        ({"net": Fixed()}, GOOD, {"classes": {"a": [0, 9]}}, "numbered from 0 to 4"),
        ({"net": Fixed()}, GOOD, {"classes": {"b": [2, 3]}}, "b has the label 4, which is none of its classes"),
        ({}, GOOD, {"individual": {"a": Fixed(), "b": Fixed(0, 5)}, "infer": "entropy", "batch_size": 0}, "batch of 0"),
        ({}, GOOD, {"individual": {"a": Fixed(0, 4), "b": Fixed()}, "ensemble": True}, "4 of a, 5 of b"),
    ],
)
def test_what_cannot_be_scored_is_told(monkeypatch, models, data, how, said):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(BadInput, match=said):
        evaluate(models, data, **how)


# Results


def scored():
    return evaluate({"net": Fixed(), "other": Fixed(scale=-1)}, tasks(), individual={"a": Fixed(), "b": Fixed()})


def test_results_come_back_from_json_and_go_to_csv(tmp_path):
    found = scored()
    found.save(tmp_path / "scores.json")
    loaded = Evaluation.load(tmp_path / "scores.json")
    assert (loaded, loaded.digest) == (found, found.digest)
    found.save(tmp_path / "scores.csv")
    with (tmp_path / "scores.csv").open() as file:
        lines = list(csv.DictReader(file))
    line = next(x for x in lines if (x["model"], x["heads"], x["score"]) == ("other", "inferred", "joint"))
    assert (float(line["accuracy"]), int(line["samples"])) == (found.joint("other").value, 16)
    assert sum(x["score"] == "task" for x in lines) == len(found.scores)
    ratios = {(x["model"], x["heads"]): float(x["ratio"]) for x in lines if x["score"] == "average"}
    assert ratios["other", "known"] == found.ratio("other")
    stored = json.loads((tmp_path / "scores.json").read_text())["ratios"]
    assert {(x["model"], x["heads"]): x["ratio"] for x in stored} == ratios
    assert {x["ratio"] for x in lines if x["score"] != "average"} == {""}


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"scores": [], "infer": null}', "[" * 9999, '{"infer": null, "scores": [{"model": "a"}]}'],
)
def test_damaged_results_are_told(tmp_path, content):
    path = tmp_path / "scores.json"
    with pytest.raises(BadInput, match=r"scores\.json holds no scores"):
        Evaluation.load(path)
    path.write_text(content)
    with pytest.raises(BadInput, match=r"scores\.json holds no scores"):
        Evaluation.load(path)


@pytest.mark.parametrize("change", [{"right": 9999}, {"samples": 0}, {"heads": "guessed"}, {"right": "many"}])
def test_impossible_scores_are_told(tmp_path, change):
    path = tmp_path / "scores.json"
    scored().save(path)
    content = json.loads(path.read_text())
    content["scores"][0] |= change
    path.write_text(json.dumps(content))
    with pytest.raises(BadInput, match="holds no scores"):
        Evaluation.load(path)


def test_a_table_and_a_picture():
    found = scored()
    lines = found.markdown().splitlines()
    assert lines[0] == "| model | heads | a | b | average | joint | ratio |"
    assert len(lines) == 2 + 3 + 2
    ax = found.plot()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["net", "other", "individual"]
    assert ax.get_ylabel()
    assert "standard error" in ax.get_title("left")


def test_a_score_of_nothing_right_has_no_error():
    assert Score("a", "known", "t", 0, 5).accuracy == (0, 0)

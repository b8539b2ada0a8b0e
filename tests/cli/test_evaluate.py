"""``taskatlas evaluate``: what a path stands for, and what is refused."""

import csv
import json
import shutil

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from tests.cli.make import write_network

BUILDER = ("--builder", "nets.py:mlp")


@pytest.fixture
def heads(place):
    """Folders experts/ and merged/ with a network for each of the tasks train and test."""
    for folder, names in {"experts": "ab", "merged": "bc"}.items():
        (place / folder).mkdir()
        for task, source in zip(("train", "test"), names, strict=True):
            shutil.copy(place / "zoo" / f"{source}.safetensors", place / folder / f"{task}.safetensors")
    return place


def rows(document):
    return {(row["model"], row["heads"]): row for row in document["models"]}


def test_a_file_is_a_network_for_all_tasks(run_json, place):
    with np.load("train.npz") as data:
        np.savez("few.npz", x=data["x"][data["y"] == 1], y=data["y"][data["y"] == 1])
    found = run_json("evaluate", "zoo/a.safetensors", "--on", "train.npz", "test.npz", *BUILDER)
    assert found["tasks"] == {"train": 20, "test": 20}
    assert set(rows(found)) == {("a", "known"), ("a", "inferred")}
    row = rows(found)["a", "inferred"]
    assert found["unlisted"] == ["train", "test"]  # whose labels are 0 and 1, of three outputs
    two = run_json("evaluate", "zoo/a.safetensors", "--on", "few.npz", "--classes", "few=0-1", *BUILDER)
    assert two["unlisted"] == []
    assert run_json("evaluate", "zoo/a.safetensors", "--on", "few.npz", *BUILDER)["unlisted"] == ["few"]
    with np.load("train.npz") as data:
        w = {name: value.numpy() for name, value in load_file("zoo/a.safetensors").items()}
        hidden = np.maximum(data["x"] @ w["0.weight"].T + w["0.bias"], 0)
        right = ((hidden @ w["2.weight"].T + w["2.bias"]).argmax(1) == data["y"]).mean()
    assert row["tasks"]["train"]["accuracy"] == pytest.approx(right)
    assert row["joint"]["accuracy"] == row["average"]["accuracy"]  # tasks of one size


def test_a_folder_with_a_checkpoint_for_each_task_is_one_model(run_json, heads):
    found = run_json("evaluate", "merged", "--on", "train.npz", "test.npz", "--individual", "experts", *BUILDER)
    assert set(rows(found)) == {("merged", "known"), ("individual", "known")}
    first, second = (rows(found)[name, "known"] for name in ("merged", "individual"))
    assert first["ratio"] == pytest.approx(first["average"]["accuracy"] / second["average"]["accuracy"])
    inferred = run_json("evaluate", "merged", "--on", "train.npz", "test.npz", "--infer", "entropy", *BUILDER)
    assert inferred["infer"] == "entropy"
    assert ("merged", "inferred") in rows(inferred)


def test_any_other_folder_is_a_model_for_each_checkpoint(run_json, place):
    found = run_json("evaluate", "zoo", "best=zoo/a.safetensors", "--on", "t=test.npz", *BUILDER)
    assert {model for model, _ in rows(found)} == {"zoo/a", "zoo/b", "zoo/c", "best"}
    assert rows(found)["zoo/a", "known"]["tasks"] == rows(found)["best", "known"]["tasks"]


def test_individual_networks_alone_and_as_an_ensemble(run_json, heads):
    arguments = ("evaluate", "--on", "train.npz", "test.npz", "--individual", "experts", "--ensemble", *BUILDER)
    assert {model for model, _ in rows(run_json(*arguments))} == {"individual", "ensemble"}


def test_tables_for_people_and_files_for_others(run, heads):
    arguments = ("evaluate", "merged", "zoo/a.safetensors", "--on", "train.npz", "test.npz", "--individual", "experts")
    ran = run(*arguments, *BUILDER, "--out", "scores")
    assert ran.code == 0, ran.err
    assert "±" in ran.out
    with (heads / "scores" / "evaluation.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert {line["model"] for line in lines} == {"merged", "a", "individual"}
    receipt = json.loads((heads / "scores" / "receipt.json").read_text())["evaluate"]
    assert {"a", "merged/train", "individual/test", "data/train"} <= set(receipt["inputs"])
    assert run("check", "scores").code == 0
    write_network(heads / "zoo" / "a.safetensors", 9, 5)
    assert run("check", "scores").code == 1


def test_rows_of_one_split(run_json, place):
    (place / "t.tsv").write_text("split\tlabel\ttext\ntrain\t0\ta\ntest\t1\tb\ntest\t0\tc\n")
    (place / "text.py").write_text(
        "from torch import nn, tensor\n\ndef build(weights):\n    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), "
        "nn.Linear(5, 3))\n    return net, lambda texts: tensor([[float(ord(t))] * 6 for t in texts])\n"
    )
    found = run_json("evaluate", "zoo/a.safetensors", "--on", "t.tsv", "--split", "test", "--builder", "text.py:build")
    assert found["tasks"] == {"t": 2}


def test_hugging_face_classifiers_bring_their_heads(run, run_json, place):
    transformers = pytest.importorskip("transformers", reason="needs the extra hf")
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[PAD]": 0, "[UNK]": 1, "a": 2, "b": 3}, "[UNK]"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=model, pad_token="[PAD]", unk_token="[UNK]")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    settings = transformers.BertConfig(vocab_size=4, num_labels=2, **sizes)
    for kind, folder in ((transformers.BertForSequenceClassification, "tuned"), (transformers.BertModel, "bare")):
        kind(settings).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    (place / "t.csv").write_text("label,text\n0,a\n1,b b\n")
    found = run_json("evaluate", "tuned", "--on", "t.csv")
    assert found["tasks"] == {"t": 2}
    ran = run("evaluate", "bare", "--on", "t.csv")
    assert ran.code == 2
    assert "bare was saved without a classification head" in ran.err


A = "zoo/a.safetensors"
ON = ("--on", "train.npz", "test.npz")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((*ON, *BUILDER), "name at least one model"),
        ((A, "--on", "probe.npz", *BUILDER), "samples of probe have no labels"),
        ((A, "--on", "none.npz", *BUILDER), "no file or folder none.npz"),
        ((A, "--on", "t=train.npz", "t=test.npz", *BUILDER), "two tasks are called 't'"),
        ((A, "--on", "=train.npz", *BUILDER), "names no task"),
        ((A, "a=zoo/b.safetensors", *ON, *BUILDER), "two models are called 'a'"),
        ((A, *ON), "no builder"),
        (("zoo/none.safetensors", *ON, *BUILDER), "no weights at zoo/none.safetensors"),
        (
            (A, *ON, "--individual", "zoo", *BUILDER),
            "no checkpoint called 'train'; it has a, b, c",
        ),
        ((A, *ON, "--ensemble", *BUILDER), "not given"),
        ((A, *ON, "--classes", "train=all", *BUILDER), "'train=all' gives no classes"),
        ((A, *ON, "--classes", "other=0-1", *BUILDER), "name each of the tasks train, test"),
        ((A, "--on", "many.npz", *BUILDER), "labels of many run from 0 to 7, and a has 3 outputs"),
        (("nan.safetensors", *ON, *BUILDER), "NaN or infinite outputs for sample '0'"),
        ((A, "--on", "wide.npz", *BUILDER), "a cannot take samples"),
        (("individual=zoo/a.safetensors", *ON, *BUILDER), "called 'individual'"),
        ((A, *ON, *BUILDER, "--out", "train.npz"), "cannot write train.npz"),
    ],
)
def test_what_is_refused(run, place, as_installed, arguments, said):
    np.savez("many.npz", x=np.zeros((2, 6)), y=[0, 7])
    np.savez("wide.npz", x=np.zeros((2, 9)), y=[0, 1])
    tensors = load_file(A)
    save_file(tensors | {"2.bias": tensors["2.bias"] * float("nan")}, "nan.safetensors")
    ran = run("evaluate", *arguments)
    assert (ran.code, ran.out) == (2, ""), ran.err
    assert said in ran.err
    assert ran.err.count("\n") == 1


def test_bad_usage(run, place):
    for arguments, said in (((A,), "--on"), ((A, *ON, "--infer", "guess"), "confidence")):
        ran = run("evaluate", *arguments)
        assert (ran.code, ran.out) == (2, "")
        assert said in ran.err

"""The recipes in ``examples/`` run end to end at a small size, on the classes that their large settings use."""

import csv
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

import taskatlas as ta
from taskatlas.merge import Evaluation

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_agents_are_trained_once_and_compared(tmp_path, monkeypatch):
    agents = example("agents")
    small = ["--agents", "5", "--classes", "3", "--unseen", "2", "--epochs", "2", "--sizes", "1,2", "--random", "3"]
    rows = agents.main([*small, "--out", str(tmp_path)])
    assert [row["k"] for row in rows] == [1, 2]
    assert all(1 / 3 < row[column] <= 1 for row in rows for column in ("selected", "random", "peek"))
    with (tmp_path / "agents.csv").open() as file:
        assert [float(row["selected"]) for row in csv.DictReader(file)] == [row["selected"] for row in rows]
    monkeypatch.setattr(agents, "train", lambda *_, **__: pytest.fail("an agent was trained again"))
    assert agents.main([*small, "--out", str(tmp_path)]) == rows


def test_class_subsets_are_drawn_without_repeats():
    subsets = example("agents").class_subsets(np.arange(10), count=50, size=4, seed=0)
    assert all(len(set(subset.tolist())) == 4 for subset in subsets)


def tiny_language_models(folder):
    transformers = pytest.importorskip("transformers", reason="needs the extra hf")
    tokenizers = pytest.importorskip("tokenizers")
    letters = [*"abcdefghijklmnopqrstuvwxyz", *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")]
    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters])}
    model = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=model, **names)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    for name, settings in {"one": {}, "two": {"num_hidden_layers": 2}, "three": {"hidden_size": 24}}.items():
        configuration = transformers.BertConfig(
            vocab_size=len(vocabulary), max_position_embeddings=64, **sizes | settings
        )
        transformers.BertModel(configuration).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def test_language_models_from_words_to_transfer(tmp_path):
    tiny_language_models(tmp_path / "models")
    lines = tmp_path / "lines.txt"
    lines.write_text("the cat sat on a mat\nno dog ran\n\nbirds sing at dawn\n" * 6)
    for name in ("train", "test"):
        (tmp_path / f"{name}.conll").write_text("the DET B\ncat NOUN I\nsat VERB O\n\na DET B\ndog NOUN I\n\n" * 4)
    arguments = f"--zoo {tmp_path}/models --lines {lines} --sizes 1,2 --random 3 --out {tmp_path}/out"
    task = f"pos={tmp_path}/train.conll,{tmp_path}/test.conll,1"
    found = example("language_models").main([*arguments.split(), "--task", task])
    assert [len(one.names) for one in found["pos"]] == [1, 2]
    assert found["pos"][-1].metric == "macro_f1"
    assert 0.9 < found["pos"][-1].selected <= 1  # the same words with the same tags can be told apart
    assert ta.TaskSpace.load(tmp_path / "out" / "space.npz").names == ("one", "three", "two")
    assert json.loads((tmp_path / "out" / "receipt.json").read_text())["map"]["settings"]["words"] == "last"


def test_the_studys_models_open_lazily_by_hub_id():
    models = example("language_models")
    zoo = models.open_models(None)
    assert len(zoo) == 34
    assert zoo["gpt"].weights == "openai-community/openai-gpt"


def test_a_malformed_task_is_told():
    with pytest.raises(ta.BadInput, match="NAME=TRAIN,TEST,COLUMN"):
        example("language_models").read_task("pos=train.conll")


def test_the_cifar_builder_reads_depth_and_width_from_the_weights(tmp_path):
    resnets = example("cifar_resnet")
    save_file(resnets.CifarResNet(blocks=2, width=8, classes=5).state_dict(), tmp_path / "net.safetensors")
    zoo = ta.Zoo.open(tmp_path, builder=f"{EXAMPLES / 'cifar_resnet.py'}:build")
    opened = zoo["net"].open()
    images = [np.full((32, 32, 3), value, dtype=np.uint8) for value in (0, 255)]
    assert opened.module(opened.prepare(images)).shape == (2, 5)


def test_digits_are_merged_with_every_method(tmp_path):
    found = example("merge_digits").main(["--epochs", "2", "--steps", "2", "--out", str(tmp_path)])
    assert len(found.models()) == 18
    assert found.ratio("individual") == 1
    assert all(0.2 < found.average(model).value < 1 for model in found.models())
    assert Evaluation.load(tmp_path / "evaluation.json") == found


def test_text_experts_are_trained_once_and_merged(tmp_path, monkeypatch):
    tiny_language_models(tmp_path / "models")
    for task, words in {"animals": ("cat", "dog"), "colours": ("red", "blue", "green")}.items():
        labelled = [f"{n % len(words)}\ta {words[n % len(words)]}" for n in range(24)]
        rows = [f"{split}\t{row}" for split in ("train", "test") for row in labelled]
        (tmp_path / f"{task}.tsv").write_text("\n".join(["split\tlabel\ttext", *rows]))
    text = example("merge_text")
    places = f"--model {tmp_path}/models/one --data {tmp_path} --tasks animals,colours --out {tmp_path}/out"
    small = f"{places} --steps 9 --batch 4 --validation 8 --test 12 --adapt 2".split()
    found = text.main(small)
    assert [name.partition(",")[0] for name in found.models()][:3] == ["individual", "base", "average"]
    assert len(found.models()) == 15
    monkeypatch.setattr(text, "fine_tune", lambda *_: pytest.fail("an expert was trained again"))
    monkeypatch.setattr(text, "METHODS", {})
    assert set(text.main(small).scores) < set(found.scores)
    zoo = ta.Zoo.load(tmp_path / "out" / "experts")
    assert zoo["colours"].open().module.head.out_features == 3


@pytest.mark.slow
def test_real_residual_networks_reach_their_accuracy(real_input):
    """81.03, 82.56 and 83.20 % on all 10,000 JPEG test images; here 5,000 of them, within two standard errors."""
    zoo = ta.Zoo.open(real_input / "zoo" / "cifar10-resnets", builder=f"{EXAMPLES / 'cifar_resnet.py'}:build")
    probe = ta.Probe.open(real_input / "data" / "cifar10-test.parquet")
    for (_, checkpoint), known in zip(zoo.items(), (0.8103, 0.8256, 0.8320), strict=True):
        opened = checkpoint.open()
        right = 0
        with ta.quiet(opened.module):
            for start in range(0, len(probe), 250):
                batch = [probe.inputs[row] for row in range(start, min(start + 250, len(probe)))]
                predicted = opened.module(opened.prepare(batch)).argmax(1).numpy()
                right += int((predicted == probe.labels[start : start + len(batch)]).sum())
        assert abs(right / len(probe) - known) < 2 * np.sqrt(known * (1 - known) / len(probe))

"""Probes shown to checkpoints as a zoo opens them, on small networks and on real ones."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from taskatlas.engine import run_jobs
from taskatlas.probe import Probe, check_same_samples, extract, quiet
from taskatlas.probe.forward import batches
from taskatlas.probe.images import LazyImages
from taskatlas.store import Store
from taskatlas.zoo import Checkpoint, Zoo

SENTENCES = [["The", "unhappiest", "cat", "sat"], ["Dogs", "ran"], ["cats"]]


@pytest.fixture(scope="session")
def language_model(tmp_path_factory) -> Path:
    """A BERT of a few thousand weights with its tokenizer, in a folder as ``save_pretrained`` writes it."""
    transformers = pytest.importorskip("transformers", reason="needs the extra hf")
    folder = tmp_path_factory.mktemp("bert")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "un", "##happi", "##est", "cat", "##s", "sat"]
    (folder / "vocab.txt").write_text("\n".join([*pieces, "dog", "ran", "."]) + "\n")
    transformers.BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=16).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=15,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.BertModel(config).save_pretrained(folder)
    return folder


def test_words_and_texts_through_a_language_model(language_model):
    checkpoint = Checkpoint("bert", weights=language_model, builder="transformers")
    probe = Probe("words", SENTENCES, ("a", "b", "c"), np.arange(7))
    opened = checkpoint.open()

    with torch.no_grad():
        encoding = opened.prepare([SENTENCES[0]])
        hidden = opened.module(**encoding).last_hidden_state[0].numpy()
    assert encoding.word_ids(0) == [None, 0, 1, 1, 1, 2, 3, None]
    for how, expected in {"first": hidden[2], "last": hidden[4], "mean": hidden[2:5].mean(0)}.items():
        found = extract(checkpoint, probe, words=how, batch_size=2, device="cpu")
        assert found.tap == "last_hidden_state"
        assert found.ids == probe.row_ids == ("a:0", "a:1", "a:2", "a:3", "b:0", "b:1", "c:0")
        np.testing.assert_allclose(found.values[1], expected, rtol=1e-4, atol=1e-5)

    texts = Probe.from_text([" ".join(words) for words in SENTENCES])
    found = extract(checkpoint, texts, device="cpu")
    np.testing.assert_allclose(found.values[0], hidden.mean(0), rtol=1e-4, atol=1e-5)
    alone = extract(checkpoint, texts, batch_size=1, device="cpu", store=Store(language_model / "store"))
    np.testing.assert_allclose(alone.values, found.values, rtol=1e-4, atol=1e-5)


def test_sentences_longer_than_a_language_model_reads(language_model):
    checkpoint = Checkpoint("bert", weights=language_model, builder="transformers")
    probe = Probe("words", [["cat"] * 20], ("long",))
    with pytest.raises(ValueError, match="kept 14 of the 20 words of sentence 'long'"):
        extract(checkpoint, probe, device="cpu")


def test_workers_leave_their_features_in_one_store(tmp_path):
    torch.manual_seed(0)
    zoo = Zoo.open({f"net{i}": nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)) for i in range(3)})
    probe = Probe.from_arrays(np.random.default_rng(0).normal(size=(20, 4)))
    one, many = Store(tmp_path / "one"), Store(tmp_path / "many")
    found = [extract(zoo[name], probe, store=one, device="cpu") for name in zoo]
    run_jobs(_extract, [(zoo[name], probe, many) for name in zoo], engine="threads:3")
    for name, mine in zip(zoo, found, strict=True):
        theirs = extract(zoo[name], probe, store=many, device="cpu")
        np.testing.assert_array_equal(mine.values, theirs.values)
        assert mine.digest == theirs.digest
    check_same_samples(found)


def _extract(checkpoint, probe, store):
    extract(checkpoint, probe, store=store, device="cpu")


def test_real_images_stay_in_their_file(real_input):
    probe = Probe.open(real_input / "data" / "cifar10-test.parquet")
    assert len(probe) == 5000
    assert isinstance(probe.inputs, LazyImages)
    assert probe.class_names[:3] == ("airplane", "automobile", "bird")
    assert probe.inputs[4999].shape == (32, 32, 3)
    assert np.bincount(probe.labels).min() > 400
    assert probe.take([3, 1]).ids == (probe.ids[3], probe.ids[1])


def test_real_texts_and_digits(real_input):
    probe = Probe.open(real_input / "data" / "text" / "trec.tsv")
    assert probe.kind == "text"
    assert probe.inputs[0] == "How did serfdom develop in and then leave Russia ?"
    assert len(probe.labels) == len(probe) == 5952
    test = Probe.from_table(real_input / "data" / "text" / "trec.tsv", split="test")
    assert len(test) == 500
    assert Probe.open(real_input / "data" / "text" / "tweet-irony.tsv").inputs[-1][:1] != '"'


@pytest.mark.slow
def test_real_networks_are_as_accurate_on_real_images_as_is_known(real_input, tmp_path):
    """On these JPEG images the published ResNet-20 is 81.03 % right over all 10,000."""
    builder = Path(__file__).parents[2] / "examples" / "cifar_resnet.py"
    weights = real_input / "zoo" / "cifar10-resnets" / "resnet20-12fca82f.th"
    checkpoint = Checkpoint("resnet20", weights=weights, builder=f"{builder}:build")
    probe = Probe.open(real_input / "data" / "cifar10-test.parquet").take(range(1000))
    opened = checkpoint.open()
    with quiet(opened.module):
        passes = batches(opened, probe, who="resnet20", batch_size=250)
        predicted = torch.cat([batch.output.argmax(1) for batch in passes]).numpy()
    assert (predicted == probe.labels).mean() == pytest.approx(0.81, abs=0.025)

    found = extract(checkpoint, probe.take(range(200)), batch_size=100, device="cpu", store=Store(tmp_path))
    assert found.tap == "linear:input"
    logits = opened.module.linear(torch.from_numpy(np.array(found.values)))
    assert (logits.argmax(1).numpy() == predicted[:200]).all()

"""Statistics of a Hugging Face folder stand under the names that its file has, head and all."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from taskatlas.errors import BadInput
from taskatlas.merge.fisher_information import fisher
from taskatlas.merge.opening import open_as_saved, open_classifier
from taskatlas.merge.regression_mean import gram_matrices
from taskatlas.probe import Probe
from taskatlas.zoo import Checkpoint, read_weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    transformers = pytest.importorskip("transformers", reason="needs the extra hf")
    tokenizers = pytest.importorskip("tokenizers")
    place = tmp_path_factory.mktemp("models")
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[PAD]": 0, "[UNK]": 1, "a": 2, "b": 3}, "[UNK]"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=model, pad_token="[PAD]", unk_token="[UNK]")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    settings = transformers.BertConfig(vocab_size=4, num_labels=2, **sizes)
    for kind, name in ((transformers.BertForSequenceClassification, "tuned"), (transformers.BertModel, "bare")):
        kind(settings).save_pretrained(place / name)
        tokenizer.save_pretrained(place / name)
    return place


def test_names_are_those_of_the_file(folder):
    probe = Probe.from_text(["a", "b b", "a b a"])
    for name, layers in (("tuned", 8), ("bare", 7)):
        checkpoint = Checkpoint(name, folder / name, "transformers")
        state = torch.get_rng_state()
        seen = gram_matrices(checkpoint, probe)
        assert torch.equal(torch.get_rng_state(), state)
        assert len(seen.grams) == layers  # projections, output, two of the feed-forward part, pooler, head
        assert set(seen.grams) <= set(read_weights(folder / name))
    assert set(fisher(Checkpoint("tuned", folder / "tuned", "transformers"), probe)) == set(
        read_weights(folder / "tuned")
    )


def test_a_model_without_head_is_no_classifier(folder):
    bare = Checkpoint("bare", folder / "bare", "transformers")
    assert open_as_saved(bare).module is not None
    for ask in (open_classifier, lambda checkpoint: fisher(checkpoint, Probe.from_text(["a"]))):
        with pytest.raises(BadInput, match="bare was saved without a classification head"):
            ask(bare)


def test_a_head_that_is_not_in_the_file_is_told(folder, tmp_path):
    shutil.copytree(folder / "tuned", tmp_path / "cut")
    weights = load_file(tmp_path / "cut" / "model.safetensors")
    for name in ("classifier.weight", "bert.pooler.dense.bias"):
        left = {key: value for key, value in weights.items() if key != name}
        save_file(left, tmp_path / "cut" / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(BadInput, match=f"1 missing .{name}"):
            open_classifier(Checkpoint("cut", tmp_path / "cut", "transformers"))

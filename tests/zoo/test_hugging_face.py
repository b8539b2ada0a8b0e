"""Hugging Face models: small random ones, saved by transformers itself, opened as checkpoints."""

import json
import os
import pickle
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from taskatlas.errors import BadInput, MissingExtra
from taskatlas.zoo import Checkpoint, Zoo, read_weights, tensor_shapes
from taskatlas.zoo.hugging_face import download_model, hub_commit, hub_parameters, model_digest

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

LINES = ["the cat sat on the mat", "dogs run in the park", "unbelievable things happen"]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
VISION = {**SIZES, "image_size": 8, "patch_size": 4}
VOCABULARY = 300


def word_piece(**special):
    model = tokenizers.models.WordPiece(unk_token="[UNK]")
    built = tokenizers.Tokenizer(model)
    built.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=80, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"], show_progress=False
    )
    built.train_from_iterator(LINES, trainer)
    built.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=built, unk_token="[UNK]", **special)


def byte_level(**special):
    built = tokenizers.Tokenizer(tokenizers.models.BPE())
    built.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|end|>"],
        show_progress=False,
    )
    built.train_from_iterator(LINES, trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=built, **special)


def bert(**changes):
    return transformers.BertConfig(vocab_size=VOCABULARY, max_position_embeddings=16, **SIZES, **changes)


def gpt2():
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    return transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=16, **ends)


def t5():
    sizes = {"d_model": 16, "d_ff": 24, "d_kv": 8, "num_layers": 2, "num_heads": 2}
    return transformers.T5Config(vocab_size=VOCABULARY, decoder_start_token_id=0, **sizes)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder of models as their libraries save them; a test that changes one copies it first."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    transformers.BertModel(bert()).save_pretrained(folder / "bert")
    word_piece(pad_token="[PAD]").save_pretrained(folder / "bert")
    transformers.BertForMaskedLM(bert()).save_pretrained(folder / "bert-lm")
    transformers.GPT2LMHeadModel(gpt2()).save_pretrained(folder / "gpt2")
    byte_level(eos_token="<|end|>").save_pretrained(folder / "gpt2")
    transformers.T5ForConditionalGeneration(t5()).save_pretrained(folder / "t5")
    word_piece(pad_token="[PAD]").save_pretrained(folder / "t5")
    transformers.ViTForImageClassification(transformers.ViTConfig(**VISION)).save_pretrained(folder / "vit")
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}}
    (folder / "vit/preprocessor_config.json").write_text(json.dumps(processor))
    transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VISION)).save_pretrained(folder / "clip")
    transformers.BertModel(bert()).save_pretrained(folder / "sharded", max_shard_size="4KB")
    return folder


@pytest.fixture
def copied(models, place):
    def copy(name):
        shutil.copytree(models / name, place / name)
        return place / name

    return copy


def test_a_folder_of_models_is_a_zoo(models):
    zoo = Zoo.open(models)
    assert list(zoo) == ["bert", "bert-lm", "clip", "gpt2", "sharded", "t5", "vit"]
    assert {checkpoint.builder for checkpoint in zoo.values()} == {"transformers"}
    assert len({checkpoint.digest for checkpoint in zoo.values()}) == 7
    for name, checkpoint in zoo.items():
        opened = checkpoint.open()
        assert not any(part.training for part in opened.module.modules()), name
        stored = sum(tensor.numel() for tensor in read_weights(models / name).values() if tensor.is_floating_point())
        assert checkpoint.parameters == stored


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
def test_text_goes_through_the_folders_tokenizer(models, name):
    opened = Checkpoint(name, models / name, "transformers").open()
    batch = opened.prepare(["the cat", "the cat sat on the mat"])
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert batch["attention_mask"].sum(1)[0] < batch["attention_mask"].sum(1)[1] == batch["input_ids"].shape[1]
    with torch.no_grad():
        hidden = opened.module(**batch).last_hidden_state
        alone = opened.module(**opened.prepare(["the cat"])).last_hidden_state
    assert hidden.shape == (*batch["input_ids"].shape, 16)
    torch.testing.assert_close(hidden[0, : alone.shape[1]], alone[0], atol=1e-5, rtol=1e-4)


def test_of_an_encoder_decoder_the_encoder_is_opened(models):
    module = Checkpoint("t5", models / "t5", "transformers").open().module
    assert not any("decoder" in name for name, _ in module.named_parameters())
    stored = read_weights(models / "t5")
    assert torch.equal(module.get_input_embeddings().weight, stored["shared.weight"])
    assert torch.equal(
        module.block[1].layer[1].DenseReluDense.wo.weight, stored["encoder.block.1.layer.1.DenseReluDense.wo.weight"]
    )


def test_an_encoder_saved_alone(models, place):
    transformers.T5EncoderModel(t5()).save_pretrained(place / "encoder")
    module = Checkpoint("t5", place / "encoder", "transformers").open().module
    stored = read_weights(place / "encoder")
    assert torch.equal(module.final_layer_norm.weight, stored["encoder.final_layer_norm.weight"])


def test_a_language_models_head_is_left_out_and_what_is_missing_is_settled(models):
    first, second = (Checkpoint("b", models / "bert-lm", "transformers").open().module for _ in range(2))
    assert type(first).__name__ == "BertModel"
    stored = read_weights(models / "bert-lm")
    name = "encoder.layer.1.output.dense.weight"
    assert torch.equal(first.state_dict()[name], stored[f"bert.{name}"])
    assert torch.equal(first.pooler.dense.weight, second.pooler.dense.weight)


def test_words_keep_their_places(models):
    for name in ("bert", "gpt2", "t5"):
        opened = Checkpoint(name, models / name, "transformers").open()
        batch = opened.prepare([["the", "dogsitting", "cat"], ["mat"]])
        words = [word for word in batch.word_ids(0) if word is not None]
        assert sorted(set(words)) == [0, 1, 2]
        assert words.count(1) > 1
        assert {word for word in batch.word_ids(1) if word is not None} == {0}
        opened.module(**batch)


def test_words_of_a_byte_level_vocabulary_come_after_a_space(models):
    opened = Checkpoint("gpt2", models / "gpt2", "transformers").open()
    words = opened.prepare([["on", "the", "mat"]])["input_ids"][0].tolist()
    text = opened.prepare([" on the mat"])["input_ids"][0].tolist()
    assert words == text
    assert opened.prepare(["on the mat"])["input_ids"][0].tolist() != text


def test_a_tokenizer_without_a_pad_token_pads_with_its_end(models):
    opened = Checkpoint("gpt2", models / "gpt2", "transformers").open()
    batch = opened.prepare(["the cat sat on the mat", "dogs"])
    assert batch["input_ids"][1, -1] == 0
    assert batch["attention_mask"][1, -1] == 0


def test_a_tokenizer_without_either(models, copied):
    folder = copied("gpt2")
    byte_level().save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in settings.items() if k != "eos_token"}))
    with pytest.raises(BadInput, match="neither a pad nor an eos token"):
        Checkpoint("gpt2", folder, "transformers").open().prepare(["a"])


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_a_long_text_is_cut_to_what_the_model_can_take(models, name):
    opened = Checkpoint(name, models / name, "transformers").open()
    batch = opened.prepare(["the cat sat " * 50])
    assert batch["input_ids"].shape[1] == 16
    opened.module(**batch)


def test_positions_that_begin_behind_the_paddings(place):
    config = transformers.RobertaConfig(vocab_size=VOCABULARY, max_position_embeddings=18, pad_token_id=1, **SIZES)
    transformers.RobertaModel(config).save_pretrained(place / "roberta")
    byte_level(eos_token="<|end|>", pad_token="<|end|>").save_pretrained(place / "roberta")
    opened = Checkpoint("roberta", place / "roberta", "transformers").open()
    batch = opened.prepare(["the cat sat " * 50])
    assert batch["input_ids"].shape[1] == 16
    opened.module(**batch)


def test_a_limit_of_the_tokenizer_counts(copied):
    folder = copied("t5")
    word_piece(pad_token="[PAD]", model_max_length=7).save_pretrained(folder)
    assert Checkpoint("t5", folder, "transformers").open().prepare(["the cat " * 9])["input_ids"].shape[1] == 7


def test_a_model_without_a_limit_is_not_cut(models):
    opened = Checkpoint("t5", models / "t5", "transformers").open()
    assert opened.prepare(["the cat " * 50])["input_ids"].shape[1] == 102


@pytest.mark.parametrize("shape", [(8, 8, 3), (11, 5, 3), (8, 8, 1), (8, 8), (8, 8, 4), (3, 3, 3)])
def test_images_go_through_the_folders_processor(models, shape):
    opened = Checkpoint("vit", models / "vit", "transformers").open()
    images = [np.full(shape, 255, dtype=np.uint8), np.zeros(shape, dtype=np.uint8)]
    batch = opened.prepare(images)
    assert batch["pixel_values"].shape == (2, 3, 8, 8)
    assert batch["pixel_values"][1].unique().tolist() == [-1.0]
    if shape[-1] != 4:
        assert batch["pixel_values"][0].unique().tolist() == [1.0]
    assert opened.module(**batch).last_hidden_state.shape == (2, 5, 16)


def test_a_model_without_preprocessing_says_nothing_about_it(models):
    opened = Checkpoint("clip", models / "clip", "transformers").open()
    assert opened.prepare is None
    assert opened.module(torch.zeros(1, 3, 8, 8)).last_hidden_state.shape == (1, 5, 16)


def test_inputs_of_the_wrong_kind(models):
    vit = Checkpoint("vit", models / "vit", "transformers").open()
    with pytest.raises(BadInput, match="vit has no tokenizer"):
        vit.prepare(["text"])
    bert = Checkpoint("bert", models / "bert", "transformers").open()
    with pytest.raises(BadInput, match="bert has no image processor"):
        bert.prepare([np.zeros((8, 8, 3), dtype=np.uint8)])


def test_shards_open_as_one(models):
    assert (models / "sharded/model.safetensors.index.json").is_file()
    assert len(list((models / "sharded").glob("*.safetensors"))) > 2
    module = Checkpoint("s", models / "sharded", "transformers").open().module
    stored = read_weights(models / "sharded")
    assert {name: tensor.shape for name, tensor in tensor_shapes(models / "sharded").items()} == {
        name: tensor.shape for name, tensor in stored.items()
    }
    assert all(torch.equal(value, stored[name]) for name, value in module.state_dict().items())


def test_pytorch_weights_open_alike(models, copied):
    folder = copied("bert")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    module = Checkpoint("b", folder, "transformers").open().module
    reference = Checkpoint("b", models / "bert", "transformers").open().module
    assert all(torch.equal(value, reference.state_dict()[name]) for name, value in module.state_dict().items())


def test_the_digest_sees_weights_configuration_and_preprocessing_alone(models, copied):
    folder = copied("bert")
    digest = model_digest(folder)
    assert digest == model_digest(models / "bert")
    (folder / "README.md").write_text("A model.")
    (folder / "optimizer.pt").write_bytes(b"momentum")
    (folder / "trainer_state.json").write_text("{}")
    assert model_digest(folder) == digest
    seen = {digest}
    for file in ("config.json", "tokenizer_config.json", "tokenizer.json", "model.safetensors"):
        with (folder / file).open("ab") as opened:
            opened.write(b" ")
        seen.add(model_digest(folder))
    assert len(seen) == 5


def test_bars_and_notes_are_off_while_opening_and_on_again(models, capfd):
    logging = transformers.utils.logging
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    Checkpoint("b", models / "bert-lm", "transformers").open()
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert capfd.readouterr() == ("", "")


def test_opening_does_not_disturb_a_training(models):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    Checkpoint("b", models / "bert-lm", "transformers").open()
    assert torch.equal(torch.rand(4), expected)


# The hub, as a computer without a network sees it: its cache.


@pytest.fixture
def cached_on_hub(models, tmp_path, monkeypatch):
    """bert, as ``org/bert`` in a cache that was filled earlier."""
    import huggingface_hub

    commit = "0123456789abcdef0123456789abcdef01234567"
    root = tmp_path / "hub/models--org--bert"
    shutil.copytree(models / "bert", root / "snapshots" / commit)
    (root / "refs").mkdir()
    (root / "refs/main").write_text(commit)
    for module in (huggingface_hub.constants, *(m for m in list(sys.modules.values()) if m is not None)):
        if getattr(module, "__name__", "").partition(".")[0] in ("huggingface_hub", "transformers"):
            for name, value in (("HF_HUB_CACHE", str(tmp_path / "hub")), ("HF_HUB_OFFLINE", True)):
                if name in vars(module):
                    monkeypatch.setattr(module, name, value)
    monkeypatch.setattr("transformers.utils.hub.is_offline_mode", lambda: True, raising=False)
    monkeypatch.chdir(tmp_path)
    hub_commit.cache_clear()
    yield commit
    hub_commit.cache_clear()


def test_a_hub_id_without_a_network(models, cached_on_hub):
    checkpoint = Zoo.open(["org/bert"])["org/bert"]
    assert hub_commit("org/bert") == cached_on_hub
    assert checkpoint.parameters == hub_parameters("org/bert") == Checkpoint("b", models / "bert").parameters
    assert len(checkpoint.digest) == 64
    opened = checkpoint.open()
    reference = Checkpoint("b", models / "bert", "transformers").open()
    assert torch.equal(opened.module.pooler.dense.weight, reference.module.pooler.dense.weight)
    assert torch.equal(opened.prepare(["the cat"])["input_ids"], reference.prepare(["the cat"])["input_ids"])
    with pytest.raises(BadInput, match="org/bert has no image processor"):
        opened.prepare([np.zeros((8, 8, 3), dtype=np.uint8)])


def test_a_hub_model_as_a_folder(models, cached_on_hub, tmp_path):
    folder = download_model("org/bert")
    assert folder == tmp_path / f"hub/models--org--bert/snapshots/{cached_on_hub}"
    assert read_weights(folder).keys() == read_weights(models / "bert").keys()


def test_safetensors_are_fetched_and_pickles_where_there_are_none(monkeypatch, tmp_path):
    import huggingface_hub

    asked = []

    def fetch(model_id, *, revision, allow_patterns, ignore_patterns):
        asked.append(allow_patterns)
        if "*.bin" in allow_patterns:
            torch.save({"w": torch.ones(1)}, tmp_path / "pytorch_model.bin")
        return str(tmp_path)

    def refuse(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda self, model_id: SimpleNamespace(sha="0" * 40))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    hub_commit.cache_clear()
    assert read_weights(download_model("org/pickles")).keys() == {"w"}
    assert ["*.safetensors" in patterns for patterns in asked] == [True, False]
    assert all("config.json" in patterns for patterns in asked)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(BadInput, match=r"cannot fetch org/pickles from the hub .*no route to host"):
        download_model("org/pickles")
    hub_commit.cache_clear()


def test_a_hub_id_with_a_network(monkeypatch):
    """The answers of the hub are played; nothing of the model is fetched to name and to count it."""
    import huggingface_hub

    monkeypatch.setattr(
        huggingface_hub.HfApi, "model_info", lambda self, model_id: SimpleNamespace(sha=f"of {model_id}")
    )
    counts = SimpleNamespace(parameter_count={"F32": 5, "BF16": 7, "I64": 100})
    monkeypatch.setattr(huggingface_hub, "get_safetensors_metadata", lambda model_id, revision: counts)
    hub_commit.cache_clear()
    checkpoint = Checkpoint("x", "org/never-cached", "transformers")
    assert checkpoint.parameters == 12
    digest = checkpoint.digest
    assert digest == Checkpoint("y", "org/never-cached", "transformers").digest
    assert digest != Checkpoint("y", "org/another", "transformers").digest
    hub_commit.cache_clear()


def test_a_hub_model_of_pickles_alone(monkeypatch):
    import huggingface_hub

    def refuse(model_id, revision):
        raise ValueError("no safetensors here")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda self, model_id: SimpleNamespace(sha="0" * 40))
    monkeypatch.setattr(huggingface_hub, "get_safetensors_metadata", refuse)
    hub_commit.cache_clear()
    with pytest.raises(BadInput, match=r"how large org/pickles is .*no safetensors here.*Open it once first"):
        hub_parameters("org/pickles")
    hub_commit.cache_clear()


def test_a_hub_id_that_is_unknown(cached_on_hub):
    checkpoint = Checkpoint("x", "org/unknown", "transformers")
    for ask in (Checkpoint.open, lambda c: c.digest, lambda c: c.parameters):
        with pytest.raises(BadInput, match="'org/unknown' is neither a local path nor a model"):
            ask(checkpoint)


# Attacks


def refused(folder, *parts):
    with pytest.raises(BadInput) as caught:
        Checkpoint("x", folder, "transformers").open()
    message = str(caught.value)
    assert str(folder) in message
    for part in parts:
        assert part in message
    assert len(message) < 700
    return message


def test_a_folder_that_is_none(place, models):
    refused(place / "gone", "no model at", "path right?")
    refused(place, "no config.json")
    refused(models / "bert/model.safetensors", "not a Hugging Face model folder")
    shutil.copy(models / "bert/config.json", place)
    refused(place, "holds no model")


def test_no_weights_for_transformers():
    with pytest.raises(BadInput, match="names no weights for transformers"):
        Checkpoint("x", None, "transformers").open()


def test_arguments_for_transformers(models):
    with pytest.raises(BadInput, match="arguments, which transformers does not take"):
        Checkpoint("x", models / "bert", "transformers", {"depth": 3}).open()


@pytest.mark.parametrize("config", ["{", "[]", "3", '{"model_type": "no-such-model"}', "{}", '{"model_type": 3}'])
def test_a_damaged_configuration(copied, config):
    folder = copied("bert")
    (folder / "config.json").write_text(config)
    refused(folder)


def test_damaged_weights(copied):
    folder = copied("bert")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-50])
    refused(folder, "model.safetensors is not a whole safetensors file")


def test_a_missing_shard(copied):
    folder = copied("sharded")
    sorted(folder.glob("*.safetensors"))[0].unlink()
    refused(folder, "index.json names the shard", "not beside it")


def test_weights_of_another_shape(copied):
    folder = copied("bert")
    bert(type_vocab_size=5).save_pretrained(folder)
    refused(folder, "1 of another shape (embeddings.token_type_embeddings.weight)")


def test_weights_that_lack_a_part(copied):
    folder = copied("bert")
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("encoder.layer.1.")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    refused(
        folder, "do not fit its config.json", "16 missing (encoder.layer.1.attention", "and 11 more", "save_pretrained"
    )


def test_weights_of_another_model(models, copied):
    folder = copied("bert")
    shutil.copy(models / "gpt2/model.safetensors", folder)
    refused(folder, "do not fit its config.json")


class Payload:
    """Unpickled, it would make a file."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


def test_a_pickle_that_needs_code_does_not_run(copied):
    folder = copied("bert")
    (folder / "model.safetensors").unlink()
    torch.save({"evil": Payload(folder / "ran")}, folder / "pytorch_model.bin")
    refused(folder, "pytorch_model.bin is a pickle that needs code", "safetensors")
    assert not (folder / "ran").exists()


def test_code_that_a_model_brings_along_does_not_run(copied):
    folder = copied("bert")
    (folder / "own.py").write_text(f"import pathlib\npathlib.Path({str(folder / 'ran')!r}).touch()\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, "needs code of its own")
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"version": "1.0"}'])
def test_a_damaged_tokenizer(copied, content):
    folder = copied("bert")
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(BadInput, match="bert"):
        Checkpoint("b", folder, "transformers").open().prepare(["text"])


def test_without_transformers(models, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtra, match=r"pip install 'taskatlas\[hf\]'"):
        Checkpoint("b", models / "bert", "transformers").open()
    assert len(Checkpoint("b", models / "bert", "transformers").digest) == 64


def test_a_prepared_checkpoint_travels(models):
    prepare = Checkpoint("bert", models / "bert", "transformers").open().prepare
    again = pickle.loads(pickle.dumps(prepare))
    assert torch.equal(again(["the cat"])["input_ids"], prepare(["the cat"])["input_ids"])

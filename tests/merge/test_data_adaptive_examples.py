"""The published settings in ``examples/`` end to end, on the same classes in small random configurations."""

import csv
import importlib.util
import json
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from taskatlas.errors import BadInput
from taskatlas.merge.data_adaptive import DataAdaptive

transformers = pytest.importorskip("transformers", reason="needs the extra hf")
tokenizers = pytest.importorskip("tokenizers")

matplotlib.use("Agg")

EXAMPLES = Path(__file__).parents[2] / "examples"
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


def example(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def save_tokenizer(folder, **special):
    """Letters as tokens."""
    names = [*special.values(), *"abcdefghijklmnopqrstuvwxyz0123456789.,:?'\"()"]
    vocabulary = {token: i for i, token in enumerate([*names, *(f"##{token}" for token in names)])}
    model = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token=special["unk_token"]))
    model.normalizer = tokenizers.normalizers.Lowercase()
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=model, **special).save_pretrained(folder)
    return len(vocabulary)


def moved(module, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in module.parameters():
            value.add_(0.05 * torch.randn(value.shape, generator=generator))
    return module


# CLIP


def save_clip(folder, names, layers=2):
    """A base, experts of the same size, and what prepares images and text."""
    torch.manual_seed(0)
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "[EOS]"}
    words = save_tokenizer(folder / "base", **special)
    sizes = SIZES | {"num_hidden_layers": layers}
    config = transformers.CLIPConfig(
        text_config={**sizes, "vocab_size": words, "max_position_embeddings": 40, "eos_token_id": 2},
        vision_config={**sizes, "image_size": 16, "patch_size": 8},
        projection_dim=12,
    )
    transformers.CLIPModel(config).save_pretrained(folder / "base")
    size = {"height": 16, "width": 16}
    transformers.CLIPImageProcessor(size=size, crop_size=size).save_pretrained(folder / "base")
    for i, name in enumerate(names):
        tower = transformers.CLIPVisionModel.from_pretrained(folder / "base")
        moved(tower, i).save_pretrained(folder / name)


def save_images(folder, classes):
    draw = np.random.default_rng(len(classes))
    for split in ("train", "test"):
        for label, name in enumerate(classes):
            place = folder / split / name
            place.mkdir(parents=True)
            for i in range(6):
                pixels = draw.integers(40 * label, 40 * label + 90, size=(20, 20, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{i}.png")


def save_resnet(folder):
    torch.manual_seed(3)
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1])
    transformers.ResNetModel(config).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    transformers.ViTImageProcessor(size=size).save_pretrained(folder)


@pytest.mark.parametrize("level", ["task", "layer"])
def test_clip_from_folders_to_scores(tmp_path, level, monkeypatch):
    save_clip(tmp_path / "b32", ["colours", "shades"])
    save_clip(tmp_path / "l14", ["colours", "shades"], layers=3)
    save_resnet(tmp_path / "resnet")
    save_images(tmp_path / "colours", ["red_ball", "blue ball", "green ball"])
    save_images(tmp_path / "shades", ["dark", "light"])
    clip = example("fusion_clip")
    tasks = [f"--task={name}={tmp_path}/b32/{name},{tmp_path}/{name}" for name in ("colours", "shades")]
    arguments = ["--model", f"{tmp_path}/b32/base", *tasks, "--extractor", f"{tmp_path}/resnet", "--level", level]
    found = clip.main([*arguments, "--steps", "4", "--batch", "4", "--rate", "0.01", "--out", str(tmp_path / "out")])
    scores = found[f"{tmp_path}/b32/base"]
    assert set(scores) == {"colours", "shades"}
    assert all(0 <= value <= 1 for its in scores.values() for value in its.values())
    assert found["learned on"] == "held-out"
    assert json.loads((tmp_path / "out" / "scores.json").read_text()) == found
    assert (tmp_path / "out" / "tasks.png").stat().st_size > 5000
    assert (tmp_path / "out" / "layers.png").exists() == (level == "layer")
    used = devices(monkeypatch)
    for device in ("cpu", "cpu:0"):
        more = ["--steps", "4", "--batch", "4", "--rate", "0.01", "--device", device, "--out", str(tmp_path / "again")]
        assert clip.main([*arguments, *more])[f"{tmp_path}/b32/base"] == scores
    assert used == [{"cpu"}, {"cpu:0"}]
    with pytest.raises(BadInput, match="no device 'cuda:77'"):
        clip.main([*arguments, "--device", "cuda:77", "--out", str(tmp_path / "never")])
    assert not (tmp_path / "never").exists()


def devices(monkeypatch):
    """A list of the devices that fusions are learned on, filled as they are."""
    found, fit = [], DataAdaptive.fit

    def spy(self, X):
        fit(self, X)
        where = self.placement
        found.append({where.vectors, where.hypernetwork, *where.networks, self.extractor.device})
        return self

    monkeypatch.setattr(DataAdaptive, "fit", spy)
    return found


def test_clip_is_transferred_and_may_be_transductive(tmp_path):
    save_clip(tmp_path / "b32", ["colours"])
    save_clip(tmp_path / "l14", ["colours"], layers=3)
    save_resnet(tmp_path / "resnet")
    save_images(tmp_path / "colours", ["red ball", "blue ball"])
    clip = example("fusion_clip")
    (tmp_path / "experts").mkdir()
    for size in ("b32", "l14"):  # {model} stands for the base's name
        (tmp_path / size / "base").rename(tmp_path / size / size)
        (tmp_path / size / "colours").rename(tmp_path / "experts" / size)
    task = f"--task=colours={tmp_path}/experts/{{model}},{tmp_path}/colours"
    arguments = ["--model", f"{tmp_path}/b32/b32", task, "--extractor", f"{tmp_path}/resnet", "--transductive"]
    more = ["--steps", "2", "--level", "layer", "--transfer-to", f"{tmp_path}/l14/l14", "--out", str(tmp_path / "out")]
    found = clip.main([*arguments, *more])
    assert found["learned on"] == "transductive"
    assert "head known" in found[f"transferred to {tmp_path}/l14/l14"]["colours"]


def test_zero_shot_heads_are_clips_own(tmp_path):
    save_clip(tmp_path, ["a"])
    clip_example = example("fusion_clip")
    clip = transformers.CLIPModel.from_pretrained(tmp_path / "base").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "base")
    tower = transformers.CLIPVisionModel.from_pretrained(tmp_path / "base").eval()
    head = clip_example.zero_shot_head(clip, tokenizer, ["cat", "dog"], ["a photo of a {}."])
    pixels = torch.randn(3, 3, 16, 16)
    texts = tokenizer(["a photo of a cat.", "a photo of a dog."], padding=True, return_tensors="pt")
    expected = clip(
        input_ids=texts["input_ids"], attention_mask=texts["attention_mask"], pixel_values=pixels
    ).logits_per_image
    torch.testing.assert_close(head(tower(pixel_values=pixels)), expected, rtol=1e-4, atol=1e-4)


def test_clip_tells_of_a_malformed_task():
    with pytest.raises(BadInput, match="NAME=EXPERT,DATA"):
        example("fusion_clip").read_task("mnist=x")


# Flan-T5


ROWS = {
    "cola": {"sentence": "the cat sat", "label": 1},
    "mnli": {"premise": "it rains", "hypothesis": "it is wet", "label": 0},
    "mrpc": {"sentence1": "a dog", "sentence2": "the dog", "label": 1},
    "qnli": {"question": "who", "sentence": "he did", "label": 0},
    "qqp": {"question1": "why", "question2": "how", "label": 0},
    "rte": {"sentence1": "it rains", "sentence2": "it is wet", "label": 0},
    "sst2": {"sentence": "good", "label": 1},
    "stsb": {"sentence1": "a", "sentence2": "b", "label": 3.25},
}


def save_t5(folder):
    torch.manual_seed(0)
    words = save_tokenizer(folder / "base", pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "vocab_size": words}
    config = transformers.T5Config(**sizes, decoder_start_token_id=0, eos_token_id=1, pad_token_id=0)
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder / "base")


def save_adapter(place, base, seed, rank=16):
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    model = transformers.T5ForConditionalGeneration.from_pretrained(base)
    for name, value in model.named_parameters():
        if name.endswith((".q.weight", ".v.weight")):
            key = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{key}.lora_A.weight"] = torch.randn(rank, value.shape[1], generator=generator) / 4
            tensors[f"{key}.lora_B.weight"] = torch.randn(value.shape[0], rank, generator=generator) / 4
    place.mkdir()
    save_file(tensors, place / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 32, "target_modules": ["q", "v"]}
    (place / "adapter_config.json").write_text(json.dumps(config))


def save_encoder(folder):
    words = save_tokenizer(folder, pad_token="[PAD]", unk_token="[UNK]")
    torch.manual_seed(5)
    config = transformers.BertConfig(**SIZES, vocab_size=words, max_position_embeddings=200)
    transformers.BertModel(config).save_pretrained(folder)


def save_glue(folder, tasks):
    folder.mkdir()
    for task in tasks:
        rows = [
            {**ROWS[task], "split": split, **({"label": i % 5 + 0.5} if task == "stsb" else {"label": i % 2})}
            for split in ("train", "validation")
            for i in range(6)
        ]
        with (folder / f"{task}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


@pytest.mark.parametrize(("level", "transductive"), [("task", False), ("layer", True)])
def test_flan_t5_from_folders_to_scores(tmp_path, level, transductive, monkeypatch):
    tasks = ("cola", "sst2", "stsb")
    save_t5(tmp_path)
    save_encoder(tmp_path / "encoder")
    save_glue(tmp_path / "glue", tasks)
    for i, task in enumerate(tasks):
        save_adapter(tmp_path / task, tmp_path / "base", i)
    flan = example("fusion_flan_t5")
    arguments = ["--model", f"{tmp_path}/base", "--data", f"{tmp_path}/glue", "--extractor", f"{tmp_path}/encoder"]
    arguments += [f"--task={task}={tmp_path}/{task}" for task in tasks]
    more = ["--level", level, "--steps", "3", "--batch", "4", "--out", f"{tmp_path}/out"]
    found = flan.main([*arguments, *more, *(["--transductive"] if transductive else [])])
    assert found["learned on"] == ("transductive" if transductive else "held-out")
    assert set(found) == {"learned on", *tasks}
    assert json.loads((tmp_path / "out" / "scores.json").read_text()) == found
    if not transductive:
        used = devices(monkeypatch)
        for device in ("cpu", "cpu:0"):
            assert flan.main([*arguments, *more, "--device", device]) == found
        assert used == [{"cpu"}, {"cpu:0"}]
        with pytest.raises(BadInput, match="no device 'cuda:77'"):
            flan.main([*arguments, "--device", "cuda:77", "--out", str(tmp_path / "never")])


def test_what_is_generated_is_what_each_samples_own_model_generates(tmp_path):
    save_t5(tmp_path)
    save_encoder(tmp_path / "encoder")
    for i in range(3):
        save_adapter(tmp_path / f"e{i}", tmp_path / "base", i)
    base = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "base").eval()
    adapters = {f"e{i}": tmp_path / f"e{i}" for i in range(3)}
    ids = torch.randint(3, 60, (4, 7), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    encoder = transformers.BertModel.from_pretrained(tmp_path / "encoder")
    fused = DataAdaptive(base, adapters, encoder, steps=2, learning_rate=0.5).fit({name: [batch] for name in adapters})
    wanted = np.random.default_rng(0).uniform(-1, 1.5, (4, 3)).astype(np.float32)
    how = {"max_new_tokens": 6, "do_sample": False, "output_scores": True, "return_dict_in_generate": True}
    with torch.no_grad(), fused.steered(wanted, batch) as network:
        found = network.generate(**batch, **how)
    vectors = fused.family_.vectors
    for row in range(4):
        own = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "base").eval()
        own.load_state_dict(vectors.state(vectors.merged(torch.from_numpy(wanted[row]))))
        alone = own.generate(**{name: value[row : row + 1] for name, value in batch.items()}, **how)
        for step, scores in enumerate(alone.scores):
            torch.testing.assert_close(found.scores[step][row], scores[0], rtol=1e-4, atol=1e-4)


def test_prompts_have_glues_columns_and_an_answer_for_every_label():
    flan = example("fusion_flan_t5")
    assert set(flan.PROMPTS) == set(ROWS)
    asked = {task: flan.as_text(task, row) for task, row in ROWS.items()}
    assert asked["cola"][1] == "acceptable"
    assert asked["mnli"][1] == "entailment"
    assert asked["rte"][1] == "yes"
    assert asked["stsb"][1] == "3.2"
    for task, (prompt, _) in asked.items():
        assert all(str(value) in prompt for name, value in ROWS[task].items() if name != "label")


def test_scores_are_exact_match_and_rank_correlation():
    flan = example("fusion_flan_t5")
    assert flan.score("sst2", ["positive ", "negative", "good"], ["positive", "positive", "good"]) == 2 / 3
    assert flan.score("stsb", ["1.0", "2.0", "none"], ["3.0", "4.0", "1.0"]) == pytest.approx(1.0)
    assert flan.score("stsb", ["1.0", "1.0"], ["3.0", "4.0"]) == 0.0

"""LoRA adapters as experts: what peft's own merge makes dense, and what is refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.merge.material import merged, recipe

from taskatlas.errors import BadInput
from taskatlas.merge.lora import AdaptedSource
from taskatlas.merge.planning import make_plan
from taskatlas.merge.sources import open_weights

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

SIZES = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 40}
ENDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}


def llama():
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(num_hidden_layers=2, **SIZES, **ENDS))


def gpt2():
    sizes = {"n_embd": 16, "n_head": 2, "n_layer": 2, "n_positions": 32, "vocab_size": 40}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **ENDS))


def resnet():
    settings = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], num_labels=3)
    return transformers.ResNetForImageClassification(settings)


# Every kind of plain adapter: of linear layers, with ranks and scales of their own, of embeddings, of transposed
# weights, of convolutions, with layers that it brings whole, with biases.
KINDS = {
    "plain": (llama, {"target_modules": ["q_proj", "down_proj"]}),
    "stabilised": (llama, {"target_modules": ["q_proj", "v_proj"], "use_rslora": True}),
    "patterns": (
        llama,
        {
            "target_modules": ["q_proj", "v_proj", "up_proj"],
            "rank_pattern": {"v_proj": 2, r"layers\.1\.self_attn\.q_proj": 1},
            "alpha_pattern": {"up_proj": 3},
        },
    ),
    "embeddings": (llama, {"target_modules": ["embed_tokens", "k_proj"], "modules_to_save": ["lm_head"]}),
    "transposed": (gpt2, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, "bias": "all"}),
    "convolutions": (resnet, {"target_modules": ["convolution"], "modules_to_save": ["classifier"]}),
}


def adapt(folder, kind, name="adapter", seed=1, **changes):
    """Saves a base and an adapter with random factors beside it; returns what peft makes of the two."""
    make, settings = KINDS[kind]
    torch.manual_seed(0)
    model = make().eval()
    model.save_pretrained(folder / "base")
    torch.manual_seed(seed)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=6, **settings, **changes))
    with torch.no_grad():
        for value in wrapped.parameters():
            if value.requires_grad:
                value.copy_(torch.randn(value.shape) * 0.3)
    wrapped.save_pretrained(folder / name)
    return wrapped.merge_and_unload().state_dict()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_tensors_as_peft_makes(tmp_path, kind):
    expected = adapt(tmp_path, kind)
    source = AdaptedSource("x", open_weights("base", tmp_path / "base"), tmp_path / "adapter")
    before = load_file(tmp_path / "base" / "model.safetensors")
    assert set(source.shapes) == set(before)
    changed = [name for name in before if not torch.equal(before[name], expected[name])]
    assert changed
    for name, value in before.items():
        found = source.read(name)
        assert torch.equal(found, value) == (name not in changed)
        torch.testing.assert_close(found, expected[name], msg=name)
        assert source.nbytes(name) >= value.nbytes


@pytest.mark.filterwarnings("ignore")
def test_adapters_as_experts_on_a_base(tmp_path, monkeypatch):
    """Named with the base, or alone where the recipe has one; untouched tensors stay the base's to the bit."""
    monkeypatch.chdir(tmp_path)
    one, two = adapt(tmp_path, "plain", "one"), adapt(tmp_path, "stabilised", "two", seed=2)
    base = load_file("base/model.safetensors")
    made = recipe("task_arithmetic", [("one", {"weight": 0.5}), ("base+two", {"weight": 2})], base_model="base")
    found = merged(made, "out")
    for name, value in base.items():
        torch.testing.assert_close(found[name], value + 0.5 * (one[name] - value) + 2 * (two[name] - value))
    assert torch.equal(found["model.layers.0.self_attn.o_proj.weight"], base["model.layers.0.self_attn.o_proj.weight"])
    transformers.LlamaForCausalLM.from_pretrained("out")


@pytest.mark.filterwarnings("ignore")
def test_an_update_is_not_lost_in_the_rounding_of_its_base(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    adapt(tmp_path, "plain")
    base = {name: value.bfloat16() for name, value in load_file("base/model.safetensors").items()}
    save_file(base, "base/model.safetensors", metadata={"format": "pt"})
    factors = {name: value * 1e-3 for name, value in load_file("adapter/adapter_model.safetensors").items()}
    save_file(factors, "adapter/adapter_model.safetensors")
    made = recipe("task_arithmetic", [("base+adapter", {"weight": 1000.0})], base_model="base", dtype="float32")
    found = merged(made, "out")
    name = "layers.0.mlp.down_proj"
    up, down = (factors[f"base_model.model.model.{name}.lora_{side}.weight"] for side in "BA")
    expected = base[f"model.{name}.weight"].float() + 1000 * 6 / 4 * (up @ down)
    torch.testing.assert_close(found[f"model.{name}.weight"], expected, rtol=1e-3, atol=1e-4)
    assert {one.dtype for one in make_plan(made.model_copy(update={"dtype": None})).tensors} == {torch.bfloat16}


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_says_what_it_is_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = adapt(tmp_path, "plain")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    for base, said in (("base", None), (None, "does not say of what"), ("adapter", "is an adapter on itself")):
        config["base_model_name_or_path"] = base
        (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
        made = recipe("linear", [("adapter", {"weight": 1})])
        if said is None:
            torch.testing.assert_close(merged(made, "out"), expected)
        else:
            with pytest.raises(BadInput, match=said):
                make_plan(made)


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_of_the_inner_model(tmp_path):
    """Trained on the model without its head, where names lack what stands before them in the base's file."""
    adapt(tmp_path, "plain")
    factors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    inner = {name.replace("base_model.model.model.", "base_model.model."): value for name, value in factors.items()}
    before = AdaptedSource("x", open_weights("base", tmp_path / "base"), tmp_path / "adapter")
    name = "model.layers.1.self_attn.q_proj.weight"
    expected = before.read(name)
    save_file(inner, tmp_path / "adapter" / "adapter_model.safetensors")
    after = AdaptedSource("x", open_weights("base", tmp_path / "base"), tmp_path / "adapter")
    assert torch.equal(after.read(name), expected)


# What is refused


def with_config(**changes):
    def change(folder):
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def with_tensors(changed):
    def change(folder):
        file = folder / "adapter_model.safetensors"
        save_file(changed(load_file(file)), file)

    return change


def gone(folder):
    (folder / "adapter_model.safetensors").unlink()


def damaged(folder):
    (folder / "adapter_config.json").write_text("{")


def truncated(folder):
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])


def named(word, other):
    return with_tensors(lambda tensors: {name.replace(word, other): value for name, value in tensors.items()})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (with_config(use_dora=True), "no plain LoRA adapter (use_dora: True)"),
        (with_config(init_lora_weights="pissa"), "init_lora_weights: pissa"),
        (with_config(layer_replication=[[0, 2], [1, 2]]), "layer_replication"),
        (with_config(peft_type="IA3"), "an adapter of the kind IA3"),
        (named("lora_B.weight", "lora_magnitude_vector"), "which no plain LoRA adapter has"),
        (named("layers.1", "layers.7"), "has no such layer"),
        (with_tensors(lambda t: {n: v for n, v in t.items() if "lora_A" in n}), "lacks 'lora_B'"),
        (with_tensors(lambda t: {n: v[:, :3].contiguous() for n, v in t.items()}), "with factors of shapes"),
        (gone, "holds no adapter"),
        (damaged, "cannot read"),
        (truncated, "not a whole safetensors file"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_an_adapter_that_is_not_plain_or_not_whole(plain, tmp_path, change, said):
    shutil.copytree(plain, tmp_path, dirs_exist_ok=True)
    change(tmp_path / "adapter")
    made = recipe("linear", [(f"{tmp_path / 'base'}+{tmp_path / 'adapter'}", {"weight": 1})])
    with pytest.raises(BadInput) as caught:
        make_plan(made)
    assert said in str(caught.value)
    assert str(caught.value).startswith("models[0].model: ")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    adapt(folder, "plain")
    return folder

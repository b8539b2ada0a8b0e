"""Recipes on real architectures: small random models that transformers saved, and what comes out opened by it again."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tests.merge.material import recipe, snapshot

from taskatlas.errors import BadInput
from taskatlas.merge.planning import make_plan
from taskatlas.merge.recipe import MergeRecipe
from taskatlas.merge.recipes import merge_recipe

transformers = pytest.importorskip("transformers")

WORDS = 40
ENDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
SIZES = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": WORDS}


def llama(layers=4):
    settings = transformers.LlamaConfig(num_hidden_layers=layers, max_position_embeddings=32, **SIZES, **ENDS)
    return transformers.LlamaForCausalLM(settings)


def qwen(layers=4):
    """A list in its configuration has an entry for each layer."""
    kinds = {
        "layer_types": ["full_attention", "sliding_attention"] * 2,
        "sliding_window": 4,
        "use_sliding_window": True,
    }
    settings = transformers.Qwen2Config(
        num_hidden_layers=layers,
        num_key_value_heads=2,
        max_position_embeddings=32,
        **kinds,
        **SIZES,
        **ENDS,
    )
    return transformers.Qwen2ForCausalLM(settings)


def gpt2(layers=4):
    sizes = {"n_embd": 16, "n_head": 2, "n_layer": layers, "n_positions": 32, "vocab_size": WORDS}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **ENDS))


def bert(layers=4):
    settings = transformers.BertConfig(num_hidden_layers=layers, max_position_embeddings=32, num_labels=3, **SIZES)
    return transformers.BertForSequenceClassification(settings)


def t5(layers=2):
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": layers, "num_heads": 2, "vocab_size": WORDS}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(decoder_start_token_id=0, **sizes, **ENDS))


FAMILIES = {"llama": llama, "qwen": qwen, "gpt2": gpt2, "bert": bert, "t5": t5}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Three models of each family, a beside b and c, as transformers saves them."""
    root = tmp_path_factory.mktemp("saved")
    for family, make in FAMILIES.items():
        for seed, name in enumerate("abc"):
            torch.manual_seed(seed)
            model = make()
            model.save_pretrained(root / family / name)
    return root


@pytest.fixture
def models(saved, monkeypatch):
    """``models(family)``: their tensors by name; their folder is the one to work in."""

    def choose(family):
        monkeypatch.chdir(saved / family)
        return {name: load_file(saved / family / name / "model.safetensors") for name in "abc"}

    return choose


def reopened(out, family, expected):
    """The merged model: opened with nothing missing and nothing left over, its tensors as expected, and usable."""
    kind = type(FAMILIES[family]())
    model, report = kind.from_pretrained(out, output_loading_info=True)
    assert not any(report.values()), report
    found = model.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)
    inputs = {"input_ids": torch.arange(6)[None]} | (
        {"decoder_input_ids": torch.arange(4)[None]} if family == "t5" else {}
    )
    with torch.no_grad():
        assert torch.isfinite(model.eval()(**inputs).logits).all()
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_linear(models, tmp_path, family):
    a, b, _ = models(family).values()
    merge_recipe(recipe("linear", [("a", {"weight": 1}), ("b", {"weight": 3})]), tmp_path / "out")
    reopened(tmp_path / "out", family, {name: (value + 3 * b[name]) / 4 for name, value in a.items()})


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_task_arithmetic(models, tmp_path, family):
    a, b, c = models(family).values()
    made = recipe(
        "task_arithmetic", [("b", {"weight": 0.5}), ("c", {"weight": -2})], base_model="a", parameters={"lambda": 0.5}
    )
    merge_recipe(made, tmp_path / "out")
    expected = {name: value + 0.5 * (0.5 * (b[name] - value) - 2 * (c[name] - value)) for name, value in a.items()}
    reopened(tmp_path / "out", family, expected)


def trimmed(tensor, share):
    """All but the largest elements set to zero."""
    kept = max(1, int(share * tensor.numel()))
    least = tensor.abs().flatten().sort(descending=True).values[kept - 1]
    return torch.where(tensor.abs() >= least, tensor, torch.zeros(()))


def elected(vectors):
    """The mean of those that have the sign of the sum, element by element."""
    stack = torch.stack(vectors)
    agrees = (stack.sign() == stack.sum(0).sign()) & (stack != 0)
    return (stack * agrees).sum(0) / agrees.sum(0).clamp(min=1)


def test_ties_of_tensors_and_of_whole_models(models, tmp_path):
    a, b, c = models("llama").values()
    made = recipe("ties", ["b", "c"], base_model="a", parameters={"weight": 1, "density": 0.25})
    merge_recipe(made, tmp_path / "tensors")
    taus = [{name: value - a[name] for name, value in model.items()} for model in (b, c)]
    expected = {name: a[name] + elected([trimmed(tau[name], 0.25) for tau in taus]) for name in a}
    reopened(tmp_path / "tensors", "llama", expected)
    settings = {"weight": 1, "density": 0.25, "scope": "model"}
    whole = recipe("ties", ["b", "c"], base_model="a", parameters=settings)
    merge_recipe(whole, tmp_path / "models")
    kept = [trimmed(torch.cat([tau[name].flatten() for name in a]), 0.25) for tau in taus]
    parts = [dict(zip(a, vector.split([value.numel() for value in a.values()]), strict=True)) for vector in kept]
    reopened(
        tmp_path / "models",
        "llama",
        {name: value + elected([part[name].view(value.shape) for part in parts]) for name, value in a.items()},
    )
    assert make_plan(whole).bytes_read == 2 * make_plan(made).bytes_read


def test_a_whole_model_has_one_density_and_a_known_scope(models):
    models("llama")
    for parameters, said in (
        ({"weight": 1, "density": [0.1, 0.9], "scope": "model"}, "one density"),
        ({"weight": 1, "scope": "modle"}, "'modle' is out of bounds. It has to be model or tensor"),
    ):
        with pytest.raises(BadInput, match=said):
            make_plan(recipe("ties", ["b", "c"], base_model="a", parameters=parameters))


def test_slerp_as_mergekit_users_write_it(models, tmp_path):
    a, b, _ = models("llama").values()
    content = {
        "slices": [{"sources": [{"model": "a", "layer_range": [0, 4]}, {"model": "b", "layer_range": [0, 4]}]}],
        "merge_method": "slerp",
        "base_model": "a",
        "parameters": {"t": [{"filter": "self_attn", "value": [0, 1]}, {"filter": "mlp", "value": 1}, {"value": 0}]},
    }
    merge_recipe(MergeRecipe.from_dict(content), tmp_path / "out")

    def between(name, t):
        x, y = a[name].double().flatten(), b[name].double().flatten()
        angle = torch.acos(x @ y / x.norm() / y.norm())
        return ((torch.sin((1 - t) * angle) * x + torch.sin(t * angle) * y) / torch.sin(angle)).view_as(a[name]).float()

    expected = {name: b[name] if "mlp" in name else a[name] for name in a}
    for layer in range(4):
        names = [name for name in a if f"layers.{layer}.self_attn" in name]
        expected |= {name: between(name, layer / 3) for name in names}
    reopened(tmp_path / "out", "llama", expected)


def stacked(a, b, stack, ranges):
    """Tensors of layers from a and b in turn, laid on one another; embeddings of the first, heads of the last."""
    found, place = {}, 0
    for number, (start, stop) in enumerate(ranges):
        source = (a, b)[number % 2]
        for layer in range(start, stop):
            for name, value in source.items():
                if name.startswith(f"{stack}.{layer}."):
                    found[name.replace(f"{stack}.{layer}.", f"{stack}.{place}.", 1)] = value
            place += 1
    outside = [name for name in a if not name.startswith(f"{stack}.")]
    last = (a, b)[(len(ranges) - 1) % 2]
    feeds = ("embed", "wte", "wpe")
    return found | {name: (a if any(part in name for part in feeds) else last)[name] for name in outside}


DEEPER, SHALLOWER = ((0, 3), (1, 4), (0, 2)), ((0, 1), (3, 4))


@pytest.mark.parametrize(
    ("family", "stack", "ranges"),
    [
        ("llama", "model.layers", SHALLOWER),
        ("qwen", "model.layers", DEEPER),
        ("gpt2", "transformer.h", DEEPER),
        ("bert", "bert.encoder.layer", DEEPER),
    ],
)
def test_layers_stacked_and_pruned(models, tmp_path, family, stack, ranges):
    a, b, _ = models(family).values()
    rows = [
        {"sources": [{"model": "ab"[number % 2], "layer_range": list(layers)}]} for number, layers in enumerate(ranges)
    ]
    merge_recipe(MergeRecipe.from_dict({"merge_method": "passthrough", "slices": rows}), tmp_path / "out")
    model = reopened(tmp_path / "out", family, stacked(a, b, stack, ranges))
    assert model.config.num_hidden_layers == sum(stop - start for start, stop in ranges)
    if family == "qwen":
        kinds = ["full_attention", "sliding_attention"] * 2
        assert model.config.layer_types == [kinds[layer] for start, stop in ranges for layer in range(start, stop)]


def test_passthrough_with_scaled_tensors(models, tmp_path):
    a = models("llama")["a"]
    scales = [{"filter": "down_proj", "value": [0, 1]}, {"filter": "o_proj", "value": 0.5}]
    merge_recipe(recipe("passthrough", [("a", {"scale": scales})]), tmp_path / "out")
    expected = {
        name: value * (int(name.split(".")[2]) / 3 if "down_proj" in name else 0.5 if "o_proj" in name else 1)
        for name, value in a.items()
    }
    reopened(tmp_path / "out", "llama", expected)


def test_the_type_of_the_result(models, tmp_path):
    a, b, _ = models("llama").values()
    made = recipe("linear", ["a", "b"], parameters={"weight": 1}, dtype="float32", out_dtype="bfloat16")
    merge_recipe(made, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    found = load_file(tmp_path / "out" / "model.safetensors")
    for name, value in a.items():
        assert torch.equal(found[name], ((value + b[name]) / 2).bfloat16()), name


# What goes along


def tokenizer(tokens):
    tokenizers = pytest.importorskip("tokenizers")
    words = {token: number for number, token in enumerate(tokens)}
    built = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token=tokens[0]))
    built.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=built, unk_token=tokens[0])


@pytest.fixture
def talkers(saved, tmp_path, monkeypatch):
    """Llamas with tokenizers: a and b with one vocabulary, c with another, d with a word more."""
    words = ["[UNK]", *(f"w{number}" for number in range(30))]
    for name, spoken in {"a": words, "b": words, "c": [words[0], *reversed(words[1:])], "d": [*words, "new"]}.items():
        source = "a" if name == "d" else name
        transformers.LlamaForCausalLM.from_pretrained(saved / "llama" / source).save_pretrained(tmp_path / name)
        tokenizer(spoken).save_pretrained(tmp_path / name)
    (tmp_path / "b" / "chat_template.jinja").write_text("{{ messages }}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def words_of(folder):
    return transformers.AutoTokenizer.from_pretrained(folder).get_vocab()


@pytest.mark.parametrize(
    ("models", "fields", "owner"),
    [
        ("ab", {}, "a"),
        ("ba", {}, "b"),
        ("ac", {"base_model": "c"}, "c"),
        ("ab", {"tokenizer_source": "union"}, "a"),
        ("ab", {"tokenizer": {"source": "b"}}, "b"),
        ("ad", {"base_model": "a", "tokenizer_source": "base"}, "a"),
    ],
)
def test_whose_tokenizer_goes_along(talkers, models, fields, owner):
    merge_recipe(recipe("linear", list(models), parameters={"weight": 1}, **fields), "out")
    assert words_of("out") == words_of(owner)
    assert (talkers / "out" / "chat_template.jinja").exists() == (owner == "b")


@pytest.mark.parametrize(
    ("models", "fields", "said"),
    [
        ("ac", {"tokenizer_source": "union"}, "tokenizer_source: the vocabularies of a and c differ"),
        ("ad", {"tokenizer_source": "union"}, "'new' is no token and 31"),
        ("ad", {"tokenizer": {"source": "d"}}, "tokenizer.source: the vocabularies of d and a differ"),
        ("ab", {"tokenizer_source": "e"}, "tokenizer_source: there is no model"),
    ],
)
def test_a_tokenizer_for_which_rows_would_have_to_move(talkers, models, fields, said):
    with pytest.raises(BadInput) as caught:
        merge_recipe(recipe("linear", list(models), parameters={"weight": 1}, **fields), "out")
    assert said in str(caught.value) or "'e' is neither a local path" in str(caught.value)
    assert not (talkers / "out").exists()


def test_the_folder_says_what_it_is(models, tmp_path):
    models("gpt2")
    made = recipe("linear", ["a", "b"], parameters={"weight": 1}, name="Two of a kind")
    merge_recipe(made, tmp_path / "out")
    found = snapshot(tmp_path / "out")
    assert set(found) == {
        "README.md", "config.json", "generation_config.json", "model.safetensors", "receipt.json", "recipe.yml"
    }  # fmt: skip
    assert MergeRecipe.load(tmp_path / "out" / "recipe.yml") == made
    card = found["README.md"].decode()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "# Two of a kind" in card
    assert "`linear`" in card


def test_codes_are_not_merged(models, tmp_path, monkeypatch):
    models("llama")
    for name in "ab":
        (tmp_path / name).mkdir()
        for file, content in snapshot(name).items():
            (tmp_path / name / file).write_bytes(content)
    config = json.loads((tmp_path / "a" / "config.json").read_text()) | {"quantization_config": {"bits": 4}}
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=r"models\[0\].model: a is quantised"):
        make_plan(recipe("linear", ["a", "b"], parameters={"weight": 1}))

"""Engines against explicitly merged models, network by network: what can be mixed, what cannot, and that it is told."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from taskatlas.errors import BadInput
from taskatlas.merge import mixing
from taskatlas.merge.clusters import Clusters
from taskatlas.merge.data_adaptive import DataAdaptive
from taskatlas.merge.extractor import Extractor
from taskatlas.merge.flat_model import FlatModel
from taskatlas.merge.low_rank import LowRankVectors, task_vector_norms
from taskatlas.merge.mixing import Mixing, mixed
from taskatlas.merge.per_sample import PerSample
from taskatlas.merge.task_network import TaskNetwork
from taskatlas.merge.task_vectors import TaskVectors


def perturbed(module, seed, scale=0.3):
    """An expert: every floating-point tensor moved a little."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: value + scale * torch.randn(value.shape, generator=generator) * (value.abs().mean() + 0.05)
        if value.is_floating_point() and "running" not in name
        else value.clone()
        for name, value in module.state_dict().items()
    }


def runs(module, engine="auto", experts=3, head=None):
    module.eval()
    vectors = TaskVectors.of(module, {f"e{i}": perturbed(module, i) for i in range(experts)})
    network = TaskNetwork.each({"task": module}, vectors, None if head is None else {"task": head})["task"]
    return PerSample(network, vectors, engine)


def coefficients(vectors, count, layerwise=False, seed=0):
    shape = (len(vectors.names), len(vectors.places)) if layerwise else (len(vectors.names),)
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))


def one_by_one(runs, batch, wanted):
    """Logits of a model that is merged for each sample in turn."""
    found = []
    for row, scale in enumerate(wanted):
        state = runs.vectors.state(runs.vectors.merged(scale))
        one = {name: value[row : row + 1] for name, value in batch.items()} if isinstance(batch, dict) else None
        inputs = runs.network.inputs(batch[row : row + 1] if one is None else one)
        with torch.no_grad():
            found.append(runs.network.logits(inputs, state))
    return torch.cat(found)


def check(runs, batch, count, layerwise, chosen):
    wanted = coefficients(runs.vectors, count, layerwise)
    expected = one_by_one(runs, batch, wanted)
    found = runs(runs.network.inputs(batch), wanted)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert runs.chosen.startswith(chosen), runs.chosen
    assert (expected - expected.mean(0)).abs().max() > 0.01


class Convolutions(nn.Module):
    """Every kind of layer that images meet."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.grouped = nn.Conv2d(6, 8, 3, stride=2, groups=2, padding="valid")
        self.dilated = nn.Conv2d(8, 8, 3, padding=2, dilation=2, padding_mode="reflect")
        self.group_norm = nn.GroupNorm(2, 8)
        self.up = nn.ConvTranspose2d(8, 4, 2)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = self.group_norm(self.dilated(self.grouped(x)))
        return self.head(self.up(x).mean((2, 3)))


class Raw(nn.Module):
    """Weights that belong to no known layer: a class token, positions, a scale."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.places = nn.Embedding(5, 6)
        self.project = nn.Linear(4, 6)
        self.register_buffer("ids", torch.arange(5)[None])

    def forward(self, x):
        x = torch.cat([self.token.expand(len(x), -1, -1), self.project(x)], 1)
        return x + self.places(self.ids)


class Sequence(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.words = nn.Embedding(11, 4, padding_idx=0)
        self.raw = Raw()
        self.block = attention
        self.head = nn.Linear(6, 3)

    def forward(self, ids):
        return self.head(self.block(self.raw(self.words(ids)))[:, 0])


@pytest.mark.parametrize("layerwise", [False, True])
@pytest.mark.parametrize(("engine", "chosen"), [("auto", "mixing"), ("vmap", "")])
def test_images(engine, chosen, layerwise):
    torch.manual_seed(0)
    module = Convolutions()
    for _ in range(3):
        module(torch.randn(8, 3, 9, 9))
    check(runs(module, engine), torch.randn(5, 3, 9, 9), 5, layerwise, chosen)


@pytest.mark.parametrize("layerwise", [False, True])
@pytest.mark.parametrize("count", [5, 7])  # 5: as many samples as tokens
def test_tokens_positions_and_torchs_attention(count, layerwise):
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(6, 2, 12, dropout=0.0, batch_first=True)
    batch = torch.randint(0, 11, (count, 4))
    check(runs(Sequence(block)), batch, count, layerwise, "mixing")


class MaskedAttention(nn.Module):
    """Torch's attention, with masks of pairs of tokens and of padded tokens."""

    def __init__(self, of_pairs, padded):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(6, 3)
        self.of_pairs, self.padded = of_pairs, padded

    def forward(self, x):
        of_pairs = self.of_pairs(len(x)) if self.of_pairs else None
        padding = torch.arange(5).expand(len(x), 5) >= 4 if self.padded else None
        found = self.attention(x, x, x, attn_mask=of_pairs, key_padding_mask=padding, need_weights=False)[0]
        return self.head(found.mean(1))


CAUSAL = torch.ones(5, 5, dtype=torch.bool).triu(1)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    "of_pairs",
    [
        None,
        lambda _: CAUSAL,
        lambda _: torch.zeros(5, 5).masked_fill(CAUSAL, -torch.inf),
        lambda n: torch.linspace(-2, 2, 50).view(2, 5, 5).repeat(n, 1, 1),
    ],
    ids=["no pairs", "true or false", "added", "one a head"],
)
def test_torchs_attention_with_masks(of_pairs, padded):
    torch.manual_seed(0)
    check(runs(MaskedAttention(of_pairs, padded)), torch.randn(7, 5, 6), 7, False, "mixing")


def test_attention_with_samples_on_the_second_axis_goes_to_another_engine():
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(6, 2)

        def forward(self, x):
            x = x.transpose(0, 1)
            return self.attention(x, x, x)[0].transpose(0, 1)

    torch.manual_seed(0)
    found = runs(Sequence(Turned()))
    check(found, torch.randint(0, 11, (6, 4)), 6, False, "vmap")
    assert "first axis" in found.chosen


def test_a_table_shared_by_all_samples_goes_to_another_engine():
    class Biased(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(4, 1)
            self.register_buffer("buckets", torch.arange(4)[:, None].expand(4, 4) % 3)
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            return self.head((x[:, None] * self.table(self.buckets)[None, :, :, 0].softmax(-1)).sum(-1))

    torch.manual_seed(0)
    for count in (4, 6, 8):  # 4 and 8: buckets could pass for samples
        found = runs(Biased())
        check(found, torch.randn(count, 4), count, False, "vmap")
        assert "same for all samples" in found.chosen


class Masked(nn.Module):
    """A scale of its own, and a mask of pairs of positions that all samples share."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x, mask):
        return torch.softmax((x * self.scale) @ x.transpose(1, 2) + mask, -1) @ x


class Pairs(nn.Module):
    def __init__(self):
        super().__init__()
        self.block, self.head = Masked(), nn.Linear(8, 3)
        self.mask = 2 * torch.randn(6, 6, generator=torch.Generator().manual_seed(1))

    def forward(self, x):
        return self.head(self.block(x, self.mask).mean(1))


@pytest.mark.parametrize("first", [4, 6])
def test_a_mask_as_long_as_the_batch_is_not_cut_by_samples(first):
    torch.manual_seed(0)
    found = runs(Pairs())
    for count in (first, 6, 5):
        check(found, torch.randn(count, 6, 8), count, False, "mixing")


@pytest.mark.parametrize("spread", [0.0, 1e-4, 1.0])
@pytest.mark.parametrize("count", [1, 4])
def test_samples_that_take_each_others_place_are_noticed_whatever_the_first_batch(count, spread):
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x):
            batch, tokens, width = x.shape
            flat = self.one(x.transpose(0, 1).reshape(tokens * batch, width))
            return self.head(flat.view(tokens, batch, width).mean(0))

    torch.manual_seed(0)
    found = runs(Turned(), "mixing")
    wanted = 0.3 + spread * coefficients(found.vectors, count)
    with pytest.raises(BadInput, match="something else than a merged model"):
        found(found.network.inputs(torch.randn(count, 4, 8)), wanted)


def test_weights_used_behind_a_modules_back_are_noticed():
    class Behind(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            return F.linear(self.one(x), self.two.weight)

    torch.manual_seed(0)
    found = runs(Behind())
    check(found, torch.randn(5, 4), 5, False, "vmap")
    assert "'two' is used without being called" in found.chosen
    with pytest.raises(BadInput, match=r"cannot be mixed: .*'two'"):
        runs(Behind(), "mixing")(found.network.inputs(torch.randn(5, 4)), coefficients(found.vectors, 5))


def test_what_vmap_cannot_run_is_merged():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            y = F.linear(x, self.one.weight)
            return self.two(-y if float(y.sum()) > 0 else y)

    torch.manual_seed(0)
    found = runs(Branches())
    wanted = coefficients(found.vectors, 4)
    x = torch.randn(4, 4)
    torch.testing.assert_close(found(found.network.inputs(x), wanted), one_by_one(found, x, wanted))
    assert found.chosen.startswith("merging")


def test_tied_weights_are_mixed_under_both_names():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(7, 5)
            self.head = nn.Linear(5, 7, bias=False)
            self.head.weight = self.words.weight

        def forward(self, ids):
            return self.head(self.words(ids).mean(1))

    torch.manual_seed(0)
    module = Tied()
    experts = {f"e{i}": perturbed(module, i) for i in range(2)}
    for expert in experts.values():
        expert["head.weight"] = expert["words.weight"]
    vectors = TaskVectors.of(module, experts)
    assert vectors.ties
    found = PerSample(TaskNetwork.each({"task": module}, vectors)["task"], vectors)
    check(found, torch.randint(0, 7, (4, 3)), 4, False, "mixing")


def test_equal_coefficients_are_merged_once():
    torch.manual_seed(0)
    found = runs(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)))
    wanted = coefficients(found.vectors, 1).expand(6, -1)
    x = torch.randn(6, 4)
    torch.testing.assert_close(found(found.network.inputs(x), wanted), one_by_one(found, x, wanted))
    assert found.chosen == "merging: 1 different coefficients in 6 samples"


def test_many_positions_are_mixed_a_few_rows_at_a_time(monkeypatch):
    monkeypatch.setattr("taskatlas.merge.mixing._WORKSPACE", 40)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Flatten(), nn.Linear(9 * 5, 3))
    check(runs(module), torch.randn(4, 5, 4), 4, True, "mixing")


def test_the_network_is_as_it_was_after_mixing_even_where_it_failed():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)).eval()
    found = runs(module, "mixing")
    x = torch.randn(4, 4)
    before = module(x)
    with pytest.raises(BadInput):
        found(found.network.inputs(torch.randn(4, 5)), coefficients(found.vectors, 4))
    with pytest.raises(RuntimeError), mixed(module, Mixing(found.vectors, coefficients(found.vectors, 4))):
        raise RuntimeError
    assert torch.equal(module(x), before)
    assert "forward" not in module[0].__dict__


# Hugging Face


def hugging_face(name, **sizes):
    transformers = pytest.importorskip("transformers", reason="needs the extra hf")
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")
    return transformers, config(**sizes)


SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


def test_clips_image_tower():
    transformers, config = hugging_face("CLIPVision", **SMALL, image_size=16, patch_size=8)
    module = transformers.CLIPVisionModel(config)
    found = runs(module, head=lambda output: output.pooler_output)
    check(found, {"pixel_values": torch.randn(6, 3, 16, 16)}, 6, True, "mixing")


def test_bert_with_padding():
    transformers, config = hugging_face("Bert", **SMALL, vocab_size=30, num_labels=3)
    module = transformers.BertForSequenceClassification(config)
    mask = torch.ones(6, 7, dtype=torch.int64)
    mask[::2, 4:] = 0
    check(runs(module), {"input_ids": torch.randint(0, 30, (6, 7)), "attention_mask": mask}, 6, False, "mixing")


def test_an_image_network_of_convolutions():
    transformers, config = hugging_face("ResNet", embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], num_labels=3)
    module = transformers.ResNetForImageClassification(config)
    check(runs(module), {"pixel_values": torch.randn(4, 3, 32, 32)}, 4, False, "mixing")


def t5(**more):
    transformers, config = hugging_face(
        "T5", vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0, **more
    )
    return transformers.T5ForConditionalGeneration(config).eval()


def test_an_encoder_decoder_answers_with_its_first_token():
    module = t5()
    experts = {f"e{i}": perturbed(module, i) for i in range(3)}
    for expert in experts.values():
        tied = [name for name in expert if name.endswith("embed_tokens.weight") or name == "lm_head.weight"]
        expert.update(dict.fromkeys(tied, expert["shared.weight"]))
    vectors = TaskVectors.of(module, experts)
    found = PerSample(TaskNetwork.each({"task": module}, vectors)["task"], vectors)
    batch = {"input_ids": torch.randint(2, 40, (4, 6)), "attention_mask": torch.ones(4, 6, dtype=torch.int64)}
    inputs = found.network.inputs(batch)
    assert inputs["decoder_input_ids"].tolist() == [[0]] * 4
    wanted = coefficients(found.vectors, 4)
    torch.testing.assert_close(found(inputs, wanted), one_by_one(found, batch, wanted), rtol=1e-5, atol=1e-5)
    assert found.chosen.startswith(("vmap", "merging"))  # its table of relative positions belongs to no sample


def steerable(module, features, batch):
    """A fusion of three experts of a network, and coefficients for three samples."""
    base = module()
    experts = {f"e{i}": module() for i in range(3)}
    for i, expert in enumerate(experts.values()):
        expert.load_state_dict(perturbed(base, i))
    fused = DataAdaptive(base, experts, features, steps=1).fit({name: [batch] for name in experts})
    return fused, coefficients(fused.family_.vectors, 3).numpy()


def test_a_base_whose_samples_cannot_be_mixed_is_not_steered():
    class Length(nn.Module):
        def forward(self, input_ids, attention_mask):
            return torch.stack([input_ids.float().mean(1), attention_mask.float().mean(1)], 1)

    batch = {"input_ids": torch.randint(2, 40, (3, 6)), "attention_mask": torch.ones(3, 6, dtype=torch.int64)}
    fused, wanted = steerable(t5, Extractor.of(Length(), tap=""), batch)
    # Its table of relative positions, (6, 6), is no 3 samples.
    with pytest.raises(BadInput, match="same for all samples"), fused.steered(wanted, batch):
        pass


def test_a_steered_base_is_every_samples_own_model_and_counts_them():
    torch.manual_seed(0)
    x = torch.randn(3, 4)
    fused, wanted = steerable(lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), nn.Linear(4, 2), x)
    vectors = fused.family_.vectors
    with torch.no_grad(), fused.steered(wanted, x) as network:
        found = network(x)
    for row, scale in enumerate(wanted):
        state = vectors.state(vectors.merged(torch.from_numpy(scale)))
        torch.testing.assert_close(found[row], functional_call(fused.base, state, (x[row],)))
    with pytest.raises(BadInput, match="2 coefficients for 3 samples"), fused.steered(wanted[:2], x):
        pass
    with pytest.raises(BadInput, match=r"shape \(3, 2\) do not fit"), fused.steered(wanted[:, :2], x):
        pass


# Low-rank experts


def adapters(folder, module, count=3, rank=2, seed=0):
    """PEFT folders for the query and value projections."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for i in range(count):
        place = folder / f"e{i}"
        place.mkdir()
        tensors = {}
        for name, value in module.state_dict().items():
            if name.endswith((".q.weight", ".v.weight")):
                rows, columns = value.shape
                key = f"base_model.model.{name.removesuffix('.weight')}"
                tensors[f"{key}.lora_A.weight"] = torch.randn(rank, columns, generator=generator) / 3
                tensors[f"{key}.lora_B.weight"] = torch.randn(rows, rank, generator=generator) / 3
        save_file(tensors, place / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": ["q", "v"]}
        (place / "adapter_config.json").write_text(json.dumps(config))
        found[f"e{i}"] = place
    return found


def densely(module, folders, rank=2):
    """The same experts as whole weights, made by hand."""
    from safetensors.torch import load_file

    dense = {}
    for name, place in folders.items():
        factors = load_file(place / "adapter_model.safetensors")
        state = {key: value.clone() for key, value in module.state_dict().items()}
        for key in state:
            prefix = f"base_model.model.{key.removesuffix('.weight')}"
            if f"{prefix}.lora_A.weight" in factors:
                state[key] += 2 * factors[f"{prefix}.lora_B.weight"] @ factors[f"{prefix}.lora_A.weight"]
        dense[name] = state
    return TaskVectors.of(module, dense)


@pytest.mark.parametrize("layerwise", [False, True])
def test_low_rank_experts_are_merged_and_mixed_as_their_products_would_be(tmp_path, layerwise):
    module = t5()
    folders = adapters(tmp_path, module)
    low, dense = LowRankVectors.of(module, folders), densely(module, folders)
    assert low.names == dense.names
    assert low.bytes < dense.bytes / 2
    wanted = coefficients(low, 4, layerwise)
    columns = [list(dense.places).index(name) for name in low.places]
    for scale in wanted:
        spread = torch.zeros(len(dense.names), len(dense.places))
        spread[:, columns] = scale if layerwise else scale[:, None].expand(-1, len(columns))
        torch.testing.assert_close(low.state(low.merged(scale)), dense.state(dense.merged(spread)))
    found = PerSample(TaskNetwork.each({"task": module}, low)["task"], low)
    batch = {"input_ids": torch.randint(2, 40, (4, 6)), "attention_mask": torch.ones(4, 6, dtype=torch.int64)}
    check(found, batch, 4, layerwise, "mixing")


@pytest.mark.parametrize("level", ["task", "layer"])
def test_gradients_of_low_rank_experts_are_those_of_dense_ones(tmp_path, level):
    module = t5()
    folders = adapters(tmp_path, module)
    low, dense = LowRankVectors.of(module, folders), densely(module, folders)
    batch = {"input_ids": torch.randint(2, 40, (4, 6)), "attention_mask": torch.ones(4, 6, dtype=torch.int64)}
    gradients = []
    for vectors in (low, dense):
        model, network = FlatModel(vectors), TaskNetwork.each({"task": module}, vectors)["task"]
        model.merge(torch.full((3,), 0.3))
        model.backward(network.logits(network.inputs(batch), model.tensors).square().mean())
        gradients.append(model.gradient_of_coefficients(level))
    if level == "layer":
        gradients[1] = gradients[1][:, [list(dense.places).index(name) for name in low.places]]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)
    assert gradients[0].abs().max() > 1e-4


def test_norms_of_task_vectors(tmp_path):
    module = t5()
    folders = adapters(tmp_path, module)
    low, dense = LowRankVectors.of(module, folders), densely(module, folders)
    expected = torch.stack(
        [torch.stack([row[place].norm() for place in dense.places.values()]) for row in dense.deltas]
    )
    torch.testing.assert_close(task_vector_norms(dense), expected.double())
    columns = [list(dense.places).index(name) for name in low.places]
    torch.testing.assert_close(task_vector_norms(low), expected[:, columns].double(), rtol=1e-5, atol=1e-6)


def test_adapters_that_change_nothing_are_dropped_or_refused(tmp_path):
    module = t5()
    folders = adapters(tmp_path, module, count=2)
    from safetensors.torch import load_file

    tensors = load_file(folders["e1"] / "adapter_model.safetensors")
    zero = {key: torch.zeros_like(value) if "lora_B" in key else value for key, value in tensors.items()}
    save_file(zero, folders["e1"] / "adapter_model.safetensors")
    assert LowRankVectors.of(module, folders).dropped == ("e1",)
    with pytest.raises(BadInput, match="no adapter changes anything"):
        LowRankVectors.of(module, {"e1": folders["e1"]})
    with pytest.raises(BadInput, match="no adapters"):
        LowRankVectors.of(module, {})


# Clusters


@pytest.mark.parametrize("layerwise", [False, True])
def test_a_clusters_model_is_within_the_stated_bound(layerwise):
    torch.manual_seed(0)
    vectors = runs(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))).vectors
    wanted = coefficients(vectors, 40, layerwise)
    clusters = Clusters.of(wanted, vectors, count=5)
    which, bounds = clusters.assign(wanted)
    assert len(clusters.centres) == 5
    apart = [
        (vectors.merged(scale) - vectors.merged(clusters.centres[cluster])).norm()
        for scale, cluster in zip(wanted, which, strict=True)
    ]
    assert all(distance <= bound * (1 + 1e-5) for distance, bound in zip(apart, bounds, strict=True))
    assert max(distance / bound for distance, bound in zip(apart, bounds, strict=True)) > 0.3  # and it says something
    more = Clusters.of(wanted, vectors, count=20)
    assert more.assign(wanted)[1].mean() < bounds.mean()
    every = Clusters.of(wanted, vectors, count=100)
    np.testing.assert_allclose(every.assign(wanted)[1], 0, atol=1e-6)


def test_merged_models_are_kept_and_the_oldest_goes():
    torch.manual_seed(0)
    vectors = runs(nn.Linear(4, 3)).vectors
    clusters = Clusters.of(coefficients(vectors, 9), vectors, count=3, kept=2)
    first = clusters.merged(0)
    torch.testing.assert_close(first, vectors.merged(clusters.centres[0]))
    torch.testing.assert_close(clusters.model(0), vectors.state(first))
    assert clusters.merged(0) is first
    assert clusters.bytes == 2 * vectors.base.numel() * 4
    clusters.merged(1)
    assert clusters.merged(0) is first
    clusters.merged(2)
    clusters.merged(1)
    assert clusters.merged(0) is not first
    with pytest.raises(BadInput, match="no cluster 3"):
        clusters.model(3)
    with pytest.raises(BadInput, match="0 clusters"):
        Clusters.of(coefficients(vectors, 9), vectors, count=0)
    with pytest.raises(BadInput, match="kept=0"):
        Clusters.of(coefficients(vectors, 9), vectors, count=2, kept=0)


@pytest.mark.parametrize("layerwise", [False, True])
@pytest.mark.parametrize("rows", [3, 64])
def test_large_products_are_explicit_merges(monkeypatch, rows, layerwise):
    """Samples at a time and rows at a time, the last ones fewer."""
    monkeypatch.setattr(mixing, "_LARGE", 0)
    monkeypatch.setattr(mixing, "_ROWS", rows)
    monkeypatch.setattr(mixing, "_TOGETHER", 2)
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    module = nn.Sequential(nn.Linear(5, 8), layer, nn.Flatten(), nn.Linear(48, 3))
    check(runs(module), torch.randn(5, 6, 5), 5, layerwise, "mixing")


@pytest.mark.parametrize(
    "x",
    [torch.randn(1, 4, 6).expand(3, 4, 6), torch.randn(3, 6, 4).transpose(1, 2), torch.randn(4, 3, 6).transpose(0, 1)],
    ids=["the same for all", "features first", "positions first"],
)
def test_large_products_of_inputs_that_lie_otherwise(monkeypatch, x):
    vectors = TaskVectors.of(nn.Linear(6, 5, bias=False), {"a": {"weight": torch.randn(5, 6)}})
    samples = Mixing(vectors, torch.rand(3, 1))
    weights = [vectors.merged(wanted).view(5, 6).double() for wanted in samples.coefficients]
    expected = torch.stack([sample.double() @ weight.T for sample, weight in zip(x, weights, strict=True)]).float()
    monkeypatch.setattr(mixing, "_LARGE", 0)
    torch.testing.assert_close(samples.linear(x, "weight", torch.empty(0)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("why", ["float64", "a gradient is needed", "switched off", "a build without it", ""])
def test_large_products_are_left_to_torch_where_one_dnn_cannot_do_them(monkeypatch, why):
    asked = []

    def one_dnn(sample, weight, *_):
        asked.append(len(weight))
        return F.linear(sample, weight)

    monkeypatch.setattr(mixing, "_LARGE", 0)
    monkeypatch.setattr(mixing, "_ONE_DNN", None if why == "a build without it" else one_dnn)
    dtype = torch.float64 if why == "float64" else torch.float32
    vectors = TaskVectors.of(nn.Linear(6, 5, bias=False), {"a": {"weight": torch.randn(5, 6)}}, dtype=dtype)
    x = torch.randn(3, 4, 6, dtype=dtype, requires_grad=why == "a gradient is needed")
    with torch.backends.mkldnn.flags(enabled=why != "switched off"):
        Mixing(vectors, torch.rand(3, 1, dtype=dtype)).linear(x, "weight", torch.empty(0))
    assert asked == ([] if why else [5, 5, 5])


def test_a_pass_can_be_differentiated():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    vectors = TaskVectors.of(module, {f"e{i}": perturbed(module, i) for i in range(3)}, dtype=torch.float64)
    wanted = coefficients(vectors, 4).double()
    x = torch.randn(4, 6, 5, dtype=torch.float64, requires_grad=True)
    with mixed(module, Mixing(vectors, wanted)):
        (found,) = torch.autograd.grad(module(x).square().sum(), x)
    for row, scale in enumerate(wanted):
        state = vectors.state(vectors.merged(scale))
        (expected,) = torch.autograd.grad(functional_call(module, state, (x[row],)).square().sum(), x)
        torch.testing.assert_close(found[row], expected[row])


def square_layers(count=6, width=96):
    torch.manual_seed(0)
    module = nn.Sequential(*[nn.Linear(width, width) for _ in range(count)]).eval()
    vectors = TaskVectors.of(module, {f"e{i}": perturbed(module, i) for i in range(2)})
    return module, vectors, coefficients(vectors, 4)


def test_threads_that_pass_at_once_form_weights_apart():
    module, vectors, wanted = square_layers()
    batches = [torch.randn(4, 9, 96) for _ in range(2)]
    with mixed(module, Mixing(vectors, wanted)), torch.no_grad():
        expected = [module(x) for x in batches]
        with ThreadPoolExecutor(2) as pool:
            for _ in range(20):
                for found, one in zip(pool.map(no_grad(module), batches), expected, strict=True):
                    torch.testing.assert_close(found, one)


def no_grad(module):
    def run(x):
        with torch.no_grad():
            return module(x)

    return run


@pytest.mark.parametrize("large", [False, True])
def test_a_pass_after_one_in_inference_mode_one_of_vmap_and_one_that_failed(monkeypatch, large):
    if large:
        monkeypatch.setattr(mixing, "_LARGE", 0)
    module, vectors, wanted = square_layers()
    x = torch.randn(4, 9, 96)
    with mixed(module, Mixing(vectors, wanted)):
        with torch.inference_mode():
            expected = module(x)
        with torch.no_grad():
            torch.testing.assert_close(module(x), expected)
            torch.testing.assert_close(torch.vmap(module)(torch.stack([x, x])), torch.stack([expected, expected]))
            torch.testing.assert_close(module(x), expected)
            with pytest.raises((RuntimeError, TypeError)):  # of torch, or of the tests' type checker
                module(x[:, :, 1:])
            torch.testing.assert_close(module(x), expected)


@pytest.mark.parametrize("large", [False, True])
def test_a_pass_can_be_differentiated_forwards(monkeypatch, large):
    if large:
        monkeypatch.setattr(mixing, "_LARGE", 0)
    module, vectors, wanted = square_layers(2, 8)
    x, direction = torch.randn(2, 4, 6, 8)
    with mixed(module, Mixing(vectors, wanted)):
        _, found = torch.func.jvp(module, (x,), (direction,))
    for row, scale in enumerate(wanted):
        state = vectors.state(vectors.merged(scale))
        _, expected = torch.func.jvp(lambda x, s=state: functional_call(module, s, (x,)), (x[row],), (direction[row],))
        torch.testing.assert_close(found[row], expected)


def test_one_dnn_sees_few_lengths(monkeypatch):
    """It keeps the code for each."""
    lengths = set()

    def one_dnn(sample, weight, *_):
        lengths.add(len(sample))
        return F.linear(sample, weight)

    monkeypatch.setattr(mixing, "_LARGE", 0)
    monkeypatch.setattr(mixing, "_ONE_DNN", one_dnn)
    vectors = TaskVectors.of(nn.Linear(3, 2, bias=False), {"a": {"weight": torch.randn(2, 3)}})
    for length in range(3, 513):
        x, wanted = torch.randn(1, length, 3), torch.rand(1, 1)
        found = Mixing(vectors, wanted).linear(x, "weight", torch.empty(0))
        torch.testing.assert_close(found, F.linear(x, vectors.merged(wanted[0]).view(2, 3)))
    assert len(lengths) <= 16 * 4  # to 64, 128, 256 and 512
    assert max(lengths) == 512


@pytest.mark.parametrize("inputs", [16, 4000])
def test_weights_that_are_formed_are_bounded(monkeypatch, inputs):
    monkeypatch.setattr(mixing, "_LARGE", 0)
    monkeypatch.setattr(mixing, "_LARGE_WORKSPACE", 2**16)
    monkeypatch.setattr(mixing, "_ROWS", 8)
    torch.manual_seed(0)
    vectors = TaskVectors.of(nn.Linear(inputs, 20, bias=False), {"a": {"weight": torch.randn(20, inputs)}})
    samples = Mixing(vectors, torch.rand(17, 1))
    x = torch.randn(17, 3, inputs)
    weights = [vectors.merged(wanted).view(20, -1).double() for wanted in samples.coefficients]
    expected = torch.stack([sample.double() @ weight.T for sample, weight in zip(x, weights, strict=True)])
    error = (samples.linear(x, "weight", torch.empty(0)) - expected).abs().max()
    assert error <= 4e-6 * expected.abs().max()  # float32 sums of so many, in torch's product too
    assert samples._spaces[0].numel() <= 2**16


def test_layers_share_memory_for_weights_that_are_formed():
    module, vectors, wanted = square_layers()
    samples = Mixing(vectors, wanted)
    with mixed(module, samples), torch.no_grad():
        module(torch.randn(4, 9, 96))
        (space,) = samples._spaces
        module(torch.randn(4, 9, 96))
    assert samples._spaces == [space]

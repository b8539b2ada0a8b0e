"""Axis groups of transformers' own classes in small configurations: all that theory says can move is found."""

import copy
from functools import cache

import numpy as np
import pytest
import torch
from tests.zip.test_axis_networks import difference, families, moved, precise, run

from taskatlas.merge.axis_groups import AxisGroups

transformers = pytest.importorskip("transformers", reason="needs the extra hf")

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
WORDS = torch.randint(1, 49, (2, 7), generator=torch.Generator().manual_seed(0))
WORDS[:, -1] = 49  # CLIP reads its text at the last token
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def vit():
    config = transformers.ViTConfig(**SIZES, image_size=16, patch_size=4, num_labels=5)
    return transformers.ViTForImageClassification(config), {"pixel_values": IMAGES}


def bert():
    config = transformers.BertConfig(**SIZES, vocab_size=50, max_position_embeddings=16, num_labels=5)
    inputs = {"input_ids": WORDS, "attention_mask": torch.tensor([[1] * 7, [1] * 5 + [0] * 2])}
    return transformers.BertForSequenceClassification(config), inputs


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=16, n_inner=48, bos_token_id=1, eos_token_id=1
    )
    return transformers.GPT2LMHeadModel(config), {"input_ids": WORDS}


def llama():
    config = transformers.LlamaConfig(**SIZES, vocab_size=50, num_key_value_heads=2, max_position_embeddings=16)
    return transformers.LlamaForCausalLM(config), {"input_ids": WORDS}


def t5():
    config = transformers.T5Config(
        vocab_size=50, d_model=32, d_kv=8, num_layers=2, num_decoder_layers=1, num_heads=4, d_ff=48
    )
    return transformers.T5ForConditionalGeneration(config), {"input_ids": WORDS, "decoder_input_ids": WORDS[:, :5]}


def clip():
    sizes = SIZES | {"num_hidden_layers": 1}
    text = {**sizes, "vocab_size": 50, "max_position_embeddings": 16, "eos_token_id": 49}
    vision = {**sizes, "hidden_size": 40, "image_size": 16, "patch_size": 4}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    return transformers.CLIPModel(config), {"input_ids": WORDS, "pixel_values": IMAGES}


def blocks(names, heads, contents, hidden):
    """What every block of a transformer has, by the names of its query, value and first MLP layer."""
    return {
        name: size
        for query, value, up in names
        for name, size in {query: heads, f"{query}[]": contents, f"{value}[]": contents, up: hidden}.items()
    }


CASES = {
    "ViT": (
        vit,
        "logits",
        {
            "vit.embeddings.patch_embeddings.projection": 32,
            **blocks(
                [
                    (f"vit.layers.{i}.attention.q_proj", f"vit.layers.{i}.attention.v_proj", f"vit.layers.{i}.mlp.fc1")
                    for i in (0, 1)
                ],
                *(4, (4, 8), 48),
            ),
        },
    ),
    "BERT": (
        bert,
        "logits",
        {
            **{"bert.embeddings.word_embeddings": 32, "bert.pooler.dense": 32},
            **blocks(
                [
                    (f"{at}.attention.self.query", f"{at}.attention.self.value", f"{at}.intermediate.dense")
                    for at in ("bert.encoder.layer.0", "bert.encoder.layer.1")
                ],
                *(4, (4, 8), 48),
            ),
        },
    ),
    "GPT-2": (
        gpt2,
        "logits",
        {
            "transformer.wte": 32,
            **blocks(
                [
                    (f"{at}.attn.c_attn", f"{at}.attn.c_proj", f"{at}.mlp.c_fc")
                    for at in ("transformer.h.0", "transformer.h.1")
                ],
                *(4, (4, 8), 48),
            ),
        },
    ),
    # Rotary embeddings tell all contents of queries and keys apart. Each of two key-value heads has two query heads.
    "Llama": (
        llama,
        "logits",
        {
            "model.embed_tokens": 32,
            **{f"model.layers.{i}.self_attn.q_proj": 2 for i in (0, 1)},
            **{f"model.layers.{i}.self_attn.q_proj[]": (2, 2) for i in (0, 1)},
            **{f"model.layers.{i}.self_attn.v_proj[]": (2, 8) for i in (0, 1)},
            **{f"model.layers.{i}.mlp.gate_proj": 48 for i in (0, 1)},
        },
    ),
    # The bias by relative position is shared by all layers of a stack, so their heads are one group.
    "T5": (
        t5,
        "logits",
        {
            "shared": 32,
            **{f"{stack}.block.0.layer.0.SelfAttention.q": 4 for stack in ("encoder", "decoder")},
            "decoder.block.0.layer.1.EncDecAttention.q": 4,
            **{
                f"{block}.layer.{attention}.{part}[]": (4, 8)
                for block, attention in (
                    *(("encoder.block.0", "0.SelfAttention"), ("encoder.block.1", "0.SelfAttention")),
                    *(("decoder.block.0", "0.SelfAttention"), ("decoder.block.0", "1.EncDecAttention")),
                )
                for part in "qv"
            },
            **{f"encoder.block.{i}.layer.1.DenseReluDense.wi": 48 for i in (0, 1)},
            "decoder.block.0.layer.2.DenseReluDense.wi": 48,
        },
    ),
    "CLIP": (
        clip,
        "logits_per_image",
        {
            **{"text_model.embeddings.token_embedding": 32, "vision_model.embeddings.patch_embedding": 40},
            "visual_projection": 24,
            **{
                name: size
                for tower, width in (("text_model", 8), ("vision_model", 10))
                for name, size in blocks(
                    [
                        (f"{at}.self_attn.k_proj", f"{at}.self_attn.v_proj", f"{at}.mlp.fc1")
                        for at in [f"{tower}.encoder.layers.0"]
                    ],
                    *(4, (4, width), 48),
                ).items()
            },
        },
    ),
}


@cache
def derived(name):
    build, output, expected = CASES[name]
    torch.manual_seed(0)
    module, inputs = build()
    return module.eval(), inputs, output, expected, AxisGroups.of(module, inputs, outputs=[output])


@pytest.fixture(params=CASES, ids=str)
def case(request):
    return derived(request.param)


def test_what_theory_says_can_move_is_found(case):
    *_, expected, groups = case
    assert families(groups) == expected
    assert not [axis for axis in groups.frozen if "self-check" in axis.why or "not understood" in axis.why]


def test_permuting_leaves_outputs_unchanged(case):
    module, inputs, output, _, groups = case
    module = precise(module)
    before, _ = run(module, inputs, output)
    after, _ = run(moved(module, groups, groups.random_permutations(1)), inputs, output)
    assert difference(before, after) < 1e-5
    assert not torch.equal(before, after)


def test_each_group_by_itself_leaves_outputs_unchanged(case):
    """The outer group of heads without its insides, an inner one without the others."""
    module, inputs, output, _, groups = case
    module = precise(module)
    before, _ = run(module, inputs, output)
    permutations = groups.random_permutations(3)
    for group in [*groups][:12]:
        after, _ = run(moved(module, groups, {group.name: permutations[group.name]}), inputs, output)
        assert difference(before, after) < 1e-5, group


def test_every_group_can_be_seen(case):
    *_, groups = case
    assert all(group.taps for group in groups)


def test_insides_of_heads_know_their_head(case):
    *_, groups = case
    for group in groups:
        if "[" in group.name:
            outer, unit = group.within
            assert f"[{unit}]" in group.name
            assert unit < groups[outer].size
            places = {(m.tensor, m.axis): m.layout.index()[unit] for m in groups[outer].members}
            for member in group.members:
                here = [
                    m.layout.index()[unit]
                    for m in groups[outer].members
                    if (m.tensor, m.axis) == (member.tensor, member.axis)
                ]
                assert set(member.layout.index().ravel()) <= set(np.concatenate(here))
            assert places
        else:
            assert group.within is None


def test_fused_layers_are_three_chunks():
    *_, groups = derived("GPT-2")
    place = ("transformer.h.1.attn.c_attn.weight", 1)
    heads = [m.layout.index() for m in groups["transformer.h.1.attn.c_attn"].members if (m.tensor, m.axis) == place]
    assert [positions[:, 0].tolist() for positions in heads] == [[0, 8, 16, 24], [32, 40, 48, 56], [64, 72, 80, 88]]
    contents = groups["transformer.h.1.attn.c_attn[2]"]
    assert contents.within == ("transformer.h.1.attn.c_attn", 2)
    assert [m.layout.index()[:, 0].tolist() for m in contents.members if (m.tensor, m.axis) == place] == [
        list(range(16, 24)),
        list(range(48, 56)),
    ]
    assert [m.role for m in contents.members] == ["out"] * 4


def test_tied_weights_move_together_and_do_both():
    module, *_, groups = derived("GPT-2")
    roles = {
        m.tensor: m.role
        for m in groups["transformer.wte"].members
        if m.tensor.endswith(("wte.weight", "lm_head.weight"))
    }
    assert roles == {"transformer.wte.weight": "both", "lm_head.weight": "both"}
    state = groups.permute(module.state_dict(), groups.random_permutations(0))
    assert torch.equal(state["transformer.wte.weight"], state["lm_head.weight"])


def test_streams_under_norms_are_not_for_scaling():
    *_, groups = derived("BERT")
    assert not groups["bert.embeddings.word_embeddings"].scalable
    assert groups["bert.encoder.layer.0.intermediate.dense"].scalable
    for name in ("Llama", "T5"):  # whose norms are written by hand
        *_, groups = derived(name)
        stream = max(groups, key=lambda group: len(group.taps))
        assert not stream.scalable
        assert any(group.scalable for group in groups)


def test_rotary_embeddings_say_why_contents_stay():
    *_, groups = derived("Llama")
    why = {(a.tensor, a.axis): a for a in groups.frozen}["model.layers.0.self_attn.k_proj.weight", 0]
    assert "rotary" in why.where
    assert why.why.startswith("inside its units")
    assert why.positions == 8


def test_outputs_that_do_not_count_leave_their_stream_free():
    config = transformers.BertConfig(**SIZES | {"num_hidden_layers": 1}, vocab_size=50, max_position_embeddings=16)
    module, stream = transformers.BertModel(config), "embeddings.word_embeddings"
    every = AxisGroups.of(module, {"input_ids": WORDS})
    assert stream not in {group.name for group in every}
    assert any("last_hidden_state" in axis.why for axis in every.frozen)
    pooled = AxisGroups.of(module, {"input_ids": WORDS}, outputs=["pooler_output"])
    assert pooled[stream].size == 32


def test_stops_of_a_transformer_are_its_blocks():
    *_, groups = derived("BERT")
    assert groups.stop("bert.encoder.layer.0").rest[0].startswith("bert.encoder.layer.1")
    assert groups.stop("bert.encoder.layer.1") == groups.stop("bert.encoder")
    with pytest.raises(ValueError, match=r"no legal stop.*bert.encoder.layer.1"):
        groups.stop("bert.encoder.layer.0.intermediate.dense")
    assert "bert.encoder.layer.0.attention" in {stop.place for stop in groups.stops}  # a mask does not cross a cut


def test_a_copy_in_another_order_computes_the_same_in_single_precision(case):
    module, inputs, output, _, groups = case
    other = copy.deepcopy(module)
    other.load_state_dict(groups.permute(module.state_dict(), groups.random_permutations(7)))
    with torch.no_grad():
        assert difference(module(**inputs)[output], other(**inputs)[output]) < 1e-5

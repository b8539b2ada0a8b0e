"""Extraction: streamed, kept, restored, and clear about what went wrong."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from taskatlas.errors import BadInput, WorkFailed
from taskatlas.probe import Features, Probe, check_same_samples, extract, features, forward
from taskatlas.store import Store, check_receipts

RNG = np.random.default_rng(0)
ARRAYS = Probe.from_arrays(RNG.normal(size=(10, 4)))


@dataclass
class Opened:
    module: nn.Module
    prepare: Any = None


@dataclass
class StandIn:
    """A checkpoint that says how often it was opened."""

    module: nn.Module
    prepare: Any = None
    name: str = "net"
    digest: str = "0123"
    opened: list = field(default_factory=list)

    def open(self, device: str = "cpu") -> Opened:
        self.opened.append(device)
        return Opened(self.module.eval(), self.prepare)


def mlp(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


def run(module, probe=ARRAYS, prepare=None, **how):
    return extract(StandIn(module, prepare), probe, device="cpu", **how)


def test_features_are_the_input_of_the_last_linear_layer_row_by_row(tmp_path):
    net = mlp()
    found = run(net, store=Store(tmp_path))
    expected = net[:2](torch.from_numpy(ARRAYS.inputs).float()).detach().numpy()
    np.testing.assert_allclose(found.values, expected, rtol=1e-6)
    assert found.values.dtype == np.float32
    assert isinstance(found.values, np.memmap)
    assert not found.values.flags.writeable
    assert (found.ids, found.checkpoint, found.tap, found.probe) == (ARRAYS.ids, "net", "2:input", ARRAYS.digest)
    assert check_receipts(tmp_path) == (1, [])
    assert repr(found).startswith("Features(net at 2:input, 10 x 6, ")


def test_what_is_in_the_store_is_not_computed_again(tmp_path):
    checkpoint, store = StandIn(mlp()), Store(tmp_path)

    def again(probe=ARRAYS, checkpoint=checkpoint, **how):
        before = len(checkpoint.opened)
        found = extract(checkpoint, probe, store=store, device="cpu", **how)
        return found, len(checkpoint.opened) - before

    first, opened = again()
    assert opened == 1
    second, opened = again(batch_size=3)
    assert opened == 0
    assert (second.digest, second.tap) == (first.digest, first.tap)
    np.testing.assert_array_equal(second.values, first.values)
    other = StandIn(mlp(1), digest="4567", name="other")
    for changed in ({"tap": "0"}, {"probe": ARRAYS.take([1, 0])}, {"checkpoint": other}, {"tap": "1"}):
        found, opened = again(**changed)
        assert opened == 1
        assert found.digest != first.digest
    renamed, opened = again(checkpoint=StandIn(mlp(), name="renamed"))
    assert (opened, renamed.checkpoint) == (0, "renamed")


@pytest.mark.parametrize("batch_size", [1, 3, 10, 64])
def test_the_batch_size_changes_nothing_but_rounding(batch_size, tmp_path):
    whole = run(mlp(), store=Store(tmp_path / "a")).values
    parts = run(mlp(), batch_size=batch_size, store=Store(tmp_path / "b")).values
    np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-6)


def test_only_one_batch_is_held_at_a_time(tmp_path):
    import gc
    import weakref

    alive: list[weakref.ref] = []
    most = 0

    class Watching(nn.Linear):
        def forward(self, x):
            nonlocal most
            gc.collect()
            most = max(most, sum(ref() is not None for ref in alive))
            alive.append(weakref.ref(x))
            return super().forward(x)

    run(nn.Sequential(nn.Linear(4, 5), Watching(5, 2)), batch_size=1, store=Store(tmp_path))
    assert len(alive) == 10
    assert most <= 1  # the batch before, until the next one is there


def test_the_network_and_the_random_states_are_left_as_found():
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))

    class LeftInTraining(StandIn):
        def open(self, device: str = "cpu") -> Opened:
            return Opened(self.module.train())

    before, buffers = torch.get_rng_state(), net[1].running_mean.clone()
    first = extract(LeftInTraining(net, digest="1"), ARRAYS, device="cpu").values
    second = extract(LeftInTraining(net, digest="2"), ARRAYS, device="cpu").values
    np.testing.assert_array_equal(first, second)
    assert net[2].training
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(net[1].running_mean, buffers)


def test_images_become_floats_in_channels_first_order(tmp_path):
    pixels = RNG.integers(0, 256, (3, 5, 6, 3), dtype=np.uint8)
    probe = Probe.from_arrays(pixels)
    probe.save(tmp_path / "p.parquet")
    for one in (probe, Probe.load(tmp_path / "p.parquet")):
        found = run(nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(90, 2)), one, tap="0:input")
        np.testing.assert_allclose(found.values, pixels.mean((1, 2)) / 255, rtol=1e-5)


def test_a_network_in_half_precision(tmp_path):
    found = run(mlp().to(torch.bfloat16), store=Store(tmp_path))
    assert found.values.dtype == np.float32
    np.testing.assert_allclose(found.values, run(mlp(), store=Store(tmp_path / "b")).values, atol=0.05)


def tokens(samples):
    """Texts as embeddings of their characters, padded on the right."""
    longest = max(map(len, samples))
    mask = torch.tensor([[1] * len(s) + [0] * (longest - len(s)) for s in samples])
    codes = torch.tensor([[ord(c) % 64 for c in s] + [0] * (longest - len(s)) for s in samples])
    return {"codes": codes, "attention_mask": mask}


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(64, 5), nn.Linear(5, 2)

    def forward(self, codes, attention_mask):
        return {"logits": self.head(self.embed(codes) + 100 * (1 - attention_mask[..., None]))}


def test_texts_are_pooled_over_their_own_tokens():
    net = Reader().eval()
    probe = Probe.from_text(["abc", "a", "hello there", "bb"])

    def of(text, pool):
        vectors = net.embed(tokens([text])["codes"])[0].detach().numpy()
        return {"auto": vectors.mean(0), "first": vectors[0], "last": vectors[-1]}[pool]

    for pool in ("auto", "first", "last"):
        found = run(net, probe, tokens, batch_size=3, pool=pool)
        np.testing.assert_allclose(found.values, [of(text, pool) for text in probe.inputs], rtol=1e-5, atol=1e-6)


class Encoding(dict):
    """As a fast tokenizer's: each word is split into its characters."""

    def __init__(self, sentences, longest=None):
        owners = [[None, *(i for i, word in enumerate(words) for _ in word)][:longest] for words in sentences]
        width = max(map(len, owners))
        self.owners = [own + [None] * (width - len(own)) for own in owners]
        super().__init__(tokens(["".join(c for word in words for c in word)[: width - 1] + " " for words in sentences]))

    def word_ids(self, position):
        return self.owners[position]


WORDS = Probe("words", [["ab", "c"], ["xyz"], ["d", "ef", "g"]], ("s", "t", "u"))


def test_a_row_for_each_word():
    net = nn.ModuleDict({"embed": nn.Embedding(64, 5), "head": nn.Linear(5, 1)})
    net.forward = lambda codes, attention_mask: net["head"](net["embed"](codes))
    table = net["embed"].weight.detach().numpy()

    def prepare(sentences):
        encoding = Encoding(sentences)
        encoding["codes"] = torch.tensor(
            [
                [0] * (own.index(0)) + [ord(c) % 64 for word in words for c in word] + [0] * own[1:].count(None)
                for own, words in zip(encoding.owners, sentences, strict=True)
            ]
        )
        return encoding

    for how, choose in {"first": lambda v: v[0], "last": lambda v: v[-1], "mean": lambda v: v.mean(0)}.items():
        found = run(net, WORDS, prepare, words=how, batch_size=2)
        expected = [choose(table[[ord(c) % 64 for c in word]]) for words in WORDS.inputs for word in words]
        np.testing.assert_allclose(found.values, expected, rtol=1e-5)
        assert found.ids == ("s:0", "s:1", "t:0", "u:0", "u:1", "u:2")


LAST = WORDS.take([2])


def lost_in_the_middle(sentences):
    encoding = Encoding(sentences)
    encoding.owners = [[None if owner == 1 else owner for owner in own] for own in encoding.owners]
    return encoding


def nan_from(threshold):
    class Nan(nn.Module):
        def forward(self, x):
            return torch.where(x[:, :1] > threshold, torch.nan, x)

    return nn.Sequential(Nan(), nn.Linear(4, 2))


COUNTING = Probe.from_arrays(np.arange(40.0).reshape(10, 4), ids=[f"id{i}" for i in range(10)])


class Widening(nn.Module):
    def forward(self, x):
        return x.expand(len(x), 4) if len(x) == 3 else x[:, :2]


class OutOfMemory(nn.Module):
    def forward(self, x):
        raise torch.OutOfMemoryError("tried to allocate 1 TiB")


@pytest.mark.parametrize(
    ("module", "probe", "prepare", "how", "message"),
    [
        (nan_from(13), COUNTING, None, {}, "net at 1:input gives NaN or infinite features for sample 'id4'"),
        (nn.Sequential(nn.ReLU()), ARRAYS, None, {}, r"calls no nn\.Linear"),
        (mlp(), ARRAYS, None, {"tap": "fc"}, "no tap 'fc'"),
        (nn.Linear(7, 2), COUNTING, None, {}, "net cannot take samples 'id0' to 'id2' .* shapes cannot be multiplied"),
        (Reader(), Probe.from_text(["a"]), None, {}, "no tokenizer for a probe of text"),
        (Reader(), WORDS, None, {}, "no tokenizer for a probe of words"),
        (Reader(), WORDS, lambda s: tokens([" ".join(w) for w in s]), {}, "which word a token belongs to"),
        (Reader(), LAST, lambda s: Encoding(s, 3), {}, "kept 2 of the 3 words of sentence 'u'"),
        (Reader(), LAST, lost_in_the_middle, {}, r"word 1 of sentence 'u' \('ef'\) has no token"),
        (mlp(), ARRAYS, None, {"pool": "last"}, r"net at 2:input: pool='last' picks a token"),
        (mlp(), ARRAYS, None, {"batch_size": 0}, "batch of 0 samples"),
        (mlp(), ARRAYS, lambda s: torch.ones(2, 4), {}, "prepare made 2 rows .* of 3 samples"),
        (mlp(), ARRAYS, lambda s: {"input": torch.ones(2, 4)}, {}, r"prepare made 2 rows \(input\)"),
        (mlp(), ARRAYS, lambda s: s, {}, "prepare returned a list"),
        (mlp(), ARRAYS, lambda s: 1 / 0, {}, "ZeroDivisionError"),
        (nn.Sequential(nn.Flatten(0), nn.Linear(12, 2)), ARRAYS, None, {"tap": "0"}, r"shape \(12,\) for a batch of 3"),
        (nn.Sequential(Widening(), nn.Identity()), ARRAYS, None, {"tap": "0"}, "4 features .* and 2 from '9' on"),
    ],
)
def test_bad_input_is_named_and_nothing_stays_in_the_store(module, probe, prepare, how, message, tmp_path):
    with pytest.raises(BadInput, match=message):
        run(module, probe, prepare, store=Store(tmp_path), **{"batch_size": 3, **how})
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_way_to_pool_that_is_none():
    with pytest.raises(BadInput, match=r"words='max' is not a way to pool\. Choose one of: first, last"):
        features._check_choice("words", "max", ("first", "last"))


def test_images_of_several_sizes_name_two_of_them():
    pixels = RNG.integers(0, 256, (2, 5, 6, 3), dtype=np.uint8)
    probe = Probe("image", [pixels[0], pixels[1][:4]], ("tall.png", "flat.png"))
    with pytest.raises(
        BadInput, match=r"'flat\.png' has shape \(4, 6, 3\) and image 'tall\.png' has \(5, 6, 3\).*prepare"
    ):
        run(mlp(), probe)


def test_too_little_memory_suggests_a_smaller_batch():
    with pytest.raises(WorkFailed, match="smaller batch"):
        run(OutOfMemory())


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", full)
    with pytest.raises(BadInput, match="no space left"):
        run(mlp(), store=Store(tmp_path))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_damaged_features_in_the_store(tmp_path):
    run(mlp(), store=Store(tmp_path))
    values = next(tmp_path.rglob("values.npy"))
    values.write_bytes(values.read_bytes()[:-100])
    with pytest.raises(BadInput, match="are damaged"):
        run(mlp(), store=Store(tmp_path))


def test_saved_features_load_the_same(tmp_path):
    made = run(mlp(), Probe.from_arrays(np.eye(4), ids=["ä", "b", "c", "d"]))
    made.save(tmp_path / "f.npz")
    loaded = Features.load(tmp_path / "f.npz")
    np.testing.assert_array_equal(loaded.values, made.values)
    for name in ("ids", "checkpoint", "tap", "probe", "digest"):
        assert getattr(loaded, name) == getattr(made, name)
    for content in (b"", (tmp_path / "f.npz").read_bytes()[:200]):
        (tmp_path / "g.npz").write_bytes(content)
        with pytest.raises(BadInput, match=r"g\.npz holds no features"):
            Features.load(tmp_path / "g.npz")


def named(name, *ids):
    return Features(np.ones((len(ids), 2), np.float32), ids, name, "fc", "", "")


def test_other_samples_are_refused_by_name():
    check_same_samples([])
    check_same_samples([named("a", "x", "y"), named("b", "x", "y")])
    with pytest.raises(BadInput, match=r"of a and of c .* row 1 is 'y' in one and 'z' in the other"):
        check_same_samples([named("a", "x", "y"), named("b", "x", "y"), named("c", "x", "z")])
    with pytest.raises(BadInput, match=r"of a and of b .* 1 and 2 rows, and 'y' is in one only"):
        check_same_samples([named("a", "x"), named("b", "x", "y")])
    with pytest.raises(BadInput, match=r"shape \(1, 2\) for 2 ids"):
        Features(np.ones((1, 2)), ("x", "y"), "a", "fc", "", "")


def test_a_plain_pass_can_be_used_for_more_than_features():
    from taskatlas.probe import quiet

    net = mlp()
    with quiet(net):
        logits = torch.cat([b.output for b in forward.batches(Opened(net), ARRAYS, who="net", batch_size=4)])
    torch.testing.assert_close(logits, net(torch.from_numpy(ARRAYS.inputs).float()).detach())


def test_auto_is_a_device_that_is_there():
    assert forward.chosen_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")

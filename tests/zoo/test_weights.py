"""Weights files: what is understood, what is refused and how."""

import json
import os
import pickle
import re
import struct
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from taskatlas.errors import BadInput
from taskatlas.zoo import read_weights, tensor_shapes
from taskatlas.zoo.weights import files_digest, shard_index, tensors_digest, weights_files, weights_name, wrapper_prefix

TENSORS = {
    "a.weight": torch.arange(6.0).reshape(2, 3),
    "a.bias": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "count": torch.tensor(7),
    "none": torch.zeros(0, 4),
}


def same(found, expected):
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def save_legacy(tensors, file):
    torch.save(tensors, file, _use_new_zipfile_serialization=False)


WRITERS = {
    "net.safetensors": save_file,
    "net.pt": torch.save,
    "net.pth": torch.save,
    "net.bin": torch.save,
    "net.th": save_legacy,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_reads_the_same_tensors(place, name):
    WRITERS[name](TENSORS, place / name)
    same(dict(sorted(read_weights(place / name).items())), dict(sorted(TENSORS.items())))
    same(read_weights(str(place / name)), read_weights(place / name))


@pytest.mark.parametrize("name", WRITERS)
def test_shapes_are_those_of_the_tensors_and_hold_no_data(place, name):
    WRITERS[name](TENSORS, place / name)
    shapes = tensor_shapes(place / name)
    tensors = read_weights(place / name)
    assert list(shapes) == list(tensors)
    for key, header in shapes.items():
        assert header.is_meta
        assert (header.shape, header.dtype) == (tensors[key].shape, tensors[key].dtype)


def test_shapes_of_a_file_larger_than_memory(place):
    """The file is sparse, a terabyte of zeros that are nowhere: whoever reads them, fails."""
    header = json.dumps({"w": {"dtype": "F16", "shape": [2**39], "data_offsets": [0, 2**40]}}).encode()
    with (place / "huge.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + 2**40)
    assert tensor_shapes(place / "huge.safetensors")["w"].shape == (2**39,)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict"])
def test_weights_inside_a_training_checkpoint(place, key):
    torch.save({"epoch": 3, "best": 91.5, key: TENSORS}, place / "run.pt")
    same(read_weights(place / "run.pt"), TENSORS)


def test_a_tensor_called_model_is_a_tensor(place):
    torch.save({"model": torch.ones(2)}, place / "net.pt")
    assert list(read_weights(place / "net.pt")) == ["model"]


def test_a_wrapper_that_contains_itself_ends(place):
    content = {}
    content["model"] = content
    torch.save(content, place / "net.pt")
    with pytest.raises(BadInput, match="'model', not a tensor"):
        read_weights(place / "net.pt")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."])
def test_prefixes_of_wrappers_go(place, prefix):
    torch.save({prefix + name: tensor for name, tensor in TENSORS.items()}, place / "net.pt")
    same(read_weights(place / "net.pt"), TENSORS)


def test_a_prefix_that_not_every_name_has_stays(place):
    tensors = {"module.a": torch.ones(1), "b": torch.ones(1)}
    torch.save(tensors, place / "net.pt")
    same(read_weights(place / "net.pt"), tensors)


@given(st.lists(st.text("abmodule._", min_size=1), max_size=5))
def test_the_prefix_is_common_and_leaves_names(names):
    prefix = wrapper_prefix(names)
    assert all(name.startswith(prefix) and name != prefix for name in names)
    assert re.fullmatch(r"(module\.|_orig_mod\.)*", prefix)


@given(st.lists(st.text("ab.", min_size=1, max_size=4), min_size=1, max_size=5, unique=True))
def test_a_wrapped_model_has_the_names_of_the_model(names):
    plain = wrapper_prefix(names)
    assert wrapper_prefix(["module." + name for name in names]) == "module." + plain


def test_parameters_are_read_as_plain_tensors(place):
    torch.save(dict(nn.Linear(2, 2).named_parameters()), place / "net.pt")
    assert all(type(t) is torch.Tensor and not t.requires_grad for t in read_weights(place / "net.pt").values())


def test_a_file_saved_on_a_gpu_is_read_on_the_cpu(place):
    """The location is in the pickle: change ``cpu`` to ``cuda:0`` there, as a GPU would have written it."""
    save_legacy({"w": torch.arange(3.0)}, place / "net.th")
    content = (place / "net.th").read_bytes()
    written = content.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
    assert written != content
    (place / "net.th").write_bytes(written)
    assert torch.equal(read_weights(place / "net.th")["w"], torch.arange(3.0))
    assert tensor_shapes(place / "net.th")["w"].shape == (3,)


def shard(place, suffix, writer):
    first, second = {"a": torch.ones(2)}, {"b": torch.zeros(3), "c": torch.ones(1)}
    writer(first, place / f"model-00001-of-00002{suffix}")
    writer(second, place / f"model-00002-of-00002{suffix}")
    weight_map = {"b": f"model-00002-of-00002{suffix}", "a": f"model-00001-of-00002{suffix}"}
    index = place / f"model{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {**weight_map, "c": weight_map["b"]}}))
    return index


@pytest.mark.parametrize(("suffix", "writer"), [(".safetensors", save_file), (".bin", torch.save)])
def test_shards_are_one(place, suffix, writer):
    index = shard(place, suffix, writer)
    same(read_weights(index), {"b": torch.zeros(3), "a": torch.ones(2), "c": torch.ones(1)})
    assert list(tensor_shapes(index)) == ["b", "a", "c"]
    assert [file.name for file in weights_files(index)] == [
        f"model{suffix}.index.json",
        f"model-00001-of-00002{suffix}",
        f"model-00002-of-00002{suffix}",
    ]


def test_a_folder_prefers_safetensors(place):
    torch.save({"old": torch.ones(1)}, place / "pytorch_model.bin")
    assert list(read_weights(place)) == ["old"]
    save_file({"new": torch.ones(1)}, place / "model.safetensors")
    assert list(read_weights(place)) == ["new"]


@pytest.mark.parametrize(
    ("name", "parameters", "convolutions"),
    [
        ("resnet20-12fca82f", 269_722, 19),
        ("resnet32-d509ac18", 464_154, 31),
        ("resnet56-4bfd9763", 853_018, 55),
    ],
)
def test_real_networks(real_input, name, parameters, convolutions):
    """Sizes from He et al. (2016), table 6: 0.27, 0.46 and 0.85 million parameters."""
    weights = read_weights(real_input / f"zoo/cifar10-resnets/{name}.th")
    assert weights["conv1.weight"].shape == (16, 3, 3, 3)
    assert weights["linear.weight"].shape == (10, 64)
    assert sum(tensor.ndim == 4 for tensor in weights.values()) == convolutions
    assert all(tensor.device.type == "cpu" and tensor.isfinite().all() for tensor in weights.values())
    shapes = tensor_shapes(real_input / f"zoo/cifar10-resnets/{name}.th")
    trained = [t for key, t in shapes.items() if t.is_floating_point() and "running" not in key]
    assert sum(tensor.numel() for tensor in trained) == parameters


# Attacks: a message says what is wrong, in which file, and what to try.


def refused(file, *parts):
    for read in (read_weights, tensor_shapes):
        with pytest.raises(BadInput) as caught:
            read(file)
        message = str(caught.value)
        assert str(file) in message
        for part in parts:
            assert part in message
        assert len(message) < 600
        assert "\n" not in message


def test_a_missing_file(place):
    refused(place / "net.pt", "no weights", "path right?")


@pytest.mark.parametrize("name", WRITERS)
def test_an_empty_file(place, name):
    (place / name).touch()
    refused(place / name, "is empty", "again")


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_a_truncated_file(place, name, share):
    WRITERS[name]({"w": torch.ones(500)}, place / name)
    content = (place / name).read_bytes()
    (place / name).write_bytes(content[: int(len(content) * share)])
    if name.endswith(".th"):  # its header is whole: only reading the tensors can tell
        with pytest.raises(BadInput, match=r"not a whole PyTorch file|did not write"):
            read_weights(place / name)
    else:
        refused(place / name, "again" if name.endswith("safetensors") else "net.")


@pytest.mark.parametrize("length", [2**63 - 1, 2**40, 10**6])
def test_a_header_that_lies_about_its_length(place, length):
    (place / "net.safetensors").write_bytes(struct.pack("<Q", length) + b"{}" + b" " * 100)
    refused(place / "net.safetensors", "not a whole safetensors file", "again")


@pytest.mark.parametrize(
    "header",
    [
        b"{not json}",
        b"[]",
        b'{"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 400]}}',
        b'{"w": {"dtype": "F33", "shape": [4], "data_offsets": [0, 16]}}',
        b'{"w": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}}',
        b"\xff\xfe\x00",
    ],
)
def test_a_corrupt_header(place, header):
    (place / "net.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    refused(place / "net.safetensors", "not a whole safetensors file")


def test_text_that_is_called_safetensors(place):
    (place / "net.safetensors").write_text("These are the weights, honestly.\n" * 30)
    refused(place / "net.safetensors", "not a whole safetensors file")


def test_text_that_is_called_pt(place):
    (place / "net.pt").write_text("These are the weights, honestly.\n" * 30)
    refused(place / "net.pt", "not a whole PyTorch file")


def test_a_pointer_of_git_lfs(place):
    (place / "net.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n")
    refused(place / "net.safetensors", "git lfs pull")


def test_files_under_each_others_suffix(place):
    torch.save({"w": torch.ones(2)}, place / "net.safetensors")
    refused(place / "net.safetensors", "rename it to end in .pt")
    save_file({"w": torch.ones(2)}, place / "net.pt")
    refused(place / "net.pt", "rename it to end in .safetensors")


class Payload:
    """Unpickled, it would make a file."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


def save_pickle(content, file):
    file.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("writer", [torch.save, save_legacy, save_pickle])
@pytest.mark.parametrize("suffix", [".pt", ".bin", ".th"])
def test_a_pickle_that_needs_code_does_not_run(place, writer, suffix):
    writer({"n": 1, "evil": Payload(place / "ran")}, place / f"net{suffix}")
    refused(place / f"net{suffix}", "needs code to be read (posix.system)", "not opened", "safetensors.torch.save_file")
    assert not (place / "ran").exists()


def test_a_shard_that_needs_code_does_not_run(place):
    index = shard(place, ".bin", torch.save)
    torch.save({"a": torch.ones(1), "evil": Payload(place / "ran")}, place / "model-00001-of-00002.bin")
    with pytest.raises(BadInput, match=r"model-00001-of-00002.bin is a pickle that needs code"):
        read_weights(index)
    assert not (place / "ran").exists()


def test_a_pickled_module(place):
    torch.save(nn.Linear(2, 2), place / "net.pt")
    refused(place / "net.pt", "needs code to be read (torch.nn.modules.linear.Linear)", "state_dict()")


def test_a_pickle_that_torch_did_not_write(place):
    (place / "net.pt").write_bytes(pickle.dumps({"w": np.ones(2)}))
    refused(place / "net.pt", "torch.save did not write", "save_file")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_program_of_torchscript(place):
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), place / "net.pt")
    refused(place / "net.pt", "TorchScript", "save_file")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ({"w": torch.ones(1), "epoch": 3}, "int under 'epoch'"),
        ({"w": torch.ones(1), "net": {"v": torch.ones(1)}}, "dict under 'net'"),
        ({0: torch.ones(1)}, "the key 0"),
        ([torch.ones(1)], "holds a list"),
        (torch.ones(1), "holds a Tensor"),
        ({}, "no tensors"),
    ],
)
def test_anything_but_names_and_tensors(place, content, part):
    torch.save(content, place / "net.pt")
    refused(place / "net.pt", part)


def test_an_unknown_suffix(place):
    (place / "net.onnx").write_bytes(b"1234567890")
    refused(place / "net.onnx", ".safetensors")


def test_a_folder_without_a_model(place):
    refused(place, "holds no model", "Name a weights file")


def test_an_index_that_names_a_missing_shard(place):
    index = shard(place, ".safetensors", save_file)
    (place / "model-00002-of-00002.safetensors").unlink()
    refused(index, "model-00002-of-00002.safetensors, which is not beside it")


def test_an_index_that_names_a_tensor_its_shard_lacks(place):
    index = shard(place, ".safetensors", save_file)
    save_file({"x": torch.ones(1)}, place / "model-00001-of-00002.safetensors")
    refused(index, "'a' in model-00001-of-00002.safetensors, which does not hold it")


@pytest.mark.parametrize(
    "escape", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "c:\\x.bin", "."]
)
def test_an_index_that_leads_out_of_its_folder(place, escape):
    save_file({"w": torch.ones(1)}, place.parent / "secret.safetensors")
    (place / "m.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": escape}}))
    refused(place / "m.safetensors.index.json", "not a file beside it")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": ["a"]}', "[" * 100_000])
def test_a_corrupt_index(place, content):
    (place / "m.bin.index.json").write_text(content)
    with pytest.raises(BadInput, match=r"m\.bin\.index\.json is not a shard index"):
        shard_index(place / "m.bin.index.json")


@settings(max_examples=60)
@given(data=st.data(), name=st.sampled_from(sorted(WRITERS)))
def test_damaged_bytes_are_read_or_refused(tmp_path_factory, data, name):
    """Whatever byte is changed: tensors, or BadInput, and nothing else."""
    file = tmp_path_factory.mktemp("damaged") / name
    WRITERS[name]({"w": torch.ones(3), "v": torch.ones(2, 2)}, file)
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(content)
    for read in (read_weights, tensor_shapes):
        with suppress(BadInput):
            assert all(isinstance(tensor, torch.Tensor) for tensor in read(file).values())


# Names and digests.


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("a/net.v2.safetensors", "net.v2"),
        ("model.safetensors.index.json", "model"),
        ("pytorch_model.bin.index.json", "pytorch_model"),
        ("x.th", "x"),
        ("config.json", None),
        ("x.npz", None),
    ],
)
def test_the_name_without_its_suffix(place, file, name):
    assert weights_name(place / file) == name


def test_a_files_digest_is_of_its_content_not_its_name(place):
    torch.save(TENSORS, place / "a.pt")
    (place / "b.pt").write_bytes((place / "a.pt").read_bytes())
    (place / "c.pt").write_bytes((place / "a.pt").read_bytes() + b" ")
    assert files_digest(place / "a.pt") == files_digest(place / "b.pt") != files_digest(place / "c.pt")


def test_an_index_digest_sees_its_shards(place):
    index = shard(place, ".safetensors", save_file)
    before = files_digest(index)
    save_file({"a": torch.full((2,), 5.0)}, place / "model-00001-of-00002.safetensors")
    assert files_digest(index) != before


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.complex64]
)
def test_the_digest_of_tensors_sees_names_shapes_types_and_bytes(dtype):
    tensor = torch.tensor([[1, 0, 1], [0, 1, 1]]).to(dtype)
    reference = tensors_digest({"a": tensor, "b": torch.ones(())})
    assert tensors_digest({"b": torch.ones(()), "a": tensor.T.contiguous().T}) == reference
    changed = tensor.clone()
    changed[0, 1] = 1
    others = [
        {"x": tensor, "b": torch.ones(())},
        {"a": tensor.reshape(3, 2), "b": torch.ones(())},
        {"a": tensor.view(torch.uint8).reshape(2, -1) if dtype != torch.bool else tensor.byte(), "b": torch.ones(())},
        {"a": changed, "b": torch.ones(())},
        {"a": tensor},
    ]
    assert len({reference, *map(tensors_digest, others)}) == 6


def test_a_tensor_without_plain_bytes(place):
    with pytest.raises(BadInput, match="'s' has no plain bytes"):
        tensors_digest({"s": torch.ones(2, 2).to_sparse()})

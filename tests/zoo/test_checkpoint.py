"""Checkpoints: opened alike every time, told apart by content, refused with a reason."""

import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from taskatlas.errors import BadInput
from taskatlas.zoo import Checkpoint, OpenedCheckpoint, read_weights
from taskatlas.zoo.checkpoint import is_hub_id


def mlp(hidden=4):
    return nn.Sequential(nn.Linear(3, hidden), nn.ReLU(), nn.Linear(hidden, 2))


@pytest.fixture
def weights(place):
    torch.manual_seed(1)
    torch.save(mlp().state_dict(), place / "net.pt")
    return place / "net.pt"


def test_a_checkpoint_opens_with_its_weights_in_evaluation_mode(weights, builder):
    opened = Checkpoint("net", weights, f"{builder}:mlp").open()
    assert isinstance(opened, OpenedCheckpoint)
    assert opened.prepare is None
    assert not any(part.training for part in opened.module.modules())
    for name, tensor in torch.load(weights).items():
        assert torch.equal(opened.module.state_dict()[name], tensor)


def test_a_checkpoint_says_how_inputs_are_prepared(weights, builder):
    assert Checkpoint("net", weights, f"{builder}:with_preparation").open().prepare([3]) == [3]


def test_a_path_may_be_a_string(weights, builder):
    checkpoint = Checkpoint("net", str(weights), f"{builder}:mlp")
    assert checkpoint.weights == weights
    checkpoint.open()


def test_a_changed_module_leaves_the_file_alone(weights, builder):
    before = weights.read_bytes()
    module = Checkpoint("net", weights, f"{builder}:mlp").open().module
    with torch.no_grad():
        module[0].weight.fill_(9)
    assert weights.read_bytes() == before


def test_real_networks_open(real_input, tmp_path):
    """Built as a bare tree of the names in the file."""
    (tmp_path / "nets.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "def tree(weights):\n"
        "    root = nn.Module()\n"
        "    for name, value in weights.items():\n"
        "        node = root\n"
        "        *path, leaf = name.split('.')\n"
        "        for part in path:\n"
        "            if not hasattr(node, part):\n"
        "                node.add_module(part, nn.Module())\n"
        "            node = getattr(node, part)\n"
        "        node.register_buffer(leaf, torch.empty_like(value))\n"
        "    return root\n"
    )
    file = real_input / "zoo/cifar10-resnets/resnet20-12fca82f.th"
    checkpoint = Checkpoint("resnet20", file, f"{tmp_path}/nets.py:tree")
    module = checkpoint.open().module
    assert torch.equal(module.layer3.get_submodule("2").bn2.running_var, read_weights(file)["layer3.2.bn2.running_var"])
    assert checkpoint.parameters == 269_722  # without the running means and variances


def test_opening_leaves_the_random_states_and_repeats(tmp_path):
    (tmp_path / "net.py").write_text(
        "import random\nimport numpy as np\nimport torch\nfrom torch import nn\n"
        "def f():\n    net = nn.Linear(2, 2)\n    net.drawn = (random.random(), np.random.rand())\n    return net\n"
    )
    checkpoint = Checkpoint("net", None, f"{tmp_path}/net.py:f")
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    first, second = checkpoint.open().module, checkpoint.open().module
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected
    assert torch.equal(first.weight, second.weight)
    assert first.drawn == second.drawn


def test_a_module_in_memory_is_never_changed():
    module = nn.Sequential(nn.Dropout(), nn.Linear(2, 1)).train()
    opened = Checkpoint("m", module=module).open()
    assert opened.module is not module
    assert not opened.module[0].training
    assert module[0].training
    module.eval()
    assert Checkpoint("m", module=module).open().module is module


def test_a_module_that_cannot_be_copied():
    module = nn.Linear(2, 1)
    module.cached = module.weight * 2
    with pytest.raises(BadInput, match="cannot be copied"):
        Checkpoint("m", module=module).open()
    assert Checkpoint("m", module=module.eval()).open().module is module


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_opening_on_a_gpu(weights, builder):
    module = Checkpoint("net", weights, f"{builder}:mlp").open("cuda").module
    assert module[0].weight.is_cuda
    held = nn.Linear(1, 1)
    assert Checkpoint("m", module=held).open("cuda").module.weight.is_cuda
    assert not held.weight.is_cuda


def test_parameters_are_counted_from_headers(weights, builder, place):
    checkpoint = Checkpoint("net", weights, f"{builder}:mlp")
    assert checkpoint.parameters == 3 * 4 + 4 + 4 * 2 + 2
    assert Checkpoint("net", weights).parameters == checkpoint.parameters
    assert Checkpoint("net", None, f"{builder}:mlp", {"hidden": 1}).parameters == 3 + 1 + 2 + 2
    assert Checkpoint("net", module=mlp()).parameters == checkpoint.parameters
    save_file({"w": torch.ones(5), "steps": torch.ones(7, dtype=torch.int64)}, place / "ints.safetensors")
    assert Checkpoint("ints", place / "ints.safetensors").parameters == 5


def test_the_digest_is_of_content(weights, builder, place, tmp_path):
    digest = Checkpoint("net", weights, f"{builder}:mlp").digest
    (place / "copy.pt").write_bytes(weights.read_bytes())
    (tmp_path / "copy.py").write_bytes(Path(builder).read_bytes())
    assert Checkpoint("other name", place / "copy.pt", f"{tmp_path}/copy.py:mlp", task="digits").digest == digest
    torch.save(mlp().state_dict(), place / "other.pt")
    (tmp_path / "edited.py").write_bytes(Path(builder).read_bytes() + b"\n# edited\n")
    others = [
        Checkpoint("net", place / "other.pt", f"{builder}:mlp"),
        Checkpoint("net", weights, f"{builder}:needs"),
        Checkpoint("net", weights, f"{builder}:mlp", {"hidden": 4}),
        Checkpoint("net", weights, f"{tmp_path}/edited.py:mlp"),
        Checkpoint("net", weights),
        Checkpoint("net", None, f"{builder}:mlp"),
    ]
    assert len({digest, *(other.digest for other in others)}) == 7


def test_the_digest_of_a_module_is_of_its_tensors_and_code():
    torch.manual_seed(0)
    module = mlp().to(torch.bfloat16)
    digest = Checkpoint("m", module=module).digest
    assert Checkpoint("n", module=module.train()).digest == digest
    relu_gone = nn.Sequential(module[0], nn.GELU(), module[2])
    assert Checkpoint("m", module=relu_gone).digest != digest
    with torch.no_grad():
        module[0].bias[0] += 1
    assert Checkpoint("m", module=module).digest != digest


def test_a_checkpoint_travels_to_another_process(weights, builder):
    checkpoint = Checkpoint("net", weights, f"{builder}:mlp", {"hidden": 4}, "digits")
    again = pickle.loads(pickle.dumps(checkpoint))
    assert again == checkpoint
    assert hash(again) == hash(checkpoint)
    assert again.digest == checkpoint.digest


def test_a_short_repr(weights):
    assert repr(Checkpoint("net", weights, "a.py:f", task="digits")) == (
        f"Checkpoint('net', weights='{weights}', task='digits', builder='a.py:f')"
    )
    assert repr(Checkpoint("net", module=mlp())) == "Checkpoint('net', module=Sequential)"


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("gpt2", True),
        ("FacebookAI/roberta-base", True),
        ("google/bert_uncased_L-2_H-128_A-2", True),
        ("a/b/c", False),
        ("./a", False),
        ("/a", False),
        ("a/net.pt", False),
        ("org/model.v2", True),
        ("", False),
        ("../a", False),
    ],
)
def test_hub_ids_and_paths(text, is_one):
    assert is_hub_id(text) is is_one


# Attacks


@pytest.mark.parametrize(
    "name", ["", " ", "/", "a/", "/a", "a//b", "..", "a/../b", ".", "a\\b", "C:/x", "a\nb", "a\0", " a"]
)
def test_a_name_that_is_none(name):
    with pytest.raises(BadInput, match="name"):
        Checkpoint(name)


def test_weights_without_a_builder(weights):
    checkpoint = Checkpoint("net", weights)
    assert len(checkpoint.digest) == 64
    with pytest.raises(BadInput, match=r"net has weights .*net\.pt.*--builder file\.py:function.*zoo\.yaml"):
        checkpoint.open()


def test_weights_that_do_not_fit(weights, builder):
    with pytest.raises(BadInput) as caught:
        Checkpoint("net", weights, f"{builder}:mlp", {"hidden": 5}).open()
    message = str(caught.value)
    assert str(weights) in message
    assert f"{builder}:mlp" in message
    assert "3 of another shape (0.weight is (4, 3) in the weights and (5, 3) in the module, 0.bias" in message


@pytest.mark.parametrize("ask", [Checkpoint.open, lambda c: c.digest, lambda c: c.parameters])
def test_missing_weights(place, builder, ask):
    with pytest.raises(BadInput, match=r"no weights at .*gone\.pt"):
        ask(Checkpoint("net", place / "gone.pt", f"{builder}:mlp"))


def test_a_hub_id_for_a_local_builder(builder):
    checkpoint = Checkpoint("net", "some/model", f"{builder}:mlp")
    for ask in (Checkpoint.open, lambda c: c.digest):
        with pytest.raises(BadInput, match=r"no file or folder 'some/model'.*transformers"):
            ask(checkpoint)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "tpu7"])
def test_a_device_that_is_not_there(device):
    with pytest.raises(BadInput, match=f"no device '{device}'.*cpu"):
        Checkpoint("m", module=mlp()).open(device)


def test_arguments_that_are_no_plain_values(weights, builder):
    with pytest.raises(BadInput, match="arguments of net"):
        _ = Checkpoint("net", weights, f"{builder}:mlp", {"hidden": object()}).digest

"""Material for the tests of the command line: tiny networks, their builder, samples; and a command that ran."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

SOURCE = Path(__file__).parents[2] / "src"

MAP = ("map", "zoo", "--probe", "probe.npz", "--builder", "nets.py:mlp")
TRANSFER = ("transfer", "zoo", "--train", "train.npz", "--test", "test.npz", "--builder", "nets.py:mlp", "--random", 2)

# A network's width is read from its weights. Beside a file "slow", the network "b" says that it was reached and waits.
BUILDER = """
import time
from pathlib import Path

from torch import nn

HERE = Path(__file__).parent


class Net(nn.Sequential):
    def forward(self, x):
        if (HERE / "slow").exists() and self[0].out_features == 6:
            (HERE / "reached").touch()
            time.sleep(120)
        return super().forward(x)


def mlp(weights):
    hidden = weights["0.weight"].shape[0]
    return Net(nn.Linear(6, hidden), nn.ReLU(), nn.Linear(hidden, 3))
"""


class Ran(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        """The whole of standard output as one document."""
        return json.loads(self.out)


def write_network(file, seed, hidden):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, hidden), nn.ReLU(), nn.Linear(hidden, 3))
    save_file(net.state_dict(), file)


def write_run(file, seed=0, steps=6, samples=20, classes=4, **others):
    """A run that comes closer to labels(samples, classes), with noise of its own, as a NumPy archive."""
    random = np.random.default_rng((seed, 3))
    labels = np.arange(samples) % classes
    pace = 0.7 * np.arange(steps)[:, None, None]
    logits = pace * np.eye(classes)[labels] + 0.4 * random.standard_normal((steps, samples, classes))
    fields = {"logits": logits, "steps": 10 * np.arange(steps), "labels": labels} | others
    np.savez(file, **{name: value for name, value in fields.items() if value is not None})


def write_material(folder):
    """nets.py, three checkpoints a, b, c in zoo/, samples with two classes, and three runs in runs/."""
    (folder / "runs").mkdir()
    for seed, name in enumerate(("cats-0", "cats-1", "dogs")):
        write_run(folder / "runs" / f"{name}.npz", seed, steps=6 - seed)
    (folder / "nets.py").write_text(BUILDER)
    (folder / "zoo").mkdir()
    for seed, (name, hidden) in enumerate({"a": 5, "b": 6, "c": 7}.items()):
        write_network(folder / "zoo" / f"{name}.safetensors", seed, hidden)
    x = np.random.default_rng(0).standard_normal((70, 6)).astype(np.float32)
    y = (x[:, 0] + x[:, 1] > 0).astype(int)
    np.savez(folder / "probe.npz", x=x[:30])
    np.savez(folder / "train.npz", x=x[30:50], y=y[30:50])
    np.savez(folder / "test.npz", x=x[50:], y=y[50:])


def snapshot(folder):
    """Every file under a folder, hidden ones too, with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def start(folder, *arguments, **environment):
    """The command in a process of its own."""
    path = os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-m", "taskatlas", *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=interruptible,  # noqa: PLW1509 (no threads run here)
    )


def interruptible():
    """Lets a process be interrupted even where the tests run in the background of a shell, which ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run_apart(folder, *arguments, **environment):
    """The command in a process of its own, until it ends."""
    process = start(folder, *arguments, **environment)
    out, err = process.communicate(timeout=120)
    return Ran(process.returncode, out, err)

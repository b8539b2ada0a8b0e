"""Trace trainings: the room of paths in one sitting.

Run it with ``python tutorials/trace_a_training.py``; it needs nothing but taskatlas. Every step prints what it found.
The tests run this file, so what it says is true.
"""

# %% A probe is what the network is asked at every snapshot: samples that it does not train on, with their true labels.
import tempfile
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits

import taskatlas as ta
from taskatlas.learn import mlp
from taskatlas.paths import read_record, trace_runs

folder = Path(tempfile.mkdtemp())
digits = load_digits()
images, labels = (digits.data / 16).astype(np.float32), digits.target.astype(np.int64)
learn, asked = np.split(np.random.default_rng(0).permutation(len(labels))[:1000], [700])
probe = ta.Probe.from_arrays(images[asked], labels=labels[asked])
print(probe)


# %% A recorder goes into any training loop: call it at every step, and its schedule decides when a snapshot is due,
# often at first and seldom later. The training goes on as if it were not there. Each snapshot is on disk at once, so a
# run that is killed keeps what it has. (Inside other loops: recorder.hugging_face(), recorder.lightning().)
def train(name: str, seed: int, targets: np.ndarray, file: str) -> None:
    """Trains a small network on the targets and records it."""
    torch.manual_seed(seed)
    net, order = mlp(64, (32, 16), 10), np.random.default_rng(seed)
    optimiser = torch.optim.AdamW(net.parameters(), lr=4e-3)
    recorder, step = ta.Recorder(probe, folder / file, name=name), 0
    for _ in range(15):
        for rows in np.array_split(order.permutation(len(targets)), 11):
            recorder(net, step)
            optimiser.zero_grad()
            outputs = net(torch.from_numpy(images[learn][rows]))
            torch.nn.functional.cross_entropy(outputs, torch.from_numpy(targets[rows])).backward()
            optimiser.step()
            step += 1
    recorder.record(net, step)


train("digits", 0, labels[learn], "digits-0.record")
train("digits", 1, labels[learn], "digits-1.record")  # the same name: another seed of the same task
train("shuffled", 0, np.random.default_rng(2).permutation(labels[learn]), "shuffled.record")

# %% A record is read as a run: log-probabilities (snapshots, samples, classes), steps, sample ids and labels.
runs = [read_record(folder / file) for file in ("digits-0.record", "digits-1.record", "shuffled.record")]
first, second, shuffled = runs
print(first)

# %% Progress is the place on the shortest way from ignorance (every class alike) to the truth that is nearest to a
# snapshot: 0 to 1. It falls back at times; re-indexing by progress takes the first passage and says what it skipped.
print("progress:", first.progress().round(2))
print("accuracy:", first.accuracy().round(2))
print("fell back:", first.regressions())

# %% Length is measured in Fisher's metric, in which the shortest way from ignorance to the truth of ten classes is
# 2 arccos(1/sqrt(10)) long. Tortuosity is a path's length over that of the shortest way between its own ends.
print(f"shortest way: {2 * np.arccos(1 / np.sqrt(10)):.2f}")
for name, run in zip(("digits, seed 0", "digits, seed 1", "shuffled"), runs, strict=True):
    print(f"{name}: length {run.length():.2f}, tortuosity {run.tortuosity():.2f}, progress {run.progress()[-1]:.2f}")

# %% How far apart are two runs? At equal progress, not at equal step. The run on shuffled labels makes no progress, so
# it is compared as a path (Fréchet's distance, which needs none).
print(f"two seeds, at equal progress: {ta.trajectory_distance(first, second):.4f} nat")
for other in (second, shuffled):
    print(f"to {other.name}, as paths: {ta.trajectory_distance(first, other, method='frechet'):.4f} nat")

# %% One map for all of them. InPCA keeps the sign of every axis: a time-like one counts negative in distances.
fit = ta.InPCA(n_components=5).fit(runs)
found = fit.as_embedding()
print(found)
for axis in range(5):
    print(found.axis_label(axis))

# %% Is a new model on the map? Where would the truth lie, and how much of its distance do these axes miss?
truth = found.paths[0]
print(f"the truth lies at {truth.coordinates[-1, :2].round(2)}, residual {truth.residuals[-1]:.2f}")

# %% All at once, with 95 % intervals over the probe's samples and over seeds. It is what `taskatlas trace FOLDER
# --distance frechet --bootstrap 20` does, which writes tables and pictures; `taskatlas report` makes a page of them.
trace = trace_runs(runs, distance="frechet", bootstrap=20)
print(trace)
low, high = trace.intervals["samples"]["length"]["digits #1"]
print(f"length of the first run: {trace.runs[0].length:.2f}, 95 % over samples {low:.2f} to {high:.2f}")
low, high = trace.intervals["seeds"]["length"]["digits"]
print(f"mean length over seeds, 95 %: {low:.2f} to {high:.2f}")
print("tree:", trace.tree.newick())

# %% Everything draws itself, and saves and opens again. A trajectory file stays on disk when it is opened.
ax = trace.embedding.plot(tasks=trace.task_of)
ax.figure.savefig(folder / "map.png")
trace.tree.plot().savefig(folder / "distances.png")
first.save(folder / "first.safetensors")
assert ta.Trajectory.load(folder / "first.safetensors").digest == first.digest
print("recorded, saved and drawn in", folder)

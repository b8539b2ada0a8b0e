"""Map a zoo and pick from it: the room of task spaces in one sitting.

Run it with ``python tutorials/map_a_zoo.py``; it needs nothing but taskatlas. Every step
prints what it found. The tests run this file, so what it says is true.
"""

# %% A zoo is an ordered mapping of names to checkpoints. Anything will do: a folder, hub ids, or, here, modules in
# memory.
import tempfile
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits

import taskatlas as ta
from taskatlas.learn import mlp, train

digits = load_digits()
images, labels = (digits.data / 16).astype(np.float32), digits.target.astype(np.int64)
learn, probe_rows, few, held_out = np.split(np.random.default_rng(0).permutation(len(labels)), [700, 1100, 1150])

questions = {
    "odd": labels % 2,
    "by-three": labels % 3,
    "large": (labels >= 5).astype(np.int64),
    "loop": np.isin(labels, [0, 6, 8, 9]).astype(np.int64),
    "prime": np.isin(labels, [2, 3, 5, 7]).astype(np.int64),
}
torch.manual_seed(0)
networks = {name: mlp(64, (32, 16), int(answers.max()) + 1) for name, answers in questions.items()}
train(
    list(networks.values()),
    torch.from_numpy(images[learn]),
    [torch.from_numpy(answers[learn]) for answers in questions.values()],
    epochs=40,
    learning_rate=2e-3,
)
zoo = ta.Zoo.open(networks)
print(zoo)

# %% A probe is what every checkpoint sees: the same samples in the same order. It needs no labels.
probe = ta.Probe.from_arrays(images[probe_rows])
print(probe)

# %% The map: how alike two networks arrange the probe, as a covariance with bootstrap intervals.
space = ta.map_tasks(zoo, probe, bootstrap=50)
print(space)
low, high = space.interval(0.95)
i, j = space.names.index("odd"), space.names.index("by-three")
print(f"odd and by-three: {space['odd', 'by-three']:.2f}, 95 % interval {low[i, j]:.2f} to {high[i, j]:.2f}")

# %% Biased CKA is inflated when there are few samples for many features. The debiased estimate says by how much.
debiased = ta.map_tasks(zoo, probe, kernel="debiased_cka")
print(f"mean covariance, biased {space.covariance.mean():.3f}, debiased {debiased.covariance.mean():.3f}")

# %% How much probe is enough? The divergence from the whole probe's covariance, as the probe grows.
features = [ta.extract(checkpoint, probe) for checkpoint in zoo.values()]
growth = ta.probe_growth(features, sizes=[25, 50, 100, 200])
print(growth)

# %% Selection: the few networks that tell most about the rest, with the gain of each step in nats and the runner-up.
pick = ta.select(space, k=2)
for step in pick.steps:
    print(f"{step.picked}: +{step.gain:.3f} nats, ahead of {step.runner_up} by {step.margin:.3f}")
print("how often each is picked on half-probes:", ta.pick_probabilities(space, k=2))

# %% Some checkpoints are given, forbidden or expensive.
print(ta.select(space, k=2, start=["large"], exclude=["odd"]))
print(ta.select(space, budget=3.0, cost={name: 1.0 + (name == "by-three") for name in zoo}))

# %% What is the selection worth? A linear head on the picked networks' joined features learns an unseen task from few
# labels; random selections of the same size are the yardstick.
train_probe = ta.Probe.from_arrays(images[few], labels=labels[few])
test_probe = ta.Probe.from_arrays(images[held_out], labels=labels[held_out])
worth = ta.transfer(zoo, pick, train_probe, test_probe)
print(worth)

# %% With labels for the target, features can be scored without training a head, and ranked so that the next pick adds
# something to those before it.
target = labels[few]
relevance = {name: ta.log_me(ta.extract(zoo[name], train_probe).values, target) for name in zoo}
print(ta.rank_for_target(space, relevance, k=3))

# %% Everything saves and opens again, and draws itself.
with tempfile.TemporaryDirectory() as folder:
    space.save(Path(folder) / "space.npz")
    again = ta.TaskSpace.load(Path(folder) / "space.npz")
    assert again.digest == space.digest
    space.plot().figure.savefig(Path(folder) / "space.png")
    print("saved, opened and drawn in", folder)

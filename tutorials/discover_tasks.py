"""Find what a network generalises on, and the split that breaks it: the room of tasks in one sitting.

Run it with ``python tutorials/discover_tasks.py``; it needs nothing but taskatlas. Every step prints what it found.
The tests run this file, so what it says is true.
"""

# %% A task is a label for every sample. Data are a probe: arrays, images, texts.
import tempfile
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score

import taskatlas as ta
from taskatlas.tasks import controls, coverage, group_target, mean_similarity, measure_splits

torch.set_num_threads(1)  # tiny networks: a second thread is waited for longer than it helps
digits = load_digits()
data = ta.Probe.from_arrays((digits.data / 16).astype(np.float32), labels=digits.target).take(np.arange(900))
human = ta.human_tasks(data, 2)  # five digits against five, in lexicographic order; there are 126
print(human[0])

# %% Agreement: two networks, trained apart on a task, say the same about samples that neither saw. Beside it stand its
# nulls: random labels of the same rates, and tasks that untrained networks compute. The lift over these is the finding.
training = ta.Training(epochs=15, batch_size=64, learning_rate=3e-3)
scores = ta.agreement_scores(human, "mlp", data, training=training, seeds=2, nulls=1)
for score in scores:
    print(score, f"accuracy {score.accuracy:.3f}, fit {score.fit:.3f}")

# %% Discovery: an encoder learns to label samples so that fresh networks, trained on its labels, agree. No label is
# used. (A search this short is only a beginning: the defaults take three times as many steps.)
search = ta.Search(steps=40, inner_steps=20, inner_rate=0.4, batch_size=96, asked=96)
found = ta.discover_tasks(data, "mlp", n_tasks=3, width=4, search=search)
print(found)
print(f"mean similarity of pairs {mean_similarity(found.tasks):.3f}; .5 is unrelated")
lifts = ta.agreement_scores(found.tasks, "mlp", data, training=training, seeds=2, nulls=1, least=0.0)
for score in lifts:
    print(score)

# %% What is a task? What it goes by, and the known tasks that it resembles; draw_portrait shows its surest samples.
for portrait in ta.portray(found.tasks, data, known=ta.human_tasks(data)):
    print(portrait, dict(list(portrait.resembles.items())[:1]))
print("covered by a linear probe:", coverage(found.embedding, data.ids, human))

# %% A split that breaks a network: train where an easier task agrees with the target, test where it does not. Each
# stands beside a split by a random task and a random split of the same size.
target = group_target(data, [0, 1, 2, 3, 4])
ranked = ta.rank_splits(target, found.tasks, "mlp", data, training=training, seeds=2)
worst, damage = ranked[0]
print(worst, damage, sep="\n")

# %% A split is a scikit-learn splitter, a pair of torch Subsets, a column of a Hugging Face data set, a CSV.
accuracy = cross_val_score(LogisticRegression(max_iter=500), digits.data[:900], worst.target, cv=worst)
print(f"logistic regression on the same split: {accuracy[0]:.3f}")
train, test = worst.subsets(list(range(900)))
folder = Path(tempfile.mkdtemp())
worst.save(folder / "worst.npz")
worst.save_group_dro(folder / "partition.csv")
print(ta.Split.load(folder / "worst.npz").manifest()["class_shares"])

# %% A split needs no discovery: a network that never learned anything halves every class by its own logit.
untrained = ta.untrained_split(target, "mlp", data)
falls = measure_splits(
    [untrained, controls(target, untrained)["random split"]], "mlp", data, training=training, seeds=2
)
print(f"untrained {falls[0].accuracy:.3f}, random split of the same size {falls[1].accuracy:.3f}")

"""The room of tasks as slow and obvious as it can be written, in float64."""

import itertools
import math

import numpy as np
import torch


def similarity(a, b):
    """The best renaming, found by trying all."""
    classes = max(a.max(), b.max()) + 1
    best = 0.0
    for names in itertools.permutations(range(classes)):
        best = max(best, sum(names[x] == y for x, y in zip(a, b, strict=True)) / len(a))
    return best


def uniformity(h, t=2.0):
    """Equation of the loss, pair by pair."""
    pairs = [math.exp(-t * float(((a - b) ** 2).sum())) for i, a in enumerate(h) for b in h[i + 1 :]]
    return math.log(sum(pairs) / len(pairs)) + 4 * t


def pairwise_information(labels):
    """Tables counted sample by sample."""
    tasks, n, classes = labels.shape

    def entropy(p):
        return -sum(x * math.log(x) for x in np.ravel(p) if x > 0)

    rates = [labels[i].mean(0) for i in range(tasks)]
    lacking = math.log(classes) - np.mean([entropy(rate) for rate in rates])
    found = []
    for i in range(tasks):
        for j in range(i + 1, tasks):
            table = sum(np.outer(labels[i, s], labels[j, s]) for s in range(n)) / n
            found.append(entropy(rates[i]) + entropy(rates[j]) - entropy(table))
    return np.mean(found) + lacking


def objective(modules, samples, labels, asked, steps, rate):
    """Each learner trained by itself with plain loops, then compared; the mean over tasks of the symmetric loss."""
    answers = []
    for number, module in enumerate(modules):
        task, which = divmod(number, 2)
        weights = {name: value.detach().clone() for name, value in module.named_parameters()}
        for _ in range(steps):
            leaves = {name: value.requires_grad_() for name, value in weights.items()}
            logs = torch.func.functional_call(module, leaves, (samples[which],)).log_softmax(-1)
            loss = -(labels[task, which] * logs).sum(-1).mean()
            gradients = torch.autograd.grad(loss, list(leaves.values()))
            weights = {
                name: (value - rate * gradient).detach()
                for (name, value), gradient in zip(leaves.items(), gradients, strict=True)
            }
        answers.append(torch.func.functional_call(module, weights, (asked,)).softmax(-1))
    total = 0.0
    for task in range(len(modules) // 2):
        p, q = answers[2 * task], answers[2 * task + 1]
        total += float(-0.5 * ((p * q.log()).sum(-1) + (q * p.log()).sum(-1)).mean())
    return total / (len(modules) // 2)

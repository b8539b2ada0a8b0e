"""Data-adaptive fusion as slow and obvious as it can be: dictionaries, one graph through everything, float64."""

import torch
from torch.func import functional_call


def merged(base, experts, coefficients):
    """θ₀ + Σ_i λ_i (θ_i − θ₀), tensor by tensor; λ is (N,) or (N, T)."""
    found = {}
    for t, (name, value) in enumerate(base.items()):
        total = value
        for i, expert in enumerate(experts):
            scale = coefficients[i] if coefficients.ndim == 1 else coefficients[i, t]
            total = total + scale * (expert[name] - value)
        found[name] = total
    return found


def hypernetwork(weights, features, shape):
    """Two layers written out."""
    first, first_bias, second, second_bias = weights
    hidden = torch.clamp(features @ first.T + first_bias, min=0)
    return (hidden @ second.T + second_bias).reshape(len(features), *shape)


def entropy(logits):
    p = torch.exp(logits) / torch.exp(logits).sum(-1, keepdim=True)
    return -(p * torch.log(p)).sum(-1).mean()


def marginal_entropy(logits):
    p = (torch.exp(logits) / torch.exp(logits).sum(-1, keepdim=True)).mean(0)
    return -(p * torch.log(p)).sum()


def fuse(network, base, experts, weights, shape, steps, learning_rate, diversity=0.0):
    """Trains copies of the hypernetwork's weights.

    Args:
        network: runs merged tensors.
        base: tensors by name.
        experts: tensors by name of every expert, in order.
        weights: of the hypernetwork at the start.
        shape: of the coefficients.
        steps: for each step, for each task (inputs, features).
        learning_rate: of Adam.
        diversity: weight of the marginal entropy.

    Returns:
        The hypernetwork's weights, and the gradient of each task's mean coefficients in the last step.
    """
    weights = [value.clone().requires_grad_() for value in weights]
    descent = torch.optim.Adam(weights, lr=learning_rate)
    gradients = []
    for step in steps:
        descent.zero_grad()
        total, means = 0, []
        for inputs, features in step:
            coefficients = hypernetwork(weights, features, shape).mean(0)
            coefficients.retain_grad()
            means.append(coefficients)
            logits = functional_call(network, merged(base, experts, coefficients), (inputs,))
            total = total + entropy(logits) - diversity * marginal_entropy(logits)
        total.backward()
        gradients = [mean.grad for mean in means]
        descent.step()
    return [value.detach() for value in weights], gradients

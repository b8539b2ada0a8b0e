"""The meta-gradient against finite differences and a straight-line reference; segments, truncation, failures."""

import copy

import pytest
import torch
from tests.references import tasks as reference

from taskatlas.errors import BadInput, WorkFailed
from taskatlas.learn import mlp, resnet18, small_cnn, vit
from taskatlas.tasks.unrolled import _objective, _train, sqrt_segment, stack_learners, unrolled_gradient

STEPS, RATE = 6, 0.5


def setting(tasks=2, classes=2, n=5, asked=4, d=3, seed=0):
    """Tiny learners in float64, and a batch of soft labels."""
    torch.manual_seed(seed)
    modules = [mlp(d, (4,), classes).double() for _ in range(2 * tasks)]
    for module in modules:
        module[1] = torch.nn.Tanh()  # smooth, so that finite differences have no kinks to fall over
    samples, other = torch.randn(2, n, d, dtype=torch.double), torch.randn(asked, d, dtype=torch.double)
    labels = torch.randn(tasks, 2, n, classes, dtype=torch.double).softmax(-1)
    return modules, samples, labels, other


def run(modules, samples, labels, asked, **settings):
    weights, forward = stack_learners(copy.deepcopy(modules))
    return unrolled_gradient(forward, weights, samples, labels, asked, **{"steps": STEPS, "rate": RATE, **settings})


@pytest.mark.parametrize("classes", [2, 3])
def test_the_objective_is_the_references(classes):
    material = setting(classes=classes)
    assert run(*material).objective.item() == pytest.approx(reference.objective(*material, STEPS, RATE), abs=1e-12)


@pytest.mark.parametrize("segment", [None, 1, 2, 4])
def test_the_gradient_agrees_with_finite_differences(segment):
    modules, samples, labels, asked = setting()
    gradient = run(modules, samples, labels, asked, segment=segment).gradient
    assert gradient.abs().max() > 1e-4
    small = 1e-6
    for place in [(0, 0, 0, 0), (0, 1, 2, 1), (1, 0, 4, 0), (1, 1, 3, 1)]:
        up, down = labels.clone(), labels.clone()
        up[place] += small
        down[place] -= small
        ends = [reference.objective(modules, samples, one, asked, STEPS, RATE) for one in (up, down)]
        assert gradient[place].item() == pytest.approx((ends[0] - ends[1]) / (2 * small), rel=1e-5, abs=1e-9)


def test_segments_change_nothing_but_rounding():
    material = setting(tasks=3)
    whole = run(*material)
    for segment in (1, 4, 5, 99):
        found = run(*material, segment=segment)
        assert found.objective == pytest.approx(whole.objective.item(), abs=1e-14)
        torch.testing.assert_close(found.gradient, whole.gradient, atol=1e-14, rtol=1e-10)


def test_truncation_leaves_out_the_first_steps():
    modules, samples, labels, asked = setting()
    whole = run(modules, samples, labels, asked)
    torch.testing.assert_close(run(modules, samples, labels, asked, truncate=STEPS).gradient, whole.gradient)
    short = run(modules, samples, labels, asked, truncate=2)
    assert short.objective == pytest.approx(whole.objective.item())
    assert not torch.allclose(short.gradient, whole.gradient)
    torch.testing.assert_close(run(modules, samples, labels, asked, truncate=2, segment=1).gradient, short.gradient)
    # Truncated, the gradient is that of training on from where the first steps led.
    weights, forward = stack_learners(copy.deepcopy(modules))
    reached, _ = _train(forward, weights, samples, labels, STEPS - 2, RATE, graph=False)
    later = unrolled_gradient(forward, reached, samples, labels, asked, steps=2, rate=RATE)
    torch.testing.assert_close(later.gradient, short.gradient)


@pytest.mark.parametrize("graph", [False, True])
def test_first_order_gradients_would_be_zero(graph):
    """Without second derivatives nothing reaches the labels: why all this is done."""
    modules, samples, labels, asked = setting()
    weights, forward = stack_learners(modules)
    weights = {name: value.requires_grad_() for name, value in weights.items()}
    labels.requires_grad_()
    reached, _ = _train(forward, weights, samples, labels, STEPS, RATE, graph=graph)
    objective, _ = _objective(forward, reached, asked)
    gradient = torch.autograd.grad(objective, labels, allow_unused=True)[0] if objective.requires_grad else None
    assert (gradient is not None and bool(gradient.abs().max() > 0)) == graph


def test_learners_in_turn_are_those_at_once():
    modules, samples, labels, asked = setting(tasks=3)
    whole = run(modules, samples, labels, asked)
    weights, forward = stack_learners(copy.deepcopy(modules), at_once=False)
    found = unrolled_gradient(forward, weights, samples, labels, asked, steps=STEPS, rate=RATE)
    assert found.objective == pytest.approx(whole.objective.item(), abs=1e-14)
    torch.testing.assert_close(found.gradient, whole.gradient, atol=1e-14, rtol=1e-10)


def test_learners_whose_class_is_made_with_them_are_stacked():
    def make():
        class Own(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.head = torch.nn.Linear(3, 2)

            def forward(self, x):
                return self.head(x)

        return Own()

    weights, forward = stack_learners([make(), make()])
    assert forward(weights, torch.zeros(2, 5, 3)).shape == (1, 2, 5, 2)


def test_a_task_does_not_see_the_others():
    modules, samples, labels, asked = setting(tasks=3)
    together = run(modules, samples, labels, asked)
    for task in range(3):
        alone = run(modules[2 * task : 2 * task + 2], samples, labels[task : task + 1], asked)
        torch.testing.assert_close(3 * together.gradient[task], alone.gradient[0])
        assert together.agreement[task] == alone.agreement[0]


@pytest.mark.parametrize(
    "make", [lambda: small_cnn(3, 2, width=4), lambda: resnet18(3, 2, width=16), lambda: vit((3, 8, 8), 2, depth=1)]
)
def test_other_learners_can_be_differentiated_twice(make):
    torch.manual_seed(0)
    weights, forward = stack_learners([make() for _ in range(2)])
    found = unrolled_gradient(
        forward,
        weights,
        torch.randn(2, 4, 3, 8, 8),
        torch.randn(1, 2, 4, 2).softmax(-1),
        torch.randn(3, 3, 8, 8),
        steps=2,
        rate=0.1,
    )
    assert found.gradient.isfinite().all()
    assert found.gradient.abs().max() > 0


def test_batch_statistics_are_those_of_the_batch_at_hand():
    def make():
        return torch.nn.Sequential(
            torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 2)
        )

    torch.manual_seed(0)
    modules = [make() for _ in range(2)]
    weights, forward = stack_learners(copy.deepcopy(modules))
    x = torch.randn(2, 7, 3)
    hidden = modules[0][0](x[0])
    normed = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(forward(weights, x)[0, 0], modules[0][3](normed))


def test_a_loss_that_becomes_nan_names_its_step():
    modules, samples, labels, asked = setting()
    with pytest.raises(WorkFailed, match=r"inner step \d+ of 6.*below 1e\+308"):
        run(modules, samples, labels, asked, rate=1e308)
    with pytest.raises(WorkFailed, match="inner step 0 of 6"):
        run(modules, samples * float("nan"), labels, asked)


@pytest.mark.parametrize("settings", [{"steps": 0}, {"truncate": 0}, {"segment": 0}])
def test_steps_that_make_no_sense_are_refused(settings):
    with pytest.raises(BadInput, match="cannot be differentiated"):
        run(*setting(), **settings)


def test_learners_of_two_structures_are_refused():
    with pytest.raises(BadInput, match="different structures"):
        stack_learners([mlp(3, (4,), 2), mlp(3, (5,), 2)])


def test_the_root_balances():
    assert [sqrt_segment(k) for k in (1, 5, 30, 50)] == [1, 2, 5, 7]

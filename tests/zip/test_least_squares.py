"""What regressions are made of: products, moments, and equations that rounding spoilt."""

import copy

import pytest
import torch
from torch import nn

from taskatlas.merge.least_squares import RIDGE, normal_equations, ridge
from taskatlas.merge.linear_operations import LinearOperation, moments
from taskatlas.merge.network_graph import NetworkGraph
from taskatlas.merge.zipping import zip_models

CONVOLUTIONS = {
    "along one axis": (nn.Conv1d(4, 6, 3, padding=2, groups=2), (4, 9)),
    "oblong": (nn.Conv2d(3, 2, (3, 2), padding=(1, 0)), (3, 6, 5)),
    "depthwise": (nn.Conv2d(3, 3, 5, padding=2, groups=3), (3, 7, 4)),
    "of single pixels": (nn.Conv2d(3, 4, 1), (3, 4, 4)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolutions_products_are_those_of_its_rows(name):
    convolution, shape = CONVOLUTIONS[name]
    convolution = convolution.double()
    x = torch.randn(5, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    graph = NetworkGraph.of(nn.Sequential(convolution), x)
    (operation,) = filter(None, map(LinearOperation.at, graph.graph.nodes))
    y = torch.randn_like(convolution(x).detach())
    found = operation.products([x[:2], x[2:]], [y[:2], y[2:]], convolution.weight)
    expected = normal_equations([(operation.rows(x, convolution.weight), operation.columns(y))], shifted=True)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("stride", "dilation", "one"), [(1, 1, True), (2, 1, False), (1, 2, False), ((1, 2), 1, False)]
)
def test_only_convolutions_that_move_by_one_have_shared_products(stride, dilation, one):
    network = nn.Sequential(nn.Conv2d(1, 1, 3, stride=stride, dilation=dilation))
    (operation,) = filter(None, map(LinearOperation.at, NetworkGraph.of(network, torch.zeros(2, 1, 8, 8)).graph.nodes))
    assert operation.moves_by_one is one


@pytest.mark.parametrize("channel", [1, -1])
@pytest.mark.parametrize("piece", [1, 40, 2**18])
def test_moments_are_those_of_all_in_float64(channel, piece, monkeypatch):
    """Far from 0, where sums of raw squares in float32 would be off by more than the variance."""
    monkeypatch.setattr("taskatlas.merge.linear_operations._PIECE", piece)
    values = 1000 + torch.randn(30, 4, 5, 3, generator=torch.Generator().manual_seed(0))
    mean, variance = moments([values[:7], values[7:8], values[8:]], channel)
    axes = [axis for axis in range(4) if axis != channel % 4]
    assert mean.numpy() == pytest.approx(values.double().mean(axes).numpy(), rel=1e-7)
    assert variance.numpy() == pytest.approx(values.double().var(axes, correction=0).numpy(), rel=1e-4)


def test_equations_that_rounding_made_indefinite_are_solved_all_the_same():
    normal = torch.tensor([[[1.0, 2.0], [2.0, 1.0]]], dtype=torch.float64)  # eigenvalues 3 and -1
    right = torch.tensor([[[1.0], [0.0]]], dtype=torch.float64)
    found = ridge(normal, right, shifted=False)
    assert torch.allclose((normal + RIDGE * torch.eye(2)) @ found, right)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_single(dtype):
    """Sums of squares go beyond the largest number of float16, 65504."""
    values = (300 + 4 * torch.randn(32, 4, 16, 16, generator=torch.Generator().manual_seed(0))).to(dtype)
    mean, variance = moments([values, values[:0]], 1)
    assert mean.numpy() == pytest.approx(values.double().mean((0, 2, 3)).numpy(), rel=1e-6)
    assert variance.numpy() == pytest.approx(values.double().var((0, 2, 3), correction=0).numpy(), rel=1e-4)
    rows = values.flatten(1).view(1, 32, -1)[:, :, :8]
    for found, expected in zip(
        normal_equations([(rows, rows)], True), normal_equations([(rows.double(),) * 2], True), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_each_group_of_a_convolution_has_a_penalty_of_its_own():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 50, 3, dtype=torch.float64, generator=draw) * torch.tensor([1.0, 1e-4]).view(2, 1, 1)
    normal, right = x.mT @ x, x.mT @ torch.randn(2, 50, 2, dtype=torch.float64, generator=draw)
    apart = [ridge(normal[i : i + 1], right[i : i + 1], shifted=False) for i in range(2)]
    torch.testing.assert_close(ridge(normal, right, shifted=False), torch.cat(apart))


@pytest.mark.parametrize("calibration", ["reset", "repair", "least_squares"])
def test_networks_in_half_precision_are_calibrated_as_in_single(calibration):
    def network():
        norm = nn.BatchNorm2d(8)
        return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), norm, nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 4)).eval()

    torch.manual_seed(0)
    models, x = [network(), network()], 20 * torch.randn(64, 3, 8, 8)
    expected = outputs(zip_models(models, x, calibration=calibration).network, x)
    half = [copy.deepcopy(model).half() for model in models]
    found = outputs(zip_models(half, x.half(), calibration=calibration).network, x.half())
    assert float((found - expected).norm()) < 0.02 * float(expected.norm())


def outputs(network, x):
    with torch.no_grad():
        found = network(x)
    return torch.cat(found if isinstance(found, tuple) else [found]).float()

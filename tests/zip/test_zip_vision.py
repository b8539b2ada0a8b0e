"""Networks of torchvision and timm themselves, in small configurations: axes, stops, and permuted copies."""

import pytest
import torch
from tests.zip.test_zip_models import relative, run, with_weights

from taskatlas.merge.axis_groups import AxisGroups
from taskatlas.merge.axis_run import generic_weights
from taskatlas.merge.zipping import zip_models


def resnet(block, layers):
    models = pytest.importorskip("torchvision.models", reason="needs the extra vision")
    from torchvision.models import resnet

    return models.ResNet(getattr(resnet, block), layers, num_classes=5)


def vgg():
    vgg = pytest.importorskip("torchvision.models.vgg", reason="needs the extra vision")
    features = vgg.make_layers([8, "M", 12, "M"], batch_norm=True)
    with torch.device("meta"):  # its own classifier is for large images
        network = vgg.VGG(features, num_classes=5, init_weights=False)
    network.avgpool = torch.nn.AdaptiveAvgPool2d(2)
    network.classifier = torch.nn.Sequential(
        *(torch.nn.Linear(12 * 4, 20), torch.nn.ReLU(True), torch.nn.Dropout(), torch.nn.Linear(20, 5))
    )
    return network


def convnext():
    convnext = pytest.importorskip("torchvision.models.convnext", reason="needs the extra vision")
    settings = [convnext.CNBlockConfig(8, 12, 1), convnext.CNBlockConfig(12, None, 1)]
    return convnext.ConvNeXt(settings, stochastic_depth_prob=0.0, layer_scale=0.5, num_classes=5)


def densenet():
    models = pytest.importorskip("torchvision.models", reason="needs the extra vision")
    return models.DenseNet(growth_rate=4, block_config=(2, 2), num_init_features=8, bn_size=2, num_classes=5)


def of_timm(name, **sizes):
    timm = pytest.importorskip("timm", reason="needs the extra vision")
    return timm.create_model(name, pretrained=False, num_classes=5, **sizes)


CASES = {
    "ResNet, basic blocks": lambda: resnet("BasicBlock", [1, 1, 1, 1]),
    "ResNet, bottlenecks": lambda: resnet("Bottleneck", [1, 1, 1, 1]),
    "VGG": vgg,
    "ConvNeXt": convnext,
    "DenseNet": densenet,
    "timm ConvNeXt": lambda: of_timm("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 12, 16, 20)),
    "timm ViT": lambda: of_timm("vit_tiny_patch16_224", img_size=32, embed_dim=32, depth=1, num_heads=4),
}


@pytest.mark.parametrize("name", CASES)
def test_a_permuted_copy_is_aligned_back(name):
    torch.manual_seed(0)
    network = CASES[name]().eval()
    own = {key: value for key, value in generic_weights(network).items() if value.is_floating_point()}
    network.load_state_dict(network.state_dict() | {key: own[key] for key in own if key in network.state_dict()})
    data = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    groups = AxisGroups.of(network, data[:2])
    assert groups.stops
    assert all(group.taps for group in groups)
    hidden = {key for key, value in network.named_parameters() if value.ndim > 1}
    assert {member.tensor for group in groups for member in group.members} >= hidden
    other = with_weights(network, groups.permute(network.state_dict(), groups.random_permutations(3)))
    for method in ("zip", "permute"):
        zipped = zip_models([network, other], data, method=method, calibration=None, groups=groups)
        assert relative(run(zipped.network, data), run(network, data)) < 1e-4
    averaged = zip_models([network, other], data, method="identity", calibration=None, groups=groups)
    assert relative(run(averaged.network, data), run(network, data)) > 0.01

"""Small networks of the usual structures, plainly written, each with an input that it takes."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
WORDS = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(1))


def mlp(wide=1):
    return nn.Sequential(
        nn.Linear(6, 10 * wide), nn.ReLU(), nn.Linear(10 * wide, 7 * wide), nn.Tanh(), nn.Linear(7 * wide, 4)
    )


class LikeGELU(nn.Module):
    """Like GELU, of operations that round alike on every processor: nothing but rounding is left where x is -1000."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + x / (1 + x * x).sqrt()) / 2


def vgg(wide=1):
    """Convolutions, norms, in-place activations, pooling, and a flattened image of 2 x 2."""
    return nn.Sequential(
        *(nn.Conv2d(3, 8 * wide, 3, padding=1), nn.BatchNorm2d(8 * wide), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        *(nn.Conv2d(8 * wide, 12 * wide, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(12 * wide * 4, 20 * wide), nn.ReLU(), nn.Dropout(), nn.Linear(20 * wide, 5)),
    )


class Bottleneck(nn.Module):
    """As in ImageNet's ResNets."""

    def __init__(self, incoming: int, inner: int, outgoing: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(incoming, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, outgoing, 1, bias=False), nn.BatchNorm2d(outgoing)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if incoming != outgoing or stride > 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(incoming, outgoing, 1, stride, bias=False), nn.BatchNorm2d(outgoing)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(y)))))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class ImageNetResNet(nn.Module):
    """A 7 x 7 stem with pooling, two stages of bottlenecks."""

    def __init__(self, wide: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8 * wide, 7, 2, 3, bias=False), nn.BatchNorm2d(8 * wide)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        first, second = Bottleneck(8 * wide, 4 * wide, 16 * wide, 1), Bottleneck(16 * wide, 4 * wide, 16 * wide, 1)
        self.layer1 = nn.Sequential(first, second)
        self.layer2 = nn.Sequential(Bottleneck(16 * wide, 6 * wide, 24 * wide, 2))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(24 * wide, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(self.avgpool(self.layer2(self.layer1(x))), 1))


class ConvNeXt(nn.Module):
    """A patch stem, a depthwise block with a scale that starts near zero, and a downsampling layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 2, 2)
        self.depthwise, self.norm = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.LayerNorm(16)
        self.up, self.down = nn.Linear(16, 40), nn.Linear(40, 16)
        self.scale = nn.Parameter(1e-6 * torch.ones(16))
        self.reduce, self.head = nn.Conv2d(16, 24, 2, 2), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        x = x + (self.scale * self.down(F.gelu(self.up(y)))).permute(0, 3, 1, 2)
        return self.head(self.reduce(x).mean([-2, -1]))


class DenseNet(nn.Module):
    """Features that are concatenated, a transition, and a flattened concatenation."""

    def __init__(self, wide: int = 1) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(3, 8 * wide, 3, padding=1)
        self.norm1, self.conv1 = nn.BatchNorm2d(8 * wide), nn.Conv2d(8 * wide, 4 * wide, 3, padding=1)
        self.norm2, self.conv2 = nn.BatchNorm2d(12 * wide), nn.Conv2d(12 * wide, 5 * wide, 3, padding=1)
        self.norm3, self.transition = nn.BatchNorm2d(17 * wide), nn.Conv2d(17 * wide, 6 * wide, 1)
        self.conv3, self.head = nn.Conv2d(6 * wide, 3 * wide, 3, padding=1), nn.Linear(9 * wide * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv0(x)
        x = torch.cat([x, self.conv1(F.relu(self.norm1(x)))], 1)
        x = torch.cat([x, self.conv2(F.relu(self.norm2(x)))], 1)
        x = F.avg_pool2d(self.transition(F.relu(self.norm3(x))), 4)
        return self.head(torch.cat([x, self.conv3(x)], 1).flatten(1))


class UNet(nn.Module):
    """Down, up by a transposed convolution, and a skip connection that is concatenated."""

    def __init__(self, wide: int = 1) -> None:
        super().__init__()
        self.down1 = nn.Conv2d(3, 8 * wide, 3, padding=1)
        self.down2, self.norm = nn.Conv2d(8 * wide, 12 * wide, 3, padding=1), nn.BatchNorm2d(12 * wide)
        self.up = nn.ConvTranspose2d(12 * wide, 6 * wide, 2, 2)
        self.merge, self.head = nn.Conv2d(14 * wide, 10 * wide, 3, padding=1), nn.Conv2d(10 * wide, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.relu(self.down1(x))
        x = F.relu(self.norm(self.down2(F.max_pool2d(skip, 2))))
        return self.head(F.relu(self.merge(torch.cat([self.up(x), skip], dim=1))))


class ResNeXt(nn.Module):
    """A convolution in four groups of six channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 1)
        self.conv1, self.bn1 = nn.Conv2d(16, 24, 1), nn.BatchNorm2d(24)
        self.conv2, self.bn2 = nn.Conv2d(24, 24, 3, padding=1, groups=4), nn.BatchNorm2d(24)
        self.conv3, self.head = nn.Conv2d(24, 16, 1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.relu(self.bn1(self.conv1(x)))
        return self.head((x + self.conv3(F.relu(self.bn2(self.conv2(y))))).mean((2, 3)))


class SuperResolution(nn.Module):
    """Channels that are shuffled into pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 20, 3, padding=1)
        self.norm, self.head = nn.GroupNorm(1, 5), nn.Conv2d(5, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(F.pixel_shuffle(self.conv2(F.relu(self.conv1(x))), 2)))


class Filled(nn.Module):
    """Zeros into a part of which features are written."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(6, 5), nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        wide = x.new_zeros(*x.shape[:-1], 9)
        wide[..., 2:7] = self.inner(x)
        return self.head((wide + 1).relu_())


class Block(nn.Module):
    """A transformer's block around any attention, before and after which stand linear layers."""

    def __init__(self, attention: nn.Module, width: int = 32, hidden: int = 40) -> None:
        super().__init__()
        self.into, self.norm1, self.attention = nn.Linear(6, width), nn.LayerNorm(width), attention
        self.norm2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm3, self.head = nn.LayerNorm(width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        x = x + self.attention(self.norm1(x))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(self.norm3(x).mean(1))


class FusedAttention(nn.Module):
    """Query, key and value from one layer, unpacked by a view; with a norm of queries and keys if wanted."""

    def __init__(self, norm: bool = False, heads: int = 4, width: int = 32) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width // heads) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (self.norm(q) * 0.3) @ self.norm(k).transpose(-2, -1)
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, tokens, width))


class InterleavedAttention(nn.Module):
    """Every head's query, key and value side by side."""

    def __init__(self, heads: int = 4, width: int = 32) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (self.heads, -1)).transpose(1, 2).chunk(3, -1)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class GroupedAttention(nn.Module):
    """Four query heads, two key-value heads, from one layer that is split."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 64), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (-1, 8)).transpose(1, 2) for part in self.qkv(x).split([32, 16, 16], dim=-1))
        return self.out(F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2))


class TorchEncoder(nn.Module):
    """Torch's own encoder: its attention has no modules inside."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 40, batch_first=True)
        self.into = nn.Linear(6, 32)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.into(x)).mean(1))


class TorchAttention(nn.Module):
    """Torch's own attention, whose output projection is called by no module."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0]


class BareParameters(nn.Module):
    """Layers that are no modules: nothing of what they give can be seen at one."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.bias = nn.Parameter(torch.randn(6, 10)), nn.Parameter(torch.randn(10))
        self.two, self.head = nn.Parameter(torch.randn(10, 8)), nn.Parameter(torch.randn(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(torch.relu(x @ self.one + self.bias) @ self.two) @ self.head


class HandwrittenNorm(nn.Module):
    """A root-mean-square norm that is no operation of its own, in a stream that two layers write to."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.scale = nn.Linear(6, 12), nn.Parameter(torch.ones(12))
        self.up, self.down, self.head = nn.Linear(12, 9), nn.Linear(9, 12), nn.Linear(12, 4)

    def norm(self, x: Tensor) -> Tensor:
        return self.scale * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        x = x + self.down(torch.relu(self.up(self.norm(x))))
        return self.head(self.norm(x))


class FixedHeads(nn.Module):
    """Attention with a slope for each head that is no weight: heads stay, their contents move."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(32, 32) for _ in range(4))
        self.register_buffer("slope", torch.tensor([0.5, 0.25, 0.125, 0.0625]).view(4, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (4, 8)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        scores = q @ k.transpose(-2, -1) + self.slope * torch.arange(x.shape[1])
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Mixer(nn.Module):
    """Mixes tokens, then channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 4, 4), nn.LayerNorm(16)
        self.token1, self.token2 = nn.Linear(4, 7), nn.Linear(7, 4)
        self.channel1, self.channel2, self.head = nn.Linear(16, 20), nn.Linear(20, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = x + self.token2(F.gelu(self.token1(self.norm(x).mT))).mT
        return self.head((x + self.channel2(F.gelu(self.channel1(x)))).mean(1))


class Ordered(nn.Module):
    """One hidden layer is accumulated, the next goes through a Fourier transform, the last is free to move."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three, self.head = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(torch.cumsum(self.one(x), -1))
        x = torch.fft.fft(x).abs()
        return self.head(F.relu(self.three(x)))


class Branching(nn.Module):
    """What it computes depends on the values it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        if x.sum() > 0:
            x = x + 1
        return self.two(x)

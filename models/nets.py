"""One small network per way of using batch norm.

Each class names its idiom and says how many BN modules it holds. `NETS` maps a model's name to its class:
`NETS["digits_resnet"]()` is an untrained network; the weights that `train.py` found lie beside this file.
Nothing here knows of data, training or bnfold.
"""

import torch
from torch import Tensor, nn


def conv_bn(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution without bias and its batch norm; padded to keep the size at stride 1."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the shape changes. 2 or 3 BNs."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        changes_shape = stride != 1 or in_channels != out_channels
        self.downsample = conv_bn(in_channels, out_channels, 1, stride) if changes_shape else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class DigitsResNet(nn.Module):
    """Residual CNN: every BN directly after a convolution, in-place ReLU and addition. 8 BNs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(BasicBlock(16, 16))
        self.layer2 = nn.Sequential(BasicBlock(16, 32, stride=2), BasicBlock(32, 32))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer2(self.layer1(x))
        return self.fc(self.avgpool(x).flatten(1))


class SqueezeExcite(nn.Module):
    """Each channel times a gate between 0 and 1 that is computed from the channel means. No BN."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, channels // 4, 1)
        self.expand = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        squeezed = self.reduce(self.avgpool(x)).relu()
        return x * nn.functional.hardsigmoid(self.expand(squeezed))


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise 3x3, squeeze-excite, project 1x1; a shortcut where the shape stays. 3 BNs."""

    def __init__(self, in_channels: int, hidden: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.expand = conv_bn(in_channels, hidden, 1)
        self.depthwise = conv_bn(hidden, hidden, 3, stride, groups=hidden)
        self.excite = SqueezeExcite(hidden)
        self.project = conv_bn(hidden, out_channels, 1)
        self.activation = nn.Hardswish()
        self.keeps_shape = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        out = self.activation(self.expand(x))
        out = self.activation(self.depthwise(out))
        out = self.project(self.excite(out))
        return x + out if self.keeps_shape else out


class DigitsMobileNet(nn.Module):
    """Inverted bottlenecks with depthwise convolutions and squeeze-excite. 11 BNs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(1, 16, 3)
        self.blocks = nn.Sequential(
            InvertedResidual(16, 48, 16),
            InvertedResidual(16, 64, 24, stride=2),
            InvertedResidual(24, 96, 24),
        )
        self.head = conv_bn(24, 64, 1)
        self.activation = nn.Hardswish()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.activation(self.stem(x)))
        x = self.avgpool(self.activation(self.head(x)))
        return self.classifier(x.flatten(1))


class DenseLayer(nn.Module):
    """BN, ReLU, 1x1 convolution, BN, ReLU, 3x3 convolution; the result is put beside the input. 2 BNs."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(self.norm1(x).relu())
        out = self.conv2(self.norm2(out).relu())
        return torch.cat([x, out], dim=1)


class DigitsDenseNet(nn.Module):
    """Dense pre-activation net: half its BNs read a concatenation and are read by a ReLU. 19 BNs."""

    def __init__(self, growth: int = 8) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.norm0 = nn.BatchNorm2d(16)
        self.block1 = nn.Sequential(*[DenseLayer(16 + i * growth, growth) for i in range(4)])
        self.transition = nn.Sequential(
            nn.BatchNorm2d(48), nn.ReLU(), nn.Conv2d(48, 24, 1, bias=False), nn.AvgPool2d(2)
        )
        self.block2 = nn.Sequential(*[DenseLayer(24 + i * growth, growth) for i in range(4)])
        self.norm5 = nn.BatchNorm2d(56)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(56, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block1(self.norm0(self.conv0(x)).relu())
        x = self.block2(self.transition(x))
        x = self.avgpool(self.norm5(x).relu())
        return self.classifier(x.flatten(1))


class RepVGGBlock(nn.Module):
    """A 3x3 and a 1x1 branch, and an identity branch where the shape stays, summed. 2 or 3 BNs."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.rbr_dense = conv_bn(in_channels, out_channels, 3, stride)
        self.rbr_1x1 = conv_bn(in_channels, out_channels, 1, stride)
        keeps_shape = stride == 1 and in_channels == out_channels
        self.rbr_identity = nn.BatchNorm2d(in_channels) if keeps_shape else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.rbr_dense(x) + self.rbr_1x1(x)
        if self.rbr_identity is not None:
            out = out + self.rbr_identity(x)
        return out.relu()


class DigitsRepVGG(nn.Module):
    """RepVGG in training form: each block could become one 3x3 convolution. 13 BNs."""

    def __init__(self) -> None:
        super().__init__()
        self.stage0 = RepVGGBlock(1, 16)
        self.stage1 = nn.Sequential(RepVGGBlock(16, 16))
        self.stage2 = nn.Sequential(RepVGGBlock(16, 32, stride=2), RepVGGBlock(32, 32), RepVGGBlock(32, 32))
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage2(self.stage1(self.stage0(x)))
        return self.linear(self.gap(x).flatten(1))


class LinearBN(nn.Module):
    """A linear layer on (batch, token, channel) and a BN that sees all tokens as one batch. 1 BN."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.c = nn.Linear(in_features, out_features, bias=False)
        self.bn = nn.BatchNorm1d(out_features)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c(x)
        return self.bn(x.flatten(0, 1)).reshape_as(x)


class Attention(nn.Module):
    """Multi-head attention with a learnt bias per offset of two tokens on a square grid. 2 BNs."""

    offsets: Tensor

    def __init__(self, dim: int, heads: int, key_dim: int, grid: int) -> None:
        super().__init__()
        self.heads, self.key_dim, self.value_dim = heads, key_dim, 2 * key_dim
        self.scale = key_dim**-0.5
        self.qkv = LinearBN(dim, heads * (2 * self.key_dim + self.value_dim))
        self.activation = nn.Hardswish()
        self.proj = LinearBN(heads * self.value_dim, dim)
        y, x = (axis.flatten() for axis in torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij"))
        offsets = (y[:, None] - y).abs() * grid + (x[:, None] - x).abs()
        self.register_buffer("offsets", offsets)
        self.biases = nn.Parameter(torch.zeros(heads, grid * grid))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).view(batch, tokens, self.heads, -1)
        q, k, v = qkv.split([self.key_dim, self.key_dim, self.value_dim], dim=3)
        q, k, v = q.permute(0, 2, 1, 3), k.permute(0, 2, 3, 1), v.permute(0, 2, 1, 3)
        attention = (q @ k * self.scale + self.biases[:, self.offsets]).softmax(dim=-1)
        mixed = (attention @ v).transpose(1, 2).reshape(batch, tokens, self.heads * self.value_dim)
        return self.proj(self.activation(mixed))


class Residual(nn.Module):
    """What the module adds to its input. The module's BNs."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.m = module

    def forward(self, x: Tensor) -> Tensor:
        return x + self.m(x)


class DigitsLeViT(nn.Module):
    """LeViT-style hybrid: conv stem, attention on Linear+BN over flattened tokens, BN before the head. 11 BNs."""

    def __init__(self, dim: int = 32) -> None:
        super().__init__()
        self.patch_embed = nn.Sequential(conv_bn(1, 16, 3), nn.Hardswish(), conv_bn(16, dim, 3, stride=2))
        blocks: list[nn.Module] = []
        for _ in range(2):
            blocks.append(Residual(Attention(dim, heads=4, key_dim=8, grid=4)))
            blocks.append(Residual(nn.Sequential(LinearBN(dim, 2 * dim), nn.Hardswish(), LinearBN(2 * dim, dim))))
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(nn.BatchNorm1d(dim), nn.Linear(dim, 10))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch_embed(x).flatten(2).transpose(1, 2)
        return self.head(self.blocks(tokens).mean(1))


class DigitsConvMixer(nn.Module):
    """ConvMixer: every BN reads a GELU, so none can go backward into its convolution. 9 BNs."""

    def __init__(self, dim: int = 64, depth: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, dim, kernel_size=2, stride=2), nn.GELU(), nn.BatchNorm2d(dim))
        self.blocks = nn.Sequential(*[self.block(dim) for _ in range(depth)])
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(dim, 10)

    @staticmethod
    def block(dim: int) -> nn.Sequential:
        depthwise = nn.Conv2d(dim, dim, kernel_size=3, padding="same", groups=dim)
        spatial = Residual(nn.Sequential(depthwise, nn.GELU(), nn.BatchNorm2d(dim)))
        return nn.Sequential(spatial, nn.Conv2d(dim, dim, kernel_size=1), nn.GELU(), nn.BatchNorm2d(dim))

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x))
        return self.fc(self.pool(x).flatten(1))


class DigitsUNet(nn.Module):
    """Encoder-decoder that goes up by grouped transposed convolutions, each followed by BN. 7 BNs."""

    def __init__(self) -> None:
        super().__init__()
        self.encode1 = conv_bn(1, 12, 3)
        self.encode2 = conv_bn(12, 24, 3, stride=2)
        self.encode3 = conv_bn(24, 48, 3, stride=2)
        self.up2 = self.upsample(48, 24)
        self.decode2 = conv_bn(48, 24, 3)
        self.up1 = self.upsample(24, 12)
        self.decode1 = conv_bn(24, 12, 3)
        self.classify = nn.Conv2d(12, 2, 1)

    @staticmethod
    def upsample(in_channels: int, out_channels: int) -> nn.Sequential:
        conv = nn.ConvTranspose2d(in_channels, out_channels, 4, stride=2, padding=1, groups=4, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        fine = self.encode1(x).relu()
        middle = self.encode2(fine).relu()
        coarse = self.encode3(middle).relu()
        middle = self.decode2(torch.cat([self.up2(coarse).relu(), middle], dim=1)).relu()
        fine = self.decode1(torch.cat([self.up1(middle).relu(), fine], dim=1)).relu()
        return self.classify(fine)


class DigitsConv1d(nn.Module):
    """1-D convolutions over image rows; a BN standardises the input before an unpadded convolution. 5 BNs."""

    def __init__(self) -> None:
        super().__init__()
        self.standardise = nn.BatchNorm1d(8)
        self.features = nn.Sequential(
            *[nn.Conv1d(8, 32, 3, bias=False), nn.BatchNorm1d(32), nn.ReLU()],
            *[nn.Conv1d(32, 48, 3, padding=1, bias=False), nn.BatchNorm1d(48), nn.ReLU()],
            *[nn.Conv1d(48, 64, 3, padding=2, dilation=2, bias=False), nn.BatchNorm1d(64), nn.ReLU()],
            *[nn.Conv1d(64, 64, 3, padding=1, groups=2, bias=False), nn.BatchNorm1d(64), nn.ReLU()],
        )
        self.classifier = nn.Linear(64 * 6, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(self.standardise(x)).flatten(1))


class DigitsConv3d(nn.Module):
    """3-D convolutions over a short clip of a moving digit. 3 BNs."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *[nn.Conv3d(1, 12, 3, padding=1, bias=False), nn.BatchNorm3d(12), nn.ReLU()],
            *[nn.Conv3d(12, 24, 3, stride=(1, 2, 2), padding=1, bias=False), nn.BatchNorm3d(24), nn.ReLU()],
            *[nn.Conv3d(24, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm3d(32), nn.ReLU()],
        )
        self.pool = nn.AdaptiveAvgPool3d(1)
        self.classifier = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(x)).flatten(1))


class DigitsMLP(nn.Module):
    """Tabular MLP with BN before each linear layer: all go forward. 3 BNs."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *[nn.BatchNorm1d(64), nn.Linear(64, width), nn.ReLU()],
            *[nn.BatchNorm1d(width), nn.Linear(width, width), nn.ReLU()],
            *[nn.BatchNorm1d(width), nn.Linear(width, 10)],
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class DigitsSiamese(nn.Module):
    """Two images through one trunk: each of its BNs is called twice. 3 BNs, 6 calls."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            *[*conv_bn(1, 16, 3), nn.ReLU()],
            *[*conv_bn(16, 32, 3, stride=2), nn.ReLU()],
            *[*conv_bn(32, 32, 3), nn.ReLU()],
            *[nn.Flatten(), nn.Linear(32 * 16, 32)],
        )
        self.compare = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.compare((self.trunk(left) - self.trunk(right)).abs())


class DigitsDemo(nn.Module):
    """A bit of everything: BNs after convolutions, before an unpadded one and the head, two before a ReLU. 8 BNs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(1, 12, 3)
        self.block = BasicBlock(12, 12)
        self.dense = DenseLayer(12, 6)
        self.transition = nn.Sequential(nn.BatchNorm2d(18), nn.ReLU(), nn.Conv2d(18, 16, 1))
        self.reduce = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(16), nn.Conv2d(16, 24, 3, stride=2))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Sequential(nn.BatchNorm1d(24), nn.Linear(24, 10))

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.stem(x).relu())
        x = self.reduce(self.transition(self.dense(x))).relu()
        return self.head(self.pool(x).flatten(1))


NETS: dict[str, type[nn.Module]] = {
    "digits_resnet": DigitsResNet,
    "digits_mobilenet": DigitsMobileNet,
    "digits_densenet": DigitsDenseNet,
    "digits_repvgg": DigitsRepVGG,
    "digits_levit": DigitsLeViT,
    "digits_convmixer": DigitsConvMixer,
    "digits_unet": DigitsUNet,
    "digits_conv1d": DigitsConv1d,
    "digits_conv3d": DigitsConv3d,
    "digits_mlp": DigitsMLP,
    "digits_siamese": DigitsSiamese,
}

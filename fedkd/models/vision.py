"""Bodies of image models in layers of several kinds: residual, depthwise separable, attention.

All norms are of one sample (GroupNorm, LayerNorm), see `fedkd.models.zoo`.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from fedkd.models.text import Block

SLOPE = 0.1
"""Of every LeakyReLU: training on one class alone kills plain ReLU units for good; these revive."""
GROUPS = 8
PATCH = 4


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels)


def _convolution(n_in: int, n_out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Without a bias, which the norm after it has."""
    return nn.Conv2d(n_in, n_out, kernel, stride, kernel // 2, groups=groups, bias=False)


class Residual(nn.Module):
    """Two 3x3 convolutions, added to what came in, which is projected where the size changes.

    Source: basic block of He et al., CVPR 2016, with GroupNorm (Wu, He, ECCV 2018) and LeakyReLU.
    """

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            _convolution(n_in, n_out, 3, stride),
            _norm(n_out),
            nn.LeakyReLU(SLOPE),
            _convolution(n_out, n_out, 3),
            _norm(n_out),
        )
        same = stride == 1 and n_in == n_out
        self.outer = (
            nn.Identity()
            if same
            else nn.Sequential(_convolution(n_in, n_out, 1, stride), _norm(n_out))
        )

    def forward(self, x: Tensor) -> Tensor:
        """[b, n_out, h / stride, w / stride] of [b, n_in, h, w]."""
        return nn.functional.leaky_relu(self.inner(x) + self.outer(x), SLOPE)


def resnet(channels: int, widths: tuple[int, ...], blocks: int) -> nn.Sequential:
    """A 3x3 convolution, then for each width some residual blocks, all but the first halving.

    Source: the CIFAR form of He et al., whose stem neither strides nor pools. Gives
    [b, widths[-1]].
    """
    layers: list[nn.Module] = [
        _convolution(channels, widths[0], 3),
        _norm(widths[0]),
        nn.LeakyReLU(SLOPE),
    ]
    n_in = widths[0]
    for stage, n_out in enumerate(widths):
        for block in range(blocks):
            layers.append(Residual(n_in, n_out, 2 if stage and not block else 1))
            n_in = n_out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def separable(channels: int, widths: tuple[int, ...]) -> nn.Sequential:
    """A 3x3 convolution, then for each further width a depthwise and a pointwise one that halve.

    Source: Howard et al., arXiv 1704.04861 (MobileNet), much smaller. Gives [b, widths[-1]].
    """
    layers: list[nn.Module] = [_convolution(channels, widths[0], 3), _norm(widths[0])]
    for n_in, n_out in pairwise(widths):
        layers += [
            nn.LeakyReLU(SLOPE),
            _convolution(n_in, n_in, 3, stride=2, groups=n_in),
            _norm(n_in),
            nn.LeakyReLU(SLOPE),
            _convolution(n_in, n_out, 1),
            _norm(n_out),
        ]
    return nn.Sequential(*layers, nn.LeakyReLU(SLOPE), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class VisionTransformer(nn.Module):
    """Patches of 4x4 with learned positions, attention blocks, and the mean over patches.

    Source: Dosovitskiy et al., ICLR 2021, arXiv 2010.11929, with a mean instead of a class token.
    Rows and columns of pixels beyond a multiple of 4 are not seen. Gives [b, width].
    """

    def __init__(self, shape: tuple[int, int, int], *, width: int, heads: int, blocks: int) -> None:
        super().__init__()
        channels, height, wide = shape
        self.patches = nn.Conv2d(channels, width, PATCH, PATCH)
        self.positions = nn.Embedding((height // PATCH) * (wide // PATCH), width)
        self.blocks = nn.ModuleList(Block(width, heads, causal=False) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)

    def forward(self, images: Tensor) -> Tensor:
        """As said."""
        x = self.patches(images).flatten(2).transpose(1, 2)
        # One row of positions a sample: Opacus takes the first axis of any input for the samples.
        places = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
        x = x + self.positions(places)
        for block in self.blocks:
            x, _ = block(x, None)
        out: Tensor = self.norm(x).mean(dim=1)
        return out

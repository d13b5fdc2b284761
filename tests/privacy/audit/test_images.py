"""How alike images are: scikit-image and SSIM's closed form for constants are the oracles."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity

from fedkd.errors import FedkdError
from fedkd.rng import torch_stream
from privacy.audit.images import class_means, mse, pixels, psnr_db, ssim


def drawn(n: int, side: int = 9, channels: int = 1, seed: int = 1) -> torch.Tensor:
    return torch.rand((n, channels, side, side), generator=torch_stream(seed, "test"))


def test_every_pair_is_what_scikit_image_says() -> None:
    a, b = drawn(3), drawn(2, seed=2)
    alike, errors = ssim(a, b), mse(a, b)
    ratios = psnr_db(errors)
    for i in range(3):
        for j in range(2):
            one, two = a[i, 0].numpy().astype(float), b[j, 0].numpy().astype(float)
            expected = structural_similarity(one, two, data_range=1.0)
            assert alike[i, j] == pytest.approx(expected, abs=1e-12)
            assert errors[i, j] == pytest.approx(mean_squared_error(one, two), abs=1e-12)
            expected = peak_signal_noise_ratio(one, two, data_range=1.0)
            assert ratios[i, j] == pytest.approx(expected)


def test_channels_are_averaged() -> None:
    a, b = drawn(1, channels=3), drawn(1, channels=3, seed=2)
    each = [ssim(a[:, [c]], b[:, [c]])[0, 0] for c in range(3)]
    assert ssim(a, b)[0, 0] == pytest.approx(np.mean(each))


@pytest.mark.parametrize("side", [3, 4, 6, 7, 8])
def test_constants_follow_the_closed_form_at_every_size(side: int) -> None:
    a, b = torch.full((1, 1, side, side), 0.25), torch.full((1, 1, side, side), 0.75)
    brightness = (2 * 0.25 * 0.75 + 1e-4) / (0.25**2 + 0.75**2 + 1e-4)
    assert ssim(a, b)[0, 0] == pytest.approx(brightness)
    assert ssim(a, a)[0, 0] == pytest.approx(1)


def test_class_means_are_those_of_the_pixels() -> None:
    x = (drawn(6) * 255).to(torch.uint8)
    y = np.array([0, 2, 2, 0, 2, 0])
    means = class_means(x, y, 3)
    np.testing.assert_allclose(means[2], x[[1, 2, 4]].double().mean(0) / 255, atol=1e-6)
    assert means[1].isnan().all()
    assert np.isnan(ssim(x[:1].float() / 255, means)).tolist() == [[False, True, False]]


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.zeros((1, 1, 1, 8), dtype=torch.int16), "needs images"),
        (torch.zeros((1, 1, 2, 8)), "at least 3x3"),
        (torch.full((1, 1, 4, 4), 1.5), r"pixels in \[0, 1\]"),
        (torch.full((1, 1, 4, 4), float("nan")), r"pixels in \[0, 1\]"),
    ],
)
def test_what_is_not_images_is_refused(images: torch.Tensor, said: str) -> None:
    with pytest.raises(FedkdError, match=said):
        pixels(images)


def test_without_scikit_image_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage.metrics", None)
    with pytest.raises(FedkdError, match=r"fedkd\[audit\]"):
        ssim(drawn(1), drawn(1))

"""Corruptions of images: seeded, graded, and gentle with what they are given."""

from itertools import pairwise

import numpy as np
import pytest

from taskatlas.errors import BadInput
from taskatlas.merge.corruptions import CORRUPTIONS, corrupt, corrupted
from taskatlas.probe import Probe


def picture(shape=(48, 64, 3), seed=0):
    """Something with edges, smooth areas and texture."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    base = 120 + 70 * np.sin(rows / 5) * np.cos(columns / 7) + 60 * ((rows // 11 + columns // 13) % 2)
    noise = np.random.default_rng(seed).normal(0, 4, shape)
    return np.clip((base if len(shape) == 2 else base[..., None]) + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(48, 64, 3), (32, 32, 1), (28, 28), (5, 3, 3)])
def test_every_kind_keeps_shape_and_input_and_follows_its_seed(kind, shape):
    image = picture(shape)
    before = image.copy()
    found = corrupt(image, kind, 3, seed=7)
    assert found.dtype == np.uint8
    assert found.shape == shape
    assert (image == before).all()
    assert (corrupt(image, kind, 3, seed=7) == found).all()
    assert not np.shares_memory(found, image)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_it_gets_worse_with_severity(kind):
    image = picture()
    errors = [
        np.mean([np.square(corrupt(image, kind, s, seed).astype(float) - image).mean() for seed in range(5)])
        for s in range(1, 6)
    ]
    assert errors[0] > 1
    assert all(b > a for a, b in pairwise(errors)), errors


def test_strengths_are_the_stated_ones():
    grey = np.full((200, 200), 128, np.uint8)
    noise = corrupt(grey, "gaussian_noise", 1).astype(float)
    assert noise.std() == pytest.approx(0.08 * 255, rel=0.02)
    assert noise.mean() == pytest.approx(128, abs=0.5)
    impulses = corrupt(grey, "impulse_noise", 5)
    assert (impulses == 0).mean() == pytest.approx(0.135, rel=0.05)
    assert (impulses == 255).mean() == pytest.approx(0.135, rel=0.05)
    half = np.repeat(np.array([[50], [150]], np.uint8), 100, 0).repeat(200, 1)
    weak = corrupt(half, "contrast", 4)
    assert (weak.min(), weak.max()) == (95, 105)
    blocks = corrupt(picture((48, 64)), "pixelate", 5)
    assert (blocks.reshape(12, 4, 16, 4).std((1, 3)) == 0).all()
    assert (corrupt(grey, "spatter", 5) != 128).mean() == pytest.approx(0.3, abs=0.01)


def test_blur_keeps_the_light_and_spreads_a_point_along_a_line():
    point = np.zeros((101, 101), np.uint8)
    point[50, 50] = 255
    spread = corrupt(np.clip(point.astype(int) * 1, 0, 255).astype(np.uint8), "motion_blur", 5, seed=3)
    rows, columns = np.nonzero(spread)
    assert np.ptp(columns) > 12
    assert np.hypot(np.ptp(rows), np.ptp(columns)) <= 0.2 * 101 + 4
    flat = np.full((40, 40, 3), 77, np.uint8)
    assert (corrupt(flat, "motion_blur", 5) == 77).all()


def test_a_probe_is_corrupted_image_by_image():
    images = np.stack([picture((16, 16, 3), seed) for seed in range(4)])
    probe = Probe.from_arrays(images.reshape(4, -1)).ids
    probe = Probe("image", list(images), probe, np.arange(4))
    found = corrupted(probe, "gaussian_noise", 2, seed=1)
    assert found.ids == probe.ids
    assert (found.labels == probe.labels).all()
    assert (corrupted(probe.take([2]), "gaussian_noise", 2, seed=1).inputs[0] == found.inputs[2]).all()
    assert not (found.inputs[0].astype(int) - images[0] == found.inputs[1].astype(int) - images[1]).all()
    with pytest.raises(BadInput, match="no images"):
        corrupted(Probe.from_text(["a"]), "jpeg", 1)


@pytest.mark.parametrize(
    ("kind", "severity", "shape", "message"),
    [
        ("fog", 1, (8, 8, 3), "no corruption 'fog'"),
        ("jpeg", 0, (8, 8, 3), "severity 0"),
        ("jpeg", 6, (8, 8, 3), "severity 6"),
        ("jpeg", 1, (8, 8, 4), "no image"),
        ("spatter", 1, (0, 4, 3), "no image"),
        ("pixelate", 1, (4, 0), "no image"),
    ],
)
def test_bad_input(kind, severity, shape, message):
    with pytest.raises(BadInput, match=message):
        corrupt(np.zeros(shape, np.uint8), kind, severity)

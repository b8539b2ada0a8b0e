"""Batches are functions of data, recipe and step; pictures are cropped as they say; rates follow the schedule."""

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.learn.make import pictures

from taskatlas.errors import BadInput
from taskatlas.learn import Preparation, Recipe, Stream
from taskatlas.learn.pictures import varied
from taskatlas.learn.stream import batches, identity
from taskatlas.probe import Probe

VARIED = Recipe(epochs=3, batch_size=7, crop="shift", flip=True, seed=5)


def equal(one, other):
    return all(torch.equal(x, y) for a, b in zip(one, other, strict=True) for x, y in zip(a, b, strict=True))


# Batches


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_no_batch(workers):
    stream = Stream(pictures(), VARIED)
    here = list(batches(stream))
    assert len(here) == len(stream) == 15
    assert equal(here, batches(stream, workers=workers))
    assert equal(here[9:], batches(stream, 9, workers=workers))


@settings(deadline=None, max_examples=8)
@given(st.permutations(range(40)))
def test_the_order_of_samples_changes_no_batch(order):
    whole = pictures()
    one, other = Stream(whole, VARIED), Stream(whole.take(order), VARIED)
    assert equal([one[s] for s in (0, 6, 14)], [other[s] for s in (0, 6, 14)])
    assert one.digest == other.digest


def test_an_epoch_shows_every_sample_once_and_each_in_another_order():
    probe = Probe.from_arrays(np.arange(12)[:, None], labels=np.arange(12))
    stream = Stream(probe, Recipe(epochs=2, batch_size=4))
    epochs = [torch.cat([stream[s][1] for s in range(first, first + 3)]) for first in (0, 3)]
    assert all(sorted(epoch.tolist()) == list(range(12)) for epoch in epochs)
    assert not torch.equal(*epochs)
    assert all(torch.equal(stream[s][0][:, 0], stream[s][1].float()) for s in range(6))


def test_what_is_left_over_is_left_out_unless_it_is_all():
    assert len(Stream(pictures(40), Recipe(epochs=2, batch_size=16))) == 4
    few = Stream(pictures(5), Recipe(epochs=2, batch_size=16))
    assert (len(few), len(few[1][1])) == (2, 5)


def test_seeds_and_epochs_vary_the_crops():
    probe = pictures(1)
    recipe = Recipe(epochs=30, batch_size=1, crop="shift", flip=True)
    stream = Stream(probe, recipe)
    kinds = {stream[s][0].numpy().tobytes() for s in range(30)}
    assert len(kinds) > 5
    assert not equal([stream[0]], [Stream(probe, Recipe(epochs=30, batch_size=1, crop="shift", flip=True, seed=9))[0]])


def test_no_more_than_a_batch_is_in_memory():
    def peak(n):
        probe = pictures(4, side=128).take([0, 1])
        many = Probe(
            "image",
            probe.inputs.take([i % 2 for i in range(n)]),
            tuple(map(str, range(n))),
            np.zeros(n, dtype=np.int64),
        )
        stream = Stream(many, Recipe(epochs=1, batch_size=4))
        tracemalloc.start()
        for _ in batches(stream):
            pass
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(8)  # what is imported and cached on the way
    picture = 128 * 128 * 3
    assert peak(160) - peak(16) < 2 * picture  # 144 more pictures, of 49 kB each


def test_a_damaged_picture_is_named_also_by_a_worker():
    probe = pictures()
    images = [*probe.inputs.encoded.images]
    images[7] = b"cut"
    broken = type(probe.inputs)(type(probe.inputs.encoded)(tuple(images)))
    stream = Stream(Probe("image", broken, probe.ids, probe.labels), VARIED)
    for workers in (0, 1):
        with pytest.raises(BadInput, match=r"^image 7 is not an image that can be read"):
            list(batches(stream, workers=workers))


def test_identity_reads_no_sample():
    probe = pictures()
    none = type(probe.inputs)(type(probe.inputs.encoded)((b"",) * 40))
    assert identity(Probe("image", none, probe.ids, probe.labels)) == identity(probe)
    assert identity(pictures(39)) != identity(probe)
    other = probe.labels.copy()
    other[3] += 1
    assert identity(Probe("image", probe.inputs, probe.ids, other)) != identity(probe)


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        (Probe.from_arrays(np.eye(2)), "no labels"),
        (Probe.from_text(["a"], labels=[0]), "kind text"),
        (Probe.from_arrays(np.eye(2), labels=[0, -1]), "label -1"),
    ],
)
def test_what_cannot_be_streamed(probe, message):
    with pytest.raises(BadInput, match=message):
        Stream(probe, Recipe())


def test_pictures_of_several_sizes_need_one_named():
    images = [np.zeros((8, 9, 3), np.uint8), np.zeros((9, 8, 3), np.uint8)]
    probe = Probe("image", images, ("a", "b"), np.array([0, 1]))
    with pytest.raises(BadInput, match="Say to what size"):
        Stream(probe, Recipe(batch_size=2))[0]
    assert Stream(probe, Recipe(batch_size=2), Preparation(size=4))[0][0].shape == (2, 3, 4, 4)


def test_a_function_of_ones_own_prepares_the_crops():
    seen = []
    stream = Stream(pictures(), VARIED, lambda images: seen.append(images) or torch.zeros(len(images), 2))
    assert stream[0][0].shape == (7, 2)
    assert [image.shape for image in seen[0]] == [(8, 8, 3)] * 7
    assert torch.equal(stream.inputs(stream[0][0], "cpu"), torch.zeros(7, 2))


# Pictures


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 9), st.sampled_from(["none", "shift", "resized"]))
def test_a_crop_has_the_size_asked_for(height, width, size, crop):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    found = varied(pixels, crop, True, size, np.random.default_rng(1))
    assert found.shape == ((size, size, 3) if crop == "resized" else (height, width, 3))
    fitted = Preparation(size).fitted(pixels)
    assert fitted.shape == (size, size, 3)


def test_a_shift_moves_by_up_to_an_eighth():
    pixels = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
    padded = np.pad(pixels, ((2, 2), (2, 2), (0, 0)), mode="reflect")
    places = [padded[y : y + 16, x : x + 16].tobytes() for y in range(5) for x in range(5)]
    found = {varied(pixels, "shift", False, None, np.random.default_rng(seed)).tobytes() for seed in range(400)}
    assert found == set(places)


def test_half_of_the_pictures_are_flipped():
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    kinds = [varied(pixels, "none", True, None, np.random.default_rng(seed)).tobytes() for seed in range(400)]
    assert set(kinds) == {pixels.tobytes(), pixels[:, ::-1].tobytes()}
    assert 150 < kinds.count(pixels.tobytes()) < 250


def test_resized_crops_cover_small_and_large_parts():
    ramp = np.repeat(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], 64, 0).repeat(3, 2)
    spans = [
        float(np.ptp(varied(ramp, "resized", False, 16, np.random.default_rng(seed)).astype(float)))
        for seed in range(200)
    ]
    assert min(spans) < 90
    assert max(spans) > 200


def test_preparation_is_what_is_usual_for_imagenet():
    picture = np.random.default_rng(0).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    found = Preparation(4)([picture])[0].permute(1, 2, 0).double().numpy()
    expected = (picture / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    ramp = np.arange(256).repeat(512).reshape(256, 512, 1).astype(np.uint8)  # the middle of the longer side is taken
    assert Preparation(224, channels=1).fitted(ramp)[:, :, 0].T.tolist() == [list(range(16, 240))] * 224


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Preparation(size=0), "size is 0"),
        (lambda: Preparation(channels=4), "not 4"),
        (lambda: Preparation(channels=1)([np.zeros((2, 2, 3), np.uint8)]), "3 channels and the network takes 1"),
    ],
)
def test_preparations_that_are_none(make, message):
    with pytest.raises(BadInput, match=message):
        make()


# Recipes


@settings(deadline=None)
@given(st.integers(1, 300), st.floats(0, 1), st.sampled_from(["cosine", "step"]))
def test_rates_rise_in_the_warm_up_and_fall_after(steps, warmup, schedule):
    recipe = Recipe(learning_rate=2.0, warmup=warmup, schedule=schedule)
    rates = [recipe.learning_rate_at(step, steps) for step in range(steps)]
    rising = round(warmup * steps)
    assert all(0 < rate <= 2.0 for rate in rates)
    assert (np.diff(rates[:rising]) > 0).all()
    assert (np.diff(rates[rising:]) <= 0).all()


def test_rates_at_known_places():
    cosine, stepped = Recipe(learning_rate=1.0, warmup=0.0), Recipe(learning_rate=1.0, warmup=0.0, schedule="step")
    assert [cosine.learning_rate_at(step, 100) for step in (0, 50)] == pytest.approx([1, 0.5])
    assert cosine.learning_rate_at(99, 100) < 0.001
    assert [stepped.learning_rate_at(step, 90) for step in (0, 29, 30, 59, 60, 89)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": 0}, "batch size is 0"),
        ({"learning_rate": 0.0}, "learning rate is 0"),
        ({"learning_rate": float("nan")}, "learning rate is nan"),
        ({"momentum": 1.5}, "momentum is 1.5"),
        ({"weight_decay": -1.0}, "weight decay is -1"),
        ({"warmup": 2.0}, "from 0 to 1"),
        ({"label_smoothing": -0.1}, "label smoothing"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_recipes_that_are_none(wrong, message):
    with pytest.raises(BadInput, match=message):
        Recipe(**wrong)

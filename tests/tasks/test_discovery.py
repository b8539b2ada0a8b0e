"""Discovery: it improves its objective, goes on where it stopped, and says what is wrong."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from taskatlas.errors import BadInput, WorkFailed
from taskatlas.learn import mlp
from taskatlas.probe import Features, Probe
from taskatlas.tasks import Discovered, Search, Task, discover_tasks, human_tasks, similarity, similarity_matrix
from taskatlas.tasks import discovery as module
from taskatlas.tasks.encoder import TaskEncoder
from taskatlas.tasks.portrait import coverage, portray, surest
from taskatlas.tasks.samples import as_numbers, hold_out
from taskatlas.tasks.sequential import discover_in_turn

QUICK = Search(steps=3, batch_size=32, asked=32, inner_steps=4, truncate=None)


def small(shape, classes):
    return mlp(shape[0], (12,), classes)


def find(data, **settings):
    return discover_tasks(data, small, **{"n_tasks": 2, "width": 4, "search": QUICK, **settings})


def test_the_search_finds_tasks_on_which_learners_agree(blobs):
    search = Search(steps=30, batch_size=64, asked=64, inner_steps=12, inner_rate=0.5, learning_rate=0.01)
    found = discover_tasks(blobs(300), small, n_tasks=3, width=3, search=search)
    early, late = (np.mean([row.objective for row in part]) for part in (found.history[:5], found.history[-5:]))
    assert late < early - 0.05
    assert np.mean([row.agreement for row in found.history[-5:]]) > 0.85
    assert len(found) == 3
    assert all(task.class_rates.min() > 0.1 for task in found)
    assert similarity_matrix(found.tasks)[np.triu_indices(3, 1)].mean() < 0.85


def test_tasks_are_the_sides_of_the_embedding(blobs):
    found = find(blobs(120))
    np.testing.assert_allclose(np.linalg.norm(found.embedding, axis=1), 1, atol=1e-6)
    for task, head in zip(found, found.heads, strict=True):
        np.testing.assert_array_equal((found.embedding @ head.T).argmax(1), task.labels)
        sides = np.abs((found.embedding @ head.T)[:, 0])
        assert surest(task, 1)[task.labels[sides.argmax()]] == (task.ids[sides.argmax()],)
    assert found.held_out == tuple(sorted(found.held_out))


def test_the_order_of_the_data_does_not_matter(blobs):
    data = blobs(120)
    shuffled = data.take(np.random.default_rng(3).permutation(120))
    one, other = find(data), find(shuffled)
    assert [task.digest for task in one] == [task.digest for task in other]
    assert other[0].ids == shuffled.ids
    assert [task.digest for task in find(data, seed=1)] != [task.digest for task in one]


def test_the_search_sees_nothing_that_is_held_out(blobs):
    data = blobs(120)
    held = hold_out(data.ids, 0.2, 0)[1]
    x = np.array(data.inputs)
    middle, spread = x.mean(0), x.std(0)  # other samples there, and the same mean and deviation of every column
    x[held] = x[held][np.random.default_rng(0).permutation(len(held))]
    np.testing.assert_allclose([x.mean(0), x.std(0)], [middle, spread], rtol=1e-4, atol=1e-5)
    changed = Probe("array", x, data.ids)
    learned = np.setdiff1d(np.arange(120), held)
    one, other = find(data), find(changed)
    for first, second in zip(one, other, strict=True):
        np.testing.assert_array_equal(first.labels[learned], second.labels[learned])


def test_a_search_goes_on_where_it_was_stopped(blobs, tmp_path, monkeypatch):
    data = blobs(120)
    whole = find(data)
    monkeypatch.setattr(module, "_SAVE_SECONDS", 0.0)

    class Stopped(Exception):
        pass

    def stop(row):
        if row.step == 2:
            raise Stopped

    state = tmp_path / "search.state"
    with pytest.raises(Stopped):
        find(data, state=state, watch=stop)
    seen = []
    again = find(data, state=state, watch=lambda row: seen.append(row.step))
    assert seen == [2, 3]
    assert [task.digest for task in again] == [task.digest for task in whole]
    assert again.history == whole.history
    np.testing.assert_array_equal(again.embedding, whole.embedding)
    done = find(data, state=state, watch=lambda row: pytest.fail("a finished search went on"))
    assert [task.digest for task in done] == [task.digest for task in whole]
    with pytest.raises(BadInput, match="state of another search"):
        find(data, state=state, seed=1)
    state.write_bytes(b"damaged")
    with pytest.raises(BadInput, match="damaged"):
        find(data, state=state)


@pytest.mark.parametrize(
    "search",
    [
        {"truncate": 2},
        {"checkpoint": True},
        {"truncate": 3, "checkpoint": True},
        {"fresh_heads": True},
        {"diversity": "information"},
        {"together": 1},
    ],
    ids=str,
)
def test_every_way_to_search_gives_tasks(blobs, search):
    settings = {"steps": 2, "batch_size": 32, "asked": 32, "inner_steps": 4, "truncate": None, **search}
    found = find(blobs(120), search=Search(**settings))
    assert len(found) == 2
    assert all(math.isfinite(value) for row in found.history for value in row)
    if search == {"checkpoint": True}:
        assert found.history[0].objective == pytest.approx(find(blobs(120)).history[0].objective, abs=1e-6)


def test_tasks_of_three_classes(blobs):
    found = find(blobs(120), classes=3)
    assert found.heads.shape == (2, 3, 4)
    assert {label for task in found for label in task.labels.tolist()} == {0, 1, 2}


def test_the_regulated_form_learns_a_map_of_given_features(blobs):
    data = blobs(120)
    x = np.random.default_rng(0).standard_normal((120, 3)).astype(np.float32)
    found = find(data, features=x)
    assert {name: tuple(value.shape) for name, value in found.encoder.network.named_parameters()} == {
        "1.weight": (4, 3),
        "1.bias": (4,),
    }
    named = Features(x, data.ids, "net", "tap", data.digest, "digest")
    assert [task.digest for task in find(data, features=named)] == [task.digest for task in found]
    shuffled = np.random.default_rng(1).permutation(120)
    moved = find(data.take(shuffled), features=x[shuffled])
    assert [task.digest for task in moved] == [task.digest for task in found]
    with pytest.raises(BadInput, match="features of 60 samples"):
        find(data, features=x[:60])


def test_the_sequential_route_keeps_unlike_tasks(blobs):
    search = Search(
        steps=8, batch_size=48, asked=32, inner_steps=6, inner_rate=0.5, learning_rate=0.01, coefficient=2.0
    )
    found = discover_in_turn(blobs(160), small, n_tasks=2, bound=0.75, search=search)
    assert len(found) == 2
    assert similarity_matrix(found.tasks)[0, 1] <= 0.75
    for task, head in zip(found, found.heads, strict=True):
        np.testing.assert_array_equal((found.embedding @ head.T).argmax(1), task.labels)
    with pytest.raises(BadInput, match=r"bound of 0\.5"):
        discover_in_turn(blobs(160), small, bound=0.5)
    with pytest.raises(BadInput, match="0 tasks cannot be found"):
        discover_in_turn(blobs(160), small, n_tasks=0)


def test_the_sequential_route_does_not_find_known_tasks_again(blobs, monkeypatch):
    data = blobs(160)
    search = Search(
        steps=8, batch_size=48, asked=32, inner_steps=6, inner_rate=0.5, learning_rate=0.01, coefficient=2.0
    )
    first = discover_in_turn(data, small, n_tasks=1, bound=0.75, search=search)
    known = first[0].among(data.ids[::-1])
    given = []

    def searching(*arguments, known, **settings):
        given.append([list(task.labels) for task in known])
        return discover_tasks(*arguments, known=known, **settings)

    monkeypatch.setattr("taskatlas.tasks.sequential.discover_tasks", searching)
    found = discover_in_turn(data, small, n_tasks=1, known=[known], bound=0.75, search=search)
    assert len(found) == 1
    assert all(labels == [list(first[0].among(data.ids).labels)] for labels in given)  # each search keeps away from it
    assert similarity(found[0], first[0]) <= 0.75
    other = Task("other", np.arange(160) % 2, tuple(f"x{i}" for i in range(160)))
    with pytest.raises(BadInput, match="'other' has no label"):
        discover_in_turn(data, small, known=[other], search=search)


def test_a_tasks_width_on_the_sequential_route_is_what_is_said(blobs):
    assert discover_in_turn(blobs(120), small, n_tasks=1, bound=1.0, width=3, search=QUICK).embedding.shape == (120, 3)


class Recurrent(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.first, self.second = nn.GRU(1, 6, batch_first=True), nn.Linear(6, classes)

    def forward(self, x):
        h = self.first(x[..., None])[0][:, -1]
        return self.second(h if h.mean() > -100 else -h)


def test_learners_that_cannot_be_stacked_run_in_turn(blobs):
    found = discover_tasks(blobs(120), Recurrent, n_tasks=2, width=4, encoder=small, search=QUICK)
    assert len(found.history) == 3
    assert all(math.isfinite(value) for row in found.history for value in row)


def test_known_tasks_may_have_other_numbers_of_classes(blobs):
    data = blobs(120)
    known = [Task.of_probe("classes", data), human_tasks(data, 1)[0]]
    assert find(data, known=known).history[0].diversity > find(data).history[0].diversity


def along(found, *sides):
    """Points that are on the given side of each head, ``sides`` (n,) from -1 to 1."""
    h = sum(side[:, None] * torch.from_numpy(head[0]).float() for side, head in zip(sides, found.heads, strict=True))
    return lambda network, x: nn.functional.normalize(h)


def test_a_constant_task_is_left_out_and_said(blobs, monkeypatch, tmp_path):
    data = blobs(120)
    whole = find(data)
    one, even = torch.ones(120), torch.arange(120) % 2 - 0.5
    monkeypatch.setattr(TaskEncoder, "embed", along(whole, one, even))
    found = find(data)
    assert [task.name for task in found] == ["discovered 0"]
    np.testing.assert_array_equal(found.heads, whole.heads[1:])
    np.testing.assert_array_equal((found.embedding @ found.heads[0].T).argmax(1), found[0].labels)
    assert any("1 of 2 tasks are constant and left out" in note for note in found.notes)
    rare = torch.where(torch.arange(120) < 3, -1.0, 1.0)
    monkeypatch.setattr(TaskEncoder, "embed", along(whole, rare, even))
    assert any("discovered 0 is nearly constant: its smallest class has 2.5 %" in note for note in find(data).notes)
    monkeypatch.setattr(TaskEncoder, "embed", along(whole, one, one))
    with pytest.raises(WorkFailed, match=r"all discovered tasks \(2\) are constant"):
        find(data, state=tmp_path / "search.state")
    assert not list(tmp_path.iterdir())


def test_a_search_that_failed_is_not_in_the_way_of_the_next(blobs, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_SAVE_SECONDS", 0.0)
    wild = replace(QUICK, inner_rate=1e30)
    for route, places in ((discover_tasks, "state"), (discover_in_turn, "states")):
        settings = {"n_tasks": 2, places: tmp_path / "search.state"}
        with pytest.raises(WorkFailed, match="inner rate below"):
            route(blobs(120), small, search=wild, **settings)
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", ["size", "learner"])
def test_the_state_of_a_search_with_another_network_is_refused(tmp_path, change):
    pixels = np.random.default_rng(0).integers(0, 255, (120, 8, 8, 3)).astype(np.uint8)
    images = Probe.from_arrays(pixels)
    net = tmp_path / "net.py"
    text = "from torch import nn\ndef build(classes):\n    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), "
    text += "nn.Linear(12, 8), nn.{}(), nn.Linear(8, classes))\n"
    net.write_text(text.format("ReLU"))
    settings = {"n_tasks": 2, "width": 4, "search": replace(QUICK, steps=1), "state": tmp_path / "search.state"}
    discover_tasks(images, f"{net}:build", size=8, **settings)
    if change == "learner":
        net.write_text(text.format("Tanh"))
    with pytest.raises(BadInput, match="state of another search"):
        discover_tasks(images, f"{net}:build", size=4 if change == "size" else 8, **settings)


def test_a_discovery_comes_back_from_its_folder(blobs, tmp_path):
    data = blobs(120)
    found = find(data)
    found.save(tmp_path / "out")
    back = Discovered.load(tmp_path / "out")
    assert back.digest == found.digest
    assert back.history == found.history
    assert back.held_out == found.held_out
    np.testing.assert_allclose(back.embedding, found.embedding, atol=1e-6)
    np.testing.assert_allclose(back[0].certainty, found[0].certainty, rtol=1e-5)
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {
        "tasks.csv",
        "similarity.png",
        "encoder.safetensors",
    }
    (tmp_path / "out" / "history.csv").write_text("step\nx\n")
    with pytest.raises(BadInput, match="holds no discovery"):
        Discovered.load(tmp_path / "out")
    with pytest.raises(BadInput):
        Discovered.load(tmp_path)


def test_learners_that_never_fit_are_told(blobs):
    found = find(blobs(120), search=Search(steps=2, batch_size=32, asked=32, inner_steps=1, inner_rate=1e-4))
    assert "raise either" in found.notes[0]


def test_an_encoder_labels_a_sample_whatever_its_company():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2))
    x = torch.randn(50, 3)
    encoder = TaskEncoder(network, x)
    encoder.train()
    torch.testing.assert_close(encoder(x)[:5], encoder(x[:5]))
    assert encoder.embed(x).norm(dim=1).sub(1).abs().max() < 1e-5
    with pytest.raises(BadInput, match="constant or not finite"):
        TaskEncoder(network, torch.full((4, 3), float("nan")))


def test_an_encoder_that_has_drifted_is_balanced_on_each_batch_and_where_it_settles():
    torch.manual_seed(0)
    network, x = torch.nn.Linear(3, 2), torch.randn(50, 3)
    encoder = TaskEncoder(network, x)
    start = encoder(x).detach()
    torch.testing.assert_close(encoder.of_batch(x), start)
    with torch.no_grad():
        network.bias += 1000
    assert encoder(x).std(0).max() < 0.01
    torch.testing.assert_close(encoder.of_batch(x), start, atol=1e-3, rtol=0)
    encoder.of_batch(x)[0, 0].backward()
    assert network.weight.grad.abs().max() > 1e-3
    encoder.settle(x)
    torch.testing.assert_close(encoder(x), start, atol=1e-3, rtol=0)


def test_labels_are_those_of_an_encoder_centred_on_what_the_search_saw(blobs):
    data = blobs(200)
    found = find(data)
    numbers = as_numbers(data)
    seen = [row for row, name in enumerate(numbers.ids) if name not in found.held_out]
    outputs = found.encoder.network(torch.from_numpy(np.asarray(numbers.inputs)[seen]).float()).detach()
    torch.testing.assert_close(found.encoder.mean, outputs.mean(0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.encoder.scale, outputs.std(0), atol=1e-4, rtol=1e-4)


# What a task is


def test_known_tasks_are_covered_where_the_embedding_has_them(blobs):
    data = blobs(200)
    known = human_tasks(data, 2)
    one_hot = np.eye(4)[data.labels]
    assert min(coverage(one_hot, data.ids, known).values()) == 1
    noise = np.random.default_rng(0).standard_normal((200, 2))
    assert max(coverage(noise, data.ids, known).values()) < 0.85
    with pytest.raises(BadInput, match="has 10 ids"):
        coverage(noise, data.ids[:10], known)


def test_a_portrait_names_what_the_task_goes_by(blobs):
    data = blobs(200)
    known = human_tasks(data)
    bright = np.random.default_rng(0).standard_normal(200) + 3 * known[1].labels
    portrait = portray([known[1]], data, known=known, metadata={"bright": bright, "noise": bright[::-1].copy()})[0]
    assert next(iter(portrait.resembles.items())) == (known[1].name, 1.0)
    assert next(iter(portrait.goes_by)) == "bright"
    expected = abs(np.corrcoef(known[1].labels, bright)[0, 1])
    assert portrait.goes_by["bright"] == pytest.approx(expected)
    assert portrait.shares == {"0": 1.0, "1": 0.0, "2": 1.0, "3": 0.0}


# What is refused


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"search": Search(batch_size=90, asked=32)}, "96 samples to search on are fewer than a batch of 90 and 32"),
        ({"n_tasks": 0}, "give at least 1"),
        ({"classes": 1}, "at least 1 task of 2 classes"),
        ({"classes": 6, "width": 4}, "6 classes do not fit into 4 dimensions"),
        ({"encoder": lambda classes: mlp(6, (4,), 3)}, "4 are needed"),
    ],
)
def test_searches_that_cannot_be_are_refused(blobs, settings, said):
    with pytest.raises(BadInput, match=said):
        find(blobs(120), **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 0},
        {"batch_size": 1},
        {"inner_rate": 0.0},
        {"temperature": float("nan")},
        {"coefficient": -1.0},
        {"truncate": 0},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(BadInput):
        Search(**settings)


def test_an_inner_loop_that_diverges_names_its_step(blobs):
    with pytest.raises(WorkFailed, match=r"inner step \d+ of 4.*inner rate below 1e\+30"):
        find(blobs(120), search=Search(steps=1, batch_size=32, asked=32, inner_steps=4, inner_rate=1e30))

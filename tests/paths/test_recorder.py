"""The recorder changes nothing, keeps all, and says what it cannot record."""

import random
import sys
import tracemalloc
import types

import numpy as np
import pytest
import torch
from jaxtyping import config
from torch import nn

from taskatlas.errors import BadInput, MissingExtra
from taskatlas.paths import Recorder, every, geometric, predict, read_record
from taskatlas.paths.record_file import RecordHeader, append_snapshot, recover_record, start_record, survey_record
from taskatlas.probe import Probe

X = np.random.default_rng(0).normal(size=(24, 6)).astype(np.float32)
Y = np.arange(24) % 3
PROBE = Probe.from_arrays(X, labels=Y)
SIZE = 8 + 4 * 24 * 3 + 4  # of a snapshot in a file


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 3))


def train(steps=12, recorder=None, start=0):
    """A training whose every step draws from all three random generators."""
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    net = network().train()
    net[2].eval()  # a frozen part stays frozen
    optimiser = torch.optim.SGD(net.parameters(), 0.3)
    for step in range(steps):
        if recorder is not None and step >= start:
            recorder(net, step)
        rows = np.random.permutation(24)[: 8 + random.randrange(8)]
        inputs = torch.from_numpy(X[rows]) + 0.1 * torch.randn(len(rows), 6)
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(inputs), torch.from_numpy(Y[rows])).backward()
        optimiser.step()
    return net


@pytest.fixture
def unchecked(monkeypatch):
    """Without checks of annotations, which draw from Python's random state themselves."""
    monkeypatch.setattr(config, "jaxtyping_disable", True)


def test_the_training_goes_on_as_if_nothing_had_been(unchecked):
    recorder = Recorder(PROBE, schedule=every(1))
    watched, alone = train(recorder=recorder), train()
    assert len(recorder.steps) == 12
    for key, value in alone.state_dict().items():
        assert torch.equal(value, watched.state_dict()[key]), key
    assert [part.training for part in watched.modules()] == [part.training for part in alone.modules()]
    assert all((a.grad == b.grad).all() for a, b in zip(watched.parameters(), alone.parameters(), strict=True))


def test_what_is_recorded_is_the_network_in_evaluation_mode():
    recorder = Recorder(PROBE)
    net = network().train()
    assert recorder(net, 0)
    expected = torch.log_softmax(net.eval()(torch.from_numpy(X)), -1).detach().numpy()
    found = recorder.trajectory()
    assert np.allclose(found.log_probs[0], expected, atol=1e-6)
    assert found.ids == PROBE.ids
    assert found.labels.tolist() == Y.tolist()
    assert found.probe == PROBE.digest


def test_batches_change_nothing():
    one, many = Recorder(PROBE, batch_size=24), Recorder(PROBE, batch_size=5)
    for recorder in (one, many):
        recorder.record(network(), 0)
    assert np.allclose(one.trajectory().log_probs, many.trajectory().log_probs, atol=1e-6)


# The schedule


def steps_of(schedule, calls):
    taken = []
    for step in calls:
        if schedule(step, taken[-1] if taken else None):
            taken.append(step)
    return taken


def test_geometric_is_dense_early_and_sparse_late():
    taken = steps_of(geometric(1.3), range(10_000))
    gaps = np.diff(taken)
    assert taken[:4] == [0, 1, 2, 3]
    assert (np.diff(gaps) >= 0).all()
    assert 30 < len(taken) < 40
    assert max(np.diff(steps_of(geometric(1.3, at_most=100), range(10_000)))) == 100


def test_calls_need_not_come_at_every_step():
    assert steps_of(geometric(1.5), range(0, 1000, 100)) == [0, 100, 200, 300, 500, 800]
    assert steps_of(every(3), [0, 2, 4, 6, 8]) == [0, 4, 8]


@pytest.mark.parametrize(
    "bad", [lambda: geometric(1.0), lambda: geometric(np.inf), lambda: geometric(2.0, at_most=0), lambda: every(0)]
)
def test_schedules_that_are_none(bad):
    with pytest.raises(BadInput, match="1"):
        bad()


# The file


def test_a_killed_run_keeps_all_that_was_recorded(tmp_path):
    path = tmp_path / "run.record"
    whole = Recorder(PROBE, path, schedule=every(1))
    train(5, whole)
    content = path.read_bytes()
    assert read_record(path).steps.tolist() == [0, 1, 2, 3, 4]
    size = SIZE
    for lost in (1, 4, size - 1, size, size + 1, 3 * size + 5):
        path.write_bytes(content[:-lost])
        kept = 5 - -(-lost // size)
        assert read_record(path).steps.tolist() == list(range(kept))
        assert np.array_equal(read_record(path).log_probs, whole_run(content, tmp_path).log_probs[:kept])


def test_a_record_stays_on_disk_and_what_it_lost_is_counted(tmp_path):
    path = tmp_path / "run.record"
    train(4, Recorder(PROBE, path, schedule=every(1)))
    whole, survey = recover_record(path)
    assert (len(whole), survey.cut, survey.damaged) == (4, 0, 0)
    owner = whole.log_probs
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    assert isinstance(owner, np.memmap)
    path.rename(tmp_path / "moved.record")
    content = (tmp_path / "moved.record").read_bytes()
    path.write_bytes(content[:-9])
    short, survey = recover_record(path, {"run": "mine"})
    assert (len(short), short.name) == (3, "mine")
    assert (survey.cut, survey.damaged) == (SIZE - 9, 0)
    assert np.array_equal(short.log_probs, whole.log_probs[:3])
    assert short.length() == pytest.approx(float(whole.step_lengths()[:2].sum()))


def whole_run(content, folder):
    (folder / "whole.record").write_bytes(content)
    return read_record(folder / "whole.record")


def test_it_goes_on_in_the_same_file(tmp_path, unchecked):
    path = tmp_path / "run.record"
    train(5, Recorder(PROBE, path, schedule=every(1)))
    path.write_bytes(path.read_bytes()[:-7])  # killed while it wrote step 4
    again = Recorder(PROBE, path, schedule=every(1))
    assert again.steps == [0, 1, 2, 3]
    train(8, again)  # the training starts over; what is there is not recorded twice
    assert again.trajectory().steps.tolist() == list(range(8))
    straight = Recorder(PROBE, schedule=every(1))
    train(8, straight)
    assert np.array_equal(again.trajectory().log_probs, straight.trajectory().log_probs)


def test_a_snapshot_that_was_damaged_costs_no_other(tmp_path, unchecked):
    path = tmp_path / "run.record"
    train(5, Recorder(PROBE, path, schedule=every(1)))
    whole = read_record(path).log_probs
    content = bytearray(path.read_bytes())
    content[-3 * SIZE + 20] ^= 1
    path.write_bytes(content)
    found = read_record(path)
    assert found.steps.tolist() == [0, 1, 3, 4]
    assert np.array_equal(found.log_probs, whole[[0, 1, 3, 4]])
    assert found.note == "1 of 5 snapshots are damaged and left out"
    path.write_bytes(content + b"half a snapshot")
    again = Recorder(PROBE, path, schedule=every(1))
    assert path.read_bytes() == bytes(content)
    train(7, again)
    assert read_record(path).steps.tolist() == [0, 1, 3, 4, 5, 6]
    for block in range(1, 8):
        content = bytearray(path.read_bytes())
        content[-block * SIZE + 20] ^= block != 5  # the damaged one has been flipped
        path.write_bytes(content)
    with pytest.raises(BadInput, match=r"no whole snapshot\. All are damaged"):
        read_record(path)


def test_an_opening_that_is_refused_changes_no_byte(tmp_path):
    path = tmp_path / "run.record"
    train(4, Recorder(PROBE, path, schedule=every(1)))
    content = bytearray(path.read_bytes()[:-9])
    content[-2 * SIZE] ^= 1
    path.write_bytes(content)
    for probe, name in ((PROBE, "b"), (PROBE.take(range(5)), "run")):
        with pytest.raises(BadInput, match="is a record of run 'run'"):
            Recorder(probe, path, name=name)
        assert path.read_bytes() == bytes(content)


def test_a_training_begun_anew_is_not_taken_for_the_end_of_an_old_one(tmp_path):
    path = tmp_path / "run.record"
    Recorder(PROBE, path).record(network(0), 0)
    before = path.read_bytes()
    with pytest.raises(BadInput, match="has step 0 of run 'run' from another training"):
        Recorder(PROBE, path)(network(1), 0)
    again = Recorder(PROBE, path)
    assert not again.record(network(0), 0)
    assert not again.record(network(1), 0)  # looked at once; the callbacks offer a step more than once
    assert path.read_bytes() == before


def test_normalisation_that_cannot_be_put_to_rest_keeps_its_statistics():
    class Restless(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.head = nn.BatchNorm1d(6), nn.Linear(6, 3)

        def train(self, mode=True):
            super().train(mode)
            self.norm.train()
            return self

        def forward(self, x):
            return self.head(self.norm(x))

    net = Restless().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    Recorder(PROBE).record(net, 0)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_records_that_are_none(tmp_path):
    path = tmp_path / "run.record"
    with pytest.raises(BadInput, match="no file"):
        read_record(path)
    start_record(path, RecordHeader("a", ["x"], 2))
    with pytest.raises(BadInput, match="no whole snapshot"):
        read_record(path)
    whole = path.read_bytes()
    for content, words in (
        (b"", "no record"),
        (b"hello", "no record"),
        (whole[:25], "damaged"),
        (whole[:40], "damaged"),
    ):
        path.write_bytes(content)
        for read in (read_record, survey_record):
            with pytest.raises(BadInput, match=words):
                read(path)
        with pytest.raises(BadInput, match=words):
            Recorder(PROBE, path)


def test_a_record_of_something_else_is_not_written_to(tmp_path):
    path = tmp_path / "run.record"
    Recorder(PROBE, path).record(network(), 0)
    before = path.read_bytes()
    with pytest.raises(BadInput, match="another probe"):
        Recorder(PROBE.take(range(5)), path)
    with pytest.raises(BadInput, match="run 'run' on this probe"):
        Recorder(PROBE, path, name="b")
    again = Recorder(PROBE, path)
    with pytest.raises(BadInput, match="24 rows of 4 classes, and 24 of 3 before"):
        again.record(nn.Linear(6, 4), 1)
    assert path.read_bytes() == before


def test_a_full_disk_is_said_and_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "run.record"
    start_record(path, RecordHeader("a", ["x"], 2))
    append_snapshot(path, 0.0, np.log([[0.5, 0.5]]))
    monkeypatch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(BadInput, match="No space left"):
        append_snapshot(path, 1.0, np.log([[0.5, 0.5]]))
    assert read_record(path).steps[0] == 0
    with pytest.raises(BadInput, match="cannot write"):
        append_snapshot(tmp_path, 1.0, np.log([[0.5, 0.5]]))


def test_half_a_snapshot_on_a_full_disk_hides_none_that_follows(tmp_path, monkeypatch):
    path = tmp_path / "run.record"
    start_record(path, RecordHeader("a", ["x"], 2))
    append_snapshot(path, 0.0, np.log([[0.5, 0.5]]))
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(BadInput, match="No space left"):
            append_snapshot(path, 1.0, np.log([[0.1, 0.9]]))
    append_snapshot(path, 2.0, np.log([[0.2, 0.8]]))
    assert read_record(path).steps.tolist() == [0, 2]


def test_many_snapshots_need_the_memory_of_one(tmp_path):
    """As 61 snapshots of 50,000 samples and 1,000 classes would not fit: 12 GB."""
    big = Probe.from_arrays(np.random.default_rng(0).normal(size=(2000, 6)), labels=np.arange(2000) % 3)
    net = nn.Linear(6, 200)
    size = 4 * 2000 * 200
    tracemalloc.start()
    recorder = Recorder(big, tmp_path / "run.record", schedule=every(1), batch_size=500)
    for step in range(20):
        recorder(net, step)
    recorded = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    log_probs = read_record(tmp_path / "run.record").log_probs
    resumed = Recorder(big, tmp_path / "run.record").steps
    read = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(resumed) == 20
    assert recorded < 5 * size
    assert read < 5 * size
    assert not log_probs.flags.writeable
    assert np.array_equal(log_probs[7], predict(net, big, batch_size=500).log_probs)


@pytest.mark.parametrize(
    "text",
    [
        b'{"name": "a", "classes": 2, "ids": ' + b"[" * 100_000,
        b'{"name": ["a"], "classes": 2, "ids": ["x"]}',
        b'{"name": "a", "classes": 2, "ids": [["x"]]}',
        b'{"name": "a", "classes": 2, "ids": ["x"], "labels": 3}',
    ],
    ids=["deep", "name", "ids", "labels"],
)
def test_a_header_that_says_nonsense(tmp_path, text):
    path = tmp_path / "run.record"
    path.write_bytes(b"taskatlas record 1\n" + len(text).to_bytes(8, "little") + text)
    with pytest.raises(BadInput, match="damaged"):
        read_record(path)


@pytest.mark.parametrize("field", [b'"classes": 2', b'"classes": -2', b'"classes": "2"', b'"classes": 999999999999'])
def test_a_header_that_promises_too_much(tmp_path, field):
    path = tmp_path / "run.record"
    text = b'{"name": "a", "ids": ["x"], ' + field + b"}"
    content = b"taskatlas record 1\n" + len(text).to_bytes(8, "little") + text
    path.write_bytes(content + b"\0" * 40)
    with pytest.raises(BadInput, match=r"damaged|no whole snapshot"):
        read_record(path)


# What cannot be recorded


def test_a_network_that_diverged_is_named():
    net = network()
    net[4].bias.data[1] = float("nan")
    with pytest.raises(BadInput, match=r"run 'run' at step 7 gives NaN for sample '0'"):
        Recorder(PROBE).record(net, 7)


def test_labels_that_do_not_fit_the_network():
    with pytest.raises(BadInput, match="labels from 0 to 2, and run 'run' predicts 2 classes"):
        Recorder(PROBE).record(nn.Linear(6, 2), 0)


def test_outputs_that_are_no_logits():
    class Odd(nn.Module):
        def __init__(self, output):
            super().__init__()
            self.output = output

        def forward(self, x):
            return self.output(x)

    with pytest.raises(BadInput, match="without logits"):
        predict(Odd(lambda x: "no"), PROBE)
    with pytest.raises(BadInput, match="tokens=True"):
        predict(Odd(lambda x: x[:, None].repeat(1, 4, 1)), PROBE)
    with pytest.raises(BadInput, match="input_ids"):
        predict(Odd(lambda x: x), PROBE, tokens=True)
    expected = predict(Odd(lambda x: x), PROBE).log_probs
    for shape in (lambda x: (x, None), lambda x: {"logits": x}, lambda x: types.SimpleNamespace(logits=x)):
        assert np.array_equal(predict(Odd(shape), PROBE).log_probs, expected)
    assert predict(Odd(lambda x: x.half()), PROBE).log_probs.dtype == np.float32


def test_nothing_recorded_yet():
    with pytest.raises(BadInput, match="no snapshot yet"):
        Recorder(PROBE).trajectory()


# Language models


class Bigrams(nn.Module):
    """Expects the token after the one it sees."""

    def __init__(self, vocabulary=7):
        super().__init__()
        self.table = nn.Embedding(vocabulary, vocabulary)

    def forward(self, input_ids, attention_mask=None):
        return types.SimpleNamespace(logits=self.table(input_ids))


def tokenised(texts):
    length = max(map(len, texts))
    codes = [[ord(letter) - ord("a") for letter in text] for text in texts]
    return {
        "input_ids": torch.tensor([code + [0] * (length - len(code)) for code in codes]),
        "attention_mask": torch.tensor([[1] * len(code) + [0] * (length - len(code)) for code in codes]),
    }


def test_language_models_are_recorded_token_by_token():
    texts = Probe.from_text(["abc", "fgfgf", "d", "ba"])
    recorder = Recorder(texts, prepare=tokenised, tokens=True, batch_size=2)
    net = Bigrams()
    recorder.record(net, 0)
    found = recorder.trajectory()
    assert found.ids == ("0:0", "0:1", "1:0", "1:1", "1:2", "1:3", "3:0")
    assert found.labels.tolist() == [1, 2, 6, 5, 6, 5, 0]
    seen = torch.tensor([0, 1, 5, 6, 5, 6, 1])
    assert np.allclose(found.log_probs[0], torch.log_softmax(net.table(seen), -1).detach().numpy(), atol=1e-6)


def test_texts_of_one_token_have_nothing_to_predict():
    with pytest.raises(BadInput, match="no text of the probe has two tokens"):
        predict(Bigrams(), Probe.from_text(["a", "b"]), prepare=tokenised, tokens=True)


# Other people's loops


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = network()

    def forward(self, x, labels=None):
        logits = self.body(x)
        return (
            {"logits": logits}
            if labels is None
            else {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}
        )


def trained_by_hugging_face(folder, callbacks):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    rows = [{"x": torch.from_numpy(x), "labels": torch.tensor(int(y))} for x, y in zip(X, Y, strict=True)]
    arguments = transformers.TrainingArguments(
        str(folder), max_steps=6, per_device_train_batch_size=8, report_to=[], disable_tqdm=True, use_cpu=True, seed=3
    )
    model = Classifier()
    transformers.Trainer(model, arguments, train_dataset=rows, callbacks=callbacks).train()
    return model


def test_hugging_face_trainer(tmp_path):
    recorder = Recorder(PROBE, tmp_path / "run.record", schedule=every(2))
    watched = trained_by_hugging_face(tmp_path, [recorder.hugging_face()])
    alone = trained_by_hugging_face(tmp_path, [])
    assert recorder.steps == [0, 2, 4, 6]
    for key, value in alone.state_dict().items():
        assert torch.equal(value, watched.state_dict()[key]), key
    assert np.allclose(read_record(tmp_path / "run.record").log_probs[-1], predict(watched, PROBE).log_probs)


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_lightning_callback(monkeypatch, package):
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra, match="lightning"):
        Recorder(PROBE).lightning()
    stub = types.ModuleType(package)
    stub.Callback = type("Callback", (), {})
    monkeypatch.setitem(sys.modules, package.split(".")[0], types.ModuleType("lightning"))
    monkeypatch.setitem(sys.modules, package, stub)
    recorder = Recorder(PROBE, schedule=every(2))
    callback = recorder.lightning()
    assert isinstance(callback, stub.Callback)
    net = network()
    trainer = types.SimpleNamespace(global_step=0, is_global_zero=True)
    callback.on_train_start(trainer, net)
    for step in range(1, 6):
        trainer.global_step = step
        callback.on_train_batch_end(trainer, net, None, None, 0)
    callback.on_train_end(trainer, net)
    assert recorder.steps == [0, 2, 4, 5]
    trainer.is_global_zero, trainer.global_step = False, 9
    callback.on_train_end(trainer, net)
    assert recorder.steps == [0, 2, 4, 5]


def trained_by_lightning(callbacks):
    from lightning import pytorch as lightning

    class Learner(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, _):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    lightning.seed_everything(0, verbose=False)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = lightning.Trainer(max_epochs=2, callbacks=callbacks, accelerator="cpu", **quiet)
    data = torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    learner = Learner()
    trainer.fit(learner, torch.utils.data.DataLoader(data, batch_size=8, shuffle=True))
    return learner


def test_a_real_lightning_trainer_trains_as_without_the_recorder():
    pytest.importorskip("lightning.pytorch", reason="the extra lightning is not installed")
    recorder = Recorder(PROBE, schedule=every(2))
    watched = trained_by_lightning([recorder.lightning()])
    alone = trained_by_lightning([])
    assert recorder.steps == [0, 2, 4, 6]
    for key, value in alone.state_dict().items():
        assert torch.equal(value, watched.state_dict()[key]), key
    assert np.allclose(recorder.trajectory().log_probs[-1], predict(watched, PROBE).log_probs)

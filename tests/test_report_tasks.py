"""The page's sections about tasks: they say the numbers of the files, escape names, and refuse what is damaged."""

import json

import numpy as np
import pytest

from taskatlas.errors import BadInput
from taskatlas.probe import Probe
from taskatlas.report import write_report
from taskatlas.tasks import Agreement, Damage, Discovered, Easier, Fall, Null, Portrait, Split, Step, Task
from taskatlas.tasks.files import write_agreements, write_discovered, write_splits

NAME = "<b>bright</b>"


@pytest.fixture
def data():
    return Probe.from_arrays(np.random.default_rng(0).random((40, 64)), labels=np.arange(40) % 2)


@pytest.fixture
def folder(tmp_path, data):
    labels = [np.arange(40) // 20, np.arange(40) % 2]
    tasks = tuple(Task(name, one, data.ids) for name, one in zip((NAME, "odd"), labels, strict=True))
    history = tuple(Step(i + 1, 0.6, 0.8 + i / 100, 0.9, 5.0, 0.55) for i in range(3))
    found = Discovered(
        tasks, np.eye(40)[:, :4], np.zeros((2, 2, 4)), data.ids[:8], history, {"learner": "mlp", "seed": 0}
    )
    portraits = [Portrait(NAME, (0.5, 0.5), (data.ids[:4], data.ids[20:24]), goes_by={"mean": 0.8})]
    null = Null(0.7125, (0.7, 0.73), (0.7, 0.725))
    scores = [
        Agreement(
            task.name, 0.9375 - i / 10, (0.9, 0.97), 0.9, 0.9, 1.0, (0.5, 0.5), (0.93, 0.945), {"random": null}, 8
        )
        for i, task in enumerate(tasks)
    ]
    write_discovered(found, tmp_path, data=data, portraits=portraits)
    write_agreements(scores, tmp_path, data=data, settings={}, seed=0)
    fall = Fall(0.3125, (0.3, 0.33), (0.3, 0.325), 1.0, None, 20, 20)
    controls = {"random split": Fall(0.9, (0.8, 1.0), (0.9,), 1.0, None, 20, 20)}
    easier = Easier(0.625, 0.95, {"random": 0.55, "untrained": 0.75})
    damage = Damage("odd by bright", NAME, "as given", fall, controls, easier)
    split = Split("odd by bright", data.ids, np.arange(40) % 2, np.arange(40) // 20)
    write_splits([(split, damage)], tmp_path, data=data, settings={}, seed=0)
    return tmp_path


def test_the_page_shows_every_result(folder):
    text = write_report(folder).read_text()
    for title in ("Discovered tasks", "What is this task?", "Agreement", "Splits"):
        assert f"<h2>{title}</h2>" in text
    assert "0.938" in text
    assert "brings a network to 0.312 on its test part" in text
    assert "leaves 0.900" in text
    assert "is the target in 62.5 % of the samples (similarity)" in text
    assert "agree about 95.0 % of unseen ones (agreement), a lift of +0.200 over the highest null." in text
    assert "mean 0.80" in text
    assert "data:image\\u002fpng;base64" in text
    assert NAME not in text


def test_the_page_says_of_the_easier_task_what_is_known(folder, data):
    fall = Fall(0.3, (0.3, 0.3), (0.3,), 1.0, None, 20, 20)
    split = Split("odd by bright", data.ids, np.arange(40) % 2, np.arange(40) // 20)
    for easier, said in ((Easier(0.75), "(similarity)."), (Easier(), "label was changed.")):
        damage = Damage(split.name, "bright", "as given", fall, {}, easier)
        write_splits([(split, damage)], folder, data=data, settings={}, seed=0)
        text = write_report(folder).read_text()
        assert said in text
        assert "unseen ones" not in text


def test_a_folder_without_tasks_has_no_such_sections(tmp_path):
    with pytest.raises(BadInput, match="holds no results to report"):
        write_report(tmp_path)


@pytest.mark.parametrize("name", ["agreement.json", "splits.json", "portraits.json", "discovery.json"])
def test_damaged_results_are_refused(folder, name):
    (folder / name).write_text("[1")
    with pytest.raises(BadInput):
        write_report(folder)
    (folder / name).write_text(json.dumps({"tasks": 3, "scores": 3, "splits": 3}))
    with pytest.raises(BadInput):
        write_report(folder)

"""The page's section on merged models."""

import pytest
from tests.test_report import ODD, Page

from taskatlas.errors import BadInput
from taskatlas.merge import Evaluation
from taskatlas.merge.scores import EVALUATION, Score
from taskatlas.report import write_report
from taskatlas.report.merge import merge_sections


def evaluation(models=("individual", "average", "ties"), tasks=("a", "b"), inferred=()):
    scores = [
        Score(model, heads, task, 10 * (9 - i), 100 + j)
        for heads, names in (("known", models), ("inferred", inferred))
        for i, model in enumerate(names)
        for j, task in enumerate(tasks)
    ]
    return Evaluation(tuple(scores))


def test_the_section_says_what_the_file_holds(tmp_path):
    found = evaluation(inferred=("average",))
    found.save(tmp_path / EVALUATION)
    (section,) = merge_sections(tmp_path)
    assert section.source == tmp_path / EVALUATION
    assert "3 models on 2 tasks" in section.text
    assert (
        f"average comes nearest to the networks that were each trained for one task: {found.ratio('average'):.1%}"
        in (section.text)
    )
    assert len(section.rows) == 4
    assert section.rows[1][:2] == ["average", "known"]
    assert section.rows[1][list(section.columns).index("a")] == str(found.accuracy("average", "a"))
    known, inferred = section.figures
    assert [bar.name for bar in known.data] == ["individual", "average", "ties"]
    assert list(known.data[2].y) == [found.accuracy("ties", task).value for task in "ab"]
    assert [bar.name for bar in inferred.data] == ["average"]


def test_the_page_has_it_beside_the_others(tmp_path):
    evaluation(models=ODD[:3]).save(tmp_path / EVALUATION)
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert [attributes["id"] for attributes in page.named("section")] == ["accuracy-on-tasks"]
    assert all(name in "".join(page.shown) for name in ODD[:3])


def test_without_individual_networks_nothing_is_compared_with_them(tmp_path):
    evaluation(models=("average",)).save(tmp_path / EVALUATION)
    assert "trained for one task" not in merge_sections(tmp_path)[0].text


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / EVALUATION).write_text("{")
    with pytest.raises(BadInput, match=EVALUATION):
        write_report(tmp_path)


def test_nothing_without_the_file(tmp_path):
    assert merge_sections(tmp_path) == []

"""The report: one page that needs nothing beside it, says what the folder holds, and shows names as they are."""

import json
import re
from html import escape
from html.parser import HTMLParser

import numpy as np
import pytest

from taskatlas.errors import BadInput
from taskatlas.report import write_report
from taskatlas.report.space import space_sections
from taskatlas.space import Selection, TaskSpace, Transfer, select
from taskatlas.space.files import write_selection
from taskatlas.space.transfer import save_transfers
from taskatlas.store import check_receipts

ODD = (
    "<b>bold</b>",
    "</script><script>alert(1)</script>",
    "a&amp;b",
    '<a href="http://example.org">x</a>',
    "2024-01-01",
    "2024-01-02",
    "\"quoted'",
    "%{z}",
    "x" * 90,
    "x" * 50 + "y" + "x" * 39,
)


class Page(HTMLParser):
    """The tags of a page, and the text outside of scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.shown, self._open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if not {"script", "style"} & set(self._open):
            self.shown.append(data)

    def named(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def space_of(names, seed=0, replicates=0):
    draw = np.random.default_rng(seed)
    covariance = np.corrcoef(draw.standard_normal((len(names), 40)))
    spread = 0.01 * draw.standard_normal((replicates, *covariance.shape))
    drawn = covariance + spread + spread.swapaxes(1, 2)
    return TaskSpace(tuple(names), covariance, replicates=drawn if replicates else None)


def transfer_of(names, score=0.8, others=None):
    return Transfer(tuple(names), score, (0.6, 0.7, 0.9), (("a",), ("b",), ("c",)), others or {}, "macro_f1")


def results(folder, names, k=3, transfers=()):
    """A folder as commands leave it."""
    folder.mkdir(parents=True)
    space = space_of(names, replicates=5)
    space.save(folder / "space.npz")
    selection = select(space, k)
    write_selection(selection, folder, space=space, sources=[folder / "space.npz"])
    save_transfers(
        list(transfers) or [transfer_of(selection.names[:size]) for size in (1, 2)], folder / "transfer.json"
    )
    return space, selection


def test_the_page_loads_nothing(tmp_path):
    results(tmp_path / "atlas", "abcd")
    text = write_report(tmp_path / "atlas").read_text()
    page = Page(text)
    assert page.named("script")
    assert all("src" not in attributes for attributes in page.named("script"))
    assert {tag for tag, _ in page.tags} & {"link", "img", "iframe", "object", "embed", "base", "form"} == set()
    assert all(attributes["href"].startswith("#") for attributes in page.named("a"))
    (style,) = re.findall(r"<style>(.*?)</style>", text, flags=re.DOTALL)
    assert "url(" not in style
    assert "@import" not in style


def test_no_figure_offers_to_upload_itself(tmp_path):
    results(tmp_path / "atlas", "abcd")
    text = write_report(tmp_path / "atlas").read_text()
    assert text.count('"showSendToCloud": false') == text.count("Plotly.newPlot(") == 3


def test_sections_are_what_the_folder_holds(tmp_path):
    _, selection = results(tmp_path / "atlas", ["red", "green", "blue", "black"])
    page = Page(write_report(tmp_path / "atlas").read_text())
    sections = [attributes["id"] for attributes in page.named("section")]
    assert sections == ["task-space", "selection", "transfer"]
    assert [attributes["href"] for attributes in page.named("a")] == [f"#{one}" for one in sections]
    text = "".join(page.shown)
    assert "Atlas of atlas" in text
    assert all(name in text for name in selection.names)
    assert all(f"{step.gain:.3f}" in text and f"{step.total:.3f}" in text for step in selection.steps)
    assert "0.800" in text
    assert "How this was made" in text
    assert "select" in text
    for file in ("space.npz", "transfer.json"):
        (tmp_path / "atlas" / file).unlink()
    page = Page(write_report(tmp_path / "atlas").read_text())
    assert [attributes["id"] for attributes in page.named("section")] == ["selection"]


@pytest.mark.filterwarnings("ignore:constrained_layout")
def test_names_are_shown_and_never_obeyed(tmp_path):
    space, _ = results(tmp_path / "atlas", ODD, k=8, transfers=[transfer_of(ODD[:2], others={"<i>other</i>": 0.7})])
    path = write_report(tmp_path / "atlas")
    text = path.read_text()
    page = Page(text)
    assert {tag for tag, _ in page.tags} & {"b", "i"} == set()
    assert len(page.named("script")) == 1 + text.count("Plotly.newPlot(")
    assert "alert(1)</script>" not in text
    shown = "".join(page.shown)
    selection = Selection.load(tmp_path / "atlas" / "selection.json")
    assert all(name in shown for name in selection.names)
    assert "<i>other</i>" in shown
    heat_map = space_sections(tmp_path / "atlas")[0].figures[0].data[-1]
    notes = {note.split("<br>")[0] for row in heat_map.customdata for note in row}
    assert {f"{escape(name, quote=False)} – {escape(name, quote=False)}" for name in space.names} <= notes


def test_the_map_is_in_leaf_order_with_every_name_once(tmp_path):
    space, selection = results(tmp_path / "atlas", [f"task {i}" for i in range(9)])
    figure = space_sections(tmp_path / "atlas")[0].figures[0]
    labels = [re.sub("<[^>]*>", "", label) for label in figure.layout.yaxis2.ticktext]
    names = [label.removeprefix("★ ") for label in labels]
    assert sorted(names) == sorted(space.names)
    assert {label.removeprefix("★ ") for label in labels if label.startswith("★")} == set(selection.names)
    heat_map = figure.data[-1]
    np.testing.assert_allclose(heat_map.z, space.subset(names).covariance, atol=5e-5)
    low, high = space.subset(names).interval()
    assert heat_map.customdata[2][5] == (
        f"{names[2]} – {names[5]}<br>95 % interval {low[2, 5]:.3f} to {high[2, 5]:.3f}"
    )
    # The tree's leaves stand at the rows of the map: every branch of height zero ends at a whole row.
    ends = [y for line in figure.data[:-1] for x, y in zip(line.x, line.y, strict=True) if x == 0]
    assert sorted(ends) == list(range(9))


@pytest.mark.filterwarnings("ignore:constrained_layout")
def test_long_names_are_shortened_in_figures_alone(tmp_path):
    results(tmp_path / "atlas", ODD, k=8)
    map_section, picks, _ = space_sections(tmp_path / "atlas")
    for labels in (map_section.figures[0].layout.yaxis2.ticktext, picks.figures[0].layout.yaxis.ticktext):
        assert max(len(re.sub("<[^>]*>", "", label)) for label in labels) < 70
    assert len(set(picks.figures[0].data[0].y)) == len(picks.rows) == 8


def test_the_published_map_fits(tmp_path, real_input):
    golden = real_input / "golden" / "space"
    space = TaskSpace.from_matrix(golden / "kappa34.npy", golden / "names34.txt")
    space.save(tmp_path / "space.npz")
    (section,) = space_sections(tmp_path)
    labels = [re.sub("<[^>]*>", "", label) for label in section.figures[0].layout.yaxis2.ticktext]
    assert sorted(labels) == sorted(space.names)
    assert "mean 0.25" in section.text
    assert "unknown" not in section.text
    colours = {line.line.color for line in section.figures[0].data[:-1]}
    assert len(colours) > 4  # the clusters, and grey above them


def test_one_checkpoint_has_a_page_too(tmp_path):
    TaskSpace(("alone",), np.eye(1)).save(tmp_path / "space.npz")
    assert "alone" in write_report(tmp_path).read_text()


def test_a_selection_of_another_space_is_said_to_be_one(tmp_path):
    results(tmp_path / "atlas", "abcd")
    assert "★" in write_report(tmp_path / "atlas").read_text()
    space_of("abcde", seed=1).save(tmp_path / "atlas" / "space.npz")
    text = write_report(tmp_path / "atlas").read_text()
    assert "★" not in text
    assert "It was made from another task space" in text


def test_scores_of_other_selections_are_drawn(tmp_path):
    transfers = [transfer_of("ab", others={"best elsewhere": 0.7}), transfer_of("a", others={})]
    results(tmp_path / "atlas", "abcd", transfers=transfers)
    section = space_sections(tmp_path / "atlas")[-1]
    (drawn,) = [line for line in section.figures[0].data if line.name == "best elsewhere"]
    assert (list(drawn.x), list(drawn.y)) == ([2], [0.7])
    assert section.columns[-1] == "best elsewhere"
    assert [row[-1] for row in section.rows] == [None, 0.7]


def test_one_size_shows_its_band_as_a_bar(tmp_path):
    results(tmp_path / "atlas", "abcd", transfers=[transfer_of("ab")])
    (median,) = [line for line in space_sections(tmp_path / "atlas")[-1].figures[0].data if "median" in line.name]
    low, middle, high = transfer_of("ab").band
    assert median.error_y.visible
    np.testing.assert_allclose([median.error_y.array[0], median.error_y.arrayminus[0]], [high - middle, middle - low])


def test_the_page_is_the_same_every_time(tmp_path):
    results(tmp_path / "atlas", "abcd")
    first = write_report(tmp_path / "atlas").read_text()
    assert write_report(tmp_path / "atlas").read_text() == first


def test_check_knows_the_page_and_what_it_shows(tmp_path):
    folder = tmp_path / "atlas"
    results(folder, "abcd")
    write_report(folder)
    assert check_receipts(folder) == (2, [])
    (folder / "atlas.html").write_text("another")
    (problem,) = check_receipts(folder)[1]
    assert "atlas.html changed" in problem
    write_report(folder)
    save_transfers([transfer_of("b")], folder / "transfer.json")
    (problem,) = check_receipts(folder)[1]
    assert "run report again" in problem


def test_the_page_goes_where_it_is_asked(tmp_path):
    results(tmp_path / "atlas", "abcd")
    path = write_report(tmp_path / "atlas", tmp_path / "web" / "site")
    assert path == tmp_path / "web" / "site" / "atlas.html"
    assert "Atlas of atlas" in path.read_text()
    assert not (tmp_path / "atlas" / "atlas.html").exists()
    assert check_receipts(path.parent) == (1, [])
    assert json.loads((path.parent / "receipt.json").read_text())["report"]["inputs"].keys() == {"select"}


def test_nothing_to_report(tmp_path):
    with pytest.raises(BadInput, match="not a folder"):
        write_report(tmp_path / "gone")
    with pytest.raises(BadInput, match="no results to report"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("file", ["space.npz", "selection.json", "transfer.json"])
def test_a_damaged_result_is_named_and_the_old_page_stays(tmp_path, file):
    results(tmp_path / "atlas", "abcd")
    page = write_report(tmp_path / "atlas")
    before = page.read_bytes()
    content = (tmp_path / "atlas" / file).read_bytes()
    (tmp_path / "atlas" / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(BadInput, match=re.escape(file)):
        write_report(tmp_path / "atlas")
    assert page.read_bytes() == before

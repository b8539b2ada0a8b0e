"""A folder with a tiny zoo, the command line in this process, and a folder of results to come back to."""

import shutil

import jaxtyping
import pytest
from tests.cli.make import MAP, TRANSFER, Ran, snapshot, write_material
from threadpoolctl import threadpool_limits

from taskatlas.cli import main


def ended(arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return 0 if stop.value.code is None else stop.value.code


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tiny products wait longer for a second thread than they take, above all where other tests run beside."""
    with threadpool_limits(1):
        yield


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a zoo, a builder and samples; commands run in it."""
    write_material(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(capsys):
    """``run(*arguments)``: how a command ended and what it printed."""

    def command(*arguments):
        capsys.readouterr()
        return Ran(ended(arguments), *capsys.readouterr())

    return command


@pytest.fixture
def run_json(run):
    """``run_json(*arguments)``: the document on standard output, after a command that succeeded."""

    def command(*arguments):
        ran = run(*arguments, "--format", "json")
        assert ran.code == 0, ran.err
        return ran.json

    return command


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A folder where every command ran once into atlas/; not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TASKATLAS_STORE", str(tmp_path_factory.mktemp("store")))
        patch.chdir(folder)
        write_material(folder)
        selection = ("--selection", "atlas/selection.json", "--sizes", "1,2")
        for arguments in (
            MAP,
            ("select", "atlas", "-k", 2, "--out", "atlas"),
            (*TRANSFER, *selection, "--out", "atlas"),
            ("report", "atlas"),
        ):
            assert ended(arguments) == 0
    return folder


@pytest.fixture
def atlas(finished, place):
    """Results of every command, beside a zoo of the same checkpoints."""
    shutil.copytree(finished / "atlas", place / "atlas")
    return place / "atlas"


@pytest.fixture
def as_installed():
    """Annotations unchecked, as for a user: what a checked attribute raises reaches the command's own handler."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def refused(run, atlas, as_installed):
    """``refused(*arguments)``: one sentence that refuses a command, which has to leave the results as they were."""

    def command(*arguments):
        before = snapshot(atlas)
        ran = run(*arguments)
        assert ran.code == 2, ran.err or ran.out
        assert ran.out == ""
        assert ran.err.startswith("taskatlas: ")
        assert ran.err.count("\n") == 1
        assert snapshot(atlas) == before
        return ran.err

    return command

"""How every command asks and answers: help with examples, one JSON document, exit status, and what is imported."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli.make import MAP, SOURCE, TRANSFER

from taskatlas.cli import app
from taskatlas.zoo import Zoo

COMMANDS = (
    "",
    "zoo",
    "zoo ls",
    "map",
    "select",
    "transfer",
    "train",
    "record",
    "trace",
    "merge",
    "evaluate",
    "report",
    "check",
    "demo",
)
PICK = ("--pick", "a,c")

DOCUMENTS = {
    ("zoo", "ls", "zoo"): {"checkpoints"},
    MAP: {"names", "covariance", "space"},
    ("select", "atlas", "-k", "2"): {"selected", "mutual_information"},
    (*TRANSFER, *PICK): {"selected", "random"},
    ("record", "zoo", "--probe", "probe.npz", "--builder", "nets.py:mlp", "--steps", "0,1,2"): {"trajectory", "steps"},
    ("trace", "runs"): {"explained_stress", "eigenvalues", "progress", "length"},
    ("report", "atlas"): {"report"},
    ("check", "atlas"): {"checked", "failed"},
}


def examples(text):
    """The lines under the last heading of examples in a help text."""
    _, heading, below = text.rpartition("Example")
    assert heading
    return [line.strip() for line in below.splitlines()[1:] if line.strip()]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_with_examples(run, command):
    ran = run(*command.split(), "--help")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.rstrip().splitlines()[-1].startswith("    taskatlas ")
    assert all(len(line) <= 80 for line in ran.out.splitlines())


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_are_whole_commands_that_parse(run, place, command):
    for example in examples(run(*command.split(), "--help").out):
        program, *arguments = shlex.split(example)
        assert program == "taskatlas"
        app.parse_args(arguments, exit_on_error=False, print_error=False)


@pytest.mark.parametrize(("arguments", "keys"), DOCUMENTS.items(), ids=[arguments[0] for arguments in DOCUMENTS])
def test_json_is_one_document_and_nothing_else(run, atlas, arguments, keys):
    ran = run(*arguments, "--format", "json")
    assert ran.code == 0
    assert ran.json.keys() >= keys


def test_every_command_has_the_common_options(run):
    for command in COMMANDS[2:]:
        text = run(*command.split(), "--help").out
        assert all(option in text for option in ("--format", "--out", "--seed", "--device", "--engine"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "nonsense"),
        (["map"], "zoo"),
        (["map", "zoo"], "--probe"),
        (["map", "zoo", "--prob", "x"], "--probe"),
        (["map", "zoo", "--probe", "probe.npz", "--kernel", "cosine"], "debiased_cka"),
        (["map", "zoo", "--probe", "probe.npz", "--limit", "0"], ">= 1"),
        (["map", "zoo", "--probe", "probe.npz", "--batch-size", "-1"], ">= 1"),
        (["map", "zoo", "--probe", "probe.npz", "--bootstrap", "-1"], ">= 0"),
        (["map", "zoo", "--probe", "probe.npz", "--seed", "-1"], ">= 0"),
        (["map", "zoo", "--probe", "probe.npz", "--device", "tpu"], "cuda"),
        (["map", "zoo", "--probe", "probe.npz", "--format", "xml"], "json"),
        (["select", "atlas", "-k", "five"], "five"),
        (["select", "atlas", "--method", "random"], "facility_location"),
        (["transfer", "zoo", "--pick", "a", "--train", "train.npz", "--test", "test.npz", "--random", "0"], ">= 1"),
        (["transfer", "zoo", "--pick", "a", "--train", "train.npz"], "--test"),
        (["trace"], "RUNS"),
        (["trace", "runs", "--metric", "euclidean"], "hellinger"),
        (["trace", "runs", "--components", "1"], ">= 2"),
        (["trace", "runs", "--bootstrap", "-1"], ">= 0"),
        (["trace", "runs", "--landmarks", "0"], ">= 1"),
        (["trace", "runs", "--distance", "hausdorff"], "frechet"),
        (["trace", "runs", "--predictions", "x", "--kind", "scores"], "logits"),
        (["record", "zoo"], "--probe"),
        (["record", "zoo", "--probe", "probe.npz", "--batch-size", "0"], ">= 1"),
    ],
)
def test_bad_usage_is_status_2_and_says_what_is_possible(run, place, arguments, said):
    ran = run(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err
    assert "Traceback" not in ran.err


def test_defaults_come_from_a_file_where_the_command_runs(run_json, run, place):
    (place / "taskatlas.toml").write_text('[map]\nbuilder = "nets.py:mlp"\nkernel = "rbf_cka"\n')
    assert run_json("map", "zoo", "--probe", "probe.npz")["kernel"] == "rbf_cka"
    assert run_json("map", "zoo", "--probe", "probe.npz", "--kernel", "cka")["kernel"] == "cka"
    (place / "taskatlas.toml").write_text('[map]\nbuildr = "nets.py:mlp"\n')
    ran = run("map", "zoo", "--probe", "probe.npz")
    assert (ran.code, ran.out) == (2, "")
    assert "buildr" in ran.err


def test_a_broken_file_of_defaults_is_named(run, place):
    for content in (b"[map\n", b"\xff\xfe[map]", b"3"):
        (place / "taskatlas.toml").write_bytes(content)
        ran = run("zoo", "ls", "zoo")
        assert (ran.code, ran.out) == (2, "")
        said = "".join(ran.err.replace("│", " ").split())  # the box breaks a long path anywhere
        assert f"{place}/taskatlas.tomlcannotbereadasTOML" in said
    (place / "taskatlas.toml").unlink()
    (place / "taskatlas.toml").mkdir()
    assert "directory" in run("zoo", "ls", "zoo").err


def test_the_hint_for_a_hub_id_is_a_zoo_that_opens(run, place):
    message = run("zoo", "ls", "org/model", "--no-digests").err
    Path("hub.yaml").write_text(message.partition("with the line: ")[2])
    (checkpoint,) = Zoo.open("hub.yaml").values()
    assert (checkpoint.name, checkpoint.weights, checkpoint.builder) == ("model", "org/model", "transformers")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["map", "--help"], ["trace", "--help"], ["map"], ["nonsense"], ["select", "x", "-k=y"]]
)
def test_help_and_bad_usage_import_nothing_heavy(tmp_path, arguments):
    program = f"""
import sys
sys.path.insert(0, {str(SOURCE)!r})
from taskatlas.cli import main
try:
    main({arguments!r})
except SystemExit:
    heavy = {{"torch", "numpy", "scipy", "sklearn", "matplotlib", "plotly", "pandas", "transformers", "pyarrow"}}
    print("imported:", sorted(heavy & set(sys.modules)))
"""
    ran = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "imported: []"


def test_a_reader_that_goes_away_is_no_traceback(place, atlas):
    ran = subprocess.run(
        f"set -o pipefail; PYTHONPATH={SOURCE} {sys.executable} -m taskatlas zoo ls zoo --format json | true",
        shell=True,
        executable="/bin/bash",
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in ran.stderr
    assert "Exception ignored" not in ran.stderr


def test_tables_in_a_file_are_not_folded(monkeypatch, capsys):
    """What is no terminal has no width, unless COLUMNS gives it one."""
    from taskatlas.cli.options import DEFAULTS, emit, table

    shown = table("title", ["name", "x"], [["a name of many words and letters " * 5, 0.5]])
    monkeypatch.delenv("COLUMNS", raising=False)
    emit(DEFAULTS, {}, [shown])
    wide = capsys.readouterr().out
    assert max(map(len, wide.splitlines())) > 160
    monkeypatch.setenv("COLUMNS", "60")
    emit(DEFAULTS, {}, [shown])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 60

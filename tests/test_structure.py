"""The house stands: imports point down, extras stay where they are used, and importing is cheap."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import taskatlas

SOURCE = Path(__file__).parents[1] / "src" / "taskatlas"

# A part of the house imports itself and the rows above its own; parts of one row do not know each other.
ROWS = (
    ("errors",),
    ("store", "engine"),
    ("zoo",),
    ("probe",),
    ("learn",),
    ("space", "paths", "merge", "tasks"),
    ("testing",),
    ("atlas",),
    ("report",),
    ("demo",),
    ("cli",),
    ("__main__",),
)
LEVEL = {part: level for level, row in enumerate(ROWS) for part in row}
EXTRAS = {"transformers", "peft", "datasets", "huggingface_hub", "timm", "torchvision", "h5py", "dask", "lightning"}
HEAVY = {
    "torch",
    "matplotlib",
    "sklearn",
    "scipy",
    "plotly",
    "transformers",
    "numba",
    "pandas",
    "pyarrow",
    "taskatlas.space",
}


def imports(tree: ast.AST, module: str) -> Iterator[tuple[int, str]]:
    """Line and full name of everything a module imports, wherever it does; ``module`` is its own dotted name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def outside_functions(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node that runs when the module is imported."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield node
            yield from outside_functions(node)


def wrong_directions(source: str, module: str) -> list[str]:
    """Imports of ``module`` (as ``taskatlas.space.cka``) that point up or sideways, or to no part of the house."""
    part = module.split(".")[1]
    wrong = []
    for line, name in imports(ast.parse(source), module):
        steps = name.split(".")
        if steps[0] != "taskatlas":
            continue
        target = steps[1] if len(steps) > 1 else "the whole package"
        lowers = LEVEL.get(target, len(ROWS)) < LEVEL.get(part, -1)
        if part not in LEVEL or not (target == part or lowers):
            wrong.append(f"{module}, line {line}: {part} imports {name}")
    return wrong


def early_extras(source: str) -> set[str]:
    """Extras that importing the module would import."""
    nodes = [node for node in outside_functions(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]
    return {
        name.split(".")[0] for node in nodes for _, name in imports(ast.Module([node], []), "taskatlas.part.file")
    } & EXTRAS


def modules() -> list[tuple[Path, str]]:
    """Every file of the package but its front door, with its dotted name (a folder's is that of its ``__init__``)."""
    files = sorted(SOURCE.rglob("*.py"))
    dotted = [(path, ".".join(["taskatlas", *path.relative_to(SOURCE).with_suffix("").parts])) for path in files]
    return [(path, name) for path, name in dotted if name != "taskatlas.__init__"]


def fresh_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout


# The house


def test_imports_point_down():
    assert [wrong for path, name in modules() for wrong in wrong_directions(path.read_text(), name)] == []


def test_there_is_a_house_to_look_at():
    parts = {name.split(".")[1] for _, name in modules()}
    assert {"errors", "store", "engine", "zoo", "probe", "space", "testing", "cli"} <= parts <= set(LEVEL)


@pytest.mark.parametrize(
    ("module", "code"),
    [
        ("taskatlas.store", "from taskatlas.zoo import Zoo"),
        ("taskatlas.store", "from taskatlas import engine"),
        ("taskatlas.errors", "import taskatlas.store"),
        ("taskatlas.engine", "from .store import digest"),
        ("taskatlas.zoo.zoo", "from taskatlas.probe import Probe"),
        ("taskatlas.zoo.zoo", "from ..probe.probe import Probe"),
        ("taskatlas.probe.probe", "from taskatlas.learn import fit"),
        ("taskatlas.probe.__init__", "from ..space import cka"),
        ("taskatlas.space.cka", "from taskatlas.merge.ties import ties"),
        ("taskatlas.paths.inpca", "def f():\n    from taskatlas.space import cka"),
        ("taskatlas.merge.ties", "class A:\n    def f(self):\n        import taskatlas.tasks.split as s"),
        ("taskatlas.space.cka", "from taskatlas.testing import check_kernel"),
        ("taskatlas.space.cka", "from taskatlas import testing"),
        ("taskatlas.testing.space", "from taskatlas.report import page"),
        ("taskatlas.report.page", "from taskatlas.cli import main"),
        ("taskatlas.space.cka", "from .. import report"),
        ("taskatlas.space.cka", "import taskatlas"),
        ("taskatlas.space.cka", "import taskatlas as ta"),
        ("taskatlas.space.cka", "from taskatlas import cka"),
        ("taskatlas.space.cka", "if TYPE_CHECKING:\n    from taskatlas.paths import InPCA"),
        ("taskatlas.space.cka", "try:\n    import taskatlas.cli.map\nexcept ImportError:\n    pass"),
        ("taskatlas.utils", "import numpy\nimport taskatlas.errors"),
        ("taskatlas.space.cka", "import taskatlas.utils"),
    ],
)
def test_an_import_that_points_up_or_sideways_is_found(module, code):
    assert len(wrong_directions(code, module)) == 1


@pytest.mark.parametrize(
    ("module", "code"),
    [
        ("taskatlas.space.cka", "import numpy\nfrom taskatlas.errors import BadInput\nfrom .samples import centre"),
        ("taskatlas.space.cka", "from taskatlas.space.samples import centre\nfrom taskatlas.zoo import Zoo"),
        ("taskatlas.probe.hub", "from ..zoo import Zoo\nfrom ..store import Store\nfrom . import images"),
        ("taskatlas.learn", "from taskatlas.probe import Probe\nimport torch"),
        ("taskatlas.testing.space", "from taskatlas.space import cka"),
        ("taskatlas.cli.map", "from taskatlas.space import map_tasks\nfrom taskatlas.report import page"),
        ("taskatlas.store", "import taskatlasses\nfrom taskatlas.errors import BadInput"),
    ],
)
def test_imports_that_point_down_are_fine(module, code):
    assert wrong_directions(code, module) == []


# Extras


def test_no_extra_is_imported_before_it_is_needed():
    found = {name: early_extras(path.read_text()) for path, name in modules()}
    assert {name: extras for name, extras in found.items() if extras} == {}


@pytest.mark.parametrize(
    "code",
    [
        "import transformers",
        "from transformers import AutoModel",
        "import transformers.models.bert",
        "try:\n    import timm\nexcept ImportError:\n    timm = None",
        "if True:\n    from torchvision import models",
        "class A:\n    import peft",
        "with suppress(ImportError):\n    import datasets",
    ],
)
def test_an_early_extra_is_found(code):
    assert len(early_extras(code)) == 1


@pytest.mark.parametrize(
    "code",
    [
        "def f():\n    import transformers",
        "class A:\n    def f(self):\n        from timm import create_model",
        "async def f():\n    import datasets",
        "import torch\nfrom taskatlas.zoo import hugging_face",
        "from .datasets import x",
    ],
)
def test_an_extra_within_a_function_is_fine(code):
    assert early_extras(code) == set()


# The front door


def test_every_public_name_is_there_and_explained():
    assert len(taskatlas.__all__) > 20
    for name in taskatlas.__all__:
        thing = getattr(taskatlas, name)
        explained = (thing.__doc__ or "").strip()
        assert len(explained) > 20, name
        assert not explained.startswith(f"{name}("), f"{name} has only the docstring that dataclass made"
    assert set(taskatlas.__all__) <= set(dir(taskatlas))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_thing"):
        taskatlas.no_such_thing  # noqa: B018


@pytest.mark.parametrize(
    "code",
    [
        "import taskatlas",
        "import taskatlas.cli",
        "from taskatlas import BadInput, TaskAtlasError",
        "from taskatlas.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit as e:\n    assert not e.code",
        "from taskatlas.cli import main\ntry:\n    main(['mop'])\nexcept SystemExit as e:\n    assert e.code == 2",
    ],
)
def test_importing_is_cheap(code):
    loaded = fresh_python(f"{code}\nimport sys\nprint('loaded', *sys.modules)").rsplit("loaded", 1)[1].split()
    assert "taskatlas" in loaded
    assert HEAVY & set(loaded) == set()


def test_a_heavy_import_would_be_noticed():
    loaded = fresh_python("import taskatlas, scipy, sys\nprint(*sys.modules)").split()
    assert HEAVY & set(loaded) == {"scipy"}


@pytest.mark.parametrize("stub", sorted(SOURCE.rglob("__init__.pyi")), ids=lambda stub: stub.parent.name)
def test_no_name_of_a_lazy_package_is_that_of_a_file(stub):
    """Whoever imports the file first would find it in the name's place."""
    files = {path.stem for path in stub.parent.glob("*.py")}
    nodes = [node for node in ast.parse(stub.read_text()).body if isinstance(node, ast.ImportFrom)]
    names = {name.asname or name.name for node in nodes for name in node.names}
    assert names & files == set()

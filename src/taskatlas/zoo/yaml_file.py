"""YAML files that people write: read strictly, so that a slip is an error with a line number."""

from pathlib import Path
from typing import Any

import yaml

from taskatlas.errors import BadInput

_LARGEST = 1_000_000  # values in a file


def read_yaml(file: Path) -> Any:
    r"""The content of a YAML file, as plain values.

    Raises:
        BadInput: the file cannot be read, is no YAML, has a key twice in one place, or aliases that stand for too much.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "a.yml").write_text("a: 1\na: 2")
        ...     try: read_yaml(Path(folder) / "a.yml")
        ...     except BadInput as error: print(str(error).removeprefix(folder))
        /a.yml: line 2: 'a' stands here twice. Rename one of the two.
    """
    try:
        text = file.read_text(encoding="utf-8")
        _check_nodes(file, yaml.compose(text, Loader=yaml.SafeLoader), {})
        return yaml.safe_load(text)
    except OSError as error:
        raise BadInput(f"cannot read {file}: {error.strerror or error}. Is the path right?") from error
    except BadInput:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" line {where.line + 1}:" if where is not None else ""
        raise BadInput(f"{file}:{line} this is not YAML ({getattr(error, 'problem', None) or error}).") from error


def _check_nodes(file: Path, node: yaml.Node | None, sizes: dict[int, int]) -> int:
    """The number of values under a node, aliases written out.

    Refuses a key that stands twice, of which YAML readers let the later one win without a word, and aliases of aliases
    that a few lines can blow up to more than any memory.
    """
    if node is None or id(node) in sizes:
        return sizes.get(id(node), 0)
    sizes[id(node)] = 0  # while it is looked at: it may contain itself
    size = 1
    if isinstance(node, yaml.SequenceNode):
        size += sum(_check_nodes(file, item, sizes) for item in node.value)
    if isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, value in node.value:
            name = str(key.value)
            if name in keys:
                line = key.start_mark.line + 1
                raise BadInput(f"{file}: line {line}: {name!r} stands here twice. Rename one of the two.")
            keys.add(name)
            size += 1 + _check_nodes(file, value, sizes)
    if size > _LARGEST:
        raise BadInput(
            f"{file}: line {node.start_mark.line + 1}: its aliases stand for too much. Write it without them."
        )
    sizes[id(node)] = size
    return size

"""Local builders: Python functions that the user names and that return a module for weights to be loaded into.

A builder is ``module.path:function``, ``file.py:function``, or the function itself. It returns a module, or a module
and a function that prepares raw inputs for it. Its arguments go by keyword; where it has a parameter called ``weights``
it is handed the tensors, to read sizes from. Loading them is not its work: ``load_weights`` does it, strictly.
"""

import difflib
import importlib
import importlib.util
import inspect
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from taskatlas.errors import BadInput
from taskatlas.store import digest, file_digest
from taskatlas.zoo.weights import first_line, wrapper_prefix

Builder = str | Callable[..., Any]
Prepare = Callable[[list[Any]], Any]

_HOW_TO_NAME = "Name one as file.py:function, module.path:function, transformers, timm:NAME or torchvision:NAME."
_SHOWN = 5  # names in a message, of each kind
_IMPORTING = threading.RLock()  # sys.path belongs to the whole process


def build(
    builder: Builder, arguments: Mapping[str, Any], tensors: Mapping[str, Tensor] | None
) -> tuple[nn.Module, Prepare | None]:
    """Calls a local builder: its module, and how to prepare raw inputs for it where the builder says so.

    Raises:
        BadInput: there is no such builder, it takes other arguments, it fails, or it returns something else.

    Example:
        >>> build(nn.Linear, {"in_features": 3, "out_features": 2}, None)
        (Linear(in_features=3, out_features=2, bias=True), None)
    """
    function = resolve_builder(builder)
    name = _shown(builder)
    keywords = dict(arguments)
    parameters = _parameters(function)
    if "weights" in parameters and "weights" not in keywords and tensors is not None:
        keywords["weights"] = dict(tensors)
    _check_arguments(name, function, keywords)
    with _importing_from(_folder_of(builder)):
        try:
            made = function(**keywords)
        except Exception as error:
            raise BadInput(
                f"the builder {name} failed ({first_line(error)}). Call it by itself to see where."
            ) from error
    match made:
        case nn.Module():
            return made, None
        case (nn.Module() as module, prepare) if prepare is None or callable(prepare):
            return module, prepare
    raise BadInput(
        f"the builder {name} returned a {type(made).__name__}. Let it return a module, or (module, prepare)."
    )


def resolve_builder(builder: Builder) -> Callable[..., Any]:
    """The function that a local builder names; importing it leaves ``sys.path`` as it was.

    Raises:
        BadInput: the file, the module or the function does not exist, cannot be imported, or is no function.
    """
    if not isinstance(builder, str):
        return builder
    where, colon, name = builder.rpartition(":")
    if not (where and colon and name):
        raise BadInput(f"{builder!r} is not a builder. {_HOW_TO_NAME}")
    module = _import_file(Path(where), builder) if where.endswith(".py") else _import_module(where, builder)
    function: Any = module
    for part in name.split("."):
        if not hasattr(function, part):
            raise BadInput(
                f"the builder {builder} does not exist: {where} has no {name!r}.{_meant(name, vars(module))}"
            )
        function = getattr(function, part)
    if not callable(function):
        raise BadInput(
            f"the builder {builder} cannot be called: it is of type {type(function).__name__}. Name a function."
        )
    return function


def builder_digest(builder: Builder) -> str:
    """Digest of a local builder: its name and the Python file it lives in, wherever that lies.

    Raises:
        BadInput: there is no such builder, or no source of it is kept anywhere.
    """
    function = resolve_builder(builder)
    name = builder.rpartition(":")[2] if isinstance(builder, str) else getattr(builder, "__qualname__", repr(builder))
    return digest(name, _source_digest(function, _shown(builder)))


def builder_name(builder: Builder) -> str:
    """A name under which another process finds the builder.

    Raises:
        BadInput: it was defined inside another function, or lives in no file.
    """
    if isinstance(builder, str):
        return builder
    module, name = getattr(builder, "__module__", None), getattr(builder, "__qualname__", "")
    if module and module != "__main__" and _is_at(module, name, builder):
        return f"{module}:{name}"
    file = _source_file(builder)
    if file is not None and name and "<" not in name:
        return f"{file}:{name}"
    raise BadInput(
        f"the builder {_shown(builder)} cannot be named for another process. Define it at the top of a Python file."
    )


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Loads tensors into a module, strictly: every name and every shape has to fit.

    A name may be missing where it shares memory with one that is there (tied weights).

    Args:
        module: changed in place.
        tensors: names to values, as ``read_weights`` returns them.
        what: says in a message what was loaded into what.

    Raises:
        BadInput: something is missing, unexpected or of another shape; the message names it.

    Example:
        >>> load_weights(nn.Linear(3, 2), {"weight": nn.Linear(4, 2).weight, "scale": nn.Linear(1, 1).bias}, "net.pt")
        Traceback (most recent call last):
        ...
        taskatlas.errors.BadInput: net.pt does not fit: 1 missing (bias); 1 unexpected (scale); 1 of another shape
        (weight is (2, 4) in the weights and (2, 3) in the module). Check the builder and its arguments.
    """
    own = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    prefix = wrapper_prefix(own)  # a builder may hand back a compiled or a data-parallel module
    given = {prefix + name: value for name, value in tensors.items()}
    misshaped = [
        f"{name.removeprefix(prefix)} is {tuple(value.shape)} in the weights and {tuple(own[name].shape)} in the module"
        for name, value in given.items()
        if name in own and not is_lazy(own[name]) and own[name].shape != value.shape
    ]
    fitting = {} if misshaped else given
    try:
        left = module.load_state_dict(fitting, strict=False)
    except RuntimeError as error:
        raise BadInput(f"{what} does not fit: {' '.join(str(error).split())}") from error
    present = {_memory(own[name]) for name in given if name in own}
    missing = [n for n in left.missing_keys if n in own and n not in given and _memory(own[n]) not in present]
    unexpected = [name for name in given if name not in own]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": misshaped}
    if any(problems.values()):
        found = "; ".join(
            f"{len(names)} {kind} ({some([name.removeprefix(prefix) for name in names])})"
            for kind, names in problems.items()
            if names
        )
        raise BadInput(f"{what} does not fit: {found}. Check the builder and its arguments.")


def some(names: Sequence[str]) -> str:
    """The first few of many names, for a message.

    Example:
        >>> some(["a", "b"]), some("abcdefg")
        ('a, b', 'a, b, c, d, e and 2 more')
    """
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def code_of_classes(module: nn.Module) -> str:
    """Digest of the code of every class in a module that is not torch's own: the same tensors may run other code."""
    classes = {cls for part in module.modules() for cls in type(part).__mro__}
    own = [cls for cls in classes if cls.__module__.partition(".")[0] not in ("torch", "builtins", "typing")]
    return digest({f"{cls.__module__}.{cls.__qualname__}": _class_code(cls) for cls in own})


def _memory(tensor: Tensor) -> tuple[int, tuple[int, ...]]:
    return (id(tensor), ()) if is_lazy(tensor) else (tensor.data_ptr(), tuple(tensor.shape))


def _shown(builder: Builder) -> str:
    return builder if isinstance(builder, str) else getattr(builder, "__qualname__", repr(builder))


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # some functions written in C have none
        return {}


def _check_arguments(name: str, function: Callable[..., Any], keywords: Mapping[str, Any]) -> None:
    parameters = _parameters(function)
    open_ended = not parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for keyword in keywords:
        if keyword not in parameters and not open_ended:
            raise BadInput(f"the builder {name} takes no argument {keyword!r}.{_meant(keyword, parameters)}")
    for parameter in parameters.values():
        required = parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_KEYWORD,
            parameter.VAR_POSITIONAL,
        )
        if required and parameter.name not in keywords:
            raise BadInput(f"the builder {name} needs the argument {parameter.name!r}. Give it under arguments.")


def _meant(word: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(word, [name for name in known if not name.startswith("_")], n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _folder_of(builder: Builder) -> Path:
    """What ``import`` should see beside the installed packages: a file's own folder, else where the user stands."""
    where = builder.rpartition(":")[0] if isinstance(builder, str) else ""
    return Path(where).resolve().parent if where.endswith(".py") else Path.cwd()


@contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    with _IMPORTING:
        before = list(sys.path)
        sys.path.insert(0, str(folder))
        try:
            yield
        finally:
            sys.path[:] = before


def _import_module(name: str, builder: str) -> ModuleType:
    with _importing_from(_folder_of(builder)):
        try:
            importlib.invalidate_caches()
            return importlib.import_module(name)
        except (Exception, SystemExit) as error:  # whatever the user's file does when it is imported
            raise BadInput(f"the builder {builder} cannot be imported ({first_line(error)}). {_HOW_TO_NAME}") from error


def _import_file(file: Path, builder: str) -> ModuleType:
    if not file.is_file():
        raise BadInput(f"the builder {builder} does not exist: there is no file {file}. Is the path right?")
    return _imported_file(file.resolve(), file_digest(file))


@lru_cache(maxsize=64)
def _imported_file(file: Path, content: str) -> ModuleType:
    """The module in a file; a file that changed since is imported again, because its content is part of the key."""
    name = f"taskatlas_builder_{digest(file, content)[:16]}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise BadInput(f"the builder file {file} cannot be imported. Name a Python file.")
    module = importlib.util.module_from_spec(spec)
    with _importing_from(file.parent):
        sys.modules[name] = module  # dataclasses and pickles look their module up by name
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            del sys.modules[name]
            raise BadInput(f"the builder file {file} cannot be imported ({first_line(error)}).") from error
    return module


def _is_at(module: str, name: str, function: object) -> bool:
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is function


def _source_file(thing: Any) -> Path | None:
    try:
        file = inspect.getsourcefile(inspect.unwrap(thing))
    except TypeError:
        return None
    return Path(file) if file is not None and Path(file).is_file() else None


def _source_digest(function: Callable[..., Any], name: str) -> str:
    file = _source_file(function)
    if file is not None:
        return file_digest(file)
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None:
        raise BadInput(
            f"the builder {name} has no source that a result could be traced to. Define it in a Python file."
        )
    return _code_digest(code)


def _class_code(cls: type) -> dict[str, str]:
    """Digest of each method's compiled code: a notebook keeps no source of a class, and may define it anew."""
    codes = {}
    for name, member in vars(cls).items():
        function = getattr(member, "__func__", None) or getattr(member, "fget", None) or member
        code = getattr(inspect.unwrap(function), "__code__", None) if callable(function) else None
        if code is not None:
            codes[name] = _code_digest(code)
    return codes


def _code_digest(code: CodeType) -> str:
    constants = [_code_digest(value) if isinstance(value, CodeType) else _constant(value) for value in code.co_consts]
    return digest(code.co_name, code.co_code, code.co_names, constants)


def _constant(value: object) -> str:
    return repr(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)

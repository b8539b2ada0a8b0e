"""``torch.export``, the same for all that follow a network's forward pass: quietly, and through no fused attention."""

import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

_TEXT_AXES = 8  # of a tensor of whole numbers, at most


def exported(
    module: nn.Module, arguments: Sequence[Any], keywords: Mapping[str, Any] | None = None, shapes: Any = None
) -> ExportedProgram:
    """One forward pass as a graph, in evaluation mode; what cannot be followed raises, and prints nothing."""
    with _silence(), slow_attention():
        return torch.export.export(
            module.eval(), tuple(arguments), dict(keywords or {}), dynamic_shapes=shapes, strict=False
        )


def exported_freely(module: nn.Module, leaves: Sequence[Any], *, functional: bool = False) -> ExportedProgram:
    """A graph in which the batch is free, and where the network allows it the length of a text.

    Args:
        module: takes the leaves by position, in ``*leaves``.
        leaves: of two samples or more. Of floats the first axis is free, of whole numbers all.
        functional: whether operations that write into their arguments are replaced by such that do not.
    """

    def attempt(most: int) -> ExportedProgram:
        free = tuple(
            dict.fromkeys(range(min(leaf.ndim, 1 if leaf.is_floating_point() else most)), Dim.AUTO)
            if isinstance(leaf, Tensor)
            else None
            for leaf in leaves
        )
        program = exported(module, leaves, shapes=(free,))
        with _silence():
            return program.run_decompositions({}) if functional else program

    try:
        return attempt(_TEXT_AXES)
    except Exception:  # some networks build tables of one length
        return attempt(1)


@contextmanager
def slow_attention() -> Iterator[None]:
    """While it lasts, ``nn.MultiheadAttention`` and ``nn.TransformerEncoderLayer`` compute step by step.

    Their fused path passes hooks by, so nothing would be seen of what is inside, and it gives other last digits.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def _silence() -> Iterator[None]:
    """What export would like to be otherwise in somebody's network is told by the error, once."""
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

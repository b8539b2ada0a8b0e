"""The kernels by name: what ``map_tasks`` and the command line offer."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType

import numpy as np

from taskatlas.errors import BadInput
from taskatlas.space.cka import cka_matrix, minibatch_cka_matrix, rbf_cka_matrix
from taskatlas.space.mutual_knn import mutual_knn_matrix
from taskatlas.space.procrustes import procrustes_matrix
from taskatlas.space.samples import Samples

Kernel = Callable[[Sequence[Samples], Sequence[Samples] | None], np.ndarray]
"""(features of m checkpoints, features of k others or None) -> (m, m), or (m, k) against the others."""

KERNELS: Mapping[str, Kernel] = MappingProxyType(
    {
        "cka": cka_matrix,
        "debiased_cka": partial(cka_matrix, debiased=True),
        "minibatch_cka": minibatch_cka_matrix,
        "rbf_cka": rbf_cka_matrix,
        "procrustes": procrustes_matrix,
        "mutual_knn": mutual_knn_matrix,
    }
)


def find_kernel(kernel: str | Kernel) -> tuple[Kernel, str]:
    """A kernel and the name under which a task space records it; functions pass through.

    Raises:
        BadInput: there is no kernel of that name.

    Example:
        >>> find_kernel("rbf_cka")[1]
        'rbf_cka'
    """
    if callable(kernel):
        return kernel, f"{kernel.__module__}.{getattr(kernel, '__qualname__', repr(kernel))}"
    if kernel not in KERNELS:
        raise BadInput(f"there is no kernel {kernel!r}. Choose one of: {', '.join(KERNELS)}.")
    return KERNELS[kernel], kernel

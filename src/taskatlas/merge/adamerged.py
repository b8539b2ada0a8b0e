"""What learning merging coefficients gives: the coefficients, how they came about, and the merged weights."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from taskatlas.errors import BadInput
from taskatlas.merge.task_vectors import Level
from taskatlas.store import atomic_write, digest
from taskatlas.zoo.builders import some
from taskatlas.zoo.weights import tensors_digest

_FORMAT = "taskatlas.adamerged/1"  # the one key of the metadata: of several, the order in the file would be random
_ARRAYS = ("coefficients", "path", "entropy", "marginal_entropy", "dead")
_COLLAPSED = 0.5  # of the marginal entropy at the start


@dataclass(frozen=True, eq=False, repr=False)
class AdaMerged:
    """Learned coefficients of N experts and T tensors, their history over S steps, and the merged weights.

    Attributes:
        level: ``task`` or ``layer``.
        names: the experts that have a task vector, N.
        tensors: the tensors that were merged, T.
        tasks: those that it learned on, K.
        coefficients: (N,) task-wise, (N, T) layer-wise.
        path: coefficients before every step and at the end, (S + 1, N) or (S + 1, N, T).
        entropy: mean entropy of predictions in nats, (S, K).
        marginal_entropy: entropy of the mean prediction of a batch in nats, (S, K). Where it falls while the entropy
            falls, a network says the same about every sample.
        dead: (N, T), where a coefficient changes nothing: the expert left the tensor as it was, or no prediction
            depends on it.
        unreached: tensors that no prediction depends on.
        dropped: experts that equal the base.
        transductive: whether it learned on the samples that are scored.
        settings: what else decided the result.
        state: the merged tensors.
        own: expert -> tensors that are its own: heads.
    """

    level: Level
    names: tuple[str, ...]
    tensors: tuple[str, ...]
    tasks: tuple[str, ...]
    coefficients: Float[np.ndarray, "N *T"]
    path: Float[np.ndarray, "S1 N *T"]
    entropy: Float[np.ndarray, "S K"]
    marginal_entropy: Float[np.ndarray, "S K"]
    dead: Bool[np.ndarray, "N T"]
    unreached: tuple[str, ...]
    dropped: tuple[str, ...]
    transductive: bool
    settings: Mapping[str, Any]
    state: Mapping[str, Tensor]
    own: Mapping[str, Mapping[str, Tensor]]

    def __repr__(self) -> str:
        means = self.by_expert()
        shown = ", ".join(f"{name} {value:.3f}" for name, value in list(means.items())[:6])
        more = " ..." if len(means) > 6 else ""
        edge = max(1, len(self.entropy) // 10)
        first, last = self.entropy[:edge].mean(), self.entropy[-edge:].mean()
        own = sorted({name for its in self.own.values() for name in its})
        notes = [
            "transductive" if self.transductive else "",
            f"each expert's own: {some(own)}" if own else "",
            f"equal to the base: {', '.join(self.dropped)}" if self.dropped else "",
            f"{int(self.dead.sum())} of {self.dead.size} coefficients dead" if self.dead.any() else "",
            f"predictions collapsed: {', '.join(self.collapsed)}" if self.collapsed else "",
        ]
        noted = "".join(f"; {note}" for note in notes if note)
        return (
            f"AdaMerged({self.level}-wise, {len(self.names)} experts: {shown}{more}; {len(self.entropy)} steps, "
            f"entropy {first:.3f} to {last:.3f}{noted})"
        )

    @property
    def digest(self) -> str:
        """Digest of coefficients and merged weights."""
        weights = [tensors_digest(self.state), {name: tensors_digest(its) for name, its in self.own.items()}]
        return digest("adamerged", self.level, self.names, self.coefficients, self.transductive, weights)

    @property
    def collapsed(self) -> tuple[str, ...]:
        """Tasks whose predictions became alike: marginal entropy in the last tenth below half of that in the first."""
        edge = max(1, len(self.entropy) // 10)
        first, last = self.marginal_entropy[:edge].mean(0), self.marginal_entropy[-edge:].mean(0)
        return tuple(task for task, a, b in zip(self.tasks, first, last, strict=True) if b < _COLLAPSED * a)

    def by_expert(self) -> dict[str, float]:
        """A coefficient for each expert: layer-wise the mean over the tensors where it is not dead."""
        if self.level == "task":
            return dict(zip(self.names, self.coefficients.tolist(), strict=True))
        living = np.where(self.dead, np.nan, self.coefficients)
        return {
            name: float(np.nanmean(row)) if np.isfinite(row).any() else float("nan")
            for name, row in zip(self.names, living, strict=True)
        }

    def state_for(self, task: str) -> dict[str, Tensor]:
        """The merged tensors with those of the task's own: what its network takes.

        Raises:
            BadInput: there is no such expert.
        """
        if task not in self.own:
            raise BadInput(f"there is no expert {task!r}; there are {', '.join(self.own)}.")
        return {**self.state, **self.own[task]}

    def save(self, path: Path | str) -> None:
        """Writes one safetensors file: history, merged tensors, and each expert's own.

        Raises:
            BadInput: the place cannot be written.
        """
        arrays = {f"history/{name}": torch.from_numpy(np.ascontiguousarray(getattr(self, name))) for name in _ARRAYS}
        merged = {f"state/{name}": value for name, value in self.state.items()}
        own = {f"own/{i}/{name}": value for i, its in enumerate(self.own.values()) for name, value in its.items()}
        plain = [field.name for field in fields(self) if field.name not in (*_ARRAYS, "state", "own")]
        about = {name: getattr(self, name) for name in plain} | {"experts": list(self.own)}
        copied = {name: value.detach().cpu().contiguous().clone() for name, value in (arrays | merged | own).items()}
        with atomic_write(Path(path)) as file:
            save_file(copied, file, metadata={_FORMAT: json.dumps(about)})

    @classmethod
    def load(cls, path: Path | str) -> "AdaMerged":
        """Reads what ``save`` wrote.

        Raises:
            BadInput: the file is missing, cut short, or something else.
        """
        path = Path(path)
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if _FORMAT not in metadata:
                    raise BadInput(f"{path} holds no learned coefficients. Give a file that AdaMerged.save wrote.")
                about = json.loads(metadata[_FORMAT])
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            experts = about.pop("experts")
            lists = ("names", "tensors", "tasks", "unreached", "dropped")
            about |= {name: tuple(about[name]) for name in lists}
            return cls(
                **about,
                **{name: found[f"history/{name}"].numpy() for name in _ARRAYS},
                state=_under("state/", found),
                own={name: _under(f"own/{i}/", found) for i, name in enumerate(experts)},
            )
        except FileNotFoundError as error:
            raise BadInput(f"there is no file {path}. Is the path right?") from error
        except (SafetensorError, OSError, LookupError, ValueError, TypeError) as error:
            if isinstance(error, BadInput):
                raise
            raise BadInput(f"{path} is not whole ({error}). Was its writing or copying cut short?") from error

    def plot(self, ax: Any = None) -> Any:
        """Draws task-wise coefficients over steps, or layer-wise ones by expert and tensor; returns the axes."""
        import matplotlib.pyplot as plt

        ax = plt.subplots(figsize=(8, 4), layout="constrained")[1] if ax is None else ax
        how = "on the scored samples" if self.transductive else "on held-out samples"
        if self.level == "task":
            for name, column in zip(self.names, self.path.T, strict=True):
                ax.plot(column, label=name)
            ax.legend(title="expert", frameon=False)
            ax.set(xlabel="step", ylabel="coefficient λ", title=f"Merging coefficients learned {how}")
            return ax
        shown = np.where(self.dead, np.nan, self.coefficients)
        image = ax.imshow(shown, aspect="auto", interpolation="nearest", cmap="viridis")
        ax.figure.colorbar(image, ax=ax, label="coefficient λ (white: dead)")
        ax.set_yticks(range(len(self.names)), self.names)
        ax.set(xlabel="tensor, in the network's order", title=f"Merging coefficients learned {how}")
        return ax


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

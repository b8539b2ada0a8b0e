"""Fusions on disk: what was learned as one file, and a model that was merged as an ordinary checkpoint folder."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from taskatlas.errors import BadInput
from taskatlas.merge.fusion_learning import Learned
from taskatlas.merge.hypernetwork import Hypernetwork
from taskatlas.store import atomic_write, output_folder
from taskatlas.zoo.weights import first_line, tensors_digest

_FORMAT = "taskatlas.data-adaptive/2"  # the one key of the metadata: of several, the order in the file would be random
_HISTORY = ("coefficients", "entropy", "marginal_entropy")
_BESIDE = ("*token*.json", "*vocab*", "merges.txt", "*.model", "*processor_config.json", "generation_config.json")


@dataclass(frozen=True, eq=False)
class SavedFusion:
    """What a fusion learned, without base and experts.

    Attributes:
        about: plain values: names, tensors, tasks, adaptation, arguments.
        hypernetwork: h.
        coefficients: mean coefficients of every task, (K, N) or (K, N, T).
        dead: (N, T).
        learned: how learning went, or None.
        statistics: task -> BatchNorm's statistics, where they were estimated.
    """

    about: Mapping[str, Any]
    hypernetwork: Hypernetwork
    coefficients: np.ndarray
    dead: np.ndarray
    learned: Learned | None
    statistics: Mapping[str, Mapping[str, Tensor]]

    def save(self, path: Path | str) -> None:
        """Writes one safetensors file.

        Raises:
            BadInput: the place cannot be written.
        """
        h, learned = self.hypernetwork, self.learned
        tensors = {f"hypernetwork/{name}": value for name, value in h.state_dict().items()}
        tensors |= {"coefficients": torch.from_numpy(self.coefficients), "dead": torch.from_numpy(self.dead)}
        for i, its in enumerate(self.statistics.values()):
            tensors |= {f"statistics/{i}/{name}": value for name, value in its.items()}
        about = dict(self.about) | {
            "hypernetwork": {"shape": h.shape, "bound": h.bound},
            "statistics": list(self.statistics),
            "learned": None,
        }
        if learned is not None:
            tensors |= {f"history/{name}": torch.from_numpy(getattr(learned, name)) for name in _HISTORY}
            about["learned"] = {"reached": sorted(learned.reached), "collapsed": dict(learned.collapsed)}
        copied = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        with atomic_write(Path(path)) as file:
            save_file(copied, file, metadata={_FORMAT: json.dumps(about, default=_number)})

    @classmethod
    def load(cls, path: Path | str) -> "SavedFusion":
        """Reads what ``save`` wrote.

        Raises:
            BadInput: the file is missing, cut short, or something else.
        """
        path = Path(path)
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if _FORMAT not in metadata:
                    raise BadInput(
                        f"{path} holds no fusion, or one of another version. Give a file that DataAdaptive.save wrote."
                    )
                about = json.loads(metadata[_FORMAT])
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            history = about["learned"]
            if not all(bool(found[name].isfinite().all()) for name in found if name.startswith("hypernetwork/")):
                raise BadInput(f"{path} holds NaN or infinite numbers. Learn it again.")
            plain = {name: about[name] for name in ("names", "tensors", "tasks", "adaptation", "statistics")}
            return cls(
                about={**plain, "arguments": dict(about["arguments"]), "content": dict(about["content"])},
                hypernetwork=_hypernetwork(about["hypernetwork"], _under("hypernetwork/", found)),
                coefficients=found["coefficients"].numpy(),
                dead=found["dead"].numpy(),
                learned=None
                if history is None
                else Learned(
                    reached=frozenset(history["reached"]),
                    collapsed=history["collapsed"],
                    **{name: found[f"history/{name}"].numpy() for name in _HISTORY},
                ),
                statistics={task: _under(f"statistics/{i}/", found) for i, task in enumerate(about["statistics"])},
            )
        except FileNotFoundError as error:
            raise BadInput(f"there is no file {path}. Is the path right?") from error
        except (SafetensorError, OSError, LookupError, ValueError, TypeError, RuntimeError) as error:
            if isinstance(error, BadInput):
                raise
            raise BadInput(f"{path} is not whole ({first_line(error)}). Was its writing cut short?") from error


def export_model(
    folder: Path | str,
    network: nn.Module,
    state: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    like: Path | str | None = None,
) -> None:
    """Writes a merged model as an ordinary checkpoint folder, with a receipt.

    A Hugging Face network is written by its own ``save_pretrained``, and opens with ``from_pretrained``; of another its
    tensors, as ``model.safetensors``.

    Args:
        folder: where to.
        network: whose tensors they are; it is not changed.
        state: its tensors by name.
        settings: how they were made: coefficients, task, on which samples was learned.
        like: a model folder whose tokenizer and image processor go along.

    Raises:
        BadInput: the folder is not empty or cannot be written, or ``like`` is no folder.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInput(f"{folder} is not an empty folder. Name another one for the merged model.")
    if like is not None and not Path(like).is_dir():
        raise BadInput(f"{like} is no folder to take tokenizer and image processor from.")
    own = {name: value.detach().cpu().contiguous() for name, value in state.items() if name in network.state_dict()}
    inputs = {"state": tensors_digest(own)}
    with output_folder(folder, "taskatlas.DataAdaptive.export", inputs=inputs, settings=settings) as place:
        save_model(place, network, own, like)


def save_model(place: Path, network: nn.Module, state: Mapping[str, Tensor], like: Path | str | None = None) -> None:
    """Writes tensors as a network's checkpoint: by its own ``save_pretrained``, else as ``model.safetensors``.

    Args:
        place: a folder that is there.
        network: whose tensors they are; it is not changed.
        state: its tensors by name; others are left out.
        like: a model folder whose tokenizer and image processor go along.
    """
    own = {name: value.detach().cpu().contiguous() for name, value in state.items() if name in network.state_dict()}
    save_pretrained = getattr(network, "save_pretrained", None)
    if save_pretrained is None:
        save_file(_untied(own), place / "model.safetensors")
    else:
        save_pretrained(str(place), state_dict=own)
    if like is not None:
        names = {file.name for pattern in _BESIDE for file in Path(like).glob(pattern) if file.is_file()}
        for name in sorted(names - {file.name for file in place.iterdir()}):
            shutil.copyfile(Path(like) / name, place / name)


def _number(value: Any) -> Any:
    """A NumPy number as a plain one."""
    return value.item()


def _untied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor in memory of its own, as safetensors wants them."""
    return {name: value.clone() for name, value in tensors.items()}


def _hypernetwork(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Hypernetwork:
    hidden, features = tensors["first.weight"].shape
    found = Hypernetwork(features, tuple(about["shape"]), bound=about["bound"], hidden=hidden)
    found.to(tensors["first.weight"].dtype).load_state_dict(dict(tensors))
    return found


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

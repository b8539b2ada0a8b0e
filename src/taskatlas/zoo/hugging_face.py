"""Hugging Face models: a folder or a hub id, opened with ``transformers``, and inputs prepared as in training.

Code that a model brings along is never run. Of an encoder-decoder model the encoder is opened. Text goes through the
folder's tokenizer, images through its image processor.
"""

import copy
import inspect
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from torch import nn

from taskatlas.errors import BadInput, MissingExtra
from taskatlas.zoo.builders import some
from taskatlas.zoo.weights import FOLDER_FILES, files_digest, first_line, parameter_count, tensor_shapes

_TOKENIZER_FILES = (
    "tokenizer_config.json",
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "tokenizer.model",
)
_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
# What decides, beside the weights, what a model computes from a raw input.
_SETTINGS = (
    "config.json",
    "*token*.json",
    "*vocab*",
    "merges.txt",
    "*.model",
    "*processor_config.json",
)
# What else belongs to a model: how it generates, how it talks, what adapts it.
_BESIDE = ("generation_config.json", "chat_template*", "adapter_config.json")
_CLASSIFIERS = ("SequenceClassification", "ImageClassification")
# Parts that heads and training use and the last hidden state does not: files often leave them out.
_UNUSED_PARTS = frozenset({"pooler", "mask_token", "masked_spec_embed"})
_UNBOUNDED = 10**9  # tokenizers without a limit state an absurd one


def is_model_folder(folder: Path) -> bool:
    """Whether a folder holds a Hugging Face model: its weights, and a configuration that says which model it is."""
    if not (folder / "config.json").is_file() or not any((folder / name).is_file() for name in FOLDER_FILES):
        return False
    try:
        return "model_type" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        return True  # a damaged configuration: opening the model says so


def model_digest(source: Path | str) -> str:
    """Digest of a model folder's weights, configuration and preprocessing, or of a hub id's commit.

    Raises:
        BadInput: a file of the folder cannot be read; the hub does not know the id.
    """
    if isinstance(source, str):
        return hub_commit(source)
    also = {file for pattern in _SETTINGS for file in source.glob(pattern) if file.is_file()}
    return files_digest(source, sorted(also))


def open_model(source: Path | str) -> tuple[nn.Module, Any]:
    """A model folder or hub id as a module, and how it prepares raw inputs (None where it brings nothing to do so).

    Raises:
        BadInput: it is no model that ``transformers`` knows, its weights are damaged or do not fit its configuration.
        MissingExtra: ``transformers`` is not installed.
    """
    if isinstance(source, Path):
        _check_folder(source)
    transformers = _transformers()
    options = _loading_options(source)
    with _quiet(transformers), _told_as_bad_input(source):
        model, report = transformers.AutoModel.from_pretrained(
            str(source), output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    # The configuration of an encoder that was saved alone does not say that the model had a decoder.
    has_both = {"encoder", "decoder"} <= {name for name, _ in model.named_children()}
    encoder = model.get_encoder() if has_both else model
    _check_complete(source, model, encoder, report)
    if not _has(source, _TOKENIZER_FILES) and not _has(source, _PROCESSOR_FILES):
        return encoder, None
    accepted = frozenset(inspect.signature(encoder.forward).parameters)
    return encoder, _Preparation(source, accepted, _longest_input(encoder), getattr(model.config, "num_channels", 3))


def open_classifier(source: Path | str) -> tuple[nn.Module, Any] | None:
    """A model folder or hub id with the classification head that it was saved with; None where it was saved without.

    Returns:
        The module, whose output holds logits, and how it prepares raw inputs.

    Raises:
        BadInput: as ``open_model``.
        MissingExtra: ``transformers`` is not installed.
    """
    if isinstance(source, Path):
        _check_folder(source)
    transformers = _transformers()
    options = _loading_options(source)
    with _quiet(transformers), _told_as_bad_input(source):
        saved_as = getattr(transformers.AutoConfig.from_pretrained(str(source), **options), "architectures", None)
        kind = next((kind for kind in _CLASSIFIERS if saved_as and saved_as[0].endswith(f"For{kind}")), None)
        if kind is None:
            return None
        model, report = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(
            str(source), output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    _check_complete(source, model, model, report, unused=frozenset())
    accepted = frozenset(inspect.signature(model.forward).parameters)
    return model, _Preparation(source, accepted, _longest_input(model), getattr(model.config, "num_channels", 3))


def hub_parameters(model_id: str) -> int:
    """The number of parameters of a model on the hub, from the headers of its files.

    Raises:
        BadInput: the hub does not know the id, or the model has no safetensors files.
        MissingExtra: ``huggingface_hub`` is not installed.
    """
    hub = _hub()
    commit = hub_commit(model_id)
    cached = hub.try_to_load_from_cache(model_id, "config.json", revision=commit)
    if isinstance(cached, str) and any((Path(cached).parent / name).is_file() for name in FOLDER_FILES):
        return parameter_count(tensor_shapes(Path(cached).parent))
    try:
        counts: Mapping[str, int] = hub.get_safetensors_metadata(model_id, revision=commit).parameter_count
    except Exception as error:
        raise BadInput(
            f"the hub does not say how large {model_id} is ({first_line(error)}). Open it once first."
        ) from error
    return sum(count for dtype, count in counts.items() if dtype.startswith(("F", "BF")))


@lru_cache(maxsize=1024)
def hub_commit(model_id: str) -> str:
    """The commit that a hub id stands for now; without a network, the one in the local cache.

    Asked once a process, so that the digest and the model that is opened belong together.

    Raises:
        BadInput: the hub does not know the id, or cannot be reached and nothing is cached.
        MissingExtra: ``huggingface_hub`` is not installed.
    """
    hub = _hub()
    try:
        return str(hub.HfApi().model_info(model_id).sha)
    except Exception as error:  # no network, no such model, no right to see it
        cached = hub.try_to_load_from_cache(model_id, "config.json", revision="main")
        if isinstance(cached, str):
            return Path(cached).parent.name
        raise BadInput(
            f"{model_id!r} is neither a local path nor a model that the Hugging Face hub shows ({first_line(error)}). "
            "Check its spelling, the network, and the access token."
        ) from error


def download_model(model_id: str) -> Path:
    """The folder in the local cache with a hub model's weights, configuration and preprocessing, fetched if need be.

    Safetensors files are taken where there are any, else PyTorch's.

    Raises:
        BadInput: the hub does not know the id, or cannot be reached and nothing is cached.
        MissingExtra: ``huggingface_hub`` is not installed.
    """
    hub = _hub()
    commit = hub_commit(model_id)
    folder = Path()
    try:
        for weights in ("*.safetensors", "*.bin"):
            wanted = [*_SETTINGS, *_BESIDE, weights, f"{weights}.index.json"]
            folder = Path(
                hub.snapshot_download(model_id, revision=commit, allow_patterns=wanted, ignore_patterns="*/*")
            )
            if any(folder.glob(weights)):
                break
    except Exception as error:  # the hub, the network, the disk: every layer raises its own
        raise BadInput(f"cannot fetch {model_id} from the hub ({first_line(error)}). Try again later.") from error
    return folder


@dataclass(frozen=True)
class _Preparation:
    """Raw inputs to what the module takes, by their kind: strings, lists of words, or images."""

    source: Path | str
    accepted: frozenset[str]  # names of the module's inputs
    longest: int | None  # tokens
    channels: int

    def __call__(self, samples: list[Any]) -> Any:
        first = samples[0]
        if isinstance(first, str):
            return self._tokenize(self._tokenizer, samples)
        if isinstance(first, list | tuple):
            return self._tokenize(self._word_tokenizer, [list(words) for words in samples], is_split_into_words=True)
        return self._image_processor(images=[self._image(sample) for sample in samples], return_tensors="pt")

    def _tokenize(self, tokenizer: Any, samples: list[Any], **how: Any) -> Any:
        longest = min(self.longest or _UNBOUNDED, tokenizer.model_max_length)
        if longest < _UNBOUNDED:
            how = {**how, "truncation": True, "max_length": longest}
        batch = tokenizer(samples, padding=True, return_tensors="pt", **how)
        for name in set(batch) - self.accepted:
            del batch[name]
        return batch

    def _image(self, sample: Any) -> Any:
        from PIL import Image

        if self.channels != 3 or not isinstance(sample, np.ndarray):
            return sample
        pixels = sample[..., 0] if sample.ndim == 3 and sample.shape[-1] == 1 else sample
        return Image.fromarray(pixels).convert("RGB")

    @cached_property
    def _tokenizer(self) -> Any:
        if not _has(self.source, _TOKENIZER_FILES):
            raise BadInput(
                f"{self.source} has no tokenizer, so it cannot read text. Give it images, or add a tokenizer."
            )
        transformers = _transformers()
        with _quiet(transformers), _told_as_bad_input(self.source):
            tokenizer = transformers.AutoTokenizer.from_pretrained(str(self.source), **_loading_options(self.source))
        if tokenizer.pad_token is None:
            if tokenizer.eos_token is None:
                raise BadInput(
                    f"the tokenizer of {self.source} has neither a pad nor an eos token, so texts of different lengths "
                    "cannot share a batch. Name a pad_token in its tokenizer_config.json."
                )
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    @cached_property
    def _word_tokenizer(self) -> Any:
        if not self._tokenizer.is_fast:
            raise BadInput(
                f"the tokenizer of {self.source} cannot say which word a token belongs to. "
                "Save a fast tokenizer (tokenizer.json) beside the model."
            )
        return _with_space_before_words(self._tokenizer)

    @cached_property
    def _image_processor(self) -> Any:
        if not _has(self.source, _PROCESSOR_FILES):
            raise BadInput(f"{self.source} has no image processor, so it cannot read images. Give it text, or add one.")
        transformers = _transformers()
        with _quiet(transformers), _told_as_bad_input(self.source):
            return transformers.AutoImageProcessor.from_pretrained(str(self.source), **_loading_options(self.source))


def _with_space_before_words(tokenizer: Any) -> Any:
    """Byte-level vocabularies tell a word that starts a text from one after a space; words in a list are the latter."""
    from tokenizers import Tokenizer

    content = json.loads(tokenizer.backend_tokenizer.to_str())
    splitter = content["pre_tokenizer"] or {}
    byte_level = [step for step in (splitter, *splitter.get("pretokenizers", ())) if step.get("type") == "ByteLevel"]
    if not byte_level:
        return tokenizer
    for step in byte_level:
        step["add_prefix_space"] = True
    changed = copy.deepcopy(tokenizer)
    changed.backend_tokenizer.pre_tokenizer = Tokenizer.from_str(json.dumps(content)).pre_tokenizer
    changed.add_prefix_space = True
    return changed


def _longest_input(module: nn.Module) -> int | None:
    """The number of tokens for which the module has position embeddings, where it has any."""
    longest = getattr(getattr(module, "config", None), "max_position_embeddings", None)
    if not isinstance(longest, int) or longest <= 0:
        return None
    for name, part in module.named_modules():
        if name.endswith("position_embeddings") and isinstance(part, nn.Embedding) and part.padding_idx is not None:
            return longest - part.padding_idx - 1  # RoBERTa counts positions from behind the padding's
    return longest


def _check_folder(folder: Path) -> None:
    if not folder.exists():
        raise BadInput(f"there is no model at {folder}. Is the path right?")
    if not folder.is_dir():
        raise BadInput(
            f"{folder} is not a Hugging Face model folder. Name the folder, or another builder for this file."
        )
    if not (folder / "config.json").is_file():
        raise BadInput(
            f"{folder} is not a Hugging Face model folder: it has no config.json. Name another builder for it."
        )
    tensor_shapes(folder)  # damaged files are named here, in our words


def _check_complete(
    source: Path | str,
    model: nn.Module,
    encoder: nn.Module,
    report: Mapping[str, Any],
    unused: frozenset[str] = _UNUSED_PARTS,
) -> None:
    """Refuses a model of which a used part would stay at random values."""
    used = {id(value) for value in (*encoder.parameters(), *encoder.buffers())}
    own = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    names = [name for name, value in own if id(value) in used and unused.isdisjoint(name.split("."))]
    misshaped = {key for key, *_ in report["mismatched_keys"]}
    problems = {
        "missing": [name for name in names if name in report["missing_keys"] and name not in misshaped],
        "of another shape": [name for name in names if name in misshaped],
    }
    if any(problems.values()):
        found = "; ".join(f"{len(keys)} {kind} ({some(keys)})" for kind, keys in problems.items() if keys)
        raise BadInput(
            f"the weights of {source} do not fit its config.json: {found}. Save it again with save_pretrained."
        )


def _has(source: Path | str, names: tuple[str, ...]) -> bool:
    if isinstance(source, Path):
        return any((source / name).is_file() for name in names)
    return any(_on_hub(source, name) for name in names)


@lru_cache(maxsize=4096)
def _on_hub(model_id: str, name: str) -> bool:
    hub = _hub()
    from huggingface_hub.errors import EntryNotFoundError

    try:
        hub.hf_hub_download(model_id, name, revision=hub_commit(model_id))
    except EntryNotFoundError:  # on the hub, or, without a network, in the cache
        return False
    return True


def _loading_options(source: Path | str) -> dict[str, Any]:
    local = isinstance(source, Path)
    return {
        "trust_remote_code": False,
        "local_files_only": local,
        **({} if isinstance(source, Path) else {"revision": hub_commit(source)}),
    }


@contextmanager
def _told_as_bad_input(source: Path | str) -> Iterator[None]:
    try:
        yield
    except BadInput:
        raise
    except Exception as error:  # transformers raises OSError, ValueError, RuntimeError, KeyError and ImportError alike
        if "trust_remote_code" in str(error):
            raise BadInput(
                f"{source} needs code of its own, which is never run here. Convert it, or name a builder."
            ) from error
        raise BadInput(
            f"transformers cannot open {source} ({first_line(error)}). Save it again with save_pretrained."
        ) from error


@contextmanager
def _quiet(transformers: ModuleType) -> Iterator[None]:
    """Bars and notes of ``transformers`` are off: a zoo opens many models, under a bar of its own."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _transformers() -> ModuleType:
    try:
        import transformers
    except ImportError as error:
        raise MissingExtra("transformers", "hf", "opening a Hugging Face model") from error
    return transformers


def _hub() -> ModuleType:
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingExtra("huggingface_hub", "hf", "asking the Hugging Face hub") from error
    return huggingface_hub

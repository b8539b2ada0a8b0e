"""What stands around the weights of a merged model: configuration, tokenizer, recipe, model card."""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from taskatlas.errors import BadInput
from taskatlas.merge.recipe import MergeRecipe
from taskatlas.merge.sources import Source
from taskatlas.store import digest
from taskatlas.zoo.checkpoint import is_hub_id

CONFIG, RECIPE, CARD = "config.json", "recipe.yml", "README.md"
_BESIDE = ("generation_config.json", "*processor_config.json")
_TOKENIZER = ("*token*.json", "*vocab*", "merges.txt", "*.model", "*.tiktoken", "chat_template*")
# Files that say which number a token has, in the order in which they are believed.
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")
_COUNTS_LAYERS = re.compile(r"(n|num|encoder|decoder)_(\w+_)?layers?")


def read_config(folder: Path | None) -> dict[str, Any] | None:
    """A model folder's configuration; None where there is none.

    Raises:
        BadInput: it is damaged.
    """
    if folder is None or not (folder / CONFIG).is_file():
        return None
    config = _read_json(folder / CONFIG)
    if not isinstance(config, dict):
        raise BadInput(f"{folder / CONFIG} is no configuration. Copy or download it again.")
    return config


def refuse_quantised(source: Source) -> None:
    """Looks into a model's configuration.

    Raises:
        BadInput: the weights are codes and not numbers that could be added.
    """
    if (read_config(source.folder) or {}).get("quantization_config"):
        raise BadInput(f"{source.name} is quantised, and codes cannot be merged. Name the model in full precision.")


def tokenizer_folder(recipe: MergeRecipe, sources: Mapping[str, Source], config_from: str) -> Path | None:
    """Where the merged model's tokenizer comes from.

    Args:
        recipe: says whose it is to be; the base's, or else the first model's, where it says nothing.
        sources: all models, by reference.
        config_from: the model that is meant where the recipe says nothing.

    Raises:
        BadInput: the recipe chooses a tokenizer, and it or another model's is missing, or a token has another number in
            a model: rows of embeddings would have to change places.
    """
    chosen = recipe.tokenizer_from
    field = "tokenizer_source" if recipe.tokenizer is None else "tokenizer.source"
    owner = chosen if chosen not in (None, "base", "union") else config_from
    folder = sources[str(owner)].folder
    if chosen is None:
        return folder
    vocabulary = _vocabulary(folder)
    if vocabulary is None:
        raise BadInput(f"{field}: {owner} has no tokenizer. Name a model that has one, or remove the key.")
    for reference, source in sources.items():
        other = _vocabulary(source.folder)
        if other is None or other == vocabulary:
            continue
        token = _moved(vocabulary, other, both=chosen == "union")
        if token is not None:
            raise BadInput(
                f"{field}: the vocabularies of {owner} and {reference} differ ({token}), and tokens are not given new "
                "numbers here. Choose models of one vocabulary, or remove the key to take over the base's tokenizer."
            )
    return folder


def write_beside(
    folder: Path,
    recipe: MergeRecipe,
    *,
    config_from: Path | None,
    tokenizer_from: Path | None,
    dtype: str | None,
    layers: tuple[int, ...] | None,
    depth: int | None,
) -> list[str]:
    """Writes everything but the weights; the same bytes every time.

    Args:
        folder: where to.
        recipe: goes along.
        config_from: the folder of the model whose configuration the result has.
        tokenizer_from: the folder of the model whose tokenizer it has.
        dtype: of the weights, where all have one.
        layers: where layers were cut, the number in its source of each layer of the result.
        depth: the number of layers before.

    Returns:
        Names of the files.
    """
    written = [RECIPE, CARD]
    (folder / RECIPE).write_text(recipe.text, encoding="utf-8")
    config = read_config(config_from)
    references = [entry.model for one in recipe.layers for entry in one.sources]
    bases = [name for name in (recipe.base_model, *(one.base_model for one in recipe.layers)) if name is not None]
    text = card(references, bases, recipe.merge_method, recipe.text, name=recipe.name, opens=config is not None)
    (folder / CARD).write_text(text, encoding="utf-8")
    if config is not None:
        if layers is not None and depth is not None:
            config = _with_layers(config, layers, depth)
        config = config if dtype is None else _with_dtype(config, dtype)
        (folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        written.append(CONFIG)
    for place, patterns in ((config_from, _BESIDE), (tokenizer_from, _TOKENIZER)):
        for name in _matching(place, patterns):
            if place is not None and name not in written:
                shutil.copyfile(place / name, folder / name)
                written.append(name)
    return written


def _matching(place: Path | None, patterns: Sequence[str]) -> list[str]:
    if place is None:
        return []
    return sorted({file.name for pattern in patterns for file in place.glob(pattern) if file.is_file()})


def _with_layers(config: Mapping[str, Any], layers: tuple[int, ...], depth: int) -> dict[str, Any]:
    """The configuration with every count of layers, and every list of one entry a layer, as the result has them."""
    changed: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            changed[key] = _with_layers(value, layers, depth)
        elif _COUNTS_LAYERS.fullmatch(key) and value == depth:
            changed[key] = len(layers)
        elif isinstance(value, list) and len(value) == depth and "layer" in key:
            changed[key] = [value[layer] for layer in layers]
        else:
            changed[key] = value
    return changed


def _with_dtype(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    return {
        key: _with_dtype(value, dtype)
        if isinstance(value, dict)
        else dtype
        if key in ("dtype", "torch_dtype") and isinstance(value, str)
        else value
        for key, value in config.items()
    }


def _vocabulary(folder: Path | None) -> Mapping[str, object] | None:
    """Numbers by token; of a binary file, which does not say, its digest in place of all."""
    for name in _VOCABULARIES:
        file = None if folder is None else folder / name
        if file is None or not file.is_file():
            continue
        if name.endswith(".model"):
            return {name: digest(file.read_bytes())}
        if name.endswith(".txt"):
            return {token: row for row, token in enumerate(file.read_text(encoding="utf-8").splitlines())}
        content = _read_json(file)
        if name == "vocab.json":
            return dict(content)
        return _numbers(file, content)
    return None


def _numbers(file: Path, content: Any) -> Mapping[str, object]:
    """Numbers by token in a ``tokenizer.json``."""
    try:
        words = content["model"]["vocab"]
        pairs = words.items() if isinstance(words, dict) else ((entry[0], row) for row, entry in enumerate(words))
        added = {entry["content"]: entry["id"] for entry in content.get("added_tokens") or ()}
        return {**dict(pairs), **added}
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise BadInput(f"cannot read the vocabulary in {file} ({error!r}). Save the tokenizer again.") from error


def _moved(vocabulary: Mapping[str, object], other: Mapping[str, object], *, both: bool) -> str | None:
    """A token that has another number in the other vocabulary, or none there."""
    tokens = {**vocabulary, **other} if both else vocabulary
    token = next((token for token in tokens if vocabulary.get(token) != other.get(token)), None)
    if token is None:
        return None
    numbers = [f"{numbers[token]}" if token in numbers else "no token" for numbers in (vocabulary, other)]
    return f"{token!r} is {numbers[0]} and {numbers[1]}"


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"cannot read {file} ({error}). Copy or download it again.") from error


def card(
    models: Sequence[str],
    bases: Sequence[str],
    method: str,
    text: str,
    *,
    name: str | None,
    opens: bool,
    more: str = "",
) -> str:
    """A model card: what the hub shows, and what was merged.

    Args:
        models: what recipes call them.
        bases: the same of base models.
        method: of the merge.
        text: the recipe.
        name: of the merged model.
        opens: whether transformers opens the folder.
        more: what else to know.
    """
    everyone = list(dict.fromkeys([*bases, *models]))
    published = [one for one in everyone if "/" in one and is_hub_id(one)]
    front: dict[str, Any] = {"tags": ["merge", "taskatlas"]}
    if opens:
        front["library_name"] = "transformers"
    if published:
        front["base_model"] = published
    rows = [f"- `{one}`" + (" (the base)" if one in bases else "") for one in everyone]
    lines = [
        f"---\n{yaml.safe_dump(front, sort_keys=True)}---",
        f"# {name or 'A merged model'}",
        f"Merged with taskatlas by the method `{method}`, from:",
        "\n".join(rows),
        *([more] if more else []),
        f"```yaml\n{text}```",
        "`receipt.json` says what went in and what came out; `taskatlas check` verifies that it still holds.",
    ]
    return "\n\n".join(lines) + "\n"

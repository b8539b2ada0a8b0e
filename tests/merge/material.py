"""Material for the tests of recipes: small checkpoints on disk, shaped like a language model, and recipes for them."""

from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file, save_file

from taskatlas.merge.recipe import MergeRecipe
from taskatlas.merge.recipes import merge_recipe


def tensors(seed, layers=3, width=4, words=7, dtype=torch.float32):
    """Names and shapes as Llama has them, an integer buffer and a number beside them."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    found = {"model.embed_tokens.weight": draw(words, width)}
    for layer in range(layers):
        found |= {
            f"model.layers.{layer}.self_attn.q_proj.weight": draw(width, width),
            f"model.layers.{layer}.mlp.down_proj.weight": draw(width, 2 * width),
            f"model.layers.{layer}.input_layernorm.weight": draw(width),
        }
    buffers = {"steps": torch.tensor(seed), "scale": draw()}
    return found | {"model.norm.weight": draw(width), "lm_head.weight": draw(words, width)} | buffers


def write(file, content):
    """A safetensors or a PyTorch file with these tensors."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".safetensors":
        save_file({name: value.contiguous() for name, value in content.items()}, file, metadata={"format": "pt"})
    else:
        torch.save(content, file)
    return file


def write_models(folder, names="abc", **shape):
    """A checkpoint for each name, seeded by its place in the alphabet; returns their tensors by name."""
    made = {name: tensors(ord(name) - ord("a"), **shape) for name in names}
    for name, content in made.items():
        write(folder / f"{name}.safetensors", content)
    return made


def recipe(method, models, **fields):
    """A recipe of these models: names of files, or (name, parameters)."""
    entries = [{"model": one} if isinstance(one, str) else {"model": one[0], "parameters": one[1]} for one in models]
    return MergeRecipe.from_dict({"merge_method": method, "models": entries, **fields})


def write_recipe(file, **content):
    """A recipe's file."""
    Path(file).write_text(yaml.safe_dump(content, sort_keys=False))
    return Path(file)


def merged(made, out, **options):
    """The tensors of a merge into one file."""
    merge_recipe(made, out, **options)
    return load_file(Path(out) / "model.safetensors")


def snapshot(folder, without=()):
    """Every file under a folder, hidden ones too, with its content."""
    files = (path for path in Path(folder).rglob("*") if path.is_file() and path.name not in without)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}

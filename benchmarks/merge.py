"""Benchmarks of merging by recipe against mergekit: the same recipes, the same files, one after the other.

Run ``python benchmarks/merge.py`` (half an hour on two cores, 8 GB of disk) or ``--quick``. mergekit is installed
into an environment of its own (``--environment``, made when missing). Models are random, Llama-shaped, bfloat16.
Inputs are read once before anything is timed, so that both programs find them in the page cache. Memory is that of the
whole process, sampled fifty times a second: resident in all (mapped pages of files counted), and private alone.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import safe_open, save_file

MERGEKIT = "mergekit==0.1.5"
SHAPE = {"hidden": 2048, "inner": 5632, "vocabulary": 32000, "layers": 7}  # 0.49 G parameters
QUICK = {"hidden": 256, "inner": 704, "vocabulary": 4000, "layers": 4}
RECIPES = {
    "linear": ("weight: 0.25", ""),
    "task_arithmetic": ("weight: 0.3", ""),
    "ties": ("weight: 0.3\n      density: 0.2", "normalize: false"),
    "dare_ties": ("weight: 0.3\n      density: 0.2", "normalize: false"),
}


def tensor_shapes(shape: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a Llama's tensors."""
    hidden, inner, vocabulary = shape["hidden"], shape["inner"], shape["vocabulary"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(shape["layers"]):
        at = f"model.layers.{layer}."
        shapes |= {f"{at}self_attn.{part}_proj.weight": (hidden, hidden) for part in "qkvo"}
        shapes |= {f"{at}mlp.{part}_proj.weight": (inner, hidden) for part in ("gate", "up")}
        shapes[f"{at}mlp.down_proj.weight"] = (hidden, inner)
        shapes |= {f"{at}{part}_layernorm.weight": (hidden,) for part in ("input", "post_attention")}
    return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}


def write_models(folder: Path, shape: dict[str, int], models: int, dtype: torch.dtype = torch.bfloat16) -> list[Path]:
    """A base and ``models`` fine-tuned copies, each its base plus noise a tenth as large."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape["hidden"],
        "intermediate_size": shape["inner"],
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["hidden"] // 64,
        "num_key_value_heads": shape["hidden"] // 64,
        "vocab_size": shape["vocabulary"],
        "tie_word_embeddings": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    base: dict[str, torch.Tensor] = {}
    places = []
    for model in range(models + 1):
        draw = torch.Generator().manual_seed(model)
        tensors = {}
        for name, size in tensor_shapes(shape).items():
            noise = torch.randn(size, generator=draw)
            tensors[name] = (noise * 0.02 if model == 0 else base[name].float() + noise * 0.002).to(dtype)
        base = base or tensors
        place = folder / ("base" if model == 0 else f"expert{model}")
        place.mkdir()
        save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
        (place / "config.json").write_text(json.dumps(config), encoding="utf-8")
        places.append(place)
    return places


def write_recipe(folder: Path, method: str, places: list[Path], count: int, dtype: str = "bfloat16") -> Path:
    own, shared = RECIPES[method]
    lines = [f"merge_method: {method}", f"dtype: {dtype}"]
    if method != "linear":
        lines.append(f"base_model: {places[0]}")
    lines.append("models:")
    for place in places[1 : count + 1]:
        lines += [f"  - model: {place}", f"    parameters:\n      {own}"]
    if shared:
        lines += ["parameters:", f"  {shared}"]
    file = folder / f"{method}-{count}.yml"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def mergekit_program(environment: Path) -> Path:
    """The command of mergekit, in an environment that holds nothing else."""
    program = environment / "bin" / "mergekit-yaml"
    if not program.exists():
        constraints = Path(__file__).parent.parent / "constraints.txt"
        pip = [str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet", "--constraint", str(constraints)]
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        subprocess.run([*pip, "torch"], check=True)
        subprocess.run([*pip, MERGEKIT], check=True)
    return program


def measured(command: list[str], log: Path) -> dict[str, float]:
    """Runs a command: seconds by the clock and of processors, peak memory in all and private, in GB."""
    start = time.perf_counter()
    resident = private = 0
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                process.returncode = os.waitstatus_to_exitcode(status)
                break
            try:
                text = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
            except OSError:
                continue
            fields = {
                line.split()[0]: line.split()[1] for line in text.splitlines() if line.startswith(("Rss", "VmHWM"))
            }
            resident = max(resident, int(fields.get("VmHWM:", 0)))
            private = max(private, int(fields.get("RssAnon:", 0)))
            time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{log.read_text(encoding='utf-8', errors='replace')[-2000:]}")
    return {
        "seconds": time.perf_counter() - start,
        "processor_seconds": usage.ru_utime + usage.ru_stime,
        "resident_GB": resident * 1024 / 1e9,
        "private_GB": private * 1024 / 1e9,
    }


def compare(one: Path, other: Path) -> dict[str, float]:
    """Share of elements that are equal, and the largest difference in steps of bfloat16."""
    equal = total = 0
    steps = 0.0
    ours, theirs = _tensors(one), _tensors(other)
    if ours.keys() != theirs.keys():
        raise SystemExit(f"other tensors: {sorted(ours.keys() ^ theirs.keys())[:4]}")
    for name in ours:
        a, b = ours[name]().float(), theirs[name]().float()
        equal += int((a == b).sum())
        total += a.numel()
        step = torch.maximum(a.abs(), b.abs()).clamp(min=1e-30).log2().floor().exp2() / 128
        steps = max(steps, float(((a - b).abs() / step).max()))
    return {"equal": equal / total, "largest_difference_in_steps": steps}


def _tensors(folder: Path) -> dict:
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        opened = safe_open(file, framework="pt")
        found |= {name: (lambda o=opened, n=name: o.get_tensor(n)) for name in opened.keys()}  # noqa: SIM118
    return found


def copy_seconds(files: list[Path], written: Path, folder: Path) -> float:
    """The floor: reading those bytes and writing as many as the result has, with ``cp``."""
    start = time.perf_counter()
    for file in files:
        subprocess.run(["cp", str(file), "/dev/null"], check=True)
    subprocess.run(["cp", str(written), str(folder / "copy")], check=True)
    seconds = time.perf_counter() - start
    (folder / "copy").unlink()
    return seconds


def warm(places: list[Path]) -> None:
    for place in places:
        subprocess.run(["cp", str(place / "model.safetensors"), "/dev/null"], check=True)


def ours(recipe: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "taskatlas", "merge", str(recipe), str(out), "--format", "json"]


def bench_against_mergekit(folder: Path, places: list[Path], method: str, program: Path, rounds: int) -> dict:
    recipe, log = write_recipe(folder, method, places, 4), folder / "log"
    ratios, runs = [], {"mergekit": [], "taskatlas": []}
    outs = {name: folder / name for name in runs}
    commands = {
        "mergekit": [str(program), str(recipe), str(outs["mergekit"]), "--no-copy-tokenizer"],
        "taskatlas": ours(recipe, outs["taskatlas"]),
    }
    for _ in range(rounds):
        for name, command in commands.items():
            shutil.rmtree(outs[name], ignore_errors=True)
            warm(places)
            runs[name].append(measured(command, log))
        ratios.append(runs["mergekit"][-1]["seconds"] / runs["taskatlas"][-1]["seconds"])
    figures: dict[str, float] = {"ratio": float(np.median(ratios))}
    for name, found in runs.items():
        figures |= {f"{name}_{key}": float(np.median([run[key] for run in found])) for key in found[0]}
    used = places[1:] if method == "linear" else places
    figures["cp_s"] = copy_seconds(
        [place / "model.safetensors" for place in used], places[0] / "model.safetensors", folder
    )
    figures["memory_ratio"] = figures["mergekit_resident_GB"] / figures["taskatlas_resident_GB"]
    if method != "dare_ties":  # its masks are random
        figures |= compare(outs["taskatlas"], outs["mergekit"])
    return figures


def bench_definitions(folder: Path, program: Path) -> dict:
    """Outputs of both programs for small float32 models, where no magnitudes are equal and nothing is rounded between.

    On bfloat16 models thousands of magnitudes equal the threshold of TIES: mergekit keeps some of these, ours all.
    """
    places = write_models(folder, QUICK, 4, torch.float32)
    figures = {}
    for method in ("linear", "task_arithmetic", "ties"):
        recipe = write_recipe(folder, method, places, 4, "float32")
        outs = [folder / f"{method}-{name}" for name in ("ours", "theirs")]
        measured(ours(recipe, outs[0]), folder / "log")
        measured([str(program), str(recipe), str(outs[1]), "--no-copy-tokenizer"], folder / "log")
        figures |= {f"{method}_{key}": value for key, value in compare(*outs).items()}
    return figures


def bench_memory(folder: Path, places: list[Path], method: str, counts: tuple[int, ...]) -> dict:
    """Peak memory as the number of models grows; models beyond the first four are links to these."""
    figures = {}
    many = [places[0], *(places[1 + position % 4] for position in range(max(counts)))]
    linked = [many[0]]
    for position, place in enumerate(many[1:]):
        link = folder / f"linked{position}"
        if not link.exists():
            link.symlink_to(place)
        linked.append(link)
    for count in counts:
        recipe, out = write_recipe(folder, method, linked, count), folder / "many"
        shutil.rmtree(out, ignore_errors=True)
        found = measured(ours(recipe, out), folder / "log")
        figures |= {f"{count} models, {key}": found[key] for key in ("resident_GB", "private_GB", "seconds")}
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small models, to see that it runs")
    parser.add_argument("--only", help="only benchmarks whose title holds this")
    parser.add_argument("--rounds", type=int, default=3, help="paired runs of each recipe")
    parser.add_argument("--environment", type=Path, default=Path("~/.cache/taskatlas/mergekit").expanduser())
    parser.add_argument("--folder", type=Path, help="where models are written; a temporary folder where not given")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    program = mergekit_program(arguments.environment)
    rounds = 1 if arguments.quick else arguments.rounds
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        places = write_models(folder, QUICK if arguments.quick else SHAPE, 4)
        size = (places[0] / "model.safetensors").stat().st_size / 1e9
        benchmarks = {
            f"{method}, 4 models of {size:.2f} GB": lambda method=method: bench_against_mergekit(
                folder, places, method, program, rounds
            )
            for method in RECIPES
        }
        (folder / "float32").mkdir()
        benchmarks["same values, float32 models"] = lambda: bench_definitions(folder / "float32", program)
        benchmarks["memory of ties by number of models"] = lambda: bench_memory(folder, places, "ties", (2, 4, 8, 16))
        figures = {}
        for title, run in benchmarks.items():
            if arguments.only and arguments.only not in title:
                continue
            print(title, flush=True)
            figures[title] = run()
            for key, value in figures[title].items():
                print(f"    {key:36} {value:.4g}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

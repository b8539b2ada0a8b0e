"""The 34 language models of the published study: map them on words, select, and test the picks on word-level tasks.

    python examples/language_models.py --lines wiki.txt --task chunking=train.txt,test.txt,2 --task ner=a.txt,b.txt,3
    python examples/language_models.py --zoo models/ --lines wiki.txt --task pos=train.conll,test.conll,1 --sizes 1,2

``--lines`` is plain text, a sentence a line, split at spaces; a task is two files in CoNLL columns and the column of
its labels, counted from 0. Every word has one vector: the model's last hidden state at the word's last sub-word, as in
the study (``--words`` takes first, last or mean); of encoder-decoders only the encoder runs. Without ``--zoo`` the
models come from the Hugging Face hub by the ids below, some 40 GB; a folder of saved models serves as well. After
Huang et al. (NeurIPS 2021, section 4.1).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

import taskatlas as ta
from taskatlas.space.files import write_selection, write_space, write_transfers

MODELS = {  # the study's name -> hub id
    "albert-base": "albert/albert-base-v1",
    "albert-large": "albert/albert-large-v1",
    "bart-base": "facebook/bart-base",
    "bart-large": "facebook/bart-large",
    "bart-large-cnn": "facebook/bart-large-cnn",
    "bert-base-cased": "google-bert/bert-base-cased",
    "bert-base-uncased": "google-bert/bert-base-uncased",
    "bert-large-cased": "google-bert/bert-large-cased",
    "bert-large-uncased": "google-bert/bert-large-uncased",
    "distilbert-base-cased": "distilbert/distilbert-base-cased",
    "distilbert-base-multilingual-cased": "distilbert/distilbert-base-multilingual-cased",
    "distilbert-base-uncased": "distilbert/distilbert-base-uncased",
    "gpt": "openai-community/openai-gpt",
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "longformer-base": "allenai/longformer-base-4096",
    "roberta-base": "FacebookAI/roberta-base",
    "roberta-large": "FacebookAI/roberta-large",
    "roberta-large-mnli": "FacebookAI/roberta-large-mnli",
    "t5-small": "google-t5/t5-small",
    "t5-base": "google-t5/t5-base",
    "t5-large": "google-t5/t5-large",
    "t5-3b": "google-t5/t5-3b",
    "xlm-clm-ende-1024": "FacebookAI/xlm-clm-ende-1024",
    "xlm-mlm-100-1280": "FacebookAI/xlm-mlm-100-1280",
    "xlm-mlm-17-1280": "FacebookAI/xlm-mlm-17-1280",
    "xlm-mlm-ende-1024": "FacebookAI/xlm-mlm-ende-1024",
    "xlm-mlm-enfr-1024": "FacebookAI/xlm-mlm-enfr-1024",
    "xlm-mlm-enro-1024": "FacebookAI/xlm-mlm-enro-1024",
    "xlm-roberta-base": "FacebookAI/xlm-roberta-base",
    "xlm-roberta-large": "FacebookAI/xlm-roberta-large",
    "xlnet-base-cased": "xlnet/xlnet-base-cased",
    "xlnet-large-cased": "xlnet/xlnet-large-cased",
}


def open_models(zoo: Path | None) -> ta.Zoo:
    """Saved models in a folder, or the study's models from the hub."""
    if zoo is not None:
        return ta.Zoo.open(zoo)
    return ta.Zoo.open(
        {name: ta.Checkpoint(name, weights=hub_id, builder="transformers") for name, hub_id in MODELS.items()}
    )


def read_words(path: Path, limit: int) -> ta.Probe:
    """The first sentences of a text file as lists of words."""
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.split()][:limit]
    if not lines:
        raise ta.BadInput(f"{path} holds no words. Give plain text with a sentence a line.")
    return ta.Probe("words", lines, tuple(str(position) for position in range(len(lines))))


def read_task(text: str) -> tuple[str, ta.Probe, ta.Probe]:
    """``NAME=TRAIN,TEST,COLUMN`` as a name and two labelled probes of words."""
    name, equals, rest = text.partition("=")
    parts = rest.split(",")
    if not equals or len(parts) != 3 or not parts[2].lstrip("-").isdigit():
        raise ta.BadInput(f"--task is {text!r}; write NAME=TRAIN,TEST,COLUMN.")
    column = int(parts[2])
    return name, ta.Probe.from_conll(Path(parts[0]), column), ta.Probe.from_conll(Path(parts[1]), column)


def main(arguments: Sequence[str] | None = None) -> dict[str, list[ta.Transfer]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, help="folder of saved models (default: the 34 hub ids)")
    parser.add_argument("--lines", type=Path, required=True, help="plain text to map on")
    parser.add_argument("--limit", type=int, default=1000, help="sentences to map on")
    parser.add_argument("--task", action="append", default=[], help="NAME=TRAIN,TEST,COLUMN; may be repeated")
    parser.add_argument("--sizes", default="1,2,3,4,5")
    parser.add_argument("--words", choices=("first", "last", "mean"), default="last")
    parser.add_argument("--random", type=int, default=20)
    parser.add_argument("--bootstrap", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path("language-models"))
    settings = parser.parse_args(arguments)
    tasks = [read_task(task) for task in settings.task]
    zoo, probe = open_models(settings.zoo), read_words(settings.lines, settings.limit)
    how = {"words": settings.words, "batch_size": settings.batch_size, "device": settings.device}
    space = ta.map_tasks(zoo, probe, bootstrap=settings.bootstrap, **how)
    noted = {"words": settings.words, "bootstrap": settings.bootstrap}
    write_space(space, settings.out, zoo=zoo, probe=probe, settings=noted, seed=0)
    sizes = [int(size) for size in settings.sizes.split(",")]
    selection = ta.select(space, max(sizes))
    write_selection(selection, settings.out, space=space)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"selected: {', '.join(selection.names)} ({selection.totals[-1]:.3f} nats)")
    found: dict[str, list[ta.Transfer]] = {}
    for name, train, test in tasks:
        found[name] = [
            ta.transfer(zoo, selection.names[:k], train, test, n_random=settings.random, metric="macro_f1", **how)
            for k in sizes
        ]
        write_transfers(found[name], settings.out / name, zoo=zoo, probes=(train, test), settings=noted, seed=0)
        for one in found[name]:
            console.print(f"{name}: {one!r}")
    return found


if __name__ == "__main__":
    main()

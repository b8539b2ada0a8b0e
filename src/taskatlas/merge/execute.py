"""Merges carried out: tensors stream from mapped files through the merge into shards, resumable at any moment.

A shard is written under a temporary name in a folder of the plan's own within the output folder, and renamed when it is
whole; what stands under its own name is kept by the next run. When all shards are there they move up, and the receipt
follows last.
"""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from taskatlas.engine import track, track_bytes
from taskatlas.errors import BadInput
from taskatlas.merge.assembly import cut_stacks
from taskatlas.merge.folder import tokenizer_folder, write_beside
from taskatlas.merge.merge_result import MergeResult, peak_memory
from taskatlas.merge.plan import AHEAD, MergePlan, PlannedTensor, dtype_name
from taskatlas.merge.shards import INDEX, Shard, write_index, write_shard
from taskatlas.store import RECEIPT, Receipt, digest, file_digest, load_receipts, sampled_digest, writing

MADE_BY = "merge"
_UNFINISHED, _LOCK = ".merge-", "lock"


class _UnusableOperand(BadInput):
    """A tensor that no run could merge, as long as the models are what they are."""


def carry_out(plan: MergePlan, out: str | Path, *, started: float | None = None) -> MergeResult:
    """Does what a plan says.

    Args:
        plan: what to do.
        out: the folder; made if it is not there, and empty unless an earlier run of the same merge left it.
        started: when the work began (``time.perf_counter()``), if that was earlier.

    Raises:
        BadInput: an operand is damaged or holds NaN, the folder is not empty or cannot be written, no space
            is left.
    """
    started = time.perf_counter() if started is None else started
    out = Path(out)
    unfinished = out / f"{_UNFINISHED}{plan.digest[:16]}"
    tokenizer = tokenizer_folder(plan.recipe, plan.sources, plan.config_from)
    if _is_finished(plan, out):
        shutil.rmtree(unfinished, ignore_errors=True)
        kept = {shard.name for shard in plan.shards}
    else:
        _check_place(out, unfinished)
        there = _whole_shards(plan, out, unfinished)
        _check_space(out, [shard for shard in plan.shards if shard.name not in there])
        with writing(out):
            unfinished.mkdir(parents=True, exist_ok=True)
            with _alone(out, unfinished):
                kept = _make(plan, out, unfinished, tokenizer, started)
            shutil.rmtree(unfinished, ignore_errors=True)
    read, seconds = plan.bytes_read_for(kept), time.perf_counter() - started
    return MergeResult(out, len(plan.tensors), read, plan.bytes_written, peak_memory(), seconds, len(kept))


@contextmanager
def _alone(out: Path, unfinished: Path) -> Iterator[None]:
    """While it lasts, no other run merges into the folder; a process that ends lets go, however it ends.

    Raises:
        BadInput: another run is at it.
    """
    try:
        import fcntl
    except ImportError:  # where the system has no such locks, whoever starts two runs is not told
        yield
        return
    with (unfinished / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BadInput(f"another run is merging into {out}. Wait for it, or name another folder.") from error
        yield


def _make(plan: MergePlan, out: Path, unfinished: Path, tokenizer: Path | None, started: float) -> set[str]:
    """Merges what is not there yet, moves everything into its place, and returns which shards were there."""
    kept = _whole_shards(plan, out, unfinished)
    for leftover in unfinished.glob(".*"):  # of a run that was killed
        leftover.unlink()
    with ThreadPoolExecutor(1) as merging:
        try:
            outputs = _write_shards(plan, unfinished, kept, merging)
        except _UnusableOperand:  # nothing that is there could ever become a whole
            shutil.rmtree(unfinished, ignore_errors=True)
            with suppress(OSError):
                out.rmdir()
            raise
    sources = {file: sampled_digest(file) for file in plan.files}
    others = _write_others(plan, unfinished, tokenizer)
    outputs |= {name: file_digest(unfinished / name) for name in others}
    for name in outputs:
        if (unfinished / name).is_file():
            (unfinished / name).replace(out / name)
    Receipt.now(
        MADE_BY,
        inputs=_inputs(plan, sources),
        settings=_settings(plan),
        outputs=outputs,
        sources={str(file.resolve()): found for file, found in sources.items()},
        seed=plan.seed,
        started=started,
    ).save(unfinished)
    (unfinished / RECEIPT).replace(out / RECEIPT)
    return set(kept)


def _write_shards(
    plan: MergePlan, unfinished: Path, kept: Mapping[str, Path], merging: ThreadPoolExecutor
) -> dict[str, str]:
    """Merges and writes the shards that are not there yet; returns the digests of all."""
    outputs = {}
    for _ in track([None] if any(tensor.whole_model for tensor in plan.tensors) else [], "measuring whole models"):
        with _unusable():
            _ = plan.thresholds  # a look at everything before the first tensor is merged
    with track_bytes("merging", plan.bytes_written) as advance:
        for shard in plan.shards:
            if shard.name in kept:
                outputs[shard.name] = file_digest(kept[shard.name])
                advance(shard.nbytes)
            else:
                tensors = _told(_merged(plan, shard, merging), advance)
                outputs[shard.name] = write_shard(unfinished / shard.name, shard.header, tensors)
    return outputs


def _merged(plan: MergePlan, shard: Shard, pool: ThreadPoolExecutor) -> Iterator[Tensor]:
    """The tensors of a shard: while one is written, the next two are merged and the files of one more are read."""
    tensors = [plan.by_name[name] for name in shard.tensors]
    coming: deque[Future[Tensor]] = deque()
    for tensor, after in zip(tensors, [*tensors[1:], None], strict=True):
        coming.append(pool.submit(_merge_and_expect, plan, tensor, after))
        if len(coming) > AHEAD:
            yield coming.popleft().result()
    while coming:
        yield coming.popleft().result()


def _merge_and_expect(plan: MergePlan, tensor: PlannedTensor, after: PlannedTensor | None) -> Tensor:
    for model, name in () if after is None else after.reads:
        plan.sources[model].expect(name)
    with _unusable():
        return plan.merge(tensor)


@contextmanager
def _unusable() -> Iterator[None]:
    try:
        yield
    except BadInput as error:
        raise _UnusableOperand(str(error)) from error


def _told(tensors: Iterator[Tensor], advance: Callable[[int], None]) -> Iterator[Tensor]:
    for tensor in tensors:
        yield tensor
        advance(tensor.nbytes)


def _write_others(plan: MergePlan, folder: Path, tokenizer: Path | None) -> list[str]:
    """Everything but the shards; returns the names of the files."""
    dtypes = {dtype_name(tensor.dtype) for tensor in plan.tensors if tensor.dtype.is_floating_point}
    source = plan.sources[plan.config_from]
    written = write_beside(
        folder,
        plan.recipe,
        config_from=source.folder,
        tokenizer_from=tokenizer,
        dtype=dtypes.pop() if len(dtypes) == 1 else None,
        layers=plan.layers,
        depth=None if plan.layers is None else next(iter(cut_stacks(source).values())),
    )
    if len(plan.shards) > 1:
        write_index(folder / INDEX, plan.shards, {tensor.name: tensor.nbytes for tensor in plan.tensors})
        written.append(INDEX)
    return written


def _is_finished(plan: MergePlan, out: Path) -> bool:
    """Whether the folder holds the result of this very merge.

    Raises:
        BadInput: it does, and some of its files are gone or have changed since.
    """
    if not (out / RECEIPT).is_file():
        return False
    receipt = next((one for one in load_receipts(out) if one.made_by == MADE_BY), None)
    if receipt is None or receipt.settings != _settings(plan) or receipt.seed != plan.seed:
        return False
    if receipt.inputs != _inputs(plan, {file: sampled_digest(file) for file in plan.files}):
        return False
    problems = replace(receipt, sources={}).verify(out)
    if problems:
        raise BadInput(f"{out} holds this merge, but {problems[0]}. Remove the folder to merge again.")
    return True


def _inputs(plan: MergePlan, digests: Mapping[Path, str]) -> dict[str, str]:
    """Digests of the recipe and of each model's content."""
    models = {
        f"model {reference}": digest([digests[file] for file in source.files]) if source.files else source.identity
        for reference, source in plan.sources.items()
    }
    return {"recipe": plan.recipe.digest, **models}


def _settings(plan: MergePlan) -> dict[str, object]:
    return {"method": plan.recipe.merge_method, "shards": {shard.name: shard.nbytes for shard in plan.shards}}


def _whole_shards(plan: MergePlan, out: Path, unfinished: Path) -> dict[str, Path]:
    """Where shards lie that were finished, by name."""
    places = ((shard, folder / shard.name) for shard in plan.shards for folder in (out, unfinished))
    return {shard.name: at for shard, at in places if at.is_file() and at.stat().st_size == shard.nbytes}


def _check_place(out: Path, unfinished: Path) -> None:
    if out.exists() and not out.is_dir():
        raise BadInput(f"{out} is a file. Name a folder for the merged model.")
    if unfinished.is_dir() or not out.is_dir():
        return
    entries = sorted(entry.name for entry in out.iterdir())
    if any(entry.startswith(_UNFINISHED) for entry in entries):
        raise BadInput(
            f"{out} holds an unfinished merge of another recipe, or of models that have changed since. "
            "Name another folder, or remove this one."
        )
    if entries:
        raise BadInput(f"{out} is not empty (it holds {entries[0]}). Name another folder for the merged model.")


def _check_space(out: Path, shards: Iterable[Shard]) -> None:
    place = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    needed, free = sum(shard.nbytes for shard in shards), shutil.disk_usage(place).free
    if needed > free:
        raise BadInput(
            f"no space left for {out}: the result takes {needed / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free. "
            "Free some space or choose another place."
        )

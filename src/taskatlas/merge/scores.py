"""Accuracies of models on tasks, with standard errors: a table, a CSV, a picture."""

import csv
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from taskatlas.errors import BadInput
from taskatlas.store import atomic_write, digest

Heads = Literal["known", "inferred"]

EVALUATION = "evaluation.json"
"""The file that ``taskatlas evaluate`` writes and a report reads."""

INDIVIDUAL = "individual"
"""The name of the row of networks that were each trained for one task."""


class Estimate(NamedTuple):
    """A share in [0, 1] and its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.error:.3f}"


@dataclass(frozen=True)
class Score:
    """How many of a task's samples a model gets right.

    Example:
        >>> str(Score("net", "known", "digits", right=90, samples=100).accuracy)
        '0.900 ± 0.030'
    """

    model: str
    heads: Heads
    task: str
    right: int
    samples: int

    @property
    def accuracy(self) -> Estimate:
        """Share of right answers, and its binomial standard error."""
        share = self.right / self.samples
        return Estimate(share, math.sqrt(share * (1 - share) / self.samples))


@dataclass(frozen=True, repr=False)
class Evaluation:
    """Scores of models on tasks, with known and with inferred heads.

    Attributes:
        scores: one for each model, kind of heads and task.
        infer: how heads were inferred where a model has several; None: they were not.
        unlisted: tasks of which it is not known which outputs of one network for all tasks are theirs, so that all of
            its outputs competed with known heads too.
    """

    scores: tuple[Score, ...]
    infer: str | None = None
    unlisted: tuple[str, ...] = ()

    def __repr__(self) -> str:
        parts = []
        for heads in get_args(Heads):
            means = [f"{model} {self.average(model, heads).value:.3f}" for model in self.models(heads)]
            parts += [f"; {heads} heads: {', '.join(means)}"] if means else []
        parts += [f"; all outputs compete on {', '.join(self.unlisted)}"] if self.unlisted else []
        return f"Evaluation({len(self.models())} models on {len(self.tasks)} tasks{''.join(parts)})"

    @property
    def tasks(self) -> tuple[str, ...]:
        """Their names, in the order in which they were given."""
        return tuple(dict.fromkeys(score.task for score in self.scores))

    @property
    def digest(self) -> str:
        """Digest of every score."""
        return digest("evaluation", [asdict(score) for score in self.scores], self.infer)

    def models(self, heads: Heads | None = None) -> tuple[str, ...]:
        """Names of the models that were scored with these heads, or at all."""
        return tuple(dict.fromkeys(score.model for score in self.scores if heads in (None, score.heads)))

    def accuracy(self, model: str, task: str, heads: Heads = "known") -> Estimate:
        """Share of a task's samples that a model gets right.

        Raises:
            BadInput: it was not scored so.
        """
        return self._score(model, task, heads).accuracy

    def average(self, model: str, heads: Heads = "known") -> Estimate:
        """Mean accuracy over tasks, each counting alike.

        Raises:
            BadInput: it was not scored so.
        """
        found = [self.accuracy(model, task, heads) for task in self.tasks]
        error = math.sqrt(math.fsum(one.error**2 for one in found))
        return Estimate(math.fsum(one.value for one in found) / len(found), error / len(found))

    def joint(self, model: str) -> Estimate:
        """Accuracy over the samples of all tasks together, with inferred heads: the classes of all tasks compete.

        Raises:
            BadInput: it was not scored with inferred heads.
        """
        found = [self._score(model, task, "inferred") for task in self.tasks]
        total = Score(model, "inferred", "", sum(one.right for one in found), sum(one.samples for one in found))
        return total.accuracy

    def ratio(self, model: str, heads: Heads = "known") -> float | None:
        """The average as a share of that of the individual networks with known heads; None where there are none."""
        if INDIVIDUAL not in self.models("known"):
            return None
        individual = self.average(INDIVIDUAL).value
        return self.average(model, heads).value / individual if individual else None

    def rows(self) -> list[dict[str, Any]]:
        """A row for each model and kind of heads: accuracies by task, ``average``, ``joint`` and ``ratio``."""
        return [
            {
                "model": model,
                "heads": heads,
                **{task: self.accuracy(model, task, heads) for task in self.tasks},
                "average": self.average(model, heads),
                "joint": self.joint(model) if heads == "inferred" else None,
                "ratio": self.ratio(model, heads),
            }
            for heads in get_args(Heads)
            for model in self.models(heads)
        ]

    def markdown(self) -> str:
        """The rows as a table in Markdown.

        Example:
            >>> print(Evaluation((Score("net", "known", "a", 9, 10),)).markdown())
            | model | heads | a | average |
            |---|---|---|---|
            | net | known | 0.900 ± 0.095 | 0.900 ± 0.095 |
        """
        rows = self.rows()
        columns = [name for name in rows[0] if any(row[name] is not None for row in rows)]
        lines = [columns, ["---"] * len(columns), *([_cell(row[name]) for name in columns] for row in rows)]
        head, rule, *body = (" | ".join(line) for line in lines)
        return "\n".join([f"| {head} |", f"|{rule.replace(' ', '')}|", *(f"| {line} |" for line in body)])

    def save(self, path: Path | str) -> None:
        """Writes JSON that ``load`` reads, or, where the path ends in .csv, a line for every accuracy.

        Raises:
            BadInput: the place cannot be written.
        """
        path = Path(path)
        with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            if path.suffix == ".csv":
                csv.writer(file).writerows(self._lines())
            else:
                json.dump(self._content(), file, indent=1)
                file.write("\n")

    @classmethod
    def load(cls, path: Path | str) -> "Evaluation":
        """Reads what ``save`` wrote as JSON.

        Raises:
            BadInput: the file is missing or holds no scores.
        """
        path = Path(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            scores = tuple(
                Score(str(s["model"]), s["heads"], str(s["task"]), int(s["right"]), int(s["samples"]))
                for s in content["scores"]
            )
            wrong = [s for s in scores if not 0 <= s.right <= s.samples > 0 or s.heads not in get_args(Heads)]
            if not scores or wrong:
                raise ValueError(wrong[0] if wrong else "there are none")
            return cls(scores, content["infer"], tuple(map(str, content.get("unlisted", ()))))
        except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
            raise BadInput(f"{path} holds no scores ({error}). Give a file that `taskatlas evaluate` wrote.") from error

    def plot(self, ax: Any = None) -> Any:
        """Draws each model's accuracy by task, known heads, with standard errors; returns the axes."""
        import matplotlib.pyplot as plt

        models = self.models("known")
        if ax is None:
            ax = plt.subplots(figsize=(max(6.5, 1.2 * len(self.tasks) + 3), 4), layout="constrained")[1]
        width = 0.8 / len(models)
        for position, model in enumerate(models):
            found = [self.accuracy(model, task) for task in self.tasks]
            places = [i + (position - (len(models) - 1) / 2) * width for i in range(len(self.tasks))]
            ax.bar(places, [one.value for one in found], width, yerr=[one.error for one in found], label=model)
        ax.set_xticks(range(len(self.tasks)), self.tasks)
        ax.set(ylim=(0, 1), ylabel="accuracy")
        ax.set_title("Accuracy by task, heads known, ± standard error", loc="left")
        ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        return ax

    def _score(self, model: str, task: str, heads: Heads) -> Score:
        for score in self.scores:
            if (score.model, score.task, score.heads) == (model, task, heads):
                return score
        raise BadInput(f"{model!r} was not scored on {task!r} with {heads} heads.")

    def _content(self) -> dict[str, Any]:
        """For JSON: what ``load`` reads, and the ratio to individual of each model."""
        ratios = [
            {"model": model, "heads": heads, "ratio": self.ratio(model, heads)}
            for heads in get_args(Heads)
            for model in self.models(heads)
        ]
        scores = [asdict(score) for score in self.scores]
        return {"infer": self.infer, "unlisted": self.unlisted, "scores": scores, "ratios": ratios}

    def _lines(self) -> list[list[Any]]:
        """For CSV: every accuracy, then averages, with their ratio to individual, and joint accuracies, a line each."""
        lines: list[list[Any]] = [["model", "heads", "score", "task", "accuracy", "standard_error", "samples", "ratio"]]
        for s in self.scores:
            lines.append([s.model, s.heads, "task", s.task, *s.accuracy, s.samples, None])
        for heads in get_args(Heads):
            for model in self.models(heads):
                samples = sum(self._score(model, task, heads).samples for task in self.tasks)
                lines.append(
                    [model, heads, "average", "", *self.average(model, heads), samples, self.ratio(model, heads)]
                )
                if heads == "inferred":
                    lines.append([model, heads, "joint", "", *self.joint(model), samples, None])
        return lines


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)

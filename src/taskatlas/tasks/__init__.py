"""The room of tasks: what networks agree on, the tasks they find by themselves, and the splits that break them."""

from taskatlas.tasks.adversarial import adversarial_split, controls, group_target, untrained_split
from taskatlas.tasks.agreement import Agreement, Null, Training, agreement_score, agreement_scores
from taskatlas.tasks.damage import Damage, Easier, Fall, measure_splits, rank_splits
from taskatlas.tasks.discovery import Discovered, Search, Step, discover_tasks
from taskatlas.tasks.metadata import sample_metadata
from taskatlas.tasks.portrait import Portrait, coverage, portray
from taskatlas.tasks.similarity import adjusted_mutual_information, mean_similarity, similarity, similarity_matrix
from taskatlas.tasks.split import Split
from taskatlas.tasks.split_files import read_class_groups, read_published_splits
from taskatlas.tasks.task import Task, check_class_rates
from taskatlas.tasks.task_files import read_tasks, write_tasks
from taskatlas.tasks.task_sets import class_group_task, embedding_tasks, human_tasks, random_tasks, untrained_tasks

__all__ = [
    "Agreement",
    "Damage",
    "Discovered",
    "Easier",
    "Fall",
    "Null",
    "Portrait",
    "Search",
    "Split",
    "Step",
    "Task",
    "Training",
    "adjusted_mutual_information",
    "adversarial_split",
    "agreement_score",
    "agreement_scores",
    "check_class_rates",
    "class_group_task",
    "controls",
    "coverage",
    "discover_tasks",
    "embedding_tasks",
    "group_target",
    "human_tasks",
    "mean_similarity",
    "measure_splits",
    "portray",
    "random_tasks",
    "rank_splits",
    "read_class_groups",
    "read_published_splits",
    "read_tasks",
    "sample_metadata",
    "similarity",
    "similarity_matrix",
    "untrained_split",
    "untrained_tasks",
    "write_tasks",
]

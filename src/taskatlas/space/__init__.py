"""The room of task spaces: how checkpoints' tasks relate, and which few cover the rest."""

from taskatlas.space.cka import cka, cka_matrix, minibatch_cka, rbf_cka_matrix
from taskatlas.space.comparison import ProbeGrowth, gaussian_kl, matrix_cosine, probe_growth
from taskatlas.space.kernels import KERNELS
from taskatlas.space.mapping import map_features, map_tasks
from taskatlas.space.mutual_knn import mutual_knn_matrix
from taskatlas.space.procrustes import procrustes_matrix
from taskatlas.space.relevance import h_score, leep, log_me, rank_for_target
from taskatlas.space.selection import Selection, Step, pick_probabilities, select
from taskatlas.space.task_space import TaskSpace
from taskatlas.space.transfer import Transfer, head_score, random_selections, transfer

__all__ = [
    "KERNELS",
    "ProbeGrowth",
    "Selection",
    "Step",
    "TaskSpace",
    "Transfer",
    "cka",
    "cka_matrix",
    "gaussian_kl",
    "h_score",
    "head_score",
    "leep",
    "log_me",
    "map_features",
    "map_tasks",
    "matrix_cosine",
    "minibatch_cka",
    "mutual_knn_matrix",
    "pick_probabilities",
    "probe_growth",
    "procrustes_matrix",
    "random_selections",
    "rank_for_target",
    "rbf_cka_matrix",
    "select",
    "transfer",
]

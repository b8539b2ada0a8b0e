"""The room of paths: how training moves through prediction space."""

from taskatlas.paths.bhattacharyya import bhattacharyya, saturated_share
from taskatlas.paths.bootstrap import MapBootstrap, MeasureBootstrap, bootstrap_measures, percentile_interval
from taskatlas.paths.compare import mean_trajectory, trajectory_distance
from taskatlas.paths.embedding import Embedding, ProjectedPath, explained_stress
from taskatlas.paths.geodesic import geodesic
from taskatlas.paths.hellinger import hellinger
from taskatlas.paths.imprint import imprint, prototypes
from taskatlas.paths.imprinted import predict_imprinted
from taskatlas.paths.incremental import extend
from taskatlas.paths.inpca import InPCA
from taskatlas.paths.length import path_length, step_lengths, tortuosity
from taskatlas.paths.mantel import Mantel, difference_matrix, hierarchy_distances, mantel
from taskatlas.paths.past_training import trace_checkpoints
from taskatlas.paths.predict import Prediction, predict
from taskatlas.paths.procrustes import Procrustes, procrustes
from taskatlas.paths.progress import progress
from taskatlas.paths.record_file import read_record
from taskatlas.paths.recorder import Recorder
from taskatlas.paths.reindex import Regression
from taskatlas.paths.schedule import every, geometric
from taskatlas.paths.seed_bootstrap import SeedBootstrap, bootstrap_seeds
from taskatlas.paths.shuffle_null import ShuffleNull, shuffle_null
from taskatlas.paths.simplex import check_simplex, from_log_probabilities
from taskatlas.paths.symmetric_kl import symmetric_kl
from taskatlas.paths.trace import RunSummary, Trace, trace_runs
from taskatlas.paths.trajectory import Trajectory
from taskatlas.paths.tree import TaskTree, task_tree

__all__ = [
    "Embedding",
    "InPCA",
    "Mantel",
    "MapBootstrap",
    "MeasureBootstrap",
    "Prediction",
    "Procrustes",
    "ProjectedPath",
    "Recorder",
    "Regression",
    "RunSummary",
    "SeedBootstrap",
    "ShuffleNull",
    "TaskTree",
    "Trace",
    "Trajectory",
    "bhattacharyya",
    "bootstrap_measures",
    "bootstrap_seeds",
    "check_simplex",
    "difference_matrix",
    "every",
    "explained_stress",
    "extend",
    "from_log_probabilities",
    "geodesic",
    "geometric",
    "hellinger",
    "hierarchy_distances",
    "imprint",
    "mantel",
    "mean_trajectory",
    "path_length",
    "percentile_interval",
    "predict",
    "predict_imprinted",
    "procrustes",
    "progress",
    "prototypes",
    "read_record",
    "saturated_share",
    "shuffle_null",
    "step_lengths",
    "symmetric_kl",
    "task_tree",
    "tortuosity",
    "trace_checkpoints",
    "trace_runs",
    "trajectory_distance",
]

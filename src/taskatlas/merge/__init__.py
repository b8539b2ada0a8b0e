"""The room of merging: one model made of several, in weight space."""

from taskatlas.merge.adamerged import AdaMerged
from taskatlas.merge.adamerging import adamerge
from taskatlas.merge.batch_norm import reestimate_batch_norm
from taskatlas.merge.evaluation import evaluate
from taskatlas.merge.fisher import diagonal_fisher, fisher, fisher_merge
from taskatlas.merge.regmean import LayerInputs, gram_matrices, layer_inputs, regmean
from taskatlas.merge.scores import Evaluation
from taskatlas.merge.task_vectors import TaskVectors
from taskatlas.merge.unlabelled import Unlabelled

__all__ = [
    "AdaMerged",
    "Evaluation",
    "LayerInputs",
    "TaskVectors",
    "Unlabelled",
    "adamerge",
    "diagonal_fisher",
    "evaluate",
    "fisher",
    "fisher_merge",
    "gram_matrices",
    "layer_inputs",
    "reestimate_batch_norm",
    "regmean",
]

"""The room of merging: one model made of several, in weight space."""

from taskatlas.merge.adamerged import AdaMerged
from taskatlas.merge.adamerging import adamerge
from taskatlas.merge.axis_groups import AxisGroups
from taskatlas.merge.batch_norm import reestimate_batch_norm
from taskatlas.merge.evaluation import evaluate
from taskatlas.merge.execute import MergeResult, carry_out, merge_recipe
from taskatlas.merge.fisher import diagonal_fisher, fisher, fisher_merge
from taskatlas.merge.growing import add_to_zipped
from taskatlas.merge.loss_barrier import LossBarrier, in_order_of_the_first, loss_barrier
from taskatlas.merge.make_plan import make_plan
from taskatlas.merge.matching import Alignment, match_features
from taskatlas.merge.merge_models import merge_models
from taskatlas.merge.merge_networks import NetworkMergeResult, merge_networks
from taskatlas.merge.methods import METHODS, Method, merge_tensor
from taskatlas.merge.network_recipe import NetworkRecipe
from taskatlas.merge.operands import Operands
from taskatlas.merge.plan import MergePlan
from taskatlas.merge.recipe import MergeRecipe
from taskatlas.merge.regmean import LayerInputs, gram_matrices, layer_inputs, regmean
from taskatlas.merge.scores import Evaluation
from taskatlas.merge.task_vectors import TaskVectors
from taskatlas.merge.unlabelled import Unlabelled
from taskatlas.merge.zip_models import zip_models
from taskatlas.merge.zipped import Zipped

__all__ = [
    "METHODS",
    "AdaMerged",
    "Alignment",
    "AxisGroups",
    "Evaluation",
    "LayerInputs",
    "LossBarrier",
    "MergePlan",
    "MergeRecipe",
    "MergeResult",
    "Method",
    "NetworkMergeResult",
    "NetworkRecipe",
    "Operands",
    "TaskVectors",
    "Unlabelled",
    "Zipped",
    "adamerge",
    "add_to_zipped",
    "carry_out",
    "diagonal_fisher",
    "evaluate",
    "fisher",
    "fisher_merge",
    "gram_matrices",
    "in_order_of_the_first",
    "layer_inputs",
    "loss_barrier",
    "make_plan",
    "match_features",
    "merge_models",
    "merge_networks",
    "merge_recipe",
    "merge_tensor",
    "reestimate_batch_norm",
    "regmean",
    "zip_models",
]

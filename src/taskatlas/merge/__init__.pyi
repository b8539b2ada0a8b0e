from .adamerged import AdaMerged
from .adamerging import adamerge
from .axis_groups import AxisGroups
from .batch_norm import reestimate_batch_norm
from .evaluation import evaluate
from .execute import MergeResult, carry_out, merge_recipe
from .fisher import diagonal_fisher, fisher, fisher_merge
from .make_plan import make_plan
from .matching import Alignment, match_features
from .merge_models import merge_models
from .methods import METHODS, Method, merge_tensor
from .operands import Operands
from .plan import MergePlan
from .recipe import MergeRecipe
from .regmean import LayerInputs, gram_matrices, layer_inputs, regmean
from .scores import Evaluation
from .task_vectors import TaskVectors
from .unlabelled import Unlabelled

__all__ = [
    "METHODS",
    "AdaMerged",
    "Alignment",
    "AxisGroups",
    "Evaluation",
    "LayerInputs",
    "MergePlan",
    "MergeRecipe",
    "MergeResult",
    "Method",
    "Operands",
    "TaskVectors",
    "Unlabelled",
    "adamerge",
    "carry_out",
    "diagonal_fisher",
    "evaluate",
    "fisher",
    "fisher_merge",
    "gram_matrices",
    "layer_inputs",
    "make_plan",
    "match_features",
    "merge_models",
    "merge_recipe",
    "merge_tensor",
    "reestimate_batch_norm",
    "regmean",
]

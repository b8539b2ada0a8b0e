from .adamerged import AdaMerged
from .adamerging import adamerge
from .axis_groups import AxisGroups
from .barrier import LossBarrier, in_order_of_the_first, loss_barrier
from .batch_norm import reestimate_batch_norm
from .clusters import Clusters
from .corruptions import CORRUPTIONS, corrupted
from .data_adaptive import DataAdaptive
from .data_recipe import DATA_METHODS, DataRecipe
from .evaluation import evaluate
from .execute import carry_out
from .extractor import Extractor
from .fisher_information import diagonal_fisher, fisher, fisher_merge
from .growing import add_to_zipped
from .in_memory import merge_models
from .matching import Alignment, match_features
from .merge_result import MergeResult
from .methods import METHODS, Method, merge_tensor
from .network_merge import NetworkMergeResult, merge_networks
from .network_recipe import NetworkRecipe
from .operands import Operands
from .placement import Placement
from .plan import MergePlan
from .planning import make_plan
from .recipe import MergeRecipe
from .recipes import merge_recipe
from .regression_mean import LayerInputs, gram_matrices, layer_inputs, regmean
from .scores import Evaluation
from .served_model import ServedModel
from .task_vectors import TaskVectors
from .unlabelled import Unlabelled
from .zipped import Zipped
from .zipping import zip_models

__all__ = [
    "CORRUPTIONS",
    "DATA_METHODS",
    "METHODS",
    "AdaMerged",
    "Alignment",
    "AxisGroups",
    "Clusters",
    "DataAdaptive",
    "DataRecipe",
    "Evaluation",
    "Extractor",
    "LayerInputs",
    "LossBarrier",
    "MergePlan",
    "MergeRecipe",
    "MergeResult",
    "Method",
    "NetworkMergeResult",
    "NetworkRecipe",
    "Operands",
    "Placement",
    "ServedModel",
    "TaskVectors",
    "Unlabelled",
    "Zipped",
    "adamerge",
    "add_to_zipped",
    "carry_out",
    "corrupted",
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

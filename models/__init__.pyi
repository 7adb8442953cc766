from .conversion import as_dynamic_cnn as as_dynamic_cnn, check_pruning as check_pruning
from .data.dataset import Dataset as Dataset
from .data.dataset_registry import forget_datasets as forget_datasets, load_dataset as load_dataset
from .data.normalisation import Normalisation as Normalisation
from .data.sources.image_files import image_files as image_files
from .data.sources.lazy_images import ImageSource as ImageSource, LazyImages as LazyImages
from .data.sources.torch_datasets import from_torch as from_torch
from .data.splits import from_arrays as from_arrays
from .data.transform import Transform as Transform
from .dynamic_cnn import DynamicCNN as DynamicCNN, Prediction as Prediction, shipped_model as shipped_model
from .gating.features import MaskFeatures as MaskFeatures
from .gating.gate_policy import GatePolicy as GatePolicy
from .gating.gated_layers import (
    DynamicPrunedConv2d as DynamicPrunedConv2d,
    GateNetwork as GateNetwork,
    SimpleDynamicCNN as SimpleDynamicCNN,
    l1_norm as l1_norm,
)
from .gating.importance import taylor_scores as taylor_scores
from .gating.static_policy import (
    StaticPolicy as StaticPolicy,
    StraightThrough as StraightThrough,
    fixed_policy as fixed_policy,
    rollout as rollout,
    static_start as static_start,
)
from .masking.cost import CostModel as CostModel
from .masking.gates import Gate as Gate
from .masking.masked_cnn import MaskedCNN as MaskedCNN
from .skipping.skipping_cnn import EXECUTIONS as EXECUTIONS, SkippingCNN as SkippingCNN
from .storage.cnn_info import CNNInfo as CNNInfo
from .storage.model_file import read_model as read_model, write_model as write_model
from .storage.weights import load_weights as load_weights, save_weights as save_weights
from .tasks.objective import Objective as Objective
from .training.cnn_training import TrainConfig as TrainConfig, accuracy as accuracy, train as train
from .training.mac_target import meet_target as meet_target
from .training.preparation import (
    ImitationConfig as ImitationConfig,
    PrepareConfig as PrepareConfig,
    imitate as imitate,
    new_policy as new_policy,
    prepare as prepare,
)
from .training.tuning import TuneConfig as TuneConfig, tune as tune
from .zoo.network_registry import ZOO as ZOO, build as build, register_network as register_network

"""The CNN side: masks, gates, costs, gate policies, networks, data. Needs neither gymnasium nor stable-baselines3."""

from __future__ import annotations

from prunegym.models.budget import meet_target
from prunegym.models.checkpoints import load_weights, save_weights
from prunegym.models.cost import CostModel
from prunegym.models.data import Dataset, Normalisation
from prunegym.models.discovery import Gate
from prunegym.models.dynamic import DynamicCNN, Prediction, shipped_model
from prunegym.models.features import MaskFeatures
from prunegym.models.gate_export import as_dynamic_cnn, check_pruning
from prunegym.models.gate_policy import GatePolicy, StaticPolicy, StraightThrough, rollout
from prunegym.models.gated_layers import DynamicPrunedConv2d, GateNetwork, SimpleDynamicCNN, l1_norm
from prunegym.models.imitation import ImitationConfig, imitate
from prunegym.models.joint import TuneConfig, tune
from prunegym.models.masked import MaskedCNN
from prunegym.models.model_files import CNNInfo, read_model, write_model
from prunegym.models.preparation import PrepareConfig, new_policy, prepare
from prunegym.models.skipping import EXECUTIONS, SkippingCNN
from prunegym.models.sources import load_dataset
from prunegym.models.splits import from_arrays
from prunegym.models.static import fixed_policy, static_start, taylor_scores
from prunegym.models.training import TrainConfig, accuracy, train
from prunegym.models.zoo import ZOO, build, register_network

__all__ = [
    "EXECUTIONS",
    "ZOO",
    "CNNInfo",
    "CostModel",
    "Dataset",
    "DynamicCNN",
    "DynamicPrunedConv2d",
    "Gate",
    "GateNetwork",
    "GatePolicy",
    "ImitationConfig",
    "MaskFeatures",
    "MaskedCNN",
    "Normalisation",
    "Prediction",
    "PrepareConfig",
    "SimpleDynamicCNN",
    "SkippingCNN",
    "StaticPolicy",
    "StraightThrough",
    "TrainConfig",
    "TuneConfig",
    "accuracy",
    "as_dynamic_cnn",
    "build",
    "check_pruning",
    "fixed_policy",
    "from_arrays",
    "imitate",
    "l1_norm",
    "load_dataset",
    "load_weights",
    "meet_target",
    "new_policy",
    "prepare",
    "read_model",
    "register_network",
    "rollout",
    "save_weights",
    "shipped_model",
    "static_start",
    "taylor_scores",
    "train",
    "tune",
    "write_model",
]

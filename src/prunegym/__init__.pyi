from .agents.evaluation.evaluator import Evaluation as Evaluation, evaluate as evaluate
from .agents.rl.mask_policy import MaskPolicy as MaskPolicy, new_gate_policy as new_gate_policy
from .agents.rl.recipe import Recipe as Recipe
from .agents.rl.recipe_files import load_recipe as load_recipe
from .agents.rl.trainer import train_agent as train_agent
from .envs.rewards.outcome import Outcome as Outcome
from .envs.sb3_vec_env import MaskVecEnv as MaskVecEnv
from .envs.sb3_wrappers import GroupAdvantage as GroupAdvantage
from .envs.task import make_task as make_task
from .errors import PruneGymError as PruneGymError
from .models.data.dataset import Dataset as Dataset
from .models.data.dataset_registry import load_dataset as load_dataset
from .models.data.sources.torch_datasets import from_torch as from_torch
from .models.data.splits import from_arrays as from_arrays
from .models.dynamic_cnn import DynamicCNN as DynamicCNN, shipped_model as shipped_model
from .models.masking.masked_cnn import MaskedCNN as MaskedCNN
from .models.training.cnn_training import train as train
from .models.training.preparation import prepare as prepare
from .models.zoo.network_registry import build as build

__version__: str

from .baselines import BASELINES as BASELINES, make_baseline as make_baseline
from .budget import Budget as Budget
from .compare import Comparison as Comparison, compare as compare
from .deciding import Agent as Agent, Masks as Masks
from .entries import (
    RIVALS as RIVALS,
    Entry as Entry,
    agent_entry as agent_entry,
    as_entry as as_entry,
    baseline_entry as baseline_entry,
    recipe_entry as recipe_entry,
    rival_entry as rival_entry,
    start_entry as start_entry,
)
from .evaluation import Evaluation as Evaluation, evaluate as evaluate
from .finetuning import finetune as finetune
from .learners import best_of_k as best_of_k, decore as decore
from .loading import load_agent as load_agent
from .offsets import gates_at_best_offset as gates_at_best_offset, gates_at_mac_share as gates_at_mac_share
from .policies import MaskPolicy as MaskPolicy, new_gate_policy as new_gate_policy
from .predicting import PredictorOptions as PredictorOptions
from .recipe import Recipe as Recipe
from .recipe_files import load_recipe as load_recipe
from .rivals import (
    greedy_static as greedy_static,
    learned_static as learned_static,
    pruned_and_tuned as pruned_and_tuned,
    taylor_static as taylor_static,
)
from .statistics import Interval as Interval, interval as interval
from .training import train_agent as train_agent

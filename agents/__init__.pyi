from .baselines.literature import best_of_k as best_of_k, decore as decore
from .baselines.static_masks import (
    BASELINES as BASELINES,
    greedy_static as greedy_static,
    learned_static as learned_static,
    make_baseline as make_baseline,
    pruned_and_tuned as pruned_and_tuned,
    taylor_static as taylor_static,
)
from .benchmark.merging import merge as merge
from .benchmark.running import Benchmark as Benchmark, run_suite as run_suite
from .benchmark.suite import Suite as Suite, SuiteTask as SuiteTask
from .benchmark.validation.leaderboard import leaderboard as leaderboard
from .benchmark.validation.validating import Validation as Validation, validate as validate
from .comparison.comparing import compare as compare
from .comparison.entries import (
    TRAINED_BASELINES as TRAINED_BASELINES,
    Entry as Entry,
    agent_entry as agent_entry,
    as_entry as as_entry,
    baseline_entry as baseline_entry,
    recipe_entry as recipe_entry,
    start_entry as start_entry,
    trained_baseline_entry as trained_baseline_entry,
)
from .comparison.results import Interval as Interval, interval as interval
from .comparison.table import Comparison as Comparison
from .evaluation.evaluator import Evaluation as Evaluation, evaluate as evaluate
from .evaluation.masks import Agent as Agent, Masks as Masks
from .evaluation.predictors import PredictorOptions as PredictorOptions, load_agent as load_agent
from .rl.finetuning import finetune as finetune
from .rl.lagrangian import (
    Budget as Budget,
    gates_at_best_offset as gates_at_best_offset,
    gates_at_mac_share as gates_at_mac_share,
)
from .rl.mask_policy import (
    MaskPolicy as MaskPolicy,
    SmallImageExtractor as SmallImageExtractor,
    new_gate_policy as new_gate_policy,
)
from .rl.recipe import Recipe as Recipe
from .rl.recipe_files import load_recipe as load_recipe
from .rl.trainer import train_agent as train_agent

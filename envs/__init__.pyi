from .rendering import draw_gallery as draw_gallery, render as render
from .rewards.accuracy import (
    ACCURACY_TERMS as ACCURACY_TERMS,
    AccuracyTerm as AccuracyTerm,
    resolve_accuracy as resolve_accuracy,
)
from .rewards.outcome import Outcome as Outcome
from .rewards.reward import (
    REWARDS as REWARDS,
    Reward as Reward,
    RewardFunction as RewardFunction,
    resolve_reward as resolve_reward,
)
from .sb3_vec_env import MaskVecEnv as MaskVecEnv
from .sb3_wrappers import GroupAdvantage as GroupAdvantage, SelfCritical as SelfCritical
from .scalar_env import ChannelMaskEnv as ChannelMaskEnv, LayerwiseChannelMaskEnv as LayerwiseChannelMaskEnv
from .simulator import MaskSimulator as MaskSimulator, Snapshot as Snapshot, StepResult as StepResult
from .task import Task as Task, make_task as make_task
from .vector_env import (
    ChannelMaskVectorEnv as ChannelMaskVectorEnv,
    LayerwiseChannelMaskVectorEnv as LayerwiseChannelMaskVectorEnv,
)

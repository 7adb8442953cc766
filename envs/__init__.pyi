from .accuracy import (
    ACCURACY_TERMS as ACCURACY_TERMS,
    AccuracyTerm as AccuracyTerm,
    resolve_accuracy as resolve_accuracy,
)
from .channel_mask import ChannelMaskEnv as ChannelMaskEnv, LayerwiseChannelMaskEnv as LayerwiseChannelMaskEnv
from .group_advantage import GroupAdvantage as GroupAdvantage, SelfCritical as SelfCritical
from .mask_vec_env import MaskVecEnv as MaskVecEnv
from .outcome import Outcome as Outcome
from .rendering import draw_gallery as draw_gallery, render as render
from .rewards import (
    REWARDS as REWARDS,
    Reward as Reward,
    RewardFunction as RewardFunction,
    resolve_reward as resolve_reward,
)
from .simulator import MaskSimulator as MaskSimulator, Snapshot as Snapshot, StepResult as StepResult
from .task import Task as Task, make_task as make_task
from .vector import (
    ChannelMaskVectorEnv as ChannelMaskVectorEnv,
    LayerwiseChannelMaskVectorEnv as LayerwiseChannelMaskVectorEnv,
)

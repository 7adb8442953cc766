"""The scalar environments, which run the batched simulator with one sub-environment."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from typing_extensions import Unpack

from prunegym.envs.interface import Action, MaskInterface, read_options
from prunegym.envs.random_episodes import as_numbers
from prunegym.envs.rendering import render
from prunegym.envs.simulator import MaskSimulator, Observation
from prunegym.envs.task import TaskArguments
from prunegym.validation import shape, whole_number


class ChannelMaskEnv(MaskInterface, gym.Env[Observation, Action]):
    """Choose the channels of a frozen CNN that one image needs, all of them in one step.

    ## Description
    An episode is one image of a data set. The agent observes features of the image and chooses a bit for each gated
    channel of the CNN: 1 keeps it, 0 switches it off. The CNN classifies the image under that mask. The reward is high
    for a right answer with few channels: R = accuracy term - lambda * ||M||_0. The CNN's weights never change.

    For training, use a batched form: ``gym.make_vec`` or :class:`prunegym.envs.MaskVecEnv`. A CNN is many times slower
    with one image at a time. PPO and A2C of Stable-Baselines3, TRPO and MaskablePPO of sb3-contrib work: they sample
    MultiBinary actions. DQN, SAC, TD3 and DDPG do not, and raise an error when you create them.

    ## Action Space
    ``MultiBinary(mask_size)``: the gates' channels in order; ``env.unwrapped.task.masked.gates`` names them. Any dtype
    is accepted, but only the values 0 and 1.

    ## Observation Space
    A ``Dict`` of arrays:

    | Key        | Space                           | Meaning                                                         |
    |------------|---------------------------------|-----------------------------------------------------------------|
    | `features` | `Box(-10, 10, (F,), float32)`   | average and 4x4 grid of what the first gate's convolution reads |
    | `penalty`  | `Box(low, high, (1,), float32)` | lambda; only if `penalty` is a range                            |
    | `image`    | `Box(0, 255, (C, H, W), uint8)` | the image; only with `observation="image"`                      |

    Features are standardised over the training split and clipped. At the end of an episode they are zero.

    SB3's image extractor needs images of at least 36 pixels a side; ``prunegym.agents.SmallImageExtractor`` takes
    smaller ones.

    ## Rewards
    ``accuracy(outcome) - penalty * cost(mask)``; :func:`prunegym.envs.resolve_reward` explains the formula, with a
    worked example. Costs: ``l0`` counts kept channels (the default), ``l0_weights`` the weights between them, ``macs``
    is the share of multiply-accumulates, and ``latency`` the share of the dense time, by a table of this machine.
    ``blockdrop`` is a whole reward, and so is your function ``(Outcome) -> (batch,)``.

    With ``l0`` and ``l0_weights`` the penalty is the price of one channel or weight, otherwise of the whole network. A
    ``PenaltyWarning`` says so if all channels on would cost more than ten right answers.

    ## Starting State
    A random image; each comes once per epoch, in a new order. ``reset(options={"index": i})`` chooses image i of the
    split, counted from 0, and ``options={"penalty": x}`` sets lambda. The info of ``reset`` has ``index`` and
    ``label``.

    ## Episode End
    - Termination: the mask is complete, after one step. The info has ``index``, ``label``, ``prediction``, ``correct``,
      ``kept`` (number of channels) and ``mac_share``.
    - Truncation: never.

    ## Arguments
    >>> import gymnasium as gym
    >>> import prunegym
    >>> env = gym.make(
    ...     "prunegym/ChannelMask-v0",
    ...     model="digits",           # shipped model, zoo network, model file, torch module, MaskedCNN or DynamicCNN
    ...     dataset="digits",         # name, path, Dataset, dict of splits, or None: the one of the model
    ...     split="train",            # train, validation or test
    ...     reward="l0",              # l0, l0_weights, macs, latency, blockdrop, "module:function" or a function
    ...     accuracy="correct",       # correct, log_likelihood, probability, fidelity, or as for reward
    ...     penalty=None,             # lambda, a range (low, high), or None: all channels on cost 0.5
    ...     observation="features",   # features or image
    ...     device="cpu",             # where the CNN runs
    ...     features=None,            # your MaskFeatures
    ...     augment=False,            # or True: shift and mirror images at random; or "flip": mirror only
    ...     images=None,              # or a number: a random subset of this many images
    ...     execution="auto",         # masked channels: "kernel" skips them, "masked" computes them
    ...     latency_table=None,       # a table of `prunegym latency`, or its path; for reward="latency"
    ...     render_mode="rgb_array",  # or None, or human
    ... )
    >>> observation, info = env.reset(seed=0, options={"index": 3})
    >>> int(info["index"])
    3
    >>> observation, reward, terminated, truncated, info = env.step(np.ones(env.action_space.n))
    >>> terminated, int(info["kept"]) == env.action_space.n, float(info["mac_share"])
    (True, True, 1.0)

    ## Version History
    - v0: initial version.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012
    layerwise: ClassVar[bool] = False

    def __init__(self, render_mode: str | None = None, **task: Unpack[TaskArguments]) -> None:
        self._set_up(self.layerwise, task, render_mode, ())
        self.observation_space: spaces.Dict = self.task.observation_space  # type: ignore[assignment]
        self.action_space = self.task.action_space
        self.simulator = MaskSimulator(self.task, 1, self.np_random)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; see the class.

        Raises:
            InvalidInputError: If the seed, the index or lambda is out of range.
            UnknownNameError: For an unknown option.
        """
        super().reset(seed=None if seed is None else whole_number("seed", seed, 0))
        if seed is not None:
            self.simulator.reseed(self.np_random)
        index, penalty = read_options(options)
        observation = self.simulator.reset(None if index is None else [index], penalty)
        return _first(observation), _first(self.simulator.info())

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Take a decision; see the class.

        Raises:
            InvalidInputError: If the action has another shape or other values than 0 and 1, or the episode is over.
            RewardError: If your reward function raises or returns bad values.
        """
        bits = as_numbers("The action", action)
        shape("The action", bits, self.task.action_space.shape, "Give a 0 or 1 for each channel.")
        result = self.simulator.step(bits[None])
        info = self.simulator.info() if result.outcome is None else result.outcome.summary()
        return _first(result.observation), float(result.reward[0]), result.terminated, False, _first(info)

    def render(self) -> npt.NDArray[np.uint8] | None:
        """Return a picture (height, width, 3) of the image, the mask, the prediction and the cost."""
        if self.render_mode is None:
            return None
        return render(self.task, self.simulator.snapshot())


class LayerwiseChannelMaskEnv(ChannelMaskEnv):
    """Choose the channels that one image needs, gate by gate, while a frozen CNN classifies it.

    ## Description
    Like :class:`ChannelMaskEnv`, but each step decides one gate, after the layers before it have run with the bits
    chosen so far. The agent observes features of the next input of the gate's convolution. All steps together take
    one forward pass.

    ## Action Space
    ``MultiBinary(widest gate)``. Bits past the width of the current gate are ignored, whatever their values.

    ## Observation Space
    A ``Dict`` of arrays:

    | Key        | Space                           | Meaning                                                         |
    |------------|---------------------------------|-----------------------------------------------------------------|
    | `features` | `Box(-10, 10, (F,), float32)`   | average and grid of what this gate's convolution reads          |
    | `gate`     | `Box(0, 1, (gates,), float32)`  | the current gate, one-hot; zero at the end                      |
    | `cost`     | `Box(0, 1, (1,), float32)`      | MAC share of the bits chosen so far, later gates off            |
    | `penalty`  | `Box(low, high, (1,), float32)` | lambda; only if `penalty` is a range                            |
    | `image`    | `Box(0, 255, (C, H, W), uint8)` | the image; only with `observation="image"`                      |

    Features are padded with zeros to the size of the longest.

    ## Rewards
    The cost of a named reward is paid gate by gate, as each gate is decided. The last step also pays the accuracy term
    and the cost that no mask can avoid. The undiscounted return is R, so learn with gamma = 1. Your reward function is
    paid at the end, unless it has ``step_cost(outcome_so_far, gate) -> (batch,)``.

    ## Starting State
    As :class:`ChannelMaskEnv`.

    ## Episode End
    - Termination: all gates are decided. The info is that of :class:`ChannelMaskEnv`; in earlier steps it has
      ``index`` and ``label``.
    - Truncation: never.

    ## Arguments
    >>> import gymnasium as gym
    >>> import prunegym
    >>> env = gym.make(
    ...     "prunegym/LayerwiseChannelMask-v0",
    ...     model="digits",
    ...     dataset="digits",
    ...     split="train",
    ...     reward="macs",
    ...     accuracy="probability",
    ...     penalty=(0.1, 1.0),
    ...     observation="features",
    ...     device="cpu",
    ...     features=None,
    ...     augment=False,
    ...     images=None,
    ...     execution="auto",
    ...     latency_table=None,
    ...     render_mode=None,
    ... )
    >>> observation, info = env.reset(seed=0, options={"index": 3, "penalty": 0.5})
    >>> float(observation["penalty"][0]), float(observation["gate"][0])
    (0.5, 1.0)
    >>> terminated = False
    >>> while not terminated:
    ...     observation, reward, terminated, truncated, info = env.step(np.ones(env.action_space.n))
    >>> float(info["mac_share"])
    1.0

    ## Version History
    - v0: initial version.
    """

    layerwise = True


def _first(arrays: dict[str, npt.NDArray[Any]]) -> dict[str, Any]:
    """Return the first row of each array. TorchRL needs NumPy's numbers in infos."""
    return {name: array[0] for name, array in arrays.items()}

"""Base class of the scalar, the vector and the SB3 environments."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from prunegym.envs.random_episodes import Penalty
from prunegym.envs.rendering import Picture, check_render_mode, render
from prunegym.envs.simulator import MaskSimulator, Observation, Snapshot
from prunegym.envs.task import Task, TaskArguments, make_task
from prunegym.errors import UnknownArgumentError, suggestion
from prunegym.validation import choice

Action = npt.NDArray[Any]


class MaskInterface:
    """A simulator of a task, with the attributes and methods that all forms have.

    Attributes:
        task: The task.
        simulator: The dynamics.
        render_mode: ``rgb_array`` or None.
    """

    task: Task
    simulator: MaskSimulator
    render_mode: str | None = None
    _shown: Snapshot | None = None

    def _set_up(
        self, layerwise: bool, arguments: TaskArguments, render_mode: str | None, others: tuple[str, ...]
    ) -> None:
        """Make the task; ``others`` are the form's own arguments, which messages suggest as well.

        Raises:
            UnknownArgumentError: For an unknown argument.
            UnknownNameError: For an unknown render mode.
        """
        self.render_mode = check_render_mode(render_mode)
        known = [*TaskArguments.__annotations__, *others, "render_mode"]
        for name in arguments:
            if name not in known:
                own = type(self).__name__
                raise UnknownArgumentError(
                    f"{own} got an unexpected keyword argument {name!r}.{suggestion(name, known)}"
                )
        self.task = make_task(layerwise=layerwise, **arguments)

    @property
    def penalty(self) -> Penalty:
        """Lambda of the next episodes, or its range. A number can be set, see :meth:`set_penalty`."""
        return self.task.penalty

    @penalty.setter
    def penalty(self, penalty: float) -> None:
        self.simulator.set_penalty(penalty)

    def set_penalty(self, penalty: float) -> None:
        """Change lambda for later episodes, and for the current ones if no decision has been made in them yet.

        Raises:
            InvalidInputError: If the task's lambda is a range, or the new one is not a finite number of at least 0.

        Warns:
            PenaltyWarning: If it seems to be meant for another reward, as when the environment is made.
        """
        self.simulator.set_penalty(penalty)

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """Return which values the bits of the next action may have, for MaskablePPO of sb3-contrib.

        Returns:
            (2 * size of the action space,) bool: for each bit, whether 0 and whether 1 is allowed. Bits past the width
            of the current gate may only be 0. Other algorithms may set them: they are ignored.
        """
        allowed = np.ones((self.task.action_space.shape[0], 2), dtype=np.bool_)
        allowed[self.simulator.width :, 1] = False
        return allowed.reshape(-1)

    def _show(self) -> None:
        """Store what a picture shows, before the next episode replaces it."""
        self._shown = self.simulator.snapshot() if self.render_mode else None

    def _pictures(self) -> list[Picture] | None:
        if self._shown is None:
            return None
        return [render(self.task, self._shown, row) for row in range(self.simulator.num_envs)]


def read_options(options: dict[str, Any] | None, *others: str) -> tuple[Any, Any]:
    """Return ``index`` and ``penalty`` of reset options.

    Raises:
        UnknownNameError: For another key than these and ``others``.
    """
    options = options or {}
    for key in options:
        choice("reset option", key, ("index", "penalty", *others))
    return options.get("index"), options.get("penalty")


def rows(observation: Observation, count: int) -> list[Observation]:
    """Return the observation of each sub-environment: views of arrays that are new at each step."""
    columns = list(observation.items())
    return [{name: array[row] for name, array in columns} for row in range(count)]

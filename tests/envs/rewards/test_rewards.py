"""Rewards against an oracle, their payment gate by gate, and what users' functions may do wrong."""

from __future__ import annotations

import re

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunegym.envs import ACCURACY_TERMS, REWARDS, MaskSimulator, make_task
from prunegym.errors import InvalidInputError, RewardError, UnknownNameError
from prunegym.models.data.dataset_registry import load_dataset
from prunegym.models.zoo.networks import SimpleCNN
from tests.envs.mask_oracle import LAYERWISE, ONE_STEP, WIDTHS, counted, hooked_logits, layer_actions, random_masks

INDICES = list(range(24))
COSTS = [name for name, row in REWARDS.items() if row.cost is not None]
PRICES = {"l0": 0.013, "l0_weights": 0.00013, "macs": 0.6}


def simulator(cnn, count=24, **arguments):
    return MaskSimulator(make_task(cnn, "digits", "test", **arguments), count, np.random.default_rng(0))


def play(cnn, mask, **arguments):
    """Return the whole reward of each mask, in one step."""
    env = simulator(cnn, len(mask), **arguments)
    env.reset(INDICES[: len(mask)])
    return env.step(mask).reward


def expected_accuracy(name, logits, dense, labels):
    likelihood = -F.cross_entropy(logits.double(), labels, reduction="none")
    return {
        "correct": (logits.argmax(1) == labels).double(),
        "log_likelihood": likelihood,
        "probability": likelihood.exp(),
        "fidelity": (logits.argmax(1) == dense.argmax(1)).double(),
        "metric": (logits.argmax(1) == labels).double(),  # that of a data set of classes
    }[name]


@pytest.mark.parametrize("accuracy", ACCURACY_TERMS)
@pytest.mark.parametrize("reward", COSTS)
def test_every_named_reward_is_accuracy_less_penalty_times_cost(cnn, reward, accuracy):
    mask, digits = random_masks(24), load_dataset("digits", "test")
    cost = counted(mask)[COSTS.index(reward)]
    logits = hooked_logits(cnn, digits, INDICES, mask)
    dense = hooked_logits(cnn, digits, INDICES, torch.ones(24, 48))
    expected = expected_accuracy(accuracy, logits, dense, digits.labels[:24]) - PRICES[reward] * cost
    np.testing.assert_allclose(
        play(cnn, mask, reward=reward, accuracy=accuracy, penalty=PRICES[reward]), expected, atol=1e-5
    )


def test_the_oracle_has_right_and_wrong_answers(cnn):
    """Else the tests above could not tell accuracy terms apart."""
    digits = load_dataset("digits", "test")
    right = hooked_logits(cnn, digits, INDICES, random_masks(24)).argmax(1) == digits.labels[:24]
    assert 3 < int(right.sum()) < 24


@pytest.mark.parametrize("reward", COSTS)
def test_by_default_the_full_mask_costs_half_of_a_right_answer(cnn, reward):
    rewards = play(cnn, torch.ones(24, 48), reward=reward, accuracy=lambda outcome: torch.ones(24))
    np.testing.assert_allclose(rewards, 0.5, atol=1e-12)


def test_worked_example_to_the_digit(cnn):
    """13 of 48 channels off cost 35 * 0.5 / 48; image 0 of the test split is answered rightly with them."""
    digits = load_dataset("digits", "test")
    mask = torch.cat([torch.ones(16), torch.ones(19), torch.zeros(13)])[None]
    right = bool(hooked_logits(cnn, digits, [0], mask).argmax(1) == digits.labels[0])
    assert play(cnn, mask)[0] == pytest.approx(right - 35 / 96, abs=1e-15)


@pytest.mark.parametrize("reward", COSTS)
def test_step_costs_are_each_gates_own_and_add_up_to_the_reward(cnn, reward):
    mask = random_masks(24)
    first_only = torch.cat([mask[:, :16], torch.zeros(24, 32)], 1)
    column, price = COSTS.index(reward), PRICES[reward]
    env = simulator(cnn, reward=reward, layerwise=True, penalty=price)
    env.reset(INDICES)
    paid, rest = (env.step(action).reward for action in layer_actions(mask))
    unavoidable = counted(torch.zeros(1, 48))[column]
    np.testing.assert_allclose(paid, -price * (counted(first_only)[column] - unavoidable), atol=1e-12)
    np.testing.assert_allclose(paid + rest, play(cnn, mask, reward=reward, penalty=price), atol=1e-12)
    assert np.abs(paid).min() > 0


def test_step_costs_with_later_gates_between(cnn):
    """With three gates the middle one is neither first nor last: its MACs are those to its kept inputs alone."""
    network = SimpleCNN(in_channels=1, image_size=8, widths=(4, 6, 8))
    env = simulator(network, reward="macs", layerwise=True, penalty=1.0)
    env.reset(INDICES)
    mask = random_masks(24)[:, :18].double()
    parts = mask.split((4, 6, 8), 1)
    first, second, third = (part.sum(1) for part in parts)
    total = 64 * 4 * 9 + 16 * 4 * 6 * 9 + 4 * 6 * 8 * 9 + 8 * 10
    expected = [64 * 9 * first, 16 * 9 * first * second, 4 * 9 * second * third + 10 * third]
    for at, (part, macs) in enumerate(zip(parts, expected, strict=True)):
        result = env.step(F.pad(part, (0, 8 - part.shape[1])))
        accuracy = (result.outcome.predictions == result.outcome.labels).double() if at == 2 else 0.0
        np.testing.assert_allclose(result.reward, accuracy - macs / total, atol=1e-12)


def test_a_function_is_the_whole_reward_paid_at_the_end(cnn):
    def squared(outcome):
        assert outcome.logits.shape == (24, 10)
        return outcome.kept**2

    env = simulator(cnn, reward=squared, layerwise=True)
    env.reset(INDICES)
    first, last = (env.step(action).reward for action in layer_actions(random_masks(24)))
    assert not first.any()
    np.testing.assert_allclose(last, counted(random_masks(24))[0] ** 2)


def test_a_function_with_step_cost_is_paid_gate_by_gate(cnn):
    class Own:
        def __call__(self, outcome):
            return -outcome.kept

        def step_cost(self, outcome, gate):
            assert outcome.logits.shape == (24, 0)
            return outcome.masked.split(outcome.mask)[gate].sum(1)

    mask, env = random_masks(24), simulator(cnn, reward=Own(), layerwise=True)
    env.reset(INDICES)
    rewards = [env.step(action).reward for action in layer_actions(mask)]
    for reward, part in zip(rewards, mask.split(WIDTHS, 1), strict=True):
        np.testing.assert_allclose(reward, -part.sum(1).double())


def test_a_reward_from_a_file_in_the_current_folder(cnn, tmp_path, monkeypatch):
    (tmp_path / "my_reward_file.py").write_text("def mine(outcome):\n    return 3 - outcome.mac_share\n")
    monkeypatch.chdir(tmp_path)
    mask = random_masks(24)
    np.testing.assert_allclose(play(cnn, mask, reward="my_reward_file:mine"), 3 - counted(mask)[2], atol=1e-9)
    with pytest.raises(InvalidInputError, match=r"my_reward_file has no 'yours'. It has: mine"):
        make_task(cnn, "digits", reward="my_reward_file:yours")
    (tmp_path / "broken_reward_file.py").write_text("import absent_module\n")
    with pytest.raises(InvalidInputError, match=r"cannot be imported: ModuleNotFoundError: .*absent_module"):
        make_task(cnn, "digits", reward="broken_reward_file:mine")


def test_an_accuracy_term_of_the_users_for_several_labels_an_image():
    """Outputs are yes or no for each of three attributes, looked up by the index of the image."""
    digits = load_dataset("digits", "test")
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    ).eval()
    targets = torch.stack([digits.labels % 2, digits.labels > 4, digits.labels == 3], 1).bool()

    def share_right(outcome):
        return ((outcome.logits > 0) == targets[outcome.indices]).double().mean(1)

    rewards = play(network, torch.ones(24, 4), accuracy=share_right, reward="macs", penalty=0.0)
    with torch.no_grad():
        answers = network(digits.batch(torch.arange(24))) > 0
    np.testing.assert_allclose(rewards, (answers == targets[:24]).double().mean(1))
    with pytest.raises(
        InvalidInputError, match=r"output per image has shape \(3,\), .* 10 classes.*your own function as accuracy="
    ):
        make_task(network, "digits")


def test_outputs_that_are_no_classes_have_no_prediction():
    class Map(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))

        def forward(self, images):
            return self.body(images)

    env = gym.make(ONE_STEP, model=Map(), dataset="digits", accuracy="fidelity", render_mode="rgb_array")
    env.reset(seed=0)
    _, reward, _, _, info = env.step(np.ones(4))
    assert reward == pytest.approx(0.5)
    assert set(info) == {"index", "label", "kept", "mac_share"}
    assert env.render().ndim == 3


def test_dense_outputs_are_computed_once_an_image_and_only_if_asked_for(cnn, monkeypatch):
    task = make_task(cnn, "digits", "test", accuracy="fidelity")
    seen, forward = [], task.masked.forward
    monkeypatch.setattr(
        task.masked, "forward", lambda images, mask=None: (seen.append(len(images)), forward(images))[1]
    )
    env = MaskSimulator(task, 4, np.random.default_rng(0))
    seen.clear()  # the kernel was tried
    for indices in ([0, 1, 2, 3], [2, 3, 4, 5], [5, 4, 1, 0]):
        env.reset(indices)
        assert env.step(np.ones((4, 48))).reward.tolist() == [0.5] * 4
    assert seen == [4, 2]
    plain = make_task(cnn, "digits", "test")
    other = MaskSimulator(plain, 4, np.random.default_rng(0))
    monkeypatch.setattr(plain.masked, "forward", lambda *_: pytest.fail("dense outputs were not needed"))
    other.reset()
    other.step(np.ones((4, 48)))


def test_augmented_dense_outputs_are_those_of_the_augmented_images(cnn):
    env = simulator(cnn, accuracy="fidelity", augment=True)
    seen = []
    for _ in range(2):
        env.reset(INDICES)
        outcome = env.step(np.ones((24, 48))).outcome
        torch.testing.assert_close(outcome.dense_logits, outcome.logits)
        seen.append(outcome.logits)
    assert (seen[0] - seen[1]).abs().max() > 0.1


def raising(outcome):
    return outcome.logitz


RETURNS = {
    "shape": (lambda outcome: outcome.logits, r"returned shape \(24, 10\); \(24,\) is needed, one number for each"),
    "scalar": (lambda outcome: outcome.kept.mean(), r"returned shape \(\); \(24,\) is needed"),
    "huge": (
        lambda outcome: outcome.kept * 1e38,
        r"returned 4\.8\d*e\+39 for episode 0 of 24; at most 1e\+15 is allowed: .*Scale it to about 1\.",
    ),
    "nan": (lambda outcome: outcome.kept / 0 * 0, r"returned nan for episode 0 of 24; finite numbers are needed"),
    "inf": (lambda outcome: outcome.kept / 0, r"returned inf for episode 0 of 24"),
    "raises": (raising, r"'raising' raised AttributeError: .*logitz.*It is called with an Outcome of 24 episodes"),
    "nothing": (lambda outcome: None, r"raised .*must return a tensor of shape \(24,\)"),
}


@pytest.mark.parametrize("case", RETURNS)
@pytest.mark.parametrize("kind", ["reward", "accuracy"])
def test_a_function_that_misbehaves_is_named(cnn, case, kind):
    function, message = RETURNS[case]
    with pytest.raises(RewardError, match=message) as caught:
        play(cnn, torch.ones(24, 48), **{kind: function})
    what = {"reward": "reward", "accuracy": "accuracy term"}[kind]
    assert re.match(rf"The {what} '.*{'raising' if case == 'raises' else 'lambda'}", str(caught.value))


def test_a_step_cost_that_misbehaves_is_named(cnn):
    class Own:
        def __call__(self, outcome):
            return outcome.kept

        def step_cost(self, outcome, gate):
            return outcome.mask

    env = simulator(cnn, reward=Own(), layerwise=True)
    env.reset(INDICES)
    with pytest.raises(
        RewardError, match=r"The step cost '.*Own.step_cost' returned shape \(24, 48\); \(24,\) is needed"
    ):
        env.step(np.ones((24, 32)))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"reward": "l1"},
            UnknownNameError,
            r"Unknown reward 'l1'. Did you mean 'l0'\? Known: blockdrop, l0, l0_weights, latency, macs",
        ),
        (
            {"reward": 3},
            InvalidInputError,
            r"reward is 3; a name \(l0, l0_weights, macs, latency, blockdrop\), 'module:function' or a function",
        ),
        ({"accuracy": "corect"}, UnknownNameError, r"Unknown accuracy term 'corect'. Did you mean 'correct'\?"),
        ({"accuracy": 3}, InvalidInputError, r"accuracy is 3; a name \(correct, .*\), 'module:function' or a function"),
        (
            {"reward": raising, "accuracy": "fidelity"},
            InvalidInputError,
            r"'raising' is a function, .* accuracy='fidelity' would be ignored",
        ),
    ],
)
def test_a_name_that_is_none(cnn, arguments, error, message):
    with pytest.raises(error, match=message):
        make_task(cnn, "digits", **arguments)


def test_a_named_reward_through_gym_make(cnn):
    env = gym.make(LAYERWISE, model=cnn, dataset="digits", reward="macs", accuracy="probability", penalty=0.5)
    env.reset(seed=0, options={"index": 5})
    rewards = [env.step(np.ones(32))[1] for _ in range(2)]
    digits = load_dataset("digits")
    likelihood = F.softmax(hooked_logits(cnn, digits, [5], torch.ones(1, 48)), 1)[0, digits.labels[5]]
    assert sum(rewards) == pytest.approx(float(likelihood) - 0.5, abs=1e-6)
    assert rewards[0] == pytest.approx(-0.5 * 64 * 16 * 9 / (64 * 16 * 9 + 16 * 16 * 32 * 9 + 32 * 40), abs=1e-9)


def test_blockdrop_pays_for_right_answers_by_the_square_of_what_is_kept(cnn):
    mask = random_masks(24)
    logits, labels = (
        hooked_logits(cnn, load_dataset("digits", "test"), INDICES, mask),
        load_dataset("digits", "test").labels[:24],
    )
    right = (logits.argmax(1) == labels).numpy()
    assert 0 < right.sum() < 24
    saved = 1 - (mask.sum(1).numpy() / mask.shape[1]) ** 2
    np.testing.assert_allclose(play(cnn, mask, reward="blockdrop"), np.where(right, saved, -1.0), atol=1e-6)
    np.testing.assert_allclose(
        play(cnn, mask, reward="blockdrop", penalty=5.0), np.where(right, saved, -5.0), atol=1e-6
    )
    with pytest.raises(InvalidInputError, match=r"'blockdrop' is a function, .* accuracy='fidelity' would be ignored"):
        play(cnn, mask, reward="blockdrop", accuracy="fidelity")

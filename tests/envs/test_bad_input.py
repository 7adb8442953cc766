"""Bad input: each mistake gets an error that says what was given, what is allowed and how to fix it."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

from prunegym.envs import ChannelMaskEnv, ChannelMaskVectorEnv, MaskSimulator, MaskVecEnv, make_task
from prunegym.errors import InvalidInputError, MissingDataError, RewardError, UnknownArgumentError, UnknownNameError
from prunegym.models.data.dataset_registry import load_dataset
from prunegym.models.data.splits import from_arrays
from prunegym.models.gating.features import MaskFeatures
from prunegym.models.masking.masked_cnn import MaskedCNN
from prunegym.models.zoo.network_registry import build
from tests.envs.mask_oracle import LAYERWISE, ONE_STEP, random_masks

NUMBER = r"a finite number of at least 0 is needed. Or pass a range \(low, high\)"
RANGE = r"a range is \(low, high\) with low < high"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": "digit"}, UnknownNameError, r"Unknown model 'digit'. Did you mean 'digits'\?"),
        ({"model": "vgg17"}, UnknownNameError, r"Unknown model 'vgg17'. Did you mean 'vgg1[16]'\?"),
        ({"model": "absent.safetensors"}, MissingDataError, "There is no model file absent.safetensors"),
        ({"model": 3}, InvalidInputError, "model is a int; a name, a path to a model file, a torch module"),
        ({"dataset": "digitz"}, UnknownNameError, r"Unknown data set 'digitz'\. Did you mean 'digits'\?"),
        ({"split": "tests"}, UnknownNameError, r"Unknown split 'tests'. Did you mean 'test'\?"),
        ({"observation": "imag"}, UnknownNameError, r"Unknown observation 'imag'. Did you mean 'image'\?"),
        ({"penalty": -0.1}, InvalidInputError, rf"penalty is -0.1; {NUMBER}"),
        ({"penalty": float("nan")}, InvalidInputError, rf"penalty is nan; {NUMBER}"),
        ({"penalty": (0.1, "x")}, InvalidInputError, "A bound of the range penalty is 'x'; a finite number"),
        ({"penalty": (0.2, 0.1)}, InvalidInputError, rf"penalty is \(0.2, 0.1\); {RANGE}"),
        ({"penalty": (0.1, 0.1)}, InvalidInputError, rf"penalty is \(0.1, 0.1\); {RANGE}"),
        ({"penalty": (0.1, 0.2, 0.3)}, InvalidInputError, RANGE),
        ({"penalty": ()}, InvalidInputError, RANGE),
        ({"penalty": "much"}, InvalidInputError, NUMBER),
        ({"images": 0}, InvalidInputError, "images is 0; .* Data set 'digits', split 'train', has 1077 images"),
        ({"images": 1078}, InvalidInputError, "images is 1078; a whole number from 1 to 1077 is needed"),
        ({"features": 3}, InvalidInputError, "features is a int; MaskFeatures of the model are needed"),
        ({"dataset": {"train": 1}}, InvalidInputError, "'train' is a int; a Dataset is needed"),
    ],
)
def test_arguments_of_make(arguments, error, message, cnn):
    with pytest.raises(error, match=message):
        gym.make(ONE_STEP, **({"model": cnn, "dataset": "digits"} | arguments))


def test_weights_that_are_nan(cnn):
    broken = build("simple-cnn", in_channels=1, image_size=8)
    with torch.no_grad():
        broken.features[0].weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(InvalidInputError, match=r"SimpleCNN: 'features.0.weight' has NaN or infinite values"):
        gym.make(ONE_STEP, model=broken, dataset="digits")


def test_images_of_another_shape(cnn):
    pixels, labels = torch.zeros(20, 3, 8, 8, dtype=torch.uint8), torch.arange(20) % 10
    masked = MaskedCNN(cnn, torch.zeros(1, 1, 8, 8))
    with pytest.raises(
        InvalidInputError, match=r"takes images of shape \(1, 8, 8\), those of data set 'arrays' have\s+\(3, 8, 8\)"
    ):
        gym.make(ONE_STEP, model=masked, dataset=from_arrays((pixels, labels), (pixels, labels)))


def test_labels_out_of_range_and_an_empty_split():
    pixels = torch.zeros(20, 1, 8, 8, dtype=torch.uint8)
    with pytest.raises(InvalidInputError, match="labels range from 0 to 19, but there are 2 classes"):
        from_arrays((pixels, torch.arange(20)), (pixels, torch.arange(20)), classes=("a", "b"))
    with pytest.raises(InvalidInputError, match=r"split 'test' is empty. Give it at least one image"):
        from_arrays((pixels, torch.arange(20)), (pixels[:0], torch.arange(0)))


def test_more_classes_than_outputs(cnn):
    pixels, labels = torch.zeros(24, 1, 8, 8, dtype=torch.uint8), torch.arange(24) % 12
    dataset = from_arrays((pixels, labels), (pixels, labels))
    with pytest.raises(
        InvalidInputError, match=r"output per image has shape \(10,\), but data set 'arrays' has 12 classes"
    ):
        gym.make(ONE_STEP, model=cnn, dataset=dataset)


def test_a_masked_cnn_that_is_not_frozen(cnn):
    with pytest.raises(InvalidInputError, match=r"MaskedCNN is not frozen. Call masked\.freeze"):
        gym.make(ONE_STEP, model=MaskedCNN(cnn, torch.zeros(1, 1, 8, 8), frozen=False), dataset="digits")


def test_features_of_another_model_or_form(cnn):
    masked = MaskedCNN(cnn, torch.zeros(1, 1, 8, 8))
    with pytest.raises(InvalidInputError, match=r"for 2 decisions of widths \[16, 32\], .*layerwise=False"):
        make_task(masked, "digits", features=MaskFeatures(masked, layerwise=True))


def test_one_split_alone_has_no_images_to_standardise_features_on(cnn):
    test = load_dataset("digits", "test")
    with pytest.raises(InvalidInputError, match=r"one split without its training images.*Pass the dict of all splits"):
        make_task(cnn, test)
    training = make_task(cnn, "digits")
    task = make_task(training.masked, test, features=training.features)
    assert task.dataset.images is test.images
    assert torch.equal(task.features.mean0, training.features.mean0)
    by_dict = make_task(cnn, {"train": load_dataset("digits"), "test": test}, split="test")
    assert torch.equal(by_dict.features.mean0, training.features.mean0)
    with pytest.raises(UnknownNameError, match="Unknown split of the given data sets 'validation'"):
        make_task(cnn, {"train": load_dataset("digits"), "test": test}, split="validation")


SHAPE, VALUE = r"The action is of shape", r"only 0 and 1 are allowed. 1 keeps a channel, 0 switches it off"


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.ones(47), rf"{SHAPE} \(47,\); \(48,\) is needed. Give a 0 or 1 for each channel"),
        (np.ones((1, 48)), rf"{SHAPE} \(1, 48\); \(48,\) is needed"),
        (1, rf"{SHAPE} \(\); \(48,\) is needed"),
        (np.full(48, 0.5), f"value 0.5; {VALUE}"),
        (np.full(48, 2), f"value 2; {VALUE}"),
        (np.full(48, -1), f"value -1; {VALUE}"),
        (np.full(48, np.nan), f"value nan; {VALUE}"),
    ],
)
def test_actions(action, message, cnn):
    env = gym.make(ONE_STEP, model=cnn, dataset="digits", disable_env_checker=True)
    env.reset(seed=0)
    with pytest.raises(InvalidInputError, match=message):
        env.step(action)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.int64, np.float32, np.float64])
def test_actions_of_any_type(dtype, cnn):
    env = gym.make(ONE_STEP, model=cnn, dataset="digits")
    env.reset(seed=0)
    assert env.step(random_masks(1)[0].numpy().astype(dtype))[4]["kept"] == int(random_masks(1).sum())


def test_bits_past_the_gates_width_are_ignored_but_those_within_are_not(cnn):
    env = gym.make(LAYERWISE, model=cnn, dataset="digits")
    env.reset(seed=0)
    env.step(np.concatenate([np.ones(16), np.full(16, np.nan)]))
    with pytest.raises(InvalidInputError, match=f"value 5; {VALUE}"):
        env.step(np.concatenate([np.ones(31), [5]]))
    # Nothing was decided by the action that was refused.
    assert env.step(np.zeros(32))[4]["kept"] == 16


def test_actions_of_a_batch(cnn):
    env = MaskVecEnv(ONE_STEP, 3, model=cnn, dataset="digits")
    env.reset()
    with pytest.raises(
        InvalidInputError, match=rf"{SHAPE} \(2, 48\); \(3, 48\) is needed. Give a row for each sub-environment"
    ):
        env.step(np.ones((2, 48)))


def test_a_step_after_the_end(cnn):
    env = gym.make(ONE_STEP, model=cnn, dataset="digits")
    env.reset(seed=0)
    env.step(np.ones(48))
    with pytest.raises(InvalidInputError, match=r"No episode is running. Call reset\(\) first"):
        env.step(np.ones(48))
    with pytest.raises(InvalidInputError, match="No episode is running"):
        MaskVecEnv(ONE_STEP, 3, model=cnn, dataset="digits").step(np.ones((3, 48)))


@pytest.mark.parametrize("index", [-1, 600])
def test_an_index_out_of_range(index, cnn):
    message = rf"Image {index} is out of range: split 'test' of 'digits' has images 0 to 599"
    env = gym.make(ONE_STEP, model=cnn, dataset="digits", split="test")
    with pytest.raises(InvalidInputError, match=message):
        env.reset(options={"index": index})
    envs = gym.make_vec(ONE_STEP, 2, model=cnn, dataset="digits", split="test")
    with pytest.raises(InvalidInputError, match=message):
        envs.reset(options={"index": [0, index]})


def test_options_of_reset(cnn):
    env = gym.make(ONE_STEP, model=cnn, dataset="digits", penalty=(0.1, 0.2))
    with pytest.raises(UnknownNameError, match=r"Unknown reset option 'indx'. Did you mean 'index'\?"):
        env.reset(options={"indx": 3})
    with pytest.raises(InvalidInputError, match="a list of integers from 0 to 1076 is needed"):
        env.reset(options={"index": 0.5})
    with pytest.raises(InvalidInputError, match=r"penalty is 0.3; a number from 0.1 to 0.2 is allowed here"):
        env.reset(options={"penalty": 0.3})
    envs = gym.make_vec(ONE_STEP, 3, model=cnn, dataset="digits")
    with pytest.raises(InvalidInputError, match=r"options\['index'\] is of shape \(\); \(3,\) is needed. Give a list"):
        envs.reset(options={"index": 1})
    venv = MaskVecEnv(ONE_STEP, 2, model=cnn, dataset="digits")
    venv.set_options([{"index": 1}, {}])
    with pytest.raises(InvalidInputError, match=r"1 sub-environments have 'index' in their options\. Give it to all 2"):
        venv.reset()


def test_drawing_before_the_first_reset(cnn):
    env = MaskSimulator(make_task(cnn, "digits"), 1, np.random.default_rng())
    with pytest.raises(InvalidInputError, match=r"nothing to draw yet. Call reset\(\) first"):
        env.snapshot()


def test_a_render_mode_that_is_none(cnn):
    for form in (ChannelMaskEnv, ChannelMaskVectorEnv):
        with pytest.raises(UnknownNameError, match=r"Unknown render mode 'ansi'. .*Known: rgb_array"):
            form(model=cnn, dataset="digits", render_mode="ansi")
    with pytest.raises(UnknownNameError, match="Unknown render mode 'ansi'"):
        MaskVecEnv(ONE_STEP, 2, model=cnn, dataset="digits", render_mode="ansi")


@pytest.mark.parametrize("options", [{"index": "a"}, {"index": 2.5}, {"penalty": "x"}, {"penalty": [1, 2]}])
def test_options_of_reset_of_another_kind(options: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError, match=r"a list of integers from 0|a number from 0\.0 to inf"):
        gym.make("prunegym/ChannelMask-v0").reset(options=options)
    with pytest.raises(InvalidInputError, match=r"images is 2\.5; .*Data set 'digits'"):
        make_task("digits", images=2.5)


@pytest.mark.parametrize("kind", ["complex", "sparse", "meta", "words"])
def test_rewards_of_another_kind(kind: str) -> None:
    ones = torch.ones(4)
    returned = {"complex": ones * 1j, "sparse": ones.to_sparse(), "meta": ones.to("meta"), "words": ["a"] * 4}[kind]
    env = MaskVecEnv(ONE_STEP, 4, reward=lambda outcome: returned, seed=0)
    env.reset()
    with pytest.raises((InvalidInputError, RewardError), match=r"reward .* (returned is|raised)"):
        env.step(np.ones((4, env.action_space.n), int))


@pytest.mark.parametrize("seed", [-1, 1.5, "a", True, [1]])
def test_seeds(seed) -> None:
    with pytest.raises(InvalidInputError, match=r"seed is .*; a whole number of at least 0 is needed"):
        MaskVecEnv(ONE_STEP, 4).seed(seed)
    with pytest.raises(InvalidInputError, match=r"seed is .*; a whole number of at least 0 is needed"):
        gym.make("prunegym/ChannelMask-v0").unwrapped.reset(seed=seed)


def test_options_that_are_no_arrays() -> None:
    gone = torch.zeros((), device="meta", dtype=torch.int64)
    with pytest.raises(InvalidInputError, match=r"indices is .*Give a list of integers from 0 to"):
        gym.make("prunegym/ChannelMask-v0").reset(options={"index": gone})
    envs = gym.make_vec("prunegym/ChannelMask-v0", num_envs=3)
    for name, value in (("index", [0, [1], 2]), ("reset_mask", [[True], True, False]), ("index", ["a", "b", "c"])):
        with pytest.raises(InvalidInputError, match=rf"options\['{name}'\] is "):
            envs.reset(options={name: value})
    with pytest.raises(InvalidInputError, match=r"options\['penalty'\] is of shape \(2,\); \(3,\) is needed"):
        envs.reset(options={"penalty": [0.1, 0.2], "reset_mask": [True, False, False]})


def test_actions_of_another_byte_order_or_backwards() -> None:
    bits = np.random.default_rng(0).integers(0, 2, 160)
    taken = []
    for given in (bits, bits.astype(">i4"), np.ascontiguousarray(bits[::-1])[::-1]):
        env = gym.make("prunegym/ChannelMask-v0").unwrapped
        env.reset(seed=0)
        taken.append(env.step(given)[4]["mac_share"])
    assert taken[0] == taken[1] == taken[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_envs": None}, r"num_envs is missing; give the number"),
        ({"num_envs": 4.0}, r"num_envs is 4.0; a whole number from 1 to"),
        ({"num_envs": -1}, r"num_envs is -1; a whole number from 1 to"),
        ({"num_envs": 1.5}, r"num_envs is 1.5; a whole number from 1 to"),
        ({"num_envs": 10**9}, r"num_envs is 1000000000; a whole number from 1 to"),
        ({"num_envs": "4"}, r"num_envs is '4'; a whole number from 1 to"),
        ({"reward": "latency", "latency_table": 3}, "latency_table is a int; LatencyTable or str or Path is needed"),
        ({"seed": -1}, "seed is -1; a whole number of at least 0"),
        ({"augment": 1}, "augment is 1; True, False or 'flip' is allowed"),
    ],
)
def test_arguments_of_the_batched_environment(arguments, message, cnn):
    with pytest.raises(InvalidInputError, match=message):
        MaskVecEnv(ONE_STEP, **({"num_envs": 4, "model": cnn, "dataset": "digits"} | arguments))


@pytest.mark.parametrize(
    ("penalty", "message"),
    [
        ("x", "'x'; a finite number"),
        (-1, "-1; a finite"),
        (None, "None; a finite"),
        ((0.1, 0.2), r"\(0.1, 0.2\); .* The task has one lambda, not a range"),
    ],
)
def test_a_wrong_penalty_later(penalty, message, cnn):
    env = MaskVecEnv(ONE_STEP, 4, model=cnn, dataset="digits", penalty=0.02)
    with pytest.raises(InvalidInputError, match=rf"penalty is .*{message}"):
        env.set_penalty(penalty)
    assert env.task.penalty == 0.02


def test_numbers_of_numpy(cnn):
    task = make_task(cnn, "digits", penalty=np.float32(0.125), images=np.int64(10))
    assert (task.penalty, len(task.dataset)) == (0.125, 10)


def test_an_unknown_argument_names_the_nearest(cnn):
    message = r"got an unexpected keyword argument 'penalti'\. Did you mean 'penalty'\?"
    with pytest.raises(UnknownArgumentError, match=message):
        gym.make(ONE_STEP, model=cnn, penalti=0.1)
    with pytest.raises(UnknownArgumentError, match=message):
        gym.make_vec(LAYERWISE, 2, model=cnn, penalti=0.1)
    with pytest.raises(UnknownArgumentError, match=message):
        MaskVecEnv(ONE_STEP, 2, penalti=0.1)
    with pytest.raises(
        UnknownArgumentError, match=r"got an unexpected keyword argument 'groups'\. Did you mean 'group'\?"
    ):
        MaskVecEnv(ONE_STEP, 2, groups=2)
    with pytest.raises(UnknownArgumentError, match=r"got an unexpected keyword argument 'layerwise'\."):
        gym.make(LAYERWISE, layerwise=False)

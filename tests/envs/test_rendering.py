"""Pictures: size, and that the image, each bit of the mask and the verdict are to be seen."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from prunegym.envs import MaskSimulator, MaskVecEnv, draw_gallery, make_task, render
from prunegym.envs.rendering import IMAGE_SIDE, KEPT, MARGIN, NAME_WIDTH, OFF, RIGHT, STRIP_WIDTH, UNDECIDED, WRONG
from tests.envs.mask_oracle import IDS, LAYERWISE, ONE_STEP, layer_actions, random_masks


def area(picture, colour):
    return int((picture == np.array(colour)).all(2).sum())


def cells(picture, gate, width, strips=2):
    """The colours of a gate's cells, read off the middle of each."""
    row_height = min(48, max(17, (IMAGE_SIDE + 90) // (strips + 1)))
    left, middle = 2 * MARGIN + IMAGE_SIDE + NAME_WIDTH + 4, MARGIN + gate * row_height + (row_height - 4) // 2
    centres = left + ((np.arange(width) + 0.4) * STRIP_WIDTH / width).astype(int)
    return [tuple(int(part) for part in picture[middle, centre]) for centre in centres]


def test_the_picture_shows_image_mask_and_verdict(cnn):
    env = gym.make(LAYERWISE, model=cnn, dataset="digits", split="test", render_mode="rgb_array")
    mask, sizes = random_masks(1), set()
    _, info = env.reset(seed=0, options={"index": 0})
    picture = env.render()
    sizes.add(picture.shape)
    assert picture.dtype == np.uint8
    assert area(picture, KEPT) == area(picture, RIGHT) == 0
    image = env.unwrapped.task.dataset.images[0, 0]
    photo = picture[MARGIN : MARGIN + IMAGE_SIDE, MARGIN : MARGIN + IMAGE_SIDE]
    np.testing.assert_array_equal(photo[10::20, 10::20], image[:, :, None].expand(8, 8, 3))
    first, second = layer_actions(mask)
    env.step(first[0])
    picture = env.render()
    sizes.add(picture.shape)
    assert cells(picture, 0, 16) == [KEPT if bit else OFF for bit in mask[0, :16]]
    assert cells(picture, 1, 32) == [UNDECIDED] * 32
    info = env.step(second[0])[4]
    picture = env.render()
    sizes.add(picture.shape)
    assert cells(picture, 1, 32) == [KEPT if bit else OFF for bit in mask[0, 16:]]
    assert (area(picture, RIGHT) > 20, area(picture, WRONG) > 20) == (info["correct"], not info["correct"])
    assert len(sizes) == 1


def test_right_and_wrong_answers_differ_in_colour(cnn):
    task = make_task(cnn, "digits", "test")
    env = MaskSimulator(task, 60, np.random.default_rng(0))
    env.reset(list(range(60)))
    outcome = env.step(random_masks(60, keep=0.6)).outcome
    right = (outcome.predictions == outcome.labels).tolist()
    assert 0 < sum(right) < 60
    for row in (right.index(True), right.index(False)):
        picture = render(task, env.snapshot(), row)
        assert (area(picture, RIGHT) > 20) is right[row]
        assert (area(picture, WRONG) > 20) is not right[row]


def test_wide_and_many_gates_fit():
    wide = nn.Sequential(nn.Conv2d(1, 512, 3, padding=1), nn.ReLU())
    many = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), *(nn.Conv2d(4, 4, 3, padding=1) for _ in range(39)))
    for body, channels, strips in ((wide, 512, 1), (many, 4, 32)):
        network = nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))
        task = make_task(network, "digits")
        env = MaskSimulator(task, 1, np.random.default_rng(0))
        env.reset([0])
        env.step(np.ones((1, task.masked.mask_size)))
        picture = render(task, env.snapshot())
        assert len(task.masked.gates) == 512 // channels if channels == 512 else 40
        assert cells(picture, strips - 1, 8, strips) == [KEPT] * 8
        assert picture.shape[0] < 600
        assert draw_gallery(task, env.snapshot()).shape[0] < 200


def test_a_strip_with_more_bits_than_pixels_mixes_their_colours():
    network = nn.Sequential(nn.Conv2d(1, 640, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(640, 10))
    task = make_task(network, "digits")
    env = MaskSimulator(task, 1, np.random.default_rng(0))
    env.reset([0])
    env.step(np.concatenate([np.ones(320), np.tile([1, 0], 160)])[None])
    colours = cells(render(task, env.snapshot()), 0, 8, 1)
    half = tuple(round((kept + off) / 2) for kept, off in zip(KEPT, OFF, strict=True))
    assert colours == [KEPT] * 4 + [half] * 4


def test_a_gallery_has_a_tile_an_image(cnn):
    task = make_task(cnn, "digits", "test")
    env = MaskSimulator(task, 5, np.random.default_rng(0))
    env.reset([0, 1, 2, 3, 4])
    env.step(torch.cat([torch.ones(4, 48), torch.zeros(1, 48)]))
    one = draw_gallery(task, env.snapshot(), rows=[0])
    five = draw_gallery(task, env.snapshot(), columns=3)
    height, width, _ = one.shape
    assert five.shape == (2 * height, 3 * width, 3)
    np.testing.assert_array_equal(five[:height, :width], one)
    assert area(five, KEPT) == 4 * area(one, KEPT) > 0
    assert area(five[height:, width : 2 * width], OFF) > 1000


@pytest.mark.parametrize("env_id", IDS)
def test_batches_show_the_episodes_that_just_ended(env_id, cnn):
    envs = gym.make_vec(env_id, 3, model=cnn, dataset="digits", render_mode="rgb_array")
    venv = MaskVecEnv(env_id, 3, model=cnn, dataset="digits", render_mode="rgb_array")
    actions = np.ones((3, envs.single_action_space.n))
    envs.reset(seed=0), venv.reset()
    for _ in range(1 if env_id == ONE_STEP else 2):
        envs.step(actions), venv.step(actions)
    for pictures in (envs.render(), venv.get_images()):
        assert len(pictures) == 3
        assert all(area(picture, KEPT) > 1000 for picture in pictures)
    assert venv.render().ndim == 3


def test_without_a_render_mode_nothing_is_drawn(cnn):
    env = gym.make(ONE_STEP, model=cnn, dataset="digits")
    env.reset(seed=0)
    assert env.unwrapped.render() is None
    assert MaskVecEnv(ONE_STEP, 2, model=cnn, dataset="digits").get_images() == [None, None]

"""What notebooks and terminals show of models, data and results."""

from __future__ import annotations

import base64
import dataclasses
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from prunegym import MaskVecEnv, from_arrays, load_dataset, shipped_model
from prunegym.agents import agent_entry, compare, evaluate
from prunegym.html import table


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    model, few = shipped_model("digits"), load_dataset("digits", "test").subset(torch.arange(40))
    folder = tmp_path_factory.mktemp("comparison")
    others = {name: load_dataset("digits", name) for name in ("train", "validation")}
    env = MaskVecEnv("prunegym/ChannelMask-v0", 4, seed=0)
    env.reset()
    outcome = env.simulator.step(np.ones((4, env.action_space.n))).outcome
    comparison = compare([agent_entry(model, "<gates>")], model, few, [0], out=folder, progress=False, **others)
    return {
        "DynamicCNN": model,
        "MaskedCNN": model.masked,
        "Dataset": few,
        "Evaluation": evaluate(model, model, few),
        "Comparison": comparison,
        "Outcome": outcome,
    }


@pytest.mark.parametrize("name", ["DynamicCNN", "MaskedCNN", "Dataset", "Evaluation", "Comparison", "Outcome"])
def test_it_is_short_in_a_terminal_and_a_table_in_a_notebook(name, things) -> None:
    thing = things[name]
    assert repr(thing).startswith(f"{name}(")
    assert len(repr(thing)) < 200
    assert "\n" not in repr(thing)
    shown = thing._repr_html_()
    assert shown.count("<table>") == shown.count("</table>") == 1
    assert re.search(r"<td>", shown)
    assert re.search(r"<p>[^<]+</p><table>", shown), "the text is not folded to the width of the table"


def test_figures_are_those_of_the_objects(things) -> None:
    found, comparison = things["Evaluation"], things["Comparison"]
    assert f"accuracy {found.accuracy:.4f} (dense {found.dense_accuracy:.4f})" in repr(found)
    assert "<td>total MAC share</td>" in found._repr_html_()
    assert f"<td>accuracy</td><td>{found.accuracy:.4g}</td>" in found._repr_html_()
    assert "&lt;gates&gt;" in comparison._repr_html_()
    assert "means over 1 seed<" in comparison._repr_html_()
    assert dataclasses.replace(comparison, seeds=(0, 1)).seed_count == "2 seeds"
    assert f"{comparison.rows[0].figures['accuracy'].mean:.4f}" in repr(comparison)
    right = things["Outcome"].predictions == things["Outcome"].labels
    assert f"4 episodes: {right.double().mean():.3f} correct, 1.000 of the MACs" in repr(things["Outcome"])


def test_pictures_are_the_images(things) -> None:
    few = things["Dataset"]
    pictures = re.findall(r"base64,([^\"]+)", few._repr_html_())
    assert len(pictures) == 8
    # JupyterLab's own style overrides the attribute `height`, so that a digit would be 8 pixels high.
    assert few._repr_html_().count('style="height: 48px') == 8
    for row, text in enumerate(pictures):
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))
        np.testing.assert_array_equal(pixels[:, :, 0], few.images[row, 0].numpy())
    assert len(re.findall("base64", things["Outcome"]._repr_html_())) == 4


@pytest.mark.parametrize("targets", [torch.eye(4, dtype=torch.int64), torch.rand(4), torch.ones(4, 6, 6).long(), None])
def test_other_targets_and_pixels_are_shown(targets) -> None:
    part = torch.rand(4, 3, 6, 6), targets
    shown = from_arrays(part, part, validation=part)["test"]._repr_html_()
    assert len(re.findall("base64", shown)) == 4
    assert len(shown) < 4000


def test_texts_are_escaped() -> None:
    assert "<td>a &lt; b</td><td>0.3333</td>" in table(("<x>", "y"), [("a < b", 1 / 3)], "")
    assert "&lt;x&gt;" in table(("<x>", "y"), [], "")

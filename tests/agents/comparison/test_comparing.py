"""Tables of a comparison: means, intervals, paired differences, and what is refused."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
import yaml

from prunegym.agents.comparison.comparing import compare
from prunegym.agents.comparison.entries import Entry, agent_entry
from prunegym.agents.comparison.results import interval
from prunegym.agents.evaluation.evaluator import JSON_KEYS, evaluate
from prunegym.agents.rl.recipe import Recipe
from prunegym.errors import InvalidInputError, MissingDataError, UnknownNameError
from prunegym.models import (
    DynamicCNN,
    Normalisation,
    build,
    load_dataset,
)
from tests.agents.comparison.seeded_entries import masks_of, seeded


def test_means_and_intervals_are_over_seeds(masked, few, tmp_path):
    table = compare([seeded()], masked, few, (1, 2, 3), out=tmp_path)
    singles = [evaluate(masks_of(seed + 600), masked, few) for seed in (1, 2, 3)]
    (row,) = table.rows
    assert table.dataset == "digits/test"
    assert (table.reference, table.seeds) == ("seeded", (1, 2, 3))
    assert set(row.figures) == set(JSON_KEYS)
    for key in JSON_KEYS:
        values = [getattr(single, key) for single in singles]
        assert row.figures[key].mean == pytest.approx(np.mean(values))
        assert row.figures[key].half_width == pytest.approx(
            4.302653 * np.std(values, ddof=1) / 3**0.5, rel=1e-6, abs=1e-12
        )
    assert row.difference is None
    assert row.static_seeds == sum(single.is_static for single in singles)


def test_differences_are_paired_by_image_and_by_seed(masked, few, tmp_path):
    table = compare([seeded("a", 0.8), seeded("b", 0.5)], masked, few, (1, 2), out=tmp_path)
    gaps = np.array(
        [
            evaluate(masks_of(seed + 500, share=0.5), masked, few).correct.numpy().astype(float)
            - evaluate(masks_of(seed + 800, share=0.8), masked, few).correct.numpy().astype(float)
            for seed in (1, 2)
        ]
    )
    row = table.rows[1]
    by_image = gaps.mean(0)
    assert row.difference.mean == pytest.approx(by_image.mean())
    assert row.difference.count == 40
    assert row.difference.half_width == pytest.approx(2.02269 * by_image.std(ddof=1) / 40**0.5, rel=1e-5)
    assert row.difference_over_seeds.mean == pytest.approx(by_image.mean())
    assert row.difference_over_seeds.count == 2
    assert row.difference_over_seeds.half_width == pytest.approx(interval(gaps.mean(1).tolist()).half_width)


def test_reward_differences_count_the_macs_of_each_image(masked, few, tmp_path):
    table = compare([seeded("a", 0.8), seeded("b", 0.5)], masked, few, (1, 2), out=tmp_path, penalty=0.3)
    gaps = []
    for seed in (1, 2):
        own, other = masks_of(seed + 500, share=0.5), masks_of(seed + 800, share=0.8)
        shares = masked.cost.mac_share(own) - masked.cost.mac_share(other)
        right = evaluate(own, masked, few).correct.double() - evaluate(other, masked, few).correct.double()
        gaps.append((right - 0.3 * shares).numpy())
    row = table.rows[1]
    expected, by_seed = interval(np.mean(gaps, 0).tolist()), interval(np.mean(gaps, 1).tolist())
    assert (row.reward_difference.mean, row.reward_difference.half_width) == pytest.approx(
        (expected.mean, expected.half_width), abs=1e-6
    )
    assert row.reward_difference_over_seeds.half_width == pytest.approx(by_seed.half_width, abs=1e-6)
    assert row.reward_difference.mean == pytest.approx(
        row.figures["reward"].mean - table.rows[0].figures["reward"].mean, abs=1e-6
    )
    again = compare([seeded("a", 0.8), seeded("b", 0.5)], masked, few, (1, 2), out=tmp_path, penalty=0.3)
    assert again.rows[1].reward_difference == row.reward_difference  # read from the files


def test_the_reference_can_be_named_and_stays_in_its_place(masked, few, tmp_path):
    table = compare([seeded("a", 0.8), seeded("b", 0.5)], masked, few, (1,), out=tmp_path, reference="b")
    assert [row.name for row in table.rows] == ["a", "b"]
    assert table.rows[1].difference is None
    assert table.rows[0].difference.mean == pytest.approx(
        table.rows[0].figures["accuracy"].mean - table.rows[1].figures["accuracy"].mean
    )


def test_baselines_get_the_macs_of_the_reference_seed_by_seed(masked, few, tmp_path):
    table = compare([seeded(), "random", "l1", "keep-all"], masked, few, (1, 2), out=tmp_path)
    reference, random, l1, everything = table.rows
    for seed in (1, 2):
        wanted = reference.results[seed].figures["total_mac_share"]
        for row in (random, l1):
            assert wanted <= row.results[seed].figures["mac_share"] < wanted + 1 / 16
    assert everything.figures["mac_share"].mean == 1


def test_a_baseline_that_is_the_reference_needs_a_share(masked, few, tmp_path):
    with pytest.raises(InvalidInputError, match=r"'random' gets the MAC share of the first entry.*--target-macs 0\.5"):
        compare(["random", "l1"], masked, few, (1,), out=tmp_path / "none")
    assert not (tmp_path / "none").exists()
    table = compare(["random", "l1"], masked, few, (1,), out=tmp_path, share=0.5)
    assert all(0.5 <= row.figures["mac_share"].mean < 0.5 + 1 / 16 for row in table.rows)
    assert compare(["keep-all"], masked, few, (1,), out=tmp_path).rows[0].figures["mac_share"].mean == 1


def test_an_agent_on_which_seeds_have_no_bearing_is_evaluated_once(masked, few, tmp_path, dynamic):
    table = compare([seeded(), agent_entry(dynamic, "gates")], masked, few, (1, 2, 3), out=tmp_path)
    row = table.rows[1]
    assert list(row.results) == [1]
    assert row.figures["accuracy"].half_width is None
    assert row.difference_over_seeds.count == 3
    expected = row.figures["accuracy"].mean - table.rows[0].figures["accuracy"].mean
    assert row.difference_over_seeds.mean == pytest.approx(expected)


def test_the_table_is_plain_json(masked, few, tmp_path):
    table = compare([seeded(), "random"], masked, few, (1, 2), out=tmp_path)
    content = json.loads(json.dumps(table.as_json(), allow_nan=False))
    assert [row["name"] for row in content["rows"]] == ["seeded", "random"]
    assert content["rows"][0]["figures"]["accuracy"]["mean"] == table.rows[0].figures["accuracy"].mean
    assert content["rows"][0]["difference"] is None
    assert set(content["rows"][1]["seeds"]) == {"1", "2"}


def test_bad_tables_are_refused(masked, few, tmp_path):
    with pytest.raises(InvalidInputError, match=r"There are 0 entries and 1 seeds; at least one of each is needed."):
        compare([], masked, few, (1,), out=tmp_path)
    with pytest.raises(InvalidInputError, match=r"There are 1 entries and 0 seeds"):
        compare([seeded()], masked, few, (), out=tmp_path)
    with pytest.raises(InvalidInputError, match=r"Several entries are called 'A', 'a'. Give each a different name."):
        compare([seeded("a"), seeded("A")], masked, few, (1,), out=tmp_path)
    with pytest.raises(UnknownNameError, match=r"Unknown reference 'c'.* Known: a, b\."):
        compare([seeded("a"), seeded("b")], masked, few, (1,), out=tmp_path, reference="c")


def test_recipes_of_one_name_would_share_a_folder(masked, few, tmp_path):
    for folder, penalty in (("one", 0.2), ("two", 0.4)):
        (tmp_path / folder).mkdir()
        text = yaml.safe_dump({"prunegym/ChannelMask-v0": {"env_kwargs": {"penalty": penalty, "reward": "macs"}}})
        (tmp_path / folder / "mine.yaml").write_text(text)
    entries = [f"{label}={tmp_path / folder / 'mine.yaml'}" for label, folder in (("a", "one"), ("b", "two"))]
    with pytest.raises(InvalidInputError, match=r"The recipes of 'a' and 'b' are both called 'mine'"):
        compare(entries, masked, few, (0,), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_training_images_are_those_of_the_data_set_by_default(masked, few, tmp_path):
    seen = []

    def make(model, _terms):
        train, validation = model.data["train"], model.data["validation"]
        seen.append((len(train), train.split, len(validation), validation.split))
        return torch.ones(48)

    compare([Entry("spy", make, None)], masked, few, (1,), out=tmp_path)
    own = load_dataset("digits", "validation")
    compare([Entry("spy", make, None)], masked, few, (1,), out=tmp_path, train=own, validation=few)
    assert seen == [(1077, "train", 120, "validation"), (120, "validation", 40, "test")]


def test_what_does_not_fit_is_told_before_anything_is_made(masked, few, tmp_path):
    entry = Entry("spy", lambda _run: pytest.fail("was made"), None)
    large = dataclasses.replace(few, images=few.images.repeat(1, 1, 2, 2))
    with pytest.raises(InvalidInputError, match=r"takes images of shape \(1, 8, 8\), those of data set 'digits' have"):
        compare([entry], masked, few, (1,), out=tmp_path, train=large)
    with pytest.raises(InvalidInputError, match=r"dense is a SimpleCNN whose output per image has shape \(5,\)"):
        compare([entry], masked, few, (1,), out=tmp_path, dense=build("simple-cnn", 5, 1, 8))


@pytest.mark.parametrize(
    ("make_second", "error", "message"),
    [
        (
            lambda recipe: dataclasses.replace(recipe, name="other", env_kwargs={"reward": "maks"}),
            UnknownNameError,
            "maks",
        ),
        (lambda recipe: dataclasses.replace(recipe, name="other", env="CartPole-v1"), UnknownNameError, "CartPole-v1"),
        (lambda _: "start", InvalidInputError, "The model has no gates, so `start` has nothing to evaluate"),
        (lambda _: torch.ones(3), InvalidInputError, r"of shape \(3,\); \(48,\) is needed"),
    ],
)
def test_an_impossible_entry_is_found_before_any_is_trained(masked, few, tmp_path, make_second, error, message):
    recipe = Recipe("tiny", env_kwargs={"reward": "macs"}, n_envs=32, n_episodes=64)
    with pytest.raises(error, match=message):
        compare([recipe, make_second(recipe)], masked, few, (0, 1), out=tmp_path)
    assert not (tmp_path / "runs").exists()


def test_each_seeds_model_and_file_is_checked(masked, dynamic, few, tmp_path):
    dynamic.save(tmp_path / "mine-0.safetensors")
    with pytest.raises(MissingDataError, match=r"mine-1\.safetensors"):
        compare([seeded(), f"{tmp_path}/mine-{{seed}}.safetensors"], masked, few, (0, 1), out=tmp_path / "out")
    with pytest.raises(InvalidInputError, match="The model has no gates"):
        compare([seeded(), "start"], {0: dynamic, 1: masked}, few, (0, 1), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_split_is_numbered_and_normalised_as_the_model_is(dynamic, few, tmp_path):
    names, seen = tuple("abcdefghij"), []
    info = dataclasses.replace(dynamic.info, classes=names, normalisation=Normalisation((0.4,), (0.6,)))

    def make(model, _terms):
        seen.extend(model.data[part] for part in ("evaluated", "train", "validation"))
        return torch.ones(48)

    backwards = dataclasses.replace(few, classes=names[::-1], labels=9 - few.labels)
    model = DynamicCNN(dynamic.masked, dynamic.policy, info)
    compare([Entry("spy", make, None)], model, backwards, (1,), out=tmp_path, train=backwards, validation=backwards)
    assert len(seen) == 3
    for data in seen:
        assert torch.equal(data.labels, few.labels)
        assert (data.classes, data.normalisation) == (names, info.normalisation)


def test_the_other_splits_of_ones_own_data_are_asked_for(masked, few, tmp_path):
    own, train = dataclasses.replace(few, name="mine"), load_dataset("digits")
    for given, wanted in (({}, "train"), ({"train": train}, "validation")):
        with pytest.raises(InvalidInputError, match=rf"{wanted} images .* 'mine' are needed, .* Pass {wanted}=\."):
            compare(["l1"], masked, own, (1,), out=tmp_path, share=0.5, **given)
    table = compare(["l1"], masked, own, (1,), out=tmp_path, train=train, validation=few, share=0.5)
    assert table.dataset == "mine/test"

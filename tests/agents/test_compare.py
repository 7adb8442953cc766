from __future__ import annotations

import copy
import dataclasses
import json
import re

import numpy as np
import pytest
import torch

from prunegym.agents.compare import compare
from prunegym.agents.entries import (
    Entry,
    agent_entry,
    as_entry,
    baseline_entry,
    recipe_entry,
    rival_entry,
    start_entry,
)
from prunegym.agents.evaluation import JSON_KEYS, evaluate
from prunegym.agents.loading import AgentError
from prunegym.agents.offsets import gates_at_best_offset, gates_at_mac_share
from prunegym.agents.recipe import Recipe
from prunegym.agents.results import Result, fingerprint
from prunegym.agents.statistics import interval
from prunegym.models import (
    CNNInfo,
    DynamicCNN,
    ImitationConfig,
    MaskedCNN,
    Normalisation,
    build,
    load_dataset,
    shipped_model,
)
from prunegym.models.errors import InvalidInputError, UnknownNameError
from prunegym.models.model_files import StoredModel

LAYERWISE = "prunegym/LayerwiseChannelMask-v0"


def masks_of(seed, count=40, share=0.6):
    return torch.rand(count, 48, generator=torch.Generator().manual_seed(seed)) < share


def seeded(name="seeded", share=0.6, made=None):
    """An entry whose masks depend on the seed; `made` collects the seeds for which it was asked."""

    def make(run):
        if made is not None:
            made.append(run.seed)
        return masks_of(run.seed + int(1000 * share), share=share)

    return Entry(name, make, {"test": name, "share": share}, seeded=True)


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


def test_an_agent_on_which_seeds_have_no_bearing_is_evaluated_once(masked, few, tmp_path, dynamic):
    table = compare([seeded(), agent_entry(dynamic, "gates")], masked, few, (1, 2, 3), out=tmp_path)
    row = table.rows[1]
    assert list(row.results) == [1]
    assert row.figures["accuracy"].half_width is None
    assert row.difference_over_seeds.count == 3
    expected = row.figures["accuracy"].mean - table.rows[0].figures["accuracy"].mean
    assert row.difference_over_seeds.mean == pytest.approx(expected)


def test_results_are_found_again_and_made_again_if_anything_changes(masked, digits_cnn, few, tmp_path):
    made = []

    def run(**changes):
        made.clear()
        arguments = {"model": masked, "dataset": few, "seeds": (1, 2), "out": tmp_path} | changes
        table = compare([seeded(made=made)], **arguments)
        return table.rows[0].figures["reward"].mean, list(made)

    first, seeds = run()
    assert seeds == [1, 2]
    assert run() == (first, [])
    assert run(seeds=(1, 2, 3))[1] == [3]
    assert run(penalty=0.25)[1] == [1, 2]
    assert run()[1] == [1, 2]  # the files now hold the other penalty's results
    assert run(dataset=few.subset(torch.arange(39, -1, -1)))[1] == [1, 2]
    with torch.no_grad():
        changed = MaskedCNN(digits_cnn, torch.zeros(1, 1, 8, 8))
        changed.network.linear.bias += 1
    assert run(model=changed)[1] == [1, 2]


def test_an_interrupted_comparison_goes_on(masked, few, tmp_path):
    made = []

    def make(run):
        made.append(run.seed)
        if run.seed == 2 and len(made) < 3:
            raise KeyboardInterrupt
        return masks_of(run.seed)

    entry = Entry("fragile", make, {"test": 1}, seeded=True)
    with pytest.raises(KeyboardInterrupt):
        compare([entry], masked, few, (1, 2), out=tmp_path)
    table = compare([entry], masked, few, (1, 2), out=tmp_path)
    assert made == [1, 2, 2]
    assert list(table.rows[0].results) == [1, 2]


def test_damaged_results_are_made_again(masked, few, tmp_path):
    made = []
    compare([seeded(made=made)], masked, few, (1,), out=tmp_path)
    (path,) = (tmp_path / "results" / "test").glob("*.json")
    path.write_text(path.read_text()[:200])
    compare([seeded(made=made)], masked, few, (1,), out=tmp_path)
    assert made == [1, 1]


def test_results_of_an_agent_that_cannot_be_fingerprinted_are_never_reused(masked, few, tmp_path):
    calls = []

    def keep(observation):
        calls.append(len(observation["features"]))
        return np.ones((len(observation["features"]), 48))

    for _ in range(2):
        compare([agent_entry(keep, "mine")], masked, few, (1,), out=tmp_path)
    assert calls == [40, 40]


def test_a_result_survives_its_file(masked, few, tmp_path):
    evaluation = evaluate(masks_of(1), masked, few)
    Result.of(evaluation).save(tmp_path / "r.json", {"a": 1})
    loaded = Result.load(tmp_path / "r.json", {"a": 1})
    assert loaded.figures == evaluation.as_json()
    assert torch.equal(loaded.correct, evaluation.correct)
    assert loaded.notes == evaluation.notes
    assert loaded.difficulty["margin_correlation"] == evaluation.difficulty.margin_correlation
    assert Result.load(tmp_path / "r.json", {"a": 2}) is None
    assert Result.load(tmp_path / "none.json", {"a": 1}) is None


def test_the_table_is_plain_json(masked, few, tmp_path):
    table = compare([seeded(), "random"], masked, few, (1, 2), out=tmp_path)
    content = json.loads(json.dumps(table.as_json(), allow_nan=False))
    assert [row["name"] for row in content["rows"]] == ["seeded", "random"]
    assert content["rows"][0]["figures"]["accuracy"]["mean"] == table.rows[0].figures["accuracy"].mean
    assert content["rows"][0]["difference"] is None
    assert set(content["rows"][1]["seeds"]) == {"1", "2"}


def test_fingerprints_tell_things_apart(masked, dynamic, few):
    ones = torch.ones(48)
    marks = [fingerprint(thing) for thing in (masked, dynamic, few, ones, 1 - ones, few.subset(torch.arange(39)))]
    assert len(set(marks)) == 6
    assert None not in marks
    assert fingerprint(ones.clone()) == fingerprint(ones)
    assert fingerprint(lambda observation: observation) is None


def test_the_oracle_is_told_lambda(masked, few, tmp_path):
    free, dear = (
        compare([seeded("a", 0.7), "best-of-16"], masked, few, (1,), out=tmp_path / str(penalty), penalty=penalty)
        for penalty in (0.0, 5.0)
    )
    assert dear.rows[1].figures["mac_share"].mean < free.rows[1].figures["mac_share"].mean - 0.01


TINY = Recipe(
    name="tiny",
    env=LAYERWISE,
    env_kwargs={"reward": "macs", "accuracy": "probability"},
    gate_policy={"hidden": 4, "grid": 2},
    imitation=ImitationConfig(steps=100, kept_share=0.5),
    target_macs=0.6,
    n_envs=32,
    n_episodes=64,
    hyperparameters={"n_epochs": 1},
)


@pytest.mark.filterwarnings("ignore:The policy has become static")  # so little training may well end so
def test_recipes_are_trained_for_each_seed_and_stand_beside_their_start_and_rivals(masked, few, tmp_path):
    recipe = dataclasses.replace(recipe_entry(TINY), name="under a label")
    wide = seeded("wide", 0.9)
    entries = [recipe, start_entry(recipe), start_entry(recipe, "same-macs"), "taylor-static", wide]
    before = {name: value.clone() for name, value in masked.state_dict().items()}
    model = StoredModel(masked, None, CNNInfo.of("simple-cnn", few))
    table = compare(entries, model, few, (0, 1), out=tmp_path, reference="wide")
    agent, start, shifted, rival, reference = table.rows
    assert all(torch.equal(value, before[name]) for name, value in masked.state_dict().items())
    for seed in (0, 1):
        folder = tmp_path / "runs" / f"tiny-seed{seed}"
        trained = evaluate(DynamicCNN.load(folder / "model.safetensors"), None, few)
        assert agent.results[seed].figures == pytest.approx(trained.as_json())
        first = evaluate(DynamicCNN.load(folder / "start.safetensors"), None, few)
        assert start.results[seed].figures == pytest.approx(first.as_json())
        wanted = reference.results[seed].figures["total_mac_share"]
        assert start.results[seed].figures["total_mac_share"] < wanted - 0.1
        assert shifted.results[seed].figures["total_mac_share"] == pytest.approx(wanted, abs=0.03)
        assert wanted <= rival.results[seed].figures["total_mac_share"] < wanted + 1 / 16
    assert agent.results[0].figures != agent.results[1].figures


def test_the_models_own_gates_are_a_start_with_and_without_an_offset(dynamic, few, tmp_path):
    validation = load_dataset("digits", "validation")
    model = StoredModel(dynamic.masked, dynamic.policy, dynamic.info)
    entries = [seeded("a", 0.5), "start", "start-same-macs", "start-best-offset"]
    table = compare(entries, model, few, (1,), out=tmp_path, validation=validation, penalty=0.4)
    reference, start, same, _ = table.rows
    assert start.figures["reward"].mean == evaluate(dynamic, None, few, penalty=0.4).reward
    assert same.figures["total_mac_share"].mean == pytest.approx(reference.figures["total_mac_share"].mean, abs=0.05)


@pytest.mark.parametrize("penalty", [0.1, 0.5, 1.5])
def test_the_best_offset_is_as_good_as_any_other(penalty):
    model, validation = shipped_model("digits"), load_dataset("digits", "validation")
    best = evaluate(gates_at_best_offset(model, validation, penalty), None, validation, penalty=penalty).reward
    others = [gates_at_mac_share(model, validation, share) for share in np.arange(0.1, 1.01, 0.05)]
    rewards = [evaluate(one, None, validation, penalty=penalty).reward for one in (model, *others)]
    assert best >= rewards[0]
    assert best >= max(rewards) - 0.01  # the search goes in steps


def test_a_start_needs_gates(masked, few, tmp_path):
    with pytest.raises(InvalidInputError, match="The model has no gates, so there is no start to evaluate"):
        compare(["start"], masked, few, (1,), out=tmp_path)
    with pytest.raises(UnknownNameError, match="Unknown shift of the start's logits 'best'"):
        start_entry(shift="best")
    with pytest.raises(InvalidInputError, match=r"Entry 'random' has no start: it is no recipe"):
        start_entry(baseline_entry("random"))


def test_each_seed_may_have_its_own_model_and_rival(dynamic, few, tmp_path):
    models = {}
    for seed in (0, 1):
        models[seed] = copy.deepcopy(dynamic)
        models[seed].policy.rescale_logits(offset=seed - 0.5)
        models[seed].save(tmp_path / f"rival-{seed}.safetensors")
        models[seed].policy.rescale_logits(offset=0.3)
    entries = ["start", f"rival={tmp_path}/rival-{{seed}}.safetensors", "keep-all"]
    table = compare(entries, models, few, (0, 1), out=tmp_path / "table")
    start, rival, everything = table.rows
    assert [row.name for row in table.rows] == ["start", "rival", "keep-all"]
    assert list(everything.results) == [0, 1]
    for seed in (0, 1):
        own = evaluate(models[seed], None, few)
        other = evaluate(DynamicCNN.load(tmp_path / f"rival-{seed}.safetensors"), None, few)
        assert start.results[seed].figures["kept_share"] == own.kept_share
        assert rival.results[seed].figures["kept_share"] == other.kept_share
    assert start.figures["kept_share"].half_width > 0
    models[1].save(tmp_path / "rival-1.safetensors")
    again = compare(entries, models, few, (0, 1), out=tmp_path / "table").rows[1]
    assert again.results[0].figures == rival.results[0].figures
    assert again.results[1].figures == start.results[1].figures  # another file, so the stored result is not its own


def test_a_seed_without_a_model_is_named(dynamic, few, tmp_path):
    with pytest.raises(InvalidInputError, match=r"There is no model for seed 2, only for 0, 1\."):
        compare(["start"], {0: dynamic, 1: dynamic}, few, (0, 1, 2), out=tmp_path)


def test_names_become_entries(dynamic, tmp_path):
    dynamic.save(tmp_path / "mine.safetensors")
    assert as_entry("random").key == {"baseline": "random"}
    assert as_entry("learned-static").key == {"rival": "learned-static", "epochs": None}
    assert as_entry("frozen").key["recipe"]["env"] == LAYERWISE
    assert as_entry(TINY).name == "tiny"
    stored = as_entry(str(tmp_path / "mine.safetensors"))
    assert (stored.name, stored.key) == ("mine", {"agent": fingerprint(dynamic)})
    assert as_entry(stored) is stored
    labelled = as_entry(f"other name={tmp_path / 'mine.safetensors'}")
    assert (labelled.name, labelled.key) == ("other name", stored.key)


def test_unknown_names_are_refused():
    with pytest.raises(UnknownNameError, match=r"Unknown recipe 'frozn'. Did you mean 'frozen'\?"):
        as_entry("frozn")
    with pytest.raises(UnknownNameError, match="Unknown baseline 'tailor'"):
        baseline_entry("tailor")
    with pytest.raises(UnknownNameError, match=r"Unknown rival 'greedy'. Did you mean 'greedy-static'\?"):
        rival_entry("greedy")
    with pytest.raises(AgentError, match="The agent 'three' is a int without a method `predict`"):
        agent_entry(3, "three")


def test_bad_tables_are_refused(masked, few, tmp_path):
    with pytest.raises(InvalidInputError, match=r"There are 0 entries and 1 seeds; at least one of each is needed."):
        compare([], masked, few, (1,), out=tmp_path)
    with pytest.raises(InvalidInputError, match=r"There are 1 entries and 0 seeds"):
        compare([seeded()], masked, few, (), out=tmp_path)
    with pytest.raises(InvalidInputError, match=r"Several entries are called 'A', 'a'. Give each its own name."):
        compare([seeded("a"), seeded("A")], masked, few, (1,), out=tmp_path)
    message = "The reference 'c' is none of the entries: a, b."
    with pytest.raises(InvalidInputError, match=re.escape(message)):
        compare([seeded("a"), seeded("b")], masked, few, (1,), out=tmp_path, reference="c")


def test_training_images_are_those_of_the_data_set_by_default(masked, few, tmp_path):
    seen = []

    def make(run):
        seen.append((len(run.train), run.train.split, len(run.validation), run.validation.split))
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
    with pytest.raises(InvalidInputError, match=r"dense is a SimpleCNN whose output has shape \(5,\) an image"):
        compare([entry], masked, few, (1,), out=tmp_path, dense=build("simple-cnn", 5, 1, 8))


def test_every_split_is_numbered_and_normalised_as_the_model_is(dynamic, few, tmp_path):
    names, seen = tuple("abcdefghij"), []
    info = dataclasses.replace(dynamic.info, classes=names, normalisation=Normalisation((0.4,), (0.6,)))

    def make(run):
        seen.extend((run.dataset, run.train, run.validation))
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
            compare(["l1"], masked, own, (1,), out=tmp_path, **given)
    table = compare(["l1"], masked, own, (1,), out=tmp_path, train=train, validation=few)
    assert table.dataset == "mine/test"

"""What a tuning stage tries: grids, random search, extensions, and definitions that are refused."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psann_jax.config import ConfigError
from psann_jax.experiments.cases import all_cases
from psann_jax.experiments.tuning import HIGH, LOW, LogRange, Tuning
from tests.support.sweeps import CONTENDERS, small_sweep
from tests.support.tiny import write_text


def tuned_sweep(tuning, **options):
    """A small sweep with validation text of its own and a tuning stage."""
    sweep = small_sweep(tuning=tuning, **options)
    sweep.common.data.valid_sources = ("valid.txt",)
    return sweep


def test_a_grid_is_combined_in_order():
    tuning = Tuning({"train.lr": (1e-3, 2e-3), "train.weight_decay": (0.0, 0.1)})
    assert tuning.combinations("ngt", tuning.grid("ngt")) == [
        (("train.lr", lr), ("train.weight_decay", decay)) for lr in (1e-3, 2e-3) for decay in (0.0, 0.1)
    ]


def test_a_contender_can_have_a_grid_of_its_own():
    tuning = Tuning({"train.lr": (1e-3, 2e-3)}, own={"ngt": {"model.d_coord": (4, 8)}})
    assert tuning.names("ngt") == {"model.d_coord"}
    assert tuning.combinations("ngt", tuning.grid("ngt")) == [(("model.d_coord", 4),), (("model.d_coord", 8),)]
    assert tuning.names("transformer") == {"train.lr"}


@pytest.mark.parametrize("options", [{}, {"random_trials": 2}])
def test_values_can_be_lists(options):
    tuning = Tuning({"train.betas": [[0.9, 0.95], [0.9, 0.99]]}, **options)
    assert set(tuning.combinations("ngt", tuning.grid("ngt"))) == {
        (("train.betas", (0.9, beta)),) for beta in (0.95, 0.99)
    }
    with pytest.raises(ConfigError, match=r"betas: is .*, which has a value twice"):
        all_cases(tuned_sweep(Tuning({"train.betas": [[0.9, 0.95], (0.9, 0.95)]}, **options)))


@given(st.integers(1, 30), st.integers(0, 5), st.floats(1e-6, 1.0), st.floats(1.5, 1e4))
@settings(max_examples=40)
def test_a_random_search_is_reproducible_and_grows(n, seed, low, ratio):
    values = {"train.lr": LogRange(low, low * ratio), "train.schedule": ("cosine", "linear")}
    tuning = Tuning(values, random_trials=n, search_seed=seed)
    drawn = tuning.combinations("ngt", tuning.grid("ngt"))
    assert len(set(drawn)) == n
    for trial in drawn:
        lr, schedule = dict(trial).values()
        assert low * 0.99 <= lr <= low * ratio * 1.01
        assert schedule in ("cosine", "linear")
    more = Tuning(values, random_trials=n + 3, search_seed=seed)
    assert more.combinations("ngt", more.grid("ngt"))[:n] == drawn
    assert more.combinations("sine", more.grid("sine"))[:n] == drawn, "equal draws for all contenders"


def test_a_random_search_is_uniform_in_the_logarithm():
    tuning = Tuning({"train.lr": LogRange(1e-5, 1e-1)}, random_trials=400)
    logs = sorted(math.log10(dict(trial)["train.lr"]) for trial in tuning.combinations("ngt", {}))
    # The largest distance of the empirical distribution from the uniform one: 1.63 / sqrt(400) has p = 0.01.
    assert max(abs((x + 5) / 4 - (i + 0.5) / 400) for i, x in enumerate(logs)) < 1.63 / 20


def test_an_edge_extends_the_grids_of_all_contenders_by_the_same_ratio():
    tuning = Tuning({"train.lr": (2e-3, 4e-3, 8e-3)}, extend=2)
    grids = {"a": tuning.grid("a"), "b": tuning.grid("b")}
    once = tuning.extended(grids, {("train.lr", HIGH)})
    assert once["a"]["train.lr"] == once["b"]["train.lr"] == (2e-3, 4e-3, 8e-3, 1.6e-2)
    both = tuning.extended(once, {("train.lr", HIGH), ("train.lr", LOW)})
    assert sorted(both["a"]["train.lr"]) == [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2]
    last = tuning.extended(both, {("train.lr", HIGH), ("train.lr", LOW)})
    assert sorted(last["a"]["train.lr"])[0] == 5e-4
    assert max(last["a"]["train.lr"]) == 3.2e-2, "no more than two at one end"
    assert tuning.extended(last, {("train.lr", HIGH), ("train.lr", LOW)}) is None
    assert tuning.extended(grids, set()) is None


def test_close_values_are_extended_by_one_beyond_them():
    """Three digits would give 0.999 once more, and the stage would have no end."""
    tuning = Tuning({"train.muon_momentum": (0.999, 0.9995)}, extend=2)
    grids = {"a": tuning.grid("a")}
    for added in ((0.9985,), (0.9985, 0.998)):
        grids = tuning.extended(grids, {("train.muon_momentum", LOW)})
        assert grids["a"]["train.muon_momentum"] == (0.999, 0.9995, *added)
    assert tuning.extended(grids, {("train.muon_momentum", LOW)}) is None


@given(st.floats(1e-6, 1e3), st.floats(1e-15, 10.0), st.sampled_from((LOW, HIGH)))
def test_an_added_value_continues_the_ratio(low, step, end):
    high = low * (1 + step)
    tuning = Tuning({"x": (low, high)}, extend=1)
    value = tuning.extended({"a": tuning.grid("a")}, {("x", end)})["a"]["x"][-1]
    edge, ratio = (low, low / value) if end == LOW else (high, value / high)
    assert value < edge if end == LOW else value > edge
    assert ratio - 1 == pytest.approx(high / low - 1, rel=0.6, abs=1e-15)


@pytest.mark.parametrize("values", [(1e200, 1e300), (0.0, 0.1), (4, 8), (1e-3,), ("cosine", "linear"), (True, False)])
def test_other_values_are_not_extended(values):
    tuning = Tuning({"x": values}, extend=3)
    assert tuning.extended({"a": tuning.grid("a")}, {("x", HIGH), ("x", LOW)}) is None


@pytest.mark.parametrize(
    ("tuning", "message"),
    [
        (Tuning({}), r"tuning\.values: is empty for transformer"),
        (Tuning({"train.lr": ()}), r"tuning\.values\.train\.lr: is \(\), must be a list of values"),
        (Tuning({"train.schedule": "linear"}), r"schedule: is 'linear', must be a list of values"),
        (Tuning({"train.lr": (1e-3, 1e-3)}), r"tuning\.values\.train\.lr: is .*, which has a value twice"),
        (
            Tuning({"train.weight_decay": (1, 1.0)}),
            r"tuning\.values\.train\.weight_decay: is .*, which has a value twice",
        ),
        (Tuning({"train.lr": 1e-3}), r"tuning\.values\.train\.lr: is 0\.001, must be a list of values"),
        (Tuning(5), r"tuning\.values: is 5, must be a dict of settings"),
        (Tuning({"train.lr": (1e-3,)}, own={"ngt": 1}), r"tuning\.own\.ngt: is 1, must be a dict of settings"),
        (Tuning({"train.lr": (1e-3,)}, seeds=5), r"tuning\.seeds: is 5, must be a list of whole numbers"),
        (Tuning({"train.lr": (1e-3,)}, seeds=(0.5,)), r"tuning\.seeds: is \(0\.5,\), must be a list of whole numbers"),
        (Tuning({"train.lr": (1e-3,)}, valid_fraction="x"), r"tuning\.valid_fraction: is 'x', must be a number"),
        (Tuning({"train.lr": (1e-3,)}, extend=1.5), r"tuning\.extend: is 1\.5, must be a whole number"),
        (Tuning({"train.lr": LogRange("1e-3", 0.1)}, random_trials=2), r"LogRange\(low='1e-3'.* needs 0 < low < high"),
        (Tuning({"seed": (1, 2)}), r"tuning\.values\.seed: cannot be tuned"),
        (
            Tuning({"data.tokenizer.vocab_size": (500, 900)}),
            r"vocab_size: cannot be tuned: losses on other data",
        ),
        (
            Tuning({"data.sources": (("a",), ("b",))}),
            r"tuning\.values\.data\.sources: cannot be tuned: losses on",
        ),
        (
            Tuning({"eval.max_tokens": (100, 200)}),
            r"tuning\.values\.eval\.max_tokens: cannot be tuned: losses on",
        ),
        (Tuning({"data.augment": (True, False)}), r"data\.augment: cannot be tuned: losses on other data"),
        (Tuning({"model.iterations": (2, 4)}), r"iterations: cannot be tuned: losses are means over the iterations"),
        (Tuning({"train.steps": (40, 80)}), r"train\.steps: cannot be tuned: .* unequal training tokens"),
        (
            Tuning({"train.batch_tokens": (64, 128)}),
            r"batch_tokens: cannot be tuned: .* unequal training tokens",
        ),
        (Tuning({"model.wave.interleave": (True, False)}), r"interleave: is also set by contender waveresnet"),
        (Tuning({"train.lr": (1e-3,)}, own={"ng": {}}), r"tuning\.own\.ng: is no contender, choose from transformer"),
        (Tuning({"train.lr": (1e-3,)}, seeds=()), r"tuning\.seeds: is empty"),
        (Tuning({"train.lr": (1e-3,)}, seeds=(2, 9)), r"tuning\.seeds: .* have \[2\] in common"),
        (Tuning({"train.lr": (1e-3,)}, valid_fraction=1.0), r"tuning\.valid_fraction: is 1\.0"),
        (Tuning({"train.lr": (1e-3,)}, extend=-1), r"tuning\.extend: is -1"),
        (Tuning({"train.lr": (1e-3,)}, search_seed=1), r"tuning\.search_seed: has no effect on a grid"),
        (Tuning({"train.lr": LogRange(1e-3, 1e-2)}), r"is a range, which needs tuning\.random_trials"),
        (Tuning({"train.lr": LogRange(1e-2, 1e-3)}, random_trials=2), r"needs 0 < low < high"),
        (Tuning({"train.lr": (1e-3, 2e-3)}, random_trials=3), r"tuning\.random_trials: is 3, .* too few combinations"),
        (Tuning({"train.lr": (1e-3, 2e-3)}, random_trials=1, extend=1), r"tuning\.extend: has no effect on a random"),
        (
            Tuning({"train.lr": (1e-3, 2e-3)}, own={"ngt": {"train.lr": (1e-3,)}}),
            r"tuning\.own: gives the contenders unequal numbers of trials: transformer 2, waveresnet 2, ngt 1",
        ),
        (
            Tuning({"train.lr": (1e-3, 2e-3)}, own={"ngt": {"model.d_coord": (4, 8)}}, extend=1),
            r"tuning\.extend: needs the same settings for all contenders",
        ),
    ],
)
def test_tuning_that_cannot_be_done_is_refused(tuning, message):
    with pytest.raises(ConfigError, match=message):
        all_cases(tuned_sweep(tuning))


def test_the_comparison_needs_validation_data_that_no_trial_reads():
    with pytest.raises(ConfigError, match=r"tuning: needs fixed validation data.*data\.valid_sources"):
        all_cases(small_sweep(tuning=Tuning({"train.lr": (1e-3, 2e-3)})))


def test_the_validation_text_must_not_be_training_text(tmp_path):
    text = str(write_text(tmp_path / "text.txt"))
    sweep = tuned_sweep(Tuning({"train.lr": (1e-3, 2e-3)}))
    sweep.common.data.update(sources=(text,), valid_sources=(str(tmp_path / "*.txt"),))
    with pytest.raises(ConfigError, match=r"^tuning: validation and training data have .*text\.txt in common; set"):
        all_cases(sweep)


def test_settings_that_leave_text_and_tokens_as_they_are_can_be_tuned():
    assert all_cases(tuned_sweep(Tuning({"data.document_mask": (True, False), "train.grad_accum": (1, 2)})))


def test_contenders_with_unequal_training_tokens_are_not_tuned():
    tuning, halves = Tuning({"train.lr": (1e-3, 2e-3)}), {"train.steps": 20, "train.batch_tokens": 128}
    contenders = CONTENDERS | {"halves": {"model.base": "ngt"} | halves}
    assert all_cases(tuned_sweep(tuning, contenders=contenders, budgets=("tokens", "flops")))
    contenders["long"] = {"model.base": "ngt", "train.steps": 400}
    message = r"contenders\.long: .* 25,600 tokens \(train\.steps \* train\.batch_tokens\), but transformer on 2,560"
    for budget in ("tokens", "flops"):
        with pytest.raises(ConfigError, match=message):
            all_cases(tuned_sweep(tuning, contenders=contenders, budgets=(budget,)))


def test_what_a_budget_sets_is_not_tuned():
    widths = Tuning({"model.d_mlp": (64, 128)})
    with pytest.raises(ConfigError, match=r"^tuning\.values\.model\.d_mlp: is set by the budget parameters; leave"):
        all_cases(tuned_sweep(widths, budgets=("tokens", "parameters")))
    assert all_cases(tuned_sweep(widths, budgets=("tokens", "flops")))


def test_padding_gives_trials_unequal_tokens():
    sources = {"data.sources": ("a.txt", "b.txt"), "data.pack": False}
    padded = {name: own | sources for name, own in CONTENDERS.items()}
    weights = Tuning({"data.weights": ((1.0, 9.0), (9.0, 1.0))})
    with pytest.raises(ConfigError, match=r"^tuning\.values\.data\.weights: needs data\.pack=True"):
        all_cases(tuned_sweep(weights, contenders=padded))
    rate = Tuning({"train.lr": (1e-3, 2e-3)})
    assert all_cases(tuned_sweep(rate, contenders=padded))
    for own, message in (
        ({"data.pack": True}, r"data\.pack: is"),
        ({"data.weights": (9.0, 1.0)}, r"data\.weights: are"),
    ):
        other = padded | {"ngt": padded["ngt"] | own}
        with pytest.raises(ConfigError, match=rf"^{message}.* than the reference's: .* tokens of the trials unequal"):
            all_cases(tuned_sweep(rate, contenders=other, budgets=("flops",)))


def test_a_grid_of_the_comparison_is_refused():
    with pytest.raises(ConfigError, match="tuning: cannot be combined with a grid"):
        all_cases(tuned_sweep(Tuning({"train.lr": (1e-3, 2e-3)}), grid={"train.weight_decay": (0.0, 0.1)}))


def test_a_rung_cannot_set_what_is_tuned():
    with pytest.raises(ConfigError, match=r"rungs\.s\.train\.lr: is chosen by the tuning"):
        all_cases(tuned_sweep(Tuning({"train.lr": (1e-3, 2e-3)}), rungs={"s": {"train.lr": 1e-3}}))


def test_a_tuned_setting_cannot_be_overridden():
    sweep = tuned_sweep(Tuning({"train.lr": (1e-3, 2e-3)}))
    with pytest.raises(ConfigError, match=r"--config\.train\.lr: is chosen by the sweep's tuning"):
        all_cases(sweep, overrides=["train.lr=0.5"])
    with pytest.raises(ConfigError, match=r"tuning\.seeds: .* have \[0\] in common"):
        all_cases(sweep, seeds=[0, 5])


def test_compared_runs_have_the_chosen_settings():
    chosen = {"transformer": (("train.lr", 0.5),), "ngt": (("train.lr", 0.25), ("train.weight_decay", 0.0))}
    cases = all_cases(tuned_sweep(Tuning({"train.lr": (0.25, 0.5)}), seeds=(1,)), chosen=chosen)
    assert [case.name for case in cases] == [
        "transformer_lr0.5_seed1",
        "waveresnet_seed1",
        "ngt_lr0.25_weight_decay0.0_seed1",
    ]
    assert [case.config.train.lr for case in cases] == [0.5, 2e-4, 0.25]
    assert [case.label for case in cases] == list(CONTENDERS)
    assert {case.group[1] for case in cases} == {()}, "contenders are compared although their settings differ"

"""The runs of a sweep: contenders, grid, seeds, budgets and overrides."""

import dataclasses

import numpy as np
import pytest

from psann_jax.config import ConfigError
from psann_jax.config.files import load_config_file
from psann_jax.config.io import default_config
from psann_jax.data.streamed_text import open_tokenizer
from psann_jax.experiments.budgets import flops_per_token
from psann_jax.experiments.cases import all_cases, folders
from psann_jax.experiments.comparisons import compare
from psann_jax.experiments.outcome import DIVERGED, train_flops
from psann_jax.experiments.sweeps import sweep_config
from psann_jax.models.network import build, make_network
from psann_jax.utils.errors import UserError
from tests.support.processes import TESTS
from tests.support.sweeps import CONTENDERS, make_outcome, small_sweep
from tests.support.tiny import write_text


def test_every_base_gets_the_common_settings():
    cases = all_cases(small_sweep())
    assert [case.name for case in cases] == [f"{c}_seed{s}" for s in (1, 2) for c in CONTENDERS]
    for case in cases:
        model, train = case.config.model, case.config.train
        assert (model.d_model, model.n_layers, model.d_mlp, train.steps) == (32, 2, 256, 40)
        assert case.config.seed == case.seed
    assert cases[1].config.model.wave.interleave
    assert cases[1].config.model.positional_encoding == "rope"
    assert cases[2].config.model.repulsion.weight == default_config("ngt").model.repulsion.weight


def test_the_grid_multiplies_the_runs_and_is_in_their_names():
    grid = {"train.lr": (1e-3, 2e-3), "train.weight_decay": (0.0, 0.1)}
    cases = all_cases(small_sweep(grid=grid, seeds=(5,)), only=["ngt"])
    assert [case.name for case in cases] == [
        f"ngt_lr{lr}_weight_decay{decay}_seed5" for lr in (0.001, 0.002) for decay in (0.0, 0.1)
    ]
    assert [(case.config.train.lr, case.config.train.weight_decay) for case in cases][1] == (1e-3, 0.1)


def test_a_grid_can_vary_what_no_budget_sets():
    for name, budget in (("model.d_mlp", "flops"), ("train.steps", "parameters")):
        assert len(all_cases(small_sweep(grid={name: (8, 16)}, budgets=("tokens", budget), seeds=(1,)))) == 12


def test_values_of_a_grid_can_be_lists():
    grid = {"train.betas": [[0.9, 0.95], [0.9, 0.99]], "train.freeze": ([], ["bias"])}
    cases = all_cases(small_sweep(grid=grid, seeds=(5,)), only=["ngt"])
    assert len(set(folders(cases).values())) == 4
    assert cases[3].settings == (("train.betas", (0.9, 0.99)), ("train.freeze", ("bias",)))


def test_budgets():
    by_name = {
        case.name: case
        for case in all_cases(
            small_sweep(budgets=("flops", "parameters", "seconds"), seeds=(1,)),
            speed=lambda config: 200.0 if config.model.base == "ngt" else 100.0,
        )
    }
    reference = by_name["transformer_flops_seed1"].config
    for name in ("waveresnet", "ngt"):
        config = by_name[f"{name}_flops_seed1"].config
        cost = config.train.steps * flops_per_token(config)
        assert cost == pytest.approx(reference.train.steps * flops_per_token(reference), rel=0.02)
        other = by_name[f"{name}_parameters_seed1"].config
        counts = [build(c.model).n_params for c in (other, reference)]
        assert counts[0] == pytest.approx(counts[1], rel=0.02)
        assert other.train.steps == 40
    assert by_name["ngt_seconds_seed1"].config.train.steps == 80
    assert by_name["ngt_seconds_seed1"].config.train.warmup_steps == 8
    assert by_name["waveresnet_seconds_seed1"].config.train.steps == 40


@pytest.fixture
def text_sweep(tmp_path):
    """A sweep on a text of few different words, whose tokenizer has 300 tokens at the most."""
    contenders = {
        "plain": {"model.base": "transformer"},
        "deep": {"model.base": "transformer", "model.n_layers": 6},
        "tied": {"model.base": "transformer", "model.tied_embeddings": True},
    }
    sweep = small_sweep(contenders, seeds=(1,), budgets=("flops", "parameters", "seconds"))
    sweep.common.model.update(vocab_size=0, d_mlp=1024)
    text = write_text(tmp_path / "text.txt")
    sweep.common.data.update(sources=(str(text),), cache_dir=str(tmp_path / "cache"))
    return sweep


def budgets_of(sweep, n_tokens):
    """Steps and widths of all runs, and the vocabularies of the models whose speeds are measured."""
    sweep.common.data.tokenizer.vocab_size, measured = n_tokens, set()
    cases = all_cases(sweep, speed=lambda config: measured.add(config.model.vocab_size) or 100.0)
    return [(case.name, case.config.train.steps, case.config.model.d_mlp) for case in cases], measured


def test_budgets_count_the_tokens_that_the_text_yields(text_sweep):
    n_tokens = open_tokenizer(all_cases(text_sweep, only=["plain"])[0].config.data).vocab_size
    assert n_tokens < 320
    # Asked for as many tokens as there are, or for more.
    exact, measured = budgets_of(text_sweep, n_tokens)
    assert measured == {0}, "a speed that was measured before is found"
    assert budgets_of(text_sweep, 4 * n_tokens) == (exact, {n_tokens})
    text_sweep.common.data.sources = ("/no/such/text",)
    assert budgets_of(text_sweep, n_tokens)[0] == exact, "the runs say that the text is missing"
    assert budgets_of(text_sweep, 4 * n_tokens)[0] != exact


def test_flops_are_those_of_the_trained_vocabulary(text_sweep):
    case, *_ = all_cases(text_sweep, only=["plain"])
    network = make_network(case.config, 300)
    outcome = make_outcome(case, 3.0)
    assert outcome.train_flops == 40 * 64 * flops_per_token(case.config), "not a number of parameters that it can have"
    outcome.summary["n_params"] = network.n_params
    config = dataclasses.replace(case.config, model=network.config)
    assert outcome.train_flops == 40 * 64 * flops_per_token(config)
    diverged = dataclasses.replace(outcome, summary=None, error=DIVERGED)
    assert train_flops([diverged, outcome]) == outcome.train_flops


def test_the_budget_parameters_leaves_a_model_that_has_them_as_it_is():
    contenders = {"a": {"model.base": "transformer"}, "b": {"model.base": "transformer", "train.lr": 1e-3}}
    sweep = small_sweep(contenders, budgets=("parameters",), seeds=(1,))
    sweep.common.model.d_mlp = 100  # no multiple of 8
    first, second = all_cases(sweep)
    assert (first.config.model, second.differences) == (second.config.model, (("train.lr", 1e-3),))


def test_a_gated_mlp_is_narrower_for_the_same_number_of_parameters():
    contenders = {"transformer": {"model.base": "transformer"}}
    contenders["swiglu"] = {"model.base": "transformer", "model.mlp_activation": "swiglu"}
    plain, gated = (c.config for c in all_cases(small_sweep(contenders, seeds=(1,), budgets=("parameters",))))
    assert build(gated.model).n_params == pytest.approx(build(plain.model).n_params, rel=0.005)
    assert abs(gated.model.d_mlp - plain.model.d_mlp * 2 / 3) <= 8


@pytest.mark.parametrize("own", [{"train.steps": 80}, {"train.batch_tokens": 128}], ids=["steps", "batch"])
def test_a_contender_with_more_tokens_of_its_own_still_gets_the_budget(own):
    contenders = {"few": {"model.base": "transformer"}, "many": {"model.base": "transformer", **own}}
    few, many, few_s, many_s = (
        case.config
        for case in all_cases(
            small_sweep(contenders, seeds=(1,), budgets=("flops", "seconds")), speed=lambda config: 100.0
        )
    )
    for reference, config in ((few, many), (few_s, many_s)):
        tokens = [c.train.steps * c.train.batch_tokens for c in (reference, config)]
        assert tokens[0] == tokens[1] == 40 * 64


@pytest.mark.parametrize("budget", ["tokens", "parameters"])
def test_padded_and_packed_rows_have_no_equal_tokens(budget):
    contenders = {"packed": {"model.base": "transformer"}, "rows": {"model.base": "transformer", "data.pack": False}}
    with pytest.raises(ConfigError, match=r"data\.pack: is another than the reference's.*budget " + budget):
        all_cases(small_sweep(contenders, budgets=(budget,)))
    assert len(all_cases(small_sweep(contenders, seeds=(1,), budgets=("flops",)))) == 2


@pytest.mark.parametrize("budget", ["tokens", "parameters"])
def test_padded_rows_of_sources_with_other_weights_have_no_equal_tokens(budget):
    contenders = {name: {"model.base": "transformer", "data.weights": w} for name, w in (("a", (1, 9)), ("b", (9, 1)))}
    sweep = small_sweep(contenders, budgets=(budget,))
    sweep.common.data.sources = ("a.txt", "b.txt")
    assert all_cases(sweep)
    sweep.common.data.pack = False
    with pytest.raises(ConfigError, match=r"data\.weights: are others than the reference's.*budget " + budget):
        all_cases(sweep)
    sweep.budgets = ("flops",)
    assert all_cases(sweep)


def test_equal_configs_share_one_run():
    """The reference is the same under every budget."""
    names = folders(all_cases(small_sweep(budgets=("tokens", "flops", "parameters"), seeds=(1, 2))))
    assert len(names) == 18
    assert {case.contender: name for case, name in names.items() if name != case.name} == {
        "transformer": "transformer_seed2"
    }
    assert len(set(names.values())) == 14


def test_values_of_a_grid_do_not_make_folders_in_folders():
    grid = {"data.sources": (("x/y.txt",), ("z.txt",))}
    cases = all_cases(small_sweep({"a": {"model.base": "transformer"}}, seeds=(1,), grid=grid))
    assert list(folders(cases).values()) == ["a_sources('x-y.txt',)_seed1", "a_sources('z.txt',)_seed1"]
    assert [case.config.data.sources for case in cases] == [("x/y.txt",), ("z.txt",)]


def test_two_runs_cannot_have_one_folder():
    grid = {"data.sources": (("x/y.txt",), ("x-y.txt",))}
    with pytest.raises(
        ConfigError, match=r"contenders: give two different runs the name a_sources\('x-y\.txt',\)_seed1"
    ):
        folders(all_cases(small_sweep({"a": {"model.base": "transformer"}}, seeds=(1,), grid=grid)))


def test_the_flops_of_puzzles_are_matched():
    common = default_config("sudoku")
    common.model.update(d_model=16, n_layers=1, n_heads=2, d_mlp=16, iterations=2)
    common.train.update(steps=40, batch_tokens=162, warmup_steps=4)
    contenders = {"relu": {}, "wide": {"model.d_mlp": 32}, "sine": {"model.mlp_activation": "sine"}}
    contenders = {name: {"model.base": "sudoku", **settings} for name, settings in contenders.items()}
    cases = all_cases(sweep_config(common, contenders, seeds=(1,), budgets=("flops",)))
    relu, wide, _ = (case.config for case in cases)
    # Two FLOPs per weight and two per cell attended to in scores and values; the backward pass costs twice as much.
    matrices = 4 * 16 * 16 + 2 * 16 * 16
    assert flops_per_token(relu) == 2 * (6 * matrices + 3 * 4 * 81 * 16)
    steps = [case.config.train.steps for case in cases]
    assert steps == [40, round(40 * flops_per_token(relu) / flops_per_token(wide)), 40]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": {"train.lrr": (1,)}}, r"train\.lrr: of transformer: base transformer has no such setting"),
        ({"grid": {"model.wave.kernel": (3,)}}, r"model\.wave\.kernel: of ngt: base ngt has no such setting"),
        ({"grid": {"train.lr": ()}}, r"grid\.train\.lr: is empty"),
        ({"grid": {"model.base": ("ngt",)}}, r"^grid\.model\.base: cannot be varied; give each base as a contender"),
        (
            {"grid": {"train.lr": (1e-3, 2e-3)}, "contenders": {"a": {}, "slow": {"train.lr": 1e-5}}},
            r"^grid\.train\.lr: is also set by contenders\.slow; leave out the one or the other$",
        ),
        (
            {"grid": {"train.lr": (1e-3, 2e-3)}, "rungs": {"small": {"train.lr": 1e-5}}},
            r"^grid\.train\.lr: is also set by rungs\.small; leave out the one or the other$",
        ),
        ({"grid": {"train.lr": (-1.0,)}}, r"train\.lr: is -1"),
        ({"budgets": ("flop",)}, r"budgets: 'flop' is unknown, did you mean flops"),
        *(
            (
                {"grid": {name: (8, 16)}, "budgets": ("tokens", budget)},
                rf"^grid\.{name}: is set by the budget {budget};",
            )
            for name, budget in (("model.d_mlp", "parameters"), ("train.steps", "flops"), ("train.steps", "seconds"))
        ),
        ({"seeds": ()}, "must not be empty"),
        ({"seeds": ("x",)}, r"^seeds: is \('x',\), must be a list of whole numbers"),
        ({"seeds": (1.5,)}, r"^seeds: is \(1\.5,\), must be a list of whole numbers"),
        ({"grid": {"seed": (1, 2)}}, r"^grid\.seed: has no effect; seeds are those of the sweep"),
        ({"contenders": {"a": {"seed": 3}}}, r"^contenders\.a\.seed: has no effect; seeds are those of the sweep"),
        ({"rungs": {"s": {"seed": 3}}}, r"^rungs\.s\.seed: has no effect; seeds are those of the sweep"),
        ({"grid": {"train.lr": (1e-3, "x")}}, r"^train\.lr: is 'x', must be of type float \(contender transformer\)"),
        ({"contenders": {"a": {"train.steps": "x"}}}, r"^train\.steps: is 'x', must be of type int \(contender a\)"),
        ({"rungs": {"s": {"model.d_model": 1.5}}}, r"^model\.d_model: is 1\.5, must be of type int \(rung s\)"),
        ({"contenders": {"a/b": {}}}, r"^contenders: has the name 'a/b', which cannot be a part of a folder's name"),
        ({"contenders": {"..": {}}}, r"^contenders: has the name '\.\.'"),
        ({"rungs": {"../x": {}}}, r"^rungs: has the name '\.\./x'"),
        ({"contenders": CONTENDERS | {"x": {"train.lrr": 1}}}, r"train\.lrr: of x: .*, did you mean train\.lr"),
    ],
)
def test_invalid_sweeps_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        all_cases(small_sweep(**options))


@pytest.mark.parametrize("name", ["learning_rates", "frequency_std_lr", "lr_creep"])
def test_the_settings_that_a_file_varies_are_compared(name):
    path = TESTS.parent / f"configs/sweeps/{name}.py"
    cases = all_cases(load_config_file(str(path)))
    contenders = list(dict.fromkeys(case.contender for case in cases))
    rng = np.random.default_rng(0)
    outcomes = [make_outcome(case, 3.0 + contenders.index(case.contender) + rng.normal(0, 0.01)) for case in cases]
    found = compare(outcomes, contenders[0], complete=True)
    assert len(found) == len(contenders) - 1
    assert {c.difference.verdict for c in found} == {"worse"}
    assert f": {len(set(folders(cases).values()))} runs" in path.read_text().splitlines()[0]


def test_texts_and_puzzles_do_not_mix():
    contenders = {**CONTENDERS, "grids": {"model.base": "sudoku"}}
    common = default_config("transformer")
    common.train.batch_tokens = 81 * common.data.max_length
    with pytest.raises(ConfigError, match=r"contenders\.grids: has another task than transformer"):
        all_cases(sweep_config(common, contenders))


def test_an_unknown_contender_is_refused():
    with pytest.raises(ConfigError, match="--bases: 'ngr' is no contender, did you mean ngt"):
        all_cases(small_sweep(), only=["ngr"])


def test_a_single_experiment_is_no_sweep():
    with pytest.raises(UserError, match="--config: is a single experiment, not a sweep"):
        all_cases(default_config())


# --- differences and overrides --------------------------------------------------------------------------


def test_differences_are_those_to_the_reference():
    contenders = {
        "ngt": {"model.base": "ngt"},
        "soft": {"model.base": "ngt", "model.cutoff": "soft"},
        "vanilla": {"model.base": "vanilla", "train.lr": 0.5},
    }
    cases = all_cases(small_sweep(contenders, seeds=(7,)))
    assert [case.differences for case in cases] == [
        (),
        (("model.cutoff", "soft"),),
        (("model.base", "vanilla"), ("train.lr", 0.5)),
    ]


def test_differences_can_be_those_to_another_contender():
    contenders = {"ngt": {"model.base": "ngt"}, "soft": {"model.base": "ngt", "model.cutoff": "soft"}}
    sweep = small_sweep(contenders, seeds=(7,), budgets=("tokens", "flops"))
    cases = all_cases(sweep, reference="soft")
    assert [dict(case.differences).get("model.cutoff") for case in cases] == ["hard", None] * 2
    assert [case.config for case in cases] == [case.config for case in all_cases(sweep)], (
        "budgets are those of the first"
    )


def test_overrides_reach_every_contender_that_has_the_setting():
    overrides = ["train.steps=7", "model.d_coord=8", "data.pack", "model.dropout=0.5"]
    cases = all_cases(small_sweep(seeds=(1,)), overrides=overrides)
    transformer, waveresnet, ngt = (case.config for case in cases)
    assert [config.train.steps for config in (transformer, waveresnet, ngt)] == [7, 7, 7]
    assert ngt.model.d_coord == 8
    assert waveresnet.model.dropout == 0.5


def test_overrides_apply_over_settings_of_contenders_that_agree():
    contenders = {name: own | {"train.lr": 0.5} for name, own in CONTENDERS.items()}
    cases = all_cases(small_sweep(contenders, seeds=(1,)), overrides=["train.lr=0.25", "nodata.document_mask"])
    assert {case.config.train.lr for case in cases} == {0.25}
    assert {case.config.data.document_mask for case in cases} == {False}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.stepz=3", r"--config\.train\.stepz: unknown key, did you mean train\.steps"),
        ("common.train.steps=3", r"--config\.common\.train\.steps: unknown key, did you mean train\.steps"),
        ("train.lr=3", r"--config\.train\.lr: is varied by the sweep's grid"),
        ("seed=3", r"--config\.seed: .*--seeds"),
        ("model.base=ngt", r"--config\.model\.base: .*--bases"),
        (
            "nomodel.wave.interleave",
            r"--config\.model\.wave\.interleave: distinguishes .*transformer=False, waveresnet=True",
        ),
        ("model.sine.freq_init=3.0", r"freq_init: has no effect without the sine .* \(contender transformer\)"),
        ("train.steps=x", r"train\.steps"),
        ("train.steps=-1", r"train\.steps: is -1"),
    ],
)
def test_overrides_that_change_the_comparison_are_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        all_cases(small_sweep(grid={"train.lr": (1.0, 2.0)}), overrides=[override])

"""The throughput measurement: results, contenders in turn, and the end of their processes."""

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from psann_jax.bench import ours, peer, throughput
from psann_jax.bench.random_task import with_vocabulary
from psann_jax.bench.timing import time_steps
from psann_jax.bench.turns import take_turns
from psann_jax.bench.workers import Worker
from psann_jax.cli.bench import throughput as throughput_command
from psann_jax.config import Config, ConfigError, DataConfig, DecoderConfig, TokenizerConfig, TrainConfig, WaveConfig
from psann_jax.models.flops import matmul_params, training_flops
from psann_jax.models.network import make_network
from psann_jax.utils.errors import UserError

TINY = Config(
    model=DecoderConfig(base="waveresnet", vocab_size=50, d_model=16, n_layers=2, n_heads=2, d_mlp=32),
    data=DataConfig(max_length=16),
    train=TrainConfig(batch_tokens=64, precision="fp32", warmup_steps=0),
)
CONFIG_FILE = """
from psann_jax.config.io import default_config

def get_config():
    config = default_config("respsann")
    config.model.update(d_model=16, n_layers=2, n_heads=2, d_mlp=32, vocab_size=50)
    config.data.max_length = 16
    config.train.update(batch_tokens=64, precision="fp32")
    return config
"""


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG_FILE)
    return path


def command(*arguments):
    return [sys.executable, "-m", "psann_jax", "bench", *map(str, arguments)]


def ended(pids, seconds=20):
    """Whether all these processes end within the time."""
    deadline = time.monotonic() + seconds
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


# --- measuring ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_config_against_another(tmp_path, config_file):
    """The command: table, progress, and consistent results in the JSON file."""
    out = tmp_path / "result.json"
    arguments = ["--config", config_file, "--against", config_file, "--against.model.mlp_activation=gelu"]
    done = subprocess.run(
        command("throughput", *arguments, "--steps=5", "--json", out), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert not list(tmp_path.glob("*.partial"))
    names = {"tokens_per_s", "peer_tokens_per_s", "ratio", "compile_s", "peak_memory_mb", "peer_peak_memory_mb", "mfu"}
    assert names | {"config", "device", "versions", "n_steps", "spread"} <= set(result)
    assert result["n_steps"] == 5
    assert result["config"]["model"]["base"] == "respsann"
    train, length = result["config"]["train"], result["config"]["data"]["max_length"]
    assert (train["batch_tokens"], train["grad_accum"], train["precision"]) == (2 * length, 1, "fp32"), "on a CPU"
    assert result["tokens_per_s"] == pytest.approx(2 * length / result["step_s"])
    assert result["ratio"] == pytest.approx(result["tokens_per_s"] / result["peer_tokens_per_s"])
    low, high = result["spread"]
    assert 0 < low <= high
    assert result["compile_s"] > 0
    assert result["mfu"] is None, "no peak is known for a CPU"
    assert 50 < result["peak_memory_mb"] < 5000
    sine, gelu = result["contenders"]
    assert sine["n_params"] - gelu["n_params"] == 2 * 3 * 32, "both configs were built, each with its own activation"
    assert "ratio" in done.stdout
    assert "against: respsann" in done.stdout
    assert "round 5 of 5" in done.stderr


def test_medians_ratios_and_the_fastest_rival():
    class Fake:
        def __init__(self, name, seconds):
            self.name, self.facts, self.seconds = name, {"n_params": 1}, seconds

        def ask(self, method):
            assert method == "peak_memory_mb"
            return 10.0 * self.seconds

    blocks = {"ours": [[1.0, 1.0], [2.0, 1.0]], "slow": [[4.0, 4.0], [4.0, 4.0]], "fast": [[2.0, 2.0], [2.0, 4.0]]}
    figures = [throughput._figures(Fake(name, b[0][0]), b, 100) for name, b in blocks.items()]
    assert [f["tokens_per_s"] for f in figures] == [100, 25, 50]
    assert figures[0]["block_tokens_per_s"] == [100, 100 / 1.5]
    comparison = throughput._comparison(figures)
    assert comparison["peer"] == "fast"
    assert comparison["peer_tokens_per_s"] == 50
    assert comparison["peer_peak_memory_mb"] == 20.0
    assert comparison["ratio"] == 2.0
    assert comparison["spread"] == [2.0, 2.0]
    assert comparison["ratio_of_fastest"] == 2.0
    slow = throughput._comparison(figures[:2])
    assert slow["spread"] == [pytest.approx(4 / 1.5 + 0.25 * (4 - 4 / 1.5)), pytest.approx(4 - 0.25 * (4 - 4 / 1.5))]
    assert throughput._comparison(figures[:1])["ratio"] is None


def test_the_report_gives_the_flops_behind_the_mfu():
    """The FLOPs of a token differ by base and by what is frozen, so that no formula holds for all."""
    figures = {"name": "ngt", "tokens_per_s": 1e6, "step_s": 0.02, "cpu_s": 0.01, "compile_s": 3.0, "n_params": 1}
    figures |= {"peak_memory_mb": 10.0, "kernel_times": None}
    result = {**figures, "device": "1 x NVIDIA H100 PCIe", "n_steps": 5, "window_tokens": 64, "inference": None}
    result |= {"config": {"train": {"batch_tokens": 256, "precision": "bf16"}}, "contenders": [figures]}
    result |= {"mfu": 0.25, "flops_per_token": 189e6, "ratio": None, "differences": [], "other_load": 0.0}
    assert "MFU 25.0% = tokens/s * 0.189 model GFLOP per token / peak GFLOP/s" in throughput.report(result)


@pytest.mark.parametrize("n_steps", [1, 7, 10, 33])
def test_contenders_take_turns(n_steps, monkeypatch):
    log = []

    class Fake:
        def __init__(self, name):
            self.name, self.cpu = name, 0.0

        def cpu_seconds(self):
            return self.cpu

        def ask(self, method, size):
            assert method == "run"
            log.append(self.name)
            self.cpu += size * 0.5
            return [0.1] * size

    rounds, cpu_seconds, _ = take_turns([Fake("a"), Fake("b")], n_steps)
    for i in range(2):
        assert sum(len(blocks[i]) for blocks in rounds) == n_steps
    assert all(len(blocks[0]) == len(blocks[1]) > 0 for blocks in rounds)
    assert cpu_seconds == [n_steps * 0.5] * 2
    assert log[:4] == ["a", "b", "b", "a"][: len(log)]


def test_every_time_covers_one_step():
    """For steps that end before they return, and for steps that end in the background."""

    def step_at_once():
        time.sleep(0.05)
        return lambda: None

    assert min(time_steps(step_at_once, 4, ahead=False)) >= 0.05

    events, number = [], itertools.count()

    def step_in_background():
        i = next(number)
        events.append(f"start {i}")
        return lambda: events.append(f"end {i}")

    assert len(time_steps(step_in_background, 3, ahead=True)) == 3
    assert events == ["start 0", "start 1", "end 0", "start 2", "end 1", "end 2"]
    assert time_steps(step_in_background, 0, ahead=True) == []


def test_matrix_parameters_are_those_that_multiply():
    """By hand: attention 4 d^2 and MLP 2 d m per layer, and the head; not the embedding table."""
    network = make_network(TINY, 50)
    assert matmul_params(network) == 2 * (4 * 16 * 16 + 2 * 16 * 32) + 16 * 50
    assert training_flops(10, 2, 16, 8) == 6 * 10 + 6 * 2 * 16 * 8


@pytest.mark.parametrize(
    ("tokenizer", "asked", "size"),
    [
        (TokenizerConfig(vocab_size=777), 0, 777),
        (TokenizerConfig(vocab_size=777), 99, 99),
        (TokenizerConfig(kind="bytes"), 0, 260),
    ],
)
def test_the_vocabulary_is_the_one_that_training_would_have(tokenizer, asked, size):
    model = dataclasses.replace(TINY.model, vocab_size=asked)
    config = dataclasses.replace(TINY, model=model, data=DataConfig(tokenizer=tokenizer))
    assert with_vocabulary(config).model.vocab_size == size


def test_the_measured_step_trains():
    """Each call continues from the previous state, and every step is timed."""
    contender = ours.make(TINY)
    before = np.array(contender._state["params"]["head"])
    times = contender.run(3) + contender.run(2)
    assert len(times) == 5
    assert min(times) > 0
    assert int(contender._state["step"]) == 5
    assert np.abs(np.array(contender._state["params"]["head"]) - before).max() > 0
    assert contender.mfu(1e6) is None


@pytest.mark.parametrize(
    ("implementations", "attention"), [({"attention": {"ring"}, "sine": {"triton"}}, "ring"), ({"gravity": {"x"}}, "x")]
)
def test_the_attention_is_that_of_the_compiled_step(implementations, attention, monkeypatch):
    compile_steps = ours.compile_steps
    monkeypatch.setattr(
        ours, "compile_steps", lambda *args: dataclasses.replace(compile_steps(*args), implementations=implementations)
    )
    assert ours.make(TINY).facts["attention"] == attention


# --- processes ----------------------------------------------------------------------------------------


def make(action):
    """Makes a contender for the tests, in the process of a worker."""
    if action == "user error":
        raise UserError("model.base: is wrong")
    if action == "crash":
        raise ValueError("boom")
    if action == "die":
        os._exit(9)
    return FakeContender(action)


class FakeContender:
    def __init__(self, action):
        self.facts = {"action": action, "jax": "jax" in sys.modules}

    def run(self, n_steps):
        return [float(os.getpid())] * n_steps

    def sleep(self):
        time.sleep(600)


def test_a_worker_is_a_process_of_its_own_and_ends():
    with Worker("one", __name__, "work") as one, Worker("two", __name__, "work") as two:
        pids = [int(worker.ask("run", 3)[0]) for worker in (one, two)]
        assert len({*pids, os.getpid()}) == 3
        assert one.facts["action"] == "work"
        assert one.cpu_seconds() > 0
    assert ended(pids)


@pytest.mark.parametrize(
    ("action", "error", "message"),
    [
        ("user error", UserError, "^model.base: is wrong$"),
        ("crash", RuntimeError, "(?s)name: .*boom"),
        ("die", UserError, "^name: its process ended with code 9"),
    ],
)
def test_errors_of_a_worker_reach_the_parent(action, error, message):
    with pytest.raises(error, match=message):
        Worker("name", __name__, action)


@pytest.mark.usefixtures("default_signals")
@pytest.mark.parametrize(
    ("sign", "delay"),
    [
        (signal.SIGINT, 0.0),
        pytest.param(signal.SIGINT, 3.0, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, 1.0, marks=pytest.mark.slow),
    ],
)
def test_no_worker_outlives_the_measurement(sign, delay, config_file):
    """Ctrl-C reaches all processes of the group at once; a killed parent cannot clean up."""
    arguments = command("throughput", f"--config={config_file}", "--steps=1000000")
    parent = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert parent.stderr.readline().startswith("respsann: building")
        children = []
        while not any("psann_jax.bench.workers" in " ".join(child.cmdline()) for child in children):
            children = psutil.Process(parent.pid).children(recursive=True)
        children = [child.pid for child in children]
        time.sleep(delay)
        if sign == signal.SIGINT:
            os.killpg(parent.pid, sign)
        else:
            parent.kill()
        rest = parent.communicate(timeout=60)[1]
        assert ended(children, seconds=60)
        if sign == signal.SIGINT:
            assert parent.returncode == 130
            assert rest.splitlines()[-1] == "interrupted"
            assert "Traceback" not in rest
    finally:
        if parent.poll() is None:
            os.killpg(parent.pid, signal.SIGKILL)


# --- errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config: name a config file"),
        (["--config=CONFIG", "--stepz=3"], "--stepz: unknown argument, did you mean --steps?"),
        (["--config=CONFIG", "--steps=0"], "--steps: is '0', must be a whole number of at least 1"),
        (["--config=CONFIG", "--peer=other"], "--peer: invalid choice: 'other'"),
        (["--config=CONFIG", "--batch_tokens=-1"], "--batch_tokens: is -1, must be at least 0"),
        (["--config=CONFIG", "--against=missing.py"], "missing.py: there is no such config file"),
        (["--config=CONFIG", "--against=CONFIG", "--against.train.lrr=1"], "--against.train.lrr: unknown key"),
        (["--config=CONFIG", "--against.train.lr=1"], "--against.train.lr=1: has no effect without --against"),
        (["--config=CONFIG", "--against=CONFIG", "--peer=psannlm"], "--against: cannot be used together"),
        (["--config=CONFIG", "--json=/nowhere/x.json"], "--json: /nowhere/x.json: there is no directory"),
        (["--config=CONFIG", "--config.model.n_heads=3"], "model.d_model: is 16"),
    ],
)
def test_errors_are_one_line_and_code_2(arguments, message, config_file, capsys):
    with pytest.raises((SystemExit, UserError)) as ended:
        throughput_command.main([a.replace("CONFIG", str(config_file)) for a in arguments])
    shown = capsys.readouterr()
    assert shown.out == ""
    error = str(ended.value) if ended.type is not SystemExit else shown.err.removeprefix("error: ")
    assert error.startswith(message)
    assert len(error.splitlines()) == 1


# --- psannlm, without torch ---------------------------------------------------------------------------


def test_the_process_of_a_peer_does_not_load_jax():
    """Its memory would include JAX otherwise."""
    code = "import sys, psann_jax.bench.peer_sampler, psann_jax.bench.workers; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_missing_psannlm_names_the_extra(monkeypatch):
    for name in ("torch", "psann", "psannlm"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"needs torch, psann, psannlm; pip install 'psann_jax\[parity\]'"):
        throughput.measure(TINY, peer_name="psannlm")


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"norm": "layernorm"}, "model.norm"),
        ({"residual_alpha": False}, "model.residual_alpha"),
        ({"base": "modern"}, "model.base"),
        ({"tied_embeddings": True}, "model.tied_embeddings"),
        ({"logit_softcap": 30.0}, "model.logit_softcap"),
        ({"bias": False}, "model.bias"),
        ({"init": "zero_output"}, "model.init"),
        ({"n_kv_heads": 1}, "model.n_kv_heads"),
        ({"qk_norm": True}, "model.qk_norm"),
        ({"sliding_window": 4}, "model.sliding_window"),
        ({"mlp_activation": "relu"}, "model.mlp_activation"),
        ({"base": "transformer", "mlp_activation": "sine"}, "model.mlp_activation"),
    ],
)
def test_models_that_psannlm_does_not_have_are_rejected(options, field):
    with pytest.raises(ConfigError, match=f"^{field}: "):
        peer.check_model(dataclasses.replace(TINY.model, **options))


@pytest.mark.parametrize(
    ("name", "value"), [("sam_rho", 0.05), ("lora_rank", 2), ("freeze", ("matrix",)), ("ema_decay", 0.9)]
)
def test_updates_that_psannlm_does_not_make_are_rejected(name, value, monkeypatch):
    monkeypatch.setattr("psann_jax.utils.extras.find_spec", lambda name: True)
    config = dataclasses.replace(TINY, train=dataclasses.replace(TINY.train, **{name: value}))
    with pytest.raises(ConfigError, match=rf"^train\.{name}: must be .* with --peer=psannlm"):
        throughput.measure(config, peer_name="psannlm", n_steps=1)


def test_differences_are_named():
    plain = dataclasses.replace(
        TINY,
        data=DataConfig(document_mask=False),
        train=dataclasses.replace(TINY.train, weight_decay_on="all"),
    )
    assert peer.differences(plain, on_gpu=False) == []
    wave = dataclasses.replace(TINY.model, wave=WaveConfig(interleave=True))
    odd = dataclasses.replace(
        plain,
        model=wave,
        data=DataConfig(),
        train=dataclasses.replace(TINY.train, optimizer="muon", z_loss=1e-4, precision="bf16", remat="dots"),
    )
    found = " / ".join(peer.differences(odd, on_gpu=False))
    for word in ("document mask", "wave convolution", "float32 on CPU", "muon", "weight decay", "z-loss", "by block"):
        assert word in found
    assert "float32 on CPU" not in " ".join(peer.differences(odd, on_gpu=True))

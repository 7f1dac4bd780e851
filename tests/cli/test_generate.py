"""The generate command and loading runs: output, JSON, the dialogue, errors."""

import io
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psann_jax.cli import generate
from psann_jax.cli.program import run_program
from psann_jax.runs.restore import load_text_run
from psann_jax.sample.settings import GenerationOptions, Sampling
from psann_jax.sample.text import TextSampler
from psann_jax.utils.errors import UserError
from tests.support.processes import environment
from tests.support.saved import TOKENIZER, save_run
from tests.support.tiny import tiny_config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The workdir of a run saved after 3 and 6 steps, better after 3."""
    tmp_path = tmp_path_factory.mktemp("run")
    save_run(tmp_path / "run", tiny_config(tmp_path, model__n_layers=1, train__precision="bf16"), {3: 1.0, 6: 2.0})
    return tmp_path / "run"


@pytest.fixture(scope="module")
def compiled(run):
    """Makes every command in this module use one sampler, so that little is compiled."""
    loaded = load_text_run(run, precision="auto")
    sampler = loaded.sampler()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("psann_jax.runs.restore.load_text_run", lambda *args, **kwargs: loaded)
        patch.setattr("psann_jax.runs.restore.TextRun.sampler", lambda self: sampler)
        yield TextSampler(sampler, loaded.tokenizer)


def generated(capsys, run, *flags):
    generate.main([f"--workdir={run}", *flags])
    return capsys.readouterr()


class Terminal(io.StringIO):
    def isatty(self):
        return True


# --- output ---------------------------------------------------------------------------------------------


def test_a_prompt_is_continued_on_standard_output(run, compiled, capsys):
    out, err = generated(capsys, run, "--prompt=a wave", "--max_new_tokens=9", "--temperature=0")
    (expected,) = compiled.complete(["a wave"], Sampling(temperature=0), GenerationOptions(max_new_tokens=9))
    assert out == f"a wave{expected.text}\n"
    assert "step 6" in err
    assert "--max_new_tokens reached" in err
    assert "9 tokens; first tokens after" in err
    assert "tokens/s" in err


def test_json_has_one_line_per_sample_of_each_prompt(run, compiled, capsys, tmp_path):
    (tmp_path / "prompts.txt").write_text("a wave\n\n")
    flags = ("--num_samples=2", "--json", "--logprobs", "--max_new_tokens=5", "--seed=3", "--batch_size=4")
    out, _ = generated(capsys, run, f"--prompts_file={tmp_path / 'prompts.txt'}", *flags)
    objects = [json.loads(line) for line in out.splitlines()]
    assert [o["prompt"] for o in objects] == ["a wave", "a wave", "", ""]
    expected = compiled.complete([""], Sampling(), GenerationOptions(max_new_tokens=5, seed=3, num_samples=3))
    for o, e in zip(objects[2:], expected, strict=False):
        assert (o["text"], o["tokens"], o["finish"]) == (e.text, e.tokens, e.finish)
        np.testing.assert_allclose(o["logprobs"], e.logprobs, atol=1e-4)
    out, _ = generated(capsys, run, "--prompt=a", "--json", "--max_new_tokens=1")
    assert set(json.loads(out)) == {"prompt", "text", "tokens", "finish"}


def test_a_prompts_file_may_have_a_byte_order_mark_and_any_line_ends(run, compiled, capsys, tmp_path):
    (tmp_path / "prompts.txt").write_bytes("a é\n\nb\n".encode())
    flags = (f"--prompts_file={tmp_path / 'prompts.txt'}", "--json", "--max_new_tokens=2", "--temperature=0")
    expected = generated(capsys, run, *flags).out
    assert [json.loads(line)["prompt"] for line in expected.splitlines()] == ["a é", "", "b"]
    for end in ("\r\n", "\r"):
        (tmp_path / "prompts.txt").write_bytes("a é\n\nb\n".replace("\n", end).encode("utf-8-sig"))
        assert generated(capsys, run, *flags).out == expected


def test_several_texts_are_printed_with_how_they_ended(run, compiled, capsys):
    out, _ = generated(capsys, run, "--prompt=a", "--num_samples=3", "--max_new_tokens=4", "--temperature=0")
    (expected,) = compiled.complete(["a"], Sampling(temperature=0), GenerationOptions(max_new_tokens=4))
    assert out == "".join(f"--- {n} of 3: --max_new_tokens reached\na{expected.text}\n" for n in (1, 2, 3))


def test_settings_reach_the_sampler(run, compiled, capsys):
    prompt = "--prompt=stone"
    plain = generated(capsys, run, prompt, "--max_new_tokens=20", "--temperature=0").out
    stop = plain[len("stone") + 6 : len("stone") + 8]
    stopped, err = generated(capsys, run, prompt, "--max_new_tokens=20", "--temperature=0", f"--stop={stop}")
    assert stopped.rstrip("\n") == plain[: plain.index(stop, len("stone"))]
    assert "a stop string ended the text" in err
    for flag in ("--repetition_penalty=8", "--temperature=2", "--max_new_tokens=3"):
        assert generated(capsys, run, prompt, "--max_new_tokens=20", "--temperature=0", flag).out != plain
    for flag in ("--top_k=1", "--top_p=0.0001", "--min_p=1"):
        assert generated(capsys, run, prompt, "--max_new_tokens=20", "--temperature=2", flag).out == plain
    slid, err = generated(capsys, run, prompt, "--max_new_tokens=60", "--temperature=0")
    assert "60 tokens" in err, "by default, the text continues past the context"
    assert slid.startswith(plain[:-1])
    full, err = generated(capsys, run, prompt, "--max_new_tokens=60", "--temperature=0", "--overflow=stop")
    assert "context is full; --overflow=slide" in err
    assert slid.startswith(full[:-1])


def test_a_pipe_is_a_prompt(run, compiled, capsys, monkeypatch):
    flags = ("--max_new_tokens=3", "--temperature=0")
    expected = generated(capsys, run, "--prompt=two\nlines", *flags).out
    for content in (b"two\nlines\n", b"\xef\xbb\xbftwo\r\nlines\r\n"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        assert generated(capsys, run, *flags).out == expected
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff")))
    with pytest.raises(UserError, match=r"^standard input: is not UTF-8 text$"):
        generated(capsys, run, *flags)
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UserError, match=r"^--prompt: is missing; standard input is closed"):
        generated(capsys, run, *flags)


def test_the_dialogue_continues_after_errors_and_interruptions(run, compiled, capsys, monkeypatch):
    typed = iter(["sun", "x" * 99, "interrupt", "undecodable", "sun"])
    complete = TextSampler.complete

    def interrupted(self, prompts, *args, **kwargs):
        if prompts == ["interrupt"]:
            raise KeyboardInterrupt
        return complete(self, prompts, *args, **kwargs)

    def ask(_):
        line = next(typed, None)
        if line is None:
            raise EOFError
        return b"\xff".decode() if line == "undecodable" else line

    monkeypatch.setattr(TextSampler, "complete", interrupted)
    monkeypatch.setattr("builtins.input", ask)
    monkeypatch.setattr(sys, "stdin", Terminal())
    out, err = generated(capsys, run, "--max_new_tokens=4", "--temperature=0", "--overflow=stop")
    (expected,) = compiled.complete(["sun"], Sampling(temperature=0), GenerationOptions(max_new_tokens=4))
    assert out.count(f"sun{expected.text}\n") == 2
    assert "error: standard input: is not UTF-8 text" in err
    assert "error: prompt: has 100 tokens, more than the model's context of 32" in err
    assert "8 tokens" in err


# --- loading a run --------------------------------------------------------------------------------------


def test_the_last_the_best_or_a_given_checkpoint_is_loaded(tmp_path):
    config = tiny_config(tmp_path, train__precision="bf16")
    saved = save_run(tmp_path / "run", config, {3: 1.0, 6: 2.0})
    for which, step in ((None, 6), ("last", 6), ("best", 3), ("3", 3), (6, 6)):
        found = load_text_run(tmp_path / "run", which)
        assert found.step == step
        jax.tree.map(np.testing.assert_array_equal, found.params, saved[step])
    assert found.config == config
    assert found.tokenizer.to_bytes() == TOKENIZER.to_bytes()
    assert found.network.config.vocab_size == TOKENIZER.vocab_size


@pytest.mark.parametrize(
    ("precision", "dtype"), [("run", jnp.bfloat16), ("auto", jnp.float32), ("fp16", jnp.float16), ("fp32", jnp.float32)]
)
def test_the_precision_is_that_of_training_or_another(run, precision, dtype):
    found = load_text_run(run, precision=precision)
    assert found.network.merge(found.network.abstract).dtype == dtype
    assert {p.dtype for p in jax.tree.leaves(found.params)} == {jnp.dtype(jnp.float32)}


def test_a_workdir_without_a_run_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere: there is no such directory"):
        load_text_run(tmp_path / "nowhere")
    with pytest.raises(UserError, match="has no checkpoints"):
        load_text_run(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="checkpoints: has no complete checkpoint"):
        load_text_run(tmp_path)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax leaves a loop of its own open
def test_a_missing_or_damaged_checkpoint_is_named(tmp_path):
    save_run(tmp_path, tiny_config(tmp_path), {3: float("nan")})
    with pytest.raises(UserError, match=r"step_5: no such checkpoint; there are \[3\]"):
        load_text_run(tmp_path, 5)
    with pytest.raises(UserError, match=r"^checkpoint: is 'lst', must be last, best or one of the steps \[3\]"):
        load_text_run(tmp_path, "lst")
    with pytest.raises(UserError, match="no checkpoint has a validation loss"):
        load_text_run(tmp_path, "best")
    with pytest.raises(
        UserError, match=r"^mesh: is data 99 x fsdp 1 x context 1 x tensor 1, but there (is|are) \d+ device"
    ):
        load_text_run(tmp_path, mesh=(99, 1, 1))
    for part in (tmp_path / "checkpoints" / "step_3" / "params").rglob("*"):
        if part.is_file() and part.parent.name == "d":
            part.write_bytes(part.read_bytes()[:10])
    with pytest.raises(UserError, match=r"step_3: .*damaged"):
        load_text_run(tmp_path)


# --- errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--top_p=0"], "top_p: is 0.0, must be above 0"),
        (["--top_p=1.5"], "top_p: is 1.5"),
        (["--temperature=-1"], "temperature: is -1.0, must be 0"),
        (["--temperature=warm"], "--temperature: invalid float value: 'warm'"),
        (["--max_new_tokens=0"], "max_new_tokens: is 0"),
        (["--stop="], "stop: has an empty string"),
        (["--temprature=1"], "--temprature: unknown argument, did you mean --temperature?"),
        (["hello"], "hello: unknown argument; flags begin with --"),
        (["--precision=fp8"], "--precision: invalid choice: 'fp8'"),
        (["--mesh=2"], "--mesh: is '2', must be three sizes"),
        (["--logprobs"], "--logprobs: has no effect without --json"),
        (["--prompts_file=x"], "--prompts_file: cannot be used together with --prompt"),
        (["--overflow=stop", "--prompt=" + "x" * 40], "prompt: has 41 tokens, more than the model's context of 32"),
    ],
)
def test_an_error_is_one_line_with_exit_code_2(run, compiled, capsys, flags, message):
    with pytest.raises(SystemExit) as ended:
        run_program(["generate", f"--workdir={run}", "--prompt=a", *flags])
    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert out.strip() in ("", "a", "x" * 40)
    assert err.splitlines()[-1].startswith(f"error: {message}")


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "is empty"), (b"\xff\xfe\xff", "is not UTF-8 text"), (None, "No such file")]
)
def test_an_unreadable_prompts_file_is_named(run, tmp_path, content, message):
    path = tmp_path / "prompts"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{path}: .*{message}"):
        generate.main([f"--workdir={run}", f"--prompts_file={path}"])


def test_the_command_runs_in_its_own_process(run):
    command = [sys.executable, "-m", "psann_jax", "generate", f"--workdir={run}", "--prompt=a", "--max_new_tokens=3"]
    done = subprocess.run([*command, "--json"], env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert len(json.loads(done.stdout)["tokens"]) == 3
    done = subprocess.run([*command, "--top_p=2"], env=environment(), capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: top_p: is 2.0, must be above 0 and at most 1 (all tokens)\n"

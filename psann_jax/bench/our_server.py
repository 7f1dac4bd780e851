"""This package's server as a contender: whole requests over HTTP, with random weights and prompts."""

import http.client
import json
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import tokenizers
from tokenizers.models import WordLevel

from psann_jax.config import Config
from psann_jax.data.random_text import random_prompts
from psann_jax.data.tokenizer import Tokenizer
from psann_jax.data.tokenizer_models import TokenizersModel
from psann_jax.models.network import make_network
from psann_jax.nn.mesh import make_mesh
from psann_jax.runs.restore import TextRun
from psann_jax.sample.settings import Sampling
from psann_jax.serve.served import Limits, Served
from psann_jax.serve.server import Server, bind
from psann_jax.train.hardware import device_description, peak_memory_mb

_NAME = "random"


class OurServer:
    """Answers requests of clients in threads of the same process, which share its cores.

    Attributes:
      facts: n_params and device.
    """

    def __init__(self, config: Config, n_slots: int, prompt_length: int, max_new_tokens: int, sampling: Sampling):
        """Makes a model with random weights and starts its server; model.vocab_size must be set."""
        network = make_network(config)
        params = jax.jit(network.init)(jax.random.key(config.seed))
        tokenizer = _words(network.config.vocab_size)
        mesh = make_mesh(config.mesh)
        run = TextRun(config, network, params, 0, "", mesh, starts_from_seed=True, tokenizer=tokenizer)
        limits = Limits(n_slots=n_slots, max_waiting=2**16, max_length=prompt_length + max_new_tokens)
        self._server = Server({_NAME: Served(_NAME, run, limits)}, bind("127.0.0.1", 0))
        threading.Thread(target=self._server.answer, daemon=True).start()
        self._config, self._prompt_length = config, prompt_length
        self._fields = {
            "model": _NAME,
            "max_tokens": max_new_tokens,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
        }
        self.facts: dict[str, Any] = {"n_params": network.n_params, "device": device_description()}

    def run(self, n: int, n_clients: int) -> list[dict[str, Any]]:
        """Lets every client send one request, n times from different prompts.

        Returns:
          For each time tokens (generated for all clients), seconds (until all have their answers) and latency_s (median
          seconds of a client).
        """
        results = []
        for seed in range(n):
            prompts = random_prompts(self._config, seed, n_clients, self._prompt_length)
            began = time.perf_counter()
            with ThreadPoolExecutor(n_clients) as clients:
                answers = list(clients.map(self._ask, prompts, range(n_clients)))
            seconds = time.perf_counter() - began
            tokens, latencies = zip(*answers, strict=True)
            results.append({"tokens": sum(tokens), "seconds": seconds, "latency_s": statistics.median(latencies)})
        return results

    def _ask(self, prompt: list[int], seed: int) -> tuple[int, float]:
        """Sends a request; returns the number of generated tokens and the seconds."""
        began = time.perf_counter()
        connection = http.client.HTTPConnection(self._server.url.removeprefix("http://"))
        body = json.dumps({**self._fields, "prompt": prompt, "seed": seed})
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        answer = json.loads(connection.getresponse().read())
        connection.close()
        return answer["usage"]["completion_tokens"], time.perf_counter() - began

    def peak_memory_mb(self) -> float:
        """See `psann_jax.train.hardware.peak_memory_mb`."""
        return peak_memory_mb()


def _words(vocab_size: int) -> Tokenizer:
    """Returns a tokenizer of made-up words, of which the last is eos: random weights rarely sample it."""
    names = {"unk": "<unk>", "pad": "<pad>", "bos": "<bos>", "eos": "<eos>"}
    words = [names["pad"], names["bos"], names["unk"], *(f"w{i}" for i in range(3, vocab_size - 1)), names["eos"]]
    model = WordLevel({word: i for i, word in enumerate(words)}, unk_token=names["unk"])
    return Tokenizer(TokenizersModel(tokenizers.Tokenizer(model).to_str()), names)


def make(*args: Any) -> OurServer:
    """Makes the contender, in its worker's process."""
    return OurServer(*args)

"""Adapter that exposes a run as a model of EleutherAI's lm_eval; importing it needs that library."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from psann_jax.config import require
from psann_jax.runs.restore import TextRun
from psann_jax.runs.score import Scorer
from psann_jax.sample.settings import GenerationOptions, Sampling
from psann_jax.sample.text import TextSampler

_LENGTH_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # by precedence
_GENERATION_KWARGS = {"until", "do_sample", "temperature", "top_k", "top_p", *_LENGTH_NAMES}
_DEFAULT_NEW_TOKENS = 256  # for tasks that set no length


class LmEvalModel(TemplateLM):
    """A run as an lm_eval model.

    Every text begins with bos, as in training. Texts that are too long are truncated from the left.
    """

    def __init__(self, run: TextRun, *, batch_size: int = 16, progress: bool = False):
        """Prepares scoring and generation.

        Args:
          run: from `load_text_run`.
          batch_size: sequences processed at once, over all devices.
          progress: whether to show progress bars.
        """
        super().__init__()
        self._tokenizer, self._scorer = run.tokenizer, Scorer(run, batch_size=batch_size)
        self._sampler = TextSampler(run.sampler(), run.tokenizer)
        self._batch_size, self._progress = batch_size, progress

    @property
    def eot_token_id(self) -> int:
        """Id of the eos token."""
        return self._tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """Id of the bos token, which is the context of a text without one."""
        return self._tokenizer.bos_id

    @property
    def max_length(self) -> int:
        """The context length in tokens."""
        return self._scorer.max_length

    @property
    def tokenizer_name(self) -> str:
        """A name for lm_eval's request cache that is unique to the tokenizer."""
        return f"psann_jax-{self._tokenizer.fingerprint[:16]}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Encodes a text, with bos before it unless add_special_tokens is False."""
        ids = self._tokenizer.encode(string)
        return ids if add_special_tokens is False else [self._tokenizer.bos_id, *ids]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        progress = self._progress and not disable_tqdm
        scores = self._scorer([(context, text) for _, context, text in requests], progress=progress)
        results = [(score.logprob, score.greedy) for score in scores]
        for request, result in zip(requests, results, strict=True):
            self.cache_hook.add_partial("loglikelihood", request[0], result)
        return results

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts; texts longer than the context are split into windows."""
        windows = [self._windows(request.args[0]) for request in requests]
        progress = self._progress and not disable_tqdm
        scores = iter(self._scorer([pair for pairs in windows for pair in pairs], progress=progress))
        results = [sum(next(scores).logprob for _ in pairs) for pairs in windows]
        for request, result in zip(requests, results, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, result)
        return results

    def _windows(self, text: str) -> list[tuple[list[int], list[int]]]:
        ids = self.tok_encode(text, add_special_tokens=False)
        pairs = get_rolling_token_windows(ids, self.prefix_token_id, max_seq_len=self.max_length, context_len=1)
        return list(map(make_disjoint_window, pairs))

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continuations up to a stop string, greedy unless a request asks for sampling.

        Raises:
          UserError: a request has an unsupported generation setting, or its length leaves no room for the prompt.
        """
        results: dict[int, str] = {}
        order = sorted(range(len(requests)), key=lambda i: repr(requests[i].args[1]))
        with tqdm(total=len(requests), unit=" texts", disable=disable_tqdm or not self._progress) as bar:
            for _, group in groupby(order, key=lambda i: repr(requests[i].args[1])):
                batch = sorted(group, key=lambda i: -len(requests[i].args[0]))
                texts = self._generate([requests[i].args[0] for i in batch], requests[batch[0]].args[1])
                for i, text in zip(batch, texts, strict=True):
                    results[i] = text
                    self.cache_hook.add_partial("generate_until", requests[i].args, text)
                    bar.update()
        return [results[i] for i in range(len(requests))]

    def _generate(self, prompts: Sequence[str], settings: Mapping[str, Any]) -> Iterable[str]:
        unknown = sorted(set(settings) - _GENERATION_KWARGS)
        require(not unknown, "gen_kwargs", f"{', '.join(unknown)}: not supported, only {sorted(_GENERATION_KWARGS)}")
        default = min(_DEFAULT_NEW_TOKENS, self.max_length // 2)
        n = next((int(settings[name]) for name in _LENGTH_NAMES if settings.get(name) is not None), default)
        room = self.max_length - n
        require(room >= 1, "max_gen_toks", f"is {n}, must be below the context length of {self.max_length} tokens")
        until = settings.get("until") or []
        options = GenerationOptions(
            max_new_tokens=n,
            stop=tuple(text for text in ([until] if isinstance(until, str) else until) if text),
            max_prompt_tokens=room,
            batch_size=self._batch_size,
        )
        return (completion.text for completion in self._sampler.complete(prompts, _sampling(settings), options))


def _sampling(settings: Mapping[str, Any]) -> Sampling:
    temperature = float(settings.get("temperature") or 0.0)
    if settings.get("do_sample") is False:
        temperature = 0.0
    elif settings.get("do_sample") and not settings.get("temperature"):
        temperature = 1.0
    top_k, top_p = int(settings.get("top_k") or 0), float(settings.get("top_p") or 1.0)
    return Sampling(temperature=temperature, top_k=top_k, top_p=top_p)

"""The engine "vllm": replies written and texts read by vLLM, with projections computed in its workers.

Requests of all runs are in one vLLM engine and share its forwards. A run has vLLM take steps until there is something
for it; what a step gives another run waits for that run. So two threads, or two streams in one thread, use one model
at once.

vLLM by itself does not read the last token of a reply. So a request may write one token more than its reply has room
for, an end-of-turn token does not stop it, and it is ended here as soon as the reply's last token has been read.
"""

from __future__ import annotations

import gc
import itertools
import os
import random
import threading
from collections import deque
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from persona_core.errors import NumericalError, SettingError, UnsupportedModel
from persona_core.inference.decode import new_token_limit
from persona_core.inference.vllm.replies import Event, Replies, Text, Texts
from persona_core.inference.vllm.sampling import ARGUMENT, SeededSampler
from persona_core.inference.vllm.worker import ReadingWorker, request_id

if TYPE_CHECKING:
    from persona_core.inference.batch import DecodeStep
    from persona_core.inference.engine import Readout
    from persona_core.inference.readings import Arrays
    from persona_core.inference.sampling import Sampling
    from persona_core.inference.sections import ReplyFollower
    from persona_core.inference.vllm.adapter import Lora
    from persona_core.models.language_model import LanguageModel

READ_AT_ONCE = 256
"""Texts that are given to vLLM at once; it decides how many tokens it reads in one forward."""
PROBE = (2, 3, 4, 5, 6, 7)
"""Token ids of the text that shows how a model's blocks give the residual stream."""
CPU_CACHE = 4 * 2**30
"""Bytes for keys and values on a CPU, where vLLM by itself takes 92 % of the memory."""
FIXED = {
    "worker_extension_cls": f"{ReadingWorker.__module__}.{ReadingWorker.__qualname__}",
    "logits_processors": [f"{SeededSampler.__module__}:{SeededSampler.__qualname__}"],
    "skip_tokenizer_init": True,
    "trust_remote_code": False,
    "pipeline_parallel_size": 1,  # every worker has every block
    "enforce_eager": True,  # hooks do not run inside a CUDA graph
    "enable_prefix_caching": False,  # a prefix from the cache is not read
    "async_scheduling": False,  # an alarm acts on the next token, which must not be under way
}
"""Arguments of `vllm.EngineArgs` that readings depend on."""
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # steps are taken here: what a step read is there when it returns
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # the workers look into the batch of the other one
}


class VllmEngine:
    """One model on vLLM.

    Args:
        folder: of the checkpoint.
        dtype: of the weights.
        tensor_parallel: over how many devices each weight is spread.
        context: positions that the model can read; None: what vLLM finds.
        options: further arguments of `vllm.EngineArgs`.
        adapter: on every request.

    Raises:
        SettingError: an option that readings depend on.
        UnsupportedModel: its residual stream cannot be found.
        NumericalError: its weights give NaN or infinity.
    """

    name = "vllm"

    def __init__(
        self,
        folder: str,
        dtype: str,
        tensor_parallel: int,
        context: int | None,
        options: Mapping[str, Any],
        adapter: Lora | None = None,
    ) -> None:
        import vllm
        from vllm.lora.request import LoRARequest

        fixed = sorted(set(options) & set(FIXED))
        if fixed:
            raise SettingError(f"engine_options: {fixed[0]!r} is set by the engine, {FIXED[fixed[0]]!r}; leave it out.")
        self.version, self._tensor_parallel = vllm.__version__, tensor_parallel
        self._lock = threading.Lock()
        self._inboxes: dict[str, deque[Event]] = {}
        self._owners: dict[str, str] = {}
        self._alone = False  # whether the open run admits no other
        self._numbers = itertools.count()
        on_cpu = not torch.cuda.is_available() and "VLLM_CPU_KVCACHE_SPACE" not in os.environ
        self.arguments: dict[str, Any] = {
            **({"kv_cache_memory_bytes": CPU_CACHE} if on_cpu else {}),
            "model": folder,
            "dtype": dtype,
            "max_model_len": context,
            "tensor_parallel_size": tensor_parallel,
            "distributed_executor_backend": "uni" if tensor_parallel == 1 else "mp",
            "disable_log_stats": True,
            **({} if adapter is None else {"enable_lora": True, "max_loras": 1, "max_lora_rank": adapter.rank}),
            **options,
        }
        self._lora = None if adapter is None else LoRARequest("adapter", 1, str(adapter.weights.parent))
        self._engine = start({**self.arguments, **FIXED})
        self.n_blocks, self.d_model = self._call("persona_start")
        self._find_form()
        self.context_length = self._engine.model_config.max_model_len - 1  # one token always follows a text

    def _call(self, method: str, *args: Any) -> Any:
        """A method of every worker; what the first returns."""
        return self._engine.collective_rpc(method, args=args)[0]

    def _find_form(self) -> None:
        self._call("persona_probe")
        self._engine.add_request("probe", {"prompt_token_ids": list(PROBE)}, self._params(1), lora_request=self._lora)
        while self._engine.has_unfinished_requests():
            self._engine.step()
        form = self._call("persona_form")
        if form == "nan":
            raise NumericalError(
                "The model gives NaN or infinity for a text of six tokens. Download the weights again; a float16 model "
                "that overflows needs dtype='bfloat16' or 'float32'."
            )
        if form is None:
            raise UnsupportedModel(
                "vLLM's blocks of this model give their residual stream in an unknown form: the final norm of none of "
                "the known ones is what the model's own final norm gave. Load it with engine='transformers'."
            )

    @contextmanager
    def _run(self, readout: Readout) -> Generator[str]:
        """Open a run; its key. Its requests end with it."""
        if readout.pooled is not None:
            raise SettingError("engine='vllm' gives projections, not pooled states; use engine='transformers'.")
        key = f"run{next(self._numbers)}"
        waits = any(i.steer.when == "alarm" for i in readout.interventions)
        with self._lock:
            if self._inboxes and (waits or self._alone):
                raise SettingError(
                    "A run with when='alarm' has vLLM to itself: the steps of another run would write its tokens "
                    "before the alarm can act on them. Let one run finish before the other starts."
                )
            self._call("persona_open", key, readout)
            self._inboxes[key], self._alone = deque(), waits
        try:
            yield key
        finally:
            with self._lock:
                self._end([request for request, owner in self._owners.items() if owner == key])
                self._call("persona_close", key)
                del self._inboxes[key]
                self._alone = False

    def _add(self, key: str, request: str, ids: Sequence[int], params: Any) -> None:
        with self._lock:
            self._engine.add_request(request, {"prompt_token_ids": list(ids)}, params, lora_request=self._lora)
            self._owners[request] = key

    def _end(self, requests: Sequence[str]) -> None:
        """Have vLLM forget requests that it has not finished. Under the lock."""
        unfinished = [request for request in requests if self._owners.pop(request, None) is not None]
        if unfinished:
            self._engine.abort_request(unfinished)

    def _next(self, key: str, before: Callable[[], object] | None = None) -> Event:
        """What a run gets next. `before` is called before a step, for what is to act in it."""
        while True:
            with self._lock:
                if self._inboxes[key]:
                    return self._inboxes[key].popleft()
                if not self._engine.has_unfinished_requests():
                    raise UnsupportedModel("vLLM ended a text before its last token was read.")
                if before is not None:
                    before()
                outputs, taken = self._engine.step(), self._call("persona_take")
                events: dict[str, Event] = {owner: ([], chunks) for owner, chunks in taken.items()}
                for output in outputs:
                    owner = self._owners.get(output.request_id)
                    if owner is not None:
                        events.setdefault(owner, ([], []))[0].append(output)
                    if output.finished:
                        self._owners.pop(output.request_id, None)
                for owner, event in events.items():
                    self._inboxes[owner].append(event)

    def _params(self, max_tokens: int, **drawn: Any) -> Any:
        """vLLM's settings of a request. It takes the largest score, and `SeededSampler` leaves the chosen token's."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            max_tokens=max_tokens,
            temperature=0.0,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            extra_args={ARGUMENT: drawn} if drawn else None,
        )

    def write(
        self,
        lm: LanguageModel,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seeds: Sequence[int],
        readout: Readout,
        n_kept: Sequence[int],
        batch_size: int,
        indices: Sequence[int],
        follower: ReplyFollower | None,
        ended: Collection[int] = (),  # noqa: ARG002 guards, which end replies, are refused on this engine
    ) -> Generator[DecodeStep]:
        """As `Engine.write`; `batch_size` is how many replies vLLM is given at once."""
        queue, replies = deque(indices), Replies(lm, readout, sampling, follower)
        with self._run(readout) as key:
            before = None
            if self._alone:
                starts = [i.starts for i in sorted(readout.interventions, key=lambda i: i.steer.block)]

                def before() -> object:  # alarms write into these tensors
                    return self._call("persona_starts", key, starts)

            while queue or replies.active:
                while queue and len(replies.active) < batch_size:
                    row = queue.popleft()
                    ids, kept = prompts[row], n_kept[row]
                    limit = new_token_limit(lm, len(ids) - kept, sampling)
                    drawn = {"sampling": sampling.to_dict(), "seed": seeds[row], "n_kept": kept, "limit": limit}
                    name = request_id(key, row, len(ids) - kept, next(self._numbers))
                    self._add(key, name, ids, self._params(limit - kept + 1, **drawn))
                    replies.begin(name, row, ids, kept, limit)
                yield from replies.steps(self._next(key, before))
                if replies.ended:
                    with self._lock:
                        self._end(replies.ended)
                    replies.ended.clear()

    def read(
        self,
        lm: LanguageModel,
        rows: Sequence[Sequence[int]],
        n_prompts: Sequence[int],
        readout: Readout,
        batch_tokens: int | None = None,  # noqa: ARG002 vLLM has a limit of its own
        progress: bool = False,
    ) -> list[Arrays]:
        """As `Engine.read`."""
        queue, texts = deque(range(len(rows))), Texts(lm, readout)
        found: dict[int, Arrays] = {}
        with self._run(readout) as key, tqdm(total=len(rows), desc="reading", unit="text", disable=not progress) as bar:
            while queue or texts.active:
                while queue and len(texts.active) < READ_AT_ONCE:
                    row = queue.popleft()
                    name = request_id(key, row, n_prompts[row], next(self._numbers))
                    self._add(key, name, rows[row], self._params(1))
                    texts.active[name] = Text(row, len(rows[row]))
                outputs, chunks = self._next(key)
                texts.keep(chunks)
                for output in outputs:
                    text = texts.active.pop(output.request_id)
                    raw, norms = text.take(text.n_given)
                    found[text.row] = raw.transpose(2, 1, 0).copy(), norms.T.copy()
                    bar.update()
        return [found[row] for row in range(len(rows))]

    def close(self) -> None:
        """Free the device's memory. The engine is of no use afterwards."""
        if self._tensor_parallel > 1:
            self._engine.engine_core.shutdown()  # the workers' processes
        # One process has one set of vLLM's groups, which its shutdown would take from other models as well.
        del self._engine
        gc.collect()


def start(arguments: Mapping[str, Any]) -> Any:
    """A vLLM engine in this process, which is left as it was."""
    from vllm import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    with _environment(), _random_state():
        return LLMEngine.from_engine_args(EngineArgs(**arguments))


@contextmanager
def _environment() -> Generator[None]:
    """Settings that vLLM reads from the environment while an engine is made."""
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _random_state() -> Generator[None]:
    """vLLM seeds every generator of the process that it starts in."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])

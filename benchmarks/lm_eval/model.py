"""EarlyExitLM: a saved early-exit decoder under lm-evaluation-harness; see docs/trained_models.md.

Texts are tokenised, cut and windowed by the harness's own ``hf`` model, so that a rule that never exits has its scores.
Given texts are read once at full depth, so that the skipped keys and values are exact.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs

from benchmarks.kinds.text_evaluation import losses_at
from consistentee.data.tasks import Keep
from consistentee.deployment.pipeline import load_saved
from consistentee.engine.sampling import Sampling
from consistentee.errors import UserError
from consistentee.methods.token_methods import TokenMethod
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder
from consistentee.progress import tracked
from consistentee.rules.exit_rule import ExitRule, NeverExit
from consistentee.traces.token_trace import TokenRow, record_tokens
from consistentee.traces.walk import replay

Request = tuple[Any, list[int], list[int]]
"""The request's name in the harness, the tokens of the context, and the tokens that are scored."""


class EarlyExitLM(HFLM):
    """The model ``consistentee`` of lm-evaluation-harness."""

    def __init__(
        self,
        pretrained: str,
        *,
        method: str | None = None,
        knob: float | None = None,
        device: str | None = None,
        batch_size: int | str = 8,
        max_batch_size: int | None = None,  # the harness gives it to every model
        allow_code: bool = False,
        **options: Any,
    ) -> None:
        """Load a decoder; see :func:`consistentee.deployment.pipeline.load_saved`.

        ``method`` is the one whose rule decides. ``options`` are those of the harness's ``hf`` model that concern
        texts: ``max_length``, ``add_bos_token``, ``prefix_token_id``, ...
        """
        if not str(batch_size).isdigit():
            raise UserError(f"--batch_size must be a number, got {batch_size}: exits make no batch size the largest")
        self.decoder, found, self.knob = load_saved(
            Path(pretrained), MultiExitDecoder, knob, method, allow_code=allow_code
        )
        assert isinstance(found, TokenMethod)
        self.method = found
        if device is not None and (torch.cuda.is_available() or not device.startswith("cuda")):
            self.decoder.to(device)  # the harness's command line asks for a GPU unasked
        super().__init__(
            pretrained=self.decoder.backbone,
            tokenizer=self.decoder.tokenizer,
            backend="causal",
            batch_size=int(batch_size),
            **options,
        )
        self.decoder.encode = self._encode  # type: ignore[method-assign]
        self.layer_calls, self.tokens = 0.0, 0

    def _encode(self, prompts: Sequence[str], max_tokens: int | None = None, keep: Keep = "end") -> list[list[int]]:
        """Tokenise prompts as the ``hf`` model does; the harness puts them into chat templates, some with a BOS."""
        assert keep == "end"
        found = [self.tok_encode(prompt, left_truncate_len=max_tokens) for prompt in prompts]
        return [tokens or [self.prefix_token_id] for tokens in found]

    @property
    def scoring_rule(self) -> ExitRule:
        """The rule by which given tokens exit. Speculative methods give what the full model gives."""
        return NeverExit() if self.method.drafts else self.method.rule(self.decoder, self.knob)

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Score the last tokens of each request: their log-probability, and whether all are the likeliest."""
        if self.decoder.last_layers:  # a context is read at full depth, and the first scored token is predicted there
            raise UserError(
                "given tokens cannot be scored by exits with closing layers, of which the first is always the full "
                "model's: take tasks that write (generate_until), or a decoder without closing layers"
            )
        rows = [_cut(context, scored, self.max_length) for _, context, scored in requests]
        order = sorted(range(len(rows)), key=lambda i: -sum(map(len, rows[i])))
        answers = [(0.0, False)] * len(rows)
        size = override_bs or self.batch_size
        shown = not disable_tqdm and override_bs is None
        for start in tracked(range(0, len(order), size), "scoring", rows=size, shown=shown):
            chosen = order[start : start + size]
            for i, answer in zip(chosen, self._score([rows[i] for i in chosen]), strict=True):
                answers[i] = answer
                if requests[i][0] is not None:
                    self.cache_hook.add_partial("loglikelihood", requests[i][0], answer)
        return answers

    def _score(self, rows: Sequence[TokenRow]) -> list[tuple[float, bool]]:
        recorded = record_tokens(self.decoder, rows, batch_size=len(rows))
        trace = replace(recorded, step=recorded.step + 1)  # the first scored token may leave early as well
        exits = replay(self.scoring_rule, trace)
        self.layer_calls, self.tokens = self.layer_calls + float(exits.sum()), self.tokens + len(exits)
        nats, likeliest = losses_at(trace, torch.arange(len(trace)), exits.unsqueeze(0))
        lengths = [len(scored) for _, scored in rows]
        parts = zip(nats[0].split(lengths), likeliest[0].split(lengths), strict=True)
        return [(-float(row.sum()), bool(agrees.all())) for row, agrees in parts]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continue contexts; requests with the same options are decoded together."""
        answers = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(number)
        for options, numbers in groups.items():
            texts = self._continue([requests[i].args[0] for i in numbers], json.loads(options))
            for number, text in zip(numbers, texts, strict=True):
                answers[number] = text
                self.cache_hook.add_partial("generate_until", requests[number].args, text)
        return answers

    def _continue(self, contexts: Sequence[str], options: dict[str, Any]) -> list[str]:
        options = normalize_gen_kwargs(options, self.max_gen_toks)
        new_tokens, stop = options.pop("max_gen_toks"), options.pop("until")
        sampled = options.pop("do_sample")
        kept = {name: options.pop(name) for name in ("temperature", "top_k", "top_p") if name in options}
        if options:
            raise UserError(f"early exits cannot follow the generation option {next(iter(options))!r}")
        if new_tokens >= self.max_length:
            raise UserError(f"{new_tokens} new tokens leave no room for a prompt: the model reads {self.max_length}")
        written = self.method.generate(
            self.decoder,
            contexts,
            self.knob,
            max_new_tokens=new_tokens,
            max_prompt_tokens=self.max_length - new_tokens,
            batch_size=self.batch_size,
            stop=tuple(text for text in stop if text),
            sampling=Sampling(**kept) if sampled else None,
        )
        self.layer_calls += written.layer_calls
        self.tokens += written.decoded_tokens
        return written.texts

    def get_model_info(self) -> dict[str, Any]:
        """Return what the harness writes with the scores: the method, and the mean exit layer so far."""
        return {
            "model_num_parameters": self.decoder.backbone.num_parameters(),
            "model_dtype": str(self.decoder.dtype),
            "exit_method": self.method.name,
            "exit_knob": {self.method.knob.name: self.knob},
            "num_layers": self.decoder.num_layers,
            "average_layers": self.layer_calls / self.tokens if self.tokens else None,
        }


def _cut(context: Sequence[int], scored: Sequence[int], max_length: int) -> TokenRow:
    """Drop the first tokens of a context that is too long, but for the last: the first scored token follows it."""
    room = max_length + 1 - len(scored)
    if room < 1:
        raise UserError(f"an answer of {len(scored)} tokens cannot be scored: the model reads {max_length} at most")
    return list(context)[-room:], list(scored)

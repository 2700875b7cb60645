"""Suitability of a stock decoder for early exits: how early its layers predict what the last one predicts.

Nothing is trained: every layer is read through the model's own final norm and LM head, on a text of its own (greedy)
and on references. These quantities are ours; the metric of arXiv 2603.23701, which asks the same, could not be had.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from consistentee.errors import UserError
from consistentee.progress import tracked
from consistentee.traces.drafts import DRAFT_LENGTHS, DraftTrace

GREEDY, REFERENCE = "greedy", "reference"
_SAME = 1e-3


@dataclass(frozen=True)
class Draft:
    """Self-speculation: an exit drafts so many tokens.

    ``layers_per_token`` run for each new token; ``cost`` is the share of the model's own cost, the LM head included.
    """

    exit_layer: int
    tokens: int
    layers_per_token: float
    cost: float


@dataclass(frozen=True)
class Suitability:
    """Measurements of a decoder.

    Attributes:
        layers: L.
        tokens: number of tokens of each kind of text.
        by_layer: a row for each kind of text and layer: ``text``, ``layer``, ``agreement`` (share of tokens for which
            the layer predicts what layer L predicts), ``kl`` (KL(layer L || layer) in nats), ``cosine`` and
            ``normed_cosine`` (of its states and those of layer L, before and after the final norm).
        first_agreement: mean over tokens of the first layer that predicts what layer L predicts, by kind of text.
        saturation_layer: the same for the first layer from which on all agree.
        draft: the cheapest self-speculation on the greedy texts.
        head_in_layers: cost of the LM head in layers, by weights.
        reference_loss: cross-entropy of the references, in nats a token.
        uniform_loss: ln of the vocabulary's size.
    """

    layers: int
    tokens: dict[str, int]
    by_layer: pd.DataFrame
    first_agreement: dict[str, float]
    saturation_layer: dict[str, float]
    draft: Draft
    head_in_layers: float
    reference_loss: float
    uniform_loss: float

    @property
    def oracle_saves(self) -> float:
        """Layers a token that an oracle would save, which exits at the first layer that agrees with layer L."""
        return self.layers - self.first_agreement[GREEDY]

    @property
    def judgement(self) -> str:
        if self.reference_loss > 0.9 * self.uniform_loss:
            return f"unsuited: it does not model text (loss {self.reference_loss:.1f}, chance {self.uniform_loss:.1f})"
        saved = 1 - self.draft.cost
        if saved >= 0.05:
            return f"suited as it is: drafts from layer {self.draft.exit_layer} save {saved:.0%} of the cost"
        if self.oracle_saves >= 0.1 * self.layers:
            return (
                f"suited if exits are trained: an oracle saves {self.oracle_saves:.1f} of {self.layers} layers, "
                f"untrained drafts {max(saved, 0):.0%}"
            )
        return f"unsuited: even an oracle saves only {self.oracle_saves:.1f} of {self.layers} layers"


def measure_suitability(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    new_tokens: int = 34,
    progress: bool = False,
) -> Suitability:
    """Measure a stock causal language model of any architecture with a final norm and a linear LM head.

    ``texts`` are references; the first third of each is the prompt that the model continues. Raises UserError for an
    architecture whose layers cannot be read, and for texts that are too short.
    """
    reader = _LayerReader(model.eval())
    measured: dict[str, list[dict[str, np.ndarray]]] = {GREEDY: [], REFERENCE: []}
    losses: list[Tensor] = []
    for text in tracked(texts, "reading layers", rows=1, shown=progress):
        tokens = torch.tensor(tokenizer(text)["input_ids"], device=model.device)
        prompt = len(tokens) // 3
        if prompt < 1:
            raise UserError(f"a text must have at least 3 tokens: {text!r}")
        own = model.generate(
            tokens[None, :prompt],
            attention_mask=torch.ones(1, prompt, dtype=torch.long, device=model.device),
            max_new_tokens=new_tokens,
            do_sample=False,
            repetition_penalty=1.0,
            pad_token_id=tokenizer.pad_token_id or 0,
        )[0]
        measured[GREEDY].append(reader.read(own, prompt)[0])
        reference, logits = reader.read(tokens, prompt)
        measured[REFERENCE].append(reference)
        losses.append(functional.cross_entropy(logits, tokens[prompt:], reduction="none"))
    joined = {
        kind: {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}
        for kind, parts in measured.items()
    }
    layer = np.arange(1, reader.layers + 1)
    frames = [
        pd.DataFrame({"text": kind, "layer": layer} | {name: of.mean(axis=1) for name, of in quantities.items()})
        for kind, quantities in joined.items()
    ]
    agreements = {kind: quantities["agreement"] for kind, quantities in joined.items()}
    return Suitability(
        layers=reader.layers,
        tokens={kind: agrees.shape[1] for kind, agrees in agreements.items()},
        by_layer=pd.concat(frames, ignore_index=True),
        first_agreement={kind: float(agrees.argmax(axis=0).mean()) + 1 for kind, agrees in agreements.items()},
        saturation_layer={kind: float(saturation_layers(agrees).mean()) for kind, agrees in agreements.items()},
        draft=best_draft([part["agreement"] for part in measured[GREEDY]], reader.head_in_layers),
        head_in_layers=reader.head_in_layers,
        reference_loss=float(torch.cat(losses).mean()),
        uniform_loss=math.log(model.config.vocab_size),
    )


def best_draft(agreements: Sequence[np.ndarray], head_in_layers: float) -> Draft:
    """Return the cheapest self-speculation.

    The head is read once for each drafted token and once to verify. ``agreements`` say of each text whether a layer
    predicts the token: bool [L, tokens].
    """
    layers, tokens = len(agreements[0]), sum(agrees.shape[1] for agrees in agreements)
    drafts = []
    for exit_layer in range(1, layers):
        trace = DraftTrace(exit_layer, layers, [agrees[exit_layer - 1] for agrees in agreements])
        for length in DRAFT_LENGTHS:
            layer_calls, heads = trace.layer_calls(length) / tokens, sum(trace.count(length)) / tokens
            cost = (layer_calls + heads * head_in_layers) / (layers + head_in_layers)
            drafts.append(Draft(exit_layer, length, layer_calls, cost))
    return min(drafts, key=lambda draft: draft.cost)


def saturation_layers(agrees: np.ndarray) -> np.ndarray:
    """Return the first layer, from 1, from which on all layers agree: [tokens], of bool [L, tokens]."""
    disagreeing = ~agrees[::-1]
    return np.where(disagreeing.any(axis=0), len(agrees) - disagreeing.argmax(axis=0) + 1, 1)


class _LayerReader:
    def __init__(self, model: Any) -> None:
        self.model, self.head = model, model.get_output_embeddings()
        self.layers: int = model.config.get_text_config().num_hidden_layers
        decoder = model.get_decoder()
        norms = [part for part in decoder.children() if "norm" in type(part).__name__.lower()]
        stacks = [part for part in decoder.children() if isinstance(part, nn.ModuleList) and len(part) == self.layers]
        if not (norms and stacks and isinstance(self.head, nn.Linear)):
            raise self._unreadable("it has no final norm, list of layers or linear head that can be found")
        self.norm, self.stack = norms[-1], stacks[0]

    @property
    def head_in_layers(self) -> float:
        """Weights of the head, divided by those of a layer."""
        layer = sum(weight.numel() for weight in self.stack[0].parameters() if weight.ndim > 1)
        return self.head.weight.numel() / layer

    @torch.inference_mode()
    def read(self, tokens: Tensor, prompt: int) -> tuple[dict[str, np.ndarray], Tensor]:
        """Read the predictions of every layer for the tokens [T] after a prompt.

        Returns quantities by the names of :class:`Suitability`, [L, T - prompt], and the logits of layer L.
        """
        states, logits = self._states(tokens)
        states, logits = states[:, prompt - 1 : -1].float(), logits[prompt - 1 : -1].float()
        normed = self.norm(states.to(self.head.weight.dtype)).float()
        last, answer = logits.log_softmax(dim=-1), logits.argmax(dim=-1)
        agrees, kl = [], []
        for layer in normed.to(self.head.weight.dtype):
            said = self.head(layer).float()
            agrees.append(said.argmax(dim=-1) == answer)
            kl.append(functional.kl_div(said.log_softmax(dim=-1), last, log_target=True, reduction="none").sum(dim=-1))
        if not bool(agrees[-1].all()) or float(kl[-1].max()) > _SAME:
            raise self._unreadable("its final norm and head do not give its own logits")
        quantities = {
            "agreement": torch.stack(agrees),
            "kl": torch.stack(kl),
            "cosine": functional.cosine_similarity(states, states[-1:], dim=-1),
            "normed_cosine": functional.cosine_similarity(normed, normed[-1:], dim=-1),
        }
        return {name: values.cpu().numpy() for name, values in quantities.items()}, logits

    def _states(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Run the model: states after every layer [L, T, width], before the final norm, and logits [T, vocabulary]."""
        states: list[Tensor] = []

        def keep(_: nn.Module, __: object, output: Any) -> None:
            states.append((output if isinstance(output, Tensor) else output[0]).reshape(len(tokens), -1))

        hooks = [layer.register_forward_hook(keep) for layer in self.stack]
        try:
            logits = self.model(tokens.unsqueeze(0), use_cache=False).logits[0]
        finally:
            for hook in hooks:
                hook.remove()
        return torch.stack(states), logits

    def _unreadable(self, reason: str) -> UserError:
        return UserError(f"the layers of {type(self.model).__name__} cannot be read: {reason}")

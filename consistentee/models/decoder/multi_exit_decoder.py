"""MultiExitDecoder: a stock causal language model with exits after some of its layers, and what a method adds."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from consistentee.arguments import NotNegative, Positive, Texts, checked
from consistentee.backbones.decoders import (
    DecoderContext,
    DecoderStepper,
    check_decoder_family,
    decoder_stepper_for,
    logits_among,
    positions_of,
)
from consistentee.backbones.pretrained import check_complete, read_config, read_model, read_tokenizer, reading
from consistentee.data.tasks import ChatTemplate, Keep, fit_prompt
from consistentee.errors import UserError
from consistentee.files import hash_json, hash_tensors
from consistentee.models.base import BACKBONE_FOLDER, MultiExit, new_weights
from consistentee.models.decoder.adapters import (
    AdapterKind,
    ExitAdapter,
    LoraSpec,
    base_weights,
    build_adapter,
    inject_lora,
    is_lora,
    merge_lora_weights,
)
from consistentee.models.decoder.branches import Branch, BranchSpec
from consistentee.models.decoder.description import DecoderDescription, check_closing_layers, chosen_exit_layers
from consistentee.versions import ENGINE_VERSION


def hash_backbone(backbone: Any) -> str:
    """Hash a stock model's weights as they are loaded: in float32, without LoRA, tied ones once."""
    return hash_tensors(base_weights({name: weight.float() for name, weight in backbone.named_parameters()}))


def _load_backbone(folder: str | Path) -> Any:
    """Load a stock causal language model in float32. Raises UserError for what cannot be read or run."""
    check_decoder_family(read_config(folder).model_type)
    backbone, missing = read_model(folder, AutoModelForCausalLM)
    check_complete(folder, missing)
    return backbone


class ExitStates(NamedTuple):
    """Hidden states at every exit: [rows, tokens, exits, width] each, the same ones where there are no closing layers.

    Attributes:
        rule_states: before the closing layers, for rules and learned heads.
        answer_states: behind them, for the LM head.
    """

    rule_states: Tensor
    answer_states: Tensor


class MultiExitDecoder(MultiExit):
    """A stock causal language model whose tokens may exit at some of the layers. See :meth:`from_backbone`.

    Layer L is always the last exit and is the stock model's own. Every earlier exit reads its hidden state through an
    adapter (see :mod:`consistentee.models.decoder.adapters`) and the one LM head.

    With closing layers, an exit skips the middle of the stack: a token that exits at layer e runs the first e - c
    layers, after which its rule is asked, and the last c.
    """

    description_class = DecoderDescription

    stepper: DecoderStepper
    description: DecoderDescription

    def _build_exits(self) -> None:
        kind, rank = self.description.adapter, self.description.rank
        adapters = {str(layer): build_adapter(kind, rank, self.stepper) for layer in self.exit_layers[:-1]}
        self.exit_adapters = nn.ModuleDict(adapters)
        self._last_exit = ExitAdapter()
        self.branches = nn.ModuleDict()

    @classmethod
    @checked
    def from_backbone(
        cls,
        name: str,
        *,
        exit_layers: Sequence[int] | None = None,
        adapter: AdapterKind = "low-rank",
        rank: Positive = 128,
        closing_layers: NotNegative = 0,
        chat_template: ChatTemplate = "never",
        seed: int = 0,
    ) -> Self:
        """Put untrained exits on a pretrained decoder, which is loaded in float32.

        Args:
            name: a name of the catalogue, a directory, a GGUF file, or an id on the Hugging Face hub.
            exit_layers: 1-based and increasing; layer L is added where it is missing. By default five, evenly spaced.
            adapter, rank: of the exits below L.
            closing_layers: number of last layers that every token runs, wherever it exits (after SkipDecode, Del Corro
                et al., 2023, arXiv 2307.02628). Rules cannot read the prediction of an exit before it is taken.
            chat_template: "auto" puts every prompt into the tokenizer's chat template, if it has one, as the message of
                a user.
            seed: of the new weights.

        Raises UserError for an unknown name, weights that cannot be had, an architecture that is not supported, options
        out of range, and closing layers with another adapter than "shared".
        """
        from consistentee.backbones.catalog import list_backbones, resolve_decoder

        folder = resolve_decoder(name)
        backbone = _load_backbone(folder)
        num_layers = int(backbone.config.num_hidden_layers)
        chosen = chosen_exit_layers(exit_layers, num_layers)
        local = Path(name).expanduser()
        is_local = name not in list_backbones() and (local.is_dir() or local.suffix == ".gguf")
        description = DecoderDescription(
            backbone_name=str(local.resolve()) if is_local else name,
            backbone_hash=hash_backbone(backbone),
            exit_layers=chosen,
            adapter=adapter,
            rank=rank,
            closing_layers=check_closing_layers(closing_layers, chosen, adapter),
            chat_template=chat_template,
        )
        with new_weights(seed):
            return cls(decoder_stepper_for(backbone), read_tokenizer(folder), description)

    def without_exits(self) -> Self:
        """Return a decoder with the same weights whose one exit is layer L."""
        kept = self.description
        stock = DecoderDescription(
            backbone_name=kept.backbone_name,
            backbone_hash=kept.backbone_hash,
            exit_layers=kept.exit_layers[-1:],
            chat_template=kept.chat_template,
        )
        return type(self)(self.stepper, self.tokenizer, stock)

    @property
    def exit_layers(self) -> tuple[int, ...]:
        """The layers after which a token may exit: 1-based, increasing, the last is L."""
        return self.description.exit_layers

    def check_exit_layer(self, layer: float) -> int:
        """Return ``layer`` as an int. Raises UserError if the model has no exit there."""
        if layer not in self.exit_layers:
            known = ", ".join(map(str, self.exit_layers))
            raise UserError(f"this model has no exit at layer {layer:g}; its exit layers are {known}")
        return int(layer)

    @property
    def text_length(self) -> int:
        """Number of new tokens of the texts that the model was trained with, else 64."""
        return self.description.max_new_tokens or 64

    @property
    def last_layers(self) -> range:
        """The last layers that every token runs, wherever it exits: 1-based, and by default none."""
        return range(self.num_layers - self.description.closing_layers + 1, self.num_layers + 1)

    @property
    def segments(self) -> list[range]:
        """The layers between each exit and the one before, which run without a decision; without closing layers."""
        ends = (exit_layer - len(self.last_layers) for exit_layer in self.exit_layers)
        return [range(before + 1, end + 1) for before, end in pairwise((0, *ends))]

    def skipped_layers(self, exit_layer: int) -> range:
        """The layers that a token skips that exits at ``exit_layer``: 1-based."""
        return range(exit_layer - len(self.last_layers) + 1, self.num_layers - len(self.last_layers) + 1)

    @property
    def end_tokens(self) -> frozenset[int]:
        """The tokens that end a text, as the stock model's ``generate`` has them; may be empty."""
        settings = getattr(self.backbone, "generation_config", None)
        for ids in (getattr(settings, "eos_token_id", None), self.tokenizer.eos_token_id):
            if ids is not None:
                return frozenset([ids] if isinstance(ids, int) else ids)
        return frozenset()

    @property
    def pad_id(self) -> int:
        """The token to pad with: 0 where the tokenizer has none that the model embeds, since padding is masked."""
        padding = self.tokenizer.pad_token_id
        return int(padding) if padding is not None and padding < self.stepper.vocabulary else 0

    def state(self, hidden: Tensor) -> Tensor:
        """Return the stock final norm of hidden states [..., width], which learned heads read."""
        return self.stepper.final_norm(hidden)

    def logits(self, layer: int, hidden: Tensor) -> Tensor:
        """Compute the logits of exit layer ``layer`` from its hidden states: [..., width] -> [..., vocabulary].

        This and the next three raise UserError at a layer that is no exit.
        """
        return self._exit(layer)(hidden, self.stepper)

    def logits_among(self, layer: int, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Compute the logits of an exit layer for some tokens alone: [rows, width], int64 [rows, K] -> [rows, K]."""
        return logits_among(self._exit(layer).head(self.stepper), self.head_state(layer, hidden), tokens)

    def head_state(self, layer: int, hidden: Tensor) -> Tensor:
        """Return what the LM head reads of the hidden states of exit layer ``layer``: [..., width] -> [..., width]."""
        return self._exit(layer).state(hidden, self.stepper)

    def head_weight(self, layer: int) -> Tensor:
        """Return the weights of the LM head of exit layer ``layer``: [vocabulary, width]."""
        return self._exit(layer).head(self.stepper).weight

    @property
    def shares_head(self) -> bool:
        """Whether one LM head serves all exits, and can read the :meth:`head_state` of several at once."""
        return self.description.adapter != "head"

    @property
    def exits_have_weights(self) -> bool:
        """Whether the exits before layer L have anything to train."""
        return any(True for _ in self.exit_adapters.parameters())

    def _exit(self, layer: int) -> ExitAdapter:
        return self._last_exit if layer == self.num_layers else self.adapter(layer)

    def adapter(self, layer: int) -> ExitAdapter:
        """Return the adapter of exit layer ``layer`` < L. Raises UserError at any other layer."""
        if str(layer) not in self.exit_adapters:
            raise UserError(f"layer {layer} has no exit adapter; exits: {self.exit_layers}, the last one without")
        return cast(ExitAdapter, self.exit_adapters[str(layer)])

    @checked
    def add_branch(self, layer: int, spec: BranchSpec) -> Branch:
        """Put an untrained branch, a decoder layer of its own, behind exit layer ``layer`` < L (or replace it).

        Rules go on reading the exit's adapter. Raises UserError at any other layer, and where there are closing layers.
        """
        self.adapter(layer)
        if self.last_layers:
            raise UserError("a branch leads from an exit to the LM head, and so do closing layers: have one of the two")
        branch = Branch(spec, layer, self.stepper).to(self.device, self.dtype).eval()
        self.branches[str(layer)] = branch
        self.description.branches[layer] = spec
        return branch

    def branch(self, layer: int) -> Branch:
        """Return the branch at exit layer ``layer``. Raises UserError where there is none."""
        if not self.has_branch(layer):
            raise UserError(f"exit layer {layer} has no branch; those that have: {list(self.description.branches)}")
        return cast(Branch, self.branches[str(layer)])

    def has_branch(self, layer: int) -> bool:
        """Whether exit layer ``layer`` has a branch."""
        return str(layer) in self.branches

    @checked
    def add_lora(self, rank: Positive = 16, targets: Sequence[str] | None = None, seed: int = 0) -> None:
        """Add a trainable low-rank path to some modules of every layer; it changes nothing until it is trained.

        Layer L reads the adapted layers too. ``targets`` are the last parts of the modules' names, by default the
        projections of the attention's queries and values, or the joint projection where there is one.

        Raises UserError without peft (the extra ``lora``), for targets that the backbone lacks, a rank below 1, and
        where there is LoRA already.
        """
        if self.lora_weights:
            raise UserError("this decoder has LoRA already; merge_lora() it before adding another")
        spec = LoraSpec(rank, self.stepper.lora_targets if targets is None else tuple(targets))
        with new_weights(seed):
            inject_lora(self.backbone, spec)
        self.description.lora = spec
        self.eval()

    def merge_lora(self) -> None:
        """Add what LoRA has learned to the backbone's weights, and remove it."""
        merge_lora_weights(self.backbone)
        self.description.lora = None

    @property
    def lora_weights(self) -> tuple[str, ...]:
        """Names of LoRA's weights; empty without LoRA."""
        return tuple(name for name, _ in self.named_parameters() if is_lora(name))

    @checked
    def encode(self, prompts: Texts, max_tokens: Positive | None = None, keep: Keep = "end") -> list[list[int]]:
        """Tokenise prompts, with the special tokens that the tokenizer adds, or in its chat template.

        ``max_tokens`` cuts each to this many tokens, the special ones included, which are never cut; ``keep`` names the
        end that is kept. Raises UserError for an empty prompt, and where the special tokens alone are too many.
        """
        special = self.tokenizer.num_special_tokens_to_add()
        if max_tokens is not None and max_tokens <= special:
            raise UserError(f"prompts cannot be cut to {max_tokens} tokens: the tokenizer adds {special} of its own")
        if self.description.chat_template == "auto" and self.tokenizer.chat_template:
            if empty := [place for place, prompt in enumerate(prompts, start=1) if not prompt.strip()]:
                raise UserError(f"prompt {empty[0]} of {len(prompts)} is empty: there is nothing to answer")
            return [fit_prompt(self._in_chat, prompt, max_tokens, keep) for prompt in prompts]
        self.tokenizer.truncation_side = "left" if keep == "end" else "right"
        options = {} if max_tokens is None else {"truncation": True, "max_length": max_tokens}
        rows = [self.tokenizer(prompt, verbose=False, **options)["input_ids"] for prompt in prompts]
        for place, row in enumerate(rows, start=1):
            if len(row) <= special:
                raise UserError(f"prompt {place} of {len(rows)} is empty: there is nothing to go on from")
        return rows

    def _in_chat(self, prompt: str) -> list[int]:
        message = [{"role": "user", "content": str(prompt)}]
        with reading("the chat template"):
            return self.tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False)

    def check_tokens(self, tokens: Sequence[int], what: str) -> None:
        """Raise UserError unless all tokens are in the vocabulary; ``what`` names them in the message."""
        if not all(isinstance(token, int) and 0 <= token < self.stepper.vocabulary for token in tokens):
            raise UserError(f"{what} has tokens that are not integers in 0..{self.stepper.vocabulary - 1}")

    def decode(self, tokens: Sequence[int] | Tensor) -> str:
        """Return the text of some tokens [T], without special tokens."""
        return self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def stock_logits(self, tokens: Tensor, padding_mask: Tensor) -> Tensor:
        """Run the stock model's own forward: int64 [rows, tokens] -> [rows, tokens, vocabulary].

        ``padding_mask`` is bool [rows, tokens], True where there is a real token; logits of padding mean nothing.
        Raises UserError for rows that are longer than the model can read.
        """
        self.stepper.check_length(tokens.shape[1])
        mask, positions = padding_mask.long(), positions_of(padding_mask)
        return self.backbone(input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=False).logits

    def exit_states(self, tokens: Tensor, padding_mask: Tensor, exiting: Tensor | None = None) -> ExitStates:
        """Run all layers on all tokens, and return the hidden states at every exit; those of padding mean nothing.

        Args:
            tokens, padding_mask: int64 and bool [rows, tokens], padded on either side.
            exiting: the tokens that run closing layers behind an exit, and not at full depth as a prompt's do: bool
                [rows, tokens].

        Raises UserError for rows that are longer than the model can read, and ValueError where there are closing
        layers and ``exiting`` is not given.
        """
        hidden, context = self.stepper.begin(tokens, padding_mask)
        at_exits = []
        for segment in self.segments:
            hidden = self._run_layers(segment, hidden, context)
            at_exits.append(hidden)
        states = torch.stack(at_exits, dim=2)
        if not self.last_layers:
            return ExitStates(states, states)
        if exiting is None:
            raise ValueError("a decoder with closing layers must know which tokens exit: give exiting")
        exited = (torch.where(exiting.unsqueeze(-1), early, hidden) for early in at_exits)
        answers = [self._run_layers(self.last_layers, state, context) for state in exited]
        return ExitStates(states, torch.stack(answers, dim=2))

    def _run_layers(self, layers: range, hidden: Tensor, context: DecoderContext) -> Tensor:
        for layer in layers:
            hidden = self.run_layer(layer, hidden, context)
        return hidden

    def run_layer(self, layer: int, hidden: Tensor, context: DecoderContext) -> Tensor:
        """Run layer ``layer`` (1-based) in a pass of whole rows: [rows, tokens, width]; see :meth:`layers_in`."""
        with self._layers_precision():
            return self.stepper.step(layer, hidden, context).to(self.dtype)

    def fingerprint(self, *, with_heads: bool = True) -> str:
        """Return a hash of what a pass gives: weights, exits, configuration, and the version of the engine."""
        return hash_json([self.backbone_fingerprint(), self._hash_weights(with_heads), self.description.adapter])

    def backbone_fingerprint(self) -> str:
        """Return a hash of all that hidden states depend on: adapters and heads are not in it."""
        config = {name: value for name, value in self.backbone.config.to_dict().items() if name != "_name_or_path"}
        versions = [torch.__version__, transformers.__version__]
        weights = hash_tensors(dict(self.backbone.named_parameters()))
        parts = [weights, config, self.exit_layers, self.device.type, *versions, ENGINE_VERSION["generation"]]
        parts += [len(self.last_layers)] if self.last_layers else []
        parts += ["chat"] if self.description.chat_template == "auto" else []  # caches of texts are found by prompts
        return hash_json(parts)

    def _own_weights(self) -> dict[str, Tensor]:
        weights = self.state_dict()
        return {name: tensor for name, tensor in weights.items() if is_lora(name) or not name.startswith("backbone.")}

    def _try_out(self) -> Tensor:
        if not all(isinstance(token, int) for token in self.end_tokens):
            raise ValueError(f"the tokens that end a text must be numbers, not {set(self.end_tokens)}")
        tokens = torch.tensor([[0, 1]], device=self.device)
        real = torch.ones_like(tokens, dtype=torch.bool)
        states = self.exit_states(tokens, real, exiting=real).answer_states.unbind(dim=2)
        return torch.stack([self.logits(t, state) for t, state in zip(self.exit_layers, states, strict=True)])

    def _save_backbone(self, folder: Path) -> None:
        """Write the backbone if it was trained or came from such a folder; else its name and hash are enough."""
        current = hash_backbone(self.backbone)
        if current != self.description.backbone_hash:
            self.description.with_backbone = True
        if self.description.with_backbone:
            self.description.backbone_hash = current
            weights = base_weights(self.backbone.state_dict())
            self.backbone.save_pretrained(folder / BACKBONE_FOLDER, state_dict=weights)

    @classmethod
    def _without_weights(
        cls, folder: Path, description: DecoderDescription, weights: dict[str, Tensor], backbone: str | Path | None
    ) -> Self:
        from consistentee.backbones.catalog import resolve_decoder

        name = str(backbone or description.backbone_name)
        try:
            source = str(folder / BACKBONE_FOLDER) if description.with_backbone else resolve_decoder(name)
        except UserError as error:
            raise UserError(
                f"{folder} was saved without its backbone, which cannot be found: {error}; name its folder "
                "with from_pretrained(..., backbone=DIRECTORY)"
            ) from error
        stock = _load_backbone(source)
        if hash_backbone(stock) != description.backbone_hash:
            raise UserError(
                f"the backbone {source} is not the one that the exits of {folder} were trained on: its weights differ; "
                "give the right one with from_pretrained(..., backbone=DIRECTORY), or train the exits again"
            )
        tokenizer = cls._saved_tokenizer(folder)
        model = cls(decoder_stepper_for(stock), tokenizer, description)
        if description.lora is not None:
            model.add_lora(description.lora.rank, description.lora.targets)
        for layer, spec in description.branches.items():
            model.add_branch(layer, spec)
        return model


class DecoderStack(MultiExitDecoder):
    """Layers 1 to e of a decoder, and the branch at exit layer e as its last layer, e + 1, with the branch's norm.

    All weights are the decoder's own. The only exit is the last, so that every token goes through the branch. Raises
    UserError where ``exit_layer`` has no branch.
    """

    def __init__(self, model: MultiExitDecoder, exit_layer: int) -> None:
        self._branches: list[Branch] = [model.branch(exit_layer)]  # in a list, so that it stays the decoder's own
        layers = [model.stepper.layer_module(layer) for layer in range(1, exit_layer + 1)]
        stepper = model.stepper.over([*layers, self._branches[0].layer], self._branches[0].norm)
        description = replace(model.description, exit_layers=(exit_layer + 1,), branches={}, heads={})
        super().__init__(stepper, model.tokenizer, description)

    def train(self, mode: bool = True) -> "DecoderStack":
        """Set training or evaluation, for the branch too, which is no submodule here."""
        super().train(mode)
        for branch in self._branches:
            branch.train(mode)
        return self

    def backbone_fingerprint(self) -> str:
        return hash_json([super().backbone_fingerprint(), hash_tensors(self._branches[0].state_dict())])

"""What a model is compared with: the answers of the same model without exits, and the layers that really ran.

The one place to change where a method's model is more than one stock encoder.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from benchmarks.contract.watching import watched_calls
from consistentee.backbones.encoders import stepper_for
from consistentee.backbones.token_exits import TokenExitStepper
from consistentee.data.encoding import Encoding
from consistentee.engine.classify import Predictions, stock_encoded
from consistentee.models.encoder.multi_exit_model import MultiExitModel
from consistentee.traces.instance_trace import Trace


def reference_logits(model: MultiExitModel, encodings: Sequence[Encoding], batch_size: int) -> Tensor:
    """Return the logits [N, classes] of the model without exits: the stock backbone's own forward.

    Where tokens exit by themselves: the stock layers, run on all tokens, with the states of exited ones put back.
    """
    stepper = model.stepper
    if not isinstance(stepper, TokenExitStepper):
        return stock_encoded(model, encodings, batch_size=batch_size)
    starts = range(0, len(encodings), batch_size)
    return torch.cat([_with_exited_tokens_put_back(model, stepper, encodings[i : i + batch_size]) for i in starts])


@torch.no_grad()
def _with_exited_tokens_put_back(
    model: MultiExitModel, stepper: TokenExitStepper, encodings: Sequence[Encoding]
) -> Tensor:
    stock, batch = stepper_for(model.backbone), model.collate(encodings)
    exits = stepper.token_exits.schedule[batch.input_ids].unsqueeze(-1)
    hidden, context = stock.begin(batch)
    for layer in range(1, model.num_layers + 1):
        hidden = torch.where(exits >= layer, stock.step(layer, hidden, context), hidden)
    return model.classify_pooled(model.num_layers, model.pool(model.num_layers, hidden, batch.padding_mask))


@contextmanager
def counted_work(model: MultiExitModel) -> Iterator[list[int]]:
    """Count the rows of every call of a layer, by hooks on the stock modules: their sum is the layers that ran.

    Where tokens exit by themselves: the tokens that a layer updates, which padding joins unless rows run one by one.
    """
    counts: list[int] = []
    layers = range(1, model.num_layers + 1)
    stepper = model.stepper
    counts_tokens = isinstance(stepper, TokenExitStepper)
    if isinstance(stepper, TokenExitStepper):
        modules = [stepper.parts(layer).query for layer in layers]
    else:
        modules = [stepper.layer_module(layer) for layer in layers]

    def count(_: nn.Module, inputs: tuple[Tensor, ...], __: object) -> None:
        counts.append(inputs[0][..., 0].numel() if counts_tokens else len(inputs[0]))

    with watched_calls((module, count) for module in {id(m): m for m in modules}.values()):
        yield counts


def reported_work(model: MultiExitModel, trace: Trace, live: Predictions) -> int:
    """Return what the answers say that ran, in the unit of :func:`counted_work`."""
    if isinstance(model.stepper, TokenExitStepper):
        return round(float((live.layers_run * trace.lengths).sum()))
    return int(live.exit_layers.sum())

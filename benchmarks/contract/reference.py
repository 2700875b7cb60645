"""What a model is compared with: the answers of the same model without exits, and the layers that really ran.

The one place to change where a method's model is more than one stock encoder.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from consistentee.classification import stock_encoded
from consistentee.encoding import Encoding
from consistentee.model import MultiExitModel


def reference_logits(model: MultiExitModel, encodings: Sequence[Encoding], batch_size: int) -> Tensor:
    """Return the logits [N, classes] of the model without exits: the stock backbone's own forward."""
    return stock_encoded(model, encodings, batch_size=batch_size)


@contextmanager
def rows_through_layers(model: MultiExitModel) -> Iterator[list[int]]:
    """Count the rows of every call of a layer, by hooks on the stock modules: their sum is the layers that ran."""
    counts: list[int] = []
    modules = {id(m): m for m in (model.stepper.layer_module(i + 1) for i in range(model.num_layers))}
    hooks = [m.register_forward_hook(lambda _, args, __: counts.append(len(args[0]))) for m in modules.values()]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()

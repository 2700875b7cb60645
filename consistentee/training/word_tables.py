"""Word embeddings in training: of a table of tens of thousands of words, only the rows that the data holds.

A dense gradient, its norm and AdamW pass over the whole table at every step, half the weights of a small encoder, of
which the training rows use a tenth. The other rows get no gradient: all that AdamW does to them is to let them decay.
So they can wait until the end, and what comes out is the same, up to rounding.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from consistentee.data.encoding import Encoding
from consistentee.errors import UserError
from consistentee.models.encoder.multi_exit_model import MultiExitModel

_UNKNOWN = -1


@contextmanager
def only_used_rows(
    model: MultiExitModel, encodings: Sequence[Encoding], trains: tuple[str, ...]
) -> Iterator[list["UsedRows"]]:
    """For the time being, let the word tables that learn be parameters of the rows that some tokens use.

    Args:
        model: changed in place; afterwards its tables are whole again, with what their rows have learned.
        encodings: all rows that the model will read meanwhile. Reading any other token is an error.
        trains: prefixes of the names of the weights that learn.
    """
    padding = model.tokenizer.pad_token_id
    used = torch.tensor(sorted({padding}.union(*(encoding.input_ids for encoding in encodings))), device=model.device)
    tables = [backbone.get_input_embeddings() for backbone in model.backbones]
    learning = {parameter for name, parameter in model.named_parameters() if name.startswith(trains)}
    with ExitStack() as stack:
        yield [stack.enter_context(_cut(table, used)) for table in tables if table.weight in learning]


class UsedRows:
    """A word table while only some of its rows learn.

    Attributes:
        weight: those rows, the table's parameter for the time being.
        rest_decays_to: what the other rows are multiplied by in the end.
    """

    def __init__(self, weight: nn.Parameter) -> None:
        self.weight = weight
        self.rest_decays_to = 1.0


def _places(place: Tensor, tokens: Tensor) -> Tensor:
    """Return the rows of the cut table that hold some tokens. Raises UserError for a token that nobody announced."""
    found = place[tokens]
    if (found == _UNKNOWN).any():
        raise UserError("a loss reads rows that its stage's source does not hold; name them in Stage.also_reads")
    return found


@contextmanager
def _cut(table: nn.Embedding, used: Tensor) -> Iterator[UsedRows]:
    whole, padding_row = table.weight, table.padding_idx
    place = torch.full((len(whole),), _UNKNOWN, device=used.device)
    place[used] = torch.arange(len(used), device=used.device)
    rows = UsedRows(nn.Parameter(whole.detach()[used]))
    hook = table.register_forward_pre_hook(lambda _, inputs: (_places(place, inputs[0]),))
    table.weight = rows.weight
    if padding_row is not None:
        at = int(place[padding_row])
        table.padding_idx = None if at == _UNKNOWN else at  # and not -1, which PyTorch takes for the last row
    try:
        yield rows
    finally:
        hook.remove()
        table.weight, table.padding_idx = whole, padding_row
        with torch.no_grad():
            whole.mul_(rows.rest_decays_to)
            whole[used] = rows.weight.detach()

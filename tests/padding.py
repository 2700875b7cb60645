"""Rows of tokens as one tensor."""

import torch


def pad(rows, side, pad_id=1):
    """Return tokens and padding mask of rows padded on one side."""
    columns = max(map(len, rows))
    tokens = torch.full((len(rows), columns), pad_id)
    mask = torch.zeros(len(rows), columns, dtype=torch.bool)
    for i, row in enumerate(rows):
        place = slice(columns - len(row), columns) if side == "left" else slice(0, len(row))
        tokens[i, place] = torch.tensor(row)
        mask[i, place] = True
    return tokens, mask

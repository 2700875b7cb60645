"""Keep the classification head of a fine-tuned stock model as the last exit, module by module."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from consistentee.backbones.decoders import refuse_decoder_family
from consistentee.backbones.encoders import check_encoder_family
from consistentee.errors import UserError
from consistentee.models.classifiers import InternalClassifier, ReadableLayer

_SUFFIX = "ForSequenceClassification"


def _first_token(stock: Any) -> nn.Module:
    """Undo the pooling of a vector for heads that look up the first token themselves: add a dimension."""
    return nn.Unflatten(1, (1, stock.config.hidden_size))


def _head(stock: Any) -> list[nn.Module]:
    return [_first_token(stock), stock.classifier]


_PARTS: dict[str, Callable[[Any], list[nn.Module]]] = {
    "albert": lambda m: [m.albert.pooler, m.albert.pooler_activation, m.dropout, m.classifier],
    "bert": lambda m: [_first_token(m), m.bert.pooler, m.dropout, m.classifier],
    "deberta-v2": lambda m: [_first_token(m), m.pooler, m.dropout, m.classifier],
    "distilbert": lambda m: [m.pre_classifier, nn.ReLU(), m.dropout, m.classifier],
    "electra": _head,
    "modernbert": lambda m: [m.head, m.drop, m.classifier],
    "mpnet": _head,
    "roberta": _head,
    "xlm-roberta": _head,
}
"""``config.model_type`` -> the modules between the pooled last layer and the logits, in the order they run."""


class KeptHead(InternalClassifier):
    """The own modules of a stock model between its last layer and its logits, such as dense, tanh and projection."""

    def __init__(self, stock: Any) -> None:
        nn.Module.__init__(self)
        self.network = nn.Sequential(*_PARTS[stock.config.model_type](stock))
        self._pools_all = getattr(stock.config, "classifier_pooling", "cls") == "mean"

    def pool(self, hidden: Tensor, padding_mask: Tensor) -> Tensor:
        """Pool the last hidden states [rows, tokens, width] with the operations of the stock model: [rows, width]."""
        if not self._pools_all:
            return hidden[:, 0]
        mask = padding_mask.long()
        return (hidden * mask.unsqueeze(-1)).sum(dim=1) / mask.sum(dim=1, keepdim=True)

    def forward(self, layer: ReadableLayer) -> Tensor:
        return self.network(layer.pooled)


def check_classifier(name: object, config: Any) -> None:
    """Raise UserError unless a configuration is that of a fine-tuned encoder that puts each text into one class."""
    refuse_decoder_family(config.model_type)
    check_encoder_family(config.model_type)
    kind = next(iter(config.architectures or ()), "model without a classification head")
    if not kind.endswith(_SUFFIX):
        raise UserError(
            f"{name} is a {kind}, which does not label whole texts; give a fine-tuned *{_SUFFIX}, "
            "or train one with `consistentee train`"
        )
    asked = config.problem_type or ("regression" if config.num_labels == 1 else "")
    if asked not in ("", "single_label_classification"):
        what = {"regression": "predicts numbers", "multi_label_classification": "gives a text several labels"}[asked]
        raise UserError(f"{name} {what}; exits, and the promise about their loss, are for one label a text")

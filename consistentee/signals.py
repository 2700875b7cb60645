"""Signals: one number for each row, computed from a layer, that a rule compares with its threshold. A public module.

``signals.pyi`` lists its names.
"""

from consistentee.exports import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)

"""Training: the stages that methods share, and the parts for stages of your own. A public module.

``__init__.pyi`` lists its names.
"""

from consistentee.exports import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)

"""Early exiting in language models: the library and the ConsistentEE method. A public module.

Names are imported on first use, so that importing the package costs nothing. ``__init__.pyi`` lists them.
"""

from consistentee.exports import lazy_names

__version__ = "0.2.0"

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)

"""The common harness: tasks, suites, measurement, analysis and the command line.

Names are imported on first use, so that importing the package costs nothing. ``__init__.pyi`` lists them.
"""

from consistentee.exports import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)

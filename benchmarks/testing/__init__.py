"""Checks of what must hold for every method and backbone, on tiny models; and golden cells.

``consistentee check-method`` and ``check-backbone`` run the checks, and so do the project's tests.
"""

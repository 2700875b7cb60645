"""The contract: what must hold for every method, as checks on tiny models, for methods of anybody's own too.

``consistentee check-method`` runs them, and so do the project's tests.
"""

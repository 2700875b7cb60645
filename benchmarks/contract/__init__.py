"""The contract: what must hold for every method, as checks on tiny models that anybody can run on a method of their own.

``consistentee check-method`` runs them, and so do the project's tests.
"""

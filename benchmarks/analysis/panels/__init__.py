"""Results as panels, one a task and backbone, and what is chosen and averaged of their curves."""

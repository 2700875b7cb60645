"""Exit rules, and the views of layers that they read."""

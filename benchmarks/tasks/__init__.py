"""Tasks: one YAML each, and the loader that turns a YAML and its data into splits."""

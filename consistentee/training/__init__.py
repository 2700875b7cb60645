"""The training loop, its recipes, and the stages that methods share."""

"""Backbones: where a pretrained model comes from, and how it runs one layer at a time."""

"""Local training and evaluation: the one training step that every journey uses."""

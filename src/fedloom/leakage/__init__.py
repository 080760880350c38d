"""Attacks on privacy, so that people see why updates are protected: what a client's update and a model give away."""

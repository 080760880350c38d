"""Probes: the inputs that members are looked at with - unlabelled ones, or synthetic ones."""

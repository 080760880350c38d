"""Checkup: members that are broken, or speak another language than the others."""

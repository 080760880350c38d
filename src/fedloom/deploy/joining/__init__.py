"""A client's side of a run."""

"""Data: sources that are known by name, readers of your own files, parts that are handed out."""

from fedloom.data.dataset import Dataset
from fedloom.data.sources import load as load_data
from fedloom.data.sources import load_evaluation, load_pair

__all__ = ["Dataset", "load_data", "load_evaluation", "load_pair"]

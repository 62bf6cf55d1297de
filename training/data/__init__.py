"""Datasets: CUB-200-2011, Stanford Cars-196, a manifest or a plain image folder, each in parts that never overlap."""

from training.data.dataset import Dataset, check_outside, open_dataset
from training.data.division import Shares
from training.data.index import Sample

__all__ = ["Dataset", "Sample", "Shares", "check_outside", "open_dataset"]

"""Datasets: CUB-200-2011, Stanford Cars-196 or a plain image folder, each in parts that never overlap."""

from training.data.dataset import Dataset, open_dataset
from training.data.index import Sample

__all__ = ["Dataset", "Sample", "open_dataset"]

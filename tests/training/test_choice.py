"""Some of a part's samples: evenly over it, and so over the classes."""

from training.data import open_dataset
from training.data.choice import spread


def test_a_few_images_are_spread_over_the_classes_and_all_are_all(tiny_birds):
    samples = open_dataset(tiny_birds).parts["test"]
    assert len(samples) == 12
    assert [sample.label for sample in spread(samples, 3)] == [0, 1, 2]
    assert len(set(spread(samples, 7))) == 7
    assert spread(samples, 12) == spread(samples, 400) == samples

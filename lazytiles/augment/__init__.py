"""Random transforms: arrays and a `Generator` in, arrays out."""

from lazytiles.augment.batch import Augment, ImageFunction, as_transform, with_boxes
from lazytiles.augment.boxes import Boxes, scaled_boxes
from lazytiles.augment.recipe import Recipe
from lazytiles.augment.transform import random_transform, random_transform_stack

__all__ = [
    "Augment",
    "Boxes",
    "ImageFunction",
    "Recipe",
    "as_transform",
    "random_transform",
    "random_transform_stack",
    "scaled_boxes",
    "with_boxes",
]

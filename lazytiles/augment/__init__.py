"""Random transforms: arrays and a `Generator` in, arrays out."""

from __future__ import annotations

from lazytiles.augment.batch import Augment, ImageFunction
from lazytiles.augment.recipe import Recipe
from lazytiles.augment.transform import random_transform, random_transform_stack

__all__ = ["Augment", "ImageFunction", "Recipe", "random_transform", "random_transform_stack"]

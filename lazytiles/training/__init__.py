"""Sources in step to batches, and batches to a trainer."""

from lazytiles.training.batches import Inputs, Scaling, as_sources, with_tabular
from lazytiles.training.flow import BatchFlow
from lazytiles.training.tandem import read_rows

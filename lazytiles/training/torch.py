"""Samples for a `torch.utils.data.DataLoader`, a whole planned batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lazytiles.errors import require
from lazytiles.training.batches import parts_of
from lazytiles.training.tandem import Tandem
from lazytiles.training.transforms import check_parts
from lazytiles.trees import Structure, leaves, rebuilt

torch: Any = require("torch", extra="torch")


class _Samples(list[Structure]):
    """The samples of a batch, as views of the batch that they were read as."""

    def __init__(self, whole: Structure) -> None:
        super().__init__(rebuilt(whole, iter(sample)) for sample in zip(*map(torch.unbind, leaves(whole)), strict=True))
        self.whole = whole


class TorchTiles(torch.utils.data.Dataset):
    """A map-style dataset whose batches are planned reads: each segment is decoded once for a batch.

    A `DataLoader` asks for the samples of a batch together (``__getitems__``). With
    ``collate_fn=dataset.collate`` the batch goes on as it was read; without, torch stacks its samples again.

    Parameters
    ----------
    data : one source, or tuples, lists and dicts of sources of one length (N, ...)
    transform : batch -> batch, applied to arrays before they become tensors; all parts come back, with as many samples
    threads : threads that read; None takes the setting of that name

    Notes
    -----
    Pickles without open files: the processes of a loader open their own. Start them by "spawn" or
    "forkserver".

    >>> dataset = TorchTiles((np.zeros((5, 2), "uint8"), np.arange(5)))
    >>> loader = torch.utils.data.DataLoader(dataset, batch_size=2, collate_fn=dataset.collate)
    >>> [tuple(x.shape) for x, y in loader]
    [(2, 2), (2, 2), (1, 2)]
    """

    def __init__(
        self, data: Structure, *, transform: Callable[[Structure], Structure] | None = None, threads: int | None = None
    ) -> None:
        self._tandem = Tandem(data, threads=threads)
        self._tandem.verify()
        self._transform = transform

    def __len__(self) -> int:
        """Samples."""
        return self._tandem.samples

    def __getitem__(self, index: int) -> Structure:
        """One sample, in tensors without a batch axis."""
        return self.__getitems__([range(len(self))[index]])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Structure]:
        """The samples of a batch, in one planned read."""
        batch = self._tandem.read(np.asarray(indices, dtype=np.int64))
        if self._transform is not None:
            given, batch = batch, self._transform(batch)
            check_parts(given, batch, len(indices))
        return _Samples(rebuilt(batch, (torch.from_numpy(np.asarray(array)) for array in leaves(batch))))

    @staticmethod
    def collate(samples: list[Structure]) -> Structure:
        """The batch that the samples were read as.

        Parameters
        ----------
        samples : what ``__getitems__`` gave
        """
        return samples.whole if isinstance(samples, _Samples) else torch.utils.data.default_collate(samples)


def to_torch(
    x: Structure,
    y: Structure = None,
    *,
    transform: Callable[[Structure], Structure] | None = None,
    threads: int | None = None,
) -> TorchTiles:
    """A dataset of ``(x, y)``, or of ``x`` alone, for a torch `DataLoader`.

    Parameters
    ----------
    x : a `MultiSourceArray` (its labels are `y`, its ``tabular`` a second input), a source, or a tuple or
        dict of sources
    y : targets, in the same forms
    transform, threads : as in `TorchTiles`

    Raises
    ------
    TypeError : sources of text or objects, or something that is no source
    LazyTilesError : a window or file of `x` that cannot be read

    >>> to_torch(np.zeros((5, 2), "float32"), np.arange(5))[4]
    (tensor([0., 0.]), tensor(4))
    """
    parts = parts_of(x, y)
    return TorchTiles(parts if len(parts) > 1 else parts[0], transform=transform, threads=threads)

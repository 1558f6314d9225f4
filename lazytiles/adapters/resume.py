"""Callbacks of `KerasAdapter`: which epoch it is, and going on after a kill with the very next batch."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any, Literal

from lazytiles.errors import require

keras: Any = require("keras", extra="keras")


class EpochCallback(keras.callbacks.Callback):
    """Tells a `KerasAdapter` the epoch that `fit` is in, before any of its batches is read."""

    def __init__(self, adapter: Any) -> None:
        super().__init__()
        self.adapter = adapter

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Keras calls this before the epoch's first request."""
        self.adapter.set_epoch(epoch)

    def on_train_end(self, logs: Any = None) -> None:
        """Keras calls this when training is over."""
        self.adapter.close()


class ResumeCallback(EpochCallback):
    """Saves the model with the place in the data; a `fit` that finds such a backup goes on after it.

    The resumed epoch has only the batches that are left, so the whole training sees each batch once, as
    without the interruption. The backup is removed when training ends.

    Parameters
    ----------
    adapter : what `fit` is given
    folder : where the backup is
    save_freq : batches from one backup to the next, or "epoch"

    Notes
    -----
    Weights and optimizer state are restored; running means of metrics in the resumed epoch begin anew.
    ``state.json`` is replaced last, so a kill at any moment leaves the backup before it whole.
    """

    def __init__(
        self,
        adapter: Any,
        folder: str | os.PathLike[str],
        *,
        save_freq: int | Literal["epoch"] = "epoch",
    ) -> None:
        super().__init__(adapter)
        if save_freq != "epoch" and save_freq < 1:
            raise ValueError(f"save_freq is a number of batches or 'epoch', not {save_freq!r}")
        self.folder = Path(folder)
        self.save_freq = save_freq
        self._epoch = 0
        self._before = 0  # batches of this epoch that an earlier process has done
        self._saved = 0  # batches of this epoch that are in the backup
        self._values: list[tuple[Any, Any]] = []  # what the end of the resumed epoch must not change
        self._quiet: warnings.catch_warnings[None] | None = None

    def on_train_begin(self, logs: Any = None) -> None:
        """Restore the backup, if there is one."""
        try:
            saved = json.loads((self.folder / "state.json").read_text())
        except FileNotFoundError:
            return
        self.adapter.load_state_dict(saved["flow"])
        if not self.model.optimizer.built:
            self.model.optimizer.build(self.model.trainable_variables)
        self.model.load_weights(self.folder / saved["weights"])
        self.model._initial_epoch = saved["flow"]["epoch"]
        self._epoch, self._before = saved["flow"]["epoch"], saved["flow"]["batch"]

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Begin an epoch where the backup ended."""
        super().on_epoch_begin(epoch)
        self._before = self._before if epoch == self._epoch else 0
        self._epoch, self._saved = epoch, self._before
        if self._before:
            # Keras takes the shorter epoch for a data set that ran dry.
            self._quiet = warnings.catch_warnings()
            self._quiet.__enter__()
            warnings.filterwarnings("ignore", message="Your input ran out of data")

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Save after every `save_freq` batches."""
        done = self._before + batch + 1
        if self._before and done == len(self.adapter) and keras.backend.backend() == "tensorflow":
            # Asked for a batch that is not there, its graph still advances step counters and seeds.
            self._values = [(v, keras.ops.copy(v.value)) for v in self._variables()]
        if self.save_freq != "epoch" and done - self._saved >= self.save_freq:
            self._save(done)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Save after every epoch."""
        self._calm()
        for variable, value in self._values:
            variable.assign(value)
        self._values = []
        self._save(len(self.adapter))

    def on_train_end(self, logs: Any = None) -> None:
        """Remove the backup of a training that is done."""
        super().on_train_end()
        self._calm()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _variables(self) -> list[Any]:
        return [*self.model.variables, *self.model.optimizer.variables]

    def _calm(self) -> None:
        if self._quiet is not None:
            self._quiet.__exit__(None, None, None)
            self._quiet = None

    def _save(self, done: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        flow = self.adapter.state_dict(epoch=self._epoch, step=done)
        name = f"{flow['epoch']}-{flow['batch']}.weights.h5"
        self.model.save_weights(self.folder / name, overwrite=True)
        part = self.folder / "state.json.partial"
        part.write_text(json.dumps({"flow": flow, "weights": name}))
        part.replace(self.folder / "state.json")
        for old in self.folder.glob("*.weights.h5"):
            if old.name != name:
                old.unlink()
        self._saved = done

"""Callbacks of `KerasAdapter`: which epoch it is, and going on after a kill with the very next batch."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import threading
import warnings
import zlib
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Literal

from lazytiles.errors import StoreError, require

keras: Any = require("keras", extra="keras")

_MODEL = re.compile(r"\d+-\d+")  # the folder of a model's backup, by epoch and batch


class EpochCallback(keras.callbacks.Callback):
    """Tells a `KerasAdapter` the epoch that `fit` is in, before any of its batches is read.

    A deep copy is of the same adapter.
    """

    def __init__(self, adapter: Any) -> None:
        super().__init__()
        self.adapter = adapter

    def __deepcopy__(self, memo: dict[int, Any]) -> EpochCallback:
        memo.setdefault(id(self.adapter), self.adapter)
        twin = copy.copy(self)
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Keras calls this before the epoch's first request."""
        self.adapter._server.set_epoch(epoch, "trainer")

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Keras calls this after the epoch's validation."""
        self.adapter._server.set_epoch(epoch + 1, "nobody")

    def on_train_end(self, logs: Any = None) -> None:
        """Keras calls this when training is over."""
        self.adapter.close()


class ResumeCallback(EpochCallback):
    """Saves the model with the place in the data; a `fit` that finds such a backup goes on after it.

    The resumed epoch has only the batches that are left, so the whole training sees each batch once, as
    without the interruption. The backup is removed when training ends; see `KerasAdapter.resume_callback`.

    Weights and optimizer state are restored, by Keras' own `BackupAndRestore`; running means of metrics in the resumed
    epoch begin anew. ``state.json`` is replaced last, so a kill at any moment leaves the backup before it whole.

    Which batches were trained on is known from the order in which they were asked for. Where this cannot be told (on
    TensorFlow, after another callback has passed over the same adapter), nothing is saved before the epoch ends.
    """

    def __init__(self, adapter: Any, folder: str | os.PathLike[str], *, save_freq: int | Literal["epoch"]) -> None:
        super().__init__(adapter)
        if save_freq != "epoch" and save_freq < 1:
            raise ValueError(f"save_freq is a number of batches or 'epoch', not {save_freq!r}")
        self.folder = Path(folder)
        self.save_freq = save_freq
        self._before: list[int] = []  # batches of this epoch that an earlier process has done
        self._trained: list[int] = []  # those that were asked for since by the trainer, in its order
        self._epoch = 0
        self._batch = -1  # the last one that ended
        self._heard = 0  # requests that were looked through for them
        self._saved = 0  # batches of this epoch that are in the backup
        self._values: list[tuple[Any, Any]] = []  # what the end of the resumed epoch must not change
        self._quiet = ExitStack()  # until the end of an epoch

    def on_train_begin(self, logs: Any = None) -> None:
        """Restore the backup, if there is one.

        Raises
        ------
        LazyTilesError : the backup is damaged, or of another model, other samples or other options
        """
        saved = _read(self.folder)
        if saved is None:
            return
        self.adapter.load_state_dict(saved["flow"])
        try:
            self._backup(saved["model"]).on_train_begin()
        except Exception as error:
            raise StoreError(
                f"the backup {self.folder} does not fit this model ({error}); remove the folder to begin anew"
            ) from error

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Begin an epoch where the backup ended."""
        super().on_epoch_begin(epoch)
        self._before, self._trained, self._heard = list(self.adapter._server.done), [], 0
        self._epoch, self._batch, self._saved = epoch, -1, len(self._before)
        if self._before:
            # Keras takes the shorter epoch for a data set that ran dry.
            self._quiet.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", message="Your input ran out of data")

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Write down what was asked for since the step before."""
        self._listen(batch, begins=True)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Save after every `save_freq` batches."""
        self._listen(batch, begins=False)
        done = len(self._before) + batch + 1
        if self._before and done == len(self.adapter) and keras.backend.backend() == "tensorflow":
            # Asked for a batch that is not there, its graph still advances step counters and seeds.
            variables = [*self.model.variables, *self.model.optimizer.variables]
            self._values = [(v, keras.ops.copy(v.value)) for v in variables]
        trained = self._trained[: batch + 1]
        is_due = self.save_freq != "epoch" and done - self._saved >= self.save_freq
        # After the last batch comes the end of the epoch, which is part of it and is saved itself.
        if is_due and done < len(self.adapter) and len({*trained}) == batch + 1:
            self._save(self.adapter._state_of(self._epoch, [*self._before, *trained]))
            self._saved = done

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Save after every epoch."""
        self._quiet.close()
        for variable, value in self._values:
            variable.assign(value)
        self._values = []
        self._save(self.adapter._state_of(epoch + 1, []))
        super().on_epoch_end(epoch)

    def on_train_end(self, logs: Any = None) -> None:
        """Remove the backup of a training that is done."""
        super().on_train_end()
        self._quiet.close()
        for name in ("state.json", "state.json.partial"):
            (self.folder / name).unlink(missing_ok=True)
        _remove_models(self.folder, but="")
        with suppress(OSError):  # What is not ours stays.
            self.folder.rmdir()

    def _listen(self, batch: int, *, begins: bool) -> None:
        """Find out which of the steps that were asked for are the trainer's, from when and where each backend asks."""
        server, backend = self.adapter._server, keras.backend.backend()
        new = server.asked[self._heard :]
        self._heard += len(new)
        if backend == "tensorflow":
            # In threads of its own, as others do that pass over the adapter, which have begun it too.
            here = threading.get_ident()
            self._trained += [step for step, thread in new if thread != here] if server.begins < 2 else []
        elif backend == "torch" and begins:
            # Last of all before the step, after what callbacks look at when the step before has ended.
            self._trained += [step for step, _ in new[-1:]]
        elif backend == "jax" and not begins:
            # First of all in the step; on an accelerator always one ahead.
            count = batch - self._batch
            if self._batch < 0 and require("jax", extra="jax").default_backend() != "cpu":
                count += 1
            self._trained += [step for step, _ in new[:count]]
            self._batch = batch

    def _save(self, state: dict[str, Any]) -> None:
        name = f"{state['epoch']}-{state['batch']}"
        # To Keras, the epoch before has ended: what it restores begins with this one.
        self._backup(name).on_epoch_end(state["epoch"] - 1)
        part = self.folder / "state.json.partial"
        part.write_text(json.dumps({"flow": state, "model": name, "digest": _digest(self.folder / name)}))
        part.replace(self.folder / "state.json")
        _remove_models(self.folder, but=name)

    def _backup(self, name: str) -> Any:
        backup = keras.callbacks.BackupAndRestore(str(self.folder / name), delete_checkpoint=False)
        backup.set_model(self.model)
        return backup


def _read(folder: Path) -> dict[str, Any] | None:
    """What a backup says of itself, if its files are those that were written with it; None where there is no backup."""
    path = folder / "state.json"
    if not os.path.lexists(path):
        return None
    what = "no file"
    try:
        if path.is_file():
            what = "not what was written"
            saved = json.loads(path.read_bytes())
            named = _MODEL.fullmatch(saved["model"]) and isinstance(saved["flow"], dict)
            if named and _digest(folder / saved["model"]) == saved["digest"]:
                return dict(saved)
            what = "not of one piece with the weights beside it"
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        what = f"{what} ({error})"
    raise StoreError(f"the backup {folder} is damaged: its state.json is {what}; remove the folder to begin anew")


def _digest(model: Path) -> str:
    """A CRC-32 over the names and contents of the files of a model's backup."""
    crc = 0
    for path in sorted(model.iterdir()):
        if not path.is_file():
            raise ValueError(f"{path.name} is no file")
        crc = zlib.crc32(path.name.encode(), crc)
        with path.open("rb") as file:
            while piece := file.read(2**20):
                crc = zlib.crc32(piece, crc)
    return f"{crc:08x}"


def _remove_models(folder: Path, *, but: str) -> None:
    for old in folder.iterdir() if folder.is_dir() else ():
        if _MODEL.fullmatch(old.name) and old.name != but and not old.is_symlink():
            shutil.rmtree(old, ignore_errors=True)

"""Windows of big TIFFs as one lazy NumPy array: shuffled, labelled, and fed to Keras.

The public names are those of the stub beside this file; each is imported from its module when it is first used, so
that ``import lazytiles`` loads no framework.

>>> import lazytiles as lt
>>> "open_tiles" in dir(lt)
True
"""

from __future__ import annotations

import importlib
import re
import sys

from lazytiles.verbs import offer

__version__ = "0.2.0"

if sys.platform == "win32":
    raise ImportError(
        "lazytiles does not run on Windows, which lacks positioned reads (os.pread), fcntl and resource; "
        "it works in WSL, the Windows Subsystem for Linux: https://learn.microsoft.com/windows/wsl/install"
    )

# Where the public names are, as the stub beside this file tells editors: {"Region": "lazytiles.images.region", …}
_STUB = __spec__.loader.get_data(f"{__path__[0]}/__init__.pyi").decode()
_PUBLIC = {name: module for module, name in re.findall(r"^from (\S+) import (\w+)", _STUB, re.MULTILINE)}
__all__ = sorted(_PUBLIC)

# What arrays can do beside reading, by the rooms that do it.
offer(
    {
        "export_tiffs": "lazytiles.manifests.tile_files",
        "persist": "lazytiles.stores.saving",
        "plot_region": "lazytiles.reports.plots",
        "plot_tiles": "lazytiles.reports.plots",
        "region_to_dask": "lazytiles.arrays.graphs",
        "statistics": "lazytiles.reports.statistics",
        "tiles_to_dask": "lazytiles.arrays.graphs",
        "to_torch": "lazytiles.training.torch",
    }
)


def __getattr__(name: str) -> object:
    """The public object of that name, imported now and kept (PEP 562)."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    is_module = _PUBLIC[name] == __name__
    found = importlib.import_module(f"{__name__}.{name}" if is_module else _PUBLIC[name])
    value = found if is_module else getattr(found, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

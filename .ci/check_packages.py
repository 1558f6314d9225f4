"""Look into the wheel and the source distribution in a folder: what must be there is, and nothing else is."""

import sys
import tarfile
import zipfile
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "lazytiles"


def main(folder: Path) -> None:
    """Raise where something is missing, or does not belong there."""
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as file:
        inside = set(file.namelist())
        (metadata,) = [name for name in inside if name.endswith("METADATA")]
        facts = file.read(metadata).decode()
    modules = {
        path.relative_to(PACKAGE.parent).as_posix() for path in PACKAGE.rglob("*.py*") if path.suffix in {".py", ".pyi"}
    }
    modules.add("lazytiles/py.typed")
    missing = modules - inside
    odd = {name for name in inside if not name.startswith("lazytiles")}
    if missing or odd:
        raise SystemExit(f"{wheel.name}: missing {sorted(missing)}, not expected {sorted(odd)}")
    for wanted in (
        "License-Expression: BSD-3-Clause",
        "Requires-Python: >=3.11",
        "Description-Content-Type: text/markdown",
    ):
        if wanted not in facts.splitlines() and wanted.replace("-Expression", "") not in facts.splitlines():
            raise SystemExit(f"{wheel.name}: its metadata lack {wanted}")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for wanted in (
        "README.md",
        "CHANGELOG.md",
        "CITATION.cff",
        "SECURITY.md",
        "LICENSE",
        "docs/index.md",
        "conftest.py",
    ):
        if wanted not in names:
            raise SystemExit(f"{source.name}: {wanted} is missing")
    sys.stdout.write(f"{wheel.name}: {len(inside)} files; {source.name}: {len(names)} files\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

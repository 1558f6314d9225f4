"""Files behind addresses: the same pixels in few requests, whatever a server does to us."""

from __future__ import annotations

import os
import pickle
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
import tifffile

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")

from lazytiles.config import configure, settings  # noqa: E402
from lazytiles.errors import LazyTilesError, ManifestError, RegionError  # noqa: E402
from lazytiles.images import remote as module  # noqa: E402
from lazytiles.images.cache import clear_cache  # noqa: E402
from lazytiles.images.region import open_region  # noqa: E402
from lazytiles.images.remote import BLOCK_BYTES, remote  # noqa: E402
from lazytiles.manifests.checks import check  # noqa: E402
from lazytiles.manifests.grids import make_grid  # noqa: E402
from lazytiles.manifests.tiles import open_tiles  # noqa: E402

pytestmark = pytest.mark.leaks("fsspec keeps its thread and its connections")


class Server(ThreadingHTTPServer):
    """Serves a folder with byte ranges; can be slow, fail, lie, or know no ranges."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.latency_s = 0.0
        self.fail_every = 0
        self.extra_length = 0
        self.ranges = True
        self.cut_bodies = False
        self.etags = True
        self.refuses = 0
        self.seen: list[tuple[str, str]] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is none."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        server = self.server
        with server.lock:
            server.seen.append((self.command, self.path))
            number = len(server.seen)
        time.sleep(server.latency_s)
        path = server.folder / unquote(self.path.partition("?")[0]).lstrip("/")
        if server.refuses:
            self.say(server.refuses, b"no", {})
        elif server.fail_every and number % server.fail_every == 0:
            self.say(503, b"later", {})
        elif not path.is_file():
            self.say(404, b"no", {})
        else:
            self.send_file(path, body=body)

    def send_file(self, path: Path, *, body: bool) -> None:
        server = self.server
        data, status = path.read_bytes(), 200
        headers = {"Accept-Ranges": "bytes" if server.ranges else "none"}
        if server.etags:
            headers["ETag"] = f'"{path.stat().st_mtime_ns}"'
        else:
            headers["Last-Modified"] = formatdate(path.stat().st_mtime, usegmt=True)
        asked = self.headers.get("Range")
        size = len(data) + server.extra_length
        if asked and server.ranges and body:
            start, _, stop = asked.removeprefix("bytes=").partition("-")
            if int(start) >= len(data):
                self.say(416, b"", {})
                return
            data, status = data[int(start) : int(stop or len(data)) + 1], 206
            headers["Content-Range"] = f"bytes {start}-{int(start) + len(data) - 1}/{size}"
            size = len(data)
        self.say(status, data if body else b"", headers, size)

    def say(self, status: int, data: bytes, headers: dict[str, str], size: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data) if size is None else size))
        self.end_headers()
        if self.server.cut_bodies and len(data) > 100:
            data = data[: len(data) // 2]
            self.close_connection = True
        if self.command != "HEAD":
            self.wfile.write(data)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()
    remote.forget()


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.001)
    before = settings().cache_bytes
    configure(cache_bytes=0)
    clear_cache()
    yield
    configure(cache_bytes=before)
    fsspec.filesystem("memory").store.clear()


LAYOUTS: dict[str, dict[str, Any]] = {
    "tiled": {"tile": (64, 64), "compression": "deflate"},
    "strips": {"rowsperstrip": 8, "compression": "lzw"},
    "planar": {"tile": (64, 64), "compression": "deflate", "planarconfig": "separate"},
    "uncompressed": {"rowsperstrip": 16},
    "big": {"tile": (32, 32), "compression": "zstd", "bigtiff": True},
}


def image(k: int = 0, size: int = 256) -> np.ndarray:
    return np.random.default_rng(k).integers(0, 255, (size, size, 3), dtype=np.uint8)


def write(path: Path, k: int = 0, size: int = 256, layout: str = "tiled") -> np.ndarray:
    data = image(k, size)
    path.parent.mkdir(parents=True, exist_ok=True)
    options = LAYOUTS[layout]
    if options.get("planarconfig") == "separate":
        tifffile.imwrite(path, np.moveaxis(data, -1, 0), photometric="rgb", **options)
    else:
        tifffile.imwrite(path, data, photometric="rgb", **options)
    return data


def to_memory(folder: Path) -> None:
    memory = fsspec.filesystem("memory")
    for path in folder.rglob("*.tif"):
        memory.pipe_file(f"/{path.relative_to(folder)}", path.read_bytes())


def table(regions: int = 8, each: int = 4, window: int = 40, size: int = 256) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    region = np.repeat(np.arange(regions), each)
    y, x = rng.integers(0, size - window, (2, len(region)))
    names = {"tile_id": [f"t{k}" for k in range(len(region))], "region_id": [f"{k:03}" for k in region]}
    return pd.DataFrame({**names, "xmin": x, "ymin": y, "xmax": x + window, "ymax": y + window})


def crops(rows: pd.DataFrame, images: list[np.ndarray]) -> np.ndarray:
    boxes = zip(rows.region_id.astype(int), rows.xmin, rows.ymin, rows.xmax, rows.ymax, strict=True)
    return np.stack([images[k][y0:y1, x0:x1] for k, x0, y0, x1, y1 in boxes])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["memory", "http", "simplecache"])
def test_regions_read_alike_everywhere(kind: str, layout: str, server: Server, tmp_path: Path) -> None:
    data = write(tmp_path / "a.tif", layout=layout)
    to_memory(tmp_path)
    base = {"memory": "memory://", "http": server.url, "simplecache": f"simplecache::{server.url}"}[kind]
    region = open_region(f"{base}/a.tif")
    assert region.path == f"{base}/a.tif"
    assert (region.shape, region.dtype) == (data.shape, data.dtype)
    for key in (..., (slice(10, 200, 3), 7), (slice(None), slice(5, 6), 1), ([5, 250, 9], 4)):
        assert np.array_equal(region[key], data[key])
    again = pickle.loads(pickle.dumps(region))
    assert np.array_equal(again[20:90, 30:99], data[20:90, 30:99])
    assert np.array_equal(region.to_dask(chunks=(128, 128, 3)).compute(), data)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_batch_of_an_address_is_that_of_the_folder(layout: str, server: Server, tmp_path: Path) -> None:
    images = [write(tmp_path / f"{k:03}.tif", k, layout=layout) for k in range(8)]
    rows = table()
    far, near = open_tiles(rows, server.url), open_tiles(rows, tmp_path)
    assert np.array_equal(far[...], crops(rows, images))
    assert np.array_equal(far.copy().shuffle(3).take([0, 9, 4]), near.shuffle(3).take([0, 9, 4]))
    results: dict[int, Any] = {}
    far.take_batches([np.arange(5), np.arange(20, 32)], results.__setitem__)
    assert np.array_equal(results[1], crops(rows, images)[20:])
    assert np.array_equal(far.to_dask()[3:9].compute(), crops(rows, images)[3:9])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_batch_takes_few_requests(layout: str, server: Server, tmp_path: Path) -> None:
    for k in range(8):
        write(tmp_path / f"{k:03}.tif", k, layout=layout)
    tiles = open_tiles(table(), server.url)
    tiles.take(np.arange(32))
    server.seen.clear()
    asked = remote.requests
    tiles.take(np.arange(32))
    assert remote.requests - asked == len(server.seen) <= 8 * 4
    assert {command for command, _ in server.seen} == {"GET"}, "what was said lately is believed"
    assert max(Counter(server.seen).values()) <= 4, "neighbouring segments come together"


def test_tags_are_read_in_few_requests(server: Server, tmp_path: Path) -> None:
    write(tmp_path / "a.tif", size=2048, layout="big")
    open_region(f"{server.url}/a.tif")
    assert len(server.seen) <= 4
    assert server.seen[0][0] == "HEAD" or server.seen[1][0] == "HEAD"


def test_regions_of_a_store_are_opened_together(server: Server, tmp_path: Path, monkeypatch: Any) -> None:
    for k in range(8):
        write(tmp_path / f"{k:03}.tif", k)
    together: list[Any] = []
    monkeypatch.setattr("lazytiles.stores.companions.open_ahead", lambda sources: together.extend(sources))
    open_tiles(table(), server.url).persist(tmp_path / "kept.npy")
    assert len(together) == 8
    assert all(len(source.regions) == 1 for source in together)


def test_a_batch_takes_few_round_trips(server: Server, tmp_path: Path) -> None:
    for k in range(8):
        write(tmp_path / f"{k:03}.tif", k)
    rows = table()
    tiles = open_tiles(rows, server.url)
    waits: list[float] = []
    for _ in range(3):
        started = time.perf_counter()
        tiles.take(np.arange(32))
        took, server.latency_s = time.perf_counter() - started, 0.1
        started = time.perf_counter()
        fresh = open_tiles(rows, server.url)
        fresh.take(np.arange(32))
        waits.append(time.perf_counter() - started - took)
        server.latency_s = 0.0
        clear_cache()
    # The first image is opened before the others: two turns of tags, then one of pixels, and a connection each.
    assert min(waits) < 0.1 * 5


def test_ranges_are_joined_and_asked_for_once(tmp_path: Path) -> None:
    write(tmp_path / "a.tif", layout="strips")
    to_memory(tmp_path)
    region = open_region("memory://a.tif")
    before = remote.requests
    region[...]
    size = (tmp_path / "a.tif").stat().st_size
    assert remote.requests - before <= 1 + size // (2 * BLOCK_BYTES)


def test_a_server_that_fails_now_and_then_is_asked_again(server: Server, tmp_path: Path) -> None:
    images = [write(tmp_path / f"{k:03}.tif", k) for k in range(8)]
    server.fail_every = 3
    rows = table()
    assert np.array_equal(open_tiles(rows, server.url)[...], crops(rows, images))


def test_a_server_that_always_fails_is_an_error_that_names_tile_and_file(server: Server, tmp_path: Path) -> None:
    for k in range(3):
        write(tmp_path / f"{k:03}.tif", k)
    tiles = open_tiles(table(3), server.url)
    tiles.take([0])
    server.fail_every = 1
    with pytest.raises(RegionError, match=r"tile t\d+ .*http://127.*00\d\.tif.* cannot be read after 6 attempts.*503"):
        tiles.take(np.arange(4, 12))
    asked = len(server.seen)
    assert asked < 200, "what failed for the batch is not tried again for every window"


def test_a_server_that_lies_about_the_length_is_told(server: Server, tmp_path: Path) -> None:
    write(tmp_path / "a.tif")
    write(tmp_path / "small.tif", size=32)
    for extra_length in (5_000, -1_000):
        server.extra_length = extra_length
        with pytest.raises(RegionError, match=r"small\.tif: bytes 0 to .* the server lies about the file's length"):
            open_region(f"{server.url}/small.tif")
    for extra_length in (100_000, 1, -1, -1_000):
        server.extra_length = extra_length
        region = open_region(f"{server.url}/a.tif")
        with pytest.raises(RegionError, match=r"a\.tif: bytes \d+ to .* the server lies about the file's length"):
            region[:10, :10]
        clear_cache()
    server.extra_length = 100_000
    size = (tmp_path / "a.tif").stat().st_size
    with pytest.raises(RegionError, match="lies about the file's length"):
        remote.read(f"{server.url}/a.tif", 0, size + 100_000, size - 10, size + 100_000)


def test_bodies_that_are_cut_short_are_never_pixels(server: Server, tmp_path: Path) -> None:
    write(tmp_path / "a.tif")
    region = open_region(f"{server.url}/a.tif")
    server.cut_bodies = True
    clear_cache()
    with pytest.raises(RegionError, match=r"a\.tif: cannot be read after 6 attempts"):
        region[100:200]


def test_a_server_without_ranges_is_an_error_that_says_what_to_do(server: Server, tmp_path: Path) -> None:
    data = write(tmp_path / "a.tif")
    server.ranges = False
    with pytest.raises(RegionError, match=r"does not serve byte ranges; .* simplecache::http"):
        open_region(f"{server.url}/a.tif")
    for cache in ("simplecache", "filecache"):
        assert np.array_equal(open_region(f"{cache}::{server.url}/a.tif")[...], data)


def test_a_file_that_changes_is_an_error(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.tif")
    region = open_region(f"{server.url}/a.tif")
    region[0]
    monkeypatch.setattr(module, "FRESH_S", 0.0)
    write(tmp_path / "a.tif", k=5)
    with pytest.raises(RegionError, match="was replaced, truncated or overwritten"):
        region[0]
    with pytest.raises(RegionError, match="was replaced, truncated or overwritten"):
        pickle.loads(pickle.dumps(region))


@pytest.mark.parametrize("url", ["memory://none.tif", "{server}/none.tif"])
def test_a_missing_file_is_named_at_once(url: str, server: Server) -> None:
    url = url.format(server=server.url)
    with pytest.raises(RegionError, match=f"{url}: cannot be opened: there is no such file"):
        open_region(url)
    assert len(server.seen) <= 6


def test_missing_frames_are_named_with_their_tile(server: Server, tmp_path: Path) -> None:
    for k in range(2):
        write(tmp_path / f"{k:03}.tif", k)
    tiles = open_tiles(table(3), server.url)
    with pytest.raises(RegionError, match=r"tile t8 .*002\.tif: cannot be opened: there is no such file"):
        tiles[8]
    assert tiles[7].shape == (40, 40, 3)


def test_missing_frames_behind_an_address_are_filled(server: Server, tmp_path: Path) -> None:
    write(tmp_path / "2017/a.tif")
    to_memory(tmp_path)
    rows = pd.DataFrame({"tile_id": "t", "region_id": "a", "label_id": ["2017", "2018"]})
    rows["region_coordinates"] = "(0, 0, 16, 16)"
    options: dict[str, Any] = {"frames": ["2017", "2018"], "missing": "fill"}
    local = open_tiles(rows, tmp_path, **options)
    assert repr(open_region(f"{server.url}/2017/a.tif?sig=SECRET")).startswith(f"<Region '{server.url}/2017/a.tif': (")
    for folder in (server.url, "memory://"):
        tiles = open_tiles(rows, folder, **options)
        np.testing.assert_array_equal(tiles.valid, [[True, False]])
        np.testing.assert_array_equal(tiles, local)
        assert check(rows, folder, **options).is_sound
        assert not check(rows, folder, frames=options["frames"]).is_sound
    server.refuses = 403
    clear_cache()
    with pytest.raises(RegionError, match=r"2018/a\.tif|2017/a\.tif: access is refused"):
        open_tiles(rows, server.url, **options)


def test_a_grid_over_addresses(server: Server, tmp_path: Path) -> None:
    write(tmp_path / "a.tif")
    for given in ([f"{server.url}/a.tif?sig=SECRET/x"], [open_region(f"{server.url}/a.tif")]):
        grid = make_grid(given, (128, 128))
        assert grid.tile_id.to_list() == ["a_0_0", "a_0_128", "a_128_0", "a_128_128"]
    with pytest.raises(ManifestError, match="a folder behind an address is not listed; pass its images' own") as caught:
        make_grid(f"{server.url}?sig=SECRET", (8, 8))
    assert "SECRET" not in str(caught.value)


def test_unknown_protocols_and_servers_are_errors() -> None:
    with pytest.raises(RegionError, match=r"nonsense://a\.tif: cannot be opened: Protocol not known"):
        open_region("nonsense://a.tif")
    with pytest.raises(LazyTilesError, match=r"http://127\.0\.0\.1:9/a\.tif: cannot be read after 6 attempts"):
        open_region("http://127.0.0.1:9/a.tif")


def test_a_local_manifest_reaches_no_server(server: Server, tmp_path: Path) -> None:
    write(tmp_path / "000.tif")
    rows = table(1, 1)
    for column, value in (("region_id", f"{server.url}/000"), ("path", f"{server.url}/000.tif")):
        with pytest.raises(ManifestError, match=r"path|region_id"):
            open_tiles(rows.assign(**{column: value}), tmp_path)
    assert not server.seen


@pytest.mark.parametrize("folder", ["memory://", "memory://deep/er", "memory://deep/er/"])
def test_a_folder_may_end_in_a_stroke(folder: str, tmp_path: Path) -> None:
    inner = folder.removeprefix("memory://").rstrip("/")
    data = write(tmp_path / inner / "000.tif")
    to_memory(tmp_path)
    rows = table(1)
    assert np.array_equal(open_tiles(rows, folder)[...], crops(rows, [data]))


def test_an_id_does_not_leave_the_address(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="region_id"):
        open_tiles(table(1, 1).assign(region_id="../000"), server.url)
    assert not server.seen


def test_other_files_open_too(server: Server, tmp_path: Path) -> None:
    from PIL import Image

    data = image()
    Image.fromarray(data).save(tmp_path / "a.png")
    np.save(tmp_path / "b.npy", data)
    assert np.array_equal(open_region(f"{server.url}/a.png")[5:60, 3], data[5:60, 3])
    assert np.array_equal(open_region(f"{server.url}/b.npy")[5:60, 3], data[5:60, 3])


def test_memory_of_what_was_fetched_goes_with_the_batch(tmp_path: Path) -> None:
    write(tmp_path / "a.tif")
    to_memory(tmp_path)
    open_region("memory://a.tif")[...]
    assert not remote._ahead
    assert len(remote._blocks) <= module.KEPT_BLOCKS


def test_eight_threads_read_what_one_reads(server: Server, tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    images = [write(tmp_path / f"{k:03}.tif", k) for k in range(8)]
    rows = table()
    tiles = open_tiles(rows, server.url)
    wanted = crops(rows, images)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda k: tiles.take(np.arange(k, k + 8)), range(24)))
    assert all(np.array_equal(batch, wanted[k : k + 8]) for k, batch in enumerate(found))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_reads_on_its_own(server: Server, tmp_path: Path) -> None:
    data = write(tmp_path / "a.tif")
    region = open_region(f"{server.url}/a.tif")
    region[0]
    child = os.fork()
    if not child:
        code = 1
        try:
            code = 0 if np.array_equal(region[7], data[7]) else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


def test_a_file_that_changes_behind_a_server_without_etags_is_noticed(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FRESH_S", 0.0)
    server.etags = False
    one, two = image(1), image(2)
    tifffile.imwrite(tmp_path / "a.tif", one, tile=(16, 16))
    region = open_region(f"{server.url}/a.tif")
    assert np.array_equal(region[:20], one[:20])
    tifffile.imwrite(tmp_path / "a.tif", two, tile=(16, 16))
    os.utime(tmp_path / "a.tif", (1, 2_000_000_000))
    with pytest.raises(RegionError, match="open the tiles again"):
        region[20:]
    assert np.array_equal(open_region(f"{server.url}/a.tif"), two)


ODD = ["a#1", "a?b=1", "a%20b", "a b", "a&b", "a+b", "a::b", "memory::a", "a;b", "é", "a%2Fb", "100%"]


def test_odd_ids_name_their_own_files_behind_every_address(server: Server, tmp_path: Path) -> None:
    names = [*ODD, "a", "a ", "b", "a/b"]  # those that the odd ones would be read as
    (tmp_path / "a").mkdir()
    images = [write(tmp_path / f"{name}.tif", k) for k, name in enumerate(names)]
    rows = pd.DataFrame(
        {"tile_id": ODD, "region_id": ODD, "target": 0.0, "region_coordinates": ["(0, 0, 32, 32)"] * len(ODD)}
    )
    to_memory(tmp_path)
    memory = fsspec.filesystem("memory")
    for name in names:
        memory.pipe(f"/{name}.tif", (tmp_path / f"{name}.tif").read_bytes())
    wanted = np.stack([data[:32, :32].reshape(32, 32, -1) for data in images[: len(ODD)]])
    for folder in (str(tmp_path), "memory://", server.url, f"{server.url}/?sig=secret", f"simplecache::{server.url}"):
        assert np.array_equal(open_tiles(rows, folder)[:].reshape(wanted.shape), wanted), folder


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_file_is_not_called_missing(status: int, server: Server, tmp_path: Path) -> None:
    write(tmp_path / "a.tif")
    server.refuses = status
    with pytest.raises(RegionError, match=rf"a\.tif: access is refused \(ClientResponseError: {status}"):
        open_region(f"{server.url}/a.tif")
    server.refuses = 0
    assert open_region(f"{server.url}/a.tif").shape


@pytest.mark.parametrize("what", [401, 404, 500, "cut", "none"])
def test_no_error_tells_what_signs_an_address(
    what: int | str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ATTEMPTS", 2)
    write(tmp_path / "a.tif")
    url = f"{server.url}/a.tif?X-Amz-Signature=SECRET%2Fx&b=SECRET"
    if what == "none":
        url = "http://user:SECRET@127.0.0.1:9/a.tif?sig=SECRET"
    elif what == "cut":
        (tmp_path / "a.tif").write_bytes(b"II*\0nothing")
    else:
        server.refuses = int(what)
    with pytest.raises(RegionError) as caught:
        open_region(url)
    printed = "".join(traceback.format_exception(caught.value))
    error: BaseException | None = caught.value
    while error is not None:
        printed += f"{error} {error!r}"
        error = error.__cause__ or error.__context__
    assert "SECRET" not in printed
    assert "/a.tif" in str(caught.value)

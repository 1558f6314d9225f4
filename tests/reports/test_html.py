"""Pictures and pages: right pixels, escaped text, and in a real browser the right tile under the pointer."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile

from lazytiles.arrays.multisource import MultiSourceArray
from lazytiles.arrays.view import DelayedView
from lazytiles.display import colours, side_by_side, stretched
from lazytiles.images.region import open_region, thumbnail
from lazytiles.manifests.checks import check
from lazytiles.manifests.manifest import read_manifest
from lazytiles.manifests.paths import resolve_paths
from lazytiles.manifests.tiles import open_tiles
from lazytiles.reports.html import check_page, page, preview_page
from lazytiles.reports.plots import plot_region, plot_tiles

EVIL = "<img src=x onerror=document.title='owned'>&\"'"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """Images in two years under names that would break a careless page."""
    folder = tmp_path_factory.mktemp("pages")
    rows = []
    names = ["plain", "a & b", "<b>bold<", "quo\"te'"]
    for r, region in enumerate(names):
        for year in ("2017", "2018"):
            image = np.random.default_rng(r).integers(0, 255, (128, 192, 3), np.uint8)
            (folder / year).mkdir(exist_ok=True)
            tifffile.imwrite(folder / year / f"{region}.tif", image, tile=(32, 32), compression="zlib")
            for k in range(6):
                x, y = k % 3 * 64, k // 3 * 64
                tile = f"{r}-{k}" if k else f"{r}-{EVIL}".replace("/", "")
                rows.append((tile, region, year, r + k / 10, f"({x}, {y}, {x + 64}, {y + 64})"))
    columns = ["tile_id", "region_id", "label_id", "target", "region_coordinates"]
    return folder, read_manifest(pd.DataFrame(rows, columns=columns), target="target")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium, driven by playwright."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("there is no chromium on this machine: apt-get install chromium")
    with api.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=path, args=FLAGS)
        yield opened
        opened.close()


class Watched:
    """A page in the browser, and what it asked for and complained of."""

    def __init__(self, browser: Any, path: Path, html: str, width: int) -> None:
        path.write_text(html, encoding="utf-8")
        self.page = browser.new_page(viewport={"width": width, "height": 800})
        self.asked: list[str] = []
        self.said: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.goto(path.as_uri())

    def is_quiet(self) -> bool:
        outside = [url for url in self.asked[1:] if not url.startswith("data:")]
        return not outside and not self.said

    def overhang(self) -> int:
        return int(self.page.evaluate("document.documentElement.scrollWidth - innerWidth"))


class Elements(HTMLParser):
    """Every element and its attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def previewed(desk: tuple[Path, pd.DataFrame]) -> str:
    folder, table = desk
    codes, images = resolve_paths(table, "{label_id}/{region_id}.tif", folder)
    return preview_page(table, codes, images, title=EVIL)


@pytest.mark.leaks("the browser's driver lives as long as the module")
@pytest.mark.parametrize("width", [400, 1400])
def test_hover_shows_the_tile_under_the_pointer(
    width: int, desk: tuple[Path, pd.DataFrame], browser: Any, tmp_path: Path
) -> None:
    _, table = desk
    watched = Watched(browser, tmp_path / "preview.html", previewed(desk), width)
    tip = watched.page.locator("#tip")
    assert not tip.is_visible()
    tiles = watched.page.locator("rect.tile")
    assert tiles.count() == len(table)
    for k in (0, 5, 17, 30, 47):
        tiles.nth(k).scroll_into_view_if_needed()
        box = tiles.nth(k).bounding_box()
        watched.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        row = table.iloc[k]
        said = f"tile {row.tile_id}\nbox ({row.xmin}, {row.ymin}, {row.xmax}, {row.ymax})\ntarget {row.target:.6g}"
        assert tip.inner_text() == said
        place = tip.bounding_box()
        assert place["x"] >= 0
        assert place["x"] + place["width"] <= width
    assert watched.overhang() <= 0
    assert watched.page.title() == EVIL
    assert watched.is_quiet(), (watched.asked, watched.said)
    watched.page.close()


@pytest.mark.leaks("the browser's driver lives as long as the module")
def test_the_index_finds_regions(desk: tuple[Path, pd.DataFrame], browser: Any, tmp_path: Path) -> None:
    watched = Watched(browser, tmp_path / "preview.html", previewed(desk), 900)
    assert watched.page.locator("section.card:visible").count() == 4
    assert watched.page.locator("nav a").all_inner_texts() == ["plain", "a & b", "<b>bold<", "quo\"te'"]
    watched.page.fill("#find", "A &")
    assert watched.page.locator("section.card:visible h2").all_inner_texts() == ["a & b"]
    watched.page.fill("#find", "")
    watched.page.locator("nav a").nth(3).click()
    assert watched.page.url.endswith("#region-3")
    assert watched.page.evaluate("[...document.images].every(i => i.naturalWidth === 192)")
    assert watched.is_quiet()
    watched.page.close()


@pytest.mark.leaks("the browser's driver lives as long as the module")
@pytest.mark.parametrize("width", [400, 1400])
def test_the_findings_page(width: int, desk: tuple[Path, pd.DataFrame], browser: Any, tmp_path: Path) -> None:
    folder, table = desk
    bad = table.assign(target=[np.nan, *table.target[1:]], xmax=table.xmax + (table.tile_id == "1-2") * 999)
    report = check(bad, folder, frames="each", size=(64, 64))
    watched = Watched(browser, tmp_path / "check.html", check_page(report), width)
    text = watched.page.inner_text("body")
    assert "3 problems" in text
    assert f"row 0: tile 0-{EVIL.replace('/', '')}: target is empty" in text
    assert "leaves region a & b" in text
    assert watched.page.locator(".cards .card").count() == 3
    assert watched.page.locator("svg.bars rect").count() == 20
    assert watched.overhang() <= 0
    assert watched.is_quiet(), watched.said
    watched.page.close()


def test_manifest_text_makes_no_element(desk: tuple[Path, pd.DataFrame]) -> None:
    folder, table = desk
    report = check(table.assign(target=np.nan), folder)
    for html in (previewed(desk), check_page(report), page(EVIL, "")):
        found = Elements(html).found
        assert {tag for tag, _ in found} <= {
            "html", "head", "meta", "link", "title", "style", "body", "h1", "h2", "p", "b", "input", "nav", "a",
            "main", "section", "div", "figure", "img", "svg", "rect", "figcaption", "script", "table", "tr", "th",
            "td", "details", "summary", "pre", "text",
        }  # fmt: skip
        assert sum(tag == "b" for tag, _ in found) in (0, 2)
        assert not [name for _, attributes in found for name in attributes if name.startswith("on")]
        sources = [attributes.get("src") or attributes.get("href") or "data:" for _, attributes in found]
        assert all(source.startswith(("data:", "#")) for source in sources)
    ids = [attributes["data-tile"] for tag, attributes in Elements(previewed(desk)).found if tag == "rect"]
    assert ids == table.tile_id.to_list()


def test_much_is_cut_and_said(desk: tuple[Path, pd.DataFrame], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lazytiles.reports.html.MOST_REGIONS", 2)
    monkeypatch.setattr("lazytiles.reports.html.MOST_DRAWN", 4)
    html = previewed(desk)
    assert "The first 2 of 4 regions are shown." in html
    assert "4 of 6 tiles drawn" in html


def test_an_image_that_cannot_be_read_is_said(desk: tuple[Path, pd.DataFrame], tmp_path: Path) -> None:
    _, table = desk
    (tmp_path / "x.tif").write_text("<script>")
    html = preview_page(table, np.zeros(len(table), np.int64), [str(tmp_path / "x.tif")])
    assert 'class="bad"' in html
    assert "x.tif" in html


# -- pictures


def test_stretching_keeps_order_and_hides_what_is_not_finite() -> None:
    values = np.linspace(-5, 9, 100).reshape(10, 10, 1)
    shown = stretched(values, limits=(-5, 9))
    assert shown.shape == (10, 10, 3)
    assert (np.diff(shown[..., 0].ravel().astype(int)) >= 0).all()
    assert (shown.min(), shown.max()) == (0, 255)
    values[0, 0] = np.nan
    assert stretched(values)[0, 0].tolist() == [0, 0, 0]
    assert stretched(np.full((2, 2, 1), np.nan)).max() == 0
    assert stretched(np.full((2, 2, 1), 7)).shape == (2, 2, 3)
    assert stretched(np.array([[[-1.7e308], [1.7e308]]]))[0, :, 0].tolist() == [0, 255]
    with pytest.raises(ValueError, match="one band, or three as red, green and blue"):
        stretched(values, bands=[0, 0])


def test_side_by_side_places_every_sample() -> None:
    samples = np.random.default_rng(0).integers(0, 255, (5, 2, 4, 6, 3), np.uint8)
    sheet, places = side_by_side(samples, columns=2)
    for sample, (top, left) in zip(samples, places, strict=True):
        np.testing.assert_array_equal(sheet[top : top + 4, left : left + 6], sample[0])
        np.testing.assert_array_equal(sheet[top : top + 4, left + 8 : left + 14], sample[1])


@pytest.mark.parametrize("shape", [(90, 700), (700, 90, 3), (64, 64)])
def test_a_thumbnail_is_the_image_with_a_step(shape: tuple[int, ...], tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", image, tile=(16, 16))
    small = thumbnail(open_region(tmp_path / "a.tif"), longest=100)
    step = 7 if max(shape) == 700 else 1
    np.testing.assert_array_equal(small.reshape(small.shape[: len(shape)]), image[::step, ::step])
    assert thumbnail(open_region(tmp_path / "a.tif"), most_bytes=10) is None


def test_colours_go_from_dark_to_bright() -> None:
    assert colours([3, 3]) == ["#440154", "#440154"]
    assert colours([]) == []
    assert colours([0.0, 1.0]) == ["#440154", "#fde725"]


@pytest.fixture
def plain(desk: tuple[Path, pd.DataFrame]) -> Any:
    with warnings.catch_warnings():
        # Old matplotlib calls new pyparsing by names that it deprecates.
        warnings.simplefilter("ignore")
        matplotlib = pytest.importorskip("matplotlib")
        matplotlib.use("Agg")
        pyplot = pytest.importorskip("matplotlib.pyplot")
    folder, table = desk
    yield open_tiles(table, folder, frames=["2017", "2018"])
    pyplot.close("all")


def test_plots_take_axes_and_draw_what_they_say(plain: Any, desk: tuple[Path, pd.DataFrame]) -> None:
    from matplotlib.colors import to_hex
    from matplotlib.figure import Figure

    ax = Figure().subplots()
    assert plot_tiles(plain, 5, ax=ax) is ax
    assert len(ax.texts) == 5
    assert ax.texts[1].get_text() == "0-1\n0.1"
    assert len(plot_tiles(plain, 100).texts) == len(plain)
    assert len(plot_tiles(np.zeros((3, 8, 8, 1)), 2).texts) == 2
    region = open_region(desk[0] / "2018" / "plain.tif")
    ax = plot_region(region, plain)
    assert len(ax.collections[0].get_paths()) == 6
    assert ax.get_xlim() == (0, 192)
    ends = [path.get_extents().extents.tolist() for path in ax.collections[0].get_paths()]
    assert ends == [[x, y, x + 64, y + 64] for y in (0, 64) for x in (0, 64, 128)]
    drawn = [to_hex(colour) for colour in ax.collections[0].get_edgecolor()]
    assert drawn == colours([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert ax.figure.axes[-1].get_ylim() == pytest.approx((0, 0.5))
    assert not plot_region(region).collections
    table = desk[1]
    boxes = table[["xmin", "ymin", "xmax", "ymax"]].itertuples(index=False, name=None)
    raw = table[["tile_id", "region_id", "label_id", "target"]].assign(region_coordinates=[str(box) for box in boxes])
    assert len(plot_region(region, raw).collections[0].get_paths()) == 6
    with pytest.raises(ValueError, match="there are no tiles to plot"):
        plot_tiles(plain[:0])


def test_notebooks_show_facts_and_a_cheap_picture(plain: Any, desk: tuple[Path, pd.DataFrame]) -> None:
    region = open_region(desk[0] / "2018" / "<b>bold<.tif")
    html = region._repr_html_()
    assert "128 × 192 × 3" in html
    assert "&lt;b&gt;bold&lt;.tif" in html
    assert 'src="data:image/png' in html
    assert 'src="data:image/png' in plain._repr_html_()
    view = DelayedView(plain, idx_min=2, shuffle=True, seed=1)
    assert 'src="data:image/png' in view._repr_html_()
    np.testing.assert_array_equal(view[:3], plain[view.samples[:3]])
    assert "<img" not in DelayedView(np.zeros((3, 4)))._repr_html_()
    assert "72 KiB" in html


def test_notebooks_say_what_tiles_are(plain: Any) -> None:
    html = plain.shuffle(3)._repr_html_()
    for fact in ("labels", "order", "shuffled, seed 3", "regions", "table", "tile_id, region_id"):
        assert fact in html, fact
    pets = MultiSourceArray([np.zeros((2, 8, 8, 3)), np.ones((3, 8, 8, 3))], labels=["dog", "cat"])
    assert "2 classes: cat, dog" in pets._repr_html_()
    assert 'src="data:image/png' in pets._repr_html_()
    assert "<img" not in MultiSourceArray([np.zeros((2, 8))])._repr_html_()
    many = MultiSourceArray([np.zeros((1, 8))] * 9, labels=[f"kind {k}" for k in range(9)])
    assert "kind 3, … (9)" in many._repr_html_()


def test_what_is_black_for_missing_frames_changes_no_contrast(plain: Any) -> None:
    from matplotlib.figure import Figure

    class Gaps:
        """Tiles of which the second frames are missing."""

        def __init__(self) -> None:
            self.pixels = np.full((4, 2, 8, 8, 1), 0, np.uint8)
            self.pixels[:, 0] = np.linspace(100, 110, 64).reshape(8, 8, 1)
            self.valid = np.array([[True, False]] * 4)

        def __len__(self) -> int:
            return 4

        def __getitem__(self, key: Any) -> Any:
            return self.pixels[key]

    gaps = Gaps()
    sheets = []
    for source in (gaps, gaps.pixels[:, 0]):
        ax = plot_tiles(source, 4, columns=1, ax=Figure().subplots())
        sheets.append(np.asarray(ax.images[0].get_array()))
    np.testing.assert_array_equal(sheets[0][:, : sheets[1].shape[1] - 2], sheets[1][:, :-2])

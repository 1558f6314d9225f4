"""What people look at: plots, pages, statistics."""

from lazytiles.reports.html import check_page, preview_page
from lazytiles.reports.plots import plot_tiles

"""A Plotly figure as a picture, taken by Chromium."""

import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import plotly.graph_objects as go


def browser() -> str | None:
    """Chromium, under whatever name it is installed."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def take(figure: go.Figure, picture: Path) -> None:
    """Write a PNG of the size that the figure's layout says.

    Raises:
        click.ClickException: Chromium is missing.
    """
    program = browser()
    if program is None:
        raise click.ClickException("Chromium is missing: apt-get install chromium")
    with TemporaryDirectory(prefix="coda-picture-") as folder:
        page = Path(folder) / "picture.html"
        figure.write_html(page, config={"staticPlot": True})
        size = f"--window-size={figure.layout.width + 16},{figure.layout.height + 16}"
        command = [program, "--headless", "--no-sandbox", "--hide-scrollbars", size]
        command += [f"--screenshot={picture.resolve()}", "--virtual-time-budget=5000", page.as_uri()]
        subprocess.run(command, check=True, capture_output=True)

"""The state of runs as a page on the loopback, with loss curves; it refreshes itself.

Served by the standard library's own server: one page and one JSON object, which nobody but this machine can ask for.
"""

import io
import sys
from collections.abc import Sequence
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock

import jinja2

from common.errors import UserError
from launch.status.table import as_json, cells, state_words
from launch.status.view import View, curve, views

_SECONDS = 5
_MOST_CURVES = 10
_DRAWING = Lock()  # matplotlib is not made for threads


def server(folder: Path, port: int, stuck_factor: float) -> ThreadingHTTPServer:
    """The server, bound to the loopback. `port` 0: any free one.

    Raises:
        UserError: the port is taken.
    """

    class Handler(BaseHTTPRequestHandler):
        """Answers `/` and `/status.json`."""

        def do_GET(self) -> None:
            """Answer a request, of this machine's own browser alone: the name it asked for must be the loopback's."""
            host = self.headers.get("Host", "").rsplit(":", 1)[0]
            if host not in ("127.0.0.1", "localhost"):
                self.send_error(403, "only as localhost")
            elif self.path == "/":
                self._send("text/html; charset=utf-8", page(folder, stuck_factor))
            elif self.path == "/status.json":
                self._send("application/json", as_json(views(folder, stuck_factor)))
            else:
                self.send_error(404)

        def _send(self, kind: str, text: str) -> None:
            content = text.encode()
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *words: object) -> None:
            """Say nothing: the terminal has the address, no more."""

    try:
        return ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError as error:
        raise UserError(f"--port {port}: {error.strerror}; type another one, or 0 for any that is free") from None


def serve(folder: Path, port: int, stuck_factor: float) -> None:
    """Serve until Ctrl-C. Raises UserError as `server` and `views` do."""
    views(folder, stuck_factor)
    with server(folder, port, stuck_factor) as serving:
        print(f"http://127.0.0.1:{serving.server_port}/   (Ctrl-C ends it)", file=sys.stderr, flush=True)
        serving.serve_forever()


def page(folder: Path, stuck_factor: float) -> str:
    """The page. All text of runs is escaped."""
    found = views(folder, stuck_factor)
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True)
    return environment.get_template("page.html.j2").render(
        folder=str(folder),
        rows=[{"view": view, "state": state_words(view), "cells": cells(view)} for view in found],
        picture=picture(found),
        time=f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S %Z}",
        seconds=_SECONDS,
    )


def picture(found: Sequence[View]) -> str:
    """The loss of runs over tokens as SVG: those that run first, then the newest."""
    from matplotlib.figure import Figure

    order = sorted(found, key=lambda view: (view.state not in ("running", "stuck"), -_changed(view)))[:_MOST_CURVES]
    curves = {view.name: list(curve(Path(view.folder))) for view in order if (Path(view.folder) / "metrics.jsonl").exists()}
    curves = {name: points for name, points in curves.items() if points}
    if not curves:
        return ""
    with _DRAWING:
        figure = Figure(figsize=(10, 3.6), layout="constrained")
        axes = figure.subplots()
        for name, points in curves.items():
            axes.plot(*zip(*points, strict=True), label=name.replace("$", r"\$"), linewidth=1.2)
        axes.set(xlabel="tokens", ylabel="training loss (nats per token)", xscale="log")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue().partition("<svg")[1] + text.getvalue().partition("<svg")[2]


def _changed(view: View) -> float:
    return (Path(view.folder) / "metrics.jsonl").stat().st_mtime if (Path(view.folder) / "metrics.jsonl").exists() else 0.0

"""The page on a port, until it is interrupted."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from bdg_fast.restorer import Restorer

from .limits import Limits
from .sessions import Sessions

if TYPE_CHECKING:
    from fastapi import FastAPI
    from PIL import Image

    from bdg_fast.analysis import Report

    from .page import Page

SWEEP = 60.0
"""Seconds between searches for old files."""


def serve(
    restorer: Restorer,
    analyse: Callable[[Image.Image], Report] | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    limits: Limits | None = None,
) -> None:
    """Serve the page until SIGINT or SIGTERM; its address is printed when it can be opened.

    Files lie in a temporary folder that is deleted in the end. Nothing is loaded from or sent to anywhere else.

    Args:
        restorer: of every picture.
        analyse: tells how one is degraded (`bdg_fast.analysis.Analyser`); None: no reports.
        host: address to listen on; by default nobody else's machine reaches it. There is no password.
        port: 0 takes a free one.
        limits: default: those of :class:`Limits`.

    Raises:
        ImportError: gradio is missing. OSError: the address cannot be listened on. ValueError: no port.
    """
    if not 0 <= port < 65536:
        raise ValueError(f"port must be between 0 and 65535, got {port}")
    limits = limits or Limits()
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    try:
        import gradio  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise ImportError("the web page needs gradio: pip install 'bdg-fast[web]'") from error
    from .page import Page

    with _listening(host, port) as listening, tempfile.TemporaryDirectory(prefix="bdg-fast-web-") as folder:
        sessions = Sessions(Path(folder))
        page = Page(restorer, analyse, sessions, limits)
        ended = threading.Event()
        try:
            config = uvicorn.Config(app(page), log_level="warning", timeout_graceful_shutdown=2, server_header=False)
            threading.Thread(target=_sweep, args=(sessions, limits.minutes * 60, ended), daemon=True).start()
            shown = f"[{host}]" if ":" in host else host
            print(f"http://{shown}:{listening.getsockname()[1]}/ shows the page; Ctrl-C ends it", flush=True)
            before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
            server = uvicorn.Server(config)
            leave = server.handle_exit

            def ending(sig: int, frame: FrameType | None) -> None:
                page.close()
                # open pages hold connections, which are cut: of that uvicorn tells as of errors
                logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
                leave(sig, frame)

            server.handle_exit = ending  # type: ignore[method-assign]
            try:
                server.run(sockets=[listening])  # handles signals, and raises them again in the end
            finally:
                signal.signal(signal.SIGTERM, before)
        finally:
            ended.set()


def app(page: Page) -> FastAPI:
    """What uvicorn runs: gradio behind the guard; receives uploads in the folder of ``page.sessions``."""
    os.environ["GRADIO_TEMP_DIR"] = str(page.sessions.root)
    import gradio as gr
    from fastapi import FastAPI
    from starlette.middleware import Middleware

    from .guard import Guard
    from .look import CSS, SCRIPT

    guard: Any = Middleware(Guard, sessions=page.sessions, limits=page.limits)
    served = FastAPI(openapi_url=None)
    gr.mount_gradio_app(
        served,
        page.blocks(),
        path="/",
        app_kwargs={"middleware": [guard]},
        allowed_paths=[],
        max_file_size=page.limits.bytes,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        ssr_mode=False,
        show_error=False,
        theme=gr.themes.Default(primary_hue="blue", neutral_hue="slate"),
        css=CSS,
        head=SCRIPT,
    )
    return served


def _listening(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error


def _sweep(sessions: Sessions, seconds: float, ended: threading.Event) -> None:
    while not ended.wait(min(SWEEP, seconds)):
        sessions.sweep(seconds)

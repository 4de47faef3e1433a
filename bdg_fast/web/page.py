"""What a visitor sees, and what happens on a click."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from bdg_fast.analysis.report import LABELS, Report
from bdg_fast.restorer import Restorer

from .guard import secret_of
from .limits import Limits
from .pictures import PREVIEW, SUFFIXES, Refused, open_upload, restored_name, write_png, write_preview
from .sessions import Sessions

TITLE = "Restore a picture"
LOG = logging.getLogger(__name__)


class Ended(Exception):
    """A job that was stopped; the message is for whoever began it."""


class Page:
    """The page's work, one job at a time."""

    def __init__(
        self, restorer: Restorer, analyse: Callable[[Image.Image], Report] | None, sessions: Sessions, limits: Limits
    ) -> None:
        """Without ``analyse`` there are no reports."""
        self.restorer, self.analyse, self.sessions, self.limits = restorer, analyse, sessions, limits
        self._stops: dict[str, threading.Event] = {}  # of jobs, by the visitor's tab
        self._closing = False

    def blocks(self) -> gr.Blocks:
        """The page and what its parts call."""
        limits = self.limits
        with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
            gr.Markdown(f"# {TITLE}\nChoose a picture: it is looked at for what degrades it, and restored on a click.")
            with gr.Row():
                with gr.Column(scale=2, min_width=320):
                    upload = gr.File(
                        label=f"Picture (at most {limits.megabytes:g} MB and {limits.megapixels:g} megapixels)",
                        file_types=list(SUFFIXES),
                        height=150,
                        elem_id="upload",
                    )
                    told = gr.HTML(_told("No picture yet."), elem_id="told")
                    preview = gr.Image(label="Your picture", visible=False, interactive=False, buttons=["fullscreen"])
                    report = gr.HTML(visible=False, elem_id="report")
                with gr.Column(scale=3, min_width=320):
                    with gr.Row():
                        start = gr.Button("Restore", variant="primary", interactive=False, elem_id="restore")
                        stop = gr.Button("Stop", interactive=False, elem_id="stop")
                    slider = gr.ImageSlider(
                        label="Before and after: drag the line, or move it by the arrow keys",
                        interactive=False,
                        buttons=["fullscreen"],
                        max_height=620,
                        elem_id="slider",
                    )
                    download = gr.DownloadButton(
                        "Download the restored picture (PNG)", interactive=False, elem_id="download"
                    )
            gr.Markdown(
                f"Files are deleted after {limits.minutes:g} minutes. Restoring may take {limits.seconds:g} seconds. "
                f"What is shown has at most {PREVIEW} pixels a side, the download all of them."
            )
            shared: dict[str, Any] = {"concurrency_id": "network", "concurrency_limit": 1, "api_visibility": "private"}
            results = [slider, download]
            upload.upload(
                self.look, upload, [told, preview, report, start, *results], show_progress_on=[told], **shared
            )
            upload.clear(self.clear, None, [told, preview, report, start, *results], api_visibility="private")
            free: dict[str, Any] = {
                "concurrency_limit": None, "api_visibility": "private", "show_progress": "hidden",
            }  # fmt: skip
            begun = start.click(self.begin, None, [start, stop], **free)
            restored = begun.then(self.restore, upload, [told, *results], show_progress_on=[slider], **shared)
            restored.then(self.end, upload, [start, stop], **free)
            stop.click(self.stop, None, None, **free)
            page.unload(self.leave)
        queued: gr.Blocks = page.queue(max_size=limits.waiting, default_concurrency_limit=1)
        return queued

    def look(self, upload: str | None, request: gr.Request) -> tuple[Any, ...]:
        """Tell what degrades a picture, or why it is not taken."""
        secret = _secret(request)
        try:
            image, notes = open_upload(self._mine(secret, upload), self.limits)
        except Refused as refused:
            return (_told(str(refused), "alert"), *self.clear()[1:])
        path = self.sessions.new_path(secret, "preview.jpg")
        write_preview(image, path)
        text = " ".join([f"{image.width} × {image.height} pixels.", *notes, "Ready to be restored."])
        report = self._report(image)
        return (
            _told(text, done=True),
            gr.update(value=str(path), visible=True),
            gr.update(value=report, visible=report is not None),
            gr.update(interactive=True),
            None,
            gr.update(value=None, interactive=False),
        )

    def clear(self) -> tuple[Any, ...]:
        """As there is no picture."""
        return (
            _told("No picture yet."),
            gr.update(value=None, visible=False),
            gr.update(visible=False),
            gr.update(interactive=False),
            None,
            gr.update(value=None, interactive=False),
        )

    def begin(self, request: gr.Request) -> tuple[Any, ...]:
        """From here on a job can be stopped, also while it waits."""
        self._stops[str(request.session_hash)] = threading.Event()
        return gr.update(interactive=False), gr.update(interactive=True)

    def end(self, upload: str | None, request: gr.Request) -> tuple[Any, ...]:
        """The next can begin."""
        self._stops.pop(str(request.session_hash), None)
        return gr.update(interactive=upload is not None), gr.update(interactive=False)

    def restore(
        self, upload: str | None, request: gr.Request, progress: gr.Progress = gr.Progress()  # noqa: B008
    ) -> tuple[Any, ...]:  # fmt: skip
        """Restore the picture within the time there is."""
        secret, begin = _secret(request), time.monotonic()
        stopped = self._stops.get(str(request.session_hash), threading.Event())

        def told(done: int, total: int) -> None:
            progress((done, total), desc="Restoring", unit="parts")
            if done < total and (stopped.is_set() or self._closing):
                raise Ended("Stopped, as you asked.")
            if done < total and time.monotonic() - begin > self.limits.seconds:
                raise Ended(
                    f"Stopped: restoring this picture takes longer than the {self.limits.seconds:g} seconds there are "
                    f"({done} of {total} parts were done). A smaller picture takes less."
                )

        try:
            source = self._mine(secret, upload)
            image, _ = open_upload(source, self.limits)
            restored = self.restorer(image, progress=told)
            paths = [self.sessions.new_path(secret, name) for name in ("before.jpg", "after.jpg")]
            for picture, path in zip((image, restored), paths, strict=True):
                write_preview(picture, path)
            whole = self.sessions.new_path(secret, restored_name(source.name))
            write_png(restored, whole)
        except (Refused, Ended) as ended:
            return _told(str(ended), "alert"), None, gr.update(value=None, interactive=False)
        except Exception:
            LOG.exception("a picture was not restored")
            message = "This picture could not be restored: something failed here. It is written down."
            return _told(message, "alert"), None, gr.update(value=None, interactive=False)
        seconds = math.ceil(time.monotonic() - begin)
        done = _told(f"Restored in {seconds} second{'s' if seconds > 1 else ''}.", done=True)
        return done, tuple(map(str, paths)), gr.update(value=str(whole), interactive=True)

    def stop(self, request: gr.Request) -> None:
        """End the job of this tab, if there is one."""
        event = self._stops.get(str(request.session_hash))
        if event is not None:
            event.set()

    def leave(self, request: gr.Request) -> None:
        """The tab is closed: nobody waits for its job."""
        self.stop(request)
        self._stops.pop(str(request.session_hash), None)

    def close(self) -> None:
        """End all jobs."""
        self._closing = True

    def _report(self, image: Image.Image) -> str | None:
        """What the analyser tells; nothing of it stands in the way of restoring."""
        if self.analyse is None:
            return None
        try:
            return _table(self.analyse(image))
        except ValueError as error:  # too small
            return _told(f"There is no report: {error}.")
        except Exception:
            LOG.exception("a picture was not analysed")
            return _told("There is no report: it failed here. The picture can be restored nevertheless.")

    def _mine(self, secret: str, upload: str | None) -> Path:
        """The uploaded file, if this session sent it: a request may name any."""
        path = Path(upload or "")
        if not upload or not self.sessions.owns(secret, path) or not path.is_file():
            raise Refused("This file is gone: please choose it again.")
        return path


def _secret(request: gr.Request) -> str:
    secret = secret_of(request.headers.get("cookie"))
    assert secret is not None, "the guard gives every request one"
    return secret


def _told(text: str, role: str = "status", done: bool = False) -> str:
    """A line that screen readers tell."""
    return f'<p class="told{" done" if done else ""}" role="{role}">{escape(text)}</p>'


def _table(report: Report) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(LABELS.get(kind, kind))}</th>'
        f'<td><meter min="0" max="1" value="{probability:.3f}" aria-hidden="true"></meter>{probability:.0%}</td></tr>'
        for kind, probability in report.candidates[:5]
    )
    return (
        f'<div class="report"><p>{escape(report.summary())}</p><table><caption>What degrades it, by probability'
        f"</caption><tbody>{rows}</tbody></table></div>"
    )

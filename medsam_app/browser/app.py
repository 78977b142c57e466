"""Browser app: a Gradio page with our own viewer as its one component, and its server.

Why so. The page is a Gradio `Blocks` with a `gr.HTML`, whose `js_on_load` imports the viewer's modules
from this server. Gradio's server functions and props carry JSON only: a volume of 150 MB, or a mask a
click, would travel as base64 through its queue. So voxels and masks come in binary from routes of our
own (routes/), which `fetch` turns into typed arrays, and Gradio is mounted next to them in the same
FastAPI app. Controls stand in the viewer itself: they must answer within a frame, and Gradio's would
ask the server. Nothing comes from another host: analytics off, system fonts, and a content security
policy that lets the page reach this server only.
"""

from __future__ import annotations

import ipaddress
import logging
import mimetypes
import os
import signal
import socket
import sys
import threading
import time
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

# Before Gradio is imported: it asks its makers for news otherwise.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# An argument of newer versions only, so it is set here: nothing is recorded in the browser.
os.environ["GRADIO_RUN_HISTORY"] = "False"

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.staticfiles import StaticFiles

from medsam_app.browser.options import ServeOptions
from medsam_app.browser.page_head import FirstInHead
from medsam_app.browser.protocol.script_files import UploadGate
from medsam_app.browser.routes.answers import add_error_pages
from medsam_app.browser.routes.router import router
from medsam_app.browser.routes.script_api import AT_A_TIME, MOST_HELD, Api, add_endpoints
from medsam_app.browser.security.guard import LOOPBACK, Guard
from medsam_app.browser.state.service import Service
from medsam_app.browser.state.workspace_registry import WorkspaceRegistry
from medsam_app.errors import SettingsError

STATIC = Path(__file__).parent / "static"
_SYSTEM_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif"]
_MONO_FONTS = ["ui-monospace", "DejaVu Sans Mono", "monospace"]
#: The page has the system's colours before the viewer's own style sheet is there.
_PAGE_CSS = "body, gradio-app, .gradio-container { background: light-dark(#e9edf2, #0b0e13) !important; }"
_PAGE_CSS += ":root { color-scheme: light dark; }"
_FRAMES = STATIC / "frames.js"  # no module: it runs before Gradio's
_MODULES, _STYLES = sorted({*STATIC.glob("*.js")} - {_FRAMES}), sorted(STATIC.glob("*.css"))
#: The viewer's modules are fetched while Gradio starts, not one after the other when it has.
_FIRST = f'<script src="medsam/static/{_FRAMES.name}"></script>' + "".join(
    f'<link rel="modulepreload" href="medsam/static/{path.name}">' for path in _MODULES
)
#: After Gradio's own, so that the viewer's hold.
_HEAD = "".join(f'<link rel="stylesheet" href="medsam/static/{path.name}">' for path in _STYLES)
_LOAD = """
const page = document.baseURI;
import(new URL("medsam/static/viewer.js", page).href)
  .then((viewer) => viewer.mount(element.querySelector(".medsam")))
  .catch((error) => {
    console.error(error);
    element.querySelector(".medsam").textContent = "The viewer could not be loaded; reload the page.";
  });
"""


def build(api: Api, title: str = "medsam_app") -> gr.Blocks:
    """The page and the scripts' endpoints. It works only where the viewer's routes are: in `create_app`."""
    with gr.Blocks(title=title, analytics_enabled=False, fill_height=True, fill_width=True) as blocks:
        gr.HTML(
            html_template='<div class="medsam" role="application" aria-label="Volume viewer"></div>',
            js_on_load=_LOAD,
            apply_default_css=False,
            elem_id="medsam-viewer",
        )
        add_endpoints(api)
    blocks.queue(default_concurrency_limit=AT_A_TIME, max_size=MOST_HELD)
    poll_less(blocks)
    return blocks


def poll_less(blocks: gr.Blocks) -> None:
    """Let Gradio's idle queue poll every 20 ms rather than every millisecond; the model needs the processor.

    The attribute is private to Gradio: a version without it keeps its own interval.
    """
    queue = getattr(blocks, "_queue", None)
    if queue is not None and hasattr(queue, "sleep_when_free"):
        queue.sleep_when_free = 0.02


def create_app(
    service: Service,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    auth: Sequence[tuple[str, str]] | None = None,
) -> FastAPI:
    """Create the server: our routes, then Gradio, behind a guard.

    Args:
        service: what the pages share.
        host, port: where it will listen; on a loopback address only loopback names are answered.
        auth: (name, password) pairs that are let in; None disables the login.
    """
    mimetypes.add_type("text/javascript", ".js")  # some systems' registries say otherwise
    app = FastAPI(title="medsam_app", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.service = service
    add_error_pages(app)
    app.include_router(router)
    app.mount("/medsam/static", StaticFiles(directory=STATIC))
    app.add_middleware(UploadGate, exchange=service.exchange)
    app.add_middleware(FirstInHead, html=_FIRST)
    app.add_middleware(Guard, hosts=LOOPBACK if is_loopback(host) else None, auth=auth)
    theme = gr.themes.Base(font=_SYSTEM_FONTS, font_mono=_MONO_FONTS)
    return gr.mount_gradio_app(
        app,
        build(Api(service, service.exchange)),
        path="/",
        server_name=host,
        server_port=port,
        footer_links=[],
        show_error=False,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        max_file_size=service.upload_bytes,  # of scripts; pages send through our own route
        theme=theme,
        css=_PAGE_CSS,
        head=_HEAD,
    )


def serve(options: ServeOptions) -> None:
    """Serve the browser app until it is interrupted.

    Raises:
        SettingsError: there is no free port.
    """
    listener = _listen(options.host, options.port)
    port = listener.getsockname()[1]
    service = Service(
        image=options.image,
        roots=options.roots,
        model=options.model,
        upload_bytes=options.upload_bytes,
        workspaces=WorkspaceRegistry(limit=options.session_bytes),
        worklist=options.worklist,
        labels=options.labels,
    )
    if options.image is None:
        threading.Thread(target=service.sample, daemon=True).start()
    host, auth = options.host, options.auth
    app = create_app(service, host=host, port=port, auth=auth)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2))
    shown = "localhost" if host in ("127.0.0.1", "::1", "0.0.0.0", "::") else host
    url = f"http://{shown}:{port}/"
    print(f"medsam_app is at {url}  (Ctrl+C stops it)\n{service.device_sentence}", flush=True)
    if not is_loopback(host):
        logging.getLogger(__name__).warning(
            "Everybody who can reach %s can use it%s.", host, "" if auth is None else " with a password"
        )
    if options.open_browser:
        threading.Timer(0.8, webbrowser.open, [url]).start()
    if threading.current_thread() is threading.main_thread():
        # uvicorn raises it again when it has stopped, which must not end the process before `close`.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        server.run(sockets=[listener])
    finally:
        service.close()


@contextmanager
def running(service: Service, *, auth: Sequence[tuple[str, str]] | None = None) -> Iterator[str]:
    """A server in a thread of this process while a `with` block lasts; its address, on a free port.

    The service is closed at the end. `auth` is as for `create_app`.
    """
    listener = _listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    config = uvicorn.Config(create_app(service, port=port, auth=auth), log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise RuntimeError("The server did not start.")
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        service.close()


def is_loopback(host: str) -> bool:
    """Return whether an address or name is of this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(host: str, port: int) -> socket.socket:
    """A socket on the port, or on the next free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    last: OSError | None = None
    for candidate in [port] if port == 0 else range(port, port + 10):
        listener = socket.socket(family, socket.SOCK_STREAM)
        if os.name != "nt":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, candidate))
            listener.listen(128)
            return listener
        except OSError as error:
            listener.close()
            last = error
    raise SettingsError(f"No free port at {host} from {port} to {port + 9} ({last}); give another --port.")

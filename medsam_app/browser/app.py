"""Server of the browser app, and its Gradio page with the viewer as only component.

The page is a Gradio `Blocks` with one `gr.HTML`, whose `js_on_load` imports the viewer's modules from this
server. Gradio's server functions and props carry JSON only: a volume of 150 MB, or one mask per click, would
pass through its queue as base64. Therefore our own routes (routes/) send voxels and masks in binary, `fetch`
turns them into typed arrays, and Gradio is mounted next to these routes in the same FastAPI app. The controls
are part of the viewer because they must respond within one frame; Gradio's controls would send a request to
the server. Nothing is loaded from another host: analytics are off, fonts are the system's, and the content
security policy lets the page connect to this server only.
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

# Set before the import of Gradio, which otherwise contacts its vendor.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# Record no runs in the browser. Only newer versions of Gradio have an argument for this.
os.environ["GRADIO_RUN_HISTORY"] = "False"

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.staticfiles import StaticFiles

from medsam_app.browser.options import ServeOptions
from medsam_app.browser.page_head import HeadInsertion
from medsam_app.browser.protocol.script_files import UploadGate
from medsam_app.browser.routes.answers import add_error_pages
from medsam_app.browser.routes.router import router
from medsam_app.browser.routes.script_api import MAX_CONCURRENT, MAX_QUEUED, Api, add_endpoints
from medsam_app.browser.security.guard import LOOPBACK, Guard
from medsam_app.browser.state.service import Service
from medsam_app.browser.state.workspace_registry import WorkspaceRegistry
from medsam_app.errors import SettingsError

STATIC = Path(__file__).parent / "static"
_SYSTEM_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif"]
_MONO_FONTS = ["ui-monospace", "DejaVu Sans Mono", "monospace"]
#: Background in the system's light or dark scheme until the viewer's style sheet is loaded.
_PAGE_CSS = "body, gradio-app, .gradio-container { background: light-dark(#e9edf2, #0b0e13) !important; }"
_PAGE_CSS += ":root { color-scheme: light dark; }"
_FRAMES = STATIC / "frames.js"  # a classic script, since it must run before Gradio's scripts
_MODULES, _STYLES = sorted({*STATIC.glob("*.js")} - {_FRAMES}), sorted(STATIC.glob("*.css"))
#: Preloads that let the viewer's modules arrive in parallel while Gradio starts.
_HEAD_START = f'<script src="medsam/static/{_FRAMES.name}"></script>' + "".join(
    f'<link rel="modulepreload" href="medsam/static/{path.name}">' for path in _MODULES
)
#: Style sheets of the viewer, after Gradio's, which they override.
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
    """Build the page and the endpoints for scripts.

    The page works only in the app of `create_app`, which has the viewer's routes.
    """
    with gr.Blocks(title=title, analytics_enabled=False, fill_height=True, fill_width=True) as blocks:
        gr.HTML(
            html_template='<div class="medsam" role="application" aria-label="Volume viewer"></div>',
            js_on_load=_LOAD,
            apply_default_css=False,
            elem_id="medsam-viewer",
        )
        add_endpoints(api)
    blocks.queue(default_concurrency_limit=MAX_CONCURRENT, max_size=MAX_QUEUED)
    slow_polling(blocks)
    return blocks


def slow_polling(blocks: gr.Blocks) -> None:
    """Set the polling interval of Gradio's idle queue to 20 ms, not 1 ms: the model needs the CPU.

    The attribute is private to Gradio; a version without it keeps its own interval.
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
    """Create the server: our routes and Gradio's, protected by `Guard`.

    Args:
        service: state that all pages share.
        host: address to listen on; a loopback address restricts the Host header to loopback names.
        port: port to listen on.
        auth: (name, password) pairs of accounts; None disables the login.
    """
    mimetypes.add_type("text/javascript", ".js")  # the registry of some systems has another type
    app = FastAPI(title="medsam_app", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.service = service
    add_error_pages(app)
    app.include_router(router)
    app.mount("/medsam/static", StaticFiles(directory=STATIC))
    app.add_middleware(UploadGate, exchange=service.exchange)
    app.add_middleware(HeadInsertion, html=_HEAD_START)
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
        max_file_size=service.upload_bytes,  # for scripts; pages upload through our own route
        theme=theme,
        css=_PAGE_CSS,
        head=_HEAD,
    )


def serve(options: ServeOptions) -> None:
    """Serve the browser app until it is interrupted.

    Raises:
        SettingsError: no port is free.
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
    shown_host = "localhost" if host in ("127.0.0.1", "::1", "0.0.0.0", "::") else host
    url = f"http://{shown_host}:{port}/"
    print(f"medsam_app is at {url}  (Ctrl+C stops it)\n{service.device_sentence}", flush=True)
    if not is_loopback(host):
        logging.getLogger(__name__).warning(
            "Everybody who can reach %s can use it%s.", host, "" if auth is None else " with a password"
        )
    if options.open_browser:
        threading.Timer(0.8, webbrowser.open, [url]).start()
    if threading.current_thread() is threading.main_thread():
        # uvicorn re-raises SIGTERM after it has stopped. Without this handler, the signal would kill the
        # process before `close`.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        server.run(sockets=[listener])
    finally:
        service.close()


@contextmanager
def running(service: Service, *, auth: Sequence[tuple[str, str]] | None = None) -> Iterator[str]:
    """Run a server on a free port in a thread of this process; yield its address.

    The server stops and the service is closed at the end of the `with` block.

    Args:
        service: state that all pages share.
        auth: (name, password) pairs of accounts; None disables the login.
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
    """Return whether a host is a loopback address or 'localhost'."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(host: str, port: int) -> socket.socket:
    """Return a listening socket on the port, or on the next free one of ten."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    last_error: OSError | None = None
    last_port = port + 9
    for candidate in [port] if port == 0 else range(port, last_port + 1):
        listener = socket.socket(family, socket.SOCK_STREAM)
        if os.name != "nt":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, candidate))
            listener.listen(128)
            return listener
        except OSError as error:
            listener.close()
            last_error = error
    raise SettingsError(
        f"No free port at {host} from {port} to {last_port} ({last_error}); give another --port."
    )

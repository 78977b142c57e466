"""Router of all routes except Gradio's.

Voxels and masks are sent in binary, actions and lists of files in JSON. Handlers with much work are plain
functions that run in threads. The model has a separate thread (state/worker.py), so that a click on one page
does not block another page.
"""

from __future__ import annotations

from fastapi import APIRouter

from medsam_app.browser.routes import (
    compare,
    downloads,
    edit,
    session,
    uncertainty,
    uploads,
    views,
    volumes,
    worklist,
)

#: Every route of the server.
router = APIRouter(prefix="/medsam/api")
for _module in (volumes, uploads, uncertainty, edit, session, downloads, compare, views, worklist):
    router.include_router(_module.router)

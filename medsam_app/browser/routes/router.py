"""All routes besides Gradio's: voxels and masks in binary, actions and files in JSON.

Handlers that work are plain functions in threads; the model runs in its own (state/worker.py), so that no
click of one page blocks another page.
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
for _part in (volumes, uploads, uncertainty, edit, session, downloads, compare, views, worklist):
    router.include_router(_part.router)

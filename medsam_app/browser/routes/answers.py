"""Responses of handlers: binary bodies, jobs of the model, and errors as sentences."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response

from medsam_app.atomic import as_text
from medsam_app.browser.state.service import Service
from medsam_app.browser.state.workspaces import Workspace
from medsam_app.errors import MedsamError, SeriesChoice


def binary(body: bytes) -> Response:
    """Return a response with a binary body."""
    return Response(body, media_type="application/octet-stream")


async def run_on_model(service: Service, workspace: Workspace, job: Callable[[], bytes]) -> Response:
    """Run a job in the model's thread at the workspace's turn; return its bytes as response.

    No thread of the server is blocked in the meantime.
    """
    return binary(await asyncio.wrap_future(service.work(workspace, job)))


def add_error_pages(app: FastAPI) -> None:
    """Add handlers that answer errors with a sentence, and internal errors without details."""

    @app.exception_handler(MedsamError)
    def user_error(request: Request, error: MedsamError) -> JSONResponse:
        body: dict[str, Any] = {"error": as_text(str(error))}
        if isinstance(error, SeriesChoice):
            body["choice"] = {"option": error.option, "choices": error.choices}
        return JSONResponse(body, 422)

    @app.exception_handler(HTTPException)
    def http_error(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, error.status_code, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    def invalid_request(request: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"error": "The server does not understand this request; reload the page."}, 422)

    @app.exception_handler(500)
    def internal_error(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse(
            {"error": "Something went wrong on the server; its log says what. Your prompts are kept."}, 500
        )

"""The ASGI application, made of finished objects."""

from dataclasses import dataclass

from fastapi import APIRouter, FastAPI
from starlette.types import Scope

from services.gateway.answering.observer import AnswerObserver
from services.gateway.apis.openai.files.routes import takes_file
from services.gateway.apis.openai.routes import openai_routes
from services.gateway.apis.openai.service import OpenAIServices
from services.gateway.drain import Drain
from services.gateway.web.envelope import Envelope
from services.gateway.web.handlers import add_error_handlers
from services.telemetry.clock import Clock
from services.telemetry.metrics import GatewayMetrics

FORM_BYTES = 2**20
"""What a form may have besides its file."""


@dataclass(frozen=True)
class AppParts:
    """What the application is made of."""

    openai: OpenAIServices
    observer: AnswerObserver
    metrics: GatewayMetrics
    drain: Drain
    clock: Clock
    max_body_bytes: int
    max_file_bytes: int
    max_open_requests: int
    admin: APIRouter | None = None
    """Health and metrics, if they shall be answered here too."""


def create_app(parts: AppParts) -> FastAPI:
    """Return the application; it starts and stops nothing."""
    app = FastAPI(title="Tandem", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.include_router(openai_routes(parts.openai))
    if parts.admin is not None:
        app.include_router(parts.admin)
    add_error_handlers(app, parts.observer)
    app.add_middleware(
        Envelope,
        clock=parts.clock,
        drain=parts.drain,
        metrics=parts.metrics,
        max_body_bytes=lambda scope: _max_body_bytes(parts, scope),
        max_open_requests=parts.max_open_requests,
    )
    return app


def _max_body_bytes(parts: AppParts, scope: Scope) -> int:
    if takes_file(scope["method"], scope["path"]):
        return max(parts.max_body_bytes, parts.max_file_bytes + FORM_BYTES)
    return parts.max_body_bytes

"""The routes of files and uploads."""

from fastapi import APIRouter

from services.gateway.apis.openai.files.files import Files
from services.gateway.apis.openai.files.uploads import Uploads
from services.gateway.apis.openai.service import OpenAIServices


def files_routes(services: OpenAIServices) -> APIRouter:
    """Return the routes of files and uploads, without ``/v1``."""
    router = APIRouter()
    files, uploads = Files(services), Uploads(services)
    router.add_api_route("/files", files.create, methods=["POST"])
    router.add_api_route("/files", files.list, methods=["GET"])
    router.add_api_route("/files/{file_id}", files.get, methods=["GET"])
    router.add_api_route("/files/{file_id}", files.delete, methods=["DELETE"])
    router.add_api_route("/files/{file_id}/content", files.content, methods=["GET"])
    router.add_api_route("/uploads", uploads.create, methods=["POST"])
    router.add_api_route("/uploads/{upload_id}/parts", uploads.add_part, methods=["POST"])
    router.add_api_route("/uploads/{upload_id}/complete", uploads.complete, methods=["POST"])
    router.add_api_route("/uploads/{upload_id}/cancel", uploads.cancel, methods=["POST"])
    return router


def takes_file(method: str, path: str) -> bool:
    """Return whether the body of a request may be as large as a file."""
    is_part = path.startswith("/v1/uploads/") and path.endswith("/parts")
    return method == "POST" and (path == "/v1/files" or is_part)

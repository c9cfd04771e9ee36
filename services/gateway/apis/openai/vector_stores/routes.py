"""The routes of vector stores."""

from fastapi import APIRouter

from services.gateway.apis.openai.service import OpenAIServices
from services.gateway.apis.openai.vector_stores.files import FileBatches, StoreFiles
from services.gateway.apis.openai.vector_stores.stores import Stores


def vector_stores_routes(services: OpenAIServices) -> APIRouter:
    """Return the routes of vector stores, their files and file batches, without ``/v1``."""
    router = APIRouter(prefix="/vector_stores")
    stores, files, batches = Stores(services), StoreFiles(services), FileBatches(services)
    one, one_file, one_batch = "/{vector_store_id}", "/{file_id}", "/{batch_id}"
    router.add_api_route("", stores.create, methods=["POST"])
    router.add_api_route("", stores.list, methods=["GET"])
    router.add_api_route(one, stores.get, methods=["GET"])
    router.add_api_route(one, stores.modify, methods=["POST"])
    router.add_api_route(one, stores.delete, methods=["DELETE"])
    router.add_api_route(f"{one}/search", stores.search, methods=["POST"])
    router.add_api_route(f"{one}/files", files.create, methods=["POST"])
    router.add_api_route(f"{one}/files", files.list, methods=["GET"])
    router.add_api_route(f"{one}/files{one_file}", files.get, methods=["GET"])
    router.add_api_route(f"{one}/files{one_file}", files.modify, methods=["POST"])
    router.add_api_route(f"{one}/files{one_file}", files.delete, methods=["DELETE"])
    router.add_api_route(f"{one}/files{one_file}/content", files.content, methods=["GET"])
    router.add_api_route(f"{one}/file_batches", batches.create, methods=["POST"])
    router.add_api_route(f"{one}/file_batches{one_batch}", batches.get, methods=["GET"])
    router.add_api_route(f"{one}/file_batches{one_batch}/cancel", batches.cancel, methods=["POST"])
    router.add_api_route(f"{one}/file_batches{one_batch}/files", batches.list_files, methods=["GET"])
    return router

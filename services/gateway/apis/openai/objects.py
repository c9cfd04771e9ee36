"""What all endpoints of stored objects share: callers, ids in paths, list parameters, envelopes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field
from starlette.requests import Request

from services.errors import InvalidRequest
from services.gateway.apis.openai.service import OpenAIServices
from services.gateway.store.kinds import Kind, Ref
from services.gateway.store.object_store import Objects
from services.gateway.store.records import Order, Page, Query
from services.gateway.web.exchange import Exchange
from services.gateway.web.problems import (
    Problem,
    above_maximum,
    below_minimum,
    unsupported_value,
    wrong_prefix,
    wrong_type,
)
from services.gateway.web.validation import BodyT, parse_body

DEFAULT_PAGE = 20
MAX_PAGE = 100
_ORDERS: Mapping[str, Order] = {"asc": "asc", "desc": "desc"}

Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]
"""Up to 16 pairs that clients attach to an object."""


@dataclass(frozen=True)
class Call:
    """One request for objects: its exchange and the objects of its caller's project."""

    exchange: Exchange
    objects: Objects


class ObjectEndpoint:
    """Base of the endpoints of one kind of object."""

    def __init__(self, services: OpenAIServices) -> None:
        self._services = services

    async def _call(self, request: Request) -> Call:
        exchange = await self._services.entrance.exchange(request)
        return Call(exchange, self._services.objects.of(exchange.project))

    async def _body(self, request: Request, kind: type[BodyT]) -> BodyT:
        """Return the typed body; no body at all is an empty one."""
        return parse_body(kind, await self._services.entrance.body(request) or b"{}")

    def _ref(self, request: Request, kind: Kind) -> Ref:
        """Return the object that the path names, as in ``{thread_id}``.

        Raises:
            InvalidRequest: the id is that of another kind.
        """
        name = f"{kind.name}_id"
        return self._named(kind, request.path_params[name], name)

    def _named(self, kind: Kind, object_id: str, param: str) -> Ref:
        """Return the object of an id that the client gave as ``param``.

        Raises:
            InvalidRequest: the id is that of another kind.
        """
        if not (self._services.is_lenient or object_id.startswith(kind.prefix)):
            raise _invalid(wrong_prefix(param, object_id, kind.prefix), param)
        return kind.ref(object_id)

    def _query(
        self,
        request: Request,
        kind: Kind,
        parent: Ref | None = None,
        *,
        label: tuple[str, str] | None = None,
        also: tuple[Kind, ...] = (),
        max_limit: int = MAX_PAGE,
        default_limit: int = DEFAULT_PAGE,
    ) -> Query:
        """Return the page that the parameters of a list ask for.

        Raises:
            InvalidRequest: one of them is not what it should be; ``param`` names it.
        """
        params = request.query_params
        order = _order(params.get("order") or "desc")
        limit = self._limit(params.get("limit"), max_limit, default_limit)
        cursors = {name: self._named(kind, params[name], name).id for name in ("after", "before") if params.get(name)}
        return Query(kind, parent, label, limit, order, cursors.get("after"), cursors.get("before"), also=also)

    def _limit(self, text: str | None, most: int, default: int) -> int:
        if not text:
            return default
        try:
            limit = int(text)
        except ValueError:
            raise _invalid(wrong_type("limit", "an integer", text), "limit") from None
        if self._services.is_lenient:
            return min(max(1, limit), most)
        if limit < 1:
            raise _invalid(below_minimum("limit", limit, 1), "limit")
        if limit > most:
            raise _invalid(above_maximum("limit", limit, most), "limit")
        return limit


def included(request: Request) -> frozenset[str]:
    """Return what ``include[]`` asks for; clients repeat it or write ``include``."""
    params = request.query_params
    return frozenset((*params.getlist("include[]"), *params.getlist("include")))


def listed(page: Page) -> dict[str, Any]:
    """Return the envelope of a page."""
    return listed_bodies([record.body for record in page.records], has_more=page.has_more)


def listed_bodies(bodies: Sequence[Mapping[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """Return the envelope of objects as they are shown."""
    return {
        "object": "list",
        "data": bodies,
        "first_id": bodies[0]["id"] if bodies else None,
        "last_id": bodies[-1]["id"] if bodies else None,
        "has_more": has_more,
    }


def deleted(ref: Ref, name: str) -> Mapping[str, Any]:
    """Return the answer to a deletion; ``name`` is the kind as in ``thread.deleted``."""
    return {"id": ref.id, "object": f"{name}.deleted", "deleted": True}


def _order(text: str) -> Order:
    order = _ORDERS.get(text)
    if order is None:
        raise _invalid(unsupported_value(text, list(_ORDERS)), "order")
    return order


def _invalid(problem: Problem, param: str) -> InvalidRequest:
    return InvalidRequest(problem.message, param=param, code=problem.code)

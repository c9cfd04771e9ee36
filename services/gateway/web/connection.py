"""Work for a client lasts as long as its connection."""

import asyncio
from collections.abc import Coroutine
from typing import Any, NoReturn, TypeVar

from starlette.types import Receive

from services.errors import Cancelled

Result = TypeVar("Result")


async def while_connected(
    receive: Receive, work: Coroutine[Any, Any, Result], *beside: Coroutine[Any, Any, NoReturn]
) -> Result:
    """Return what ``work`` returns; the request's body must have been read. What runs ``beside`` it ends with it.

    Raises:
        Cancelled: the client went away; ``work`` was cancelled and has ended.
        Exception: what ``work`` or something beside it raised.
    """
    working = asyncio.create_task(work)
    others = [asyncio.create_task(other) for other in (_leave_when_gone(receive), *beside)]
    try:
        await asyncio.wait((working, *others), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        return next(other.result() for other in others if other.done())
    finally:
        for task in (working, *others):
            task.cancel()
        await asyncio.gather(working, *others, return_exceptions=True)


async def _leave_when_gone(receive: Receive) -> NoReturn:
    while (await receive())["type"] != "http.disconnect":
        continue
    raise Cancelled("The client went away.")

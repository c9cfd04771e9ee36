"""API objects in Redis: read, listed and changed, each change whole or not at all."""

import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from services.errors import Conflict, InternalError, InvalidRequest, ObjectNotFound
from services.gateway.redis_state import RedisState
from services.gateway.store.changes import Create, Delete, Operation, Payloads, Update
from services.gateway.store.keys import project_prefix
from services.gateway.store.kinds import Ref, is_name
from services.gateway.store.quota import Quota
from services.gateway.store.records import Page, Query, Record
from services.gateway.store.scripts import APPLY, GET, LIST, PURGE

MAX_EDITS = 100
"""Attempts of one ``edit``; each one that fails means that another writer succeeded."""
_PROJECTS_KEY = "tandem:projects"
_FIRST_PAYLOAD = 3
"""Place of the first payload among the arguments of the script, counted from 1."""


@dataclass(frozen=True)
class Done:
    """What an operation of a change did."""

    version: int | None
    sequence: int | None
    details: Mapping[str, Any]
    """All that the Lua function returned."""


class ObjectStore:
    """The objects of all projects."""

    def __init__(self, state: RedisState, quota: Quota = Quota()) -> None:  # noqa: B008  # frozen
        self.state = state
        """For what is kept beside objects."""
        self._registered: set[str] = set()
        self._quota = quota

    def of(self, project: str) -> "Objects":
        """Return the objects of one project; no others can be reached through them."""
        return Objects(self.state, project, self._quota, self.register)

    async def register(self, project: str) -> None:
        """Let gateways know of a project, before it has anything that they look after on their own.

        Raises:
            StateUnavailable: Redis cannot be reached.
        """
        if project not in self._registered:
            async with self.state.reaching() as client:
                await client.sadd(_PROJECTS_KEY, project)
            self._registered.add(project)

    async def projects(self) -> list[str]:
        """Return all projects that ever registered.

        Raises:
            StateUnavailable: Redis cannot be reached.
        """
        async with self.state.reaching() as client:
            names: Any = await client.smembers(_PROJECTS_KEY)
        return sorted(name.decode() for name in names)


class Objects:
    """The objects of one project. All methods raise StateUnavailable when Redis cannot be reached."""

    def __init__(
        self, state: RedisState, project: str, quota: Quota, register: Callable[[str], Awaitable[None]]
    ) -> None:
        self._state = state
        self._project = project
        self._quota = quota
        self._register = register
        self._prefix = project_prefix(project)

    async def get(self, ref: Ref, *, parent: Ref | None = None, with_private: bool = False) -> Record:
        """Return one object.

        Raises:
            ObjectNotFound: there is none, or not beneath ``parent``.
        """
        fields = ["body", "version", "sequence", "parent", *(["private"] if with_private else [])]
        values = await self._fields(ref, fields)
        if not values or values[0] is None or (parent is not None and values[3] != parent.key.encode()):
            raise ObjectNotFound(ref.absent_text)
        return _record(ref, [*values[:3], values[4] if with_private else None])

    async def get_present(self, refs: Sequence[Ref]) -> Sequence[Record]:
        """Return those of some objects that exist, in one round trip."""
        if not refs:
            return []
        async with self._state.reaching() as client:
            script, pipeline = client.register_script(GET), client.pipeline(transaction=False)
            for ref in refs:
                await script(keys=[self._prefix], args=[ref.key, "body", "version", "sequence"], client=pipeline)
            found: Sequence[Any] = await pipeline.execute()
        return [_record(ref, [*values, None]) for ref, values in zip(refs, found, strict=True) if values]

    async def list(self, query: Query) -> Page:
        """Return one page; the work is that of the page, however long the list is.

        Raises:
            ObjectNotFound: the parent does not exist.
            InvalidRequest: a cursor names no object of the list.
        """
        if query.parent is not None and not query.parent.is_storable:
            raise ObjectNotFound(query.parent.absent_text)
        for cursor in (query.after, query.before):
            if cursor is not None and not is_name(cursor):
                raise _no_cursor(query, cursor)
        async with self._state.reaching() as client:
            reply = await client.register_script(LIST)(keys=[self._prefix], args=_list_arguments(query))
        problem, detail = reply[0].decode(), reply[1]
        if problem == "no_parent" and query.parent is not None:
            raise ObjectNotFound(query.parent.absent_text)
        if problem == "no_cursor":
            raise _no_cursor(query, detail.decode())
        kinds = {kind.name: kind for kind in query.kinds}
        records = (_record(kinds[kind.decode()].ref(name.decode()), values) for kind, name, *values in reply[2:])
        return Page(tuple(records), has_more=bool(detail))

    async def each(self, query: Query) -> AsyncGenerator[Record, None]:
        """Yield all objects of a list from the page of ``query`` on, page by page.

        Raises:
            ObjectNotFound: the parent does not exist, or does not any more.
            InvalidRequest: a cursor names no object of the list.
        """
        page = await self.list(query)
        while True:
            for record in page.records:
                yield record
            if not page.has_more:
                return
            page = await self.list(replace(query, after=page.records[-1].ref.id))

    async def last_child(self, ref: Ref) -> int:
        """Return the highest number that an object gave to one beneath it; 0 if it had none.

        Raises:
            ObjectNotFound: there is no such object.
        """
        values = await self._fields(ref, ["version", "last_child"])
        if not values or values[0] is None:
            raise ObjectNotFound(ref.absent_text)
        return int(values[1] or 0)

    async def create(self, create: Create) -> Record:
        """Write a new object and return it.

        Raises:
            ObjectNotFound: the parent does not exist.
            Conflict: the id is taken.
        """
        [done] = await self.apply([create])
        return Record(create.ref, create.body, done.version or 0, done.sequence or 0, create.private)

    async def update(self, update: Update) -> Record:
        """Write an object anew and return it.

        Raises:
            ObjectNotFound: there is none.
            Conflict: it has another version.
        """
        [done] = await self.apply([update])
        return Record(update.ref, update.body, done.version or 0, done.sequence or 0, update.private)

    async def edit(
        self,
        ref: Ref,
        change: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        *,
        parent: Ref | None = None,
        also: Sequence[Operation] = (),
    ) -> Record:
        """Replace a body by what ``change`` makes of it, however many others edit it too; return the new record.

        ``change`` is called again for each version that another writer put in between, so it has no effects.
        ``also`` is done in the same change: what the new body names.

        Raises:
            ObjectNotFound: there is none, or not beneath ``parent``.
            Conflict: too many others write it.
        """
        for _ in range(MAX_EDITS):
            record = await self.get(ref, parent=parent)
            body = change(record.body)
            try:
                *_, done = await self.apply([*also, Update(ref, body, record.version, parent)])
            except Conflict as error:
                conflict = error
                continue
            return Record(ref, body, done.version or 0, done.sequence or 0)
        raise conflict

    async def delete(self, ref: Ref, *, parent: Ref | None = None) -> None:
        """Delete an object and everything beneath it, which is gone at once; ``purge`` gives its memory back.

        Raises:
            ObjectNotFound: there is none, or not beneath ``parent``.
        """
        await self.apply([Delete(ref, parent=parent)])

    async def apply(
        self, operations: Sequence[Operation], *, token: str | None = None, is_bounded: bool = True
    ) -> Sequence[Done]:
        """Make one change of several operations, all or none; return what each did.

        Operations are checked in their order; one may name as a parent what an earlier one creates.
        A caller that got no answer may call again with the same ``token`` (24 hex digits), within a minute. What was
        begun within the quota may be ended beyond it, if ``is_bounded`` is false.

        Raises:
            QuotaExceeded: the project has no room for what the change creates.
            TandemError: what the first operation that cannot be done says about it.
        """
        for operation in operations:
            if not operation.ref.is_storable:
                raise operation.refusal("absent", operation.ref.id)
        if any(isinstance(each, Delete) for each in operations):
            await self._register(self._project)  # upkeep removes what the change leaves
        payloads = Payloads(_FIRST_PAYLOAD)
        quota = self._quota.encoded() if is_bounded else {}
        change = orjson.dumps({"operations": [each.encoded(payloads) for each in operations], "quota": quota})
        arguments: list[str | bytes] = [token or secrets.token_hex(12), change, *payloads.values]
        async with self._state.reaching() as client:
            reply = orjson.loads(await client.register_script(APPLY)(keys=[self._prefix], args=arguments))
        if "refused" in reply:
            place, problem, detail = reply["refused"]
            raise operations[place].refusal(problem, detail)
        if "over_quota" in reply:
            raise self._quota.refusal(*reply["over_quota"])
        return [Done(done.get("version"), done.get("sequence"), done) for done in reply["done"]]

    async def purge(self) -> bool:
        """Remove a slice of what deleted objects left; return whether there is more."""
        async with self._state.reaching() as client:
            return bool(await client.register_script(PURGE)(keys=[self._prefix]))

    async def _fields(self, ref: Ref, names: Sequence[str]) -> Sequence[bytes | str | None]:
        """Return fields of an object; none at all if it does not exist."""
        if not ref.is_storable:
            return ()
        async with self._state.reaching() as client:
            values: Sequence[bytes | str | None] = await client.register_script(GET)(
                keys=[self._prefix], args=[ref.key, *names]
            )
        return values


def _list_arguments(query: Query) -> list[str | int]:
    parent = query.parent.key if query.parent is not None else ""
    label = "=".join(query.label) if query.label is not None else ""
    cursors = [query.after or "", query.before or ""]
    kinds = ",".join(kind.name for kind in query.kinds)
    return [parent, kinds, label, query.order, query.limit, *cursors, int(query.with_private)]


def _record(ref: Ref, values: Sequence[bytes | str | None]) -> Record:
    """Return the record of (body, version, sequence, private)."""
    body, version, sequence, private = values
    if body is None or version is None or sequence is None or isinstance(private, str):
        raise InternalError(f"The record of {ref.key} is not complete.")
    return Record(ref, orjson.loads(body), int(version), int(sequence), private)


def _no_cursor(query: Query, cursor: str) -> InvalidRequest:
    param = "after" if cursor == query.after else "before"
    return InvalidRequest(query.kind.ref(cursor).absent_text, param=param)

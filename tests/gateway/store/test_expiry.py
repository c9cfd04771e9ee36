"""What ends by itself, unless its end is put off in the last moment."""

import itertools
from random import Random

import pytest

from services.errors import Conflict
from services.gateway.files.endings import end_file, end_response, end_upload
from services.gateway.files.storage import FileStorage, ProjectFiles
from services.gateway.files.upkeep import PAGE, End, Upkeep
from services.gateway.search.stores import end_store
from services.gateway.store.changes import Create
from services.gateway.store.expiry import ExpireAt, RequireDue
from services.gateway.store.keys import project_prefix
from services.gateway.store.kinds import FILE, RESPONSE, UPLOAD, VECTOR_STORE, Kind
from services.gateway.store.object_store import ObjectStore
from services.telemetry.clock import ManualClock

LATER_S = 2**40
BODY = {"status": "pending"}


async def expired(store: ObjectStore, project: str, number: int) -> ProjectFiles:
    """A project with so many objects whose time is over."""
    storage = FileStorage(store)
    await storage.register(project)
    files, refs = storage.of(project), [RESPONSE.ref(f"resp_{place}") for place in range(number)]
    at_s = int(ManualClock().wall()) - 1
    await files.objects.apply([each for ref in refs for each in (Create(ref, BODY), ExpireAt(ref, at_s))])
    return files


async def test_all_that_is_due_is_ended_in_one_round_the_projects_in_turn(store: ObjectStore) -> None:
    for project in ("one", "other"):
        await expired(store, project, 2 * PAGE + 1)
    ended: list[str] = []

    async def end(files: ProjectFiles, due: RequireDue) -> None:
        await end_response(files, due)
        ended.append(files.project)

    await Upkeep(FileStorage(store), {RESPONSE: end}, ManualClock(), Random(0)).sweep()

    turns = [project for project, _ in itertools.groupby(ended)]
    assert turns == ["one", "other"] * 3
    assert len(ended) == 2 * (2 * PAGE + 1)


async def test_a_page_that_others_are_writing_is_left_to_the_next_round(store: ObjectStore) -> None:
    await expired(store, "team", PAGE)
    tried: list[str] = []

    async def busy(files: ProjectFiles, due: RequireDue) -> None:
        tried.append(due.ref.id)
        raise Conflict("written by another")

    await Upkeep(FileStorage(store), {RESPONSE: busy}, ManualClock(), Random(0)).sweep()

    assert len(set(tried)) == len(tried) == PAGE


async def test_objects_of_kinds_that_are_not_known_here_are_left_to_others(store: ObjectStore) -> None:
    files = await expired(store, "team", 2)
    await Upkeep(FileStorage(store), {FILE: end_file}, ManualClock(), Random(0)).sweep()

    assert len(await files.expired(LATER_S, 10)) == 2


async def test_objects_that_cannot_be_ended_here_hide_none_behind_them(store: ObjectStore) -> None:
    files, file = await expired(store, "team", PAGE + 1), FILE.new_ref()
    await files.objects.apply([Create(file, BODY), ExpireAt(file, int(ManualClock().wall()))])
    upkeep = Upkeep(FileStorage(store), {FILE: end_file}, ManualClock(), Random(0))
    left = []
    for _ in range(2):
        await upkeep.sweep()
        left.append(len(await files.expired(LATER_S, PAGE + 10)))

    assert left == [PAGE + 2, PAGE + 1]


@pytest.mark.parametrize(
    ("kind", "end"), [(FILE, end_file), (UPLOAD, end_upload), (VECTOR_STORE, end_store), (RESPONSE, end_response)]
)
async def test_what_is_put_off_while_it_is_being_ended_stays(store: ObjectStore, kind: Kind, end: End) -> None:
    storage, clock = FileStorage(store), ManualClock()
    await storage.register("team")
    files, ref = storage.of("team"), kind.new_ref()
    await files.objects.apply([Create(ref, BODY), ExpireAt(ref, int(clock.wall()) - 1)])

    async def put_off(files: ProjectFiles, due: RequireDue) -> None:
        await files.objects.apply([ExpireAt(ref, LATER_S)])
        await end(files, due)

    await Upkeep(storage, {kind: put_off}, clock, Random(0)).sweep()

    assert (await files.objects.get(ref)).body == BODY
    async with store.state.reaching() as client:
        assert await client.zscore(project_prefix("team") + "expiring", ref.key) == 1000 * LATER_S

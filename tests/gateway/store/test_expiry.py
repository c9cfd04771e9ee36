"""What ends by itself, unless its end is put off in the last moment."""

from random import Random

import pytest

from services.gateway.files.endings import end_file, end_response, end_upload
from services.gateway.files.storage import FileStorage, ProjectFiles
from services.gateway.files.upkeep import End, Upkeep
from services.gateway.search.stores import end_store
from services.gateway.store.changes import Create
from services.gateway.store.expiry import ExpireAt, RequireDue
from services.gateway.store.keys import project_prefix
from services.gateway.store.kinds import FILE, RESPONSE, UPLOAD, VECTOR_STORE, Kind
from services.gateway.store.object_store import ObjectStore
from services.telemetry.clock import ManualClock

LATER_S = 2**40
BODY = {"status": "pending"}


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

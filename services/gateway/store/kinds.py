"""The kinds of API objects, and how objects are named."""

import re
from dataclasses import dataclass

from services.gateway.web.exchange import new_token

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")


@dataclass(frozen=True)
class Kind:
    """A kind of object: a thread, a message."""

    name: str
    """Stands in keys; never changes."""
    prefix: str
    """What ids of this kind begin with, without the separator."""
    noun: str
    """As in ``No thread found with id ...``."""
    separator: str = "_"
    absent_text: str = "No {noun} found with id '{id}'."
    """The sentence that says that there is no such object."""

    def ref(self, object_id: str) -> "Ref":
        """Return the name of one object of this kind; any text makes one, even if no object can have it."""
        return Ref(self, object_id)

    def new_ref(self) -> "Ref":
        """Return a name that no other object has: the prefix and 24 letters and digits."""
        return Ref(self, f"{self.prefix}{self.separator}{new_token()}")


@dataclass(frozen=True)
class Ref:
    """The name of one object within its project."""

    kind: Kind
    id: str

    @property
    def key(self) -> str:
        """The part of keys that names the object: ``thread:thread_abc``."""
        return f"{self.kind.name}:{self.id}"

    @property
    def is_storable(self) -> bool:
        """Whether an object can have this id; others are never sent to Redis."""
        return is_name(self.id)

    @property
    def absent_text(self) -> str:
        """The sentence that says that there is no such object."""
        return self.kind.absent_text.format(noun=self.kind.noun, id=self.id)


def is_name(text: str) -> bool:
    """Return whether ``text`` may be an id, or the name or value of a label."""
    return _NAME.fullmatch(text) is not None


ASSISTANT = Kind("assistant", "asst", "assistant")
THREAD = Kind("thread", "thread", "thread")
MESSAGE = Kind("message", "msg", "message")
RUN = Kind("run", "run", "run")
STEP = Kind("step", "step", "run step")
FILE = Kind("file", "file", "file", separator="-", absent_text="No such File object: {id}")
UPLOAD = Kind("upload", "upload", "upload")
VECTOR_STORE = Kind("vector_store", "vs", "vector store")
STORED_FILE = Kind("vector_store_file", "vs", "file of a vector store")
FILE_BATCH = Kind("vector_store_file_batch", "vsfb", "file batch")
UPLOAD_PART = Kind("upload_part", "part", "upload part")
RESPONSE = Kind("response", "resp", "response", absent_text="Response with id '{id}' not found.")
INPUT_ITEM = Kind("input_item", "", "input item")
"""Items have ids of many forms: those of messages, of calls, of their outputs."""
OUTPUT_ITEM = Kind("output_item", "", "output item")
ITEM = Kind("item", "", "item")

"""From a rendered pod to local processes: what a kubelet would give a container, as paths, addresses and variables.

A pod has an address of its own in 127.0.0.0/8 and folders of its own for its volumes. There are no namespaces,
so texts of the manifest that mean something inside the pod only are translated: mount paths into those
folders, 0.0.0.0 and 127.0.0.1 into the pod's address, names of Services into addresses of pods.
"""

import base64
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from services.cluster.redis_binary import find_redis_server
from tests.deploy.chart import REPOSITORY, Manifest, Rendered

_SOMEBODY_ELSE = 65534


@dataclass(frozen=True)
class Surroundings:
    """What lies outside the pods."""

    rendered: Rendered
    claims: Mapping[str, Path]
    """PersistentVolumeClaims by name."""
    services: Mapping[str, str]
    """``name:port`` of each Service to the address and port of a pod behind it."""


@dataclass
class Sandbox:
    """Where one pod runs."""

    name: str
    address: str
    folder: Path
    pod: Manifest
    around: Surroundings
    claim_templates: Sequence[Manifest] = ()
    environment: dict[str, str] = field(init=False)
    """The whole environment of the container."""
    _folders: dict[str, Path] = field(init=False)

    def __post_init__(self) -> None:
        self._folders = {
            mount["mountPath"]: self._volume(mount["name"]) for mount in self.container.get("volumeMounts", [])
        }
        self.environment = _image_environment() | self._variables()
        if "/tmp" in self._folders:
            self.environment["TMPDIR"] = str(self._folders["/tmp"])

    @property
    def container(self) -> Manifest:
        """The only container of the pod."""
        (container,) = self.pod["spec"]["containers"]
        return dict(container)

    def command(self, words: Sequence[str]) -> list[str]:
        """Return a command of the manifest as it runs here."""
        return [self._translate(word) for word in words]

    def port(self, name_or_number: str | int) -> int:
        """Return the number of a port that may be given by its name."""
        ports = {port["name"]: int(port["containerPort"]) for port in self.container["ports"]}
        return ports[name_or_number] if isinstance(name_or_number, str) else name_or_number

    def _translate(self, text: str) -> str:
        for service, address in self.around.services.items():
            text = re.sub(rf"\b{re.escape(service)}\b", address, text)
        for path, folder in sorted(self._folders.items(), reverse=True):
            text = re.sub(rf"(?<![\w./:-]){re.escape(path)}(?![\w.-])", str(folder), text)
        return re.sub(r"\b(0\.0\.0\.0|127\.0\.0\.1)\b", self.address, text)

    def _variables(self) -> dict[str, str]:
        values: dict[str, str] = {}
        for variable in self.container.get("env", []):
            value = variable["value"] if "value" in variable else self._value_from(variable["valueFrom"])
            expanded = re.sub(r"\$\((\w+)\)", lambda found: values.get(found[1], found[0]), value)
            values[variable["name"]] = self._translate(expanded) if "value" in variable else value
        return values

    def _value_from(self, source: Manifest) -> str:
        if "fieldRef" in source:
            return {"status.podIP": self.address, "metadata.name": self.name}[source["fieldRef"]["fieldPath"]]
        reference = source["secretKeyRef"]
        return self._secret(reference["name"])[reference["key"]].decode()

    def _secret(self, name: str) -> dict[str, bytes]:
        secret = self.around.rendered.find("Secret", name)
        if secret is None:
            raise LookupError(f"no Secret {name}")
        return {key: base64.b64decode(value) for key, value in secret["data"].items()}

    def _volume(self, name: str) -> Path:
        folder = self.folder / name
        if any(one["metadata"]["name"] == name for one in self.claim_templates):
            folder.mkdir(parents=True)
            return folder
        volume = next(one for one in self.pod["spec"]["volumes"] if one["name"] == name)
        if "persistentVolumeClaim" in volume:
            return self.around.claims[volume["persistentVolumeClaim"]["claimName"]]
        folder.mkdir(parents=True)
        for item in volume.get("secret", {}).get("items", []):
            file = folder / item["path"]
            file.write_bytes(self._secret(volume["secret"]["secretName"])[item["key"]])
            _give_away(file, volume["secret"]["defaultMode"])
        return folder


def _give_away(file: Path, mode: int) -> None:
    """Let the file belong to somebody else and be readable by our group, as in a pod; only root can."""
    if os.geteuid() == 0:
        file.chmod(mode)
        os.chown(file, _SOMEBODY_ELSE, os.getegid())
    else:
        file.chmod(mode & 0o700)


def _image_environment() -> dict[str, str]:
    """Return what the image would give: a PATH with this interpreter's commands and Redis, nothing of this process."""
    folders = [Path(sys.executable).parent, find_redis_server().parent]
    path = [str(folder) for folder in folders] + [os.defpath]
    return {"PATH": ":".join(path), "PYTHONPATH": str(REPOSITORY), "LANG": "C.UTF-8"}

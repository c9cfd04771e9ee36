"""One layer's attention bound to its planes of the KV cache."""

from dataclasses import dataclass

import torch

from services.engine.attention.backend import AttentionBackend, AttentionOptions
from services.engine.attention.batch import PackedBatch
from services.engine.attention.interface import LayerArguments
from services.engine.mla import LatentProjection
from services.errors import InternalError
from services.kv.layout import Plane


@dataclass(frozen=True, eq=False)
class LayerPlan:
    """What the probe found out about one layer."""

    layer: int
    planes: tuple[Plane, ...]
    """``key`` and ``value``, or ``latent``."""
    arguments: LayerArguments
    options: AttentionOptions
    latent: LatentProjection | None = None


class PagedLayer:
    """Stores a layer's new keys and values, then attends."""

    def __init__(self, plan: LayerPlan, planes: tuple[torch.Tensor, ...], backend: AttentionBackend) -> None:
        self._plan = plan
        self._planes = planes
        self._backend = backend

    def attend(
        self,
        batch: PackedBatch,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        arguments: LayerArguments,
    ) -> torch.Tensor:
        """Return ``[num_rows, num_heads, value_width]``.

        Raises:
            InternalError: the model asks for something else than it did when it was probed.
        """
        known = self._plan.arguments
        if (arguments.scaling, arguments.window, arguments.softcap) != (known.scaling, known.window, known.softcap):
            raise InternalError(f"layer {self._plan.layer} changed its attention from {known} to {arguments}")
        if self._plan.latent is not None:
            return self._attend_latent(self._plan.latent, batch, query, key, value)
        keys, values = self._planes
        self._backend.store(batch, key, keys)
        self._backend.store(batch, value, values)
        return self._backend.attend(batch, query, keys, values, self._plan.options)

    def _attend_latent(
        self,
        latent: LatentProjection,
        batch: PackedBatch,
        query: torch.Tensor,
        compressed: torch.Tensor,
        rotated: torch.Tensor,
    ) -> torch.Tensor:
        (plane,) = self._planes
        self._backend.store(batch, torch.cat((compressed, rotated), dim=-1), plane)
        attended = self._backend.attend(
            batch, latent.absorb(query), plane, plane[..., : latent.rank], self._plan.options
        )
        return latent.expand(attended)


class PagedPass:
    """Answers the layers of one forward pass."""

    def __init__(self, layers: dict[int, PagedLayer], batch: PackedBatch) -> None:
        self._layers = layers
        self._batch = batch
        self.num_answered = 0

    def attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        arguments: LayerArguments,
    ) -> torch.Tensor:
        """Hand the call to its layer."""
        self.num_answered += 1
        layer = self._layers[int(module.layer_idx)]  # type: ignore[arg-type]
        return layer.attend(self._batch, query, key, value, arguments)

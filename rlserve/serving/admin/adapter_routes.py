"""LoRA adapters that come and go while the server runs, by vLLM's routes, on the admin listener."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import PlainTextResponse, Response

from rlserve.serving.admin.routes import operations_of
from rlserve.serving.front.body import read_model
from rlserve.serving.front.context import context_of
from rlserve.serving.front.description import takes
from rlserve.serving.protocol.errors import ApiError

router = APIRouter(prefix="/v1")


class LoadAdapterRequest(BaseModel):
    """Body of ``/v1/load_lora_adapter``."""

    model_config = ConfigDict(extra="forbid")
    lora_name: str = Field(min_length=1, max_length=200)
    """What clients write as ``model``."""
    lora_path: str = Field(min_length=1, max_length=4096)
    """A folder as peft writes it, on the machine of the server."""
    load_inplace: bool = False
    """Take the place of the adapter of that name, if there is one; answers under way go on with the old one."""


class UnloadAdapterRequest(BaseModel):
    """Body of ``/v1/unload_lora_adapter``."""

    model_config = ConfigDict(extra="forbid")
    lora_name: str = Field(min_length=1, max_length=200)
    lora_int_id: int | None = None
    """vLLM's own number of it; not needed."""


BODIES: tuple[type[BaseModel], ...] = (LoadAdapterRequest, UnloadAdapterRequest)


@router.post("/load_lora_adapter", openapi_extra=takes(LoadAdapterRequest))
async def load_lora_adapter(request: Request) -> Response:
    """Load an adapter into all replicas; clients can name it as soon as this is answered."""
    context = context_of(request)
    asked = await read_model(request, LoadAdapterRequest, context.config.limits)
    if asked.lora_name == context.config.model_name:
        raise ApiError(400, f"no adapter can be called {asked.lora_name!r}: the model itself is", "lora_name")
    if asked.lora_name in context.adapters and not asked.load_inplace:
        problem = f"an adapter {asked.lora_name!r} has already been loaded: unload it first, or set load_inplace"
        raise ApiError(400, problem, "lora_name")
    folder = Path(asked.lora_path).expanduser().absolute()
    await operations_of(request).load_adapter(asked.lora_name, folder)
    context.adapters[asked.lora_name] = str(folder)
    return PlainTextResponse(f"Success: LoRA adapter '{asked.lora_name}' added successfully.")


@router.post("/unload_lora_adapter", openapi_extra=takes(UnloadAdapterRequest))
async def unload_lora_adapter(request: Request) -> Response:
    """Forget an adapter; answers under way go on with it."""
    context = context_of(request)
    asked = await read_model(request, UnloadAdapterRequest, context.config.limits)
    if asked.lora_name not in context.adapters:
        raise ApiError(404, f"there is no adapter {asked.lora_name!r}", "lora_name")
    folder = context.adapters.pop(asked.lora_name)  # nobody begins with it any more
    try:
        await operations_of(request).unload_adapter(asked.lora_name)
    except ApiError:
        context.adapters[asked.lora_name] = folder
        raise
    return PlainTextResponse(f"Success: LoRA adapter '{asked.lora_name}' removed successfully.")

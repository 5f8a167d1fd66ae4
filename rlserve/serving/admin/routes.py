"""The routes of the admin listener. They come with no key of the API, and the API's listener has none of them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Literal, cast

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from rlserve.errors import UserError
from rlserve.serving.admin.base import Operations, ProfileBounds
from rlserve.serving.admin.key_files import KeyFiles
from rlserve.serving.front.body import read_model
from rlserve.serving.front.context import ServerContext, context_of
from rlserve.serving.front.description import takes
from rlserve.serving.front.whole_answer import json_response
from rlserve.serving.protocol.errors import ApiError

router = APIRouter(prefix="/admin")
profile_router = APIRouter()
"""By vLLM's names."""
MAX_PROFILED = ProfileBounds(num_steps=100, seconds=60.0)
"""Of one profile: the engine stands still while what was seen is put together, some microseconds an event."""


class WeightsRequest(BaseModel):
    """Body of ``/admin/weights``."""

    model_config = ConfigDict(extra="forbid")
    path: str = Field(min_length=1, max_length=4096)
    """A Hugging Face folder, or a step's folder of a run, on the machine of the server."""


class DrainRequest(BaseModel):
    """Body of ``/admin/drain`` and ``/admin/undrain``."""

    model_config = ConfigDict(extra="forbid")
    replica: str | None = None
    """By its name; None is the whole server."""


class MoveRequest(BaseModel):
    """Body of ``/admin/move``."""

    model_config = ConfigDict(extra="forbid")
    gang: str = Field(min_length=1, max_length=200)
    """A gang, or one of its slots."""
    role: Literal["train", "rollout"]


class ProfileRequest(BaseModel):
    """Body of ``/admin/profile``. It ends with the first bound that is reached."""

    model_config = ConfigDict(extra="forbid")
    replica: str | None = None
    """By its name; None takes the one with the most to do."""
    num_steps: int = Field(default=20, ge=1, le=MAX_PROFILED.num_steps)
    seconds: float = Field(default=10.0, gt=0, le=MAX_PROFILED.seconds)


BODIES: tuple[type[BaseModel], ...] = (WeightsRequest, DrainRequest, MoveRequest, ProfileRequest)


def operations_of(request: Request) -> Operations:
    """What can be done to the server that a request came to."""
    return cast(Operations, request.app.state.operations)


@router.get("/status")
async def status(request: Request) -> Response:
    """Of the server and of all replicas."""
    return await _status(request)


@router.post("/pause")
async def pause(request: Request) -> Response:
    """Generate nothing until it goes on. Streams stay open, and new requests wait; ``/ready`` says 503."""
    draining = context_of(request).draining
    was_paused, draining.is_paused = draining.is_paused, True
    try:
        await operations_of(request).pause()
    except ApiError:
        draining.is_paused = was_paused
        raise
    return await _status(request)


@router.post("/resume")
async def resume(request: Request) -> Response:
    """Go on."""
    await operations_of(request).resume()
    context_of(request).draining.is_paused = False
    return await _status(request)


@router.post("/weights", openapi_extra=takes(WeightsRequest))
async def weights(request: Request) -> Response:
    """Load the weights of a folder; answers under way go on with them."""
    asked = await read_model(request, WeightsRequest, context_of(request).config.limits)
    taken = await operations_of(request).load_weights(_model_folder(asked.path))
    return json_response(asdict(taken))


@router.post("/drain", openapi_extra=takes(DrainRequest))
async def drain(request: Request) -> Response:
    """Take nothing new; what is under way ends. ``/admin/status`` says how much is left."""
    context = context_of(request)
    asked = await read_model(request, DrainRequest, context.config.limits)
    if asked.replica is not None:
        operations_of(request).drain(asked.replica)
    else:
        context.draining.is_ready = context.draining.takes_requests = False
    return await _status(request)


@router.post("/undrain", openapi_extra=takes(DrainRequest))
async def undrain(request: Request) -> Response:
    """Take requests again."""
    context = context_of(request)
    asked = await read_model(request, DrainRequest, context.config.limits)
    if asked.replica is not None:
        operations_of(request).undrain(asked.replica)
    elif context.draining.is_ending:
        raise ApiError(409, "the server is ending, and nobody can call that off")
    else:
        context.draining.is_ready = context.draining.takes_requests = True
    return await _status(request)


@router.post("/move", openapi_extra=takes(MoveRequest))
async def move(request: Request) -> Response:
    """Have a gang of a run train, or roll out."""
    asked = await read_model(request, MoveRequest, context_of(request).config.limits)
    return json_response(asdict(await operations_of(request).move(asked.gang, asked.role)))


@router.post("/profile", openapi_extra=takes(ProfileRequest))
async def profile(request: Request) -> Response:
    """Profile the next steps of a replica's engine; answered when the trace is written, with its path."""
    asked = await read_model(request, ProfileRequest, context_of(request).config.limits)
    operations = operations_of(request)
    operations.begin_profile(asked.replica, ProfileBounds(num_steps=asked.num_steps, seconds=asked.seconds))
    return json_response(asdict(await operations.last_profile()))


@router.post("/keys/reload")
async def reload_keys(request: Request) -> Response:
    """Read the keys of both listeners anew. What is wrong with them is told, and changes nothing."""
    key_files = cast(KeyFiles, request.app.state.key_files)
    try:
        return json_response(asdict(key_files.reload()))
    except UserError as error:
        raise ApiError(400, str(error)) from error


@profile_router.post("/start_profile")
async def start_profile(request: Request) -> Response:
    """Profile the next steps of the replica with the most to do, until ``/stop_profile`` or for as long as may be."""
    operations_of(request).begin_profile(None, MAX_PROFILED)
    return json_response({})


@profile_router.post("/stop_profile")
async def stop_profile(request: Request) -> Response:
    """End it; answered when the trace is written, with its path."""
    return json_response(asdict(await operations_of(request).end_profile()))


async def _status(request: Request) -> Response:
    context: ServerContext = context_of(request)
    draining = context.draining
    return json_response(
        {
            "model": context.config.model_name,
            "is_ready": draining.is_ready and not draining.is_paused and context.pool.num_ready > 0,
            "is_paused": draining.is_paused,
            "is_drained": not draining.takes_requests,
            "degradation_level": context.level.name.lower(),
            "num_live_samples": context.pool.num_live_samples,
            "replicas": [asdict(replica) for replica in await operations_of(request).status()],
        }
    )


def _model_folder(path: str) -> Path:
    """The folder with the model, of what was asked for."""
    folder = Path(path).expanduser()
    found = next((each for each in (folder, folder / "policy") if (each / "config.json").is_file()), None)
    if found is None:
        raise ApiError(400, "no model lies there: name a folder with config.json on this server's machine", "path")
    return found.absolute()
